"""Read a store of embeddings or scores: a folder of shards, or one Parquet file.

store on disk -> [footers] -> EmbeddingStore -> numpy | pandas | pieces of bounded memory | one file

Opening reads the footers alone. What is read is the store as it was when it was opened: rows that a run
adds meanwhile are seen by those who open it again.

Shapes in this file: N rows, D width of a vector.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beats_trainer.embeddings.journal import FAILURE_COLUMNS, Journal
from beats_trainer.embeddings.parquet import (
    FAILURES_KEY,
    PLACE_COLUMNS,
    DamagedParquetError,
    Dtype,
    Footer,
    Vectors,
    opened_parquet,
    printable_name,
    read_footer,
    rows_schema,
    vectors_of,
    without_notes,
    write_parquet,
)
from beats_trainer.embeddings.shards import (
    SHARD_FOLDER,
    entries_of,
    list_shards,
    read_description,
)
from beats_trainer.embeddings.table import StoredRows
from beats_trainer.errors import StoreError, StoreNotFoundError

__all__ = ["EmbeddingStore", "open_store"]

_logger = logging.getLogger(__name__)

_BATCH_ROWS = 8192
_MOST_FAILURE_BYTES = 50_000_000
"""Readers of Parquet refuse a footer with a text above 100 MB."""


def open_store(path: str | os.PathLike[str]) -> "EmbeddingStore":
    """Open a store for reading, also while a run is writing to it.

    Args:
        path: A store's folder, or one Parquet file: a merged store, or a table of embeddings.

    Returns:
        The store; no row is read yet.

    Raises:
        StoreNotFoundError: If there is nothing at ``path``, or a folder without a store.
        StoreError: If a shard is damaged or of another recipe than the others.

    Example:
        >>> import tempfile
        >>> from beats_trainer.embeddings.table import EmbeddingTable
        >>> vectors = np.array([[1, 2], [3, 4]], np.float32)
        >>> table = EmbeddingTable(["a.wav", "b.wav"], np.zeros(2), np.ones(2), vectors)
        >>> store = open_store(table.to_parquet(Path(tempfile.mkdtemp(), "birds.parquet")))
        >>> len(store), store.files, store.columns
        (2, ['a.wav', 'b.wav'], {'embedding': 2})
        >>> store.to_numpy(files=["b.wav"])
        array([[3., 4.]], dtype=float32)
    """
    path = Path(path)
    if path.is_file():
        footer = read_footer(path)
        return EmbeddingStore(path, [footer], footer.recipe, footer.columns, footer.dtype)
    if not path.is_dir():
        raise StoreNotFoundError(
            f"There is no store at {path}: expected the folder or Parquet file that embedding wrote."
        )
    footers = _read_footers(path)
    if footers:
        return EmbeddingStore(
            path, footers, footers[0].recipe, footers[0].columns, footers[0].dtype
        )
    description = read_description(path)
    if description is None:
        raise StoreNotFoundError(
            f"{path} holds no store: expected a folder with store.json and a folder {SHARD_FOLDER}."
        )
    return EmbeddingStore(
        path, [], description["recipe"], description["columns"], description["dtype"]
    )


def _read_footers(store: Path) -> list[Footer]:
    footers: list[Footer] = []
    for path in list_shards(store):
        try:
            footer = read_footer(path)
        except FileNotFoundError:  # a run has just removed its last rows
            continue
        except DamagedParquetError as error:
            raise StoreError(
                f"{error} Run the command that made {store} once more: it sets the shard aside and does its "
                "clips again. Or move the file away to read the others."
            ) from error
        if footers and not _is_alike(footer, footers[0]):
            raise StoreError(
                f"{path} was made by another recipe than {footers[0].path}: one of them does not belong here."
            )
        footers.append(footer)
    return footers


def _is_alike(one: Footer, other: Footer) -> bool:
    return (one.columns, one.dtype, without_notes(one.recipe)) == (
        *(other.columns, other.dtype),
        without_notes(other.recipe),
    )


class EmbeddingStore:
    """Rows with their place in time, on disk; made by ``open_store``.

    Names of files are as they were given to the run; bytes that are no text are written ``\\xff``. Where a
    method takes ``files``, it takes a name in either form, and keeps the order of the store.

    Attributes:
        path: The folder or file.
        recipe: How the vectors were made.
        columns: Width of each column of vectors.
        dtype: Their number format, ``"float32"`` or ``"float16"``.
    """

    def __init__(
        self,
        path: Path,
        footers: Sequence[Footer],
        recipe: Mapping[str, Any],
        columns: Mapping[str, int],
        dtype: Dtype,
    ) -> None:
        self.path = path
        self.recipe = dict(recipe)
        self.columns = dict(columns)
        self.dtype: Dtype = dtype
        # The journals of a large store are long: they are read when they are asked for.
        self._shards = [(footer.path, footer.num_rows) for footer in footers]

    def __len__(self) -> int:
        return sum(num_rows for _, num_rows in self._shards)

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} ({width})" for name, width in self.columns.items())
        return f"EmbeddingStore({str(self.path)!r}, {len(self):,} rows, {columns}, {self.dtype})"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Row after row: a dictionary of ``file``, ``start_time``, ``end_time`` and the vectors ``(D,)``."""
        for rows in self.batches():
            vectors = rows.values
            for index, name in enumerate(rows.file):
                yield {
                    "file": name,
                    "start_time": float(rows.start_time[index]),
                    "end_time": float(rows.end_time[index]),
                    **{column: vectors[column][index] for column in vectors},
                }

    @property
    def files(self) -> list[str]:
        """The files that have rows, each once, in the order of the rows."""
        return list(self._shards_of)

    @property
    def failures(self) -> pd.DataFrame:
        """What could not be read.

        Columns ``file, start_time, end_time, reason``. No times: a whole file. Of a folder this is the state
        of its shards, that of ``errors.csv`` once the run has ended.
        """
        if self.path.is_dir():
            return self._journal.failures()
        text = read_footer(self.path).metadata.get(FAILURES_KEY, b"[]")
        table = pd.DataFrame(json.loads(text), columns=list(FAILURE_COLUMNS))
        return table.astype({"start_time": float, "end_time": float})

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of each file, from its start to the end of what was planned of it, where known.

        Includes files that failed after they were planned. Empty for a single Parquet file.
        """
        return self._journal.durations() if self.path.is_dir() else {}

    @property
    def parts(self) -> pd.DataFrame:
        """Which time of the files the rows were planned for, where known.

        Columns ``file, start_time, end_time`` (seconds) and ``is_whole``: the row reaches from the file's start
        to its end. Each time stands there once, also where clips overlap. Includes files that failed after they
        were planned. Empty for a single Parquet file.
        """
        return (self._journal if self.path.is_dir() else Journal()).parts()

    def to_numpy(
        self, column: str | None = None, files: Collection[str] | None = None
    ) -> NDArray[Any]:
        """Read one column of vectors into memory.

        Args:
            column: Which; may be left out where there is one.
            files: Rows of these files only; ``None`` reads all.

        Returns:
            Shape ``(N, D)``, in the format in which it is stored; in the order of the store.

        Raises:
            StoreError: If there is no such column, or a file that the store does not know.
        """
        name = self._check_column(column)
        if files is not None:
            pieces = [rows.values[name] for rows in self._read([name], files)]
            empty = np.zeros((0, self.columns[name]), self.dtype)
            return np.concatenate([empty, *pieces])
        vectors = np.empty((len(self), self.columns[name]), self.dtype)  # nothing is held twice
        position = 0
        for rows in self._read([name], None, places=False):
            piece = rows.values[name]
            vectors[position : position + len(piece)] = piece
            position += len(piece)
        assert position == len(vectors)
        return vectors

    def to_pandas(
        self, files: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Read rows into a table.

        Args:
            files: Rows of these files only; ``None`` reads all.
            columns: Which columns; ``None`` takes all. Without vectors, this is quick at any size.

        Returns:
            ``file, start_time, end_time`` and the columns of vectors, which hold arrays ``(D,)``.

        Raises:
            StoreError: If there is no such column, or a file that the store does not know.
        """
        wanted = [*PLACE_COLUMNS, *self.columns] if columns is None else list(columns)
        vectors = [
            self._check_column(name) for name in dict.fromkeys(wanted) if name not in PLACE_COLUMNS
        ]
        pieces = [rows.to_pandas() for rows in self._read(vectors, files)]
        empty = StoredRows(
            [],
            np.zeros(0),
            np.zeros(0),
            {name: np.zeros((0, self.columns[name]), np.float32) for name in vectors},
        )
        table = pd.concat(pieces, ignore_index=True) if pieces else empty.to_pandas()
        return table[wanted]

    def batches(
        self,
        files: Collection[str] | None = None,
        max_rows: int = _BATCH_ROWS,
        columns: Sequence[str] | None = None,
    ) -> Iterator[StoredRows]:
        """Read piece by piece, in bounded memory.

        Args:
            files: Rows of these files only; ``None`` reads all.
            max_rows: Most rows of a piece; a piece never crosses a shard.
            columns: Which columns of vectors; ``None`` takes all.

        Yields:
            Rows in the order of the store, at least one each time.

        Raises:
            StoreError: If there is no such column, or a file that the store does not know.
            ValueError: If ``max_rows`` is not positive.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}.")
        names = [self._check_column(name) for name in columns or self.columns]
        return self._read(names, files, max_rows)

    def batches_by_file(
        self, max_rows: int = _BATCH_ROWS, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[str, StoredRows]]:
        """Read piece by piece as `batches` does, each piece of one file; a file may have several."""
        for rows in self.batches(max_rows=max_rows, columns=columns):
            names = np.array(rows.file, dtype=object)
            cuts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
            for start, stop in itertools.pairwise(cuts):
                values = {name: vectors[start:stop] for name, vectors in rows.values.items()}
                yield (
                    rows.file[start],
                    StoredRows(
                        rows.file[start:stop],
                        rows.start_time[start:stop],
                        rows.end_time[start:stop],
                        values,
                    ),
                )

    def read(self, file: str) -> StoredRows:
        """Read the rows of one file, in time order, in however many shards they lie.

        Args:
            file: Its name.

        Returns:
            The rows; none if the file could not be read.

        Raises:
            StoreError: If the store does not know the file.
        """
        pieces = list(self._read(list(self.columns), [file]))
        start_time = np.concatenate([np.zeros(0), *(rows.start_time for rows in pieces)])
        end_time = np.concatenate([np.zeros(0), *(rows.end_time for rows in pieces)])
        order = np.lexsort((end_time, start_time))
        values: dict[str, Vectors] = {
            name: np.concatenate(
                [np.zeros((0, width), self.dtype), *(rows.values[name] for rows in pieces)]
            )[order]
            for name, width in self.columns.items()
        }
        names = [printable_name(file)] * len(order)
        return StoredRows(names, start_time[order], end_time[order], values)

    def merge_to(self, path: str | os.PathLike[str]) -> Path:
        """Write all rows into one Parquet file, whole or not at all, a shard at a time.

        Args:
            path: The file; one that is there is replaced once the new one is complete.

        Returns:
            The path. The file holds the recipe and the failures too.

        Raises:
            ValueError: If ``path`` lies where it would become part of this store, or is a folder.
            OSError: If it cannot be written.
        """
        path = Path(path)
        own = (self.path / SHARD_FOLDER) if self.path.is_dir() else self.path
        if (
            path.is_dir()
            or path.resolve() == own.resolve()
            or own.resolve() == path.parent.resolve()
        ):
            raise ValueError(f"Cannot merge to {path}: choose a file outside of {own}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = rows_schema(self.columns, self.dtype, self.recipe)
        write_parquet(
            path, self._tables(schema.names), schema, {FAILURES_KEY: self._failures_text()}
        )
        return path

    def _failures_text(self) -> str:
        table = self.failures
        rows = table.astype(object).where(table.notna(), None).to_numpy().tolist()
        text = json.dumps(rows)
        if len(text) > _MOST_FAILURE_BYTES:
            share = _MOST_FAILURE_BYTES / len(text)
            kept = rows[: int(len(rows) * share / 2)]
            _logger.warning(
                "The merged file lists %d of %d failures, for lack of room in its footer: errors.csv has "
                "them all.",
                len(kept),
                len(rows),
            )
            text = json.dumps(kept)
        return text

    def _tables(self, names: Sequence[str]) -> Iterator[Any]:
        for path, num_rows in self._shards:
            with _opened(path, num_rows) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=list(names))

    def _read(
        self,
        vectors: Sequence[str],
        files: Collection[str] | None,
        max_rows: int = _BATCH_ROWS,
        *,
        places: bool = True,
    ) -> Iterator[StoredRows]:
        """Check what is asked for at once, then read piece by piece."""
        if isinstance(files, str):
            files = [files]
        wanted = None if files is None else self._check_files(files)
        names = [*(PLACE_COLUMNS if places else ()), *vectors]
        return self._pieces(names, vectors, wanted, max_rows)

    def _pieces(
        self,
        names: Sequence[str],
        vectors: Sequence[str],
        wanted: list[str] | None,
        max_rows: int,
    ) -> Iterator[StoredRows]:
        shards = self._shards
        if wanted is not None:
            numbers = {number for name in wanted for number in self._shards_of.get(name, ())}
            shards = [self._shards[number] for number in sorted(numbers)]
            values = pa.array(wanted, pa.string())
        for path, num_rows in shards:
            with _opened(path, num_rows) as file:
                for batch in file.iter_batches(max_rows, columns=list(names)):
                    rows = batch
                    if wanted is not None:
                        rows = batch.filter(pc.is_in(batch.column("file"), value_set=values))
                    if rows.num_rows:
                        yield _stored_rows(rows, vectors)

    def _check_column(self, name: str | None) -> str:
        if name is None and len(self.columns) == 1:
            return next(iter(self.columns))
        if name is None or name not in self.columns:
            asked = "Several columns" if name is None else f"There is no column {name!r}"
            raise StoreError(f"{asked} in {self.path}: choose one of {', '.join(self.columns)}.")
        return name

    def _check_files(self, files: Collection[str]) -> list[str]:
        wanted = list(dict.fromkeys(printable_name(os.fspath(name)) for name in files))
        unknown = [name for name in wanted if name not in self._shards_of]
        if unknown:  # rare: what has failed is known too, and has no rows
            unknown = sorted(set(unknown) - self._files_without_rows)
        if unknown:
            known = next(iter(self._shards_of), None)
            example = (
                "" if known is None else f" Names are as they were given to the run, as {known}."
            )
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise StoreError(f"{self.path} does not know {unknown[0]}{more}.{example}")
        return wanted

    @property
    def _files_without_rows(self) -> set[str]:
        failed = set(self.failures["file"])
        if self.path.is_dir():
            failed |= {printable_name(key.file) for key in self._journal.progress}
        return failed

    @functools.cached_property
    def _shards_of(self) -> dict[str, list[int]]:
        """In which shards each file has rows: one pass over the column of names, the first time."""
        shards_of: dict[str, list[int]] = {}
        for number, (path, num_rows) in enumerate(self._shards):
            with _opened(path, num_rows) as file:
                names = file.read(columns=["file"])["file"]
            for name in pc.unique(names).to_pylist():
                shards_of.setdefault(name, []).append(number)
        return shards_of

    @property
    def _journal(self) -> Journal:
        journal = Journal()
        for path, _ in self._shards:
            try:
                footer = read_footer(path)
            except FileNotFoundError as error:
                raise _changed(path) from error
            for entry in entries_of(footer):
                journal.add(entry)
        return journal


@contextlib.contextmanager
def _opened(path: Path, num_rows: int) -> Iterator[Any]:
    """Open a shard that must still be what it was when the store was opened."""
    try:
        with opened_parquet(path) as file:
            if file.metadata.num_rows != num_rows:
                raise _changed(path)
            yield file
    except FileNotFoundError as error:
        raise _changed(path) from error


def _changed(path: Path) -> StoreError:
    return StoreError(
        f"{path} has changed since the store was opened: a run has done some files again. Open it again."
    )


def _stored_rows(batch: Any, vectors: Sequence[str]) -> StoredRows:
    has_places = "file" in batch.schema.names
    none = np.zeros(0)
    return StoredRows(
        batch.column("file").to_pylist() if has_places else [],
        batch.column("start_time").to_numpy() if has_places else none,
        batch.column("end_time").to_numpy() if has_places else none,
        {name: vectors_of(batch.column(name)) for name in vectors},
    )
