"""`compare_models`: labelled sound and several checkpoints in, the answer to "which is best for my sound?" out.

clips -> folds, the same for all -> per model [embed every clip once -> per fold: knn, linear, attentive]
      -> scores of every clip -> table, paired differences, picture, page

Every clip is scored by what was fitted without its fold; the epoch is chosen on validation clips that are held
out of the training folds, never on the test fold. The encoders stay as they are.

Shapes in this file: N clips of the table, M of them tested in some fold, C classes, R resamples.
"""

import copy
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from beats_trainer.atomic import written_whole
from beats_trainer.audio import probe_audio
from beats_trainer.checkpoints import BEATsModel, list_available_models
from beats_trainer.checkpoints.sources import locate
from beats_trainer.config import Config, ModelConfig
from beats_trainer.datasets import (
    FoldSplit,
    Manifest,
    Task,
    fold_splits,
    targets_of,
)
from beats_trainer.datasets.stratify import groups_of
from beats_trainer.errors import BEATsTrainerError, CheckpointError, ConfigError, DatasetError
from beats_trainer.model.precision import resolve_device, resolve_precision
from beats_trainer.presets import Mode
from beats_trainer.reports import measure, resample_metrics, summary_names
from beats_trainer.reports.comparison import ScoreDot, comparison_page, score_chart, standalone_svg
from beats_trainer.reports.environment import hardware, versions
from beats_trainer.training.attentive import TokenFeatures, cache_tokens, estimate_token_bytes
from beats_trainer.training.build import build_classifier
from beats_trainer.training.embedded import (
    EmbeddedSplit,
    clips_of,
    embed_tables,
    encoding_batch_size,
)
from beats_trainer.training.manifest import read_manifest
from beats_trainer.training.probes import (
    METHODS,
    Method,
    probe_attentive,
    probe_knn,
    probe_linear,
)
from beats_trainer.training.run_folder import RunFolder

__all__ = ["METHODS", "Comparison", "Method", "compare_models"]

PathLike: TypeAlias = str | os.PathLike[str]

log = logging.getLogger(__name__)

_HEADLINE: dict[Task, str] = {"single": "accuracy", "multi": "map"}
_BESIDE: dict[Task, tuple[str, ...]] = {
    "single": ("balanced_accuracy", "f1"),
    "multi": ("roc_auc", "f1"),
}
_WORDS = {
    "accuracy": "accuracy",
    "map": "mAP",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "macro ROC AUC",
    "f1": "macro F1",
}
_NUM_RESAMPLES = 2000
_ENDS = (0.025, 0.975)
_DECIDED_HERE = (
    "mode",
    "model_path",
    "train_from_scratch",
    "freeze_backbone",
    "fine_tune_backbone",
)
# Names of folders that say nothing of what is in them.
_EMPTY_NAME = re.compile(r"model|version_\d+|fold_.*")


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
        beside = _BESIDE[self.task]
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
                **{_WORDS[name]: row[name] for name in _BESIDE[self.task]},
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
    candidates = _candidates(models)
    device = _device(settings)
    folder = None if output is None else _writable(output)
    manifest = read_manifest(settings, table)
    fold_list = _folds(manifest, settings, folds)
    notes = _check_models(candidates, manifest)
    plan = _Plan(manifest, fold_list, settings, device, chosen, notes)
    results: list[_Result] = []
    facts: list[dict[str, Any]] = []
    with tqdm(
        total=len(candidates) * len(chosen) * len(fold_list),
        desc="Comparing",
        unit="fit",
        disable=None if progress is None else not progress,
    ) as bar:
        for candidate in candidates:
            fact, some = _probe_model(candidate, plan, bar, progress)
            facts.append(fact)
            results += some
    if not results:
        raise BEATsTrainerError(f"There is nothing to compare. {' '.join(notes)}")
    comparison = Comparison(
        table=_table(results, plan).merge(pd.DataFrame(facts), on="model"),
        models=pd.DataFrame(facts),
        predictions=pd.concat([_predictions(r, plan) for r in results], ignore_index=True),
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


@dataclass(frozen=True)
class _Candidate:
    """A model to compare: what it is called in the table, and what was asked for."""

    name: str
    source: PathLike


@dataclass(frozen=True)
class _Plan:
    """What is the same for all models."""

    manifest: Manifest
    folds: list[FoldSplit]
    settings: Config
    device: torch.device
    methods: tuple[Method, ...]
    notes: list[str]
    targets: NDArray[Any] = field(init=False)
    """Of all clips of the table, shape ``(N,)`` or ``(N, C)``."""
    fold_of_clip: NDArray[np.int64] = field(init=False)
    """In which fold a clip is tested, shape ``(N,)``; -1 in none."""

    def __post_init__(self) -> None:
        manifest = self.manifest
        targets = targets_of(manifest.table, manifest.num_classes, manifest.task)
        fold_of_clip = np.full(len(manifest), -1)
        for number, fold in enumerate(self.folds):
            fold_of_clip[fold.splits.test.index] = number
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "fold_of_clip", fold_of_clip)

    @property
    def metric(self) -> str:
        return _HEADLINE[self.manifest.task]

    @property
    def tested(self) -> NDArray[np.int64]:
        """Places of the clips that some fold tests, shape ``(M,)``."""
        return np.flatnonzero(self.fold_of_clip >= 0)

    def groups(self) -> NDArray[np.int64]:
        """The group of each tested clip, shape ``(M,)``: recording, site, or the clip for itself."""
        manifest = self.manifest
        return groups_of(manifest.table, manifest.num_classes, manifest.task).of_clip[self.tested]

    def config(self, mode: Mode) -> Config:
        """The settings of what is fitted."""
        config = copy.deepcopy(self.settings)
        config.model.mode = mode
        return config.resolved(self.manifest.task)

    def rows(self, fold: FoldSplit, config: Config) -> tuple[list[int], list[int], list[int]]:
        """Places of a fold's training, validation and test clips.

        Validation clips on which the epoch cannot be chosen, since the metric is undefined there, are none.
        """
        train, val, test = (
            [int(place) for place in part.index]
            for part in (fold.splits.train, fold.splits.val, fold.splits.test)
        )
        if val and config.training.monitor_metric not in _metrics_of(
            self, val, np.full((len(val), self.manifest.num_classes), 0.5), "val"
        ):
            note = (
                f"Fold {fold.name}: {config.training.monitor_metric} is undefined on its {len(val)} "
                "validation clips, so that the last epoch was kept."
            )
            if note not in self.notes:
                self.notes.append(note)
            val = []
        return train, val, test


