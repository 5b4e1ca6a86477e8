"""From settings to a network: the encoder from a checkpoint or from scratch, and a fresh head on it.

config -> [encoder] -> [encoder + head] -> fit
"""

from collections.abc import Sequence

import torch

from beats_trainer.checkpoints import BEATsForAudioClassification, BEATsModel
from beats_trainer.checkpoints.registry import DEFAULT_MODEL
from beats_trainer.checkpoints.sources import locate
from beats_trainer.config import Config
from beats_trainer.datasets import Task
from beats_trainer.errors import ConfigError
from beats_trainer.model import AttentivePooling, BEATs, ClassifierHead, pooled_width
from beats_trainer.model.architecture import Architecture
from beats_trainer.training.losses import activation_of

__all__ = ["base_name", "build_classifier", "build_encoder", "require_base"]


def base_name(config: Config) -> str | None:
    """Name or path of the checkpoint that training starts from; ``None`` from scratch.

    Example:
        >>> base_name(Config())
        'BEATs_iter3_plus_AS2M'
    """
    if config.model.resolved_mode == "scratch":
        return None
    return DEFAULT_MODEL if config.model.model_path is None else str(config.model.model_path)


def require_base(config: Config) -> None:
    """Make sure that the checkpoint to start from is on this machine; download it if need be.

    Raises:
        CheckpointError: If it is unknown, or neither here nor downloadable now.
    """
    name = base_name(config)
    if name is not None:
        locate(name)


def build_encoder(config: Config) -> BEATsModel:
    """Load the encoder that the config names, or make one with random weights.

    A classifier's folder or file gives its encoder; its head is left aside. The checkpoint's own dropout
    and layer drop apply while the encoder is trained.

    Raises:
        ConfigError: If the sizes for training from scratch contradict each other.
        CheckpointError: If the checkpoint is unknown, not there and cannot be downloaded, or damaged.
    """
    name = base_name(config)
    if name is not None:
        return BEATsModel.from_pretrained(name)
    try:
        architecture = Architecture(**config.model.architecture_settings())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return BEATsModel(architecture)


def build_classifier(
    encoder: BEATs, config: Config, labels: Sequence[str], task: Task = "single"
) -> BEATsForAudioClassification:
    """Put a fresh head on an encoder.

    Args:
        encoder: Is used as it is, not copied. Unless every weight is to be trained, it is frozen.
        config: The head's shape and dropout, the pooling, and the seed of its weights; resolved.
        labels: Class names in the order of their ids.
        task: ``"single"`` where a clip has exactly one class, ``"multi"`` where it has any number.
    """
    settings = config.model
    hidden_dims = settings.hidden_dims if settings.use_custom_head else None
    architecture = encoder.architecture
    mode = settings.resolved_mode
    pooling = "attentive" if mode == "attentive" else settings.pooling
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = ClassifierHead(
            pooled_width(architecture, pooling),
            len(labels),
            hidden_dims=hidden_dims or (),
            activation=settings.activation,
            dropout=settings.dropout_rate,
        )
    learned = (
        AttentivePooling.for_architecture(architecture, settings.attention_pooling_heads)
        if mode == "attentive"
        else None
    )
    classifier = BEATsForAudioClassification(
        encoder,
        head,
        labels,
        activation=activation_of(config.training.loss_function, task),
        pooling=pooling,
        attentive_pooling=learned,
        task=task,
    )
    # Adapters come later, and freeze what is below them by themselves.
    return classifier.freeze_backbone() if mode in ("head", "attentive") else classifier
