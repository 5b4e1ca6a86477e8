"""Fit a small module on cached features, epoch by epoch, and leave it with its best epoch's weights.

rows of a split -> module -> logits -> [loss -> step, many times; metrics -> best epoch, early stop] -> weights

The one loop under `cached_head` and `attentive`. What is minimised and what is measured comes from outside
(`FitTask`), so that it serves one class per clip and any number of them alike. No Lightning here.

Shapes in this file: N clips, B clips of a batch, C classes.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from beats_trainer.config import TrainingConfig, settled
from beats_trainer.datasets import Task
from beats_trainer.errors import BEATsTrainerError, ConfigError
from beats_trainer.model import BEATsClassifier
from beats_trainer.model.classifier import apply_activation
from beats_trainer.reports import classification_metrics, measure
from beats_trainer.training.losses import ClassificationLoss, soft_targets
from beats_trainer.training.optim import make_optimizer, make_scheduler, parameter_groups
from beats_trainer.training.sampling import epoch_order

__all__ = ["FitTask", "Fitted", "Loss", "Measure", "fit_epochs", "task_for"]

log = logging.getLogger(__name__)

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(B, C)`` and targets ``(B, C)`` to one number: the mean over the clips."""
Measure: TypeAlias = Callable[[NDArray[np.float64]], Mapping[str, float]]
"""Logits of a split, ``(N, C)`` before the activation, to its metrics, under names such as ``val_loss``."""


@dataclass(frozen=True)
class FitTask:
    """What is minimised, and what is measured after each epoch.

    Attributes:
        loss: Its targets are float32, one-hot where a clip has one class, NaN where nothing is known: those
            must not count.
        measure: Gets the logits of the validation clips, in their order. One of its numbers is the
            monitored metric; ``val_loss``, if there, decides among equals. ``None`` without validation.
    """

    loss: Loss = field(default=F.cross_entropy)
    measure: Measure | None = None

    @classmethod
    def of_classifier(
        cls,
        classifier: BEATsClassifier,
        training: TrainingConfig,
        train_targets: NDArray[Any],
        val_targets: NDArray[Any] | None,
    ) -> "FitTask":
        """The loss that the settings ask for, and the metrics of the classifier's task.

        Args:
            classifier: Its labels and its activation say what logits mean.
            training: As for `ClassificationLoss.from_config`; resolved.
            train_targets: Class ids ``(N,)``, or ``(N, C)`` with NaN for unknown.
            val_targets: The same of the validation clips; ``None`` without any.
        """
        labels = classifier.labels
        task: Task = "multi" if train_targets.ndim == 2 else "single"
        loss = ClassificationLoss.from_config(
            training, classifier.activation, soft_targets(train_targets, len(labels))
        )
        if val_targets is None:
            return cls(loss)

        def measure_logits(logits: NDArray[np.float64]) -> Mapping[str, float]:
            scores = apply_activation(torch.from_numpy(logits), classifier.activation).numpy()
            return measure(task, val_targets, scores, labels).summary("val")

        return cls(loss, measure_logits)


@dataclass(frozen=True)
class Fitted:
    """How the weights that a module now has came to be.

    Attributes:
        history: One row per epoch: ``epoch``, ``train_loss``, ``lr``, and the measured metrics if there is
            a validation split.
        best_epoch: The row, counted from 0, whose weights were kept.
        best_score: Its monitored metric; ``None`` without a validation split.
    """

    history: list[dict[str, float]]
    best_epoch: int
    best_score: float | None


def task_for(
    task: FitTask | None, targets: Sequence[NDArray[Any]], labels: Sequence[str]
) -> FitTask:
    """Return the task that was given, or that of one class per clip: cross entropy and its metrics.

    Args:
        task: ``None`` for one class per clip.
        targets: Class ids ``(N,)`` of the training clips and, if there are any, of the validation clips.
        labels: Class names in the order of the ids.

    Raises:
        ValueError: If no task was given and the targets are not class ids, or if there are validation clips
            that the task does not measure.
    """
    if task is not None:
        if task.measure is None and len(targets) > 1:
            raise ValueError(
                "There are validation clips, but FitTask.measure is None: give it one."
            )
        return task
    if any(values.ndim != 1 for values in targets):
        raise ValueError(
            f"Targets of shape {targets[0].shape} need a FitTask that says what is minimised and measured."
        )
    known = targets[-1]

    def measure(logits: NDArray[np.float64]) -> Mapping[str, float]:
        probabilities = torch.from_numpy(logits).softmax(dim=-1).numpy()
        return classification_metrics(known, probabilities, labels).summary("val")

    return FitTask(measure=measure)


