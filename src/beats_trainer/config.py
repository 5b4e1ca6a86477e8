"""Settings of a training run: five dataclasses, read from Python, a dict or YAML, checked in one place.

Config(data, model, training, augmentation) -> validate() -> resolved() -> trainer

What is ``None`` is left to the preset of the training mode (``presets.py``); :meth:`Config.resolved` puts the
numbers in, so that the settings that a run stores are complete.

Attributes are plain and mutable (``config.training.max_epochs = 5``); what is assigned is checked when
it is used, by :meth:`Config.validate`, which the trainer calls before any other work. A name that does
not exist is refused at once, so a misspelt setting never goes unnoticed. This file imports neither torch
nor pandas: the command line reads it to print its help.
"""

import copy
import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from beats_trainer.constants import NUM_MEL_BINS, SAMPLE_RATE
from beats_trainer.errors import ConfigError
from beats_trainer.presets import PRESETS, Mode, Preset
from beats_trainer.pretraining_config import PretrainingConfig
from beats_trainer.settings import (
    PRECISION_NAMES,
    Settings,
    build,
    coerce,
    dotted,
    hints_of,
    plain,
    read_yaml,
    shown,
)

__all__ = [
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "PretrainingConfig",
    "Task",
    "TrainingConfig",
    "is_multi_label",
    "settled",
]

Task = Literal["single", "multi"]
"""One class per clip, or any number of them."""

T = TypeVar("T")

_LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
_ARCHITECTURE_FIELDS = (
    "input_patch_size",
    "embed_dim",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "encoder_layerdrop",
    "conv_pos",
    "conv_pos_groups",
    "num_buckets",
    "max_distance",
)


@dataclass
class DataConfig(Settings):
    """Which clips, how they are divided, and how they are read."""

    data_dir: str | os.PathLike[str] | None = None
    """Folder with one folder per class; with ``metadata_file``, the folder its file names start from."""
    metadata_file: str | os.PathLike[str] | None = None
    """CSV with one row per clip, looked for as given and then in ``data_dir``."""
    audio_column: str = "filename"
    """Column of the CSV or table that names the audio files."""
    label_column: str = "category"
    """Column of the CSV or table that holds the class labels."""
    multi_label: bool = False
    """Whether a clip may have any number of classes, each scored for itself (sigmoid). Implied by
    ``label_delimiter``, ``label_columns`` and ``annotations``."""
    label_delimiter: str | None = None
    """What separates several labels of one clip, in the table or in the names of class folders, such as
    ``";"`` or ``","``. ``-name`` says that a class is known to be absent, ``?name`` that it is unknown."""
    label_columns: list[str] | None = None
    """Columns of the table that each say of one class whether it is there: 1, 0, or blank for unknown."""
    background_labels: list[str] = field(default_factory=lambda: ["background"])
    """Labels that mean "none of the classes"; only where clips may have any number of them."""
    unlisted_labels: Literal["absent", "unknown"] = "absent"
    """What a clip says of the classes that it does not name; unknown ones are left out of the loss."""
    group_column: str | None = None
    """Column that says which clips belong together, such as a recording, a site or a speaker: they stay in one
    part of any split. ``None`` takes ``group``, ``src_file`` or ``fsID`` where the table has one, and
    the recording where clips are parts of one."""
    group_pattern: str | None = None
    """Regular expression that finds the group in a clip's path: its group named ``group``, else its first
    group, else the whole match."""
    split_column: str = "split"
    """Column that says train, val or test."""
    fold_column: str = "fold"
    """Column of the official folds."""
    folds: int | str | None = None
    """Cross-validation: ``"official"`` for the folds of ``fold_column``, a number for so many folds made
    of whole groups, ``"groups"`` to leave out one group at a time; ``None`` trains once."""
    annotations: str | os.PathLike[str] | None = None
    """Raven selection tables, Audacity labels or a CSV with start and end times: a file, or a folder of them.
    Recordings are cut into windows that are labelled by what they overlap; ``data_dir`` is where they are."""
    window_s: float = 5.0
    """Seconds of a window that is cut from an annotated recording."""
    hop_s: float | None = None
    """Seconds between the starts of two such windows; ``None``: they do not overlap."""
    min_overlap_s: float = 0.25
    """Seconds that an annotation must overlap a window to label it (or lie in it whole). With less, the
    class is unknown there."""
    max_empty_ratio: float | None = None
    """Most windows without any annotation that are kept, as a multiple of those with; ``None`` keeps all."""
    audio_extensions: list[str] | None = None
    """Endings of the files that count as audio, such as ``[".wav"]``; ``None``: all that can be read."""
    sample_rate: int = SAMPLE_RATE
    """Hz at which the network hears; BEATs is fixed to 16,000. Files of any rate are resampled to it."""
    train_split: float = 0.8
    """Share of the clips to train on, where the data set brings no split of its own and there are no ``folds``;
    the three shares sum to 1."""
    val_split: float = 0.1
    """Share to choose the best epoch on; 0 for none. With ``folds``, of the clips outside the tested fold."""
    test_split: float = 0.1
    """Share to report the final result on; 0 for none."""
    batch_size: int | None = None
    """Clips per optimisation step, before ``accumulate_grad_batches``, over all processes together; ``None``
    takes the mode's preset."""
    num_workers: int = 4
    """Processes or threads that read audio ahead of the network."""
    cache_audio_gb: float = 1.0
    """Memory in GB that decoded clips may take while a network is trained; where they need more (at 16 kHz, 1 GB
    holds 4.3 hours), clips are decoded anew in every epoch, by ``num_workers`` processes."""
    max_duration_s: float | None = None
    """While the whole network is trained, longer clips are cut to a random part of this many seconds, another
    in each epoch; what is measured or predicted is heard whole. ``None`` trains on whole clips too."""


