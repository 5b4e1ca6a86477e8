"""Settings of pre-training: one dataclass, read from Python, a dict or YAML, checked in one place.

PretrainingConfig -> validate() -> resolved() -> pretrainer

What is ``None`` is chosen by the size of the network (`SIZES`); :meth:`PretrainingConfig.resolved` puts the numbers in,
so that the settings that a run stores are complete. Neither torch nor pandas is imported.
"""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from beats_trainer.errors import ConfigError
from beats_trainer.settings import (
    PRECISION_NAMES,
    Settings,
    build,
    coerce,
    hints_of,
    plain,
    read_yaml,
)

__all__ = ["SIZES", "PretrainingConfig", "Size", "SizeName"]

SizeName = Literal["nano", "small", "base", "large"]
"""Sizes of an encoder."""


@dataclass(frozen=True)
class Size:
    """A network's dimensions, and what goes well with them.

    Attributes:
        architecture: Arguments of ``beats_trainer.model.Architecture``.
        predictor_layers: Transformer layers of the label predictor.
        predictor_width: Their width.
        steps: Steps of an iteration.
        batch_s: Seconds of sound in a step.
        learning_rate: Peak rate of the encoder.
        tokenizer_learning_rate: Peak rate of a tokenizer.
    """

    architecture: Mapping[str, int]
    predictor_layers: int
    predictor_width: int
    steps: int
    batch_s: float
    learning_rate: float
    tokenizer_learning_rate: float


def _dimensions(
    layers: int, width: int, heads: int, embed: int, conv_pos: int, conv_pos_groups: int = 16
) -> dict[str, int]:
    return {
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": heads,
        "embed_dim": embed,
        "conv_pos": conv_pos,
        "conv_pos_groups": conv_pos_groups,
    }


SIZES: dict[str, Size] = {
    "nano": Size(_dimensions(4, 192, 6, 192, 32, 12), 1, 128, 20_000, 80.0, 1e-3, 1e-3),
    "small": Size(_dimensions(12, 384, 6, 384, 128), 1, 256, 50_000, 640.0, 5e-4, 2e-4),
    "base": Size(_dimensions(12, 768, 12, 512, 128), 2, 384, 100_000, 2800.0, 5e-4, 5e-5),
    "large": Size(_dimensions(24, 1024, 16, 512, 128), 2, 512, 100_000, 5600.0, 1e-4, 5e-5),
}
"""``base`` and ``large`` have the dimensions of BEATs and OpenBEATs. Rates of ``base`` are the paper's (arXiv
2212.09058), that of ``large`` OpenBEATs'; steps and batches are smaller than theirs (400,000 steps of 5,600 s)."""