def fit_epochs(
    network: nn.Module,
    train_logits: Callable[[Tensor], Tensor],
    train_targets: Tensor,
    val_logits: Callable[[], Tensor] | None,
    task: FitTask,
    training: TrainingConfig,
    *,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: bool | None = None,
) -> Fitted:
    """Fit a module in place.

    The best epoch is the one with the best ``training.monitor_metric``, among equals the one with the least
    validation loss; a metric that is NaN is worse than any number. Training stops after
    ``training.patience`` epochs without a better one. Without a validation split all epochs run and the
    last is kept.

    Args:
        network: What is trained; has the best epoch's weights afterwards, and is in eval mode.
        train_logits: Row numbers ``(B,)`` to logits ``(B, C)``, through the network.
        train_targets: Shape ``(N, C)``, float32, on the network's device.
        val_logits: Gives the logits of all validation clips; ``None`` without a validation split.
        task: Loss and metrics.
        training: Optimiser, schedule, sampling, epochs, patience, monitored metric, gradient clipping;
            resolved.
        learning_rate: Peak rate.
        batch_size: Clips per step.
        seed: Of the order of the clips and of dropout; torch's global generator is not touched.
        progress: Show a bar over epochs; ``None`` shows one on a terminal.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
        ConfigError: If the monitored metric is none of those that are measured.
    """
    device = train_targets.device
    num_clips = len(train_targets)
    max_epochs = settled(training.max_epochs)
    steps_per_epoch = math.ceil(num_clips / batch_size)
    groups = parameter_groups(network, learning_rate, settled(training.weight_decay), 1.0, 0)
    optimizer = make_optimizer(groups, training, learning_rate)
    schedule = make_scheduler(optimizer, training, steps_per_epoch * max_epochs, steps_per_epoch)
    shuffler = torch.Generator().manual_seed(seed)
    known_targets = train_targets.cpu().numpy()
    history: list[dict[str, float]] = []
    best = _Best(training, validates=val_logits is not None)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(total=max_epochs, desc="Fitting", unit="epoch", disable=_off(progress)) as bar,
    ):
        torch.manual_seed(seed)
        for epoch in range(max_epochs):
            rate = optimizer.param_groups[-1]["lr"]
            network.train()
            total = torch.zeros((), device=device)
            if training.sampling == "all":
                order = torch.randperm(num_clips, generator=shuffler).to(device)
            else:
                rows_of_epoch = epoch_order(known_targets, training.sampling, seed + epoch)
                order = torch.from_numpy(rows_of_epoch).to(device)
            for start in range(0, num_clips, batch_size):
                rows = order[start : start + batch_size]
                loss = task.loss(train_logits(rows), train_targets[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if training.gradient_clip is not None:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), training.gradient_clip)
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(rows)
            row = {"epoch": epoch, "train_loss": float(total) / num_clips, "lr": rate}
            if not math.isfinite(row["train_loss"]):
                raise BEATsTrainerError(
                    f"The training loss is {row['train_loss']} in epoch {epoch}. Lower "
                    f"training.learning_rate ({learning_rate:g})."
                )
            if val_logits is not None:
                network.eval()
                with torch.inference_mode():
                    logits = val_logits()
                # In double, so that the loss of a confident mistake is not cut at float32's precision.
                assert task.measure is not None
                row |= task.measure(logits.cpu().double().numpy())
            history.append(row)
            bar.update()
            if best.offer(row, network) and val_logits is not None:
                bar.set_postfix_str(f"best {training.monitor_metric} {best.score:.3f}")
            if best.is_exhausted:
                log.debug("No better %s for %d epochs.", training.monitor_metric, training.patience)
                break
    assert best.weights is not None
    network.load_state_dict(best.weights)
    network.eval()
    return Fitted(history, best.epoch, best.score)


class _Best:
    """The best epoch so far, and whether it is time to stop."""

    def __init__(self, training: TrainingConfig, validates: bool) -> None:
        self.monitor = settled(training.monitor_metric)
        self.sign = 1.0 if training.monitor_mode == "max" else -1.0
        self.patience = settled(training.patience)
        self.validates = validates
        self.rank = (-math.inf, -math.inf)
        self.epoch = 0
        self.score: float | None = None
        self.weights: dict[str, Tensor] | None = None
        self.num_since = 0

    def offer(self, row: dict[str, float], network: nn.Module) -> bool:
        """Take an epoch's weights if they are the best; without validation the latest are."""
        if self.validates and self.monitor not in row:
            measured = ", ".join(name for name in row if name not in ("epoch", "train_loss", "lr"))
            raise ConfigError(
                f"training.monitor_metric {self.monitor!r} is not measured here. Measured are: {measured}."
            )
        score = row[self.monitor] if self.validates else None
        rank = (
            (math.inf, 0.0)
            if score is None
            else (_worst_if_nan(self.sign * score), _worst_if_nan(-row.get("val_loss", 0.0)))
        )
        is_better = score is None or rank > self.rank or self.weights is None
        if is_better:
            self.rank = rank
            self.epoch = int(row["epoch"])
            self.score = score
            self.weights = copy.deepcopy(network.state_dict())
            self.num_since = 0
        else:
            self.num_since += 1
        return is_better

    @property
    def is_exhausted(self) -> bool:
        return self.num_since >= self.patience


def _worst_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _off(progress: bool | None) -> bool | None:
    return None if progress is None else not progress  # None: tqdm shows it on a terminal only
