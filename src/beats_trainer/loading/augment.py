"""Change training clips at random, so that the network does not learn them by heart.

AudioBatch, targets -> [custom -> roll -> polarity -> gain -> background -> mixup] -> waveforms, lengths, targets

The steps run in this order, so that what mixup joins are clips that were already changed. All that is random
comes from the generator of the call, on the CPU: the same seed gives the same bits, and the same draws on
another device. Each step has a stream of its own: to turn one on or off leaves the draws of the others.

Shapes in this file: B clips, S samples, C classes.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.loading.background import BackgroundLibrary, mix_at_snr
from beats_trainer.loading.batches import collate_waveforms

__all__ = ["ClipChange", "WaveformAugmentation"]

ClipChange: TypeAlias = Callable[[NDArray[np.float32], int], NDArray[Any]]
"""Any function of one clip's samples ``(S,)`` float32 and their rate in Hz that returns samples ``(S',)``."""


@dataclass(frozen=True, kw_only=True)
class WaveformAugmentation:
    """A seeded change of a batch of training clips; the settings are fixed, and all off by default.

    Mixup (arXiv 1710.09412) takes ``lam * clip + (1 - lam) * other`` of waveforms and of targets alike,
    with ``lam`` from Beta(alpha, alpha) and the other clip from the same batch. The waveforms' levels are
    not evened out: what is loud stays loud, and two unrelated sounds mixed half and half are 3 dB quieter.
    ESPnet's recipe for BEATs on AudioSet has ``mixup_alpha=0.8, mixup_probability=0.8`` and rolls each
    clip; on ESC-50 it has no mixup.

    Raises:
        ValueError: If a setting is out of its range.

    Example:
        >>> augment = WaveformAugmentation(mixup_alpha=0.8)
        >>> waveforms, lengths = torch.ones(2, 3), torch.tensor([3, 3])
        >>> generator = torch.Generator().manual_seed(0)
        >>> mixed, lengths, targets = augment(waveforms, lengths, torch.eye(2), generator)
        >>> targets.sum(dim=1)
        tensor([1., 1.])
    """

    gain_db: float = 0.0
    """Each clip is made louder or quieter by up to this many dB; 0 is off."""
    roll: bool = False
    """Each clip begins somewhere in its middle, and what was before follows its end."""
    polarity: bool = False
    """Half of the clips, by chance, change their sign."""
    mixup_alpha: float = 0.0
    """Of the Beta distribution of mixup's shares; 0 is off, 1 is uniform, small ones mix little."""
    mixup_probability: float = 1.0
    """Share of the clips that are mixed with another."""
    background: BackgroundLibrary | None = None
    """Recordings to hide the clips in; targets stay as they are."""
    background_snr_db: tuple[float, float] = (5.0, 20.0)
    """Lowest and highest ratio of clip to background, in dB of their powers; uniform between them."""
    background_probability: float = 0.5
    """Share of the clips that get a background."""
    custom: ClipChange | None = None
    """Runs on each clip before all else, such as a ``Compose`` of the library audiomentations. While it runs,
    the global generators of Python, NumPy and torch (CPU) are seeded; they are put back afterwards."""

    def __post_init__(self) -> None:
        for name in ("gain_db", "mixup_alpha"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a number of at least 0, not {value}.")
        for name in ("mixup_probability", "background_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {value}.")
        ratios = tuple(self.background_snr_db)
        if len(ratios) != 2 or not all(map(math.isfinite, ratios)) or ratios[0] > ratios[1]:
            raise ValueError(
                "background_snr_db must be the lowest and the highest ratio in dB, such as (5, 20), "
                f"not {self.background_snr_db}."
            )
        object.__setattr__(self, "background_snr_db", ratios)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is ever changed.

        Example:
            >>> WaveformAugmentation(mixup_alpha=0.8, mixup_probability=0.0).is_identity
            True
        """
        return not (
            self.custom is not None
            or self.roll
            or self.polarity
            or self.gain_db > 0
            or self._adds_background
            or self._mixes
        )

    @property
    def _adds_background(self) -> bool:
        return self.background is not None and self.background_probability > 0

    @property
    def _mixes(self) -> bool:
        return self.mixup_alpha > 0 and self.mixup_probability > 0

    def __call__(
        self, waveforms: Tensor, lengths: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Change a batch. What is passed in stays as it is.

        Args:
            waveforms: Shape ``(B, S)``, float at 16 kHz; what follows a clip's end is ignored.
            lengths: Real samples per clip, shape ``(B,)``, integer, each in ``1..S``.
            targets: Shape ``(B, C)``, float: one-hot or any number of ones; NaN where unknown.
            generator: On the CPU. One call takes one number from it, whatever the settings.

        Returns:
            Waveforms ``(B, S')``, zero after each clip's end, not clipped to -1..1; lengths ``(B,)``;
            targets ``(B, C)``; on the devices they came from. A clip mixed with a longer one is as long
            as that. A class that is unknown in either of two mixed clips is unknown in the mixture. A
            batch of one clip is not mixed. Without any change (`is_identity`) the arguments themselves.

        Raises:
            ValueError: If shapes or lengths are not as above, or ``custom`` returns no samples.
            AudioError: If a background recording cannot be read; names it.
        """
        _check_batch(waveforms, lengths, targets)
        if self.is_identity:
            return waveforms, lengths, targets
        streams = _streams(generator)
        lengths = lengths.to(waveforms.device)
        if self.custom is not None:
            waveforms, lengths = self._run_custom(self.custom, waveforms, lengths, streams[0])
        else:
            waveforms = waveforms.masked_fill(~_real(waveforms, lengths), 0.0)  # a copy, to change
        if self.roll:
            waveforms = _roll(waveforms, lengths, streams[1])
        if self.polarity:
            signs = 1 - 2 * torch.randint(2, (len(lengths), 1), generator=streams[2])
            waveforms = waveforms * signs.to(waveforms)
        if self.gain_db > 0:
            gains_db = _uniform(len(lengths), -self.gain_db, self.gain_db, streams[3])
            waveforms = waveforms * torch.pow(10.0, gains_db / 20)[:, None].to(waveforms)
        if self._adds_background:
            waveforms = self._add_background(waveforms, lengths, streams[4])
        if self._mixes and len(lengths) > 1:
            waveforms, lengths, targets = self._mix(waveforms, lengths, targets, streams[5])
        return waveforms, lengths, targets

    def _run_custom(
        self,
        change: ClipChange,
        waveforms: Tensor,
        lengths: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        changed = []
        for number, (row, length) in enumerate(zip(waveforms, lengths.tolist(), strict=True)):
            clip = row[:length].to("cpu", torch.float32, copy=True).numpy()
            with _global_seeds(_seed(generator)):
                samples = np.asarray(change(clip, SAMPLE_RATE))
            if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
                shown = f"shape {samples.shape}" if samples.ndim != 1 or not samples.size else "NaN"
                raise ValueError(
                    f"custom must return finite samples of shape (samples,), at least one; for clip "
                    f"{number} of the batch it returned an array with {shown}."
                )
            changed.append(samples.astype(np.float32))
        batch = collate_waveforms(changed)
        return batch.waveforms.to(waveforms), batch.lengths.to(lengths)

    def _add_background(
        self, waveforms: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> Tensor:
        assert self.background is not None
        is_chosen = _chance(len(lengths), self.background_probability, generator)
        snr_db = _uniform(len(lengths), *self.background_snr_db, generator)
        noise = torch.zeros(waveforms.shape)
        for row, length, chosen in zip(noise, lengths.tolist(), is_chosen.tolist(), strict=True):
            part_of = torch.Generator().manual_seed(_seed(generator))
            if chosen:
                row[:length] = self.background.draw(length, part_of)
        return mix_at_snr(waveforms, noise, lengths, snr_db.to(waveforms))

    def _mix(
        self, waveforms: Tensor, lengths: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_clips, device = len(lengths), waveforms.device
        # One ring through the whole batch: nobody is mixed with itself, everybody is in as many mixtures.
        ring = torch.randperm(num_clips, generator=generator)
        other = torch.empty_like(ring)
        other[ring] = ring.roll(-1)
        is_mixed = _chance(num_clips, self.mixup_probability, generator)
        # NumPy's, because torch has no public Beta that takes a generator.
        beta = np.random.default_rng(_seed(generator)).beta
        shares = torch.from_numpy(beta(self.mixup_alpha, self.mixup_alpha, num_clips))

        def mix(own: Tensor, of_other: Tensor) -> Tensor:
            share = shares[:, None].to(own)
            # Not a share of 1: that times NaN, an unknown target of the other, would be NaN.
            mixed = share * own + (1 - share) * of_other
            return torch.where(is_mixed[:, None].to(own.device), mixed, own)

        longer = torch.maximum(lengths, lengths[other.to(device)])
        return (
            mix(waveforms, waveforms[other.to(device)]),
            torch.where(is_mixed.to(device), longer, lengths),
            mix(targets, targets[other.to(targets.device)]),
        )


def _check_batch(waveforms: Tensor, lengths: Tensor, targets: Tensor) -> None:
    if waveforms.ndim != 2 or not waveforms.is_floating_point() or waveforms.numel() == 0:
        raise ValueError(
            f"Expected waveforms of shape (batch, samples), float; got {tuple(waveforms.shape)}, "
            f"{waveforms.dtype}."
        )
    num_clips, num_samples = waveforms.shape
    if lengths.shape != (num_clips,):
        raise ValueError(f"Expected lengths of shape ({num_clips},), got {tuple(lengths.shape)}.")
    if bool((lengths < 1).any()) or bool((lengths > num_samples).any()):
        raise ValueError(f"Lengths must lie in 1..{num_samples}, got {lengths.tolist()}.")
    if targets.ndim != 2 or len(targets) != num_clips or not targets.is_floating_point():
        raise ValueError(
            f"Expected targets of shape ({num_clips}, classes), float; got {tuple(targets.shape)}, "
            f"{targets.dtype}. Class ids become such with torch.nn.functional.one_hot(ids, num_classes)"
            ".float()."
        )


def _real(waveforms: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]


def _roll(waveforms: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each clip in a circle over its real length; padding stays where it is."""
    chance = torch.rand(len(lengths), generator=generator, dtype=torch.float64)
    shifts = (chance * lengths.cpu()).long().to(lengths.device)
    places = torch.arange(waveforms.shape[1], device=waveforms.device)
    sources = (places + shifts[:, None]) % lengths[:, None]
    return waveforms.gather(1, torch.where(places < lengths[:, None], sources, places))


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**32, (), generator=generator))


def _streams(generator: torch.Generator) -> list[torch.Generator]:
    """One generator for each step, from one number of the call's."""
    root = torch.Generator().manual_seed(_seed(generator))
    return [torch.Generator().manual_seed(_seed(root)) for _ in range(6)]


def _uniform(num_clips: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(num_clips, generator=generator, dtype=torch.float64)


def _chance(num_clips: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(num_clips, generator=generator, dtype=torch.float64) < probability


@contextlib.contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """Seed the generators that other libraries draw from, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
