"""How far the metrics of a split can be trusted: percentile bootstrap intervals.

targets, probabilities -> [draw clips again, with replacement] -> metrics of each resample -> percentiles

Method: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3: of the metric's values in
many resamples, the middle 95 % (or other ``confidence``). Clips that are cut from one recording are alike;
drawn one by one they would make the interval too narrow. With ``groups`` whole recordings are drawn. The
interval tells what other clips of the same kind would give the same model, not what another training would.

A resample is never copied out: a clip that is drawn twice has weight two, and every metric is a sum over
weighted clips.

Shapes in this file: N clips, C classes, R resamples, G groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from beats_trainer.reports.averages import class_rates, mean_over, ratio
from beats_trainer.reports.ranking import ClassRanking, macro_mean, rank_classes, sort_classes
from beats_trainer.reports.scores import OneVsRest, Task, check_probabilities, thresholds_of
from beats_trainer.reports.tasks import measure

__all__ = ["Interval", "bootstrap_intervals", "resample_metrics"]

# Resamples are worked on in blocks whose weights stay in the cache (1.6 MB), as the ranking walks over them
# once per class; but not so few at once that numpy is busy with rows rather than with numbers.
_NUM_WEIGHTS, _MIN_RESAMPLES = 400_000, 32


@dataclass(frozen=True)
class Interval:
    """A metric and where it lies in most resamples.

    Attributes:
        value: The metric of the split itself.
        low: Lower end.
        high: Upper end.
        confidence: Share of the resamples between the ends.

    Example:
        >>> print(Interval(0.8312, 0.7911, 0.8704, 0.95))
        0.831 (0.791-0.870)
    """

    value: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def bootstrap_intervals(
    task: Task,
    targets: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    *,
    groups: ArrayLike | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """Find the interval of every single number of a split.

    Time grows with clips times classes times resamples: 2,000 clips of 50 classes take one second
    on one core.

    Args:
        task: Whether a clip has one class or any number of them.
        targets: Shape ``(N,)``, class ids, for ``"single"``; shape ``(N, C)`` for ``"multi"``: 1 present,
            0 absent, NaN unknown.
        probabilities: Shape ``(N, C)``.
        labels: Class names, C of them, in the order of the columns.
        groups: What each clip was cut from, shape ``(N,)``, numbers or text; a clip without a value (NaN
            or ``None``) is a group of its own. ``None`` draws clips one by one.
        num_resamples: How many times the clips are drawn.
        confidence: Share of the resamples that an interval holds, between 0 and 1.
        seed: The same seed gives the same intervals.
        thresholds: As for ``measure``.

    Returns:
        Intervals under the names of ``summary_names(task)``, without those that are undefined for the
        split. Empty if all clips are of one group: there is nothing to draw from. A resample in which a
        metric is undefined (no class of ``map`` was drawn) does not count for that metric.

    Raises:
        ValueError: If the arrays do not fit, or a number is out of range.

    Example:
        >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]]
        >>> intervals = bootstrap_intervals("single", [0, 0, 1, 1], probabilities, ["a", "b"])
        >>> intervals["accuracy"].value, intervals["accuracy"].high
        (0.75, 1.0)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence between 0 and 1; got confidence={confidence}.")
    resampled = resample_metrics(
        task,
        targets,
        probabilities,
        labels,
        groups=groups,
        num_resamples=num_resamples,
        seed=seed,
        thresholds=thresholds,
    )
    if not resampled:
        return {}
    values = measure(task, targets, probabilities, labels, thresholds).summary("all")
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {}
    for name, metric in resampled.items():
        metric = metric[~np.isnan(metric)]
        if f"all_{name}" in values and len(metric):
            low, high = np.quantile(metric, ends)
            value = values[f"all_{name}"]
            intervals[name] = Interval(value, float(low), float(high), confidence)
    return intervals


