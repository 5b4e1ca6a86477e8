"""Run the network over many clips: files or arrays in, one embedding each out, in the order given.

clips -> [decode ahead in threads -> batches of like length -> encoder -> pooling] -> embeddings

The one engine under feature extraction, prediction and the training of heads on cached embeddings. Memory
is bounded whatever the number or length of the inputs; a clip's embedding does not depend on its mates.

Shapes in this file: N inputs, B clips of a batch, T tokens, D width, L layers.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from beats_trainer.audio import load_audio, probe_audio
from beats_trainer.constants import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE
from beats_trainer.errors import AudioError, BEATsTrainerError
from beats_trainer.loading import Clip, collate_waveforms, length_sorted_batches, read_ahead
from beats_trainer.model.beats import BEATs
from beats_trainer.model.lengths import min_samples
from beats_trainer.model.pooling import (
    POOLING_MODES,
    AttentivePooling,
    PartialPooling,
    pool_tokens,
)
from beats_trainer.model.precision import autocast, resolve_precision

__all__ = [
    "DEFAULT_WINDOW_S",
    "POOLINGS",
    "ClipInput",
    "Encoded",
    "Failure",
    "Layer",
    "check_layer",
    "check_pooling",
    "encode_clips",
]

ClipInput: TypeAlias = str | os.PathLike[str] | Clip | NDArray[np.float32]
"""What can be encoded: a file, a part of one, or a waveform ``(S,)`` at 16 kHz."""
Layer: TypeAlias = int | Literal["all"]
"""0 is the input of the first layer, -1 the output of the last."""

POOLINGS = (*POOLING_MODES, "none")
"""What ``pooling`` may be; ``"none"`` keeps every token."""

DEFAULT_WINDOW_S = 30.0
"""Longest stretch that attention sees at once. BEATs was trained on 10 s; attention costs the square."""

_ATTENTION_BYTES = 256 * 2**20
"""Memory that one layer's position bias, the largest tensor of a batch, may take."""

_WAVEFORM_AHEAD = 4
"""Decoded clips kept waiting per reading thread."""


@dataclass(frozen=True)
class Failure:
    """One input that could not be read.

    Attributes:
        index: Its place among the inputs.
        file: The file as it was given.
        reason: What is wrong with it.
    """

    index: int
    file: str
    reason: str


