"""Clips and targets -> seeded loaders of batches, for training a whole network.

Clip, target -> [dataset -> loader] -> (AudioBatch, targets)

Shapes in this file: N clips, B clips of a batch, C classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from beats_trainer.audio import load_audio, probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import AudioError
from beats_trainer.loading.batches import AudioBatch, collate_waveforms
from beats_trainer.loading.clips import Clip

__all__ = ["ClipDataset", "make_data_loader"]


class ClipDataset(Dataset["tuple[Tensor, Tensor] | AudioError"]):
    """Waveforms ``(S,)`` with their targets, read when they are asked for.

    An unreadable clip raises `AudioError`. In a worker process of torch's the error is given in place of
    the item, because torch would make a nameless one of it; the loader of `make_data_loader` raises it.

    Args:
        clips: What to read; or waveforms ``(S,)`` at 16 kHz that were read before.
        targets: One per clip: class ids ``(N,)``, or a row of values per class ``(N, C)``.
        crop_s: Longer clips are cut to a random part of this many seconds; ``None`` keeps them whole.
        seed: Of the random parts: the same seed cuts the same parts, in whatever order and process the
            clips are read.

    Raises:
        ValueError: If there are not as many targets as clips.
    """

    def __init__(
        self,
        clips: Sequence[Clip | NDArray[np.float32]],
        targets: Sequence[int] | NDArray[Any],
        crop_s: float | None = None,
        seed: int = 0,
    ) -> None:
        if len(clips) != len(targets):
            raise ValueError(f"{len(clips)} clips and {len(targets)} targets.")
        self.clips = list(clips)
        self.targets = torch.as_tensor(np.asarray(targets))
        self.crop_s = crop_s
        self.seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | AudioError:
        clip = self.clips[index]
        try:
            waveform = self._read(clip, index) if isinstance(clip, Clip) else clip
        except AudioError as error:
            if get_worker_info() is None:
                raise
            return error
        if not isinstance(clip, Clip) and self.crop_s is not None:
            length = round(self.crop_s * SAMPLE_RATE)
            start = self._skipped(len(clip) - length, index)
            waveform = clip[start : start + length]
        return torch.from_numpy(waveform), self.targets[index]

    def _read(self, clip: Clip, index: int) -> NDArray[np.float32]:
        """Read a clip, or a random part of it."""
        if self.crop_s is not None:
            duration_s = probe_audio(clip.file).duration_s - clip.start_s
            if clip.duration_s is not None:
                duration_s = min(duration_s, clip.duration_s)
            spare = round(duration_s * SAMPLE_RATE) - round(self.crop_s * SAMPLE_RATE)
            if spare > 0:
                start_s = clip.start_s + self._skipped(spare, index) / SAMPLE_RATE
                return load_audio(clip.file, start_s, self.crop_s)
        return load_audio(clip.file, clip.start_s, clip.duration_s)

    def _skipped(self, spare: int, index: int) -> int:
        """How many samples to leave out at a clip's start, of the spare ones."""
        if spare <= 0:
            return 0
        # A generator of its own per clip: what is cut does not depend on who reads it when.
        return int(np.random.default_rng([self.seed, index]).integers(spare + 1))


class _ClipLoader(DataLoader["tuple[Tensor, Tensor]"]):
    """A loader that raises what its workers could not read, with the name of the file."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, AudioError):
                raise batch
            yield batch


def make_data_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    num_workers: int = 0,
    seed: int = 0,
    pin_memory: bool = False,
    batches: Sequence[Sequence[int]] | None = None,
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Load a dataset in batches of ``(AudioBatch, targets (B,) or (B, C))``; every clip is in one.

    Args:
        dataset: What to load.
        batch_size: Clips of a batch; the last one may be smaller.
        shuffle: Whether the order is random, by ``seed``.
        num_workers: Processes that read; 0 reads in this one. Never more are started than there are
            batches.
        seed: Of the order.
        pin_memory: For faster copies to a GPU.
        batches: Which clips make which batch, in place of ``batch_size`` and ``shuffle``.

    Returns:
        A loader. Iterating over it raises `AudioError` where a clip cannot be read.

    Raises:
        ValueError: If ``batch_size`` is less than 1 or ``num_workers`` negative.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            "batch_size must be at least 1 and num_workers at least 0, "
            f"not {batch_size} and {num_workers}."
        )
    options: dict[str, Any] = {}
    if num_workers > 0:
        options = {"persistent_workers": True, "prefetch_factor": 4}
        num_workers = min(num_workers, max(1, -(-len(dataset) // batch_size)))
    if batches is None:
        options |= {"batch_size": batch_size, "shuffle": shuffle}
    else:
        options["batch_sampler"] = batches
    return _ClipLoader(
        dataset,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=pin_memory,
        **options,
    )


def _collate(
    items: list[tuple[Tensor, Tensor] | AudioError],
) -> tuple[AudioBatch, Tensor] | AudioError:
    readable = []
    for item in items:
        if isinstance(item, AudioError):
            return item
        readable.append(item)
    return (
        collate_waveforms([waveform for waveform, _ in readable]),
        torch.stack([target for _, target in readable]),
    )