@dataclass
class ModelConfig(Settings):
    """Which network to start from, what of it to train, and the head on top."""

    model_path: str | os.PathLike[str] | None = None
    """Checkpoint name or path to start from; ``None`` for BEATs_iter3_plus_AS2M."""
    mode: Mode | None = None
    """What is trained: ``head`` (a head on frozen embeddings), ``attentive`` (learned pooling over the tokens of
    all layers, and a head), ``lora`` (low-rank adapters), ``full`` (every weight), ``scratch`` (every weight,
    from random ones). ``None`` reads it from ``train_from_scratch``, ``freeze_backbone`` and
    ``fine_tune_backbone``, as in the library that these names come from."""
    num_classes: int | None = None
    """Number of classes expected in the data; ``None`` takes what is there."""
    train_from_scratch: bool = False
    """Start from random weights instead of a checkpoint; trains the whole network."""
    encoder_layers: int = 12
    """Transformer layers. From scratch only, as all sizes down to ``embed_dim``."""
    encoder_embed_dim: int = 768
    """Width of a token; a multiple of ``encoder_attention_heads`` and of ``conv_pos_groups``."""
    encoder_ffn_embed_dim: int = 3072
    """Hidden width of a layer's feed-forward network."""
    encoder_attention_heads: int = 12
    """Attention heads of a layer."""
    input_patch_size: int = 16
    """Frames and mel bands under one patch; must divide 128."""
    embed_dim: int = 512
    """Width of a patch embedding before it is projected to ``encoder_embed_dim``."""
    freeze_backbone: bool = True
    """Keep the encoder as it is and train the head alone; see :attr:`trains_backbone`."""
    fine_tune_backbone: bool = False
    """Train the encoder too; set together with ``freeze_backbone=False``."""
    use_custom_head: bool = False
    """Put the hidden layers of ``hidden_dims`` into the head instead of one linear layer."""
    hidden_dims: list[int] | None = None
    """Widths of the head's hidden layers; needs ``use_custom_head``."""
    dropout_rate: float = 0.1
    """Dropout in the head and, from scratch, in the encoder."""
    activation: Literal["relu", "gelu"] = "relu"
    """After each hidden layer of the head."""
    pooling: Literal["mean", "max", "first", "last", "bands"] = "mean"
    """How a clip's tokens become one embedding: their mean, maximum, first or last; or ``bands``, the mean over time of
    each of the 8 frequency bands, side by side. Mode ``attentive`` learns it instead."""
    attention_pooling_heads: int | None = None
    """Heads of the learned pooling; ``None`` takes as many as the encoder has."""
    fit_head_first: bool = True
    """In modes ``full`` and ``lora``, fit the head on embeddings of the frozen network before the network is trained: its
    first steps then do not follow a head that knows nothing (LP-FT, arXiv 2202.10054)."""
    cache_gb: float = 4.0
    """Memory in GB that the cached tokens of mode ``attentive`` may take; where they need more, the frozen
    network is run in every epoch."""
    lora_rank: int = 8
    """Rank of the adapters of mode ``lora``."""
    lora_alpha: float = 16.0
    """Adapters are scaled by ``lora_alpha / lora_rank``."""
    lora_dropout: float = 0.0
    """Dropout before each adapter."""
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    )
    """Linear layers of each encoder layer that get an adapter."""
    fbank_mean: float | None = None
    """Mean of the log-mel filterbank to subtract; ``None``: 15.41663, of AudioSet."""
    fbank_std: float | None = None
    """Half of what the filterbank is divided by; ``None``: 6.55582, of AudioSet."""
    encoder_layerdrop: float = 0.0
    """Probability of skipping an encoder layer while training. From scratch only, as all that follow."""
    conv_pos: int = 128
    """Kernel width, in tokens, of the convolutional position embedding."""
    conv_pos_groups: int = 16
    """Groups of that convolution."""
    num_buckets: int = 320
    """Relative-position buckets, half for each direction."""
    max_distance: int = 800
    """Distance, in tokens, from which on all positions share the last bucket."""

    def __post_init__(self) -> None:
        if self.train_from_scratch:
            self.freeze_backbone, self.fine_tune_backbone = False, True

    @property
    def resolved_mode(self) -> Mode:
        """What is trained: ``mode``, or the one answer from the three older settings.

        ``freeze_backbone=False`` alone also means that the whole network is trained, as examples of the
        library that these names come from have it.

        Raises:
            ConfigError: If the settings contradict each other.

        Example:
            >>> ModelConfig(freeze_backbone=False, fine_tune_backbone=True).resolved_mode
            'full'
        """
        if self.mode is not None:
            is_full = self.fine_tune_backbone or not self.freeze_backbone
            asked = "scratch" if self.train_from_scratch else "full" if is_full else None
            if (
                asked is not None
                and asked != self.mode
                and (asked, self.mode) != ("full", "scratch")
            ):
                raise ConfigError(
                    f"model.mode is {self.mode!r}, but train_from_scratch, fine_tune_backbone and "
                    f"freeze_backbone say {asked!r}. Set model.mode alone: it says all of it."
                )
            return self.mode
        if self.train_from_scratch:
            return "scratch"
        if self.freeze_backbone and self.fine_tune_backbone:
            raise ConfigError(
                "model.freeze_backbone and model.fine_tune_backbone are both true, and contradict "
                "each other. To train the whole network set freeze_backbone=False and "
                "fine_tune_backbone=True; to train only the head set freeze_backbone=True and "
                "fine_tune_backbone=False."
            )
        return "head" if self.freeze_backbone else "full"

    @property
    def trains_backbone(self) -> bool:
        """Whether every weight of the encoder is trained.

        Raises:
            ConfigError: If the settings contradict each other.

        Example:
            >>> ModelConfig(mode="lora").trains_backbone
            False
        """
        return self.resolved_mode in ("full", "scratch")

    def architecture_settings(self) -> dict[str, Any]:
        """Arguments of ``beats_trainer.model.Architecture`` for training from scratch.

        Example:
            >>> ModelConfig(encoder_layers=2).architecture_settings()["encoder_layers"]
            2
        """
        sizes = {name: getattr(self, name) for name in _ARCHITECTURE_FIELDS}
        statistics = {
            name: getattr(self, name)
            for name in ("fbank_mean", "fbank_std")
            if getattr(self, name) is not None
        }
        dropout = {"dropout": self.dropout_rate, "attention_dropout": self.dropout_rate}
        return sizes | statistics | dropout


