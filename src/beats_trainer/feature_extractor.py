"""`BEATsFeatureExtractor`: files or arrays in, embeddings out.

files | arrays -> audio -> encoder -> pooling -> [numpy]

The facade over `embeddings.encode` that speaks the user's words: names, paths, numpy.

Shapes in this file: N inputs, S samples, D width of an embedding, T tokens, L layers.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from beats_trainer._version import __version__
from beats_trainer.audio import to_waveform
from beats_trainer.checkpoints import BEATsModel
from beats_trainer.checkpoints.download import choose_model
from beats_trainer.checkpoints.registry import DEFAULT_MODEL
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.embeddings import EmbeddingStore, open_store
from beats_trainer.embeddings.batch_size import BatchSize, check_batch_size
from beats_trainer.embeddings.encode import (
    DEFAULT_WINDOW_S,
    ClipInput,
    Encoded,
    Failure,
    Layer,
    check_layer,
    check_pooling,
    encode_clips,
    files_of,
)
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.output import stored_at
from beats_trainer.embeddings.parquet import Dtype
from beats_trainer.embeddings.run import DEFAULT_ROWS_PER_SHARD, run_to_store
from beats_trainer.embeddings.table import EmbeddingTable
from beats_trainer.embeddings.windows import Windowing, plan_clips
from beats_trainer.loading import find_clips
from beats_trainer.loading.inputs import ClipInput as UserInput
from beats_trainer.model.architecture import Architecture
from beats_trainer.model.fingerprint import hash_weights
from beats_trainer.model.pooling import pooled_width
from beats_trainer.model.precision import resolve_device

__all__ = ["BEATsFeatureExtractor", "Features"]

PathLike: TypeAlias = str | os.PathLike[str]
FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """What is returned when unreadable files are skipped.

    Attributes:
        features: As ``extract_from_files`` returns, for the readable files only.
        files: The readable files, one per row.
        failures: The others, each with ``index``, ``file`` and ``reason``.
    """

    features: FloatArray | list[FloatArray]
    files: list[str]
    failures: list[Failure]


class BEATsFeatureExtractor:
    """Embed sound with a BEATs model.

    A clip's embedding does not depend on what else is in its batch. A recording longer than
    ``window_s`` is encoded in consecutive windows, in bounded memory, and pooled over all of them.

    Args:
        model_path: A registry name (``"openbeats"``), a checkpoint file, a model folder, a hub
            repository ``"owner/name"``, or a loaded `BEATsModel`. ``None`` is BEATs_iter3_plus_AS2M,
            found on disk or downloaded. ``"auto"`` downloads nothing: the first of the large models that is on
            this machine, else beats_nano, which comes with the package; it says which.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; ``None`` or ``"auto"`` takes the fastest there is.
        layer: Which layer's output to use: 0 (the first layer's input) to L, negative from the end.
        pooling: ``"mean"``, ``"max"``, ``"first"`` (also ``"cls"``: but BEATs has no class token),
            ``"last"``, ``"bands"`` (mean over time of each of the 8 frequency bands, side by side), or ``"none"``
            for every token.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        compile: Whether a GPU runs the encoder compiled for each shape of batch that comes, which takes a minute
            per shape; not measured on a GPU yet, without effect elsewhere.
        batch_size: Most clips in a batch; ``None`` or ``"auto"`` chooses by the device, its free memory and the
            network, in tokens: many short clips, few long ones.
        window_s: Seconds that are encoded at once.
        num_threads: Threads that decode ahead of the network; ``None`` chooses.

    Raises:
        ValueError: If an option is unknown; found before anything is loaded.
        CheckpointError: If the model cannot be had.

    Example:
        >>> extractor = BEATsFeatureExtractor(model_path="model.pt")  # doctest: +SKIP
        >>> extractor.extract_from_file("audio.wav").shape  # doctest: +SKIP
        (768,)
    """

    def __init__(
        self,
        model_path: PathLike | BEATsModel | None = None,
        device: str | torch.device | None = None,
        layer: int = -1,
        pooling: str = "mean",
        *,
        precision: str = "auto",
        compile: bool = False,
        batch_size: BatchSize = None,
        window_s: float = DEFAULT_WINDOW_S,
        num_threads: int | None = None,
    ) -> None:
        self.pooling = check_pooling(pooling)
        self.device = resolve_device(device)
        self.precision = precision
        self.compile = compile
        self.batch_size = check_batch_size(batch_size)
        self.window_s = window_s
        self.num_threads = num_threads
        if isinstance(model_path, BEATsModel):
            self.model_path: Path | str | None = None
            self.model = model_path
        else:
            source = choose_model(DEFAULT_MODEL if model_path is None else model_path)
            self.model_path = source  # type: ignore[assignment]
            self.model = BEATsModel.from_pretrained(source)
        check_layer(layer, self.config.encoder_layers)
        self.layer = layer
        self.model.to(self.device).eval()

    @property
    def config(self) -> Architecture:
        """The network's architecture."""
        return self.model.architecture

    def extract_from_file(
        self, path: PathLike, *, normalize: bool = False, return_all_layers: bool = False
    ) -> FloatArray:
        """Embed one recording of any length.

        Args:
            path: The file.
            normalize: Scale the embedding to unit length (each token, for pooling ``"none"``).
            return_all_layers: Return every layer's embedding instead of one.

        Returns:
            Shape ``(D,)``, or ``(T, D)`` for pooling ``"none"``; with all layers ``(L + 1, D)`` or
            ``(L + 1, T, D)``. float32.

        Raises:
            AudioError: If the file cannot be read; names the file and the reason.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"extract_from_file takes one path, got {type(path).__name__}; for several use "
                "extract_from_files, for samples extract_from_array."
            )
        return self._encode([path], normalize, return_all_layers).embeddings[0]

    @overload
    def extract_from_files(
        self,
        paths: Sequence[PathLike],
        batch_size: int | None = ...,
        *,
        normalize: bool = ...,
        return_all_layers: bool = ...,
        on_error: Literal["raise"] = ...,
        progress: bool | None = ...,
    ) -> FloatArray: ...

    @overload
    def extract_from_files(
        self,
        paths: Sequence[PathLike],
        batch_size: int | None = ...,
        *,
        normalize: bool = ...,
        return_all_layers: bool = ...,
        on_error: Literal["skip"],
        progress: bool | None = ...,
    ) -> Features: ...

    def extract_from_files(
        self,
        paths: Sequence[PathLike],
        batch_size: int | None = None,
        *,
        normalize: bool = False,
        return_all_layers: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> Any:
        """Embed recordings of any number and lengths, in the order given.

        Args:
            paths: The files.
            batch_size: Most clips in a batch; ``None`` takes the extractor's.
            normalize: Scale each embedding to unit length.
            return_all_layers: Return every layer's embedding instead of one.
            on_error: ``"raise"`` at the first unreadable file, or ``"skip"`` it.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            Shape ``(N, D)`` float32; with all layers ``(N, L + 1, D)``; for pooling ``"none"`` a list of
            ``(T, D)``, for lengths may differ. With ``on_error="skip"`` a `Features` that holds the
            same for the readable files, and what failed and why.

        Raises:
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
            TypeError: If ``paths`` is a single path.
        """
        if isinstance(paths, str | os.PathLike):
            raise TypeError(
                f"extract_from_files takes a list of paths, got the single path {str(paths)!r}; use "
                "extract_from_file for one."
            )
        paths = list(paths)
        encoded = self._encode(
            paths, normalize, return_all_layers, batch_size, on_error=on_error, progress=progress
        )
        features = self._stack(encoded.embeddings, return_all_layers)
        if on_error == "raise":
            return features
        names = files_of(paths)
        return Features(features, [names[index] for index in encoded.kept], encoded.failures)

    def extract_from_array(
        self,
        audio: ArrayLike,
        sample_rate: int | None = None,
        *,
        normalize: bool = False,
        return_all_layers: bool = False,
    ) -> FloatArray:
        """Embed one recording that is already in memory.

        Args:
            audio: Shape ``(S,)``, or ``(channels, S)``, which is averaged to mono. Integers are scaled
                to -1..1. For several clips use ``extract_from_batch``.
            sample_rate: Hz; ``None`` means 16,000.
            normalize: Scale the embedding to unit length.
            return_all_layers: Return every layer's embedding instead of one.

        Returns:
            As ``extract_from_file``.

        Raises:
            AudioError: If there is no sample, or a sample is not finite.
        """
        waveform = to_waveform(_as_numpy(audio), sample_rate or SAMPLE_RATE)
        return self._encode([waveform], normalize, return_all_layers).embeddings[0]

    def extract_from_batch(
        self,
        batch: Any,
        sample_rate: int | None = None,
        *,
        normalize: bool = False,
        return_all_layers: bool = False,
    ) -> Any:
        """Embed several clips that are already in memory.

        Args:
            batch: Array or tensor ``(N, S)``, or a list of clips ``(S,)`` of any lengths.
            sample_rate: Hz; ``None`` means 16,000.
            normalize: Scale each embedding to unit length.
            return_all_layers: Return every layer's embedding instead of one.

        Returns:
            As ``extract_from_files``.

        Raises:
            AudioError: If a clip has no sample, or a sample is not finite.
        """
        clips = batch if isinstance(batch, list | tuple) else _as_numpy(batch)
        if isinstance(clips, np.ndarray) and clips.ndim != 2:
            raise ValueError(
                f"Expected a batch of shape (clips, samples), got {clips.shape}; use "
                "extract_from_array for a single recording."
            )
        waveforms: list[ClipInput] = [
            to_waveform(_as_numpy(clip), sample_rate or SAMPLE_RATE) for clip in clips
        ]
        encoded = self._encode(waveforms, normalize, return_all_layers)
        return self._stack(encoded.embeddings, return_all_layers)

    def extract_features(
        self, audio: Any, return_all_layers: bool = False, normalize: bool = False
    ) -> Any:
        """Embed 16 kHz samples: ``(S,)`` is one clip, ``(N, S)`` or a list are several.

        Returns:
            Shape ``(N, D)``, one row even for a single clip; else as ``extract_from_files``. For pooling
            ``"none"`` and clips of one length, ``(N, T, D)``.
        """
        if audio is None:
            raise TypeError("extract_features takes samples, got None.")
        if not isinstance(audio, list | tuple) or (audio and np.isscalar(audio[0])):
            audio = np.atleast_2d(_as_numpy(audio))
        rows = self.extract_from_batch(
            audio, normalize=normalize, return_all_layers=return_all_layers
        )
        if isinstance(rows, list) and len({row.shape for row in rows}) == 1:
            return np.stack(rows)
        return rows

    def embed(
        self,
        paths: Sequence[PathLike],
        window_s: float | None = None,
        hop_s: float | None = None,
        *,
        batch_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> EmbeddingTable:
        """Embed recordings window by window, into a table that knows where each embedding lies.

        Args:
            paths: The files.
            window_s: Seconds of a window; ``None`` embeds each file as one clip.
            hop_s: Seconds between the starts of two windows; ``None`` means no overlap. Every sample
                is in a window; the last one of a file may be shorter.
            batch_size: Most windows in a batch; ``None`` takes the extractor's.
            on_error: ``"raise"`` at the first unreadable file, or ``"skip"`` it: it then has no rows
                and stands in ``failures``.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            A row per window, file by file in the order given, and the recipe.

        Raises:
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
            ValueError: If a window or hop is not positive, or pooling is ``"none"``.
        """
        if self.pooling == "none":
            raise ValueError("A table holds one embedding per row: choose a pooling but 'none'.")
        paths = list(paths)
        plan = plan_clips(paths, window_s, hop_s, on_error=on_error)
        encoded = self._encode(
            plan.clips, False, False, batch_size, on_error=on_error, progress=progress
        )
        failures = {failure.file: failure for failure in (*plan.failures, *encoded.failures)}
        rows = [
            (plan.clips[index], embedding)
            for index, embedding in zip(encoded.kept, encoded.embeddings, strict=True)
            if plan.clips[index].file not in failures  # a file is there as a whole or not at all
        ]
        starts = np.array([clip.start_s for clip, _ in rows], np.float64)
        spans = np.array([clip.duration_s for clip, _ in rows], np.float64)
        width = self.get_feature_dim()
        embeddings = (
            np.stack([row for _, row in rows]) if rows else np.zeros((0, width), np.float32)
        )
        recipe = self._recipe(
            (check_layer(self.layer, self.config.encoder_layers),),
            encoded.precision,
            window_s=window_s,
            hop_s=hop_s,
        )
        files = [clip.file for clip, _ in rows]
        return EmbeddingTable(
            files, starts, starts + spans, embeddings, recipe, list(failures.values())
        )

    def embed_to(
        self,
        inputs: UserInput | Iterable[UserInput],
        output: PathLike,
        window_s: float | None = None,
        hop_s: float | None = None,
        *,
        per_step: bool = False,
        layers: Sequence[int] | None = None,
        normalize: bool = False,
        dtype: Dtype = "float32",
        batch_size: int | None = None,
        on_error: Literal["raise", "skip"] = "skip",
        retry_failed: bool = False,
        overwrite: bool = False,
        rows_per_shard: int = DEFAULT_ROWS_PER_SHARD,
        progress: bool | None = None,
    ) -> EmbeddingStore:
        """Embed any number of recordings of any length into a store on disk, in bounded memory.

        Killed at any moment and called again in the same way, it goes on, and ends with the same rows as if it
        had never been stopped. Called again later, it adds what is new among the inputs, and does anew what
        has changed.

        Args:
            inputs: Files, folders, patterns, tables, DataFrames, `Clip`, URLs, or ``"-"``: all that
                ``beats_trainer.loading.find_clips`` takes.
            output: A folder for the store; or a file ending in ``.parquet``, which is there as a whole once
                all is done, and is begun anew the next time. A file that no run wrote is not replaced.
            window_s: Seconds of a window; ``None`` embeds each clip as one. Per time step, ``None``
                means the extractor's ``window_s``.
            hop_s: Seconds between the starts of two windows; ``None`` means no overlap.
            per_step: A row for each time step of 160 ms, pooled over its eight frequency patches.
            layers: Several layers at once, each in a column ``embedding_layer_N``, counted from the front
                (0 is the first layer's input); ``None`` takes the extractor's, in the column
                ``embedding``.
            normalize: Scale each embedding to unit length.
            dtype: ``"float32"``, or ``"float16"`` for half the size.
            batch_size: Most windows in a batch; ``None`` takes the extractor's.
            on_error: ``"skip"`` what cannot be read and list it in ``errors.csv``, or ``"raise"``.
            retry_failed: Do files anew of which a part could not be read. Those that could not be read at
                all are tried again anyway.
            overwrite: Begin anew, where the output holds a store already; replace a file of any kind.
            rows_per_shard: Rows that are written at a time; at most these are computed again after a kill. Per
                time step, a shard has the rows of at least one batch of windows.
            progress: Show a progress bar; ``None`` shows one on a terminal.

        Returns:
            The store: ``.to_numpy()``, ``.to_pandas()``, ``.failures``.

        Raises:
            StoreMismatchError: If the output holds rows that were made in another way.
            StoreError: If it holds something else than rows.
            StoreInUseError: If another run writes to the output.
            AudioError: If a file cannot be read and ``on_error`` is ``"raise"``, or an input has no audio.
            ValueError: If a window, hop or size is not positive, pooling is ``"none"``, or a layer is not
                there.
            OSError: If the output cannot be written.

        Example:
            >>> store = extractor.embed_to("recordings/", "out", 5.0, 2.5)  # doctest: +SKIP
            >>> store.to_numpy().shape, store.failures  # doctest: +SKIP
        """
        if self.pooling == "none":
            raise ValueError("A store holds one embedding per row: choose a pooling but 'none'.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
        if (batch_size is not None and batch_size < 1) or rows_per_shard < 1:
            raise ValueError(
                "batch_size and rows_per_shard must be at least 1, not "
                f"{batch_size} and {rows_per_shard}."
            )
        encoder = Encoder(
            self.model,
            self.pooling,
            self.layer if layers is None else tuple(layers),
            per_step=per_step,
            precision=self.precision,
            compile=self.compile,
            window_s=self.window_s,
        )
        if per_step and window_s is None:
            window_s = self.window_s
        windowing = Windowing(window_s, hop_s, encoder.grid if per_step else None)
        names = [f"embedding_layer_{layer}" for layer in encoder.layers]
        names = names if layers is not None else ["embedding"]
        recipe = self._recipe(
            encoder.layers,
            encoder.precision,
            window_s=window_s,
            hop_s=hop_s,
            per_step=per_step,
            normalize=normalize,
        )

        def to_columns(values: FloatArray) -> dict[str, FloatArray]:
            values = _unit_length(values) if normalize else values
            by_layer = values[:, None] if encoder.is_single else values
            return {name: by_layer[:, index] for index, name in enumerate(names)}

        clips = find_clips(inputs)
        columns = dict.fromkeys(names, encoder.width)
        with stored_at(output, columns, recipe, dtype, overwrite=overwrite) as writer:
            run_to_store(
                encoder,
                clips,
                writer,
                windowing,
                to_columns,
                batch_size=batch_size or self.batch_size,
                num_threads=self.num_threads,
                rows_per_shard=rows_per_shard,
                on_error=on_error,
                retry_failed=retry_failed,
                progress=progress,
            )
        return open_store(output)

    def _recipe(
        self,
        layers: Sequence[Any],
        precision: str,
        *,
        window_s: float | None,
        hop_s: float | None,
        per_step: bool = False,
        normalize: bool = False,
    ) -> dict[str, Any]:
        """How rows are made; what does not change them stands under ``"notes"``."""
        return {
            "kind": "embeddings",
            "weights_sha256": hash_weights(self.model),
            "pooling": self.pooling,
            "layers": list(layers),
            "per_step": per_step,
            "normalize": normalize,
            "window_s": window_s,
            "hop_s": window_s if hop_s is None else hop_s,
            "attention_window_s": self.window_s,  # longer windows, or files, are encoded in such pieces
            "precision": precision,
            "notes": {
                "model": None if self.model_path is None else str(self.model_path),
                "device": str(self.device),
                "beats_trainer_version": __version__,
            },
        }

    def get_feature_dim(self) -> int:
        """Width D of an embedding: 768 for the base models, 1,024 for the large ones; 8 times that for ``"bands"``."""
        return pooled_width(self.config, self.pooling)

    def get_model_info(self) -> dict[str, Any]:
        """What is loaded, as plain values."""
        return {
            "model_path": None if self.model_path is None else str(self.model_path),
            "feature_dim": self.get_feature_dim(),
            "num_layers": self.config.encoder_layers,
            "attention_heads": self.config.encoder_attention_heads,
            "pooling_method": self.pooling,
            "layer": self.layer,
            "device": str(self.device),
            "precision": self.precision,
        }

    def _encode(
        self,
        inputs: Sequence[ClipInput],
        normalize: bool,
        return_all_layers: bool,
        batch_size: int | None = None,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> Encoded:
        layer: Layer = "all" if return_all_layers else self.layer
        encoded = encode_clips(
            self.model,
            inputs,
            pooling=self.pooling,
            layer=layer,
            batch_size=batch_size or self.batch_size,
            precision=self.precision,
            compile=self.compile,
            window_s=self.window_s,
            num_threads=self.num_threads,
            on_error=on_error,
            progress=progress,
        )
        if not normalize:
            return encoded
        unit = [_unit_length(embedding) for embedding in encoded.embeddings]
        return Encoded(unit, encoded.kept, encoded.failures, encoded.precision)

    def _stack(
        self, embeddings: list[FloatArray], all_layers: bool
    ) -> FloatArray | list[FloatArray]:
        if self.pooling == "none":
            return embeddings
        if embeddings:
            return np.stack(embeddings)
        layers = (self.config.encoder_layers + 1,) if all_layers else ()
        return np.zeros((0, *layers, self.get_feature_dim()), np.float32)


def _as_numpy(samples: Any) -> NDArray[Any]:
    if isinstance(samples, torch.Tensor):
        return samples.detach().cpu().numpy()
    return np.asarray(samples)


def _unit_length(embedding: FloatArray) -> FloatArray:
    norm = np.linalg.norm(embedding, axis=-1, keepdims=True)
    unit: FloatArray = embedding / np.maximum(norm, np.finfo(np.float32).tiny)
    return unit
