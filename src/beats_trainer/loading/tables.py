"""Read which recordings, or parts of them, a table or a list names.

CSV | TSV | Parquet | JSON lines | DataFrame -> [columns, rows] -> clips
text file | standard input -> [lines] -> clips

Names are bytes to the file system and stay what they are, whatever their encoding. A file that a table
names and that is not there is still a clip: the reader says so, in its place.
"""

import csv
import io
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from beats_trainer.datasets.labels import nearest_name
from beats_trainer.datasets.locating import locate_files
from beats_trainer.errors import DatasetError, DatasetNotFoundError
from beats_trainer.file_names import is_url
from beats_trainer.loading.clips import Clip

__all__ = [
    "LIST_ENDINGS",
    "TABLE_ENDINGS",
    "read_clip_list",
    "read_clip_table",
    "read_standard_input",
    "table_to_clips",
]

TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
"""Endings of tables with one clip per row."""
LIST_ENDINGS = (".txt",)
"""Endings of lists with one path per line."""

logger = logging.getLogger(__name__)

# Names of columns as `_plain` leaves them, the most telling first.
_FILE = (
    *("file", "path", "filename", "filepath", "audio", "audiopath", "audiofile"),
    *("audiofilepath", "beginpath"),
)
_START = ("starttime", "start", "starts", "onset", "begintime", "offset")
_END = ("endtime", "end", "ends")
_DURATION = ("duration", "durations")
_RAVEN_OFFSET = "fileoffset"