@dataclass(frozen=True)
class Encoded:
    """Embeddings of the inputs that could be read, in the order given.

    Attributes:
        embeddings: One float32 array per readable input: ``(D,)`` pooled, ``(T, D)`` for pooling
            ``"none"``; with ``layer="all"`` a leading axis of ``L + 1``.
        kept: Index of each embedding's input; all of them unless some failed.
        failures: The inputs that failed; empty unless ``on_error="skip"``.
        precision: The number format that ran: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    embeddings: list[NDArray[np.float32]]
    kept: list[int]
    failures: list[Failure] = field(default_factory=list)
    precision: str = "float32"


def check_pooling(pooling: str) -> str:
    """Return the pooling's canonical name; ``"cls"`` is the old library's word for ``"first"``.

    Raises:
        ValueError: If there is no such pooling.

    Example:
        >>> check_pooling("MEAN")
        'mean'
    """
    name = {"cls": "first"}.get(str(pooling).lower(), str(pooling).lower())
    if name not in POOLINGS:
        raise ValueError(f"Unknown pooling {pooling!r}: expected one of {', '.join(POOLINGS)}.")
    return name


def check_layer(layer: Layer, num_layers: int) -> Layer:
    """Return the layer counted from the front: 0 is the first layer's input, L the last's output.

    Raises:
        ValueError: If the network has no such layer.

    Example:
        >>> check_layer(-1, 12)
        12
    """
    if layer == "all":
        return layer
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"layer must be a whole number or 'all', not {layer!r}.")
    if not -(num_layers + 1) <= layer <= num_layers:
        raise ValueError(
            f"There is no layer {layer}: this network has 0 (the input of the first layer) to "
            f"{num_layers} (the last), or -1 to -{num_layers + 1} from the end."
        )
    return layer % (num_layers + 1)


def encode_clips(
    network: BEATs,
    inputs: Sequence[ClipInput],
    *,
    pooling: str | AttentivePooling = "mean",
    layer: Layer = -1,
    batch_size: int = 16,
    precision: str = "auto",
    window_s: float = DEFAULT_WINDOW_S,
    num_threads: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool | None = None,
    description: str = "Embedding",
) -> Encoded:
    """Encode clips with a network that stays as it is.

    A recording longer than ``window_s`` is encoded window after window and pooled over all of them.
    The windows continue one another's token grid, so that the number and the place of the tokens are
    those of the whole recording; only attention ends at a window's edge.

    Args:
        network: Where it is, its device is used; put back into its mode (train or eval) afterwards.
        inputs: Files, parts of files (`Clip`), or waveforms ``(S,)`` float32 at 16 kHz.
        pooling: ``"mean"``, ``"max"``, ``"first"``, ``"last"``, or ``"none"`` for every token. Or a learned
            pooling on the network's device, which reads all layers (leave ``layer`` at -1) and gives ``(D,)``.
        layer: 0 (the first layer's input) to L (the last layer), negative from the end, or ``"all"``.
        batch_size: Most clips in a batch; fewer where they are long.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        window_s: Seconds that are encoded at once.
        num_threads: Threads that decode ahead; ``None`` chooses by the machine.
        on_error: ``"raise"`` at the first unreadable input, or ``"skip"`` it and report it.
        progress: Show a bar; ``None`` shows one on a terminal and for more than one input.
        description: The bar's text.

    Returns:
        Embeddings in the order of the inputs, and what failed.

    Raises:
        AudioError: If an input cannot be read and ``on_error`` is ``"raise"``.
        ValueError: If an argument is not as described.
    """
    layer = check_layer(layer, network.architecture.encoder_layers)
    if isinstance(pooling, AttentivePooling):
        pooling.require_fit(network.architecture)
        if layer != network.architecture.encoder_layers:
            raise ValueError(
                f"A learned pooling reads all layers: leave layer at -1, not {layer!r}."
            )
    else:
        pooling = check_pooling(pooling)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
    device = next(network.parameters()).device
    dtype = resolve_precision(precision, device)
    encoder = _Encoder(network, pooling, layer, device, dtype, _Grid.for_network(network, window_s))
    threads = num_threads or min(8, os.cpu_count() or 1)

    results: dict[int, NDArray[np.float32]] = {}
    failures: list[Failure] = []
    with (
        _evaluating(network),
        tqdm(
            total=len(inputs),
            desc=description,
            unit="clip",
            disable=_bar_is_off(progress, len(inputs)),
        ) as bar,
    ):

        def readable() -> Iterator[tuple[int, NDArray[np.float32]]]:
            """Waveforms in order; long recordings are finished here, failures noted."""
            stream = read_ahead(
                range(len(inputs)),
                lambda index: _read(inputs[index], encoder.grid),
                threads,
                threads * _WAVEFORM_AHEAD,
            )
            with contextlib.closing(stream):
                for index, item in stream:
                    if isinstance(item, _LongRecording):
                        try:
                            results[index] = encoder.encode_recording(item, threads)
                            bar.update()
                            continue
                        except AudioError as error:
                            item = error
                    if isinstance(item, Exception):
                        if on_error == "raise" or not isinstance(item, AudioError):
                            raise item
                        failures.append(Failure(index, item.file, item.reason))
                        bar.update()
                        continue
                    yield index, item

        for batch in length_sorted_batches(readable(), batch_size):
            embeddings = encoder.encode_batch([waveform for _, waveform in batch])
            results.update(zip((index for index, _ in batch), embeddings, strict=True))
            bar.update(len(batch))

    kept = sorted(results)
    return Encoded(
        [results[index] for index in kept],
        kept,
        sorted(failures, key=lambda failure: failure.index),
        str(dtype).removeprefix("torch."),
    )


@dataclass(frozen=True)
class _Grid:
    """How a long recording is cut so that its windows share one grid of tokens.

    A window of K time steps advances by K steps, and reads the samples of its last step to their end:
    the next window starts where the next token would.
    """

    hop: int
    window: int
    minimum: int

    @classmethod
    def for_network(cls, network: BEATs, window_s: float) -> "_Grid":
        patch = network.architecture.input_patch_size
        step = patch * FRAME_SHIFT
        overlap = FRAME_LENGTH - FRAME_SHIFT
        num_steps = int((window_s * SAMPLE_RATE - overlap) // step)
        if num_steps < 1:
            raise ValueError(
                f"window_s must be at least {min_samples(patch) / SAMPLE_RATE} s, not {window_s}."
            )
        return cls(num_steps * step, num_steps * step + overlap, min_samples(patch))

    def starts(self, num_samples: int) -> range:
        """First sample of each window; a tail too short for a token adds none, as in the whole."""
        return range(0, max(1, num_samples - self.minimum + 1), self.hop)


@dataclass(frozen=True)
class _LongRecording:
    """A recording, or part of one, that is read window by window."""

    source: Clip | NDArray[np.float32]
    num_samples: int

    def read(self, start: int, length: int) -> NDArray[np.float32]:
        if not isinstance(self.source, Clip):
            return self.source[start : start + length]
        length = min(length, self.num_samples - start)
        return load_audio(
            self.source.file, self.source.start_s + start / SAMPLE_RATE, length / SAMPLE_RATE
        )


def _read(source: ClipInput, grid: _Grid) -> NDArray[np.float32] | _LongRecording:
    """Decode one input, unless it is too long to be held and encoded at once."""
    if isinstance(source, np.ndarray):
        if len(source) > grid.window:
            return _LongRecording(source, len(source))
        return source
    clip = source if isinstance(source, Clip) else Clip(os.fspath(source))
    duration_s = clip.duration_s
    if duration_s is None or duration_s * SAMPLE_RATE > grid.window:
        whole_s = probe_audio(clip.file).duration_s - clip.start_s
        duration_s = whole_s if duration_s is None else min(duration_s, whole_s)
        num_samples = round(duration_s * SAMPLE_RATE)
        if num_samples > grid.window:
            return _LongRecording(clip, num_samples)
    return load_audio(clip.file, clip.start_s, clip.duration_s)


class _Encoder:
    """The network with everything that stays the same from batch to batch."""

    def __init__(
        self,
        network: BEATs,
        pooling: str | AttentivePooling,
        layer: Layer,
        device: torch.device,
        dtype: torch.dtype,
        grid: _Grid,
    ) -> None:
        self.network = network
        self.pooling = pooling
        self.layer: Layer = "all" if isinstance(pooling, AttentivePooling) else layer
        self.device = device
        self.dtype = dtype
        self.grid = grid

    def encode_batch(self, waveforms: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """One embedding per waveform."""
        return [
            self._pool(tokens_LTD)
            for group in self._groups(waveforms)
            for tokens_LTD in self._tokens(group)
        ]

    def encode_recording(self, recording: _LongRecording, num_threads: int) -> NDArray[np.float32]:
        """One embedding of a recording that is longer than a window."""
        starts = self.grid.starts(recording.num_samples)
        windows = read_ahead(
            starts, lambda start: recording.read(start, self.grid.window), num_threads, num_threads
        )
        pooled = _RunningPool(self.pooling)
        with contextlib.closing(windows):
            for _, waveform in windows:
                if isinstance(waveform, Exception):
                    raise waveform
                (tokens_LTD,) = self._tokens([waveform])
                pooled.add(tokens_LTD)
        return self._shape(pooled.result())

    def _groups(
        self, waveforms: Sequence[NDArray[np.float32]]
    ) -> Iterator[Sequence[NDArray[np.float32]]]:
        """Cut a batch so that its attention fits into a fixed amount of memory."""
        architecture = self.network.architecture
        longest = max(len(waveform) for waveform in waveforms)
        num_tokens = longest / self.grid.hop * self._tokens_per_window()
        per_clip = 4 * architecture.encoder_attention_heads * max(num_tokens, 8) ** 2
        size = max(1, int(_ATTENTION_BYTES // per_clip))
        for start in range(0, len(waveforms), size):
            yield waveforms[start : start + size]

    def _tokens_per_window(self) -> int:
        architecture = self.network.architecture
        steps = self.grid.hop // (architecture.input_patch_size * FRAME_SHIFT)
        return steps * architecture.patches_per_step

    def _tokens(self, waveforms: Sequence[NDArray[np.float32]]) -> Iterator[Tensor]:
        """Each clip's real tokens, shape ``(1 or L + 1, T, D)``, float32."""
        batch = collate_waveforms(waveforms).to(self.device)
        last = self.network.architecture.encoder_layers
        with torch.inference_mode(), autocast(self.device, self.dtype):
            output = self.network(batch.waveforms, batch.lengths, output_layers=self.layer != last)
        if output.layers is None:
            layers_LBTD = output.tokens[None]
        elif self.layer == "all":
            layers_LBTD = output.layers
        else:
            layers_LBTD = output.layers[self.layer : self.layer + 1]
        for index, num_tokens in enumerate(output.token_lengths.tolist()):
            yield layers_LBTD[:, index, :num_tokens].float()

    def _pool(self, tokens_LTD: Tensor) -> NDArray[np.float32]:
        if isinstance(self.pooling, AttentivePooling):
            with torch.inference_mode():
                return self._shape(self.pooling(tokens_LTD[:, None]))
        if self.pooling == "none":
            return self._shape(tokens_LTD)
        return self._shape(pool_tokens(tokens_LTD, mode=self.pooling))  # type: ignore[arg-type]

    def _shape(self, values: Tensor) -> NDArray[np.float32]:
        """To an array, without the axis that stands for one layer or one mix of them."""
        if self.layer != "all" or isinstance(self.pooling, AttentivePooling):
            values = values[0]
        array: NDArray[np.float32] = values.cpu().numpy()
        if not np.isfinite(array).all():
            raise BEATsTrainerError(
                f"The network gave values that are not finite in {self.dtype}. Use "
                "precision='float32'; if that does not help, the weights are damaged."
            )
        return array


class _RunningPool:
    """Pooling over windows that arrive one after another, equal to pooling all tokens at once."""

    def __init__(self, pooling: str | AttentivePooling) -> None:
        self.pooling = pooling
        self.num_tokens = 0
        self.value: Any = None
        self.attended: PartialPooling | None = None
        self.parts: list[Tensor] = []

    def add(self, tokens_LTD: Tensor) -> None:
        if isinstance(self.pooling, AttentivePooling):
            with torch.inference_mode():
                part = self.pooling.partial(tokens_LTD[:, None]).to(_sum_dtype(tokens_LTD))
                self.attended = part if self.attended is None else self.attended.merge(part)
            return
        if self.pooling == "none":
            self.parts.append(tokens_LTD.cpu())
            return
        if self.pooling == "mean":
            # Sums in double: a day of tokens must not lose its last ones to rounding.
            total = tokens_LTD.sum(dim=1, dtype=_sum_dtype(tokens_LTD))
            self.value = total if self.value is None else self.value + total
        elif self.pooling == "max":
            peak = tokens_LTD.amax(dim=1)
            self.value = peak if self.value is None else torch.maximum(self.value, peak)
        elif self.pooling == "last" or self.value is None:
            self.value = tokens_LTD[:, -1 if self.pooling == "last" else 0]
        self.num_tokens += tokens_LTD.shape[1]

    def result(self) -> Tensor:
        """Shape ``(1 or L + 1, D)``, or ``(1 or L + 1, T, D)`` for pooling ``"none"``."""
        if self.attended is not None:
            return self.attended.result().float()
        if self.pooling == "none":
            return torch.cat(self.parts, dim=1)
        pooled: Tensor = self.value / self.num_tokens if self.pooling == "mean" else self.value
        return pooled.float()


def _sum_dtype(tokens: Tensor) -> torch.dtype:
    return torch.float32 if tokens.device.type == "mps" else torch.float64  # MPS has no double


@contextlib.contextmanager
def _evaluating(network: BEATs) -> Iterator[None]:
    """Dropout and layer drop are off inside; the network's modes are put back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _bar_is_off(progress: bool | None, num_inputs: int) -> bool | None:
    if progress is not None:
        return not progress
    return None if num_inputs > 1 else True  # None: tqdm shows it on a terminal only


def files_of(inputs: Sequence[ClipInput]) -> list[str]:
    """Name each input for a table: its file, or ``array i``."""
    names = []
    for index, source in enumerate(inputs):
        if isinstance(source, np.ndarray):
            names.append(f"array {index}")
        else:
            names.append(source.file if isinstance(source, Clip) else str(Path(source)))
    return names
