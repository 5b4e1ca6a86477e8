"""The network with its pooling: waveforms of a batch in, what is kept of each out.

waveforms -> [batches that fit into memory -> encoder -> pooling] -> parts -> [merge] -> values of a clip

A clip that goes through in several pieces is pooled over all their tokens.

Shapes in this file: B clips, T tokens (time-major: 8 frequency patches per time step), S time steps, D
width, L layers, K layers that are kept.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beats_trainer.embeddings.batch_size import (
    BatchLimit,
    BatchSize,
    attention_bytes,
    batch_limit,
)
from beats_trainer.embeddings.pieces import TokenGrid
from beats_trainer.errors import BEATsTrainerError
from beats_trainer.loading import collate_waveforms
from beats_trainer.model.beats import BEATs, BEATsOutput
from beats_trainer.model.compiled import compiled_for_inference
from beats_trainer.model.lengths import count_frames, count_tokens
from beats_trainer.model.packed import prepared_for_inference
from beats_trainer.model.pooling import (
    POOLING_MODES,
    AttentivePooling,
    PartialPooling,
    PoolingMode,
    pool_tokens,
    pooled_width,
)
from beats_trainer.model.precision import autocast, resolve_precision

__all__ = [
    "DEFAULT_WINDOW_S",
    "POOLINGS",
    "Encoder",
    "Encoding",
    "Layer",
    "Part",
    "check_layer",
    "check_pooling",
]

Layer: TypeAlias = int | Literal["all"] | tuple[int, ...]
"""0 is the input of the first layer, -1 the output of the last; several are kept side by side."""

POOLINGS = (*POOLING_MODES, "none")
"""What ``pooling`` may be; ``"none"`` keeps every token."""

DEFAULT_WINDOW_S = 30.0
"""Longest stretch that attention sees at once. BEATs was trained on 10 s; attention costs the square."""


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
        ValueError: If the network has no such layer, or one is asked for twice.

    Example:
        >>> check_layer(-1, 12)
        12
        >>> check_layer((6, -1), 12)
        (6, 12)
    """
    if layer == "all":
        return layer
    if isinstance(layer, tuple | list):
        layers = tuple(_from_front(one, num_layers) for one in layer)
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"Expected different layers, at least one, not {layer}.")
        return layers
    return _from_front(layer, num_layers)