@dataclass
class TrainingConfig(Settings):
    """How the weights are fitted, and what of a run is kept."""

    learning_rate: float | None = None
    """Peak learning rate; ``None`` takes the mode's preset."""
    weight_decay: float | None = None
    """Decoupled weight decay (L2 penalty for ``adam`` and ``sgd``); ``None`` takes the mode's preset."""
    max_epochs: int | None = None
    """Passes over the training clips at most; ``None`` takes the mode's preset."""
    patience: int | None = None
    """Epochs without a better ``monitor_metric`` after which training stops early; ``None`` takes the mode's
    preset."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser; ``sgd`` has momentum 0.9."""
    scheduler: Literal["cosine", "step", "constant"] | None = "cosine"
    """Learning rate after the warm-up: down to 0 along a cosine, times 0.1 every 30 epochs, or constant
    (``None`` too)."""
    loss_function: Literal["auto", "cross_entropy", "bce", "focal", "asymmetric"] = "auto"
    """What is minimised. ``auto``: cross entropy where a clip has one class, else binary cross entropy of each
    class (``bce``). ``focal`` weighs easy clips down, ``asymmetric`` easy absent classes."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss (arXiv 1708.02002)."""
    class_weights: Literal["none", "inverse", "effective"] = "none"
    """Weigh the loss of rare classes up: by the inverse of their number of clips, or by the inverse of their
    effective number (class-balanced loss, arXiv 1901.05555). The mean weight of a clip is 1."""
    sampling: Literal["all", "class_balanced"] = "all"
    """Which clips an epoch hears: each one once, or as many, drawn so that every class comes up equally often."""
    label_smoothing: float = 0.0
    """Share of a target that is spread over all classes."""
    monitor_metric: str | None = None
    """Validation metric that chooses the best epoch; a loss is minimised, anything else maximised. ``None``:
    ``val_accuracy``, or ``val_map`` where clips may have any number of classes."""
    calibrate: bool = True
    """Whether the scale of the scores and the thresholds of the classes are fitted on the validation clips and
    stored in the model."""
    target_precision: float | None = None
    """Precision that each class's threshold shall reach; ``None``: the threshold with the best F1."""
    gpus: int | None = None
    """Of the library that these names come from; has no effect. Use ``device``."""
    precision: str | int = "auto"
    """``"auto"`` (bfloat16 where the hardware multiplies it fast, else float32), ``"float32"``,
    ``"bfloat16"`` or ``"float16"``; 32 and 16 are understood."""
    deterministic: bool = False
    """Use only deterministic kernels, at some cost in speed."""
    log_every_n_steps: int = 50
    """Steps between two lines of the training log."""
    save_top_k: int = 1
    """Best checkpoints kept on disk; the last one is kept besides."""
    loggers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])
    """Where the course of training is logged besides ``history.csv``: ``csv``, ``tensorboard``, ``wandb``,
    ``mlflow`` (the last two need their packages)."""
    warmup_ratio: float | None = None
    """Share of all steps over which the learning rate rises from 0 to its peak; ``None`` takes the mode's
    preset."""
    layer_decay: float | None = None
    """Learning-rate factor per encoder layer, counted from the top; 1.0 trains all layers alike. ``None``
    takes the mode's preset."""
    gradient_clip: float | None = 1.0
    """Largest norm of all gradients together; ``None`` does not clip."""
    accumulate_grad_batches: int = 1
    """Batches whose gradients are added up into one step."""
    gradient_checkpointing: bool = False
    """Keep of each encoder layer its input only, and compute the layer again for its gradients: the same result,
    with less memory and about a third more time."""
    devices: int = 1
    """Processes that train together (DDP): that many GPUs, or CPU processes."""
    device: str = "auto"
    """``"auto"`` (CUDA, then Apple's MPS, then CPU) or a name that torch knows, such as ``"cuda:1"``."""

    @property
    def monitor_mode(self) -> Literal["min", "max"]:
        """Whether a smaller or a larger ``monitor_metric`` is better.

        Example:
            >>> TrainingConfig(monitor_metric="val_loss").monitor_mode
            'min'
        """
        name = self.monitor_metric or ""
        return "min" if "loss" in name or "error" in name else "max"

    @property
    def precision_name(self) -> str:
        """``precision`` under its one name: ``auto``, ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            ConfigError: If ``precision`` is none of the spellings that are understood.

        Example:
            >>> TrainingConfig(precision=16).precision_name
            'float16'
        """
        name = PRECISION_NAMES.get(str(self.precision).lower())
        if name is None:
            raise ConfigError(
                "training.precision must be auto, float32, bfloat16 or float16, "
                f"not {self.precision!r}."
            )
        return name


