"""Whether a score can be read as a probability, and the temperature that makes it one.

probabilities -> [reliability] -> curve, expected calibration error
logits -> [fit_temperature] -> temperature; calibrated is softmax or sigmoid of logits / temperature

Method: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599):
section 2 for the error, section 4.2 for the temperature. One number for all classes leaves the most likely class
as it is, and with sigmoid also the order of the clips. With softmax the order of the clips in one class may
change a little, and thresholds must be fitted after the temperature in either case.

Shapes in this file: N clips, C classes, M bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.reports.scores import (
    OneVsRest,
    Task,
    check_logits,
    check_probabilities,
    plain,
)

__all__ = [
    "NUM_BINS",
    "TEMPERATURE_BOUNDS",
    "ReliabilityCurve",
    "Temperature",
    "fit_temperature",
    "reliability",
    "reliability_of",
]

NUM_BINS = 15
"""Bins of the expected calibration error, as in the paper's tables."""

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Where a temperature is looked for; beyond, scores are as good as certain or as good as equal."""

_NUM_STEPS, _PRECISION = 100, 1e-10  # relative, of the temperature; Newton takes about eight steps


@dataclass(frozen=True)
class ReliabilityCurve:
    """What the network claims against what is true, in bins of equal width.

    Where a clip has one class, its confidence is the score of the most likely class, and it is accurate if
    that class is the true one. Where it has any number, every known entry counts: its confidence is the
    score of the class, and it is accurate if the class is present.

    Attributes:
        edges: Borders of the bins, shape ``(M + 1,)``, from 0 to 1; a bin holds its upper border.
        confidence: Mean confidence of each bin, shape ``(M,)``; NaN for an empty bin.
        accuracy: Share that is accurate, shape ``(M,)``; NaN for an empty bin.
        counts: Clips, or known entries, of each bin, shape ``(M,)``, int64.
        ece: Expected calibration error: mean over clips, or entries, of the distance between accuracy
            and confidence of their bin; 0 is perfect, 1 the worst.
    """

    edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    counts: NDArray[np.int64]
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON; ``None`` for an empty bin."""
        return {
            "edges": self.edges.tolist(),
            "confidence": [plain(value) for value in self.confidence],
            "accuracy": [plain(value) for value in self.accuracy],
            "counts": self.counts.tolist(),
            "ece": self.ece,
        }


def reliability(
    probabilities: ArrayLike, targets: ArrayLike, task: Task, num_bins: int = NUM_BINS
) -> ReliabilityCurve:
    """Compare how sure the network is with how often it is right.

    Args:
        probabilities: Shape ``(N, C)``.
        targets: Shape ``(N,)``, class ids, for ``"single"``; shape ``(N, C)`` for ``"multi"``: 1 present,
            0 absent, NaN unknown.
        task: Whether a clip has one class or any number of them.
        num_bins: How finely confidence is divided; more bins need more clips.

    Raises:
        ValueError: If the arrays do not fit, or there is no bin.

    Example:
        >>> curve = reliability([[0.9, 0.1], [0.8, 0.2]], [0, 1], "single", num_bins=2)
        >>> curve.counts.tolist(), round(curve.ece, 3)
        ([0, 2], 0.35)
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}.")
    return reliability_of(check_probabilities(task, targets, probabilities), num_bins)


def reliability_of(data: OneVsRest, num_bins: int = NUM_BINS) -> ReliabilityCurve:
    """Compute ``reliability`` of probabilities that are checked already."""
    if data.truth is not None:
        confidence = data.scores.max(axis=1)
        is_accurate = data.scores.argmax(axis=1) == data.truth
    else:
        confidence, is_accurate = data.scores[data.known], data.present[data.known]
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    of_bin = (np.searchsorted(edges, confidence, side="left") - 1).clip(0, num_bins - 1)
    counts = np.bincount(of_bin, minlength=num_bins).astype(np.int64)
    claimed = np.bincount(of_bin, confidence, minlength=num_bins)
    right = np.bincount(of_bin, is_accurate, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0: an empty bin is NaN
        return ReliabilityCurve(
            edges,
            claimed / counts,
            right / counts,
            counts,
            float(np.abs(claimed - right).sum() / counts.sum()),
        )


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by so that probabilities are calibrated, and what that gains.

    The losses and errors are those of the clips that it was fitted on.

    Attributes:
        value: The temperature; above 1 the network was too sure, below 1 not sure enough.
        loss_before: Mean cross entropy in nats at temperature 1; over known entries where a clip has any
            number of classes.
        loss_after: The same at the temperature.
        ece_before: Expected calibration error at temperature 1.
        ece_after: The same at the temperature.
        num_clips: Clips that it was fitted on.
        is_at_bound: No temperature within ``TEMPERATURE_BOUNDS`` is best: the clips are separated
            perfectly, or scores tell nothing. The value is then a limit, not a fit: do not apply it.
    """

    value: float
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float
    num_clips: int
    is_at_bound: bool