@dataclass(frozen=True)
class _Result:
    """The scores of every tested clip by one model and method."""

    model: str
    method: Method
    probabilities: NDArray[np.float64]
    """Shape ``(N, C)``; NaN for clips that no fold tests."""


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
    known = None if settings.training.monitor_metric is None else settings.training.monitor_metric
    if known is not None and known.removeprefix("val_") not in {
        *summary_names("single"),
        *summary_names("multi"),
    }:
        raise ConfigError(f"training.monitor_metric {known!r} is not measured.")
    try:
        return resolve_device(settings.training.device)
    except ValueError as error:
        raise ConfigError(f"training.device: {error}") from error


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


def _candidates(models: Sequence[PathLike]) -> list[_Candidate]:
    """Give each model a short name that no other one has."""
    given = [models] if isinstance(models, str | os.PathLike) else list(models)
    if not given:
        raise ConfigError("There is no model to compare: name at least one checkpoint.")
    known = list_available_models()
    sources: list[PathLike] = []
    for source in given:
        path = Path(source).expanduser()
        is_run = source not in known and (path / "model" / "config.json").is_file()
        sources.append(path / "model" if is_run else source)
    places = [_place(source, known) for source in sources]
    twice = [str(given[n]) for n, place in enumerate(places) if place in places[:n]]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice among the models: leave one out.")
    return [
        _Candidate(_short_name(place, places), source)
        for place, source in zip(places, sources, strict=True)
    ]


