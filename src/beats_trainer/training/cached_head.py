"""Fit a classifier head on cached embeddings: the training of a frozen backbone.

clips -> encoder, once -> embeddings -> [standardise -> head, many epochs] -> head for raw embeddings

A frozen encoder gives the same embeddings in every epoch, so that fifty epochs cost one pass over the sound.
The whole table stays in memory as one tensor (100,000 clips of 768 values are 307 MB); no Lightning here.

Shapes in this file: N clips, B clips of a batch, D width of an embedding, C classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beats_trainer.config import Config, TrainingConfig, settled
from beats_trainer.model import BEATsClassifier, ClassifierHead
from beats_trainer.training.embedded import EmbeddedSplit
from beats_trainer.training.epochs import FitTask, Fitted, fit_epochs, task_for
from beats_trainer.training.losses import soft_targets

__all__ = ["FittedHead", "embedding_logits", "embedding_moments", "fit_cached_head"]


@dataclass(frozen=True)
class FittedHead(Fitted):
    """A head and how it came to be.

    Attributes:
        history: As for `Fitted`, as ``best_epoch`` and ``best_score``.
        head: The head of the best epoch; reads raw embeddings.
    """

    head: ClassifierHead


def fit_cached_head(
    head: ClassifierHead,
    train: EmbeddedSplit,
    val: EmbeddedSplit | None,
    labels: Sequence[str],
    training: TrainingConfig,
    *,
    learning_rate: float,
    batch_size: int,
    seed: int,
    task: FitTask | None = None,
    device: torch.device | None = None,
    progress: bool | None = None,
) -> FittedHead:
    """Fit a head, keep its best epoch, and make it read raw embeddings.

    Embeddings are standardised with the mean and deviation of the training clips (a constant dimension
    counts as deviation 1), which is then absorbed into the first layer. See `fit_epochs` for which epoch
    is the best.

    Args:
        head: Fresh weights; left as it is.
        train: Clips to learn from.
        val: Clips to choose the best epoch on, or ``None``.
        labels: Class names in the order of the ids.
        training: Optimiser, schedule, epochs, patience, monitored metric, gradient clipping.
        learning_rate: Peak rate.
        batch_size: Clips per step.
        seed: Of the order of the clips and of dropout; torch's global generator is not touched.
        task: Loss and metrics; ``None`` for one class per clip, with cross entropy.
        device: Where to compute; ``None`` for the CPU.
        progress: Show a bar over epochs; ``None`` shows one on a terminal.

    Returns:
        The fitted head, on the CPU and in eval mode, and its history.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
        ConfigError: If the monitored metric is none of those that are measured.
        ValueError: If the targets are not class ids, and no task says what to do with them.
    """
    device = device or torch.device("cpu")
    head = copy.deepcopy(head).to(device)
    embeddings = torch.from_numpy(train.embeddings).to(device)
    mean, std = embedding_moments(embeddings)
    embeddings = (embeddings - mean) / std
    val_embeddings = None
    if val is not None:
        val_embeddings = (torch.from_numpy(val.embeddings).to(device) - mean) / std
    fitted = fit_epochs(
        head,
        lambda rows: head(embeddings[rows]),
        torch.from_numpy(soft_targets(train.targets, len(labels))).to(device),
        None if val_embeddings is None else lambda: head(val_embeddings),
        task_for(task, [split.targets for split in (train, val) if split is not None], labels),
        training,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    head.absorb_standardisation(mean, std)
    return FittedHead(fitted.history, fitted.best_epoch, fitted.best_score, head.cpu().eval())


def fit_head_of(
    classifier: BEATsClassifier,
    train: EmbeddedSplit,
    val: EmbeddedSplit | None,
    config: Config,
    *,
    progress: bool | None = None,
) -> FittedHead:
    """Fit the head of a classifier as the settings say: what mode ``head`` of training does.

    Args:
        classifier: With a fresh head, which is left as it is.
        train: Clips to learn from.
        val: Clips to choose the best epoch on, or ``None``.
        config: Loss, optimiser, rate, batch size, epochs, seed; resolved.
        progress: Show a bar over epochs; ``None`` shows one on a terminal.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
    """
    return fit_cached_head(
        classifier.head,
        train,
        val,
        classifier.labels,
        config.training,
        learning_rate=config.resolved_learning_rate(),
        batch_size=settled(config.data.batch_size),
        seed=config.seed,
        task=FitTask.of_classifier(
            classifier, config.training, train.targets, None if val is None else val.targets
        ),
        progress=progress,
    )


def embedding_logits(head: ClassifierHead, split: EmbeddedSplit) -> NDArray[np.float64]:
    """Score the clips of a split with a head that reads raw embeddings.

    Returns:
        Logits, shape ``(N, C)``, before the activation.
    """
    device = head.first_linear.weight.device
    with torch.inference_mode():
        logits = head(torch.from_numpy(split.embeddings).to(device))
    values: NDArray[np.float64] = logits.cpu().double().numpy()
    return values


def embedding_moments(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each dimension, shape ``(D,)``; deviation 1 where a dimension is constant.

    Args:
        embeddings: Shape ``(N, D)``.
    """
    values = embeddings.cpu().double()
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    # What varies by less than float32 can tell is rounding: dividing by it would make a signal of it.
    is_constant = std <= torch.finfo(torch.float32).eps * mean.abs()
    std = std.masked_fill(is_constant, 1.0)
    return mean.to(embeddings), std.to(embeddings)