@dataclass
class AugmentationConfig(Settings):
    """How training clips are changed at random, another way in each epoch; off by default."""

    gain_db: float = 0.0
    """Louder or softer by up to so many decibels."""
    roll: bool = False
    """Whether clips are shifted in time, their end coming round to the start."""
    polarity: bool = False
    """Whether half of the clips are turned upside down (which no ear hears)."""
    mixup_alpha: float = 0.0
    """Mix pairs of waveforms, and their labels alike, in a ratio drawn from Beta(alpha, alpha); 0 does not."""
    mixup_probability: float = 1.0
    """Share of the clips that are mixed."""
    background_dir: str | os.PathLike[str] | None = None
    """Folder of recordings that are mixed into the clips as background."""
    background_snr_db: list[float] = field(default_factory=lambda: [5.0, 20.0])
    """Least and greatest ratio of clip to background, in decibels."""
    background_probability: float = 0.5
    """Share of the clips that get a background."""
    num_time_masks: int = 0
    """Stretches of time that are blanked in each filterbank (SpecAugment, arXiv 1904.08779)."""
    max_time_mask: float = 0.1
    """Longest such stretch, as a share of the clip."""
    num_freq_masks: int = 0
    """Bands of frequency that are blanked in each filterbank."""
    max_freq_mask: int = 16
    """Widest such band, in mel bins of 128."""

    @property
    def changes_waveforms(self) -> bool:
        """Whether the sound itself is changed.

        Example:
            >>> AugmentationConfig(num_time_masks=2).changes_waveforms
            False
        """
        return (
            self.gain_db > 0
            or self.roll
            or self.polarity
            or (self.mixup_alpha > 0 and self.mixup_probability > 0)
            or (self.background_dir is not None and self.background_probability > 0)
        )

    @property
    def masks_fbank(self) -> bool:
        """Whether parts of the spectrogram are hidden.

        Example:
            >>> AugmentationConfig(num_time_masks=2).masks_fbank
            True
        """
        return (self.num_time_masks > 0 and self.max_time_mask > 0) or (
            self.num_freq_masks > 0 and self.max_freq_mask > 0
        )

    @property
    def is_on(self) -> bool:
        """Whether anything is changed at all.

        Example:
            >>> AugmentationConfig().is_on, AugmentationConfig(roll=True).is_on
            (False, True)
        """
        return self.changes_waveforms or self.masks_fbank