def _from_front(layer: object, num_layers: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"layer must be a whole number or 'all', not {layer!r}.")
    if not -(num_layers + 1) <= layer <= num_layers:
        raise ValueError(
            f"There is no layer {layer}: this network has 0 (the input of the first layer) to "
            f"{num_layers} (the last), or -1 to -{num_layers + 1} from the end."
        )
    return layer % (num_layers + 1)


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of a piece of a clip, until the clip is whole.

    Attributes:
        values: Shape ``(K, D)`` pooled, ``(K, T, D)`` or ``(K, S, D)`` otherwise; float32.
        num_tokens: Real tokens that were pooled.
        attended: The piece's share of a learned pooling, if the clip has more than one piece.
    """

    values: NDArray[np.float32]
    num_tokens: int
    attended: PartialPooling | None = None


class Encoder:
    """A network that stays as it is, with how its tokens become what is kept.

    Args:
        network: Where it is, its device is used.
        pooling: ``"mean"``, ``"max"``, ``"first"``, ``"last"``, ``"bands"`` (see `pool_tokens`), or ``"none"``
            for every token. Or a learned pooling on the network's device, which reads all layers (leave ``layer`` at -1).
        layer: 0 (the first layer's input) to L (the last layer), negative from the end, several, or
            ``"all"``.
        per_step: Pool the frequency patches of each time step (160 ms), instead of all tokens of a clip.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        window_s: Seconds that are encoded at once.
        compile: Whether a GPU runs the encoder compiled, see `compiled_for_inference`; on a CPU, where weights
            are packed instead, this has no effect.

    Raises:
        ValueError: If an argument is not as described.

    Attributes:
        grid: How clips longer than ``window_s`` are cut.
    """

    def __init__(
        self,
        network: BEATs,
        pooling: str | AttentivePooling = "mean",
        layer: Layer = -1,
        *,
        per_step: bool = False,
        precision: str = "auto",
        window_s: float = DEFAULT_WINDOW_S,
        compile: bool = False,
    ) -> None:
        last = network.architecture.encoder_layers
        layer = check_layer(layer, last)
        if isinstance(pooling, AttentivePooling):
            pooling.require_fit(network.architecture)
            if layer != last:
                raise ValueError(
                    f"A learned pooling reads all layers: leave layer at -1, not {layer!r}."
                )
        else:
            pooling = check_pooling(pooling)
        if per_step and pooling == "none":
            raise ValueError("Per time step the patches are pooled: choose a pooling but 'none'.")
        self.network = network
        self._running = network
        self.pooling = pooling
        self.per_step = per_step
        self.device = next(network.parameters()).device
        self.dtype = resolve_precision(precision, self.device)
        self._is_compiled = compile and self.device.type == "cuda"
        if compile and not self._is_compiled:
            warnings.warn(
                f"compile has no effect on {self.device.type}: it is for CUDA.",
                UserWarning,
                stacklevel=2,
            )
        self._attention_bytes = attention_bytes(self.device)
        self.grid = TokenGrid.of(network.architecture, window_s)
        self.is_single = isinstance(layer, int)
        self.layers: tuple[int, ...] = (
            (layer,) if isinstance(layer, int) else tuple(range(last + 1))
        )
        if isinstance(layer, tuple):
            self.layers = layer
        self._needs_layers = isinstance(pooling, AttentivePooling) or self.layers != (last,)

    @property
    def precision(self) -> str:
        """The number format that runs: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def width(self) -> int:
        """Width D of what is kept."""
        mode = "attentive" if isinstance(self.pooling, AttentivePooling) else self.pooling
        return pooled_width(self.network.architecture, mode)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout and layer drop are off inside; the network's modes are put back afterwards."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        self._running = (
            compiled_for_inference(self.network)
            if self._is_compiled
            else prepared_for_inference(self.network, self.dtype)
        )
        self._attention_bytes = attention_bytes(self.device)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def batch_limit(self, batch_size: BatchSize = None) -> BatchLimit:
        """What ends a batch: a number of clips, or what suits the network and its device.

        Raises:
            ValueError: If ``batch_size`` is no such number.
        """
        a = self.network.architecture
        num_held = a.encoder_layers + 1 + len(self.layers) if self._needs_layers else 1
        return batch_limit(batch_size, a, self.device, num_held)

    def count_tokens(self, num_samples: int) -> int:
        """Tokens of a piece of so many samples."""
        patch = self.network.architecture.input_patch_size
        return count_tokens(count_frames(num_samples, patch), patch)

    def encode_batch(self, waveforms: Sequence[NDArray[np.float32]]) -> "Encoding":
        """Give waveforms ``(S_i,)`` at 16 kHz to the network, inside `evaluating`.

        On a GPU the program does not wait for it: give it the next batch before looking at this one's parts.
        """
        return Encoding(self, [self._launch(waveforms[i:j]) for i, j in self._groups(waveforms)])

    def _launch(self, waveforms: Sequence[NDArray[np.float32]]) -> "_Launched":
        """Encode what fits into memory at once. Nothing in here may look at a value on the device."""
        batch = collate_waveforms(waveforms, pin_memory=self.device.type == "cuda")
        token_lengths = [self.count_tokens(len(waveform)) for waveform in waveforms]
        with torch.inference_mode():
            moved = batch.waveforms.to(self.device, non_blocking=True)
            with autocast(self.device, self.dtype):
                output = self._running(moved, batch.lengths, output_layers=self._needs_layers)
            kept = self._keep(output, torch.tensor(token_lengths))
            if self.device.type != "cuda":
                return _Launched(kept.cpu(), token_lengths)
            copy = kept.to("cpu", non_blocking=True)
            is_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_copied.record(torch.cuda.current_stream(self.device))
            return _Launched(copy, token_lengths, is_copied)

    def merge(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Put the pieces of one clip together, in time order.

        Returns:
            Shape ``(D,)`` pooled, ``(T, D)`` for pooling ``"none"``, ``(S, D)`` per time step; with several
            layers a leading axis of K.
        """
        values = parts[0].values if len(parts) == 1 else self._merge_several(parts)
        if not np.isfinite(values).all():
            raise BEATsTrainerError(
                f"The network gave values that are not finite in {self.dtype}. Use "
                "precision='float32'; if that does not help, the weights are damaged."
            )
        return values[0] if self.is_single else values

    def _groups(self, waveforms: Sequence[NDArray[np.float32]]) -> Iterator[tuple[int, int]]:
        """Cut a batch so that its attention fits into a fixed amount of memory."""
        architecture = self.network.architecture
        longest = max(len(waveform) for waveform in waveforms)
        num_tokens = longest / self.grid.step * architecture.patches_per_step
        per_clip = 4 * architecture.encoder_attention_heads * max(num_tokens, 8) ** 2
        size = max(1, int(self._attention_bytes // per_clip))
        for start in range(0, len(waveforms), size):
            yield start, start + size

    def _keep(self, output: BEATsOutput, token_lengths: Tensor) -> Tensor:
        """Reduce a batch on the device to one tensor; `_parts` knows how it is laid out."""
        if isinstance(self.pooling, AttentivePooling):
            assert output.layers is not None
            return self._attend(self.pooling, output.layers, token_lengths)
        kept_KBTD = (
            output.tokens[None]
            if output.layers is None
            else torch.stack([output.layers[layer] for layer in self.layers])
        )
        kept_KBTD = kept_KBTD.float()
        if self.pooling == "none":
            return kept_KBTD
        mode: PoolingMode = self.pooling  # type: ignore[assignment]
        num_layers, num_clips, _, width = kept_KBTD.shape
        patches = self.network.architecture.patches_per_step
        if self.per_step:
            steps = pool_tokens(
                kept_KBTD.reshape(-1, patches, width), mode=mode, patches_per_step=patches
            )
            return steps.reshape(num_layers, num_clips, -1, self.width)
        token_lengths = token_lengths.repeat(num_layers)
        pooled = pool_tokens(kept_KBTD.flatten(0, 1), token_lengths, mode, patches)
        return pooled.reshape(num_layers, num_clips, self.width)

    def _attend(
        self, pooling: AttentivePooling, layers_LBTD: Tensor, token_lengths: Tensor
    ) -> Tensor:
        if self.per_step:
            patches = self.network.architecture.patches_per_step
            num_layers, num_clips, _, width = layers_LBTD.shape
            steps = pooling(layers_LBTD.reshape(num_layers, -1, patches, width))
            pooled: Tensor = steps.reshape(1, num_clips, -1, width)
            return pooled
        share = pooling.partial(layers_LBTD, token_lengths)
        return torch.cat([share.peak, share.weight, share.total.flatten(1)], dim=1)

    def parts_of(self, kept: Tensor, token_lengths: Sequence[int]) -> list[Part]:
        """Cut what was kept of a batch, in memory, into its clips'."""
        if isinstance(self.pooling, AttentivePooling) and not self.per_step:
            return _shares(kept, self.pooling.num_heads, token_lengths)
        values = kept.numpy()
        if self.per_step or self.pooling == "none":
            tokens_per_row = self.network.architecture.patches_per_step if self.per_step else 1
            return [
                Part(values[:, index, : length // tokens_per_row].copy(), length)
                for index, length in enumerate(token_lengths)
            ]
        return [Part(values[:, index], length) for index, length in enumerate(token_lengths)]

    def _merge_several(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        if self.per_step or self.pooling == "none":
            return np.concatenate([part.values for part in parts], axis=1)
        if isinstance(self.pooling, AttentivePooling):
            merged: PartialPooling | None = None
            for part in parts:
                assert part.attended is not None
                share = part.attended.to(torch.float64)
                merged = share if merged is None else merged.merge(share)
            assert merged is not None
            values: NDArray[np.float32] = merged.result().float().numpy()
            return values
        if self.pooling == "first":
            return parts[0].values
        if self.pooling == "last":
            return parts[-1].values
        stacked = np.stack([part.values for part in parts])
        if self.pooling == "max":
            peak: NDArray[np.float32] = stacked.max(axis=0)
            return peak
        # In double: a day of tokens must not lose its last ones to rounding.
        weights = np.array([part.num_tokens for part in parts], np.float64)
        return np.average(stacked.astype(np.float64), axis=0, weights=weights).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Launched:
    """What is kept of some clips, as far as it has come.

    Attributes:
        kept: As `Encoder.parts_of` takes it; not to be looked at before ``is_copied``.
        token_lengths: Real tokens of each clip.
        is_copied: Where a GPU copies on its own.
    """

    kept: Tensor
    token_lengths: list[int]
    is_copied: torch.cuda.Event | None = None


class Encoding:
    """A batch that the network was given."""

    def __init__(self, encoder: Encoder, launched: Sequence[_Launched]) -> None:
        self._encoder = encoder
        self._launched = launched

    def parts(self) -> list[Part]:
        """What is kept of each clip, in the order given; waits until it is there."""
        parts: list[Part] = []
        for launched in self._launched:
            kept = launched.kept
            if launched.is_copied is not None:
                launched.is_copied.synchronize()
                kept = kept.clone()  # out of the memory that the GPU writes to, which is scarce
            parts += self._encoder.parts_of(kept, launched.token_lengths)
        return parts


def _shares(kept: Tensor, num_heads: int, token_lengths: Sequence[int]) -> list[Part]:
    """The parts of a learned pooling, of peaks, weights and totals side by side."""
    peak, weight, total = kept.tensor_split([num_heads, 2 * num_heads], dim=1)
    total = total.reshape(len(total), num_heads, -1)
    values = PartialPooling(peak, weight, total).result().float().numpy()
    parts = []
    for index, length in enumerate(token_lengths):
        row = slice(index, index + 1)
        share = PartialPooling(peak[row], weight[row], total[row])
        parts.append(Part(values[row], length, share))
    return parts
