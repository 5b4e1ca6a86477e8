"""Write a store of embeddings or scores such that a run killed at any moment can go on.

engine -> rows and what they cover -> [lock, shards written whole, errors.csv] -> store on disk

A shard's footer holds what the shard accounts for, so one rename commits rows, progress and failures. What
was not renamed is not there: nothing has to be repaired after a kill, only continued.
"""

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beats_trainer.atomic import written_whole
from beats_trainer.embeddings.journal import (
    ClipKey,
    Covered,
    Entry,
    Journal,
    Progress,
    continues,
    encode_entries,
    key_of,
)
from beats_trainer.embeddings.parquet import (
    JOURNAL_KEY,
    DamagedParquetError,
    Dtype,
    Footer,
    Vectors,
    explained,
    opened_parquet,
    read_footer,
    rows_schema,
    rows_table,
    sync_folder,
    without_notes,
    write_parquet,
)
from beats_trainer.embeddings.shards import (
    DAMAGED_PREFIX,
    DESCRIPTION_NAME,
    ERRORS_NAME,
    SHARD_FOLDER,
    entries_of,
    list_shards,
    read_description,
    shard_number,
    shard_path,
    write_description,
)
from beats_trainer.errors import StoreError, StoreInUseError, StoreMismatchError
from beats_trainer.loading.clips import Clip

__all__ = ["StoreWriter"]

_logger = logging.getLogger(__name__)

_LOCK_NAME = ".lock"
_HOLDER_NAME = ".lock.json"
_GOES_ON = (
    "What was written before is whole; make room, or make the folder writable, and run the same command "
    "again"
)
_MOST_JOURNAL_BYTES = 50_000_000
"""Readers of Parquet refuse a footer with a text above 100 MB."""


