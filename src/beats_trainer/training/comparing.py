"""Probe models on the same folds, and compare what comes out clip by clip.

Plan, Candidate -> [embed once -> per fold: knn, linear, attentive] -> ProbeResult -> figures, differences

Shapes in this file: N clips of the table, M of them tested in some fold, C classes, R resamples.
"""

import copy
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from beats_trainer.audio import probe_audio
from beats_trainer.checkpoints import BEATsModel
from beats_trainer.config import Config
from beats_trainer.datasets import FoldSplit, Manifest, Task, targets_of
from beats_trainer.datasets.stratify import groups_of
from beats_trainer.model.precision import resolve_precision
from beats_trainer.presets import Mode
from beats_trainer.reports import measure, resample_metrics
from beats_trainer.training.attentive import TokenCache, TokenFeatures, estimate_token_bytes
from beats_trainer.training.build import build_classifier
from beats_trainer.training.candidates import Candidate
from beats_trainer.training.embedded import EmbeddedSplit, clips_of, embed_tables
from beats_trainer.training.probes import METHODS, Method, probe_attentive, probe_knn, probe_linear

__all__ = [
    "BESIDE",
    "HEADLINE",
    "Plan",
    "ProbeResult",
    "figures_of",
    "predictions_of",
    "probe_model",
]

HEADLINE: dict[Task, str] = {"single": "accuracy", "multi": "map"}
"""The metric by which models are ranked."""
BESIDE: dict[Task, tuple[str, ...]] = {
    "single": ("balanced_accuracy", "f1"),
    "multi": ("roc_auc", "f1"),
}
"""Metrics that stand beside it."""

_NUM_RESAMPLES = 2000
_ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Plan:
    """What is the same for all models.

    Attributes:
        manifest: The clips.
        folds: How they are divided.
        settings: Of the data and of what is fitted.
        device: Where to compute.
        methods: What to fit.
        notes: Takes what the reader has to know.
        targets: Of all clips, shape ``(N,)`` or ``(N, C)``.
        fold_of_clip: In which fold a clip is tested, shape ``(N,)``; -1 in none.
    """

    manifest: Manifest
    folds: list[FoldSplit]
    settings: Config
    device: torch.device
    methods: tuple[Method, ...]
    notes: list[str]
    targets: NDArray[Any] = field(init=False)
    fold_of_clip: NDArray[np.int64] = field(init=False)

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
        """The metric by which models are ranked."""
        return HEADLINE[self.manifest.task]

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
class ProbeResult:
    """The scores of every tested clip by one model and method.

    Attributes:
        model: Its name.
        method: What was fitted on it.
        probabilities: Shape ``(N, C)``; NaN for clips that no fold tests.
    """

    model: str
    method: Method
    probabilities: NDArray[np.float64]


def probe_model(
    candidate: Candidate, plan: Plan, bar: "tqdm[Any]", progress: bool | None
) -> tuple[dict[str, Any], list[ProbeResult]]:
    """Embed all clips with a model, and score each by what is fitted without its fold.

    Args:
        candidate: The model.
        plan: Clips, folds and settings.
        bar: Is moved on by one for each method and fold.
        progress: Show a bar of its own while clips are encoded; ``None`` shows one on a terminal.

    Returns:
        What is known of the model (``embedding_dim``, ``seconds`` and more), and one result per method.

    Raises:
        AudioError: If a recording cannot be read; names the file and the reason.
    """
    manifest, labels, task = plan.manifest, plan.manifest.labels, plan.manifest.task
    config = plan.config("head")
    encoder = BEATsModel.from_pretrained(candidate.source)
    classifier = build_classifier(encoder, config, labels, task).to(plan.device)
    embed_tables(classifier, [manifest.table.iloc[:1]], config, False, task)  # kernels are chosen
    start = time.perf_counter()
    (whole,) = embed_tables(classifier, [manifest.table], config, progress, task)
    seconds = time.perf_counter() - start
    fact = {
        "model": candidate.name,
        "embedding_dim": classifier.head.embedding_dim,
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
            results.append(ProbeResult(candidate.name, method, scores))
    return fact, results


def _score_attentive(
    candidate: Candidate,
    encoder: BEATsModel,
    plan: Plan,
    bar: "tqdm[Any]",
    progress: bool | None,
) -> NDArray[np.float64] | None:
    """The scores of attentive pooling; ``None``, with a note, if the tokens of all clips do not fit."""
    config = plan.config("attentive")
    manifest = plan.manifest
    classifier = build_classifier(encoder, config, manifest.labels, manifest.task)
    cached = TokenCache(classifier, config, manifest.task).split(
        classifier, [manifest.table], progress
    )
    if cached is None:
        clips = clips_of(manifest.table)
        needed_gb = estimate_token_bytes(clips, encoder.architecture) / 1e9
        note = (
            f"{candidate.name} was compared without 'attentive': the tokens of {len(clips)} clips need "
            f"{needed_gb:.2g} GB of memory, more than model.cache_gb={config.model.cache_gb:g}. Raise it where "
            "the machine has as much, or compare on fewer clips."
        )
        warnings.warn(note, UserWarning, stacklevel=4)
        plan.notes.append(note)
        bar.update(len(plan.folds))
        return None
    (tokens,) = cached
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


def _empty_scores(plan: Plan) -> NDArray[np.float64]:
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
    plan: Plan, rows: Sequence[int] | NDArray[np.int64], scores: NDArray[np.float64], prefix: str
) -> dict[str, float]:
    """The single numbers of some clips; none where nothing is known of them."""
    targets = plan.targets[rows]
    if targets.ndim == 2 and np.isnan(targets).all():
        return {}
    manifest = plan.manifest
    return measure(manifest.task, targets, scores, manifest.labels).summary(prefix)


def figures_of(results: Sequence[ProbeResult], plan: Plan) -> pd.DataFrame:
    """Put the figures of all models and methods into one table, and say how far each is behind the best.

    Args:
        results: All of them.
        plan: Clips and folds.

    Returns:
        The columns of ``Comparison.table`` up to ``is_tied``, the best row first.
    """
    manifest, metric, tested = plan.manifest, plan.metric, plan.tested
    groups = plan.groups()
    rows: list[dict[str, Any]] = []
    figures: list[float] = []
    resampled: list[NDArray[np.float64]] = []
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
                **{name: pooled.get(f"all_{name}", math.nan) for name in BESIDE[manifest.task]},
            }
        )
        figures.append(rows[-1][metric])
        resampled.append(drawn)
    # Equal figures: the simpler method first, then the model that was named first.
    order = sorted(
        range(len(rows)),
        key=lambda n: (
            -math.inf if math.isnan(figures[n]) else figures[n],
            -METHODS.index(results[n].method),
            -n,
        ),
        reverse=True,
    )
    best = order[0]
    for row, figure, drawn in zip(rows, figures, resampled, strict=True):
        low, high = _ends(resampled[best] - drawn)  # the same draws: paired
        row["difference"] = figures[best] - figure
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


def predictions_of(result: ProbeResult, plan: Plan) -> pd.DataFrame:
    """List what was predicted for each tested clip; the columns of ``Comparison.predictions``."""
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
