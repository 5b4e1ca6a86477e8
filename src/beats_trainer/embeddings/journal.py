"""What a store accounts for: which windows of which clips were computed, and what failed.

shard written -> [entries in its footer] -> journal: progress of each clip, failures, durations

Each shard says in its own footer what it covers, so that one rename commits rows, progress and failures
together. Read in the order of the shards, the entries give the state of every clip. An entry continues
its clip where the one before ended, or starts it anew where the earlier attempt left no row; one that does
neither shows that a shard is missing, and its clip is to be done again.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from beats_trainer.embeddings.parquet import printable_name
from beats_trainer.errors import StoreError
from beats_trainer.file_names import is_url

if TYPE_CHECKING:  # its package knows torch, which a table need not
    from beats_trainer.loading.clips import Clip

__all__ = [
    "FAILURE_COLUMNS",
    "FORMAT_VERSION",
    "ClipKey",
    "Covered",
    "Entry",
    "FileState",
    "Journal",
    "Progress",
    "WindowFailure",
    "decode_entries",
    "encode_entries",
    "key_of",
]

FORMAT_VERSION = 1
"""Of the journal and of ``store.json``; a store of a higher one is refused."""

FAILURE_COLUMNS = ("file", "start_time", "end_time", "reason")
"""Columns of ``errors.csv``, seconds from the file's start; no times mean the whole file."""

_PART_COLUMNS = ("file", "start_time", "end_time", "is_whole")

_FIELDS = (
    "file",
    "start_s",
    "duration_s",
    "size",
    "changed_ns",
    "planned_s",
    "first",
    "stop",
    "is_last",
    "num_rows",
    "failures",
)


@dataclass(frozen=True, slots=True)
class FileState:
    """By what a changed file is told from an unchanged one.

    Attributes:
        size: Bytes.
        changed_ns: Time of the last change, in nanoseconds.
    """

    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "FileState | None":
        """Look at a file.

        Args:
            path: The file. A URL is not looked at: its state is the same always.

        Returns:
            The state; ``None`` if there is no such file, or it cannot be looked at.

        Example:
            >>> FileState.of("no such file.wav") is None
            True
            >>> FileState.of("https://example.org/a.wav")
            FileState(size=0, changed_ns=0)
        """
        if is_url(os.fspath(path)):
            return cls(0, 0)
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return None
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class WindowFailure:
    """A window that could not be computed.

    Attributes:
        start_time: Seconds from the file's start; ``None``, with ``end_time``, for the whole clip.
        end_time: Seconds from the file's start.
        reason: What is wrong, one sentence.
    """

    start_time: float | None
    end_time: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Covered:
    """What one shard accounts for of one clip.

    Attributes:
        clip: The clip.
        state: Its file when it was planned; ``None`` if it was not there.
        duration_s: Seconds of the clip as it was planned; ``None`` if unknown.
        first: First window of the clip's plan.
        stop: One past the last window.
        is_last: No window of this clip follows.
        failures: Windows among them that have no rows, and why.
        num_rows: Rows of the shard that are this clip's. ``None`` counts those with its file's name, which
            needs the file to have no other clip in the shard.
    """

    clip: "Clip"
    state: FileState | None
    duration_s: float | None
    first: int
    stop: int
    is_last: bool
    failures: tuple[WindowFailure, ...] = ()
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one clip has come, over all shards.

    Attributes:
        state: The clip's file as it was.
        next_window: First window that is still to be computed.
        is_complete: Nothing is left to be computed.
        has_failed: A window, or the whole clip, could not be computed.
        num_rows: Rows in the store.
        duration_s: Seconds of the clip as it was planned; ``None`` if unknown.
    """

    state: FileState | None
    next_window: int
    is_complete: bool
    has_failed: bool
    num_rows: int = 0
    duration_s: float | None = None


class ClipKey(NamedTuple):
    """A clip as the journal names it."""

    file: str
    start_s: float
    duration_s: float | None


class Entry(NamedTuple):
    """A `Covered` as a shard's footer holds it."""

    key: ClipKey
    state: FileState | None
    duration_s: float | None
    first: int
    stop: int
    is_last: bool
    num_rows: int
    failures: tuple[WindowFailure, ...]


def key_of(clip: "Clip") -> ClipKey:
    """Name a clip as the journal does."""
    duration_s = None if clip.duration_s is None else float(clip.duration_s)
    return ClipKey(clip.file, float(clip.start_s), duration_s)


def encode_entries(entries: Iterable[Entry]) -> str:
    """Write entries as JSON: the names of the fields once, then a list per entry."""
    rows = []
    for entry in entries:
        size, changed_ns = (None, None) if entry.state is None else _values(entry.state)
        failures = [[f.start_time, f.end_time, f.reason] for f in entry.failures]
        rows.append(
            [
                *entry.key,
                size,
                changed_ns,
                entry.duration_s,
                entry.first,
                entry.stop,
                entry.is_last,
                entry.num_rows,
                failures or None,
            ]
        )
    # Escaped to ASCII, JSON carries also the bytes of a name that are no text.
    return json.dumps(
        {"format_version": FORMAT_VERSION, "fields": _FIELDS, "clips": rows}, separators=(",", ":")
    )


