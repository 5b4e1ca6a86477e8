"""One Parquet file of rows with their place in time: written whole, and read piece by piece.

rows -> [Parquet: file, start_time, end_time, vectors; recipe in the footer] -> rows

Vectors are fixed-size lists of float32 or float16. Pages carry checksums, so that a disk that lost bits is
noticed when they are read. Files are opened by Python, since Arrow takes no path that is not UTF-8.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beats_trainer.atomic import written_whole
from beats_trainer.errors import BEATsTrainerError, StoreError
from beats_trainer.file_names import printable_name

__all__ = [
    "FAILURES_KEY",
    "JOURNAL_KEY",
    "PLACE_COLUMNS",
    "RECIPE_KEY",
    "DamagedParquetError",
    "Dtype",
    "Footer",
    "Vectors",
    "explained",
    "opened_parquet",
    "printable_name",
    "printable_names",
    "read_footer",
    "rows_schema",
    "rows_table",
    "sync_folder",
    "vectors_of",
    "without_notes",
    "write_parquet",
]

Dtype: TypeAlias = Literal["float32", "float16"]
"""Number format of stored vectors."""
Vectors: TypeAlias = NDArray[np.float32] | NDArray[np.float16]
"""One vector per row, shape ``(N, D)``."""

PLACE_COLUMNS = ("file", "start_time", "end_time")
"""Where a row lies: the file as it was given, and seconds from its start."""
RECIPE_KEY = "beats_trainer"
"""Key of the file's metadata that holds the recipe, as JSON."""
JOURNAL_KEY = "beats_trainer_journal"
"""Key of a shard's metadata that holds what it accounts for, as JSON."""
FAILURES_KEY = "beats_trainer_failures"
"""Key of a single file's metadata that holds what could not be read: rows of ``errors.csv``, as JSON."""

_ARROW_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


class DamagedParquetError(StoreError):
    """A file is no Parquet, or is not what was written."""


@dataclass(frozen=True)
class Footer:
    """What a file says about itself.

    Attributes:
        path: The file.
        num_rows: How many rows.
        columns: Width of each column of vectors.
        dtype: Number format of the vectors.
        metadata: Key and text, without Arrow's own.
    """

    path: Path
    num_rows: int
    columns: dict[str, int]
    dtype: Dtype
    metadata: dict[str, bytes]

    @property
    def recipe(self) -> dict[str, Any]:
        """How the vectors were made."""
        recipe: dict[str, Any] = json.loads(self.metadata.get(RECIPE_KEY, b"{}"))
        return recipe


