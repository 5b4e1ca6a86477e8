"""One training from a fresh classifier to a run folder: fit, calibrate, measure, write.

classifier, splits, config -> [fit by mode -> score -> calibrate -> measure -> files] -> Outcome

What `BEATsTrainer.train` does once, cross-validation does once per fold.

Shapes in this file: N clips, C classes.
"""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from beats_trainer.checkpoints import BEATsForAudioClassification, BEATsModel
from beats_trainer.config import Config
from beats_trainer.datasets import Splits, Task
from beats_trainer.loading import ClipChange
from beats_trainer.model.classifier import apply_activation
from beats_trainer.model.precision import resolve_precision
from beats_trainer.presets import PRESETS
from beats_trainer.reports import (
    Interval,
    Metrics,
    Temperature,
    bootstrap_intervals,
    fit_temperature,
    fit_thresholds,
    measure,
)
from beats_trainer.training.attentive import TokenCache, TokenFeatures, fit_attentive_of
from beats_trainer.training.cached_head import FittedHead, embedding_logits, fit_head_of
from beats_trainer.training.embedded import EmbeddedSplit, EmbeddingCache
from beats_trainer.training.epochs import Fitted
from beats_trainer.training.loggers import log_history
from beats_trainer.training.run_folder import SPLIT_NAMES, RunFolder

if TYPE_CHECKING:
    from beats_trainer.training.fit import FittedNetwork

