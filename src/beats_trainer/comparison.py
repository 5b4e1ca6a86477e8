"""`compare_models`: labelled sound and several checkpoints in, the answer to "which is best for my sound?" out.

clips -> folds, the same for all -> per model [embed every clip once -> per fold: knn, linear, attentive]
      -> scores of every clip -> table, paired differences, picture, page

Every clip is scored by what was fitted without its fold; the epoch is chosen on validation clips that are held
out of the training folds, never on the test fold. The encoders stay as they are.

Shapes in this file: N clips of the table, M of them tested in some fold, C classes, R resamples.
"""

import copy
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from tqdm import tqdm

from beats_trainer.atomic import written_whole
from beats_trainer.config import Config, ModelConfig, Task
from beats_trainer.datasets import FoldSplit, Manifest, fold_splits
from beats_trainer.errors import BEATsTrainerError, ConfigError, DatasetError
from beats_trainer.model.precision import resolve_device
from beats_trainer.reports import summary_names
from beats_trainer.reports.comparison import ScoreDot, comparison_page, score_chart, standalone_svg
from beats_trainer.reports.environment import hardware, versions
from beats_trainer.training.candidates import check_candidates, find_candidates
from beats_trainer.training.comparing import (
    BESIDE,
    Plan,
    ProbeResult,
    figures_of,
    predictions_of,
    probe_model,
)
from beats_trainer.training.manifest import read_manifest
from beats_trainer.training.probes import METHODS, Method
from beats_trainer.training.run_folder import RunFolder

__all__ = ["METHODS", "Comparison", "Method", "compare_models"]

PathLike: TypeAlias = str | os.PathLike[str]

