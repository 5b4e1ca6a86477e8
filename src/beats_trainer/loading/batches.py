"""Waveforms -> batches: zero-padded, with their lengths, of like length side by side.

Shapes in this file: B clips, S samples of the longest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "MOST_PADDING",
    "MOST_POOLED",
    "POOL_BATCHES",
    "AudioBatch",
    "collate_waveforms",
    "length_sorted_batches",
]

_MOST_SAMPLES = 16_000 * 60 * 60
"""Samples that wait to be batched, or that a padded batch has, at most: an hour at 16 kHz, 230 MB."""

MOST_POOLED = 16_000 * 60 * 20
"""Samples from which on the next full batch ends a pool: 20 minutes at 16 kHz, 77 MB."""

POOL_BATCHES = 16
"""Batches that are sorted by length together."""

MOST_PADDING = 0.1
"""Share of a batch that may be padding: it ends before a clip with which there would be more."""


@dataclass(frozen=True)
class AudioBatch:
    """Waveforms of several clips.

    Attributes:
        waveforms: Shape ``(B, S)``, float32 at 16 kHz, zero-padded at the end.
        lengths: Real samples per clip, shape ``(B,)``, int64.
    """

    waveforms: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> "AudioBatch":
        """The same batch on another device."""
        return AudioBatch(
            self.waveforms.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True)
        )

    def pin_memory(self) -> "AudioBatch":
        """The same batch in memory that a GPU reads faster; torch's loaders call this."""
        return AudioBatch(self.waveforms.pin_memory(), self.lengths.pin_memory())

    def __len__(self) -> int:
        return len(self.lengths)


def collate_waveforms(
    waveforms: Sequence[NDArray[np.float32] | Tensor], pin_memory: bool = False
) -> AudioBatch:
    """Zero-pad waveforms ``(S_i,)`` to the longest.

    Args:
        waveforms: At least one.
        pin_memory: Put them where a GPU reads them without a copy, while the program goes on.

    Raises:
        ValueError: If there are none, or one is empty or not one-dimensional.

    Example:
        >>> collate_waveforms([np.ones(2, np.float32), np.ones(3, np.float32)]).lengths
        tensor([2, 3])
    """
    shapes = [tuple(waveform.shape) for waveform in waveforms]
    if not shapes or any(len(shape) != 1 or shape[0] == 0 for shape in shapes):
        raise ValueError(f"Expected waveforms of shape (samples,), got shapes {shapes}.")
    lengths = torch.tensor([shape[0] for shape in shapes])
    padded = torch.zeros(len(shapes), int(lengths.max()), pin_memory=pin_memory)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.as_tensor(waveform)
    return AudioBatch(padded, lengths)


def length_sorted_batches(
    stream: Iterable[tuple[int, NDArray[np.float32]]],
    batch_size: int,
    pool_batches: int = POOL_BATCHES,
    *,
    cost_of: Callable[[int], int] = int,
    most_cost: int | None = None,
    most_padding: float = MOST_PADDING,
) -> Iterator[list[tuple[int, NDArray[np.float32]]]]:
    """Group a stream of waveforms into batches of like length, so that little is padding.

    Collects a pool, sorts it by length, gives it out in batches, and begins the next one. Memory is
    bounded: a pool by ``pool_batches * batch_size`` clips and 20 minutes of sound (up to an hour, to end
    with a full batch), a batch by an hour with its padding; a longer clip comes alone.

    Args:
        stream: Waveforms ``(S_i,)`` with an index that tells whose they are.
        batch_size: Most clips in a batch.
        pool_batches: Batches in a pool.
        cost_of: What a clip of so many samples costs, and each shorter one that is padded to it; never less
            for more samples.
        most_cost: Most that a batch may cost; a clip that costs more comes alone.
        most_padding: Share of a batch's cost that may be padding.

    Yields:
        Up to ``batch_size`` waveforms with their indices, the longest pairs first.

    Example:
        >>> clips = [np.zeros(length, np.float32) for length in (50, 10, 48, 20, 19)]
        >>> batches = length_sorted_batches(enumerate(clips), 2)
        >>> [[len(clip) for _, clip in batch] for batch in batches]
        [[50, 48], [20, 19], [10]]
    """
    if batch_size < 1 or pool_batches < 1:
        raise ValueError("batch_size and pool_batches must be at least 1.")
    pool: list[tuple[int, NDArray[np.float32]]] = []
    num_samples = 0

    def batches() -> Iterator[list[tuple[int, NDArray[np.float32]]]]:
        """Empty the pool, batch by batch: what is encoded need not be kept until all is."""
        # The longest first: what does not fit into memory fails at once, not at the end.
        pool.sort(key=lambda item: -len(item[1]))
        costs = [cost_of(len(waveform)) for _, waveform in pool]
        while pool:
            size = min(batch_size, _MOST_SAMPLES // max(1, len(pool[0][1])))
            if most_cost is not None:
                size = min(size, most_cost // max(1, costs[0]))
            size = _with_little_padding(costs[: max(1, size)], most_padding)
            batch = pool[:size]
            del pool[:size], costs[:size]
            yield batch

    for index, waveform in stream:
        pool.append((index, waveform))
        num_samples += len(waveform)
        is_even = most_cost is not None or len(pool) % batch_size == 0
        is_long = num_samples >= MOST_POOLED and is_even
        if is_long or num_samples >= _MOST_SAMPLES or len(pool) >= pool_batches * batch_size:
            yield from batches()
            num_samples = 0
    yield from batches()


def _with_little_padding(costs: Sequence[int], most_padding: float) -> int:
    """How many clips, from the first and longest on, a batch may have."""
    real = 0
    for count, cost in enumerate(costs):
        real += cost
        if real < (1 - most_padding) * (count + 1) * costs[0]:
            return max(1, count)
    return len(costs)
