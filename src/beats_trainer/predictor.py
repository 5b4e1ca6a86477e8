"""`BEATsPredictor`: recordings in, class scores or events out, with a trained model.

files -> audio -> encoder -> pooling -> head -> [scores -> labels | thresholds -> detected]
                                              -> [store of window scores -> events -> tables]

Shapes in this file: N clips or windows, C classes, D width of an embedding.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from beats_trainer._version import __version__
from beats_trainer.checkpoints import BEATsForAudioClassification
from beats_trainer.datasets.labels import nearest_name
from beats_trainer.detection.averaging import Combination
from beats_trainer.detection.events import EventRules
from beats_trainer.detection.outputs import Detections, OutputOptions, make_outputs
from beats_trainer.detector import SCORES, RunOptions, find_stored_events, scored, without_exports
from beats_trainer.embeddings.batch_size import BatchSize, check_batch_size
from beats_trainer.embeddings.encode import DEFAULT_WINDOW_S, ClipInput, encode_clips
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.parquet import Dtype
from beats_trainer.embeddings.run import DEFAULT_ROWS_PER_SHARD
from beats_trainer.embeddings.windowed import Window, encode_windows
from beats_trainer.embeddings.windows import Windowing
from beats_trainer.errors import AudioError
from beats_trainer.file_names import printable_name
from beats_trainer.loading import Clip, find_clips
from beats_trainer.loading.inputs import ClipInput as UserInput
from beats_trainer.model.classifier import apply_activation
from beats_trainer.model.fingerprint import hash_weights
from beats_trainer.model.precision import resolve_device
from beats_trainer.predictions import PredictionTables, score_columns
from beats_trainer.reports.scores import DEFAULT_THRESHOLD

__all__ = ["BEATsPredictor", "Thresholds"]

PathLike: TypeAlias = str | os.PathLike[str]

Thresholds: TypeAlias = float | Mapping[str, float]
"""Score from which on a class counts as heard: one for all classes, or by class name."""

log = logging.getLogger(__name__)

_DETECTION_WINDOW_S = 10.0
"""Window of a model that does not say on what it was trained: what BEATs itself was trained on."""


class BEATsPredictor:
    """Score recordings with a trained classifier.

    Args:
        model: A model folder that training saved, a fine-tuned checkpoint (file or registry name), a
            hub repository ``"owner/name"``, or a loaded `BEATsForAudioClassification`.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; ``None`` or ``"auto"`` takes the fastest there is.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        compile: Whether a GPU runs the encoder compiled for each shape of batch that comes, which takes a minute
            per shape; not measured on a GPU yet, without effect elsewhere.
        batch_size: Most clips in a batch; ``None`` or ``"auto"`` chooses by the device, its free memory and the
            network, in tokens: many short clips, few long ones.
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
        compile: bool = False,
        batch_size: BatchSize = None,
        window_s: float = DEFAULT_WINDOW_S,
        num_threads: int | None = None,
    ) -> None:
        self.device = resolve_device(device)
        if not isinstance(model, BEATsForAudioClassification):
            model = BEATsForAudioClassification.from_pretrained(model)
        self.model = model.to(self.device).eval()
        self.precision = precision
        self.compile = compile
        self.batch_size = check_batch_size(batch_size)
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
        return score_columns(self.labels)

    @property
    def thresholds(self) -> dict[str, float]:
        """The model's own threshold of each class; 0.5 where it has none."""
        return {
            label: (self.model.thresholds or {}).get(label, DEFAULT_THRESHOLD)
            for label in self.labels
        }

    def predict(
        self,
        inputs: UserInput | Iterable[UserInput],
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        thresholds: Thresholds | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Find each recording's most likely class, what is detected in it, and the score of every class.

        Args:
            inputs: Files, folders, patterns, tables of clips, DataFrames: one of them or several, all that
                ``beats_trainer.loading.find_clips`` takes.
            window_s: Seconds of a window, to have a row for each; ``None`` gives a row for each clip.
            hop_s: Seconds between the starts of two windows; ``None`` means no overlap.
            top_k: Give the ``top_k`` best labels and their scores, and not every class its column.
            thresholds: Score from which on a class is detected: a number for all classes, or numbers by
                class name, for which the others keep the model's. ``None`` takes the model's own, which
                training fitted on validation clips, and 0.5 for a model without any.
            on_error: ``"raise"`` at the first unreadable file, or ``"skip"``: its row then has no label
                and no scores, and a column ``error`` says why.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            One row per clip or window, in the order given: ``file``, with bytes that are no text written
            ``\\xff``; ``start_time`` and ``end_time`` in
            seconds, where there are windows or parts of files; ``label``, of the highest score; ``score``;
            ``detected``; then one column per class (`score_columns`), or ``label_2``, ``score_2`` and so
            on to ``top_k``.

            Of a model for any number of classes per clip, ``detected`` names every class whose score
            reaches its threshold, in the model's order with ``;`` between them; each score stands for
            itself. Of a model for exactly one class per clip, it is ``label`` where that reaches its
            threshold: the answer to trust. It is empty where nothing does.

        Raises:
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
            ValueError: If a threshold is not from 0 to 1, or names a class that the model does not have, or
                a window or ``top_k`` makes no sense.
        """
        parts = list(
            self.predict_stream(
                inputs,
                window_s=window_s,
                hop_s=hop_s,
                top_k=top_k,
                thresholds=thresholds,
                on_error=on_error,
                progress=progress,
            )
        )
        return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)

    def predict_stream(
        self,
        inputs: UserInput | Iterable[UserInput],
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        thresholds: Thresholds | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Do as `predict`, and give the table piece by piece, for more rows than memory holds.

        Yields:
            Consecutive rows of the table that `predict` returns, at least one piece.
        """
        limits = self._limits(thresholds)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
        if top_k is not None and not top_k >= 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}.")
        clips = [] if isinstance(inputs, list | tuple) and not inputs else find_clips(inputs)
        tables = PredictionTables(
            self.labels,
            limits,
            has_one_class=self.model.task == "single",
            has_times=window_s is not None or any(c.start_s or c.duration_s for c in clips),
            top_k=top_k,
            skips_errors=on_error == "skip",
        )
        outcomes = self._outcomes(clips, Windowing(window_s, hop_s), progress)
        return tables.pieces(outcomes, self._score)

    def _outcomes(
        self, clips: Sequence[Clip], windowing: Windowing, progress: bool | None
    ) -> Iterator[tuple[Window, NDArray[np.float32] | AudioError]]:
        shown = None if progress is None else not progress
        shown = True if progress is None and len(clips) == 1 else shown
        outcomes = encode_windows(
            self._encoder(),
            ((clip, 0) for clip in clips),
            windowing,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )
        with (
            contextlib.closing(outcomes),
            tqdm(total=len(clips), desc="Predicting", unit="clip", disable=shown) as bar,
        ):
            for window, values in outcomes:
                yield window, values
                bar.update(window.is_last)

    def detect(
        self,
        recordings: UserInput | Iterable[UserInput],
        output: PathLike | None = None,
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        per_step: bool = False,
        labels: Sequence[str] | None = None,
        thresholds: Thresholds | None = None,
        combine: Combination = "mean",
        release: float = 1.0,
        min_duration_s: float = 0.0,
        merge_gap_s: float = 0.0,
        top_n: int | None = None,
        timezone: str | None = None,
        convert_to: str | None = None,
        formats: Sequence[str] = ("csv",),
        num_clips: int = 0,
        clips_by: Literal["top", "stratified"] = "top",
        dtype: Dtype = "float32",
        on_error: Literal["raise", "skip"] = "skip",
        retry_failed: bool = False,
        overwrite: bool = False,
        rows_per_shard: int = DEFAULT_ROWS_PER_SHARD,
        progress: bool | None = None,
    ) -> Detections:
        """Find when the classes are heard in recordings of any number and length, in bounded memory.

        Recordings are scored in overlapping windows, and scores are averaged where windows overlap (see
        ``combine``). What reaches a class's threshold is an event. The scores stay in ``output/scores``: killed at any moment
        and called again in the same way, the run goes on; called with other thresholds or formats, it takes
        seconds, since the network does not run again.

        Args:
            recordings: Files, folders, patterns, tables, DataFrames: all that
                ``beats_trainer.loading.find_clips`` takes.
            output: Folder for scores and tables; ``None`` keeps nothing but what is returned.
            window_s: Seconds of a window; ``None`` takes what the model was trained on, else 10.
            hop_s: Seconds between the starts of two windows; ``None`` means half a window, and per time step
                a whole one.
            per_step: Score each time step of 160 ms, from its eight frequency patches, for onsets. A model
                that was trained on whole clips has not learned to do this; look at what it gives.
            labels: Classes to look for; ``None`` for all.
            thresholds: As for `predict`.
            combine: What a moment's score is where windows overlap: their ``"mean"``, or the ``"lowest"``.
                A model that is sure of a sound wherever in its window it lies, as those trained on annotated
                recordings are, gives sharper times and fewer false alarms with ``"lowest"``, the more so the
                smaller the hop; its ``"mean"`` begins up to a window before the sound.
            release: Part of the threshold that the score may fall to while an event lasts (hysteresis).
            min_duration_s: Events that are shorter, after merging, are dropped.
            merge_gap_s: Events of a class with no more than this between them are one.
            top_n: Of all classes, only the best ``top_n`` can be heard at a time.
            timezone: Zone of the recorders' clocks, such as ``"UTC"``; dates and times are read from names
                such as ``20240510_043000.WAV``.
            convert_to: Zone to tell dates and times in, such as ``"Europe/Berlin"``.
            formats: ``csv``, ``parquet``, ``raven`` (a table per recording), ``raven-combined``, ``audacity``,
                ``birdnet``, ``kaleidoscope``, ``frames``.
            num_clips: Events of each class that are written as WAV into ``output/clips``, for review.
            clips_by: ``"top"``, or ``"stratified"`` over the range of scores.
            dtype: How scores are stored: ``"float32"``, or ``"float16"`` for half the size.
            on_error: ``"skip"`` what cannot be read and list it in ``errors.csv``, or ``"raise"``.
            retry_failed: Do files anew of which a part could not be read.
            overwrite: Begin anew, where the output holds scores already.
            rows_per_shard: Rows that are written at a time.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            Events, a summary by class, date and hour, and what could not be read.

        Raises:
            StoreMismatchError: If the output holds scores that were made in another way.
            StoreInUseError: If another run writes to the output.
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``, or an input has no audio.
            ValueError: If a setting is out of range, found before anything is read.
            OSError: If the output cannot be written.

        Example:
            >>> found = BEATsPredictor("my_model").detect("recordings/", "found")  # doctest: +SKIP
            >>> found.events  # doctest: +SKIP
                        file  start_time  end_time label  score
            0  night/one.wav        12.5      17.5  wren   0.93
        """
        rules = EventRules(
            self._event_thresholds(thresholds, labels),
            release,
            min_duration_s,
            merge_gap_s,
            top_n,
            combine,
        )
        outputs = OutputOptions(formats, timezone, convert_to, num_clips, clips_by)
        outputs.check_folder(None if output is None else Path(output))
        options = RunOptions(
            self.batch_size,
            self.num_threads,
            dtype,
            on_error,
            retry_failed,
            overwrite,
            rows_per_shard,
            progress,
        )
        encoder = self._encoder(per_step)
        windowing = self._detection_windows(window_s, hop_s, encoder, per_step)
        clips = find_clips(recordings)
        if output is not None:
            clips = without_exports(clips, Path(output))
        with contextlib.ExitStack() as stack:
            folder = (
                stack.enter_context(tempfile.TemporaryDirectory()) if output is None else output
            )
            store, clips = stack.enter_context(
                scored(
                    encoder,
                    clips,
                    Path(folder, SCORES),
                    windowing,
                    self._score,
                    self._recipe(encoder, windowing, per_step),
                    options,
                )
            )
            paths = {printable_name(clip.file): clip.file for clip in clips}
            parts = store.parts
            num_others = len(set(parts["file"]) - paths.keys())
            if num_others:
                log.info(
                    "%s holds %d recordings besides these, of earlier runs: they are in the tables too.",
                    folder,
                    num_others,
                )
            return make_outputs(
                find_stored_events(store, self.labels, rules),
                output,
                outputs,
                parts=parts,
                failures=store.failures,
                paths=paths,
            )

    def _detection_windows(
        self, window_s: float | None, hop_s: float | None, encoder: Encoder, per_step: bool
    ) -> Windowing:
        if window_s is None:
            window_s = self.model.window_s
        if window_s is None:
            window_s = _DETECTION_WINDOW_S
            log.info(
                "The model does not say how long the clips were that it was trained on: windows of %g s are "
                "used. Where clips were of another length, set window_s (--window) to that.",
                window_s,
            )
        if hop_s is None:
            hop_s = window_s if per_step else window_s / 2
        return Windowing(window_s, hop_s, encoder.grid if per_step else None)

    def _recipe(self, encoder: Encoder, windowing: Windowing, per_step: bool) -> dict[str, Any]:
        """How scores are made; what does not change them stands under ``"notes"``."""
        return {
            "kind": SCORES,
            "weights_sha256": hash_weights(self.model),
            "labels": self.labels,
            "activation": self.model.activation,
            "per_step": per_step,
            "window_s": windowing.window_s,
            "hop_s": windowing.hop_s,
            "attention_window_s": self.window_s,
            "precision": encoder.precision,
            "notes": {"device": str(self.device), "beats_trainer_version": __version__},
        }

    def predict_proba(
        self, inputs: Sequence[ClipInput], *, progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score recordings, parts of them, or waveforms ``(S,)`` at 16 kHz.

        Returns:
            Shape ``(N, C)``, float32, rows in the order given, columns in the order of ``labels``.
        """
        encoded = encode_clips(
            self.model.beats,
            inputs,
            pooling=self.model.clip_pooling,
            batch_size=self.batch_size,
            precision=self.precision,
            compile=self.compile,
            window_s=self.window_s,
            num_threads=self.num_threads,
            progress=progress,
            description="Predicting",
        )
        if not encoded.embeddings:
            return np.zeros((0, len(self.labels)), np.float32)
        return self._score(np.stack(encoded.embeddings))

    def _event_thresholds(
        self, given: Thresholds | None, labels: Sequence[str] | None
    ) -> NDArray[np.float64]:
        limits = self._limits(given)
        if labels is None:
            return limits
        wanted = [labels] if isinstance(labels, str) else list(labels)
        if not wanted:
            raise ValueError("labels names no class: pass None to look for all.")
        self._check_labels(wanted)
        return np.where([label in wanted for label in self.labels], limits, np.inf)

    def _limits(self, given: Thresholds | None) -> NDArray[np.float64]:
        """The threshold of each class, shape ``(C,)``."""
        limits = self.thresholds
        if isinstance(given, Mapping):
            self._check_labels(given, "There is a threshold for ")
            limits |= given
        elif given is not None:
            limits = dict.fromkeys(limits, given)
        for label, limit in limits.items():
            if isinstance(limit, bool | str) or not 0 <= limit <= 1:  # NaN is refused too
                raise ValueError(
                    f"A threshold is a score from 0 to 1, not {limit!r} (of the class {label!r})."
                )
        return np.array(list(limits.values()), np.float64)

    def _check_labels(self, given: Iterable[str], problem: str = "Asked to look for ") -> None:
        unknown = [label for label in given if label not in self.labels]
        if unknown:
            known = f"{', '.join(self.labels[:10])}{', ...' if len(self.labels) > 10 else ''}"
            raise ValueError(
                f"{problem}{unknown[0]!r}, which is none of the model's {len(self.labels)} classes: "
                f"{known}.{nearest_name(str(unknown[0]), self.labels)}"
            )

    def _encoder(self, per_step: bool = False) -> Encoder:
        return Encoder(
            self.model.beats,
            self.model.clip_pooling,
            per_step=per_step,
            precision=self.precision,
            compile=self.compile,
            window_s=self.window_s,
        )

    def _score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores ``(N, C)`` of embeddings ``(N, D)``."""
        with torch.inference_mode():
            logits = self.model.head(torch.from_numpy(embeddings).to(self.device))
            probabilities = apply_activation(logits, self.model.activation)
        scores: NDArray[np.float32] = probabilities.cpu().numpy()
        return scores