_WORDS = {
    "accuracy": "accuracy",
    "map": "mAP",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "macro ROC AUC",
    "f1": "macro F1",
}
_DECIDED_HERE = (
    "mode",
    "model_path",
    "train_from_scratch",
    "freeze_backbone",
    "fine_tune_backbone",
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Which model is best for some clips, and how sure that is; ``str(comparison)`` says it.

    Attributes:
        table: One row per model and method, the best first: ``model``, ``method``; the headline metric
            (``accuracy``; ``map``, the mean average precision, where clips may have any number of classes)
            of all tested clips at once, its mean and sample deviation over the folds (``..._mean``,
            ``..._std``), its 95 % bootstrap interval (``low``, ``high``); ``balanced_accuracy`` (or
            ``roc_auc``) and ``f1``, macro averages; ``difference`` to the first row on the same clips with
            its 95 % interval (``difference_low``, ``difference_high``), and whether the clips cannot tell
            the two apart (``is_tied``); then the columns of ``models``.
        models: One row per model: ``model``, ``embedding_dim``, ``num_parameters`` of the encoder,
            ``seconds`` that it took to read and embed all clips, ``audio_hours_per_minute`` embedded, and the
            ``precision`` that ran.
        predictions: One row per tested clip, model and method: ``model``, ``method``, ``fold``, the clip's
            own columns, ``category`` (true), ``predicted``; ``score`` of that class and ``is_right`` where
            a clip has one class.
        metric: The headline metric's name.
        task: ``"single"`` where each clip has exactly one class, ``"multi"`` where it has any number.
        labels: Class names in the order of their ids.
        folds: Per fold its name and its numbers of training, validation and test clips.
        notes: What to know besides, such as a method that was left out.
        how: What was done, in words.
        duration_s: Seconds that it took.
        folder: Where the files are; ``None`` if none were written.
    """

    table: pd.DataFrame
    models: pd.DataFrame
    predictions: pd.DataFrame
    metric: str
    task: Task
    labels: list[str]
    folds: list[dict[str, Any]]
    notes: list[str]
    how: str
    duration_s: float
    folder: Path | None = None

    @property
    def best(self) -> str:
        """The name of the model with the best figure; see `verdict` for those that may be as good."""
        return str(self.table["model"].iloc[0])

    @property
    def verdict(self) -> str:
        """Which model did best, and which cannot be told apart from it, each with its best method."""
        per_model = self.table.drop_duplicates("model")  # sorted: the first is the model's best
        best, others = per_model.iloc[0], per_model.iloc[1:]
        words = _WORDS[self.metric]
        said = f"Best: {best['model']} ({best['method']}), {words} {best[self.metric]:.3f}"
        if not math.isnan(best["low"]):
            said += f" (95 % interval {best['low']:.3f} to {best['high']:.3f})"
        if others.empty:
            return f"{said}."
        if math.isnan(best["low"]):
            return (
                f"{said}. All clips are of one recording or group: whether the others are worse cannot be "
                "told from them."
            )
        tied = [_with_method(row) for _, row in others[others["is_tied"]].iterrows()]
        worse = [_with_method(row) for _, row in others[~others["is_tied"]].iterrows()]
        because = "of the difference on the same clips"
        if not tied:
            return f"{said}. Every other model is worse: the 95 % interval {because} excludes 0."
        said += (
            f". These clips cannot tell it apart from {_listed(tied)}: the 95 % interval {because} "
            "includes 0."
        )
        return said + (f" Worse: {_listed(worse)}." if worse else "")

    def __str__(self) -> str:
        """The table, the models' speeds, what cannot be told apart, and the notes."""
        words = _WORDS[self.metric]
        beside = BESIDE[self.task]
        header = ["model", "method", words, "95 % interval", "folds", "behind best"]
        header += [_WORDS[name] for name in beside]
        rows = [
            [
                row["model"],
                row["method"],
                _number(row[self.metric]),
                _span(row["low"], row["high"]),
                _spread(row[f"{self.metric}_mean"], row[f"{self.metric}_std"]),
                "" if number == 0 else _span(row["difference_low"], row["difference_high"], "+"),
                *(_number(row[name]) for name in beside),
            ]
            for number, row in enumerate(self.table.to_dict("records"))
        ]
        speeds = [
            [
                row["model"],
                str(row["embedding_dim"]),
                f"{row['num_parameters'] / 1e6:.3g} M",
                f"{row['seconds']:.1f} s",
                f"{row['audio_hours_per_minute']:.3g} h/min",
                row["precision"],
            ]
            for row in self.models.to_dict("records")
        ]
        lines = [self.how, "", *_aligned(header, rows), "", self.verdict, ""]
        lines += _aligned(
            ["model", "width", "parameters", "embedding took", "speed", "precision"], speeds
        )
        if self.notes:
            lines += ["", *(f"Note: {note}" for note in self.notes)]
        if self.folder is not None:
            lines += ["", f"Page: {self.folder / 'comparison.html'}"]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions, as plain values; NaN is ``None``."""
        return {
            "how": self.how,
            "verdict": self.verdict,
            "metric": self.metric,
            "task": self.task,
            "labels": list(self.labels),
            "folds": [dict(fold) for fold in self.folds],
            "results": _records(self.table),
            "models": _records(self.models),
            "notes": list(self.notes),
            "duration_s": self.duration_s,
        }

    def save(self, folder: PathLike) -> Path:
        """Write the comparison for a browser, a spreadsheet and a program.

        Args:
            folder: Is made if it is not there. Takes ``comparison.html`` (one page that opens offline),
                ``comparison.svg``, ``comparison.csv`` (the table), ``comparison.json`` (all of it, with
                machine and versions) and ``predictions.csv``, each replaced whole.

        Returns:
            The folder.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, table in (("comparison", self.table), ("predictions", self.predictions)):
            with written_whole(path / f"{name}.csv") as partial:
                table.to_csv(partial, index=False)
        origin = {"hardware": hardware(), "versions": versions()}
        RunFolder(path).write_json("comparison.json", self.to_dict() | origin)
        chart = score_chart(self._dots(), _WORDS[self.metric])
        page = comparison_page(
            title=f"Comparison of {len(self.models)} models"
            if len(self.models) > 1
            else f"Comparison of methods on {self.best}",
            summary=self.how,
            verdict=self.verdict,
            chart=chart,
            results=self._shown_results(),
            models=self._shown_models(),
            folds=self.folds,
            notes=self.notes,
            origin=origin,
            duration_s=self.duration_s,
        )
        for name, text in (("comparison.svg", standalone_svg(chart)), ("comparison.html", page)):
            with written_whole(path / name) as partial:
                # A file name may hold bytes that are no text: they are shown escaped.
                partial.write_bytes(text.encode("utf-8", "backslashreplace"))
        return path

    def _dots(self) -> list[ScoreDot]:
        return [
            ScoreDot(
                row["model"],
                row["method"],
                row[self.metric],
                row["low"],
                row["high"],
                row["is_tied"],
            )
            for row in self.table.to_dict("records")
        ]

    def _shown_results(self) -> list[dict[str, Any]]:
        """The table as the page shows it: words for names, and only what a reader compares."""
        return [
            {
                "model": row["model"],
                "method": row["method"],
                _WORDS[self.metric]: row[self.metric],
                "95 % interval": _span(row["low"], row["high"]),
                "behind best": row["difference"],
                "its interval": _span(row["difference_low"], row["difference_high"]),
                "tied": bool(row["is_tied"]),
                "mean of folds": row[f"{self.metric}_mean"],
                "deviation": row[f"{self.metric}_std"],
                **{_WORDS[name]: row[name] for name in BESIDE[self.task]},
            }
            for row in self.table.to_dict("records")
        ]

    def _shown_models(self) -> list[dict[str, Any]]:
        return [
            {
                "model": row["model"],
                "embedding width": row["embedding_dim"],
                "parameters": row["num_parameters"],
                "seconds to embed": row["seconds"],
                "hours of audio per minute": row["audio_hours_per_minute"],
                "precision": row["precision"],
            }
            for row in self.models.to_dict("records")
        ]


def compare_models(
    data: PathLike | pd.DataFrame | Manifest | None,
    models: Sequence[PathLike],
    *,
    config: Config | None = None,
    folds: int | str | None = None,
    methods: Sequence[str] = METHODS,
    output: PathLike | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Find out which checkpoint is best for some labelled clips, and whether the clips can tell.

    The encoders stay as they are. On each, three things are fitted and tested by cross-validation, with
    the same folds for all: ``"knn"`` (the 5 nearest training clips vote), ``"linear"`` (a head on the
    embeddings, as mode ``head`` of training) and ``"attentive"`` (learned pooling over the tokens of all
    layers, as mode ``attentive``). The epoch is chosen on validation clips out of the training folds.

    Models are compared on the same clips: the best is set against each other one by a paired bootstrap of
    the difference of their pooled figures, which draws whole groups (recordings, sites, speakers) where the
    clips have them. It tells what other clips of the same kind might say. It does not tell what another
    training would, and does not correct for the best being the best of many.

    Args:
        data: A folder with one folder per class, a CSV file with one row per clip, a table, or a `Manifest`;
            ``None`` takes what ``config.data`` names.
        models: Names, paths of files or model folders, or runs of `BEATsTrainer`; at least one. All are
            found and loaded once before any clip is read.
        config: Settings of the data, the seed, and of what is fitted; ``model.mode`` and ``model.model_path``
            are decided here.
        folds: ``"official"`` for the data set's own, a number for so many made of whole groups,
            ``"groups"`` to leave out one group at a time; ``None`` takes ``config.data.folds``, else the
            official ones where there are any, else 5.
        methods: Some of ``"knn"``, ``"linear"``, ``"attentive"``.
        output: Folder for ``comparison.html`` and the other files of `Comparison.save`; ``None`` writes none.
        progress: Show progress bars; ``None`` shows them on a terminal.

    Returns:
        The figures of each model and method, and what they mean.

    Raises:
        ConfigError: If a setting or a method is wrong, or a model is named twice.
        DatasetError: If the clips cannot be used, or not be divided into such folds.
        CheckpointError: If a model is unknown, out of reach, damaged, or no encoder; names it.
        AudioError: If a recording cannot be read; names the file and the reason.

    Warns:
        UserWarning: If a model's encoder was trained on some of these clips, which makes it look better
            than it is, or a method is left out for a model.

    Example:
        >>> names = ["BEATs_iter3_plus_AS2M", "openbeats"]
        >>> comparison = compare_models("recordings", names, output="comparison")  # doctest: +SKIP
        >>> print(comparison.verdict)  # doctest: +SKIP
        Best: openbeats (attentive), accuracy 0.931 (95 % interval 0.902 to 0.957). These clips cannot ...
    """
    start = time.monotonic()
    chosen = _checked_methods(methods)
    settings, table = _settings(config, data)
    candidates = find_candidates(models)
    device = _device(settings)
    folder = None if output is None else _writable(output)
    manifest = read_manifest(settings, table)
    _check_monitor(settings, manifest.task)
    fold_list = _folds(manifest, settings, folds)
    notes = check_candidates(candidates, manifest)
    plan = Plan(manifest, fold_list, settings, device, chosen, notes)
    results: list[ProbeResult] = []
    facts: list[dict[str, Any]] = []
    with tqdm(
        total=len(candidates) * len(chosen) * len(fold_list),
        desc="Comparing",
        unit="fit",
        disable=None if progress is None else not progress,
    ) as bar:
        for candidate in candidates:
            fact, some = probe_model(candidate, plan, bar, progress)
            facts.append(fact)
            results += some
    if not results:
        raise BEATsTrainerError(f"There is nothing to compare. {' '.join(notes)}")
    comparison = Comparison(
        table=figures_of(results, plan).merge(pd.DataFrame(facts), on="model"),
        models=pd.DataFrame(facts),
        predictions=pd.concat([predictions_of(r, plan) for r in results], ignore_index=True),
        metric=plan.metric,
        task=manifest.task,
        labels=list(manifest.labels),
        folds=[
            {
                "fold": fold.name,
                **{part: len(getattr(fold.splits, part)) for part in ("train", "val", "test")},
            }
            for fold in fold_list
        ],
        notes=notes,
        how=_in_words(plan, len(candidates)),
        duration_s=time.monotonic() - start,
        folder=folder,
    )
    if folder is not None:
        comparison.save(folder)
    return comparison


def _checked_methods(methods: Sequence[str]) -> tuple[Method, ...]:
    given = [methods] if isinstance(methods, str) else list(methods)
    unknown = [name for name in given if name not in METHODS]
    if unknown or not given:
        raise ConfigError(
            f"methods must be some of {', '.join(METHODS)}, not "
            f"{', '.join(map(repr, unknown)) if unknown else 'none'}."
        )
    return tuple(method for method in METHODS if method in given)


def _settings(
    config: Config | None, data: PathLike | pd.DataFrame | Manifest | None
) -> tuple[Config, pd.DataFrame | Manifest | None]:
    """The settings, checked, with what ``data`` says of them; and the table, if it is one."""
    settings = copy.deepcopy(config) if config is not None else Config()
    defaults = ModelConfig()
    for name in _DECIDED_HERE:
        setattr(settings.model, name, getattr(defaults, name))
    settings.model.mode = "head"
    if settings.data.folds is None:
        # Test clips are the folds all the same; of the shares, only validation's has a say.
        settings.data.train_split, settings.data.test_split = 1.0 - settings.data.val_split, 0.0
    if isinstance(data, str | os.PathLike):
        if Path(data).is_dir():
            settings.data.data_dir = os.fspath(data)
            settings.data.metadata_file = None
        else:
            settings.data.metadata_file = os.fspath(data)
        data = None
    settings.validate()
    return settings, data


def _device(settings: Config) -> torch.device:
    try:
        return resolve_device(settings.training.device)
    except ValueError as error:
        raise ConfigError(f"training.device: {error}") from error


def _check_monitor(settings: Config, task: Task) -> None:
    known = [f"val_{name}" for name in summary_names(task)]
    if settings.training.monitor_metric not in (None, *known):
        raise ConfigError(
            f"training.monitor_metric must be one of {', '.join(known)}, "
            f"not {settings.training.monitor_metric!r}."
        )


def _writable(output: PathLike) -> Path:
    """The folder for the files, made now: not after hours of work."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output must be a folder, and {folder} is a file. Name another place.")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"Nothing can be written to the folder {folder}. Name another place.")
    return folder


