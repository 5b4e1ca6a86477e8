"""Background sound for training: random parts of a folder of recordings, mixed in at a chosen SNR.

folder -> [BackgroundLibrary.draw] -> noise (S,) -> [mix_at_snr] -> waveforms (B, S)

Shapes in this file: B clips, S samples.
"""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beats_trainer.audio import AUDIO_EXTENSIONS, load_audio, probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import AudioError, AudioNotFoundError

__all__ = ["BackgroundLibrary", "mix_at_snr"]

_KEPT_FILE_S = 60.0
"""Seconds up to which a file is decoded once and kept; of a longer one just the part is read."""
_SILENT_POWER = 1e-14
"""Mean square under which sound counts as silence: -140 dB, below the last bit of 24."""


class BackgroundLibrary:
    """The recordings below a folder, to draw parts of any length from.

    Every file is as likely as every other, whatever its length. The folder is searched, and the headers
    are read, once: when the library is made.

    Args:
        folder: Is searched with all folders in it, hidden ones left out, for files with an audio ending.
        cache_s: Seconds of decoded sound to keep, of files of a minute or less; the least recently used
            go first. 600 s are 38 MB, in each process that reads.

    Attributes:
        files: The recordings, sorted.

    Raises:
        AudioNotFoundError: If the folder is not there, or holds no audio file.
        AudioError: If files cannot be read; names the first, and how many more.
        ValueError: If ``cache_s`` is negative.
    """

    def __init__(self, folder: str | os.PathLike[str], *, cache_s: float = 600.0) -> None:
        if not cache_s >= 0:
            raise ValueError(f"cache_s must be at least 0 seconds, not {cache_s}.")
        if not os.path.isdir(folder):
            raise AudioNotFoundError(folder, "there is no such folder of background recordings.")
        self.folder = os.fspath(folder)
        self.files = sorted(_audio_below(self.folder))
        if not self.files:
            raise AudioNotFoundError(
                folder,
                "no audio file is in this folder of background recordings, or in a folder below it.",
            )
        self._num_samples = _count_samples(self.files)
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._most_kept = round(cache_s * SAMPLE_RATE)

    def __len__(self) -> int:
        """How many recordings there are."""
        return len(self.files)

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Take a random part of a random recording; one that is too short is repeated, end to start.

        Args:
            num_samples: Length of the part, at least 1.
            generator: On the CPU; all that is random comes from it.

        Returns:
            Shape ``(num_samples,)``, float32 at 16 kHz, as loud as it is in the file.

        Raises:
            AudioError: If the recording turns out to be damaged; names it.
            ValueError: If ``num_samples`` is less than 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}.")
        number = int(torch.randint(len(self.files), (), generator=generator))
        file, available = self.files[number], self._num_samples[number]
        is_kept = available <= _KEPT_FILE_S * SAMPLE_RATE
        if is_kept or available < num_samples:
            whole = self._whole(file) if is_kept else load_audio(file)
            fits = len(whole) >= num_samples
            starts = len(whole) - num_samples + 1 if fits else len(whole)
            start = int(torch.randint(starts, (), generator=generator))
            part = whole[start : start + num_samples] if fits else np.roll(whole, -start)
        else:
            start = int(torch.randint(available - num_samples + 1, (), generator=generator))
            part = load_audio(file, start / SAMPLE_RATE, num_samples / SAMPLE_RATE)
        return torch.from_numpy(np.resize(part, num_samples))  # a copy that repeats what is short

    def _whole(self, file: str) -> NDArray[np.float32]:
        waveform = self._kept.pop(file, None)
        if waveform is None:
            waveform = load_audio(file)
        self._kept[file] = waveform
        while sum(map(len, self._kept.values())) > self._most_kept:
            self._kept.popitem(last=False)
        return waveform


def mix_at_snr(waveforms: Tensor, noise: Tensor, lengths: Tensor, snr_db: Tensor) -> Tensor:
    """Add noise to each clip such that the clip is ``snr_db`` louder than it (RMS of the real samples).

    The clip keeps its level, the noise is scaled. Where either is silent there is no ratio, and the clip
    is left as it is.

    Args:
        waveforms: Shape ``(B, S)``.
        noise: Shape ``(B, S)``.
        lengths: Real samples per clip, shape ``(B,)``; nothing is added beyond.
        snr_db: Ratio of the powers in dB, shape ``(B,)``.

    Returns:
        Shape ``(B, S)``, a new tensor; it may exceed -1..1.

    Example:
        >>> mixed = mix_at_snr(torch.ones(1, 4), torch.ones(1, 4), torch.tensor([3]), torch.tensor([20.0]))
        >>> mixed.round(decimals=4)
        tensor([[1.1000, 1.1000, 1.1000, 1.0000]])
    """
    real_BS = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    noise = noise.to(waveforms).masked_fill(~real_BS, 0.0)
    clip_power = waveforms.masked_fill(~real_BS, 0.0).float().square().sum(dim=1) / lengths
    noise_power = noise.float().square().sum(dim=1) / lengths
    is_audible = (clip_power > _SILENT_POWER) & (noise_power > _SILENT_POWER)
    wanted_power = clip_power * torch.pow(10.0, -snr_db.to(clip_power) / 10)
    scale = (wanted_power / noise_power.clamp(min=_SILENT_POWER)).sqrt()
    # In float32: the factor for a faint noise is beyond what half precision holds.
    mixed = waveforms.float() + (scale * is_audible)[:, None] * noise.float()
    return mixed.to(waveforms.dtype)


def _audio_below(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            str(Path(parent, name))
            for name in names
            if name.lower().endswith(AUDIO_EXTENSIONS) and not name.startswith(".")
        ]
    return found


def _count_samples(files: list[str]) -> list[int]:
    counts: list[int] = []
    failures: list[AudioError] = []
    for file in files:
        try:
            counts.append(max(1, round(probe_audio(file).duration_s * SAMPLE_RATE)))
        except AudioError as error:
            failures.append(error)
    if failures:
        more = len(failures) - 1
        raise AudioError(
            failures[0].file,
            f"{failures[0].reason} Of the {len(files)} background recordings, {more} more cannot be "
            "read: remove them, or choose another folder."
            if more
            else f"{failures[0].reason} It is a background recording: remove it from its folder.",
        )
    return counts
