"""One entry to the metrics of both tasks.

task, targets, probabilities -> [measure] -> ClassificationMetrics | MultiLabelMetrics

Shapes in this file: N clips, C classes.
"""

from collections.abc import Mapping, Sequence

from numpy.typing import ArrayLike

from beats_trainer.reports.metrics import (
    SUMMARY_METRICS,
    ClassificationMetrics,
    classification_metrics,
)
from beats_trainer.reports.multilabel import (
    MULTILABEL_SUMMARY_METRICS,
    MultiLabelMetrics,
    multilabel_metrics,
)
from beats_trainer.reports.scores import Task

__all__ = ["Metrics", "measure", "summary_names"]

Metrics = ClassificationMetrics | MultiLabelMetrics
"""The metrics of a split; both have ``summary``, ``to_dict``, ``labels``, ``num_clips`` and rates per class."""


def measure(
    task: Task,
    targets: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    thresholds: Mapping[str, float] | None = None,
) -> Metrics:
    """Compare the scores of a split with the truth.

    Args:
        task: Whether a clip has one class or any number of them.
        targets: Shape ``(N,)``, class ids, for ``"single"``; shape ``(N, C)`` for ``"multi"``: 1 present,
            0 absent, NaN unknown.
        probabilities: Shape ``(N, C)``, each in 0..1.
        labels: Class names, C of them, in the order of the columns.
        thresholds: For ``"multi"``: probability from which on a class counts as present, by class name;
            0.5 for a class that is not named. ``"single"`` decides for the most likely class and does not
            use them.

    Returns:
        All metrics of the split.

    Raises:
        ValueError: If the task is unknown or the arrays do not fit.

    Example:
        >>> measure("single", [0, 1], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"]).summary("val")["val_map"]
        1.0
    """
    if task == "single":
        return classification_metrics(targets, probabilities, labels)
    if task == "multi":
        return multilabel_metrics(targets, probabilities, labels, thresholds)
    raise ValueError(f"A task is 'single' or 'multi', not {task!r}.")


def summary_names(task: Task) -> tuple[str, ...]:
    """The names of the single numbers that ``summary`` gives, without the split before them.

    Raises:
        ValueError: If the task is unknown.

    Example:
        >>> summary_names("multi")[:3]
        ('loss', 'map', 'roc_auc')
    """
    if task not in ("single", "multi"):
        raise ValueError(f"A task is 'single' or 'multi', not {task!r}.")
    return SUMMARY_METRICS if task == "single" else MULTILABEL_SUMMARY_METRICS
