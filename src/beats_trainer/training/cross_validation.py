"""Cross-validation: every clip is tested once, by a model that has seen nothing of its fold.

folds -> [train_once per fold] -> scores of every clip -> mean, deviation, pooled metrics, report

The epoch is chosen on a part of the training folds, never on the test fold: picking the best epoch on the
test fold, as some published recipes do, makes a figure that new sound will not reach.

Shapes in this file: N clips, C classes.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from beats_trainer.atomic import written_whole
from beats_trainer.config import Config
from beats_trainer.datasets import FoldSplit, targets_of
from beats_trainer.reports import bootstrap_intervals, measure
from beats_trainer.reports.environment import command, hardware, versions
from beats_trainer.reports.html import Mistake, Report, write_report
from beats_trainer.training.report import (
    class_balance,
    describe_training,
    find_mistakes,
    headline,
    how_intervals_are_made,
    scores_of,
)
from beats_trainer.training.result import CrossValidationResult
from beats_trainer.training.run_folder import SPLIT_NAMES, RunFolder, prediction_table
from beats_trainer.training.session import Outcome, ScoredSplit, groups_of

__all__ = ["cross_validate"]

log = logging.getLogger(__name__)

_NUM_MISTAKES = 12


def cross_validate(
    folds: Sequence[FoldSplit],
    config: Config,
    run: RunFolder,
    train_fold: Callable[[FoldSplit, RunFolder], Outcome],
    *,
    resume: bool = False,
) -> CrossValidationResult:
    """Train and test once per fold, and put the results together.

    Args:
        folds: Each with its training, validation and test clips.
        config: Every setting; resolved.
        run: Takes a folder per fold, ``predictions.csv``, ``metrics.json`` and the report over all.
        train_fold: Trains a fresh classifier on a fold, in the folder given.
        resume: Take finished folds from their folders.

    Returns:
        The figures of each fold, their mean and standard deviation, and those of all clips pooled.

    Raises:
        ConfigError: If a fold to go on with was begun with other settings.
        DatasetError: If it was begun with other clips.
    """
    start = time.monotonic()
    labels, task = folds[0].splits.labels, folds[0].splits.task
    rows: list[dict[str, Any]] = []
    tested: list[ScoredSplit] = []
    mistakes: list[Mistake] = []
    for fold in folds if resume else ():  # before hours are spent on one of them
        if run.fold(fold.name).is_begun:
            run.fold(fold.name).check_same_plan(config, fold.splits)
    for fold in folds:
        folder = run.fold(fold.name)
        log.info("%s", fold.splits.how)
        if resume and folder.is_finished:
            folder.remove_leftovers()
            scored, duration_s = _read_finished(folder, fold)
        else:
            outcome = train_fold(fold, folder)
            scored, duration_s = outcome.scored["test"], outcome.duration_s
            mistakes += find_mistakes(scored, fold.splits, outcome.classifier.beats)
            title = f"{config.experiment_name}, fold {fold.name}"
            write_report(folder.path, describe_training(outcome, config, title))
        sizes = {name: len(getattr(fold.splits, name)) for name in SPLIT_NAMES}
        rows.append(
            {"fold": fold.name}
            | {f"{name}_clips": size for name, size in sizes.items()}
            | scored.metrics.summary("test")
            | {"duration_s": duration_s}
        )
        tested.append(scored)
    pooled = _pool(tested, folds, config.seed)
    summary = _summarise(rows, pooled)
    run.write_metrics({"test": pooled}, folds=rows, summary=summary)
    table = pd.concat(
        [
            prediction_table(scored, fold.splits, "test").assign(fold=fold.name)
            for scored, fold in zip(tested, folds, strict=True)
        ],
        ignore_index=True,
    )
    with written_whole(run.path / "predictions.csv") as partial:
        table.to_csv(partial, index=False)
    with written_whole(run.path / "folds.csv") as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    duration_s = time.monotonic() - start
    mistakes = sorted(mistakes, key=lambda mistake: -mistake.score)[:_NUM_MISTAKES]
    how = _in_words(folds, config)
    report = write_report(
        run.path,
        Report(
            title=f"{config.experiment_name}: cross-validation",
            summary=how,
            task=task,
            labels=list(labels),
            headline=headline(pooled.metrics, pooled.intervals, "test"),
            **scores_of(pooled, task),
            balance={f"fold {fold.name}": class_balance(fold.splits)["test"] for fold in folds},
            mistakes=mistakes,
            folds=[_row_to_read(row, summary) for row in rows],
            fold_summary=summary,
            configuration=config.to_dict(),
            versions=versions(),
            hardware=hardware(),
            duration_s=sum(float(row["duration_s"]) for row in rows),
            interval_note=how_intervals_are_made(pooled),
            command=command(),
        ),
    )
    return CrossValidationResult(
        folds=rows,
        summary=summary,
        pooled_results=pooled.metrics.summary("test"),
        pooled_metrics=pooled.metrics,
        pooled_intervals=pooled.intervals,
        predictions=table,
        how=how,
        run_dir=str(run.path),
        report=str(report),
        duration_s=duration_s,
    )


def _row_to_read(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A fold's row with the figures under the names of the summary, the loss last."""
    order = sorted(names, key=lambda name: name == "loss")
    figures = {name: row.get(f"test_{name}") for name in order}
    others = {k: v for k, v in row.items() if k.removeprefix("test_") not in figures}
    return {"fold": row["fold"], **figures, **others}


