"""From settings to a network: the encoder from a checkpoint or from scratch, and a fresh head on it.

config -> [encoder] -> [encoder + head] -> fit
"""

from collections.abc import Sequence

import torch

from beats_trainer.checkpoints import BEATsForAudioClassification, BEATsModel
from beats_trainer.checkpoints.registry import DEFAULT_MODEL
from beats_trainer.checkpoints.sources import locate
from beats_trainer.config import Config
from beats_trainer.errors import ConfigError
from beats_trainer.model import Activation, AttentivePooling, BEATs, ClassifierHead
from beats_trainer.model.architecture import Architecture

__all__ = ["base_name", "build_classifier", "build_encoder", "require_base"]


def base_name(config: Config) -> str | None:
    """Name or path of the checkpoint that training starts from; ``None`` from scratch.

    Example:
        >>> base_name(Config())
        'BEATs_iter3_plus_AS2M'
    """
    if config.model.train_from_scratch:
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
    encoder: BEATs, config: Config, labels: Sequence[str], activation: Activation = "softmax"
) -> BEATsForAudioClassification:
    """Put a fresh head on an encoder, and a fresh pooling before it if that is learned.

    Args:
        encoder: Is used as it is, not copied.
        config: The head's shape and dropout, the pooling, and the seed of its weights.
        labels: Class names in the order of their ids.
        activation: ``"softmax"`` where each clip has exactly one class, ``"sigmoid"`` where any number.
    """
    settings = config.model
    pooling: str = settings.pooling
    hidden_dims = settings.hidden_dims if settings.use_custom_head else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = ClassifierHead(
            encoder.architecture.encoder_embed_dim,
            len(labels),
            hidden_dims=hidden_dims or (),
            activation=settings.activation,
            dropout=settings.dropout_rate,
        )
    return BEATsForAudioClassification(
        encoder,
        head,
        labels,
        activation,
        pooling=settings.pooling,
        attentive_pooling=AttentivePooling.for_architecture(encoder.architecture)
        if pooling == "attentive"
        else None,
        window_s=config.data.max_duration_s,
    )
