"""Low-rank adapters: fine-tune an encoder through a few added weights, then fold them in.

encoder -> [add_lora] -> encoder with adapters -> fit -> [merge_lora] -> plain encoder

LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1) adds ``alpha / rank * B @ A`` to a frozen matrix. B
starts at zero, so that the adapted encoder starts as the encoder itself; merged, it costs nothing and needs
nothing to be loaded. The adapters are those of peft, an optional dependency.
"""

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from beats_trainer.errors import ConfigError
from beats_trainer.model import BEATs

__all__ = ["LORA_TARGETS", "add_lora", "has_lora", "merge_lora"]

Encoder = TypeVar("Encoder", bound=BEATs)

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Every matrix of an encoder layer. The paper adapts attention only, and finds that more kinds of matrices
at a smaller rank are better than fewer at a larger one (section 7.1)."""


def add_lora(
    encoder: Encoder,
    *,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: Sequence[str] = LORA_TARGETS,
    seed: int,
) -> Encoder:
    """Put adapters on an encoder, in place; only they have gradients afterwards.

    Args:
        encoder: All its own weights are frozen. Its dropout and layer drop stay as they are.
        rank: Rank of what is added to each matrix.
        alpha: The sum is scaled by ``alpha / rank``, so that another rank needs no other learning rate.
        dropout: Before each adapter, while training.
        targets: Names of the matrices, in every layer.
        seed: Of the adapters' weights; torch's global generator is not touched.

    Returns:
        The encoder itself.

    Raises:
        ConfigError: If peft is not installed.
        ValueError: If a setting is out of range, a target is unknown, or the encoder has adapters already.
    """
    if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
        raise ValueError(
            "LoRA needs a rank of at least 1, a positive alpha, and a dropout from 0 to below 1, not "
            f"rank={rank}, alpha={alpha}, dropout={dropout}."
        )
    unknown = [name for name in targets if name not in LORA_TARGETS]
    if unknown or not targets:
        raise ValueError(
            f"LoRA targets must be among {', '.join(LORA_TARGETS)}, not {unknown or 'none at all'}."
        )
    if has_lora(encoder):
        raise ValueError("This encoder has adapters already: merge_lora(encoder) folds them in.")
    peft = _peft()
    settings = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none"
    )
    was_training = encoder.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, encoder)
    encoder.train(was_training)
    return encoder


def merge_lora(encoder: Encoder) -> Encoder:
    """Fold the adapters into the weights, in place: a plain encoder again, with the same outputs.

    Args:
        encoder: With adapters; one without is left as it is.

    Returns:
        The encoder itself; its weights, under their own names again, can be trained.

    Raises:
        ConfigError: If peft is not installed.
        ValueError: If a merged weight is not finite.
    """
    if not has_lora(encoder):
        return encoder
    _peft()
    adapted = [
        (name, module) for name, module in encoder.named_modules() if hasattr(module, "lora_A")
    ]
    for name, module in adapted:
        layer: Any = module
        layer.merge(safe_merge=True)
        parent, _, attribute = name.rpartition(".")
        setattr(encoder.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(encoder, "peft_config"):
        del encoder.peft_config
    encoder.requires_grad_(True)
    return encoder


def has_lora(encoder: BEATs) -> bool:
    """Whether an encoder has adapters that are not merged."""
    return any(".lora_" in name for name, _ in encoder.named_parameters())


def _peft() -> Any:
    """peft, imported when it is first needed: that takes seconds."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(
            'LoRA needs the package peft, which is not installed here: pip install "beats-trainer[lora]".'
        ) from error