def _folds(manifest: Manifest, settings: Config, folds: int | str | None) -> list[FoldSplit]:
    wanted = settings.data.folds if folds is None else folds
    if wanted == "official":
        if "fold" not in manifest.table.columns:
            raise DatasetError(
                f"There are no official folds: the table has no column {settings.data.fold_column!r}. Name it "
                "with data.fold_column, or say how many folds to make."
            )
        wanted = None
    return fold_splits(
        manifest,
        wanted,  # type: ignore[arg-type]  # other texts are refused there
        val_split=settings.data.val_split,
        seed=settings.seed,
    )


def _in_words(plan: Plan, num_models: int) -> str:
    manifest = plan.manifest
    how = plan.folds[0].splits.how
    found = re.search(r"\(1 of \d+; (.*?)\)", how)
    kind = how if found is None else found[1]
    if kind == "official folds":
        kind = f"{len(plan.folds)} {kind}"
    return (
        f"{num_models} model{'' if num_models == 1 else 's'}, {_listed(plan.methods)}, on "
        f"{len(plan.tested)} clips of {manifest.num_classes} classes: each clip was scored once by what was "
        f"fitted without its fold ({kind}), the same folds for all."
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; NaN as ``None``."""
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in table.to_dict("records")
    ]


def _with_method(row: "pd.Series[Any]") -> str:
    return f"{row['model']} ({row['method']})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _span(low: float, high: float, sign: str = "") -> str:
    return "-" if math.isnan(low) else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _spread(mean: float, std: float) -> str:
    return _number(mean) if math.isnan(std) else f"{mean:.3f} +- {std:.3f}"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