def read_clip_table(path: str) -> list[Clip]:
    """Read a table file with one clip per row: see :func:`table_to_clips`.

    Relative names are looked for from the table's folder, then from the folder ``audio`` in it, then from the
    current one: as :func:`beats_trainer.datasets.load_csv_dataset` does.

    Args:
        path: Ends in one of ``TABLE_ENDINGS``. CSV has commas, semicolons or tabs between its cells.

    Returns:
        The clips, in the order of the rows.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DatasetError: If it cannot be read, has no rows, or a row makes no sense.
    """
    readers = {".parquet": _read_parquet, ".jsonl": _read_json_lines}
    ending = os.path.splitext(path)[1].lower()
    if not os.path.isfile(path):
        raise DatasetNotFoundError(f"There is no table {path}.")
    try:
        table = readers.get(ending, _read_csv)(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    folder = os.path.dirname(path)
    return _to_clips(table, [folder or os.curdir, os.path.join(folder, "audio"), os.curdir])


def table_to_clips(df: pd.DataFrame) -> list[Clip]:
    """Take the clips from a table with one per row.

    Args:
        df: The recordings are in a column ``file``, ``path``, ``filename``, ``filepath``, ``file_path``,
            ``audio``, ``audio_path``, ``audio_file``, ``audio_filepath`` or ``begin_path``. ``start_time``
            (or ``start``, ``start_s``, ``onset``) and ``end_time`` (or ``end``, ``end_s``, beside ``onset``
            also ``offset``), or ``duration`` (or ``duration_s``), in seconds, make a row a part of its
            file; blank ones mean its start and its end. Case, blanks and underscores make no difference;
            Raven's ``Begin Time (s)``, ``End Time (s)`` and ``File Offset (s)`` are understood.

    Returns:
        The clips, in the order of the rows. A file has the name that the table gives it, unless that is
        none from the current folder.

    Raises:
        DatasetError: If no column names the recordings, there are no rows, or a row makes no sense.

    Example:
        >>> table_to_clips(pd.DataFrame({"path": ["s3://dawn.wav"], "start": [60], "end": [65.5]}))
        [Clip(file='s3://dawn.wav', start_s=60.0, duration_s=5.5)]
    """
    header = [str(name) for name in df.columns]
    columns = {name: df.iloc[:, place].tolist() for name, place in _places(header).items()}
    rows = range(1, len(df) + 1)
    return _to_clips(_Table("The table", header, columns, "row", rows), [os.curdir])


def read_clip_list(path: str) -> list[Clip]:
    """Read a text file with one path per line.

    Relative ones are looked for from the file's folder, then from the current one.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DatasetError: If it cannot be read, is a table, or names no file.
    """
    if not os.path.isfile(path):
        raise DatasetNotFoundError(f"There is no list of files {path}.")
    try:
        names = _split_names(Path(path).read_bytes(), path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    located = _locate(names, [os.path.dirname(path) or os.curdir, os.curdir], path)
    if "\t" in names[0] and not os.path.exists(located[names[0]]):
        raise DatasetError(
            f"Expected one path per line in {path}, but it starts with a row of cells with tabs between "
            "them. If it is a table with a column 'file', give it the ending .tsv."
        )
    return [Clip(located[name]) for name in names]


def read_standard_input() -> list[Clip]:
    """Read paths from standard input: one per line, or with zero bytes between them (``find -print0``).

    Raises:
        DatasetError: If it names no file.
    """
    return [Clip(name) for name in _split_names(sys.stdin.buffer.read(), "standard input")]


@dataclass(frozen=True)
class _Table:
    """A table's columns that are of use here, all of one length."""

    where: str
    header: Sequence[str]
    columns: dict[str, list[Any]]
    row_word: str
    """How its rows are counted: ``"line"`` or ``"row"``."""
    rows: Sequence[int]
    """The number of each row, for messages."""
    decimal_comma: bool = False

    def error(self, place: int, problem: str) -> DatasetError:
        return DatasetError(f"{self.where}, {self.row_word} {self.rows[place]}: {problem}")

    def find(self, usual: Iterable[str]) -> str | None:
        """The first of the usual columns that is there."""
        plain = {_plain(name): name for name in reversed(self.columns)}
        return next((plain[name] for name in usual if name in plain), None)

    def seconds(self, place: int, column: str | None) -> float | None:
        """The number in a cell; ``None`` where there is none."""
        if column is None:
            return None
        value = self.columns[column][place]
        if isinstance(value, str):
            value = value.strip().replace(",", ".") if self.decimal_comma else value.strip()
            value = value or None
        if value is None or value is pd.NA or value is pd.NaT:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            comma = " Write decimals with a point." if "," in str(value) else ""
            raise self.error(
                place, f"expected seconds in the column {column!r}, found {value!r}.{comma}"
            ) from None
        if math.isnan(number):
            return None
        if number < 0 or math.isinf(number):
            raise self.error(
                place,
                f"the column {column!r} has {number} s: times count from 0, the recording's start.",
            )
        return number


def _to_clips(table: _Table, folders: list[str]) -> list[Clip]:
    file = table.find(_FILE)
    if file is None:
        raise DatasetError(
            f"{table.where} has no column that names the recordings, such as 'file' or 'path'."
            f"{nearest_name('file', table.header)} Its columns: {', '.join(table.header)}. Rename the "
            "one that does."
        )
    if not table.rows:
        raise DatasetError(f"{table.where} has columns but no rows: it names no recording.")
    names = [_name(table, place, file) for place in range(len(table.rows))]
    located = _locate(names, folders, table.where)
    start = table.find(_START)
    beside_onset = start is not None and _plain(start) == "onset"
    end = table.find((*_END, "offset") if beside_onset else _END)
    duration = table.find(_DURATION)
    # Raven's own times count from the first file of a sequence; the offset from the file itself.
    counts_elsewhere = start is not None and _plain(start) == "begintime"
    offset = table.find([_RAVEN_OFFSET]) if counts_elsewhere else None
    if counts_elsewhere and offset is None and len(set(names)) > 1:
        raise DatasetError(
            f"{table.where} is about {len(set(names))} recordings, and its times may count from the start "
            "of the first. Save it from Raven with the column 'File Offset (s)'. If they do count from "
            f"the start of each recording, rename the column {start!r} to 'start_time'."
        )
    shared: dict[float, float] = {}  # times repeat: a year of windows has few durations
    clips = []
    for place, name in enumerate(names):
        start_s = table.seconds(place, start)
        end_s = table.seconds(place, end)
        duration_s = table.seconds(place, duration) if end_s is None else None
        if end_s is not None:
            duration_s = round(end_s - (start_s or 0.0), 9)  # 5.3 - 0.3 is 5
        if duration_s is not None and duration_s <= 0:
            raise table.error(
                place,
                f"starts at {start_s or 0.0} s (column {start!r}) and ends at {end_s} s (column {end!r}): "
                "the end must be after the start."
                if end_s is not None
                else f"has no length: the column {duration!r} is {duration_s} s.",
            )
        if offset is not None:
            start_s = table.seconds(place, offset)
        start_s = start_s or 0.0
        clips.append(
            Clip(
                located[name],
                shared.setdefault(start_s, start_s),
                None if duration_s is None else shared.setdefault(duration_s, duration_s),
            )
        )
    return clips


def _name(table: _Table, place: int, column: str) -> str:
    value = table.columns[column][place]
    if isinstance(value, str | bytes | os.PathLike):
        name = str(os.fsdecode(value))
        if name.strip():
            return name
    elif not (value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))):
        raise table.error(
            place,
            f"expected the path of a recording in the column {column!r}, found {type(value).__name__}.",
        )
    raise table.error(place, f"names no recording in the column {column!r}.")


