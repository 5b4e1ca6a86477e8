"""Classification metrics of a whole split at once, equal to scikit-learn's.

targets, probabilities -> [confusion -> counts -> metrics], ranking, calibration

For clips that have exactly one class each; ``multilabel`` has those for clips with any number. Never averaged
over batches: the mean of the batches' F1 is not the F1. Plain numpy, so that a report needs no torch.

Shapes in this file: N clips, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.reports.averages import class_rates
from beats_trainer.reports.calibration import reliability_of
from beats_trainer.reports.ranking import macro_mean, rank_classes, sort_classes
from beats_trainer.reports.scores import check_probabilities, plain

__all__ = ["SUMMARY_METRICS", "ClassificationMetrics", "class_table", "classification_metrics"]

SUMMARY_METRICS = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "map",
    "roc_auc",
)
"""The single numbers of a split whose clips have one class; from f1 on, macro averages."""


@dataclass(frozen=True)
class ClassificationMetrics:
    """How well scores fit the truth, where each clip has exactly one class.

    Macro averages run over the classes that occur among the targets or the predictions, as scikit-learn's
    do; a class without predictions has precision 0, one without targets has recall 0. Average precision and
    ROC AUC set a class against all others; they are NaN for a class that no clip or every clip has, and
    their means run over the other classes.

    Attributes:
        accuracy: Share of clips whose most likely class is the true one.
        balanced_accuracy: Mean recall of the classes that occur among the targets.
        macro_f1: Mean F1 of the classes.
        macro_precision: Mean precision of the classes.
        macro_recall: Mean recall of the classes.
        mean_average_precision: Mean of ``average_precision`` (mAP); NaN if it is defined for no class.
        macro_roc_auc: Mean of ``roc_auc``; NaN if it is defined for no class.
        ece: Expected calibration error in 15 bins, 0 to 1: how far the scores of the most likely classes
            are from the share of them that is right.
        loss: Cross entropy, mean over clips, in nats.
        labels: Class names, in the order of the arrays below.
        precision: Per class, shape ``(C,)``.
        recall: Per class, shape ``(C,)``.
        f1: Per class, shape ``(C,)``.
        average_precision: Per class, shape ``(C,)``: area under the steps of the precision-recall curve.
        roc_auc: Per class, shape ``(C,)``: area under the ROC curve.
        support: Clips per true class, shape ``(C,)``, int64.
        confusion: Clips per true class (row) and predicted class (column), shape ``(C, C)``, int64.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    macro_precision: float
    macro_recall: float
    mean_average_precision: float
    macro_roc_auc: float
    ece: float
    loss: float
    labels: list[str]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    roc_auc: NDArray[np.float64]
    support: NDArray[np.int64]
    confusion: NDArray[np.int64]

    @property
    def num_clips(self) -> int:
        """Clips that were scored."""
        return int(self.support.sum())

    def summary(self, split: str) -> dict[str, float]:
        """The single numbers under the names of a training log, such as ``val_accuracy``.

        Args:
            split: What stands before each name of ``SUMMARY_METRICS``.

        Returns:
            Finite numbers: ``map`` and ``roc_auc`` are left out where they are undefined, which depends on
            the targets alone. A split has the same names after every epoch.
        """
        values = (
            self.loss,
            self.accuracy,
            self.balanced_accuracy,
            self.macro_f1,
            self.macro_precision,
            self.macro_recall,
            self.mean_average_precision,
            self.macro_roc_auc,
        )
        return {
            f"{split}_{name}": value
            for name, value in zip(SUMMARY_METRICS, values, strict=True)
            if not np.isnan(value)
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON; ``None`` for what is undefined."""
        return {
            "task": "single",
            "num_clips": self.num_clips,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "macro_precision": self.macro_precision,
            "macro_recall": self.macro_recall,
            "mean_average_precision": plain(self.mean_average_precision),
            "macro_roc_auc": plain(self.macro_roc_auc),
            "ece": self.ece,
            "loss": self.loss,
            "per_class": {
                label: {
                    "precision": float(self.precision[index]),
                    "recall": float(self.recall[index]),
                    "f1": float(self.f1[index]),
                    "average_precision": plain(self.average_precision[index]),
                    "roc_auc": plain(self.roc_auc[index]),
                    "support": int(self.support[index]),
                }
                for index, label in enumerate(self.labels)
            },
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
        }

    def __str__(self) -> str:
        """A table with one line per class and the averages below."""
        columns = (self.precision, self.recall, self.f1, self.average_precision, self.roc_auc)
        averages = (
            self.macro_precision,
            self.macro_recall,
            self.macro_f1,
            self.mean_average_precision,
            self.macro_roc_auc,
        )
        numbers = {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "calibration error": self.ece,
            "loss": self.loss,
        }
        return class_table(
            self.labels,
            np.column_stack(columns),
            averages,
            {"clips": [*self.support.tolist(), self.num_clips]},
            numbers,
        )


def classification_metrics(
    targets: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]
) -> ClassificationMetrics:
    """Compare the scores of a split with its true classes.

    Args:
        targets: True class ids, shape ``(N,)``, integers in ``0..C-1``.
        probabilities: Class probabilities, shape ``(N, C)``; each row sums to one.
        labels: Class names, C of them, in the order of the columns.

    Returns:
        All metrics of the split.

    Raises:
        ValueError: If there is no clip, shapes do not fit, a target is no class, or a probability is not
            in 0..1.

    Example:
        >>> metrics = classification_metrics([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], ["a", "b"])
        >>> round(metrics.accuracy, 3), metrics.confusion.tolist()
        (0.667, [[1, 0], [1, 1]])
    """
    num_classes = len(labels)
    data = check_probabilities("single", targets, probabilities, num_classes)
    truth = data.truth
    assert truth is not None
    predicted = data.scores.argmax(axis=1)
    confusion = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes).astype(np.int64)
    hits, support = confusion.diagonal(), confusion.sum(axis=1)
    rates = class_rates(hits, support, confusion.sum(axis=0))
    once = np.ones((len(data.scores), 1))
    (average_precision,), (roc_auc,) = rank_classes(sort_classes(data), once)
    return ClassificationMetrics(
        accuracy=float(hits.sum() / len(truth)),
        balanced_accuracy=float(rates.recall[support > 0].mean()),
        macro_f1=float(rates.macro_f1),
        macro_precision=float(rates.macro_precision),
        macro_recall=float(rates.macro_recall),
        mean_average_precision=float(macro_mean(average_precision)),
        macro_roc_auc=float(macro_mean(roc_auc)),
        ece=reliability_of(data).ece,
        loss=float(data.log_losses().mean()),
        labels=list(labels),
        precision=rates.precision,
        recall=rates.recall,
        f1=rates.f1,
        average_precision=average_precision,
        roc_auc=roc_auc,
        support=support,
        confusion=confusion,
    )


def class_table(
    labels: Sequence[str],
    rates: NDArray[np.float64],
    averages: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    numbers: Mapping[str, float],
) -> str:
    """Write metrics as text, one line per class.

    Args:
        labels: Class names, C of them.
        rates: Precision, recall, F1, average precision and ROC AUC of each class, shape ``(C, 5)``; NaN is
            shown as a dash.
        averages: Their macro averages, 5 of them.
        counts: Columns of counts: C of them, then their total.
        numbers: What follows below the classes, by name.
    """
    heads = ("precision", "recall", "f1", "AP", "ROC AUC")
    width = max(len(name) for name in (*labels, *numbers, "macro average"))
    lines = ["  ".join([" " * width, *(f"{head:>7}" for head in (*heads, *counts))])]
    for index, label in enumerate((*labels, "macro average")):
        row = averages if index == len(labels) else rates[index]
        cells = [
            f"{_show(value):>{max(7, len(head))}}" for head, value in zip(heads, row, strict=True)
        ]
        cells += [f"{column[index]:{max(7, len(head))}d}" for head, column in counts.items()]
        lines.append("  ".join([f"{label:{width}}", *cells]))
    lines += [f"{name:{width}}  {_show(value)}" for name, value in numbers.items()]
    return "\n".join(lines)


def _show(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