def without_notes(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe changes the vectors: not its ``"notes"``, such as the model's name or the device.

    Example:
        >>> without_notes({"pooling": "mean", "notes": {"device": "cpu"}})
        {'pooling': 'mean'}
    """
    return {name: value for name, value in recipe.items() if name != "notes"}


def printable_names(names: Sequence[str]) -> list[str]:
    """Write file names as text."""
    return [printable_name(name) for name in names]


def rows_schema(columns: Mapping[str, int], dtype: Dtype, recipe: Mapping[str, Any]) -> Any:
    """Say of which types rows are, and how they were made.

    Args:
        columns: Width of each column of vectors.
        dtype: Their number format.
        recipe: Plain values.

    Returns:
        The ``pyarrow.Schema``; the recipe is in its metadata, so that readers of tables see it too.
    """
    return pa.schema(
        [
            ("file", pa.string()),
            ("start_time", pa.float64()),
            ("end_time", pa.float64()),
            *((name, pa.list_(_ARROW_TYPES[dtype], width)) for name, width in columns.items()),
        ],
        {RECIPE_KEY: json.dumps(dict(recipe))},
    )


def rows_table(
    file: Sequence[str],
    start_time: Sequence[float] | NDArray[np.floating[Any]],
    end_time: Sequence[float] | NDArray[np.floating[Any]],
    values: Mapping[str, Vectors],
) -> Any:
    """Put rows into Arrow's form; vectors are not copied.

    Args:
        file: File of each row.
        start_time: Seconds from the file's start, per row.
        end_time: Seconds from the file's start, per row.
        values: Each column's vectors, ``(N, D)``, all float32 or all float16.

    Returns:
        The ``pyarrow.Table``.
    """
    vectors = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1]
        )
        for rows in values.values()
    ]
    arrays = [
        pa.array(printable_names(file), pa.string()),
        pa.array(np.asarray(start_time, np.float64)),
        pa.array(np.asarray(end_time, np.float64)),
        *vectors,
    ]
    return pa.table(arrays, names=[*PLACE_COLUMNS, *values])


def vectors_of(column: Any) -> Vectors:
    """Take a column of vectors out of an Arrow batch.

    Args:
        column: A ``FixedSizeListArray``.

    Returns:
        Shape ``(N, D)``, as stored.
    """
    flat: Vectors = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size)


def write_parquet(
    path: Path, tables: Iterable[Any], schema: Any, metadata: Mapping[str, str]
) -> None:
    """Write one Parquet file whole or not at all, and make sure that it is on the disk.

    Args:
        path: The file; its folder exists. One that is there is replaced.
        tables: The rows; each table is a row group.
        schema: Of the tables.
        metadata: Key and text for the footer alone, which readers of tables do not carry along.

    Raises:
        OSError: If it cannot be written; then ``path`` is as it was.
    """
    names = [name for name in schema.names if name not in PLACE_COLUMNS]
    is_float32 = any(schema.field(name).type.value_type == pa.float32() for name in names)
    # Bytes of equal weight side by side compress best: 85 % of random float32, a third of what was computed
    # in bfloat16, at the price of 2 ms per 3 MB. For float16 many readers do not know this encoding yet.
    split = [f"{name}.list.element" for name in names] if is_float32 else False
    with written_whole(path) as partial, partial.open("wb") as sink:
        with pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=["file"],
            use_byte_stream_split=split,
            write_statistics=list(PLACE_COLUMNS),
            write_page_checksum=True,
        ) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
            # Not in the schema: Arrow would store it there a second time.
            writer.add_key_value_metadata(dict(metadata))
        sink.flush()
        os.fsync(sink.fileno())
    sync_folder(path.parent)


@contextlib.contextmanager
def explained(path: Path, advice: str) -> Iterator[None]:
    """Say of a failure to write, inside, which file it was and what to do.

    Args:
        path: The file.
        advice: What is whole all the same, and what to do.

    Raises:
        OSError: With the number of the one that was raised inside.
    """
    try:
        yield
    except BEATsTrainerError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"Cannot write {path}: {reason}. {advice}") from error


def sync_folder(folder: Path) -> None:
    """Make sure that a rename in the folder outlives a power cut, where the system can promise it."""
    if os.name == "nt":
        return
    with contextlib.suppress(
        OSError
    ):  # some network file systems cannot, and none needs the rename undone
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """Open a file for reading, checksums verified.

    Args:
        path: The file.

    Yields:
        The ``pyarrow.parquet.ParquetFile``.

    Raises:
        DamagedParquetError: If it is damaged, noticed here or when it is read from.
        OSError: If it cannot be opened or read.
    """
    # Not a file of Python's: Arrow's threads let go of what they read a moment after we have it, and a Python
    # object that is let go of while Python ends aborts the process (apache/arrow#50482). As bytes, the
    # name may be no text.
    with pa.OSFile(os.fsencode(path)) as source:
        try:
            with pq.ParquetFile(source, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            # Arrow's own complaints about the content are OSErrors too, but without the system's number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedParquetError(f"{path} is damaged: {error}") from error


def read_footer(path: Path) -> Footer:
    """Read what a file says about itself, and no rows.

    Args:
        path: The file.

    Returns:
        Its footer.

    Raises:
        DamagedParquetError: If it is damaged.
        StoreError: If it holds no rows of ours.
        OSError: If it cannot be opened or read.
    """
    with opened_parquet(path) as file:
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
        metadata = file.metadata.metadata or {}
    columns = {
        field.name: field.type.list_size
        for field in schema
        if pa.types.is_fixed_size_list(field.type)
        and field.type.value_type in _ARROW_TYPES.values()
    }
    missing = [name for name in PLACE_COLUMNS if name not in schema.names]
    if not columns:
        missing.append("embedding (a list of fixed size, of float32 or float16)")
    if missing:
        raise StoreError(
            f"{path} is not a table of embeddings: it has no column {', nor '.join(missing)}. It has: "
            f"{', '.join(schema.names)}."
        )
    kinds = {schema.field(name).type.value_type for name in columns}
    if len(kinds) > 1:
        raise StoreError(f"{path} mixes float32 and float16: expected one number format.")
    dtype: Dtype = "float32" if kinds == {pa.float32()} else "float16"
    texts = {key.decode(): text for key, text in metadata.items() if key != b"ARROW:schema"}
    return Footer(path, num_rows, columns, dtype, texts)