@dataclass
class PretrainingConfig(Settings):
    """How an encoder is pre-trained on recordings without labels."""

    architecture: SizeName | None = None
    """Size of the encoder: ``nano`` (2 million weights), ``small`` (22), ``base`` (90, BEATs' own) or ``large`` (310).
    ``None``: ``base``, or whatever ``from_checkpoint`` is."""
    from_checkpoint: str | os.PathLike[str] | None = None
    """Go on from an encoder, by name or path, rather than from random weights; it decides the architecture."""
    tokenizer: str | os.PathLike[str] | None = None
    """What labels the first iteration: ``"random"`` (a random projection), ``"distilled"`` (from
    ``from_checkpoint``), or a tokenizer, by path. ``None``: distilled where there is a checkpoint, else random."""
    iterations: int = 2
    """How often an encoder is trained; from the second on, on the codes of a tokenizer distilled from the last."""
    steps: int | None = None
    """Steps of an encoder's training; ``None`` takes the size's."""
    tokenizer_steps: int | None = None
    """Steps of a tokenizer's; ``None``: a quarter of ``steps``."""
    batch_s: float | None = None
    """Seconds of sound in a step, over all devices; ``None`` takes the size's."""
    accumulate_grad_batches: int = 1
    """Parts that a step is computed in, one after the other, where it does not fit into memory."""
    window_s: float = 10.0
    """Longest piece of a recording that is heard at once, in seconds."""
    learning_rate: float | None = None
    """Peak learning rate of the encoder; ``None`` takes the size's, or a tenth of it with ``from_checkpoint``."""
    tokenizer_learning_rate: float | None = None
    """Peak learning rate of a tokenizer; ``None`` takes the size's."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises to its peak; it then falls to zero in a line."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices and kernels."""
    gradient_clip: float | None = 1.0
    """Largest norm of all gradients together; ``None`` does not clip."""
    dropout: float = 0.0
    """Dropout in the encoder while it is trained."""
    layerdrop: float = 0.0
    """Probability of skipping an encoder layer while it is trained."""
    mask_ratio: float = 0.75
    """Share of the patches that are hidden."""
    positions: Literal["true", "packed"] = "true"
    """Where visible patches stand for the encoder: where they do, or side by side as in ESPnet."""
    predictor_layers: int | None = None
    """Transformer layers of the label predictor; ``None`` takes the size's."""
    predictor_width: int | None = None
    """Width of the label predictor; ``None`` takes the size's."""
    label_smoothing: float = 0.0
    """Share of a target that is spread over all codes."""
    num_codes: int = 1024
    """Codes of a tokenizer."""
    code_dim: int = 256
    """Width of a code."""
    commitment: float = 1.0
    """Weight of a vector's distance to its code, while a tokenizer is distilled."""
    tokenizer_start: Literal["teacher", "random"] = "teacher"
    """Weights that a distilled tokenizer starts from; the paper does not say."""
    projection: Literal["normalized", "best-rq", "espnet", "paper"] = "normalized"
    """How the random projection is normalised; all but the first leave most codes unused."""
    store_labels: bool = False
    """Label all recordings before an encoder is trained, and keep the codes on disk (1 GB per million windows): faster where
    a large tokenizer would hear everything anew in each pass. Recordings are then always cut in the same places."""
    fbank_mean: float | None = None
    """Mean of the log-mel filterbank to subtract; ``None``: 15.41663, of AudioSet, or the checkpoint's."""
    fbank_std: float | None = None
    """Half of what the filterbank is divided by; ``None``: 6.55582, of AudioSet, or the checkpoint's."""
    validation_share: float = 0.02
    """Share of the recordings that are not trained on, and show how well the codes of new ones are guessed."""
    validate_every: int = 500
    """Steps between two looks at them."""
    log_every: int = 50
    """Steps between two rows of ``history.csv``."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; a run that is killed loses what came after the last."""
    probe: str | os.PathLike[str] | None = None
    """Folder of labelled clips, one folder per class: how well a linear classifier tells them apart by the encoder's
    embeddings is looked at every so often."""
    probe_every: int = 2000
    """Steps between two such looks."""
    precision: str = "auto"
    """``"auto"`` (bfloat16 where the hardware multiplies it fast, else float32), ``"float32"`` or ``"bfloat16"``."""
    gradient_checkpointing: bool = False
    """Keep of each encoder layer its input only: less memory for about a third more time."""
    device: str = "auto"
    """``"auto"`` (CUDA, then Apple's MPS, then CPU) or a name that torch knows."""
    devices: int = 1
    """Processes that train together (DDP): that many GPUs, or CPU processes."""
    num_workers: int = 4
    """Threads that read recordings ahead."""
    cache_audio_gb: float = 4.0
    """Memory in GB that decoded recordings may take; a larger archive is decoded as it is used."""
    seed: int = 42
    """Of initial weights, the random projection, what is heard when, and what is hidden."""

    @property
    def size(self) -> Size:
        """What goes well with the architecture; with that of ``base`` where a checkpoint decides.

        Example:
            >>> PretrainingConfig(architecture="nano").size.predictor_width
            128
        """
        return SIZES[self.architecture or "base"]

    def architecture_settings(self) -> dict[str, Any]:
        """Arguments of ``beats_trainer.model.Architecture`` for an encoder with random weights.

        Example:
            >>> PretrainingConfig(architecture="nano").architecture_settings()["encoder_layers"]
            4
        """
        statistics = {
            name: getattr(self, name)
            for name in ("fbank_mean", "fbank_std")
            if getattr(self, name) is not None
        }
        dropout = {"dropout": self.dropout, "attention_dropout": self.dropout}
        return {
            **self.size.architecture,
            **statistics,
            **dropout,
            "encoder_layerdrop": self.layerdrop,
        }

    def resolved(self) -> "PretrainingConfig":
        """A copy in which nothing is left open that the size decides.

        Example:
            >>> PretrainingConfig(architecture="nano").resolved().batch_s
            80.0
        """
        config = copy.deepcopy(self)
        size = self.size
        for name in (
            "steps",
            "batch_s",
            "learning_rate",
            "tokenizer_learning_rate",
            "predictor_layers",
            "predictor_width",
        ):
            if getattr(self, name) is None:
                setattr(config, name, getattr(size, name))
        if self.learning_rate is None and self.from_checkpoint is not None:
            config.learning_rate = size.learning_rate / 10
        if self.architecture is None and self.from_checkpoint is None:
            config.architecture = "base"
        if self.tokenizer_steps is None:
            assert config.steps is not None
            config.tokenizer_steps = max(1, config.steps // 4)
        if self.tokenizer is None:
            config.tokenizer = "random" if self.from_checkpoint is None else "distilled"
        return config

    def validate(self) -> None:
        """Check every setting: its type, its range, and how it fits the others.

        Raises:
            ConfigError: One error that lists everything that is wrong.

        Example:
            >>> PretrainingConfig(mask_ratio=75).validate()
            Traceback (most recent call last):
            ...
            beats_trainer.errors.ConfigError: mask_ratio must be above 0 and below 1, not 75.
        """
        problems = list(_type_problems(self)) or list(_range_problems(self))
        if problems:
            raise ConfigError(
                problems[0]
                if len(problems) == 1
                else "\n- ".join([f"{len(problems)} settings are wrong:", *problems])
            )
        for idle in _settings_without_effect(self):
            warnings.warn(idle, UserWarning, stacklevel=2)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain YAML types; :meth:`from_dict` reads them back."""
        settings = plain(self)
        assert isinstance(settings, dict)
        return settings

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write all settings to a YAML file, which :meth:`from_yaml` reads back."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "PretrainingConfig":
        """Build and validate from a mapping; what is left out keeps its default.

        Raises:
            ConfigError: If a key is unknown, or a value has a wrong type or range.

        Example:
            >>> PretrainingConfig.from_dict({"learning_rate": "5e-5"}).learning_rate
            5e-05
        """
        config = build(cls, settings, "")
        config.validate()
        return config

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> "PretrainingConfig":
        """Read and validate a YAML file with the keys that :meth:`from_dict` takes.

        Raises:
            ConfigError: If the file is not there, is not YAML, or its settings are wrong; names the file.
        """
        try:
            return cls.from_dict(read_yaml(path))
        except ConfigError as error:
            raise ConfigError(f"In {os.fspath(path)}: {error}") from None


def _type_problems(config: PretrainingConfig) -> Iterator[str]:
    for name, hint in hints_of(type(config)).items():
        try:
            coerce(getattr(config, name), hint, name, parse_text=False)
        except ConfigError as error:
            yield str(error)


def _range_problems(config: PretrainingConfig) -> Iterator[str]:
    for smallest, names in (
        (1, ("iterations", "steps", "tokenizer_steps", "accumulate_grad_batches", "devices")),
        (1, ("predictor_layers", "predictor_width", "code_dim", "num_workers")),
        (1, ("validate_every", "log_every", "checkpoint_every", "probe_every")),
        (2, ("num_codes",)),
        (0, ("weight_decay", "cache_audio_gb", "seed", "commitment")),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and value < smallest:
                yield f"{name} must be at least {smallest}, not {value}."
    for name in (
        "batch_s",
        "window_s",
        "learning_rate",
        "tokenizer_learning_rate",
        "gradient_clip",
        "fbank_std",
    ):
        value = getattr(config, name)
        if value is not None and value <= 0:
            yield f"{name} must be above 0 (or null), not {value}."
    for name in ("warmup_ratio", "dropout", "layerdrop", "label_smoothing", "validation_share"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            yield f"{name} must be from 0 up to, not including, 1, not {value}."
    if not 0 < config.mask_ratio < 1:
        yield f"mask_ratio must be above 0 and below 1, not {config.mask_ratio}."
    if config.window_s < 0.5:
        yield f"window_s must be at least 0.5 s, of which something can be hidden, not {config.window_s}."
    for name in ("validate_every", "checkpoint_every", "probe_every"):
        if getattr(config, name) % max(1, config.log_every):
            yield f"{name} must be a multiple of log_every ({config.log_every}), not {getattr(config, name)}."
    if config.batch_s is not None and config.batch_s < config.window_s * config.devices:
        yield (
            f"batch_s ({config.batch_s}) must be at least window_s ({config.window_s}) for each of "
            f"{config.devices} devices."
        )
    if config.seed >= 2**32:
        yield f"seed must be below 2**32, not {config.seed}."
    if config.num_codes > 2**16:
        yield f"num_codes must be at most 65,536, not {config.num_codes}."
    if PRECISION_NAMES.get(config.precision.lower()) not in ("auto", "float32", "bfloat16"):
        yield f"precision must be auto, float32 or bfloat16, not {config.precision!r}."
    if config.tokenizer == "distilled" and config.from_checkpoint is None:
        yield (
            "tokenizer='distilled' needs from_checkpoint, the encoder to distil the first tokenizer from. Without "
            "one, the first iteration learns from a random projection: tokenizer='random'."
        )


def _settings_without_effect(config: PretrainingConfig) -> Iterator[str]:
    defaults = PretrainingConfig()
    if config.from_checkpoint is not None:
        names = ("fbank_mean", "fbank_std")
        for name in names:
            if getattr(config, name) != getattr(defaults, name):
                yield f"{name} has no effect: the checkpoint has its own."
    first = config.resolved().tokenizer
    if config.projection != defaults.projection and first != "random":
        yield "projection has no effect: the first tokenizer is no random projection."
    if config.probe is None and config.probe_every != defaults.probe_every:
        yield "probe_every has no effect without probe, a folder of labelled clips."
