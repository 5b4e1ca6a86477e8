"""The input of every report, checked once: what is true and what the network says.

targets, scores -> [check] -> OneVsRest -> metrics, intervals, calibration, thresholds

Both tasks meet here: each class is a question of its own, asked of the clips whose answer is known. Where a
clip has exactly one class, every answer is known.

Shapes in this file: N clips, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.config import Task

__all__ = [
    "DEFAULT_THRESHOLD",
    "OneVsRest",
    "Task",
    "check_logits",
    "check_probabilities",
    "plain",
    "thresholds_of",
]


DEFAULT_THRESHOLD = 0.5
"""Probability from which on a class counts as present, where nothing else was chosen."""

_ROUNDING = (
    1e-6  # float32's softmax and sigmoid may overshoot one by an ulp; a logit overshoots by far
)


@dataclass(frozen=True)
class OneVsRest:
    """Scores of a split beside the truth, one column per class.

    Attributes:
        present: The class is in the clip, shape ``(N, C)``, bool; ``False`` where unknown.
        known: It is known whether it is, shape ``(N, C)``, bool.
        scores: Probabilities or logits, shape ``(N, C)``, float64.
        truth: Class ids, shape ``(N,)``, int64; ``None`` for clips with any number of classes.
        resolution: Smallest step of the scores' own number format near one.
    """

    present: NDArray[np.bool_]
    known: NDArray[np.bool_]
    scores: NDArray[np.float64]
    truth: NDArray[np.int64] | None
    resolution: float

    @property
    def absent(self) -> NDArray[np.bool_]:
        """The class is known not to be in the clip, shape ``(N, C)``."""
        return self.known & ~self.present

    def log_losses(self) -> NDArray[np.float64]:
        """Surprise of the probabilities at the truth in nats; 0 where nothing is known.

        Returns:
            Cross entropy of each clip, shape ``(N,)``, for clips of one class; else the binary cross
            entropy of each entry, shape ``(N, C)``.
        """
        if self.truth is not None:
            of_truth = self.scores[np.arange(len(self.truth)), self.truth]
        else:
            of_truth = np.where(self.present, self.scores, 1.0 - self.scores)
            of_truth[~self.known] = 1.0
        # One confident mistake must not make the whole split infinite; scikit-learn clips at the same place.
        losses: NDArray[np.float64] = -np.log(of_truth.clip(self.resolution, 1.0))
        return losses


def check_probabilities(
    task: Task, targets: ArrayLike, probabilities: ArrayLike, num_classes: int | None = None
) -> OneVsRest:
    """Check probabilities and their truth.

    Args:
        task: Whether a clip has one class or any number of them.
        targets: Shape ``(N,)``, class ids, for ``"single"``; shape ``(N, C)`` for ``"multi"``: 1 present,
            0 absent, NaN unknown.
        probabilities: Shape ``(N, C)``, each in 0..1.
        num_classes: C; ``None`` takes the columns of ``probabilities``.

    Raises:
        ValueError: If the task is unknown, there is no clip, shapes do not fit, a target is none, nothing
            is known, or a probability is not in 0..1.
    """
    data = _check(task, targets, probabilities, num_classes, "probabilities")
    low, high = data.scores.min(), data.scores.max()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"Probabilities must lie in 0..1; these lie in {low:.3g}..{high:.3g}. Logits must go through "
            f"{'softmax' if task == 'single' else 'sigmoid'} first."
        )
    np.clip(data.scores, 0.0, 1.0, out=data.scores)
    return data


def check_logits(task: Task, targets: ArrayLike, logits: ArrayLike) -> OneVsRest:
    """Check logits and their truth; arguments and errors as for ``check_probabilities``."""
    return _check(task, targets, logits, None, "logits")


def thresholds_of(
    labels: Sequence[str], thresholds: Mapping[str, float] | None
) -> NDArray[np.float64]:
    """Put thresholds in the order of the classes.

    Args:
        labels: Class names, C of them.
        thresholds: Probability from which on a class counts as present, by class name; a class that is
            not named has 0.5.

    Returns:
        Shape ``(C,)``.

    Raises:
        ValueError: If a name is no class, or a threshold is not a finite number.
    """
    given = dict(thresholds or {})
    strange = sorted(set(given) - set(labels))
    if strange:
        raise ValueError(
            f"Thresholds name {', '.join(map(repr, strange))}, which the classes do not contain: "
            f"{', '.join(labels)}. Name classes as the model does."
        )
    values = np.array([given.get(label, DEFAULT_THRESHOLD) for label in labels], np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"Thresholds must be finite numbers, not {given}.")
    return values


def plain(value: float) -> float | None:
    """A number for JSON, which has no NaN: ``None`` where it is undefined."""
    return None if np.isnan(value) else float(value)


def _check(
    task: Task, targets: ArrayLike, scores: ArrayLike, num_classes: int | None, what: str
) -> OneVsRest:
    if task not in ("single", "multi"):
        raise ValueError(f"A task is 'single' or 'multi', not {task!r}.")
    truth, values = np.asarray(targets), np.asarray(scores)
    num_clips = truth.shape[0] if truth.ndim else 0
    columns = values.shape[-1] if num_classes is None and values.ndim else num_classes or 0
    expected = (num_clips,) if task == "single" else (num_clips, columns)
    if truth.shape != expected or values.shape != (num_clips, columns) or values.size == 0:
        rows = "(clips,)" if task == "single" else f"(clips, {columns})"
        raise ValueError(
            f"Expected targets of shape {rows}, at least one, and {what} of shape (clips, {columns}); "
            f"got {truth.shape} and {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{what.capitalize()} must be finite; the network gave NaN or infinity.")
    resolution = np.finfo(values.dtype if values.dtype.kind == "f" else float).eps
    present, known = _one_class(truth, columns) if task == "single" else _any_classes(truth)
    return OneVsRest(
        present,
        known,
        values.astype(np.float64),
        truth.astype(np.int64) if task == "single" else None,
        float(resolution),
    )


def _one_class(
    truth: NDArray[Any], num_classes: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= num_classes:
        raise ValueError(
            f"Targets must be whole numbers in 0..{num_classes - 1}; these are {truth.dtype} in "
            f"{truth.min()}..{truth.max()}."
        )
    present = truth[:, None] == np.arange(num_classes)
    return present, np.ones_like(present)


def _any_classes(truth: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    values = truth.astype(np.float64)
    known = ~np.isnan(values)
    present = values == 1
    if not (present | (values == 0) | ~known).all():
        strange = values[~(present | (values == 0)) & known][0]
        raise ValueError(
            f"Targets must be 1 (present), 0 (absent) or NaN (unknown); one is {strange:g}. Measure on "
            "the clips themselves, not on mixtures of them."
        )
    if not known.any():
        raise ValueError("All targets are NaN (unknown), so that there is nothing to measure.")
    return present, known
