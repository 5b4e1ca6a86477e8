"""`BEATsPredictor`: recordings in, class scores out, with a trained model.

files -> audio -> encoder -> pooling -> head -> [scores -> labels | thresholds -> detected]

Shapes in this file: N recordings, C classes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from beats_trainer.checkpoints import BEATsForAudioClassification
from beats_trainer.datasets.labels import LABEL_SEPARATOR, nearest_name
from beats_trainer.embeddings.encode import (
    DEFAULT_WINDOW_S,
    ClipInput,
    Encoded,
    encode_clips,
    files_of,
)
from beats_trainer.model.classifier import apply_activation
from beats_trainer.model.precision import resolve_device
from beats_trainer.reports.scores import DEFAULT_THRESHOLD

__all__ = ["BEATsPredictor", "Thresholds"]

PathLike: TypeAlias = str | os.PathLike[str]

Thresholds: TypeAlias = float | Mapping[str, float]
"""Score from which on a class counts as heard: one for all classes, or by class name."""

_OWN_COLUMNS = ("file", "label", "score", "detected", "error")


class BEATsPredictor:
    """Score recordings with a trained classifier.

    Args:
        model: A model folder that training saved, a fine-tuned checkpoint (file or registry name), a
            hub repository ``"owner/name"``, or a loaded `BEATsForAudioClassification`.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; ``None`` or ``"auto"`` takes the fastest there is.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        batch_size: Most clips in a batch.
        window_s: Seconds that are encoded at once; longer recordings are pooled over windows.
        num_threads: Threads that decode ahead; ``None`` chooses.

    Raises:
        CheckpointError: If the model cannot be had, or has no classifier head.

    Example:
        >>> predictor = BEATsPredictor("logs/my_experiment/version_0/model")  # doctest: +SKIP
        >>> table = predictor.predict(["dawn.wav"])  # doctest: +SKIP
        >>> table[["file", "label", "score", "detected"]]  # doctest: +SKIP
               file label  score    detected
        0  dawn.wav  wren   0.93  robin;wren
    """

    def __init__(
        self,
        model: PathLike | BEATsForAudioClassification,
        device: str | torch.device | None = None,
        *,
        precision: str = "auto",
        batch_size: int = 16,
        window_s: float = DEFAULT_WINDOW_S,
        num_threads: int | None = None,
    ) -> None:
        self.device = resolve_device(device)
        if not isinstance(model, BEATsForAudioClassification):
            model = BEATsForAudioClassification.from_pretrained(model)
        self.model = model.to(self.device).eval()
        self.precision = precision
        self.batch_size = batch_size
        self.window_s = window_s
        self.num_threads = num_threads

    @classmethod
    def from_pretrained(cls, source: PathLike, **options: Any) -> "BEATsPredictor":
        """Load a predictor; the same as calling the class, under the name other libraries use."""
        return cls(source, **options)

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of the scores."""
        return self.model.labels

    @property
    def score_columns(self) -> list[str]:
        """The column of each class's scores in the table of `predict`, in the order of ``labels``.

        It is the class's name; one that is called like another column has ``_score`` behind it.
        """
        columns = []
        taken = {*_OWN_COLUMNS, *self.labels}
        for label in self.labels:
            name = label
            while name in _OWN_COLUMNS or (name != label and name in taken):
                name += "_score"
            taken.add(name)
            columns.append(name)
        return columns

    @property
    def thresholds(self) -> dict[str, float]:
        """The model's own threshold of each class; 0.5 where it has none."""
        return {
            label: (self.model.thresholds or {}).get(label, DEFAULT_THRESHOLD)
            for label in self.labels
        }

    def predict(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        thresholds: Thresholds | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Find each recording's most likely class, what is detected in it, and the score of every class.

        Args:
            paths: One file or several.
            thresholds: Score from which on a class is detected: a number for all classes, or numbers by
                class name, for which the others keep the model's. ``None`` takes the model's own, which
                training fitted on validation clips, and 0.5 for a model without any.
            on_error: ``"raise"`` at the first unreadable file, or ``"skip"``: its row then has no label
                and no scores, and a column ``error`` says why.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            One row per file, in the order given: ``file``; ``label``, of the highest score; ``score``;
            ``detected``; then one column per class (`score_columns`).

            Of a model for any number of classes per clip, ``detected`` names every class whose score
            reaches its threshold, in the model's order with ``;`` between them; each score stands for
            itself. Of a model for exactly one class per clip, it is ``label`` where that reaches its
            threshold: the answer to trust. It is empty where nothing does.

        Raises:
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
            ValueError: If a threshold is not from 0 to 1, or names a class that the model does not have.
        """
        limits = self._limits(thresholds)
        files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        encoded = self._encode(files, on_error, progress)
        scores = np.full((len(files), len(self.labels)), np.nan, np.float32)
        scores[encoded.kept] = self._score(encoded.embeddings)
        table = pd.DataFrame({"file": files_of(files)})
        best = scores[encoded.kept].argmax(axis=1)
        label = np.full(len(files), None, dtype=object)
        label[encoded.kept] = [self.labels[index] for index in best]
        table["label"] = label
        table["score"] = np.nan
        table.loc[encoded.kept, "score"] = scores[encoded.kept, best]
        detected = np.full(len(files), None, dtype=object)
        detected[encoded.kept] = self._detected(scores[encoded.kept], limits)
        table["detected"] = detected
        table = pd.concat([table, pd.DataFrame(scores, columns=self.score_columns)], axis=1)
        if on_error == "skip":
            reasons = {failure.index: failure.reason for failure in encoded.failures}
            table["error"] = [reasons.get(index) for index in range(len(files))]
        return table

    def predict_proba(
        self, inputs: Sequence[ClipInput], *, progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score recordings, parts of them, or waveforms ``(S,)`` at 16 kHz.

        Returns:
            Shape ``(N, C)``, float32, rows in the order given, columns in the order of ``labels``.
        """
        return self._score(self._encode(inputs, "raise", progress).embeddings)

    def _limits(self, given: Thresholds | None) -> NDArray[np.float64]:
        """The threshold of each class, shape ``(C,)``."""
        limits = self.thresholds
        if isinstance(given, Mapping):
            unknown = [label for label in given if label not in limits]
            if unknown:
                known = f"{', '.join(self.labels[:10])}{', ...' if len(self.labels) > 10 else ''}"
                raise ValueError(
                    f"There is a threshold for {unknown[0]!r}, which is none of the model's "
                    f"{len(self.labels)} classes: {known}."
                    f"{nearest_name(str(unknown[0]), self.labels)}"
                )
            limits |= given
        elif given is not None:
            limits = dict.fromkeys(limits, given)
        for label, limit in limits.items():
            if isinstance(limit, bool | str) or not 0 <= limit <= 1:  # NaN is refused too
                raise ValueError(
                    f"A threshold is a score from 0 to 1, not {limit!r} (of the class {label!r})."
                )
        return np.array(list(limits.values()), np.float64)

    def _detected(self, scores: NDArray[np.float32], limits: NDArray[np.float64]) -> list[str]:
        """Names of the classes that are heard in each of N recordings, as text."""
        is_heard = scores >= limits
        if self.model.task == "single":
            is_heard &= np.arange(len(self.labels)) == scores.argmax(axis=1)[:, None]
        return [
            LABEL_SEPARATOR.join(self.labels[index] for index in np.flatnonzero(row))
            for row in is_heard
        ]

    def _encode(
        self,
        inputs: Sequence[ClipInput],
        on_error: Literal["raise", "skip"],
        progress: bool | None,
    ) -> Encoded:
        return encode_clips(
            self.model.beats,
            inputs,
            pooling=self.model.clip_pooling,
            batch_size=self.batch_size,
            precision=self.precision,
            window_s=self.window_s,
            num_threads=self.num_threads,
            on_error=on_error,
            progress=progress,
            description="Predicting",
        )

    def _score(self, embeddings: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        if not embeddings:
            return np.zeros((0, len(self.labels)), np.float32)
        with torch.inference_mode():
            logits = self.model.head(torch.from_numpy(np.stack(embeddings)).to(self.device))
            probabilities = apply_activation(logits, self.model.activation)
        scores: NDArray[np.float32] = probabilities.cpu().numpy()
        return scores