def settled(value: T | None) -> T:
    """A setting that a preset has filled in by now, see :meth:`Config.resolved`.

    Example:
        >>> settled(Config(model=ModelConfig(mode="full")).resolved().training.max_epochs)
        50
    """
    assert value is not None, "the config was not resolved"
    return value


@dataclass
class Config(Settings):
    """All settings of one training run.

    Example:
        >>> config = Config(experiment_name="birds", training=TrainingConfig(max_epochs=5))
        >>> config.model.mode = "full"
        >>> config.validate()
        >>> config.resolved_learning_rate()
        0.0001
    """

    data: DataConfig = field(default_factory=DataConfig)
    """Which clips, how divided, how read."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network, and what of it is trained."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """How training clips are changed at random."""
    experiment_name: str = "beats_experiment"
    """Name of the folder that the run's files go to."""
    seed: int = 42
    """Of the split, the initial weights and the order of the clips."""

    def resolved_learning_rate(self) -> float:
        """The peak learning rate: as set, or that of the mode's preset.

        Raises:
            ConfigError: If the settings contradict each other about what is trained.

        Example:
            >>> Config(model=ModelConfig(mode="attentive")).resolved_learning_rate()
            0.0013
        """
        if self.training.learning_rate is not None:
            return float(self.training.learning_rate)
        return self.preset().learning_rate

    def preset(self) -> Preset:
        """What the mode sets where the user has set nothing.

        Raises:
            ConfigError: If the settings contradict each other about what is trained.
        """
        return PRESETS[self.model.resolved_mode]

    def resolved(self, task: Task = "single") -> "Config":
        """A copy in which nothing is left open: the mode's preset in place of every ``None``.

        Args:
            task: ``"single"`` where each clip has exactly one class, ``"multi"`` where it has any number.

        Raises:
            ConfigError: If the settings contradict each other.

        Example:
            >>> Config(model=ModelConfig(mode="lora")).resolved().training.learning_rate
            0.0005
        """
        config = copy.deepcopy(self)
        mode, preset = self.model.resolved_mode, self.preset()
        model, training = config.model, config.training
        model.mode = mode
        model.train_from_scratch = mode == "scratch"
        model.fine_tune_backbone = mode in ("full", "scratch")
        model.freeze_backbone = not model.fine_tune_backbone
        training.learning_rate = config.resolved_learning_rate()
        for name in ("weight_decay", "layer_decay", "max_epochs", "patience", "warmup_ratio"):
            if getattr(training, name) is None:
                setattr(training, name, getattr(preset, name))
        if config.data.batch_size is None:
            config.data.batch_size = preset.batch_size
        if training.loss_function == "auto":
            training.loss_function = "cross_entropy" if task == "single" else "bce"
        if training.monitor_metric is None:
            training.monitor_metric = "val_accuracy" if task == "single" else "val_map"
        if task == "multi" and training.loss_function == "cross_entropy":
            raise ConfigError(
                "training.loss_function='cross_entropy' needs clips of exactly one class each, but these may "
                "have any number of them. Use 'bce', 'focal' or 'asymmetric', or leave it out."
            )
        return config

    def validate(self) -> None:
        """Check every setting: its type, its range, and how it fits the others.

        Settings that have no effect beside the others are named in a ``UserWarning``.

        Raises:
            ConfigError: One error that lists everything that is wrong.

        Example:
            >>> Config(data=DataConfig(sample_rate=44100)).validate()
            Traceback (most recent call last):
            ...
            beats_trainer.errors.ConfigError: data.sample_rate must be 16000, not 44100: BEATs is \
trained at that rate. Files of any rate are resampled to it, there is nothing to set.
        """
        problems = list(_type_problems(self))
        if not problems:  # ranges are meaningful only for values of the right type
            problems = list(_range_problems(self))
        if problems:
            raise ConfigError(
                problems[0]
                if len(problems) == 1
                else "\n- ".join([f"{len(problems)} settings are wrong:", *problems])
            )
        for idle in _settings_without_effect(self):
            warnings.warn(idle, UserWarning, stacklevel=2)

    def to_dict(self) -> dict[str, Any]:
        """All settings as nested dicts of plain YAML types; :meth:`from_dict` reads them back.

        Example:
            >>> Config.from_dict(Config(seed=7).to_dict()) == Config(seed=7)
            True
        """
        return {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write all settings to a YAML file, which :meth:`from_yaml` reads back."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """Build and validate a config from nested mappings; what is left out keeps its default.

        Args:
            settings: Keys ``data``, ``model``, ``training``, ``augmentation`` (each a mapping, or the
                dataclass), ``experiment_name`` and ``seed``. Numbers may be text, as YAML reads ``5e-5``.

        Raises:
            ConfigError: If a key is unknown, or a value has a wrong type or range.

        Example:
            >>> Config.from_dict({"training": {"learning_rate": "5e-5"}}).training.learning_rate
            5e-05
        """
        config = build(cls, settings, "")
        config.validate()
        return config

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> "Config":
        """Read and validate a YAML file with the keys that :meth:`from_dict` takes.

        Raises:
            ConfigError: If the file is not there, is not YAML, or its settings are wrong; the
                message names the file.
        """
        settings = read_yaml(path)
        try:
            return cls.from_dict(settings)
        except ConfigError as error:
            raise ConfigError(f"In {os.fspath(path)}: {error}") from None


_SECTIONS: dict[str, type[Settings]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "augmentation": AugmentationConfig,
    "": Config,
}
for _owner in _SECTIONS.values():
    _owner.family = _SECTIONS


def _type_problems(config: Config) -> Iterator[str]:
    for section, owner in _SECTIONS.items():
        settings = getattr(config, section) if section else config
        if not isinstance(settings, owner):
            yield f"{section} must be a {owner.__name__}, not {shown(settings)}."
            continue
        for name, hint in hints_of(owner).items():
            if section or name not in _SECTIONS:
                try:
                    coerce(getattr(settings, name), hint, dotted(section, name), parse_text=False)
                except ConfigError as error:
                    yield str(error)


def _range_problems(config: Config) -> Iterator[str]:
    data, model, training = config.data, config.model, config.training
    augmentation = config.augmentation
    at_least = [
        (1, "data", ("batch_size",)),
        (0, "data", ("num_workers", "cache_audio_gb")),
        (1, "model", (*_ARCHITECTURE_FIELDS[:6], "conv_pos", "conv_pos_groups")),
        (2, "model", ("num_classes",)),
        (1, "model", ("lora_rank", "attention_pooling_heads")),
        (0, "model", ("cache_gb",)),
        (0, "training", ("weight_decay", "focal_gamma")),
        (1, "training", ("max_epochs", "patience", "log_every_n_steps", "save_top_k")),
        (1, "training", ("accumulate_grad_batches", "devices")),
        (0, "data", ("min_overlap_s", "max_empty_ratio")),
        (0, "augmentation", ("gain_db", "mixup_alpha", "num_time_masks", "num_freq_masks")),
        (0, "", ("seed",)),
    ]
    for smallest, section, names in at_least:
        for name in names:
            value = getattr(getattr(config, section) if section else config, name)
            if value is not None and value < smallest:
                yield f"{dotted(section, name)} must be at least {smallest}, not {value}."
    for where, positive in (
        ("data.max_duration_s", data.max_duration_s),
        ("training.learning_rate", training.learning_rate),
        ("training.gradient_clip", training.gradient_clip),
        ("data.window_s", data.window_s),
        ("data.hop_s", data.hop_s),
        ("model.lora_alpha", model.lora_alpha),
        ("model.fbank_std", model.fbank_std),
    ):
        if positive is not None and positive <= 0:
            yield f"{where} must be above 0 (or null), not {positive}."
    for where, share in (
        ("model.dropout_rate", model.dropout_rate),
        ("model.encoder_layerdrop", model.encoder_layerdrop),
        ("model.lora_dropout", model.lora_dropout),
        ("training.warmup_ratio", training.warmup_ratio),
        ("training.label_smoothing", training.label_smoothing),
    ):
        if share is not None and not 0 <= share < 1:
            yield f"{where} must be from 0 up to, not including, 1, not {share}."
    for where, share in (
        ("augmentation.mixup_probability", augmentation.mixup_probability),
        ("augmentation.background_probability", augmentation.background_probability),
        ("augmentation.max_time_mask", augmentation.max_time_mask),
    ):
        if not 0 <= share <= 1:
            yield f"{where} must be from 0 to 1, not {share}."
    if training.target_precision is not None and not 0 < training.target_precision <= 1:
        yield (
            "training.target_precision must be above 0 and at most 1, "
            f"not {training.target_precision}."
        )
    yield from _label_problems(data)
    yield from _augmentation_problems(augmentation)
    if training.layer_decay is not None and not 0 < training.layer_decay <= 1:
        yield f"training.layer_decay must be above 0 and at most 1, not {training.layer_decay}."

    yield from _share_problems(data)
    if data.sample_rate != SAMPLE_RATE:
        yield (
            f"data.sample_rate must be {SAMPLE_RATE}, not {data.sample_rate}: BEATs is trained at "
            "that rate. Files of any rate are resampled to it, there is nothing to set."
        )
    if config.seed >= 2**32:
        yield f"seed must be below 2**32, not {config.seed}."
    if not config.experiment_name.strip() or set(config.experiment_name) & set("/\\"):
        yield (
            "experiment_name must be usable as the name of one folder, "
            f"not {config.experiment_name!r}."
        )
    unknown = [name for name in training.loggers if name not in _LOGGERS]
    if unknown:
        yield f"training.loggers must be among {', '.join(_LOGGERS)}, not {', '.join(unknown)}."
    known = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    strange = [name for name in model.lora_targets if name not in known]
    if strange or not model.lora_targets:
        yield f"model.lora_targets must be among {', '.join(known)}, not {model.lora_targets}."
    if data.batch_size is not None and data.batch_size % training.devices:
        yield (
            f"data.batch_size ({data.batch_size}) must be a multiple of training.devices "
            f"({training.devices}): each process takes its share of a batch."
        )
    if training.monitor_metric is not None and not training.monitor_metric.startswith("val_"):
        yield (
            "training.monitor_metric must be a validation metric such as val_accuracy, val_f1 or "
            f"val_loss, not {training.monitor_metric!r}."
        )
    if model.hidden_dims is not None and any(width < 1 for width in model.hidden_dims):
        yield f"model.hidden_dims must be widths of at least 1, not {model.hidden_dims}."
    for question in ("precision_name", "resolved_mode"):
        try:
            getattr(training if question == "precision_name" else model, question)
        except ConfigError as error:
            yield str(error)
    if model.train_from_scratch or model.mode == "scratch":
        yield from _architecture_problems(model)


def _share_problems(data: DataConfig) -> Iterator[str]:
    train, val, test = data.train_split, data.val_split, data.test_split
    if data.folds is not None:  # each fold is the test part once: only validation has a share
        if not 0 <= val < 1:
            yield f"data.val_split must be a share from 0 up to, not including, 1, not {val}."
        return
    total = train + val + test
    if min(train, val, test) >= 0 and train > 0 and abs(total - 1) <= 1e-6:
        return
    defaults = DataConfig()
    hint = ""
    if (val, test) == (defaults.val_split, defaults.test_split) and 0 < train <= 1:
        rest = f"{(1 - train) / 2:.6g}"
        hint = f" With data.train_split={train:g} set for example data.val_split={rest} and data.test_split={rest}."
    elif min(val, test) >= 0 and val + test < 1:
        hint = (
            f" With data.val_split={val:g} and data.test_split={test:g} set "
            f"data.train_split={1 - val - test:.6g}."
        )
    yield (
        "data.train_split, data.val_split and data.test_split must be shares that sum to 1, the first above 0, "
        f"not {train}, {val} and {test} (sum {total:g}).{hint}"
    )


def _label_problems(data: DataConfig) -> Iterator[str]:
    given = [
        name for name in ("label_delimiter", "label_columns", "annotations") if getattr(data, name)
    ]
    if len(given) > 1:
        yield f"data.{' and data.'.join(given)} each say where labels come from: set one of them."
    if data.label_delimiter == "":
        yield "data.label_delimiter must be at least one character, such as ';'."
    if data.group_column is not None and data.group_pattern is not None:
        yield "data.group_column and data.group_pattern both say what belongs together: set one."
    if data.group_pattern is not None:
        try:
            re.compile(data.group_pattern)
        except re.error as error:
            yield f"data.group_pattern is not a regular expression ({error}): {data.group_pattern!r}."
    folds = data.folds
    if isinstance(folds, str) and folds not in ("official", "groups"):
        yield f"data.folds must be official, groups or a number of at least 2, not {folds!r}."
    if isinstance(folds, int) and folds < 2:
        yield f"data.folds must be at least 2, not {folds}: one part is tested, the others train."
    if data.hop_s is not None and data.hop_s > data.window_s:
        yield (
            f"data.hop_s ({data.hop_s}) must be at most data.window_s ({data.window_s}): what lies "
            "between two windows would be lost."
        )


def _augmentation_problems(augmentation: AugmentationConfig) -> Iterator[str]:
    snr = augmentation.background_snr_db
    if len(snr) != 2 or snr[0] > snr[1]:
        yield (
            "augmentation.background_snr_db must be two numbers, the least and the greatest, "
            f"not {snr}."
        )
    if not 0 <= augmentation.max_freq_mask <= NUM_MEL_BINS:
        yield (
            f"augmentation.max_freq_mask must be from 0 to {NUM_MEL_BINS} mel bins, "
            f"not {augmentation.max_freq_mask}."
        )


def _architecture_problems(model: ModelConfig) -> Iterator[str]:
    for divisor in ("encoder_attention_heads", "conv_pos_groups"):
        parts = getattr(model, divisor)
        if parts > 0 and model.encoder_embed_dim % parts:
            yield (
                f"model.encoder_embed_dim ({model.encoder_embed_dim}) must be a multiple of "
                f"model.{divisor} ({parts})."
            )
    if model.input_patch_size > 0 and NUM_MEL_BINS % model.input_patch_size:
        yield f"model.input_patch_size must divide {NUM_MEL_BINS}, not be {model.input_patch_size}."


def _settings_without_effect(config: Config) -> Iterator[str]:
    model, training = config.model, config.training
    mode = model.resolved_mode
    if mode == "scratch" and model.model_path is not None:
        yield (
            f"model.model_path ({model.model_path}) has no effect: training from scratch starts "
            "from random weights. Set model.mode='full' to start from the checkpoint."
        )
    if mode != "scratch":
        defaults = ModelConfig()
        names = (*_ARCHITECTURE_FIELDS, "fbank_mean", "fbank_std")
        changed = [name for name in names if getattr(model, name) != getattr(defaults, name)]
        if changed:
            yield (
                f"{', '.join(f'model.{name}' for name in changed)} have no effect: the checkpoint "
                "decides the architecture. Set model.mode='scratch' to choose it yourself."
            )
    if model.hidden_dims and not model.use_custom_head:
        yield (
            "model.hidden_dims has no effect: the head is one linear layer. Set "
            "model.use_custom_head=True to give it hidden layers."
        )
    if model.use_custom_head and not model.hidden_dims:
        yield (
            "model.use_custom_head has no effect: there are no hidden layers. Set "
            "model.hidden_dims, for example to [256]."
        )
    if training.layer_decay not in (None, 1) and mode not in ("full", "scratch"):
        yield (
            "training.layer_decay has no effect: the backbone is frozen. Set model.mode='full' to "
            "train it."
        )
    for name, value, neutral in (
        ("training.accumulate_grad_batches", training.accumulate_grad_batches, 1),
        ("training.devices", training.devices, 1),
        ("data.max_duration_s", config.data.max_duration_s, None),
        ("augmentation", config.augmentation.is_on, False),
    ):
        if value != neutral and mode == "head":
            yield (
                f"{name} has no effect: a head on a frozen backbone is fitted on embeddings of whole "
                "clips, which are made once."
            )
    if training.gradient_checkpointing and mode in ("head", "attentive"):
        yield (
            "training.gradient_checkpointing has no effect: the backbone is frozen, and nothing of it is kept."
        )
    yield from _augmentation_without_effect(config.augmentation)
    yield from _details_without_effect(config)
    if config.data.unlisted_labels != "absent" and not is_multi_label(config.data):
        yield "data.unlisted_labels has no effect: each clip has exactly one class."
    if training.gpus is not None:
        yield "training.gpus has no effect: set training.device, for example to 'cuda' or 'cpu'."


def _details_without_effect(config: Config) -> Iterator[str]:
    """Details of what is not done."""
    defaults, training = Config(), config.training
    lora = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
    windows = ("window_s", "hop_s", "min_overlap_s", "max_empty_ratio")
    for section, names, is_done, why in (
        (
            "data",
            ("train_split", "test_split"),
            config.data.folds is None,
            "with data.folds each clip is tested once, and only data.val_split is a share",
        ),
        (
            "data",
            windows,
            config.data.annotations is not None,
            "no annotated recordings are cut into windows",
        ),
        (
            "model",
            lora,
            config.model.resolved_mode == "lora",
            "there are no adapters without model.mode='lora'",
        ),
        (
            "model",
            ("pooling",),
            config.model.resolved_mode != "attentive",
            "mode attentive learns it",
        ),
        (
            "model",
            ("fit_head_first",),
            config.model.resolved_mode in ("full", "lora"),
            "it is for model.mode='full' and 'lora'",
        ),
        (
            "training",
            ("focal_gamma",),
            training.loss_function == "focal",
            "it is of training.loss_function='focal'",
        ),
        (
            "training",
            ("target_precision",),
            training.calibrate,
            "without training.calibrate no threshold is fitted",
        ),
    ):
        for name in names:
            default, value = (getattr(getattr(c, section), name) for c in (defaults, config))
            if value != default and not is_done:
                yield f"{section}.{name} has no effect: {why}."


def _augmentation_without_effect(augmentation: AugmentationConfig) -> Iterator[str]:
    """Details of a change that is off."""
    defaults = AugmentationConfig()
    for names, switch in (
        (("mixup_probability",), "mixup_alpha"),
        (("background_snr_db", "background_probability"), "background_dir"),
        (("max_time_mask",), "num_time_masks"),
        (("max_freq_mask",), "num_freq_masks"),
    ):
        for name in names:
            is_changed = getattr(augmentation, name) != getattr(defaults, name)
            if is_changed and not getattr(augmentation, switch):
                yield f"augmentation.{name} has no effect without augmentation.{switch}."


def is_multi_label(data: DataConfig) -> bool:
    """Whether the settings say that a clip may have any number of classes.

    Example:
        >>> is_multi_label(DataConfig(label_delimiter=";"))
        True
    """
    return data.multi_label or any((data.label_delimiter, data.label_columns, data.annotations))