def _locate(names: Iterable[str], folders: list[str], where: str) -> dict[str, str]:
    """Where each file is: as it is named if that is it from the current folder, else its absolute path."""
    unique = dict.fromkeys(names)
    here = [name for name in unique if not is_url(name)]
    located = locate_files(here, folders)
    for name, path in zip(here, located.paths, strict=True):
        is_so_named = path is None or path == os.path.abspath(name)
        unique[name] = None if is_so_named else path
    if located.missing:
        logger.warning("%s: %s", where, located.describe_missing())
    return {name: path or name for name, path in unique.items()}


def _split_names(content: bytes, where: str) -> list[str]:
    content = _without_mark(content, where)
    if b"\0" in content:
        names = content.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    found = [os.fsdecode(name) for name in names if name.strip()]
    if not found:
        raise DatasetError(f"Expected one path per line in {where}, but it names no file.")
    return found


def _without_mark(content: bytes, where: str) -> bytes:
    """Take off the mark of UTF-8, and refuse UTF-16, which would come out as single letters."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DatasetError(f"{where} is in UTF-16. Save it again as UTF-8.")
    return content.removeprefix(b"\xef\xbb\xbf")


def _read_csv(path: str) -> _Table:
    content = _without_mark(Path(path).read_bytes(), path)
    text = content.decode("utf-8", "surrogateescape")  # as names of files are, to the byte
    separator = _separator(text, path)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=True,
        strict=True,  # else a quotation mark without its partner swallows the rows that follow
    )
    header: list[str] | None = None
    columns: dict[str, list[Any]] = {}
    places: list[tuple[int, list[Any]]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                columns = {name: [] for name in _places(header)}
                places = [(place, columns[name]) for name, place in _places(header).items()]
                continue
            if len(cells) > len(header) and any(cells[len(header) :]):
                raise DatasetError(
                    f"{path}, line {reader.line_num}: has {len(cells)} cells, and the header has "
                    f"{len(header)}. Put text with a separator in it into quotes."
                )
            lines.append(reader.line_num)
            for place, values in places:
                values.append(cells[place] if place < len(cells) else "")
    except csv.Error as error:
        raise DatasetError(
            f"{path}, line {reader.line_num}: cannot be read as a CSV: {error}. Give every quotation "
            "mark its partner."
        ) from error
    if header is None:
        raise DatasetError(f"{path} is empty: expected a header and one clip per row.")
    return _Table(path, header, columns, "line", lines, decimal_comma=separator == ";")


def _separator(text: str, path: str) -> str:
    """The separator under which the header has most of the known columns."""
    lines = (line for line in io.StringIO(text) if line.strip())
    header = next(lines, "")[: csv.field_size_limit()]  # what is longer is no header
    order = "\t,;" if path.lower().endswith(".tsv") else ",;\t"

    def num_known(separator: str) -> int:
        return len(_places(next(csv.reader([header], delimiter=separator), [])))

    return max(order, key=num_known)


def _read_parquet(path: str) -> _Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            header = [str(name) for name in file.schema_arrow.names]
            content = file.read(columns=list(_places(header)))
    except pyarrow.ArrowException as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error
    columns = {name: content[name].to_pylist() for name in content.column_names}
    return _Table(path, header, columns, "row", range(1, content.num_rows + 1))


def _read_json_lines(path: str) -> _Table:
    header: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    content = _without_mark(Path(path).read_bytes(), path)
    for line, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:  # also of text that is not in UTF-8
            raise DatasetError(f"{path}, line {line}: cannot be read as JSON: {error}.") from error
        if not isinstance(record, dict):
            raise DatasetError(
                f'{path}, line {line}: expected an object such as {{"file": "dawn.wav"}}, found '
                f"{type(record).__name__}."
            )
        header.update(dict.fromkeys(record))
        records.append(record)
        lines.append(line)
    if not records:
        raise DatasetError(f"{path} is empty: expected one object per line.")
    names = _places(list(header))
    columns = {name: [record.get(name) for record in records] for name in names}
    return _Table(path, list(header), columns, "line", lines)


def _places(header: Sequence[str]) -> dict[str, int]:
    """The columns of use and where they are: one for the recordings (others may be large), and all times."""
    plain: dict[str, int] = {}
    for place, name in enumerate(header):
        plain.setdefault(_plain(name), place)
    file = next((name for name in _FILE if name in plain), None)
    times = (*_START, *_END, *_DURATION, _RAVEN_OFFSET)
    return {header[plain[name]]: plain[name] for name in (file, *times) if name in plain}


def _plain(name: str) -> str:
    """``Begin Time (s)``, ``begin_time`` and ``BeginTime`` are the same."""
    bare = re.sub(r"\((s|sec|seconds)\)", "", name.lower())
    return re.sub(r"[\s_.-]", "", bare)