def _pool(tested: Sequence[ScoredSplit], folds: Sequence[FoldSplit], seed: int) -> ScoredSplit:
    """All test clips as one split. Where classes have thresholds, these differ by fold: 0.5 stands here."""
    table = pd.concat([scored.table for scored in tested], ignore_index=True)
    targets = np.concatenate([scored.targets for scored in tested])
    probabilities = np.concatenate([scored.probabilities for scored in tested])
    labels, task = folds[0].splits.labels, folds[0].splits.task
    metrics = measure(task, targets, probabilities, labels)
    intervals = bootstrap_intervals(
        task, targets, probabilities, labels, groups=groups_of(table), seed=seed
    )
    return ScoredSplit(table, targets, probabilities, metrics, intervals)


def _summarise(
    rows: Sequence[Mapping[str, Any]], pooled: ScoredSplit
) -> dict[str, dict[str, float]]:
    """Mean and sample deviation over the folds, and the pooled value, of each single number."""
    summary = {}
    for name, value in pooled.metrics.summary("test").items():
        # A fold of one class only has no map and no roc_auc.
        values = np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)
        values = values[np.isfinite(values)]
        summary[name.removeprefix("test_")] = {
            "mean": float(values.mean()) if len(values) else math.nan,
            "std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
            "pooled": float(value),
        }
    return summary


def _read_finished(folder: RunFolder, fold: FoldSplit) -> tuple[ScoredSplit, float]:
    """The scores that a fold's training left, as it had them in memory."""
    labels, task = fold.splits.labels, fold.splits.task
    # As text, which Python reads back to the very number; pandas' own reading may be off by a last digit.
    table = pd.read_csv(folder.path / "predictions.csv", keep_default_na=False, dtype=str)
    table = table[table["split"] == "test"].drop(columns="split")
    probabilities = table[table.columns[-len(labels) :]].map(float).to_numpy(np.float64)
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    thresholds = report["thresholds"]
    test = fold.splits.test
    targets = targets_of(test, len(labels), task)
    metrics = measure(task, targets, probabilities, labels, thresholds)
    return ScoredSplit(test, targets, probabilities, metrics, {}), float(report["duration_s"])


def _in_words(folds: Sequence[FoldSplit], config: Config) -> str:
    has_val = any(len(fold.splits.val) for fold in folds)
    chosen = (
        f"The epoch with the best {config.training.monitor_metric} on validation clips, held out of the "
        "training folds, was kept"
        if has_val
        else "Without validation clips, the last epoch was kept"
    )
    num_clips = sum(len(fold.splits.test) for fold in folds)
    return (
        f"{len(folds)}-fold cross-validation, mode {config.model.mode}: each of {num_clips} clips was tested "
        f"once, by a model that saw nothing of its fold. {chosen}. The figures below are of all clips "
        "together (pooled); mean and deviation over the folds stand in the table of folds."
    )