def decode_entries(text: str | bytes) -> Iterator[Entry]:
    """Read what ``encode_entries`` wrote.

    Raises:
        StoreError: If a newer version of this package wrote it.
    """
    journal = json.loads(text)
    if journal["format_version"] > FORMAT_VERSION:
        raise StoreError(
            f"The store has format {journal['format_version']}, this version of beats_trainer reads up to "
            f"{FORMAT_VERSION}: update beats_trainer to use it."
        )
    for row in journal["clips"]:
        file, start_s, clip_s, size, changed_ns, planned_s, first, stop, last, rows, failed = row
        yield Entry(
            ClipKey(file, start_s or 0.0, clip_s),  # one zero for all
            None if size is None else FileState(size, changed_ns),
            planned_s,
            first,
            stop,
            last,
            rows,
            tuple(WindowFailure(*failure) for failure in failed) if failed else (),
        )


def _values(state: FileState) -> tuple[int, int]:
    return int(state.size), int(state.changed_ns)


class Journal:
    """The state of every clip of a store, from the entries of its shards.

    Attributes:
        progress: Of each clip, in the order in which the clips first came.
        broken: Clips with an entry that does not continue the one before.
    """

    def __init__(self) -> None:
        self.progress: dict[ClipKey, Progress] = {}
        self.broken: set[ClipKey] = set()
        self._failures: dict[ClipKey, tuple[WindowFailure, ...]] = {}

    def add(self, entry: Entry) -> None:
        """Take account of the next entry; one that does not fit makes its clip ``broken``."""
        key, before = entry.key, self.progress.get(entry.key)
        if not continues(before, entry):
            self.broken.add(key)
            return
        is_new = before is None or (entry.first == 0 and before.num_rows == 0)
        earlier = () if is_new else self._failures.get(key, ())
        self.progress[key] = Progress(
            entry.state,
            entry.stop,
            entry.is_last,
            bool(earlier or entry.failures),
            entry.num_rows + (0 if is_new or before is None else before.num_rows),
            entry.duration_s,
        )
        if earlier or entry.failures:
            self._failures[key] = earlier + entry.failures
        else:
            self._failures.pop(key, None)

    def failures_of(self, key: ClipKey) -> tuple[WindowFailure, ...]:
        """What failed of one clip, in its newest attempt."""
        return self._failures.get(key, ())

    def failures(self) -> pd.DataFrame:
        """List what failed.

        Returns:
            Columns ``file, start_time, end_time, reason``; the newest attempt of each clip. Neighbouring
            windows of a clip with one reason are one row. No times mean that a whole file failed.
        """
        rows: list[tuple[str, float | None, float | None, str]] = []
        for key, failures in self._failures.items():
            name = printable_name(key.file)
            rows += [(name, *failure) for failure in _merged(key, failures)]
        table = pd.DataFrame(rows, columns=list(FAILURE_COLUMNS))
        return table.astype({"start_time": float, "end_time": float})

    def durations(self) -> dict[str, float]:
        """Seconds of each file, from its start to the end of its last clip, where known."""
        seconds: dict[str, float] = {}
        for key, progress in self.progress.items():
            if progress.duration_s is not None:
                name = printable_name(key.file)
                end = key.start_s + progress.duration_s
                seconds[name] = max(end, seconds.get(name, 0.0))
        return seconds

    def parts(self) -> pd.DataFrame:
        """List which time of the files was planned, where known.

        Returns:
            Columns ``file, start_time, end_time`` (seconds) and ``is_whole``, whether the end is that of the
            file and the start its start; each time once, also where clips overlap; files in the order in which
            they first came.
        """
        clips: dict[str, list[tuple[float, float, bool]]] = {}
        for key, progress in self.progress.items():
            if progress.duration_s is not None:
                is_whole = key.start_s == 0 and key.duration_s is None
                part = (key.start_s, key.start_s + progress.duration_s, is_whole)
                clips.setdefault(printable_name(key.file), []).append(part)
        rows = [(name, *part) for name, parts in clips.items() for part in _joined(parts)]
        table = pd.DataFrame(rows, columns=list(_PART_COLUMNS))
        return table.astype({"start_time": float, "end_time": float, "is_whole": bool})


def continues(before: Progress | None, entry: Entry) -> bool:
    """Whether an entry is what must come next of its clip: what follows, or a new attempt."""
    if before is None:
        return entry.first == 0
    if entry.first == 0 and before.num_rows == 0:
        return True
    return (
        not before.is_complete and entry.first == before.next_window and entry.state == before.state
    )


def _joined(parts: list[tuple[float, float, bool]]) -> Iterator[tuple[float, float, bool]]:
    """Parts of one file in order of time; those that touch or overlap as one."""
    start, end, is_whole = math.inf, -math.inf, False
    for next_start, next_end, next_is_whole in sorted(parts):
        if next_start > end + 1e-6:
            if end > start:
                yield start, end, is_whole
            start, end, is_whole = next_start, next_end, next_is_whole
        else:
            end, is_whole = max(end, next_end), is_whole or next_is_whole
    if end > start:
        yield start, end, is_whole


def _merged(
    key: ClipKey, failures: Sequence[WindowFailure]
) -> Iterator[tuple[float | None, float | None, str]]:
    last: tuple[float | None, float | None, str] | None = None
    for failure in sorted(failures, key=lambda f: -1.0 if f.start_time is None else f.start_time):
        start, end = failure.start_time, failure.end_time
        if start is None and (key.start_s > 0 or key.duration_s is not None):  # a part of a file
            start = key.start_s
            end = None if key.duration_s is None else key.start_s + key.duration_s
        if (
            last is not None
            and (last[1] is not None and start is not None and end is not None)
            and last[2] == failure.reason
            and start <= last[1] + 1e-6
        ):
            last = (last[0], max(last[1], end), failure.reason)
        elif (start, end, failure.reason) != last:
            if last is not None:
                yield last
            last = (start, end, failure.reason)
    if last is not None:
        yield last
