"""What training gives back: dataclasses that also read like the dict of the old library."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from beats_trainer.reports import Interval, Metrics

__all__ = ["CrossValidationResult", "TrainResult"]


class _Result(Mapping[str, Any]):
    """Fields by name, as attributes and as keys."""

    def __getitem__(self, key: str) -> Any:
        if key not in self._names():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> tuple[str, ...]:
        return tuple(item.name for item in dataclasses.fields(self))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class TrainResult(_Result):
    """The outcome of ``BEATsTrainer.train()``; ``result["best_score"]`` is ``result.best_score``.

    Attributes:
        best_checkpoint: The trained model's folder, for `BEATsPredictor` and all others that load models.
        best_score: The monitored validation metric of the kept epoch; ``None`` without validation clips.
        best_epoch: The epoch, counted from 0, whose weights were kept.
        monitor_metric: What ``best_score`` is.
        test_results: ``test_loss``, ``test_accuracy``, ``test_f1`` and more; ``None`` without test clips.
        val_results: The same as ``val_...``; ``None`` without validation clips.
        dataset_stats: ``num_classes``, ``total_samples``, ``class_distribution`` and more.
        history: One row per epoch: ``epoch``, ``train_loss``, ``lr``, ``val_loss``, ``val_accuracy``,
            ``val_f1`` and more.
        test_metrics: All about the test split, per class too; ``None`` without test clips.
        test_intervals: 95 % intervals of its single numbers, by their names without ``test_``.
        run_dir: The run's folder, which holds the model's.
        report: The run's ``report.html``, to open in a browser.
        precision: The number format that the network ran in.
        duration_s: Seconds that the run took.
    """

    best_checkpoint: str
    best_score: float | None
    best_epoch: int
    monitor_metric: str
    test_results: dict[str, float] | None
    val_results: dict[str, float] | None
    dataset_stats: dict[str, Any]
    history: list[dict[str, float]]
    test_metrics: Metrics | None
    test_intervals: dict[str, Interval]
    run_dir: str
    report: str
    precision: str
    duration_s: float

    def __str__(self) -> str:
        """A summary of a few lines."""
        stats = self.dataset_stats
        lines = [
            f"{stats['total_samples']} clips of {stats['num_classes']} classes. {stats['split']}",
            f"Kept the last of {len(self.history)} epochs: there are no validation clips to choose by."
            if self.best_score is None
            else f"Kept epoch {self.best_epoch + 1} of {len(self.history)}: {self.monitor_metric} "
            f"{self.best_score:.3f}.",
        ]
        if self.test_results is None:
            lines.append("There are no test clips: how well it does on new sound was not measured.")
        else:
            named = {"accuracy": "accuracy", "f1": "macro F1", "loss": "loss"}
            if "test_micro_f1" in self.test_results:  # any number of classes per clip
                named = {
                    "map": "mAP",
                    "f1": "macro F1",
                    "accuracy": "all classes right",
                    "loss": "loss",
                }
            figures = [
                f"{word} {self.test_results[f'test_{name}']:.3f}{_range(self.test_intervals.get(name))}"
                for name, word in named.items()
                if f"test_{name}" in self.test_results
            ]
            lines.append(f"Test: {', '.join(figures)}.")
        lines.append(f"Took {self.duration_s:.0f} s in {self.precision}.")
        lines.append(f"Report: {self.report}")
        lines.append(f"Model: {self.best_checkpoint}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class CrossValidationResult(_Result):
    """The outcome of ``BEATsTrainer.cross_validate()``.

    Attributes:
        folds: One row per fold: ``fold``, ``train_clips``, ``val_clips``, ``test_clips``, ``test_accuracy``
            and more, ``duration_s``.
        summary: Of each number, such as ``accuracy``: ``mean`` and sample deviation ``std`` over the folds,
            and ``pooled``, its value over all clips at once.
        pooled_results: The pooled numbers under the names of a training: ``test_accuracy`` and more.
        pooled_metrics: All about the clips of all folds together, per class too.
        pooled_intervals: 95 % intervals of the pooled numbers.
        predictions: One row per clip: its fold, its true and predicted class, and every score.
        how: What was done, in words.
        run_dir: The folder, with one folder per fold in it.
        report: Its ``report.html``.
        duration_s: Seconds that this call took.
    """

    folds: list[dict[str, Any]]
    summary: dict[str, dict[str, float]]
    pooled_results: dict[str, float]
    pooled_metrics: Metrics
    pooled_intervals: dict[str, Interval]
    predictions: pd.DataFrame
    how: str
    run_dir: str
    report: str
    duration_s: float

    def __str__(self) -> str:
        """A line per fold, and the figures over them."""
        shown = [name for name in ("accuracy", "map", "f1", "loss") if name in self.summary]
        width = max(6, *(len(str(row["fold"])) for row in self.folds))
        lines = [self.how, ""]
        lines.append(
            f"{'fold':{width}}  clips"
            + "".join(f"{name.removeprefix('test_'):>10}" for name in shown)
        )
        lines += [
            f"{row['fold']!s:{width}}  {row['test_clips']:5d}"
            + "".join(f"{row.get(f'test_{name}', math.nan):10.3f}" for name in shown)
            for row in self.folds
        ]
        for kind in ("mean", "std", "pooled"):
            values = "".join(f"{self.summary[name][kind]:10.3f}" for name in shown)
            lines.append(f"{kind:{width}}  {'':5}{values}")
        is_multi = "micro_f1" in self.summary and "map" in self.summary
        name, word = ("map", "mAP") if is_multi else ("accuracy", "Accuracy")
        figure = self.summary[name]
        spread = "" if math.isnan(figure["std"]) else f" +- {figure['std']:.3f}"
        lines += [
            "",
            f"{word} {figure['mean']:.3f}{spread} over the folds, {figure['pooled']:.3f}"
            f"{_range(self.pooled_intervals.get(name))} pooled.",
            f"Report: {self.report}",
        ]
        return "\n".join(lines)


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
