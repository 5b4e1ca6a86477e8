"""What a trained model is worth: metrics over a whole split, and what follows from them.

targets, probabilities -> [metrics] -> numbers and a table
                       -> [intervals] -> how far they can be trusted
                       -> [thresholds] -> from which score on a class counts as heard
logits -> [calibration] -> how far a score is a probability
"""

from beats_trainer.reports.calibration import (
    ReliabilityCurve,
    Temperature,
    fit_temperature,
    reliability,
)
from beats_trainer.reports.intervals import Interval, bootstrap_intervals, resample_metrics
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
from beats_trainer.reports.ranking import precision_recall_points
from beats_trainer.reports.scores import Task
from beats_trainer.reports.tasks import Metrics, measure, summary_names
from beats_trainer.reports.thresholds import fit_thresholds

__all__ = [
    "MULTILABEL_SUMMARY_METRICS",
    "SUMMARY_METRICS",
    "ClassificationMetrics",
    "Interval",
    "Metrics",
    "MultiLabelMetrics",
    "ReliabilityCurve",
    "Task",
    "Temperature",
    "bootstrap_intervals",
    "classification_metrics",
    "fit_temperature",
    "fit_thresholds",
    "measure",
    "multilabel_metrics",
    "precision_recall_points",
    "reliability",
    "resample_metrics",
    "summary_names",
]
