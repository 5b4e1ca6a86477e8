"""Metrics of a whole split whose clips have any number of classes, equal to scikit-learn's.

targets, probabilities, thresholds -> [decisions -> counts -> metrics], ranking, calibration

A class that is unknown in a clip counts nowhere: neither as present nor as absent, neither in a loss nor in a
rate.

Shapes in this file: N clips, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.reports.averages import class_rates, ratio
from beats_trainer.reports.calibration import reliability_of
from beats_trainer.reports.metrics import class_table
from beats_trainer.reports.ranking import macro_mean, rank_classes, sort_classes
from beats_trainer.reports.scores import check_probabilities, plain, thresholds_of

__all__ = ["MULTILABEL_SUMMARY_METRICS", "MultiLabelMetrics", "multilabel_metrics"]

MULTILABEL_SUMMARY_METRICS = (
    "loss",
    "map",
    "roc_auc",
    "f1",
    "precision",
    "recall",
    "micro_f1",
    "accuracy",
)
"""The single numbers of a split whose clips have any number of classes; from map to recall, macro averages."""


@dataclass(frozen=True)
class MultiLabelMetrics:
    """How well scores fit the truth, where each clip has any number of classes.

    Macro averages of precision, recall and F1 run over the classes that are present or predicted in a clip
    whose label is known: scikit-learn's with ``labels=`` those classes and ``zero_division=0``. Average
    precision and ROC AUC need no threshold; they are NaN for a class that is present in no clip or absent
    from none, and their means run over the other classes.

    Attributes:
        accuracy: Share of clips whose known classes are all decided rightly; of the clips that have a
            known class (subset accuracy).
        micro_f1: F1 of all decisions together.
        macro_f1: Mean F1 of the classes.
        macro_precision: Mean precision of the classes.
        macro_recall: Mean recall of the classes.
        mean_average_precision: Mean of ``average_precision`` (mAP); NaN if it is defined for no class.
        macro_roc_auc: Mean of ``roc_auc``; NaN if it is defined for no class.
        ece: Expected calibration error in 15 bins, 0 to 1, over all known entries.
        loss: Binary cross entropy, mean over the known entries, in nats.
        labels: Class names, in the order of the arrays below.
        thresholds: Probability from which on a class counts as present, shape ``(C,)``.
        precision: Per class, shape ``(C,)``.
        recall: Per class, shape ``(C,)``.
        f1: Per class, shape ``(C,)``.
        average_precision: Per class, shape ``(C,)``: area under the steps of the precision-recall curve.
        roc_auc: Per class, shape ``(C,)``: area under the ROC curve.
        support: Clips in which the class is present, shape ``(C,)``, int64.
        absent: Clips in which it is known to be absent, shape ``(C,)``, int64.
        unknown: Clips in which it is unknown, shape ``(C,)``, int64.
        confusion: Per class ``[[right absent, wrong present], [wrong absent, right present]]`` in clips,
            shape ``(C, 2, 2)``, int64: rows are the truth, columns the decision.
    """

    accuracy: float
    micro_f1: float
    macro_f1: float
    macro_precision: float
    macro_recall: float
    mean_average_precision: float
    macro_roc_auc: float
    ece: float
    loss: float
    labels: list[str]
    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    roc_auc: NDArray[np.float64]
    support: NDArray[np.int64]
    absent: NDArray[np.int64]
    unknown: NDArray[np.int64]
    confusion: NDArray[np.int64]

    @property
    def num_clips(self) -> int:
        """Clips that were scored, those of which nothing is known included."""
        return int(self.support[0] + self.absent[0] + self.unknown[0])

    def summary(self, split: str) -> dict[str, float]:
        """The single numbers under the names of a training log, such as ``val_map``.

        Args:
            split: What stands before each name of ``MULTILABEL_SUMMARY_METRICS``.

        Returns:
            Finite numbers: ``map`` and ``roc_auc`` are left out where they are undefined, which depends on
            the targets alone. A split has the same names after every epoch.
        """
        values = (
            self.loss,
            self.mean_average_precision,
            self.macro_roc_auc,
            self.macro_f1,
            self.macro_precision,
            self.macro_recall,
            self.micro_f1,
            self.accuracy,
        )
        return {
            f"{split}_{name}": value
            for name, value in zip(MULTILABEL_SUMMARY_METRICS, values, strict=True)
            if not np.isnan(value)
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON; ``None`` for what is undefined."""
        return {
            "task": "multi",
            "num_clips": self.num_clips,
            "accuracy": self.accuracy,
            "micro_f1": self.micro_f1,
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
                    "threshold": float(self.thresholds[index]),
                    "support": int(self.support[index]),
                    "absent": int(self.absent[index]),
                    "unknown": int(self.unknown[index]),
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
        counts = {"present": self.support, "absent": self.absent, "unknown": self.unknown}
        numbers = {
            "micro f1": self.micro_f1,
            "subset accuracy": self.accuracy,
            "calibration error": self.ece,
            "loss": self.loss,
        }
        return class_table(
            self.labels,
            np.column_stack(columns),
            averages,
            {name: [*column.tolist(), int(column.sum())] for name, column in counts.items()},
            numbers,
        )


def multilabel_metrics(
    targets: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    thresholds: Mapping[str, float] | None = None,
) -> MultiLabelMetrics:
    """Compare the scores of a split with the classes that are truly present.

    Args:
        targets: Shape ``(N, C)``: 1 present, 0 absent, NaN unknown.
        probabilities: Shape ``(N, C)``, each in 0..1.
        labels: Class names, C of them, in the order of the columns.
        thresholds: Probability from which on a class counts as present, by class name; 0.5 for a class
            that is not named.

    Returns:
        All metrics of the split.

    Raises:
        ValueError: If there is no clip, shapes do not fit, a target is neither 1, 0 nor NaN, all are NaN, a
            probability is not in 0..1, or a threshold names no class.

    Example:
        >>> targets = [[1, 0], [1, 1], [0, float("nan")]]
        >>> metrics = multilabel_metrics(targets, [[0.9, 0.2], [0.3, 0.8], [0.1, 0.9]], ["a", "b"])
        >>> round(metrics.micro_f1, 3), metrics.confusion.tolist()
        (0.8, [[[1, 0], [1, 1]], [[1, 0], [0, 1]]])
    """
    data = check_probabilities("multi", targets, probabilities, len(labels))
    cutoffs = thresholds_of(labels, thresholds)
    decided = (data.scores >= cutoffs) & data.known
    is_hit = decided & data.present
    hits, support, predictions = is_hit.sum(axis=0), data.present.sum(axis=0), decided.sum(axis=0)
    absent = data.absent.sum(axis=0)
    rates = class_rates(hits, support, predictions)
    once = np.ones((len(data.scores), 1))
    (average_precision,), (roc_auc,) = rank_classes(sort_classes(data), once)
    is_right = (decided == data.present).all(axis=1)
    false_alarms, misses = predictions - hits, support - hits
    confusion = np.array([[absent - false_alarms, false_alarms], [misses, hits]])
    return MultiLabelMetrics(
        accuracy=float(is_right[data.known.any(axis=1)].mean()),
        micro_f1=float(ratio(2 * hits.sum(), (support + predictions).sum())),
        macro_f1=float(rates.macro_f1),
        macro_precision=float(rates.macro_precision),
        macro_recall=float(rates.macro_recall),
        mean_average_precision=float(macro_mean(average_precision)),
        macro_roc_auc=float(macro_mean(roc_auc)),
        ece=reliability_of(data).ece,
        loss=float(data.log_losses()[data.known].mean()),
        labels=list(labels),
        thresholds=cutoffs,
        precision=rates.precision,
        recall=rates.recall,
        f1=rates.f1,
        average_precision=average_precision,
        roc_auc=roc_auc,
        support=support.astype(np.int64),
        absent=absent.astype(np.int64),
        unknown=(~data.known).sum(axis=0).astype(np.int64),
        confusion=confusion.transpose(2, 0, 1).astype(np.int64),
    )