def fit_temperature(logits: ArrayLike, targets: ArrayLike, task: Task) -> Temperature:
    """Find the temperature with the smallest loss; in float64, on clips that were not trained on.

    Args:
        logits: Shape ``(N, C)``, before softmax (``"single"``) or sigmoid (``"multi"``).
        targets: Shape ``(N,)``, class ids, for ``"single"``; shape ``(N, C)`` for ``"multi"``: 1 present,
            0 absent, NaN unknown.
        task: Whether a clip has one class or any number of them.

    Returns:
        The temperature; 1 if all logits are equal, where any is as good.

    Raises:
        ValueError: If the arrays do not fit.

    Example:
        >>> logits = [[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]]  # 98 % sure, 75 % right
        >>> round(fit_temperature(logits, [0, 0, 1, 1], "single").value, 3)
        3.641
    """
    data = check_logits(task, targets, logits)
    slopes = _Slopes(data)
    low, high = 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]
    inverse, is_at_bound = 1.0, False
    # The loss is convex in 1 / temperature: its slope rises, and is zero at one place at most.
    if slopes.are_flat:
        pass
    elif slopes(high)[0] <= 0:
        inverse, is_at_bound = high, True
    elif slopes(low)[0] >= 0:
        inverse, is_at_bound = low, True
    else:
        for _ in range(_NUM_STEPS):
            slope, curvature = slopes(inverse)
            low, high = (inverse, high) if slope < 0 else (low, inverse)
            # Newton's step where it stays between what is known to be too low and too high; else halve.
            step = inverse - slope / curvature if curvature > 0 else high
            following = step if low < step < high else 0.5 * (low + high)
            converged = abs(following - inverse) <= _PRECISION * inverse
            inverse = following
            if converged:
                break
    return Temperature(
        value=1.0 / inverse,
        loss_before=slopes.loss(1.0),
        loss_after=slopes.loss(inverse),
        ece_before=reliability_of(_at(data, 1.0)).ece,
        ece_after=reliability_of(_at(data, inverse)).ece,
        num_clips=int(data.known.any(axis=1).sum()),
        is_at_bound=is_at_bound,
    )


class _Slopes:
    """The loss, its slope and its curvature, as functions of 1 / temperature.

    Everything depends on margins alone, how far a logit is above the true one: ``log sum exp(b margin)``
    over the classes, or ``log(1 + exp(b margin))`` for a class that is present or absent.
    """

    def __init__(self, data: OneVsRest) -> None:
        if data.truth is not None:
            self.margins = data.scores - np.take_along_axis(data.scores, data.truth[:, None], 1)
        else:
            signed = np.where(data.present, -data.scores, data.scores)[data.known]
            self.margins = np.column_stack([np.zeros_like(signed), signed])
        self.are_flat = not self.margins.any()

    def __call__(self, inverse: float) -> tuple[float, float]:
        """Slope and curvature: mean and variance of the margins under the probabilities."""
        scaled = inverse * self.margins
        chances = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        mean = (chances * self.margins).sum(axis=1)
        spread = (chances * (self.margins - mean[:, None]) ** 2).sum(axis=1)
        return float(mean.mean()), float(spread.mean())

    def loss(self, inverse: float) -> float:
        scaled = inverse * self.margins
        largest = scaled.max(axis=1)
        return float((largest + np.log(np.exp(scaled - largest[:, None]).sum(axis=1))).mean())


def _at(data: OneVsRest, inverse: float) -> OneVsRest:
    """The probabilities at a temperature."""
    scaled = inverse * data.scores
    if data.truth is not None:
        chances = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
    else:
        smaller = np.exp(-np.abs(scaled))  # never overflows
        chances = np.where(scaled >= 0, 1.0, smaller) / (1.0 + smaller)
    return OneVsRest(data.present, data.known, chances, data.truth, data.resolution)