def resample_metrics(
    task: Task,
    targets: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    *,
    groups: ArrayLike | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Measure a split on resamples of its clips.

    Which clips are drawn depends on the groups and the seed alone. So two models that are measured on the
    same clips are measured on the same resamples, and the difference of their metrics, resample by
    resample, is a paired bootstrap: what makes some clips hard for both falls out of it.

    Args:
        task: As all that follow, see `bootstrap_intervals`.
        targets: Shape ``(N,)`` or ``(N, C)``.
        probabilities: Shape ``(N, C)``.
        labels: Class names, C of them.
        groups: What each clip was cut from, shape ``(N,)``.
        num_resamples: How many times the clips are drawn, R.
        seed: Of the draws.
        thresholds: As for ``measure``.

    Returns:
        Under the names of ``summary_names(task)``, shape ``(R,)``, NaN where a resample leaves the metric
        undefined. Empty if all clips are of one group.

    Raises:
        ValueError: If the arrays do not fit, or ``num_resamples`` is below 1.

    Example:
        >>> truth, first, second = [0, 0, 1], [[0.9, 0.1]] * 3, [[0.8, 0.2]] * 2 + [[0.1, 0.9]]
        >>> one = resample_metrics("single", truth, first, ["a", "b"])["accuracy"]
        >>> other = resample_metrics("single", truth, second, ["a", "b"])["accuracy"]
        >>> bool((other >= one).all())  # the second is right wherever the first is
        True
    """
    if num_resamples < 1:
        raise ValueError(f"Expected at least one resample; got num_resamples={num_resamples}.")
    data = check_probabilities(task, targets, probabilities, len(labels))
    group_of_clip = _number_groups(groups, len(data.scores))
    if group_of_clip.max() == 0:
        return {}
    cutoffs = thresholds_of(labels, thresholds)
    classes = sort_classes(data)
    resampled = [
        _resampled_single(data, classes, weights)
        if task == "single"
        else _resampled_multi(data, classes, cutoffs, weights)
        for weights in _draw(group_of_clip, num_resamples, seed)
    ]
    return {name: np.concatenate([block[name] for block in resampled]) for name in resampled[0]}


def _number_groups(groups: ArrayLike | None, num_clips: int) -> NDArray[np.int64]:
    """The group of each clip as a number from 0 on, shape ``(N,)``."""
    if groups is None:
        return np.arange(num_clips)
    values = np.asarray(groups, dtype=object)  # else numpy makes the text "nan" of a missing value
    if values.shape != (num_clips,):
        raise ValueError(f"Expected one group per clip, ({num_clips},); got {values.shape}.")
    codes, names = pd.factorize(values)
    numbers = codes.astype(np.int64)
    nameless = numbers < 0
    numbers[nameless] = len(names) + np.arange(nameless.sum())
    return numbers


def _draw(
    group_of_clip: NDArray[np.int64], num_resamples: int, seed: int
) -> Iterator[NDArray[np.float32]]:
    """Give how often each clip was drawn, shape ``(N, R)``, in blocks of resamples."""
    rng = np.random.default_rng(seed)
    num_groups = int(group_of_clip.max()) + 1
    block = max(_MIN_RESAMPLES, _NUM_WEIGHTS // len(group_of_clip))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(num_groups, size=(num_groups, size)) * size + np.arange(size)
        counts = np.bincount(drawn.ravel(), minlength=num_groups * size)
        yield counts.reshape(num_groups, size)[group_of_clip].astype(np.float32)


def _resampled_single(
    data: OneVsRest, classes: Sequence[ClassRanking], weights: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """The numbers of ``ClassificationMetrics.summary`` of each resample, shape ``(R,)``."""
    predicted = data.scores.argmax(axis=1)[:, None] == np.arange(data.scores.shape[1])
    hits = _sum(weights, predicted & data.present)
    support = _sum(weights, data.present)
    rates = class_rates(hits, support, _sum(weights, predicted))
    num_clips = weights.sum(axis=0)
    average_precision, roc_auc = rank_classes(classes, weights)
    return {
        "loss": data.log_losses() @ weights / num_clips,
        "accuracy": hits.sum(axis=1) / num_clips,
        "balanced_accuracy": mean_over(rates.recall, support > 0),
        "f1": rates.macro_f1,
        "precision": rates.macro_precision,
        "recall": rates.macro_recall,
        "map": macro_mean(average_precision),
        "roc_auc": macro_mean(roc_auc),
    }


def _resampled_multi(
    data: OneVsRest,
    classes: Sequence[ClassRanking],
    cutoffs: NDArray[np.float64],
    weights: NDArray[np.float32],
) -> dict[str, NDArray[np.float64]]:
    """The numbers of ``MultiLabelMetrics.summary`` of each resample, shape ``(R,)``."""
    decided = (data.scores >= cutoffs) & data.known
    hits = _sum(weights, decided & data.present)
    support, predictions = _sum(weights, data.present), _sum(weights, decided)
    rates = class_rates(hits, support, predictions)
    average_precision, roc_auc = rank_classes(classes, weights)
    is_scored = data.known.any(axis=1)
    is_right = (decided == data.present).all(axis=1) & is_scored
    # A resample may hold only clips of which nothing is known: then there is no loss and no accuracy.
    with np.errstate(invalid="ignore"):
        loss = data.log_losses().sum(axis=1) @ weights / (data.known.sum(axis=1) @ weights)
        accuracy = is_right.astype(np.float64) @ weights / (is_scored.astype(np.float64) @ weights)
    return {
        "loss": loss,
        "map": macro_mean(average_precision),
        "roc_auc": macro_mean(roc_auc),
        "f1": rates.macro_f1,
        "precision": rates.macro_precision,
        "recall": rates.macro_recall,
        "micro_f1": ratio(2 * hits.sum(axis=1), (support + predictions).sum(axis=1)),
        "accuracy": accuracy,
    }


def _sum(weights: NDArray[np.float32], is_counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Count the drawn clips of each class, shapes ``(N, R)`` and ``(N, C)`` to ``(R, C)``."""
    counts = weights.T @ is_counted.astype(
        np.float32
    )  # whole numbers: exact up to 16 million clips
    return counts.astype(np.float64)
