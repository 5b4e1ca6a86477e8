"""Recordings without labels, to pre-train on: what there is, and which parts of it each step hears.

files | folders | patterns -> [Archive: lengths, what cannot be read] -> [plan: pass by pass, step by step] -> AudioBatch

Every pass cuts the recordings anew: long ones into windows from a random place on, so that borders move; short ones
are taken whole. Windows of like length make a step. Which sound a step hears follows from the archive, the
settings and the step's number alone: a run that is resumed, or shared out by processes, hears what an unbroken one would.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from beats_trainer.atomic import written_whole
from beats_trainer.audio import load_audio, probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import AudioError, ConfigError, DatasetError
from beats_trainer.file_names import is_url
from beats_trainer.loading.batches import MOST_PADDING, AudioBatch, collate_waveforms
from beats_trainer.loading.clips import Clip
from beats_trainer.loading.inputs import ClipInput, find_clips
from beats_trainer.loading.reader import read_ahead, read_into_memory

__all__ = ["Archive", "ArchiveBatches", "ArchiveStep"]

logger = logging.getLogger(__name__)

_LEAST_SAMPLES = 2_800
"""A shorter clip has no whole patch."""
_POOL_STEPS = 64
"""Steps whose windows are sorted by length together."""
_SILENT = 1e-5
"""Range of samples under which a window is silence: less than the last bit of 16."""
_LOOKED_AT = 64
"""Windows that are listened to, to tell whether there is any sound."""
_MOST_FAILURES = 0.1
"""Share of the windows that may turn out to be unreadable."""
_COLUMNS = ["file", "start_s", "duration_s", "size", "changed_ns"]


@dataclass(frozen=True)
class Archive:
    """Recordings, or parts of them, with their lengths.

    Attributes:
        table: One row per clip: ``file``, ``start_s``, ``duration_s``, and of the file its ``size`` in bytes and
            when it was ``changed_ns`` (both -1 for a URL).
        failures: What could not be read: ``file`` and ``reason``.
    """

    table: pd.DataFrame
    failures: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["file", "reason"]))

    @classmethod
    def scan(
        cls,
        inputs: ClipInput | Iterable[ClipInput],
        *,
        exclude: Iterable[str] = (),
        num_threads: int = 4,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "Archive":
        """Find recordings, and read how long they are.

        Args:
            inputs: As for `find_clips`.
            exclude: Patterns such as ``"*/test/*"`` or ``"5-*"``, of whole paths or of names: what fits one is
                left out.
            num_threads: Threads that read headers.
            on_progress: Called with how many are done, of how many.

        Returns:
            What can be read and has at least one patch (175 ms), in the order of the inputs.

        Raises:
            AudioNotFoundError: If an input names no recording.
            DatasetError: If nothing can be read.
        """
        patterns = list(exclude)
        clips = [clip for clip in find_clips(inputs) if not _fits(clip.file, patterns)]
        rows: list[list[object]] = []
        failures: list[tuple[str, str]] = []
        with ThreadPoolExecutor(max(1, num_threads)) as threads:
            for number, found in enumerate(threads.map(_describe, clips)):
                if isinstance(found, tuple):
                    failures.append(found)
                else:
                    rows.append(found)
                if on_progress is not None:
                    on_progress(number + 1, len(clips))
        failed = pd.DataFrame(failures, columns=["file", "reason"])
        if not rows:
            why = f" The first: {failed.file[0]}: {failed.reason[0]}" if len(failed) else ""
            raise DatasetError(
                f"There is nothing to pre-train on: {len(clips)} recordings were found"
                f"{' besides what was excluded' if patterns else ''}, and none can be read.{why}"
            )
        return cls(pd.DataFrame(rows, columns=_COLUMNS), failed)

    @property
    def total_s(self) -> float:
        """Seconds of sound."""
        return float(self.table["duration_s"].sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the archive is: names, parts and sizes, not when files were written."""
        digest = hashlib.sha256()
        for row in self.table[["file", "start_s", "duration_s", "size"]].itertuples(index=False):
            digest.update(
                f"{row.file}\t{row.start_s:.6f}\t{row.duration_s:.6f}\t{row.size}\n".encode()
            )
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the table as CSV, whole or not at all."""
        with written_whole(path) as partial:
            self.table.to_csv(partial, index=False)

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """Read what `write` has written.

        Raises:
            DatasetError: If the file is not such a table.
        """
        try:
            table = pd.read_csv(path, dtype={"file": str})
        except (OSError, ValueError) as error:
            raise DatasetError(f"Cannot read the list of recordings {path}: {error}.") from error
        if list(table.columns) != _COLUMNS:
            raise DatasetError(f"{path} must have the columns {', '.join(_COLUMNS)}.")
        return cls(table)

    def require_unchanged(self) -> None:
        """Make sure that the files are what they were when they were listed; new ones do not matter.

        A file of the same size but with another date is a warning: copying an archive gives it new dates.

        Raises:
            DatasetError: If one is gone, or has another size.
        """
        changed, redated = [], []
        for row in _records(self.table.drop_duplicates("file")):
            if not is_url(row["file"]):
                status = os.stat(row["file"]) if os.path.isfile(row["file"]) else None
                if status is None or status.st_size != row["size"]:
                    changed.append(f"{row['file']} is {'gone' if status is None else 'another'}")
                elif status.st_mtime_ns != row["changed_ns"]:
                    redated.append(row["file"])
        if changed:
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise DatasetError(
                f"The recordings have changed since the run was begun: {'; '.join(changed[:3])}{more}. Put them back, "
                "or begin a new run in another folder."
            )
        if redated:
            logger.warning(
                "Written anew since the run was begun, with the same size: %s%s. If the sound is another one, begin a "
                "new run in another folder.",
                ", ".join(redated[:3]),
                f", and {len(redated) - 3} more" if len(redated) > 3 else "",
            )

    def not_among(
        self, inputs: ClipInput | Iterable[ClipInput], exclude: Iterable[str] = ()
    ) -> list[str]:
        """The files of the archive that a scan of these inputs would not list.

        Args:
            inputs: As for `scan`.
            exclude: The same.
        """
        patterns = list(exclude)
        meant = {
            clip.file if is_url(clip.file) else os.path.abspath(clip.file)
            for clip in find_clips(inputs)
            if not _fits(clip.file, patterns)
        }
        return [file for file in self.table["file"].unique() if file not in meant]

    def require_sound(self, window_s: float) -> float:
        """Listen to some windows from all over the archive.

        Args:
            window_s: Their length in seconds.

        Returns:
            The share of them that is silence.

        Raises:
            DatasetError: If all of them are.
            AudioError: If the first of them cannot be read.
        """
        rows = self.table.iloc[
            np.unique(np.linspace(0, len(self.table) - 1, _LOOKED_AT).astype(int))
        ]
        random = np.random.default_rng(0)
        num_silent = 0
        for row in _records(rows):
            length_s = min(window_s, row["duration_s"])
            start_s = row["start_s"] + random.random() * (row["duration_s"] - length_s)
            waveform = load_audio(row["file"], start_s, length_s)
            num_silent += float(np.ptp(waveform)) < _SILENT
        if num_silent == len(rows):
            raise DatasetError(
                f"There is no sound to pre-train on: {len(rows)} windows from all over the {len(self.table)} "
                "recordings are digital silence. Are these the right files, and the right channel?"
            )
        return num_silent / len(rows)

    def split(self, share: float, seed: int) -> tuple["Archive", "Archive | None"]:
        """Hold some recordings out, whole ones.

        Args:
            share: Of the recordings, about; at least one where there are two.
            seed: Decides which.

        Returns:
            What remains, and what was held out: ``None`` for a share of 0, or if there is one recording only.
        """
        files = self.table["file"].drop_duplicates().to_numpy()
        num_out = min(len(files) - 1, max(1, round(share * len(files)))) if share > 0 else 0
        if num_out == 0:
            return self, None
        out = set(np.random.RandomState(seed % 2**32).permutation(files)[:num_out])
        is_out = self.table["file"].isin(out)
        kept, held = (self.table[rows].reset_index(drop=True) for rows in (~is_out, is_out))
        return Archive(kept, self.failures), Archive(held)


@dataclass(frozen=True)
class ArchiveStep:
    """What one process hears at once.

    Attributes:
        audio: Some clips of a step.
        step: Which step.
        rows: The clips' numbers among all clips of the step.
        windows: Their numbers among all windows, where these are the same in every pass; else empty.
    """

    audio: AudioBatch
    step: int
    rows: list[int]
    windows: list[int] = field(default_factory=list)

    def to(self, device: torch.device | str) -> "ArchiveStep":
        """The same on another device."""
        return ArchiveStep(self.audio.to(device), self.step, self.rows, self.windows)

    def pin_memory(self) -> "ArchiveStep":
        """The same in memory that a GPU reads faster; torch's loaders call this."""
        return ArchiveStep(self.audio.pin_memory(), self.step, self.rows, self.windows)