__all__ = [
    "Caches",
    "Outcome",
    "ScoredSplit",
    "groups_of",
    "score_split",
    "train_once",
    "trained_window_s",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredSplit:
    """The clips of a split with a model's scores.

    Attributes:
        table: Rows of the manifest, N of them.
        targets: Class ids ``(N,)``, or ``(N, C)`` with NaN for unknown.
        probabilities: Scores, shape ``(N, C)``, float64.
        metrics: All of them.
        intervals: 95 % intervals of the single numbers, by resampling clips, or whole groups where clips
            belong to groups.
    """

    table: pd.DataFrame
    targets: NDArray[Any]
    probabilities: NDArray[np.float64]
    metrics: Metrics
    intervals: dict[str, Interval]


@dataclass
class Outcome:
    """What one training gave.

    Attributes:
        classifier: With the kept weights, calibrated.
        splits: What it was trained and measured on.
        fitted: History and kept epoch.
        scored: ``"val"`` and ``"test"``, where there are such clips.
        uncalibrated: Scores of the validation clips before calibration; ``None`` without calibration.
        temperature: What the logits were divided by; ``None`` if they were not.
        duration_s: Seconds it took.
    """

    classifier: BEATsForAudioClassification
    splits: Splits
    fitted: "Fitted | FittedNetwork"
    scored: dict[str, ScoredSplit]
    uncalibrated: NDArray[np.float64] | None = None
    temperature: Temperature | None = None
    duration_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def summaries(self) -> dict[str, dict[str, float]]:
        """The single numbers of each measured split, as ``val_accuracy`` and so on."""
        return {name: scored.metrics.summary(name) for name, scored in self.scored.items()}


@dataclass(frozen=True)
class Caches:
    """What a frozen encoder gives for clips, made once for all folds.

    Attributes:
        embeddings: For mode ``head``.
        tokens: For mode ``attentive``.
    """

    embeddings: EmbeddingCache
    tokens: TokenCache

    @classmethod
    def for_classifier(
        cls, classifier: BEATsForAudioClassification, config: Config, task: Task
    ) -> "Caches":
        """Empty ones, for a classifier's encoder."""
        return cls(EmbeddingCache(classifier, config, task), TokenCache(classifier, config, task))

    def fill(
        self,
        classifier: BEATsForAudioClassification,
        splits: Splits,
        config: Config,
        *,
        progress: bool | None = None,
        augment: ClipChange | None = None,
    ) -> None:
        """Encode all clips at once, before the folds ask for theirs.

        Which clips share a batch changes their last digits. A cross-validation that is resumed with its third
        fold must not batch them otherwise than one that began with its first.

        Args:
            classifier: With the encoder.
            splits: All clips, in any division that is the same whenever this is called.
            config: Which of the caches the mode uses; resolved.
            progress: Show a bar; ``None`` shows one on a terminal.
            augment: As for `train_once`.
        """
        tables = [table for name in SPLIT_NAMES if len(table := getattr(splits, name))]
        if config.model.mode == "head":
            self.embeddings.split(classifier, tables, progress)
        elif config.model.mode == "attentive" and not _hears_anew(config, augment):
            self.tokens.split(classifier, tables, progress)


def train_once(
    classifier: BEATsForAudioClassification,
    splits: Splits,
    config: Config,
    run: RunFolder,
    device: torch.device,
    *,
    caches: "Caches | None" = None,
    resume: bool = False,
    progress: bool | None = None,
    augment: ClipChange | None = None,
) -> Outcome:
    """Train, choose the epoch, calibrate on validation, measure, and write everything into the run's folder.

    Args:
        classifier: A fresh head on an encoder; is trained in place.
        splits: The clips.
        config: Every setting; resolved.
        run: Its folder; takes history, metrics, predictions and the model.
        device: Where to compute.
        caches: What a frozen encoder has given for clips before, for another fold; ``None`` starts anew.
        resume: Go on from the run's last checkpoint, where there is one.
        progress: Show progress bars; ``None`` shows them on a terminal.
        augment: Changes training waveforms besides ``config.augmentation``.

    Raises:
        AudioError: If a recording cannot be read.
        BEATsTrainerError: If the loss stops being finite.
    """
    start = time.monotonic()
    run.write_plan(config, splits)
    run.remove_leftovers()
    classifier.to(device)
    classifier.window_s = trained_window_s(splits.train, config)
    caches = caches or Caches.for_classifier(classifier, config, splits.task)
    mode = config.model.mode
    fitted: Fitted | FittedNetwork
    tokens = None
    if mode == "attentive" and not _hears_anew(config, augment):
        tokens = _read_tokens(classifier, splits, caches.tokens, progress)
    if mode == "head":
        embedded = _embed(classifier, splits, SPLIT_NAMES, caches.embeddings, progress)
        fitted = _fit_head(classifier, embedded, config, progress)
        log_history(fitted.history, config, run)
    elif tokens is not None:
        fitted, embedded = _fit_attentive(classifier, tokens, config, progress)
        log_history(fitted.history, config, run)
    else:
        fitted = _fit_network(classifier, splits, config, run, device, resume, progress, augment)
        # As the model will be used: whole recordings, through the network that training left.
        own = EmbeddingCache(classifier, config, splits.task)
        embedded = _embed(classifier.to(device), splits, ("val", "test"), own, progress)
    outcome = Outcome(classifier.eval(), splits, fitted, {})
    if config.training.calibrate and "val" in embedded:
        _calibrate(outcome, embedded["val"], config)
    for name in ("val", "test"):
        if name in embedded:
            outcome.scored[name] = score_split(
                classifier, embedded[name], getattr(splits, name), config.seed
            )
    outcome.duration_s = time.monotonic() - start
    classifier.provenance = _describe(outcome, config, device)
    run.write_history(fitted.history)
    run.write_predictions(outcome.scored, splits)
    classifier.save_pretrained(run.model, metrics=classifier.provenance["metrics"])
    run.write_metrics(outcome.scored)  # last: by now all that it speaks of is on disk
    return outcome


def score_split(
    classifier: BEATsForAudioClassification,
    split: EmbeddedSplit,
    table: pd.DataFrame,
    seed: int = 0,
    *,
    with_intervals: bool = True,
) -> ScoredSplit:
    """Measure a classifier on embedded clips.

    Args:
        classifier: Its head, activation, labels and thresholds are used.
        split: The clips as the head sees them, at least one.
        table: Their rows.
        seed: Of the resampling for the intervals.
        with_intervals: Whether to resample at all.
    """
    logits = embedding_logits(classifier.head, split)
    probabilities = _probabilities(logits, classifier)
    task: Task = "multi" if split.targets.ndim == 2 else "single"
    labels, thresholds = classifier.labels, classifier.thresholds
    metrics = measure(task, split.targets, probabilities, labels, thresholds)
    intervals: dict[str, Interval] = {}
    if with_intervals:
        intervals = bootstrap_intervals(
            task,
            split.targets,
            probabilities,
            labels,
            groups=groups_of(table),
            seed=seed,
            thresholds=thresholds,
        )
    return ScoredSplit(table, split.targets, probabilities, metrics, intervals)


def groups_of(table: pd.DataFrame) -> NDArray[Any] | None:
    """What belongs together in a table of clips, shape ``(N,)``; ``None`` where nothing is known.

    A clip whose group is blank belongs with the other parts of its file.
    """
    if "group" not in table.columns or table["group"].isna().all():
        return None
    known = table["group"].where(table["group"].notna(), table["path"])
    return known.astype(str).to_numpy()


def _embed(
    classifier: BEATsForAudioClassification,
    splits: Splits,
    names: Sequence[str],
    cache: EmbeddingCache,
    progress: bool | None,
) -> dict[str, EmbeddedSplit]:
    """The clips of several splits as the head sees them; a split without clips is left out."""
    present = [name for name in names if len(getattr(splits, name))]
    parts = cache.split(classifier, [getattr(splits, name) for name in present], progress)
    return dict(zip(present, parts, strict=True))


def _fit_head(
    classifier: BEATsForAudioClassification,
    embedded: dict[str, EmbeddedSplit],
    config: Config,
    progress: bool | None,
) -> FittedHead:
    fitted = fit_head_of(
        classifier, embedded["train"], embedded.get("val"), config, progress=progress
    )
    classifier.head.load_state_dict(fitted.head.state_dict())
    return fitted


def trained_window_s(table: pd.DataFrame, config: Config) -> float | None:
    """Seconds of what most training clips show the network at once; ``None`` if that is not known.

    Windows of annotated recordings are of one length. Whole files are not opened here to ask them for theirs.
    """
    # A head on a frozen network is fitted on whole clips.
    known = [] if config.model.mode == "head" else [config.data.max_duration_s]
    if "end_time" in table.columns:
        lengths = (table["end_time"] - table["start_time"]).round(3).to_numpy(np.float64)
        different, counts = np.unique(lengths[np.isfinite(lengths)], return_counts=True)
        known += different[2 * counts > len(lengths)].tolist()
    return min((seconds for seconds in known if seconds is not None), default=None)


def _fit_head_first(
    classifier: BEATsForAudioClassification,
    splits: Splits,
    config: Config,
    progress: bool | None,
) -> None:
    """Fit the head as mode ``head`` would by its preset, for what is trained next to start from."""
    probing = copy.deepcopy(config)
    preset = PRESETS["head"]
    for name in (
        "learning_rate",
        "weight_decay",
        "layer_decay",
        "max_epochs",
        "patience",
        "warmup_ratio",
    ):
        setattr(probing.training, name, getattr(preset, name))
    probing.data.batch_size = preset.batch_size
    cache = EmbeddingCache(classifier, config, splits.task, config.data.max_duration_s)
    embedded = _embed(classifier, splits, ("train", "val"), cache, progress)
    _fit_head(classifier, embedded, probing, progress)


def _hears_anew(config: Config, augment: ClipChange | None) -> bool:
    """Whether a frozen network must be run in every epoch, because its clips are not always the same."""
    return (
        config.augmentation.is_on
        or augment is not None
        or config.data.max_duration_s is not None
        or config.training.devices > 1
    )


def _read_tokens(
    classifier: BEATsForAudioClassification,
    splits: Splits,
    cache: TokenCache,
    progress: bool | None,
) -> dict[str, TokenFeatures] | None:
    """The tokens of all clips; ``None`` if they do not fit into memory.

    Test clips count too: over the folds of a cross-validation it is always the same clips that must fit, and
    each of them is encoded once.
    """
    names = [name for name in SPLIT_NAMES if len(getattr(splits, name))]
    parts = cache.split(classifier, [getattr(splits, name) for name in names], progress)
    if parts is None:
        log.info("The frozen network is run in every epoch; model.cache_gb allows for more memory.")
        return None
    return dict(zip(names, parts, strict=True))


def _fit_attentive(
    classifier: BEATsForAudioClassification,
    tokens: dict[str, TokenFeatures],
    config: Config,
    progress: bool | None,
) -> tuple[Fitted, dict[str, EmbeddedSplit]]:
    """Fit learned pooling and head on cached tokens, and pool the clips to be measured with it."""
    fitted = fit_attentive_of(
        classifier, tokens["train"], tokens.get("val"), config, progress=progress
    )
    assert classifier.attentive_pooling is not None
    classifier.head.load_state_dict(fitted.head.state_dict())
    classifier.attentive_pooling.load_state_dict(fitted.pooling.state_dict())
    measured = {name: tokens[name] for name in ("val", "test") if name in tokens}
    return fitted, {name: part.embed(fitted.pooling) for name, part in measured.items()}


def _fit_network(
    classifier: BEATsForAudioClassification,
    splits: Splits,
    config: Config,
    run: RunFolder,
    device: torch.device,
    resume: bool,
    progress: bool | None,
    augment: ClipChange | None,
) -> "FittedNetwork":
    """Fit all that has a gradient, hearing clips in every epoch; adapters are folded in afterwards."""
    from beats_trainer.training.fit import fit_network  # Lightning takes seconds to import

    is_begun = resume and run.last_checkpoint.is_file()
    if config.model.fit_head_first and config.model.mode in ("full", "lora") and not is_begun:
        _fit_head_first(classifier, splits, config, progress)
    if config.model.mode != "lora":
        return fit_network(
            classifier,
            splits,
            config,
            run,
            device,
            resume=resume,
            progress=progress,
            augment=augment,
        )
    from beats_trainer.training.lora import add_lora, merge_lora

    settings = config.model
    add_lora(
        classifier.beats,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=tuple(settings.lora_targets),
        seed=config.seed,
    )
    network = fit_network(
        classifier, splits, config, run, device, resume=resume, progress=progress, augment=augment
    )
    merge_lora(classifier.beats)
    return network


def _calibrate(outcome: Outcome, val: EmbeddedSplit, config: Config) -> None:
    """Fit the scale of the scores and the thresholds on the validation clips, and put both into the model."""
    classifier = outcome.classifier
    task = outcome.splits.task
    logits = embedding_logits(classifier.head, val)
    temperature = None
    if classifier.activation == "softmax" or task == "multi":
        temperature = fit_temperature(logits, val.targets, task)
        if temperature.is_at_bound:
            outcome.notes.append(
                "The scale of the scores was not calibrated: the validation clips "
                f"({len(val)}) are too few, or too well separated, to tell how certain the model may be."
            )
        else:
            outcome.uncalibrated = _probabilities(logits, classifier)
            outcome.temperature = temperature
            classifier.head.absorb_temperature(temperature.value)
            logits = embedding_logits(classifier.head, val)
    classifier.thresholds = fit_thresholds(
        val.targets,
        _probabilities(logits, classifier),
        classifier.labels,
        task,
        target_precision=config.training.target_precision,
    )
    classifier.calibration = {
        "fitted_on": f"{len(val)} validation clips",
        "temperature": None if outcome.temperature is None else outcome.temperature.value,
        "thresholds": "best F1"
        if config.training.target_precision is None
        else f"precision of at least {config.training.target_precision:g}",
    }


def _probabilities(
    logits: NDArray[np.float64], classifier: BEATsForAudioClassification
) -> NDArray[np.float64]:
    # In double, so that the loss of a confident mistake is not cut at float32's precision.
    scores: NDArray[np.float64] = apply_activation(
        torch.from_numpy(logits), classifier.activation
    ).numpy()
    return scores


def _describe(outcome: Outcome, config: Config, device: torch.device) -> dict[str, Any]:
    """How the model was made, for its ``config.json``: plain values, and no paths of this machine."""
    beats = outcome.classifier.beats
    assert isinstance(beats, BEATsModel)
    trained = {
        "head": "the head",
        "attentive": "the head with learned pooling",
        "lora": "low-rank adapters, merged, and the head",
    }.get(str(config.model.mode), "all weights")
    return {
        "started_from": "random weights"
        if config.model.mode == "scratch"
        else dict(beats.provenance),
        "trained": trained,
        "mode": config.model.mode,
        "clips": {name: len(getattr(outcome.splits, name)) for name in SPLIT_NAMES},
        "split": outcome.splits.how,
        "epochs": len(outcome.fitted.history),
        "kept_epoch": outcome.fitted.best_epoch + 1,
        "chosen_by": config.training.monitor_metric,
        "learning_rate": config.resolved_learning_rate(),
        "loss": config.training.loss_function,
        "seed": config.seed,
        "precision": str(resolve_precision(config.training.precision_name, device)).removeprefix(
            "torch."
        ),
        "metrics": {
            name: value
            for part in outcome.summaries.values()
            for name, value in part.items()
            if np.isfinite(value)
        },
    }