def _place(source: PathLike, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of a path on this machine; a name as it is."""
    path = Path(source).expanduser()
    if source in known or not path.exists():
        return (str(source),)
    parts = path.resolve().parts
    return parts[:-1] if parts[-1] == "model" else parts  # every run's model folder has this name


def _short_name(own: tuple[str, ...], all_parts: Sequence[tuple[str, ...]]) -> str:
    """The end of a path that no other one shares, long enough to say something."""
    for length in range(1, len(own) + 1):
        end = own[-length:]
        if _EMPTY_NAME.fullmatch(end[0]) and length < len(own):
            continue
        if sum(other[-length:] == end for other in all_parts) == 1:
            return str(Path(*end))
    return str(Path(*own))


def _check_models(candidates: Sequence[_Candidate], manifest: Manifest) -> list[str]:
    """Find and load every model once, so that none fails after hours; what cannot be downloaded comes first.

    Returns:
        Notes on models whose encoder was trained on some of the clips.
    """
    known = list_available_models()
    for candidate in sorted(candidates, key=lambda one: one.source in known):
        try:
            locate(candidate.source)
        except CheckpointError as error:
            raise _naming(candidate, error) from error
    notes = []
    for candidate in candidates:
        try:
            encoder = BEATsModel.from_pretrained(candidate.source)
        except CheckpointError as error:
            raise _naming(candidate, error) from error
        note = _note_of_training(candidate, encoder.provenance, manifest)
        if note is not None:
            warnings.warn(note, UserWarning, stacklevel=3)
            notes.append(note)
    return notes


def _naming(candidate: _Candidate, error: CheckpointError) -> CheckpointError:
    """The error itself, if it names the model; else one that does."""
    if str(candidate.source) in str(error) or candidate.name in str(error):
        return error
    return CheckpointError(f"The model {candidate.source} cannot be compared: {error}")


def _note_of_training(
    candidate: _Candidate, provenance: Mapping[str, Any], manifest: Manifest
) -> str | None:
    """Say so if a model's encoder was trained by this library, perhaps on the very clips of the comparison."""
    if provenance.get("mode") not in ("lora", "full", "scratch"):
        return None
    clips = Path(candidate.source).expanduser().parent / "splits.csv"
    if not clips.is_file():
        return (
            f"The encoder of {candidate.name} was trained on {provenance.get('clips', {}).get('train', '?')} "
            "labelled clips. If some of them are among these, its figures are too good."
        )
    table = pd.read_csv(clips, dtype=str, keep_default_na=False)
    heard = set(table.loc[table["split"].isin(["train", "val"]), "path"])
    num_heard = int(manifest.table["path"].isin(heard).sum())
    if not num_heard:
        return None
    return (
        f"The encoder of {candidate.name} was trained with {num_heard} of these {len(manifest)} clips and "
        "their labels: its figures are too good, and say nothing of new sound. Compare it on other clips."
    )


def _probe_model(
    candidate: _Candidate, plan: _Plan, bar: "tqdm[Any]", progress: bool | None
) -> tuple[dict[str, Any], list[_Result]]:
    """Embed all clips with a model, and score each by what is fitted without its fold."""
    manifest, labels, task = plan.manifest, plan.manifest.labels, plan.manifest.task
    config = plan.config("head")
    encoder = BEATsModel.from_pretrained(candidate.source)
    classifier = build_classifier(encoder, config, labels, task).to(plan.device)
    log.info("%s: embedding %d clips.", candidate.name, len(manifest))
    embed_tables(classifier, [manifest.table.iloc[:1]], config, False, task)  # kernels are chosen
    start = time.perf_counter()
    (whole,) = embed_tables(classifier, [manifest.table], config, progress, task)
    seconds = time.perf_counter() - start
    fact = {
        "model": candidate.name,
        "embedding_dim": encoder.architecture.encoder_embed_dim,
        "num_parameters": sum(weight.numel() for weight in encoder.parameters()),
        "seconds": seconds,
        "audio_hours_per_minute": _duration_s(manifest) / 60 / seconds,
        "precision": str(
            resolve_precision(config.training.precision_name, plan.device)
        ).removeprefix("torch."),
    }
    results = []
    for method in plan.methods:
        if method == "attentive":
            scores = _score_attentive(candidate, encoder, plan, bar, progress)
        else:
            scores = _empty_scores(plan)
            for fold in plan.folds:
                train, val, test = (
                    EmbeddedSplit(whole.embeddings[rows], plan.targets[rows])
                    for rows in plan.rows(fold, config)
                )
                scores[fold.splits.test.index] = (
                    probe_knn(train, test, len(labels))
                    if method == "knn"
                    else probe_linear(classifier, train, val if len(val) else None, test, config)
                )
                bar.update()
        if scores is not None:
            results.append(_Result(candidate.name, method, scores))
    return fact, results


def _score_attentive(
    candidate: _Candidate,
    encoder: BEATsModel,
    plan: _Plan,
    bar: "tqdm[Any]",
    progress: bool | None,
) -> NDArray[np.float64] | None:
    """The scores of attentive pooling; ``None``, with a note, if the tokens of all clips do not fit."""
    config = plan.config("attentive")
    manifest = plan.manifest
    clips = clips_of(manifest.table)
    cached = cache_tokens(
        encoder,
        [clips],
        [plan.targets],
        budget_bytes=round(config.model.cache_gb * 1e9),
        batch_size=encoding_batch_size(config),
        precision=config.training.precision_name,
        num_threads=max(1, config.data.num_workers),
        progress=progress,
    )
    if cached is None:
        needed_gb = estimate_token_bytes(clips, encoder.architecture) / 1e9
        note = (
            f"{candidate.name} was compared without 'attentive': the tokens of {len(clips)} clips need "
            f"{needed_gb:.1f} GB of memory, more than model.cache_gb={config.model.cache_gb:g}. Raise it where "
            "the machine has as much, or compare on fewer clips."
        )
        warnings.warn(note, UserWarning, stacklevel=4)
        plan.notes.append(note)
        bar.update(len(plan.folds))
        return None
    (tokens,) = cached
    classifier = build_classifier(encoder, config, manifest.labels, manifest.task)
    scores = _empty_scores(plan)
    for fold in plan.folds:
        train, val, test = (
            TokenFeatures([tokens.tokens[row] for row in rows], plan.targets[rows])
            for rows in plan.rows(fold, config)
        )
        scores[fold.splits.test.index] = probe_attentive(
            classifier, train, val if len(val) else None, test, config, plan.device
        )
        bar.update()
    return scores


def _empty_scores(plan: _Plan) -> NDArray[np.float64]:
    return np.full((len(plan.manifest), plan.manifest.num_classes), np.nan)


def _duration_s(manifest: Manifest) -> float:
    """Seconds of sound in all clips, from the files' headers."""
    whole = {clip.file for clip in clips_of(manifest.table) if clip.duration_s is None}
    lengths = {file: probe_audio(file).duration_s for file in whole}
    return float(
        sum(
            lengths[clip.file] - clip.start_s if clip.duration_s is None else clip.duration_s
            for clip in clips_of(manifest.table)
        )
    )


def _metrics_of(
    plan: _Plan, rows: Sequence[int] | NDArray[np.int64], scores: NDArray[np.float64], prefix: str
) -> dict[str, float]:
    """The single numbers of some clips; none where nothing is known of them."""
    targets = plan.targets[rows]
    if targets.ndim == 2 and np.isnan(targets).all():
        return {}
    manifest = plan.manifest
    return measure(manifest.task, targets, scores, manifest.labels).summary(prefix)


def _table(results: Sequence[_Result], plan: _Plan) -> pd.DataFrame:
    """The figures of each model and method, the best first, and how far each is behind it."""
    manifest, metric, tested = plan.manifest, plan.metric, plan.tested
    groups = plan.groups()
    rows, resampled = [], []
    for result in results:
        pooled = _metrics_of(plan, tested, result.probabilities[tested], "all")
        per_fold = []
        for fold in plan.folds:
            places = fold.splits.test.index.to_numpy()
            some = _metrics_of(plan, places, result.probabilities[places], "all")
            per_fold.append(some.get(f"all_{metric}", math.nan))
        drawn = resample_metrics(
            manifest.task,
            plan.targets[tested],
            result.probabilities[tested],
            manifest.labels,
            groups=groups,
            num_resamples=_NUM_RESAMPLES,
            seed=plan.settings.seed,
        ).get(metric, np.empty(0))
        low, high = _ends(drawn)
        defined = [value for value in per_fold if not math.isnan(value)]
        rows.append(
            {
                "model": result.model,
                "method": result.method,
                metric: pooled.get(f"all_{metric}", math.nan),
                f"{metric}_mean": float(np.mean(defined)) if defined else math.nan,
                f"{metric}_std": float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan,
                "low": low,
                "high": high,
                **{name: pooled.get(f"all_{name}", math.nan) for name in _BESIDE[manifest.task]},
            }
        )
        resampled.append(drawn)
    # Equal figures: the simpler method first, then the model that was named first.
    order = sorted(
        range(len(rows)),
        key=lambda n: (
            -np.nan_to_num(rows[n][metric], nan=-1.0),
            METHODS.index(results[n].method),
            n,
        ),
    )
    best = order[0]
    for row, drawn in zip(rows, resampled, strict=True):
        low, high = _ends(resampled[best] - drawn)  # the same draws: paired
        row["difference"] = rows[best][metric] - row[metric]
        row["difference_low"], row["difference_high"] = low, high
        row["is_tied"] = not low > 0  # without an interval, nothing tells them apart
    return pd.DataFrame([rows[n] for n in order])


def _ends(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the resamples; NaN where there are none."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, _ENDS)
    return float(low), float(high)


def _predictions(result: _Result, plan: _Plan) -> pd.DataFrame:
    """What was predicted for each tested clip."""
    manifest, tested = plan.manifest, plan.tested
    own = ("filename", "path", "start_time", "end_time", "group", "category")
    columns = [name for name in own if name in manifest.table.columns]
    table = manifest.table.iloc[tested][columns].reset_index(drop=True)
    scores = result.probabilities[tested]
    if manifest.task == "single":
        best = scores.argmax(axis=1)
        table["predicted"] = [manifest.labels[label] for label in best]
        table["score"] = scores[np.arange(len(best)), best]
        table["is_right"] = best == plan.targets[tested]
    else:
        table["predicted"] = [
            ";".join(
                label for label, score in zip(manifest.labels, row, strict=True) if score >= 0.5
            )
            for row in scores
        ]
    names = [plan.folds[number].name for number in plan.fold_of_clip[tested]]
    for place, (name, values) in enumerate(
        (("model", result.model), ("method", result.method), ("fold", names))
    ):
        table.insert(place, name, values)
    return table


def _in_words(plan: _Plan, num_models: int) -> str:
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