class ArchiveBatches:
    """The steps of a run over an archive, from any step on.

    Sound is decoded once and kept where it fits into ``cache_gb``; else it is decoded ahead in threads.

    Args:
        archive: What there is.
        window_s: Longest part of a recording that is heard at once.
        batch_s: Seconds of a step, padding included, over all processes.
        seed: Of what is heard when.
        num_threads: Threads that decode.
        cache_gb: Memory for decoded sound, in each process.
        parts: Batches that a step is computed in.
        are_fixed: Cut the recordings in every pass as in the first, for stored labels.

    Raises:
        ConfigError: If there is less sound than a step takes.
    """

    def __init__(
        self,
        archive: Archive,
        window_s: float,
        batch_s: float,
        seed: int,
        *,
        num_threads: int = 4,
        cache_gb: float = 4.0,
        parts: int = 1,
        are_fixed: bool = False,
    ) -> None:
        if archive.total_s < batch_s:
            raise ConfigError(
                f"There are {archive.total_s:.0f} s of sound to train on, and a step takes {batch_s:.0f} s (batch_s). "
                "Add recordings (hours are little, days are good), or set a smaller batch_s."
            )
        self.archive = archive
        self.window = round(window_s * SAMPLE_RATE)
        self.batch_samples = round(batch_s * SAMPLE_RATE)
        self.seed = seed
        self.num_threads = num_threads
        self.cache_gb = cache_gb
        self.parts = parts
        self.are_fixed = are_fixed
        self._starts = (archive.table["start_s"].to_numpy() * SAMPLE_RATE).round().astype(np.int64)
        durations = archive.table["duration_s"].to_numpy() * SAMPLE_RATE
        self._lengths = np.maximum(np.floor(durations + 1e-3).astype(np.int64), _LEAST_SAMPLES)
        self._waveforms: dict[Clip, NDArray[np.float32]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_waveforms": None}  # each process decodes for itself

    def windows(self, number: int = 0) -> NDArray[np.int64]:
        """The windows of one pass over the archive, in the order of the recordings.

        Args:
            number: Which pass.

        Returns:
            Which clip, first sample in its file, samples; shape ``(N, 3)``.
        """
        random = self._random(0 if self.are_fixed else number, 0)
        counts = np.maximum(1, self._lengths // self.window)
        spare = np.maximum(0, self._lengths - counts * self.window)
        shift = (random.random_sample(len(counts)) * (spare + 1)).astype(np.int64)
        clip = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(clip)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = (self._starts + shift)[clip] + nth * self.window
        return np.column_stack([clip, starts, np.minimum(self._lengths, self.window)[clip]])

    def plan(self, number: int) -> list[NDArray[np.int64]]:
        """The steps of one pass over the archive.

        Args:
            number: Which pass.

        Returns:
            Of each step its windows, longest first: which clip, first sample in its file, samples, and the
            window's number in `windows`; shape ``(N, 4)``.
        """
        random = self._random(number, 1)
        windows = self.windows(number)
        windows = np.column_stack([windows, np.arange(len(windows))])
        windows = windows[random.permutation(len(windows))]
        steps: list[NDArray[np.int64]] = []
        first = 0
        while first < len(windows):
            # A pool: so many windows as fill some steps, sorted by length and cut where a step is full.
            ends = np.cumsum(windows[first:, 2])
            size = int(np.searchsorted(ends, _POOL_STEPS * self.batch_samples)) + 1
            pool = windows[first : first + size]
            pool = pool[np.argsort(-pool[:, 2], kind="stable")]
            cut = list(self._cut(pool))
            steps += [cut[index] for index in random.permutation(len(cut))]
            first += size
        return steps

    def _random(self, number: int, purpose: int) -> np.random.RandomState:
        # RandomState's stream is frozen for good (NEP 19), default_rng's is not.
        place = np.random.SeedSequence((self.seed, number, purpose))
        return np.random.RandomState(place.generate_state(4))

    def _cut(self, pool: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        first = 0
        while first < len(pool):
            longest = pool[first, 2]
            most = max(1, self.batch_samples // longest)
            lengths = pool[first : first + most, 2]
            filled = np.cumsum(lengths) >= (1 - MOST_PADDING) * longest * np.arange(
                1, len(lengths) + 1
            )
            size = len(lengths) if filled.all() else max(1, int(np.argmin(filled)))
            left = len(pool) - first
            if size < left < 2 * size:  # two of half the size, not a full step and a crumb
                size = -(-left // 2)
            yield pool[first : first + size]
            first += size

    def __call__(self, first: int, rank: int = 0, num_ranks: int = 1) -> Iterator[ArchiveStep]:
        """Give a process its share of each step, from one on, without end.

        Args:
            first: The first step that is wanted.
            rank: Which process.
            num_ranks: How many share out each step.

        Raises:
            AudioError: If more than a tenth of the windows cannot be read.
        """
        self._fill_cache()
        failures = _Failures()
        stream = read_ahead(
            self._addressed(first, rank, num_ranks),
            self._read,
            self.num_threads,
            4 if self._waveforms is None else 1,
            is_known=None if self._waveforms is None else lambda _: True,
        )
        with contextlib.closing(stream):
            for (step, rows, windows), waveforms in stream:
                if isinstance(waveforms, Exception):
                    raise waveforms
                kept = failures.without(
                    list(zip(rows, windows[:, 3].tolist(), strict=True)), waveforms
                )
                places = [place for place, _ in kept]
                yield ArchiveStep(
                    collate_waveforms([waveform for _, waveform in kept]),
                    step,
                    [row for row, _ in places],
                    [number for _, number in places] if self.are_fixed else [],
                )

    def in_order(self, first: int, size: int) -> Iterator[AudioBatch]:
        """The windows of the first pass from one on, one after the other: what is labelled.

        Args:
            first: Number of the first window.
            size: Windows of a batch.

        Raises:
            AudioError: If one cannot be read: each window needs its labels.
        """
        self._fill_cache()
        windows = self.windows()
        for start in range(first, len(windows), size):
            yield collate_waveforms(
                [self._waveform(*window) for window in windows[start : start + size].tolist()]
            )

    def _addressed(
        self, first: int, rank: int, num_ranks: int
    ) -> Iterator[tuple[int, list[int], NDArray[np.int64]]]:
        """Step, rows and windows of this process's batches."""
        shares = num_ranks * self.parts
        number, before = 0, 0
        while True:
            steps = self.plan(number)
            for step in range(max(first, before), before + len(steps)):
                windows = steps[step - before]
                for part in range(self.parts):
                    share = part * num_ranks + rank
                    # A step of fewer windows than shares: some are heard twice, for none may have nothing.
                    rows = list(range(share, len(windows), shares)) or [share % len(windows)]
                    yield step, rows, windows[rows]
            number, before = number + 1, before + len(steps)

    def _read(
        self, wanted: tuple[int, list[int], NDArray[np.int64]]
    ) -> list[NDArray[np.float32] | AudioError]:
        waveforms: list[NDArray[np.float32] | AudioError] = []
        for clip, start, length, _ in wanted[2].tolist():
            try:
                waveforms.append(self._waveform(clip, start, length))
            except AudioError as error:
                waveforms.append(error)
        return waveforms

    def _waveform(self, clip: int, start: int, length: int) -> NDArray[np.float32]:
        whole = None if self._waveforms is None else self._waveforms.get(self._clip(clip))
        if whole is not None:
            first = start - int(self._starts[clip])
            waveform = whole[first : first + length]
        else:
            waveform = load_audio(self._clip(clip).file, start / SAMPLE_RATE, length / SAMPLE_RATE)
        missing = _LEAST_SAMPLES - len(waveform)
        return np.pad(waveform, (0, missing)) if missing > 0 else waveform

    def _clip(self, index: int) -> Clip:
        row = self.archive.table.iloc[index]
        return Clip(row["file"], float(row["start_s"]), float(row["duration_s"]))

    def _fill_cache(self) -> None:
        """Decode everything once, if it fits; windows of what cannot be read as a whole are read one by one."""
        if self._waveforms is None and self.archive.total_s * SAMPLE_RATE * 4 < self.cache_gb * 1e9:
            clips = [self._clip(index) for index in range(len(self.archive.table))]
            self._waveforms = read_into_memory(
                clips, int(self.cache_gb * 1e9), self.num_threads, skip_unreadable=True
            )


class _Failures:
    """Windows that could not be read are left out, unless they are many."""

    def __init__(self) -> None:
        self._seen, self._failed = 0, 0
        self._files: set[str] = set()

    def without(
        self, places: list[tuple[int, int]], waveforms: list[NDArray[np.float32] | AudioError]
    ) -> list[tuple[tuple[int, int], NDArray[np.float32]]]:
        kept = []
        for place, waveform in zip(places, waveforms, strict=True):
            self._seen += 1
            if not isinstance(waveform, AudioError):
                kept.append((place, waveform))
                continue
            self._failed += 1
            if waveform.file not in self._files:
                self._files.add(waveform.file)
                logger.warning("Left out: %s", waveform)
            if self._failed > max(_LOOKED_AT, _MOST_FAILURES * self._seen):
                raise waveform
        if (
            not kept
        ):  # no process may have nothing while the others wait for it: a moment of silence
            kept.append((places[0], np.zeros(_LEAST_SAMPLES, np.float32)))
        return kept


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _fits(file: str, patterns: Iterable[str]) -> bool:
    name = os.path.basename(file)
    return any(fnmatch(file, pattern) or fnmatch(name, pattern) for pattern in patterns)


def _describe(clip: Clip) -> tuple[str, str] | list[object]:
    """A row of the table; or the file and why it is none."""
    try:
        duration_s = probe_audio(clip.file).duration_s - clip.start_s
        size, changed_ns = -1, -1
        if not is_url(clip.file):
            status = os.stat(clip.file)
            size, changed_ns = status.st_size, status.st_mtime_ns
    except AudioError as error:
        return clip.file, error.reason
    except OSError as error:
        return clip.file, str(error)
    if clip.duration_s is not None:
        duration_s = min(duration_s, clip.duration_s)
    if duration_s * SAMPLE_RATE < _LEAST_SAMPLES:
        return (
            clip.file,
            f"it has {max(0.0, duration_s):.3f} s of sound, less than a patch (0.175 s).",
        )
    path = clip.file if is_url(clip.file) else os.path.abspath(clip.file)
    return [path, clip.start_s, duration_s, size, changed_ns]
