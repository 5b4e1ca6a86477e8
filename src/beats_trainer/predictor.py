"""`BEATsPredictor`: recordings in, class scores out, with a trained model.

files -> audio -> encoder -> pooling -> head -> [scores, labels]

Shapes in this file: N recordings, C classes.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from beats_trainer.checkpoints import BEATsForAudioClassification
from beats_trainer.embeddings.encode import (
    DEFAULT_WINDOW_S,
    ClipInput,
    Encoded,
    encode_clips,
    files_of,
)
from beats_trainer.model.classifier import apply_activation
from beats_trainer.model.precision import resolve_device

__all__ = ["BEATsPredictor"]

PathLike: TypeAlias = str | os.PathLike[str]

_OWN_COLUMNS = ("file", "label", "score")


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
        >>> predictor.predict(["dawn.wav"])[["file", "label", "score"]]  # doctest: +SKIP
               file   label  score
        0  dawn.wav  wren    0.93
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

    def predict(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Find each recording's most likely class, with the score of every class.

        Args:
            paths: One file or several.
            on_error: ``"raise"`` at the first unreadable file, or ``"skip"``: its row then has no label
                and no scores, and a column ``error`` says why.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            One row per file, in the order given: ``file``, ``label`` (of the highest score), ``score``,
            then one column per class in the model's order. A class that is called like one of the first
            three has ``_score`` behind its name. Scores sum to one for single-label models only.

        Raises:
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
        """
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
        columns = [f"{name}_score" if name in _OWN_COLUMNS else name for name in self.labels]
        table = pd.concat([table, pd.DataFrame(scores, columns=columns)], axis=1)
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
