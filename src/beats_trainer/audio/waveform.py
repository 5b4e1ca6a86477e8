"""Samples of any kind -> the one form that the library works in: mono, float32, 16 kHz."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from beats_trainer.audio.decode import check_sample_rate, scale_to_unit
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import AudioError

__all__ = [
    "aligned_ratio",
    "check_finite",
    "mix_to_mono",
    "resample",
    "resample_pieces",
    "to_waveform",
]

_MOST_LEVEL = 1e10
"""Beyond what any scale of sound reaches (32-bit integers as they are: 2e9), and far enough below where a
spectrum in float32 overflows (about 1e12): what is above it is no sound, but bytes read as numbers."""

_MOST_CHANNELS = 64
"""More than any recorder has: an array with more is transposed."""


def to_waveform(samples: Any, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Bring samples that are already in memory into the library's form.

    Args:
        samples: Shape ``(S,)``, or ``(channels, S)``, which is averaged to mono. Integers of 8 to 32 bit
            are scaled to -1..1 by the range of their type; floats are expected to be there already.
        sample_rate: Hz, of the samples.

    Returns:
        Shape ``(S',)``, float32 at 16 kHz; may share the memory of ``samples``.

    Raises:
        AudioError: If there are no samples, too many axes or channels, a sample is not finite, the type
            or the sample rate is none that sound has.

    Example:
        >>> to_waveform(np.array([0, 16384], dtype=np.int16))
        array([0. , 0.5], dtype=float32)
    """
    values = np.asarray(samples)
    name = f"an array of shape {values.shape}"
    if values.dtype == bool or not (
        np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)
    ):
        raise AudioError(name, f"expected numbers, got {values.dtype}.")
    if values.dtype in (np.int64, np.uint64):
        raise AudioError(
            name,
            "no recorder writes 64-bit integers, so that their scale is unknown. Pass the integers in "
            "their own type, such as int16, or floats from -1 to 1.",
        )
    if values.ndim not in (1, 2):
        raise AudioError(name, "expected (samples,) or (channels, samples).")
    if values.size == 0:
        raise AudioError(name, "it holds no samples.")
    if values.ndim == 2 and values.shape[0] > _MOST_CHANNELS:
        raise AudioError(
            name,
            f"expected (channels, samples), and {values.shape[0]} channels are too many: transpose it, "
            "or pass several clips to extract_from_batch.",
        )
    check_sample_rate(name, sample_rate)
    frames = scale_to_unit(values if values.ndim == 2 else values[None]).T
    mono = mix_to_mono(frames)
    check_finite(mono, name, sample_rate)
    return resample(mono, sample_rate)


def mix_to_mono(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average channels ``(N, channels)`` to ``(N,)``."""
    mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(mono)


def check_finite(mono: NDArray[np.float32], file: str, sample_rate: int, start: int = 0) -> None:
    """Raise an `AudioError` if a sample is NaN, infinite or no level; it says where the first one is.

    Args:
        mono: Shape ``(N,)``.
        file: What the error calls it.
        sample_rate: Hz.
        start: Place of the first of these samples in the file.
    """
    is_sound = np.abs(mono) <= _MOST_LEVEL  # NaN is not
    if not is_sound.all():
        first = int(np.argmin(is_sound))
        what = "finite numbers (NaN or infinite)"
        if np.isfinite(mono[first]):
            what = f"levels of sound ({mono[first]:.3g}, where -1 to 1 is usual)"
        raise AudioError(
            file,
            f"it has samples that are not {what}, the first at {(start + first) / sample_rate:.3f} s; the "
            "file was damaged by what wrote it.",
        )


def resample(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Resample to 16 kHz with soxr's HQ filter: aliases below -130 dB, no delay."""
    if sample_rate == SAMPLE_RATE:
        return waveform
    resampled: NDArray[np.float32] = soxr.resample(waveform, sample_rate, SAMPLE_RATE, quality="HQ")
    if len(resampled) == 0:  # fewer source samples than one of ours: keep a clip of one
        resampled = waveform[:1]
    return resampled


def resample_pieces(
    pieces: Iterable[NDArray[np.float32]], sample_rate: int, num_samples: int
) -> NDArray[np.float32]:
    """Resample a signal that comes in pieces; bit for bit what `resample` gives for the whole of it.

    Args:
        pieces: Each of shape ``(n,)``; only one is held at a time.
        sample_rate: Hz, of the pieces.
        num_samples: The most samples that come, in all pieces.

    Returns:
        Shape ``(S,)`` at 16 kHz; empty if no piece came.

    Raises:
        MemoryError: If the result does not fit in memory.

    Example:
        >>> signal = np.sin(np.arange(9000, dtype=np.float32))
        >>> joined = resample_pieces([signal[:123], signal[123:]], 44_100, 9000)
        >>> bool((joined == resample(signal, 44_100)).all())
        True
    """
    iterator = iter(pieces)
    first, second = next(iterator, None), next(iterator, None)
    if first is None:
        return np.zeros(0, np.float32)
    if second is None:  # a short clip: setting up a stream would cost more than it
        return resample(first, sample_rate)
    pieces = itertools.chain((first, second), iterator)
    # Filled in place: joining the results at the end would hold them twice. What is never written to
    # costs no memory, so that a length that is a lie does no harm.
    result = np.empty(math.ceil(num_samples * SAMPLE_RATE / sample_rate) + 1, np.float32)
    size = 0
    if sample_rate != SAMPLE_RATE:
        stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        end = np.zeros(0, np.float32)
        pieces = itertools.chain(
            map(stream.resample_chunk, pieces),
            (stream.resample_chunk(end, last=True) for _ in range(1)),
        )
    for piece in pieces:
        result[size : size + len(piece)] = piece
        size += len(piece)
    return result[:size] if size else first[:1]


def aligned_ratio(sample_rate: int) -> tuple[int, int]:
    """The smallest ``(p, q)`` such that ``p`` samples of a file last as long as ``q`` at 16 kHz.

    Example:
        >>> aligned_ratio(44_100)
        (441, 160)
    """
    common = math.gcd(sample_rate, SAMPLE_RATE)
    return sample_rate // common, SAMPLE_RATE // common
