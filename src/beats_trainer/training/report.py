"""From the outcome of a training to its report: what a person should see of it.

Outcome -> [Report] -> report.html, report.json

Shapes in this file: N clips, C classes.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beats_trainer.audio import load_audio
from beats_trainer.checkpoints import BEATsForAudioClassification
from beats_trainer.config import Config
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.datasets import Splits, Task, targets_of
from beats_trainer.loading import Clip
from beats_trainer.model import BEATs
from beats_trainer.model.lengths import min_samples
from beats_trainer.reports import (
    Interval,
    Metrics,
    MultiLabelMetrics,
    precision_recall_points,
    reliability,
)
from beats_trainer.reports.environment import command, hardware, versions
from beats_trainer.reports.html import Figure, Mistake, ReliabilityPoints, Report
from beats_trainer.training.embedded import clips_of
from beats_trainer.training.losses import soft_targets
from beats_trainer.training.run_folder import SPLIT_NAMES
from beats_trainer.training.session import Outcome, ScoredSplit, groups_of

__all__ = [
    "NAMES_OF_METRICS",
    "class_balance",
    "describe_evaluation",
    "describe_training",
    "find_mistakes",
    "headline",
    "how_intervals_are_made",
    "scores_of",
]

NAMES_OF_METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "Macro F1",
    "precision": "Macro precision",
    "recall": "Macro recall",
    "micro_f1": "Micro F1",
    "map": "Mean average precision",
    "roc_auc": "Macro ROC AUC",
    "loss": "Loss",
}
"""Single numbers, as a reader knows them."""

_NUM_MISTAKES = 12
_HEARD_S = 5.0
_POINTS_OF_A_CURVE = 200


def describe_training(outcome: Outcome, config: Config, title: str) -> Report:
    """Put together all that the report of one training shows.

    Args:
        outcome: Of the training.
        config: Its settings, resolved.
        title: Of the page.
    """
    splits, task = outcome.splits, outcome.splits.task
    name = "test" if "test" in outcome.scored else "val"
    scored = outcome.scored.get(name)
    val = outcome.scored.get("val")
    curves: dict[str, ReliabilityPoints] = {}
    if outcome.uncalibrated is not None and val is not None:
        curves["before"] = _reliability(outcome.uncalibrated, val, task)
        curves["after"] = _reliability(val.probabilities, val, task)
    thresholds = outcome.classifier.thresholds
    return Report(
        title=title,
        summary=_in_words(outcome, config, name),
        **({} if scored is None else scores_of(scored, task)),
        headline=[] if scored is None else headline(scored.metrics, scored.intervals, name),
        task=task,
        labels=list(splits.labels),
        history=outcome.fitted.history,
        monitor=config.training.monitor_metric if len(splits.val) else None,
        kept_epoch=outcome.fitted.best_epoch,
        reliability=curves,
        balance=class_balance(splits),
        mistakes=[] if scored is None else find_mistakes(scored, splits, outcome.classifier.beats),
        calibration=None
        if outcome.temperature is None
        else dataclasses.asdict(outcome.temperature),
        thresholds=None if thresholds is None else dict(thresholds),
        configuration=config.to_dict(),
        versions=versions(),
        hardware=hardware(),
        duration_s=outcome.duration_s,
        notes=list(outcome.notes),
        interval_note="" if scored is None else how_intervals_are_made(scored),
        command=command(),
    )


def describe_evaluation(
    scored: ScoredSplit, classifier: BEATsForAudioClassification, source: str
) -> Report:
    """Put together what the report of a measurement shows: a trained model on labelled clips.

    Args:
        scored: The clips with the model's scores.
        classifier: The model.
        source: What the clips are, for the reader: a folder, a table, ``"test"``.
    """
    task, labels, table = classifier.task, classifier.labels, scored.table
    none, where = table.iloc[:0], _short_name(source)
    splits = Splits(none, none, table, list(labels), "", task)
    name = "evaluated clips"
    thresholds = classifier.thresholds
    decided = (
        "the most likely class of each counts"
        if task == "single"
        else "the classes that reach the model's thresholds count"
        if thresholds
        else "the classes that reach a score of 0.5 count"
    )
    return Report(
        title=f"Evaluation on {where}",
        summary=f"A trained model was measured on {len(table)} clips of {where}; {decided}.",
        **scores_of(scored, task),
        headline=headline(scored.metrics, scored.intervals, name),
        interval_note=how_intervals_are_made(scored),
        task=task,
        labels=labels,
        reliability={name: _reliability(scored.probabilities, scored, task)},
        balance={name: class_balance(splits)["test"]},
        mistakes=find_mistakes(scored, splits, classifier.beats),
        thresholds=None if thresholds is None else dict(thresholds),
        configuration={"model": dict(classifier.provenance)},
        versions=versions(),
        hardware=hardware(),
        command=command(),
    )


def headline(metrics: Metrics, intervals: Mapping[str, Interval], split: str) -> list[Figure]:
    """The single numbers of a split, with their intervals."""
    figures = []
    for name, value in metrics.summary(split).items():
        short = name.removeprefix(f"{split}_")
        if short not in NAMES_OF_METRICS or not np.isfinite(value):
            continue
        interval = intervals.get(short)
        figures.append(
            Figure(
                NAMES_OF_METRICS[short],
                float(value),
                None if interval is None else interval.low,
                None if interval is None else interval.high,
                note={"val": "validation clips", "test": "test clips"}.get(split, split),
            )
        )
    order = list(NAMES_OF_METRICS.values())
    return sorted(figures, key=lambda figure: order.index(figure.name))


def scores_of(scored: ScoredSplit, task: Task) -> dict[str, Any]:
    """The fields of a report that come from the scores of one split."""
    plain = scored.metrics.to_dict()
    labels = scored.metrics.labels
    curves = {}
    for index, label in enumerate(labels):
        points = precision_recall_points(scored.targets, scored.probabilities, index, task)
        precision, recall = np.asarray(points[0]), np.asarray(points[1])
        if not np.isfinite(recall).all():
            continue
        keep = _thinned(len(recall))
        curves[label] = (recall[keep].tolist(), precision[keep].tolist())
    return {
        "per_class": [{"label": label, **plain["per_class"][label]} for label in labels],
        "confusion": plain["confusion"] if task == "single" else None,
        "precision_recall": curves,
    }


def class_balance(splits: Splits) -> dict[str, dict[str, int]]:
    """Clips of each class in each split; a clip of several classes counts for each of them."""
    balance = {}
    for name in SPLIT_NAMES:
        table = getattr(splits, name)
        num_classes = len(splits.labels)
        counts = np.zeros(num_classes)
        if len(table):
            targets = soft_targets(targets_of(table, num_classes, splits.task), num_classes)
            counts = np.nansum(targets, axis=0)
        balance[name] = {
            label: int(count) for label, count in zip(splits.labels, counts, strict=True)
        }
    return balance


def find_mistakes(
    scored: ScoredSplit, splits: Splits, beats: BEATs, most: int = _NUM_MISTAKES
) -> list[Mistake]:
    """The most confident wrong decisions, with what there is to hear and to see.

    With one class per clip, a mistake is a clip whose most likely class is not its own. With several, it
    is a class that is absent and reaches its threshold, or is present and does not.
    """
    rows = _wrong(scored)[:most]
    clips = clips_of(scored.table)
    labels = splits.labels
    mistakes = []
    for row, index, score in rows:
        if scored.targets.ndim == 1:
            truth, predicted = labels[scored.targets[row]], labels[index]
        else:
            is_there = scored.targets[row, index] == 1
            truth = labels[index] if is_there else f"no {labels[index]}"
            predicted = f"no {labels[index]}" if is_there else labels[index]
        clip = clips[row]
        waveform = _heard(clip)
        with torch.inference_mode():
            padded = np.pad(waveform, (0, max(0, min_samples() - len(waveform))))
            fbank = beats.fbank(torch.from_numpy(padded)[None].to(_device(beats)))[0]
        mistakes.append(
            Mistake(
                file=_short_name(str(scored.table["filename"].iloc[row])),
                start_time=clip.start_s,
                duration_s=len(waveform) / SAMPLE_RATE,
                truth=truth,
                predicted=predicted,
                score=float(score),
                waveform=waveform,
                fbank=fbank.float().cpu().numpy(),
            )
        )
    return mistakes


def _wrong(scored: ScoredSplit) -> list[tuple[int, int, float]]:
    """Row, class and score of each wrong decision, the most confident first."""
    targets, probabilities = scored.targets, scored.probabilities
    if targets.ndim == 1:
        predicted = probabilities.argmax(axis=1)
        rows = np.flatnonzero(predicted != targets)
        found = [(int(r), int(predicted[r]), float(probabilities[r, predicted[r]])) for r in rows]
        return sorted(found, key=lambda item: -item[2])
    assert isinstance(scored.metrics, MultiLabelMetrics)
    is_wrong = (probabilities >= scored.metrics.thresholds) != (targets == 1)
    error = np.abs(targets - probabilities)  # NaN where unknown
    places = [(int(r), int(c)) for r, c in np.argwhere(is_wrong & ~np.isnan(targets))]
    places.sort(key=lambda place: -error[place])
    return [(row, column, float(probabilities[row, column])) for row, column in places]


def _heard(clip: Clip) -> NDArray[np.float32]:
    duration_s = _HEARD_S if clip.duration_s is None else min(clip.duration_s, _HEARD_S)
    return load_audio(clip.file, clip.start_s, duration_s)


def _device(beats: BEATs) -> torch.device:
    return next(beats.parameters()).device


def _reliability(
    probabilities: NDArray[np.float64], scored: ScoredSplit, task: Task
) -> ReliabilityPoints:
    curve = reliability(probabilities, scored.targets, task)
    return ReliabilityPoints(
        confidence=[float(value) for value in curve.confidence],
        accuracy=[float(value) for value in curve.accuracy],
        counts=[int(value) for value in curve.counts],
        ece=float(curve.ece),
    )


def _thinned(length: int) -> NDArray[np.int64]:
    if length <= _POINTS_OF_A_CURVE:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, _POINTS_OF_A_CURVE).round().astype(np.int64))


def _in_words(outcome: Outcome, config: Config, name: str) -> str:
    """What was done, in a sentence or two."""
    what = {
        "head": "A head was fitted on the embeddings of a frozen network",
        "attentive": "A head with learned pooling was fitted on the tokens of a frozen network",
        "lora": "Low-rank adapters and a head were trained on a frozen network",
        "full": "The whole network was fine-tuned",
        "scratch": "The whole network was trained from random weights",
    }[str(config.model.mode)]
    splits = outcome.splits
    kept = outcome.fitted.best_epoch
    chosen = (
        f"of {len(outcome.fitted.history)} epochs, epoch {kept} (counted from 0) was kept, the best by "
        f"{config.training.monitor_metric} on {len(splits.val)} validation clips"
        if len(splits.val)
        else f"the last of {len(outcome.fitted.history)} epochs was kept, without validation clips"
    )
    measured = {
        "test": f"All figures are of {len(splits.test)} test clips, which neither training nor any choice has "
        "seen.",
        "val": "There are no test clips: the figures are of the validation clips, on which the epoch was "
        "chosen, and look better than on new sound.",
    }[name]
    if not outcome.scored:
        measured = "Nothing was measured: there are neither validation nor test clips."
    return (
        f"{what} with {len(splits.train)} clips of {len(splits.labels)} classes; {chosen}. {measured} "
        f"{splits.how}"
    )


def how_intervals_are_made(scored: ScoredSplit) -> str:
    """What the intervals beside the figures are, for the reader."""
    groups = groups_of(scored.table)
    if not scored.intervals:
        return ""
    what = (
        f"the {len(scored.table)} clips"
        if groups is None
        else f"the {len(set(groups))} groups that the {len(scored.table)} clips belong to"
    )
    return f"Intervals: 95 %, by resampling {what} (bootstrap)."


def _short_name(file: str) -> str:
    """Enough of a file's name to find it by: of a whole path, the folder and the name."""
    return os.path.join(*Path(file).parts[-2:]) if os.path.isabs(file) else file
