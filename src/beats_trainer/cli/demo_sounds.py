"""Five kinds of sound that a computer can make and a small network can learn: the demo's data set.

seed -> [waveforms -> WAV files, one folder per class]

Within a class everything but its nature varies: pitch, speed, length, loudness, and noise in the background.

Shapes in this file: S samples at 16 kHz.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from beats_trainer.constants import SAMPLE_RATE

__all__ = ["SOUNDS", "make_clip", "make_clips", "make_recording"]

Waveform = NDArray[np.float64]


def _tone(time_s: Waveform, rng: np.random.Generator) -> Waveform:
    """A steady pitch with a few overtones."""
    pitch_hz = _log_uniform(rng, 250, 2500)
    overtones = range(1, rng.integers(2, 5))
    return sum(
        (np.sin(2 * np.pi * n * pitch_hz * time_s + rng.uniform(0, 6)) / n**1.5 for n in overtones),
        start=np.zeros_like(time_s),
    )


def _chirp_up(time_s: Waveform, rng: np.random.Generator) -> Waveform:
    """Whistles that rise by an octave or two, again and again."""
    low_hz, octaves = _log_uniform(rng, 300, 1500), rng.uniform(0.7, 2)
    period_s = rng.uniform(0.25, 0.7)
    position = (time_s / period_s + rng.uniform()) % 1
    frequency_hz = low_hz * 2 ** (octaves * position)
    gap = np.sin(np.pi * position) ** 0.3
    return gap * np.sin(2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE)


def _chirp_down(time_s: Waveform, rng: np.random.Generator) -> Waveform:
    """The same whistles, falling: only the direction of time tells the two apart."""
    return _chirp_up(time_s, rng)[::-1]


def _noise_bursts(time_s: Waveform, rng: np.random.Generator) -> Waveform:
    """Puffs of noise, a tenth of a second or so each."""
    rate_hz, width_s = rng.uniform(1.5, 4), rng.uniform(0.03, 0.08)
    distance_s = ((time_s + rng.uniform(0, 1)) % (1 / rate_hz)) - 0.5 / rate_hz
    return rng.standard_normal(len(time_s)) * np.exp(-0.5 * (distance_s / width_s) ** 2)


def _clicks(time_s: Waveform, rng: np.random.Generator) -> Waveform:
    """Short knocks at irregular times, each ringing for some milliseconds."""
    ring_hz, decay_s = _log_uniform(rng, 800, 5000), rng.uniform(0.001, 0.004)
    ring = np.exp(-time_s[:800] / decay_s) * np.sin(2 * np.pi * ring_hz * time_s[:800])
    hits = rng.uniform(size=len(time_s)) < rng.uniform(5, 25) / SAMPLE_RATE
    hits[rng.integers(len(hits) // 2)] = True  # at least one
    return np.convolve(hits.astype(float), ring)[: len(time_s)]


SOUNDS: dict[str, Callable[[Waveform, np.random.Generator], Waveform]] = {
    "chirp_down": _chirp_down,
    "chirp_up": _chirp_up,
    "clicks": _clicks,
    "noise_bursts": _noise_bursts,
    "tone": _tone,
}
"""Class name to what makes one: ``(time_s (S,), rng) -> (S,)``."""


def make_clip(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make one clip of 0.8 to 1.6 s.

    Args:
        kind: A key of `SOUNDS`.
        rng: All that varies comes from it.

    Returns:
        Shape ``(S,)``, float32 at 16 kHz, within -1..1.

    Example:
        >>> clip = make_clip("tone", np.random.default_rng(0))
        >>> clip.dtype, 12_800 <= len(clip) <= 25_600
        (dtype('float32'), True)
    """
    time_s = np.arange(rng.integers(12_800, 25_600)) / SAMPLE_RATE
    sound = SOUNDS[kind](time_s, rng)
    sound = sound / np.sqrt(np.mean(sound**2))
    noise = rng.standard_normal(len(time_s))
    noise_db = rng.uniform(-30, -3)
    mixed = sound + noise * 10 ** (noise_db / 20)
    loudness = 10 ** (rng.uniform(-20, -3) / 20)
    clip: NDArray[np.float32] = (mixed / np.abs(mixed).max() * loudness).astype(np.float32)
    return clip


def make_clips(
    folder: Path, clips_per_class: int, seed: int, *, folder_per_class: bool
) -> list[Path]:
    """Write clips of every kind as WAV files.

    Args:
        folder: Is made if it is not there.
        clips_per_class: How many of each.
        seed: The same seed gives the same files.
        folder_per_class: ``FOLDER/tone/tone_00.wav`` if true, else ``FOLDER/tone_00.wav``.

    Returns:
        The files.
    """
    rng = np.random.default_rng(seed)
    files = []
    for kind in SOUNDS:
        home = folder / kind if folder_per_class else folder
        home.mkdir(parents=True, exist_ok=True)
        for number in range(clips_per_class):
            files.append(home / f"{kind}_{number:02d}.wav")
            soundfile.write(files[-1], make_clip(kind, rng), SAMPLE_RATE)
    return files


def make_recording(file: Path, seconds_per_kind: float, seed: int) -> list[str]:
    """Write a recording in which each kind is heard for some time, one after another.

    Args:
        file: A WAV file; its folder is made if it is not there.
        seconds_per_kind: How long each is heard.
        seed: The same seed gives the same file.

    Returns:
        The kinds, in the order of time.
    """
    rng = np.random.default_rng(seed)
    kinds = [str(kind) for kind in rng.permutation(list(SOUNDS))]
    num_samples = round(seconds_per_kind * SAMPLE_RATE)
    parts = []
    for kind in kinds:
        clips: list[NDArray[np.float32]] = []
        while sum(map(len, clips)) < num_samples:
            clips.append(make_clip(kind, rng))
        parts.append(np.concatenate(clips)[:num_samples])
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.concatenate(parts), SAMPLE_RATE)
    return kinds


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
