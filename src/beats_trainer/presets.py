"""What a training mode sets where the user has set nothing, and where each number comes from.

mode -> [Preset] -> Config.resolved()

Numbers that were published for BEATs are taken over as they are; one that is our own says what it was
measured on (``docs/results.md``). The sources are in ``Preset.source`` and, in a table, in ``docs/training.md``.
"""

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["MODES", "PRESETS", "Mode", "Preset"]

Mode = Literal["head", "attentive", "lora", "full", "scratch"]
"""What is trained: a head on frozen embeddings, a head with learned pooling over all layers' tokens,
low-rank adapters, every weight of a checkpoint, or every weight from random ones."""
MODES: tuple[Mode, ...] = get_args(Mode)
"""The same, to iterate over."""


@dataclass(frozen=True)
class Preset:
    """The settings of one mode.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        layer_decay: Learning-rate factor per encoder layer, counted from the top.
        batch_size: Clips per optimisation step.
        max_epochs: Passes over the training clips at most.
        patience: Epochs without a better validation metric after which training stops.
        warmup_ratio: Share of all steps over which the learning rate rises.
        source: Where the numbers come from.
    """

    learning_rate: float
    weight_decay: float
    layer_decay: float
    batch_size: int
    max_epochs: int
    patience: int
    warmup_ratio: float
    source: str


PRESETS: dict[Mode, Preset] = {
    "head": Preset(
        learning_rate=5e-3,
        weight_decay=5e-4,
        layer_decay=1.0,
        batch_size=128,
        max_epochs=100,
        patience=20,
        warmup_ratio=0.1,
        source="Linear probe of BEATs in BioFoundation's BEANS configuration (rate, decay, batch size); "
        "early stopping after 20 epochs as in EVAR. Embeddings are standardised, as in EVAR.",
    ),
    "attentive": Preset(
        learning_rate=1.3e-3,
        weight_decay=7e-3,
        layer_decay=1.0,
        batch_size=128,
        max_epochs=100,
        patience=20,
        warmup_ratio=0.1,
        source="Attentive probe of BEATs in BioFoundation's BEANS configuration (rate, decay, batch "
        "size); early stopping after 20 epochs as in EVAR.",
    ),
    "lora": Preset(
        learning_rate=5e-4,
        weight_decay=0.01,
        layer_decay=1.0,
        batch_size=32,
        max_epochs=50,
        patience=10,
        warmup_ratio=0.06,
        source="Rank 8, rate 5e-4 and warm-up as for RoBERTa base in LoRA (arXiv 2106.09685, appendix D); "
        "decay as in ESPnet's fine-tuning of BEATs. Not tuned on a BEATs checkpoint.",
    ),
    "full": Preset(
        learning_rate=1e-4,
        weight_decay=5e-4,
        layer_decay=0.75,
        batch_size=32,
        max_epochs=50,
        patience=5,
        warmup_ratio=0.1,
        source="Fine-tuning of BEATs in BioFoundation: rate, decay, batch size, epochs and patience of its "
        "BEANS configuration, layer-wise decay of its BirdSet one.",
    ),
    "scratch": Preset(
        learning_rate=5e-4,
        weight_decay=0.05,
        layer_decay=1.0,
        batch_size=16,
        max_epochs=100,
        patience=40,
        warmup_ratio=0.1,
        source="Rate: BEATs' own for pre-training (arXiv 2212.09058); a network of a few layers takes 2e-3. The "
        "others are our own, measured on ESC-10 with 2 layers (docs/results.md).",
    ),
}
"""The preset of each mode."""