class StoreWriter:
    """The one writer of a store; a context manager.

    Args:
        folder: The store; made if it is not there. One that holds something else is refused.
        columns: Width of each column of vectors, such as ``{"embedding": 768}``.
        recipe: How the vectors are made, plain values; a store goes on with the same recipe only. What
            stands under ``"notes"`` may differ.
        dtype: ``"float32"``, or ``"float16"`` for half the size.
        overwrite: Remove what the store holds, and begin anew.

    Raises:
        StoreInUseError: If another run writes to it.
        StoreMismatchError: If it holds rows of another recipe.
        StoreError: If the folder holds something else than a store.
        OSError: If the folder cannot be made or written to.

    Example:
        >>> import numpy as np, tempfile
        >>> from beats_trainer.embeddings import open_store
        >>> from beats_trainer.embeddings.journal import Covered, FileState
        >>> out, clip = tempfile.mkdtemp(), Clip("owl.wav")
        >>> with StoreWriter(out, {"embedding": 4}, {"pooling": "mean"}) as writer:
        ...     covered = Covered(clip, FileState(1, 1), 2.0, 0, 2, is_last=True)
        ...     vectors = {"embedding": np.ones((2, 4), np.float32)}
        ...     _ = writer.write_shard([covered], ["owl.wav"] * 2, [0.0, 1.0], [1.0, 2.0], vectors)
        ...     writer.progress(clip).is_complete
        True
        >>> open_store(out).to_numpy().shape
        (2, 4)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        columns: Mapping[str, int],
        recipe: Mapping[str, Any],
        dtype: Dtype = "float32",
        overwrite: bool = False,
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', not {dtype!r}.")
        if not columns or any(width < 1 for width in columns.values()):
            raise ValueError(f"Expected at least one column, each 1 or more wide; got {columns}.")
        self.folder = Path(folder)
        self.columns = {name: int(width) for name, width in columns.items()}
        self.recipe: dict[str, Any] = json.loads(json.dumps(dict(recipe)))  # as it comes back
        self.dtype: Dtype = dtype
        self._schema = rows_schema(self.columns, dtype, self.recipe)
        self._journal = Journal()
        self._next_number = 0
        self._make_folder()
        self._check_is_ours()
        self._lock = filelock.FileLock(self.folder / _LOCK_NAME)
        self._take_lock()
        try:
            self._open(overwrite)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def clips_known(self) -> list[Clip]:
        """The clips that the store accounts for, in the order in which they came."""
        return [Clip(*key) for key in self._journal.progress]

    def progress(self, clip: Clip) -> Progress | None:
        """How far a clip has come; ``None`` if the store does not know it."""
        return self._journal.progress.get(key_of(clip))

    def is_in_doubt(self, clip: Clip) -> bool:
        """Whether a clip failed as a whole although it has rows: its file changed while it was read."""
        failures = self._journal.failures_of(key_of(clip))
        return any(failure.start_time is None for failure in failures)

    def write_shard(
        self,
        covered: Sequence[Covered],
        file: Sequence[str],
        start_time: Sequence[float] | NDArray[np.floating[Any]],
        end_time: Sequence[float] | NDArray[np.floating[Any]],
        values: Mapping[str, Vectors],
    ) -> Path:
        """Write one shard whole or not at all; when this returns, it is on the disk.

        Args:
            covered: What it accounts for, in the order of the rows. A clip goes on at its
                ``next_window``, or is new, or is tried again after an attempt that left no row.
            file: File of each row, as in its clip; may be empty where all failed.
            start_time: Seconds from the file's start, per row.
            end_time: Seconds from the file's start, per row.
            values: Each column's vectors, ``(N, D)``.

        Returns:
            The shard.

        Raises:
            ValueError: If rows and ``covered`` do not fit together, or a clip does not go on where it was.
            StoreError: If a value is beyond the range of the store's number format.
            OSError: If it cannot be written, such as on a full disk; the store is then as it was.
        """
        if not self._lock.is_locked:
            raise ValueError(f"The writer of {self.folder} is closed.")
        entries = self._entries(covered, file)
        rows = rows_table(file, start_time, end_time, self._checked(values, len(file)))
        journal = encode_entries(entries)
        if len(journal) > _MOST_JOURNAL_BYTES:
            raise ValueError(
                f"A shard cannot account for {len(entries):,} clips at once: write it in several."
            )
        path = shard_path(self.folder, self._next_number)
        self._next_number += 1  # whatever comes: a number is never used twice
        try:
            with explained(path, _GOES_ON):
                write_parquet(path, [rows], self._schema, {JOURNAL_KEY: journal})
        finally:
            if path.exists():  # also after Ctrl-C at the very end: the disk decides
                for entry in entries:
                    self._journal.add(entry)
        return path

    def forget(self, clips: Collection[Clip]) -> int:
        """Remove the rows of clips and that they were ever tried, since their file has changed.

        Each shard that holds something of them is written anew, whole, the last one first. Killed in
        between, the store knows the beginning of such a clip as it was, or nothing of it, and never a row twice:
        forget it again.

        Args:
            clips: Those to forget; those that the store does not know do not matter.

        Returns:
            How many rows were removed.

        Raises:
            OSError: If a shard cannot be written, such as on a full disk.
        """
        return self._forget({key_of(clip) for clip in clips} & self._journal.progress.keys())

    def write_errors(self) -> pd.DataFrame:
        """Write ``errors.csv``, whole or not at all: what could not be read, in all runs.

        Returns:
            What was written: ``file, start_time, end_time, reason``; a header alone if nothing failed.

        Raises:
            OSError: If it cannot be written.
        """
        table = self._journal.failures()
        path = self.folder / ERRORS_NAME
        with explained(path, _GOES_ON), written_whole(path) as partial:
            table.to_csv(partial, index=False)
        return table

    def close(self) -> None:
        """Let another run write."""
        if self._lock.is_locked:
            (self.folder / _HOLDER_NAME).unlink(missing_ok=True)
            self._lock.release()

    def _make_folder(self) -> None:
        """Make the folder and prove that it can be written to, before a lock says something vaguer."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{DESCRIPTION_NAME}.{os.getpid()}.part"
            probe.touch()
            probe.unlink()
        except (FileExistsError, NotADirectoryError) as error:
            raise OSError(
                error.errno,
                f"Cannot write a store to {self.folder}: it, or a folder above it, is a file. Choose "
                "another output",
            ) from error
        except OSError as error:
            raise OSError(
                error.errno,
                f"Cannot write a store to {self.folder}: {error.strerror}. Make the folder writable, or "
                "choose another output",
            ) from error

    def _check_is_ours(self) -> None:
        """Refuse a folder with something else in it, before anything is put there."""
        visible = [path.name for path in _visible(self.folder)]
        if not any(
            _visible(self.folder / SHARD_FOLDER)
        ):  # all that a run made before it was killed
            visible = [name for name in visible if name != SHARD_FOLDER]
        if visible and read_description(self.folder) is None and not list_shards(self.folder):
            raise StoreError(
                f"{self.folder} is not empty and holds no store (first of what it holds: "
                f"{sorted(visible)[0]}). Nothing was changed; choose another output."
            )

    def _take_lock(self) -> None:
        holder = self.folder / _HOLDER_NAME
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise StoreInUseError(self.folder, _describe(holder)) from None
        me = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        try:
            with written_whole(holder) as partial:
                partial.write_text(json.dumps(me), encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def _open(self, overwrite: bool) -> None:
        description = read_description(self.folder)
        self._remove_leftovers()
        if overwrite:
            self._remove_store()
            description = None
        (self.folder / SHARD_FOLDER).mkdir(exist_ok=True)
        healthy = self._read_shards(description)
        ours = {"recipe": self.recipe, "columns": self.columns, "dtype": self.dtype}
        if description is None or {name: description[name] for name in ours} != ours:
            write_description(self.folder, self.recipe, self.columns, self.dtype)
        self._load(healthy)

    def _remove_leftovers(self) -> None:
        """Remove what a run that was killed had half-written."""
        names = (DESCRIPTION_NAME, ERRORS_NAME, _HOLDER_NAME)
        patterns = (*(f".{name}.*.part" for name in names), f"{SHARD_FOLDER}/.part-*.part")
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                path.unlink()

    def _remove_store(self) -> None:
        """Remove our own files, the last shard first: what is left after a kill is a store still."""
        for path in reversed(list_shards(self.folder)):
            path.unlink()
        for path in self.folder.glob(f"{DAMAGED_PREFIX}part-*.parquet"):
            path.unlink()
        for name in (ERRORS_NAME, DESCRIPTION_NAME):
            (self.folder / name).unlink(missing_ok=True)

    def _read_shards(self, description: dict[str, Any] | None) -> list[Footer]:
        """Read all footers, refuse those of another recipe, and only then set damaged shards aside."""
        healthy, damaged = [], []
        for path in list_shards(self.folder):
            try:
                footer = read_footer(path)
            except DamagedParquetError as error:
                damaged.append((path, error))
                continue
            self._check_same(footer.recipe, footer.columns, footer.dtype)
            healthy.append(footer)
        if damaged and not healthy and description is not None:
            self._check_same(*(description[name] for name in ("recipe", "columns", "dtype")))
        for path, damage in damaged:
            self._set_aside(path, damage)
        return healthy

    def _check_same(self, recipe: dict[str, Any], columns: dict[str, int], dtype: str) -> None:
        compared = [without_notes(made) for made in (recipe, self.recipe)]
        if (compared[0], columns, dtype) == (compared[1], self.columns, self.dtype):
            return
        old, new = (
            {**_flat(recipe), **{f"width of {n}": json.dumps(w) for n, w in columns.items()}}
            | {"dtype": dtype}
            for recipe, columns, dtype in (
                (compared[0], columns, dtype),
                (compared[1], self.columns, self.dtype),
            )
        )
        missing = "(not there)"
        raise StoreMismatchError(
            self.folder,
            [
                (name, old.get(name, missing), new.get(name, missing))
                for name in {**old, **new}
                if old.get(name) != new.get(name)
            ],
        )

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Rename a damaged shard, so that its clips are done again and nothing is deleted."""
        target, times = self.folder / f"{DAMAGED_PREFIX}{path.name}", 1
        while target.exists():
            times += 1
            target = self.folder / f"{DAMAGED_PREFIX}{path.stem}-{times}{path.suffix}"
        path.rename(target)
        _logger.warning("%s It is now %s, and its clips are done again.", error, target)

    def _load(self, footers: Sequence[Footer]) -> None:
        """Read the journal; forget clips of which a shard in the middle is gone."""
        self._journal = Journal()
        for footer in footers:
            for entry in entries_of(footer):
                self._journal.add(entry)
            self._next_number = max(self._next_number, shard_number(footer.path) + 1)
        if self._journal.broken:
            _logger.warning(
                "%s has lost windows of %d clips, since a shard is gone: they are done again.",
                self.folder,
                len(self._journal.broken),
            )
            self._forget(self._journal.broken)

    def _forget(self, keys: Collection[ClipKey]) -> int:
        if not keys:
            return 0
        removed = 0
        try:
            for path in reversed(list_shards(self.folder)):
                removed += self._forget_in(path, keys)
        finally:
            self._load([read_footer(path) for path in list_shards(self.folder)])
        return removed

    def _forget_in(self, path: Path, keys: Collection[ClipKey]) -> int:
        entries = list(entries_of(read_footer(path)))
        keeps = [entry.key not in keys for entry in entries]
        if all(keeps):
            return 0
        kept = [entry for entry in entries if entry.key not in keys]
        mask = np.repeat(keeps, [entry.num_rows for entry in entries])
        if not kept:
            path.unlink()
            sync_folder(path.parent)
            return int((~mask).sum())
        try:
            with opened_parquet(path) as file:
                rows = file.read()
        except DamagedParquetError as error:
            self._set_aside(path, error)
            return int((~mask).sum())
        rows = rows.filter(pa.array(mask))
        with explained(path, _GOES_ON):
            write_parquet(path, [rows], self._schema, {JOURNAL_KEY: encode_entries(kept)})
        return int((~mask).sum())

    def _entries(self, covered: Sequence[Covered], file: Sequence[str]) -> list[Entry]:
        """Check what is to be written against what there is, and count each clip's rows."""
        if not covered:
            raise ValueError("A shard must account for something: got no `covered`.")
        clips_of = Counter(item.clip.file for item in covered)
        entries, position = [], 0
        ahead = Journal()  # what this shard adds: a clip may be in it twice
        for item in covered:
            name, num_rows = item.clip.file, item.num_rows
            if num_rows is None:
                if clips_of[name] > 1:
                    raise ValueError(
                        f"{name} has several clips in one shard: give num_rows for each of them."
                    )
                num_rows = 0
                while position + num_rows < len(file) and file[position + num_rows] == name:
                    num_rows += 1
            strange = set(file[position : position + num_rows]) - {name}
            if strange or position + num_rows > len(file):
                raise ValueError(
                    f"Expected {num_rows} rows of {name} from row {position} on, as `covered` is ordered; "
                    f"got {len(file) - position} rows, and the files {sorted(strange)}."
                )
            position += num_rows
            key = key_of(item.clip)
            entry = Entry(
                key,
                item.state,
                None if item.duration_s is None else float(item.duration_s),
                int(item.first),
                int(item.stop),
                bool(item.is_last),
                int(num_rows),
                item.failures,
            )
            before = ahead.progress.get(key, self._journal.progress.get(key))
            if not continues(before, entry):
                raise ValueError(
                    f"{item.clip} cannot go on with window {item.first}: the store has {before}. Forget "
                    "the clip first to do it again."
                )
            if before is not None:
                ahead.progress[key] = before
            ahead.add(entry)
            entries.append(entry)
        if position != len(file):
            raise ValueError(
                f"`covered` accounts for {position} rows, but there are {len(file)}; the first of no clip "
                f"is of {file[position]}."
            )
        return entries

    def _checked(self, values: Mapping[str, Vectors], num_rows: int) -> dict[str, Vectors]:
        expected = {name: (num_rows, width) for name, width in self.columns.items()}
        got = {name: np.shape(rows) for name, rows in values.items()}
        if expected != got:
            raise ValueError(f"Expected columns of the shapes {expected}, got {got}.")
        return {name: self._converted(name, values[name]) for name in self.columns}

    def _converted(self, name: str, rows: Vectors) -> Vectors:
        dtype = np.float32 if self.dtype == "float32" else np.float16
        try:
            with np.errstate(over="raise"):
                return cast("Vectors", np.asarray(rows, dtype))
        except FloatingPointError:
            raise StoreError(
                f"A value of {name}, {np.abs(rows).max():g}, is beyond the range of {self.dtype} "
                f"({np.finfo(dtype).max:g}). For float16, use dtype='float32' (--dtype float32)."
            ) from None


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['process']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which one is not known"


def _flat(recipe: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Name nested settings by their path, ``model.layer``; values as JSON."""
    flat: dict[str, str] = {}
    for name, value in recipe.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[above + name] = json.dumps(value, ensure_ascii=False)
    return flat
