"""Parse one annotation file: a Raven selection table, Audacity's labels, or a CSV.

file -> text -> [format, columns, numbers] -> ParsedTable: rows in seconds, files as the table names them

Which recording a name means is decided in ``annotations.py``. Sources of the formats: the tables of Raven
Pro and of BirdNET-Analyzer, and https://manual.audacityteam.org/man/importing_and_exporting_labels.html.
"""

import csv
import decimal
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from beats_trainer.errors import DatasetError

__all__ = [
    "AnnotationRow",
    "ColumnNames",
    "ParsedTable",
    "TableFormat",
    "names_of_recording",
    "parse_table",
    "read_text",
    "recognise_format",
]

TableFormat = Literal["raven", "audacity", "csv"]
"""How a file holds annotations; both column formats may be over several recordings."""

# Names of columns as `_plain` leaves them, the most telling first.
_FILE = (
    *("beginpath", "beginfile", "filepath", "audiofile", "audiofilename", "soundfile", "filename"),
    *("path", "file", "recording", "audio"),
)
_RAVEN_FILE = ("beginpath", "beginfile")
_START = ("begintime", "starttime", "start", "starts", "startsec", "onset", "begin", "begins")
_END = ("endtime", "end", "ends", "endsec", "stop", "stoptime")
_LABEL = (
    *("annotation", "annotations", "label", "labels", "eventlabel", "category", "class", "tag"),
    *("species", "calltype", "call", "soundtype", "type"),
)
_SPECIES_NAMES = ("commonname", "scientificname", "speciescode")  # three names of one thing
_LOW = ("lowfreq", "lowfrequency", "lowf", "minfreq")
_HIGH = ("highfreq", "highfrequency", "highf", "maxfreq")
_SCORE = ("score", "confidence", "probability")

_TABLE_SUFFIX = re.compile(
    r"\.(table(\.\d+)?|selections?|birdnet|results|labels?|annotations?)$", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_AUDACITY_LINE = re.compile(r"\s*[+-]?[\d.,]+(e[+-]?\d+)?\t\s*[+-]?[\d.,]+(e[+-]?\d+)?\s*(\t|$)")
_EXACT = decimal.Context(prec=60)
"""Sums of a few decimal numbers of up to 17 digits each, without rounding."""


@dataclass(frozen=True)
class ColumnNames:
    """Columns that the user named; ``None`` means to find the usual ones."""

    file: str | None = None
    start: str | None = None
    end: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class AnnotationRow:
    """One annotation as its table has it."""

    line: int
    """Line of the file, counted from 1."""
    file: str | None
    """The recording as the table names it; ``None`` where the table's own name tells."""
    start_s: float
    end_s: float
    label: str
    low_hz: float | None = None
    high_hz: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class ParsedTable:
    """What one file holds."""

    rows: list[AnnotationRow]
    empty_files: list[tuple[int, str]]
    """Line and name of recordings listed with neither times nor a label: nothing is in them."""
    names_files: bool
    """Whether the table has a column for the recording."""


def read_text(path: Path) -> str:
    """Read a table's text, its line ends as they are.

    Raises:
        DatasetError: If it is not in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not in UTF-8: {error}. Save it again as UTF-8.") from error


def names_of_recording(table: Path) -> list[str]:
    """Names that the recording of a table may have, by the table's own name; the longest first.

    Example:
        >>> names_of_recording(Path("dawn.Table.1.selections.txt"))
        ['dawn.Table.1.selections', 'dawn.Table.1', 'dawn']
    """
    names = [table.stem]
    while match := _TABLE_SUFFIX.search(names[-1]):
        names.append(names[-1][: match.start()])
    return [name for name in names if name]


def recognise_format(text: str, columns: ColumnNames) -> TableFormat | None:
    r"""Tell a file's format from its first line.

    Args:
        text: The file's text.
        columns: Columns that the user named.

    Returns:
        The format; ``None`` if it is none of them. A blank file is Audacity's with no label in it.

    Example:
        >>> recognise_format("0.5\t1.25\trobin\n", ColumnNames())
        'audacity'
    """
    first = _first_line(text)
    if not first or _AUDACITY_LINE.match(first):
        return "audacity"
    if {"begin time (s)", "end time (s)"} <= {name.strip().lower() for name in first.split("\t")}:
        return "raven"
    for separator in (",", ";", "\t"):
        names = next(csv.reader([first], delimiter=separator))
        start = _find(names, columns.start, _START)
        end = _find(names, columns.end, _end_names(names, start))
        label = _find(names, columns.label, (*_LABEL, *_SPECIES_NAMES))
        if None not in (start, end, label):
            return "csv"
    return None


def parse_table(
    path: Path, text: str, table_format: TableFormat, columns: ColumnNames
) -> ParsedTable:
    """Read the rows of one table.

    Args:
        path: The file, for messages.
        text: Its text.
        table_format: Its format.
        columns: Columns that the user named; Audacity's labels have none.

    Returns:
        The rows in the file's order; Raven's second row for another view of one selection is dropped.

    Raises:
        DatasetError: If a column is missing or may be one of several, a number or label is missing or
            wrong, or an annotation ends before it starts. The message names file and line.
    """
    if table_format == "audacity":
        return ParsedTable(list(_audacity_rows(path, text)), [], names_files=False)
    separator = "\t" if table_format == "raven" else _separator(text, columns)
    reader = csv.reader(
        io.StringIO(text, newline=None if table_format == "raven" else ""),
        delimiter=separator,
        # Raven writes a quotation mark as it is.
        quoting=csv.QUOTE_NONE if table_format == "raven" else csv.QUOTE_MINIMAL,
        skipinitialspace=True,
        strict=True,  # else a quotation mark without its partner swallows the rows that follow
    )
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append((reader.line_num, stripped))
    except csv.Error as error:
        raise _error(
            path,
            reader.line_num,
            f"cannot be read as a CSV: {error}. Give every quotation mark its partner.",
        ) from error
    if not lines:
        return ParsedTable([], [], names_files=False)
    return _ColumnTable(path, lines, separator, columns).parse()


class _ColumnTable:
    """A table with a header: where its columns are, and what stands in them."""

    def __init__(
        self, path: Path, lines: list[tuple[int, list[str]]], separator: str, columns: ColumnNames
    ) -> None:
        self.path = path
        self.header = lines[0][1]
        self.lines = lines[1:]
        self.decimal_comma = separator == ";"  # as spreadsheets write where the comma is decimal
        for line, cells in self.lines:
            if len(cells) > len(self.header) and any(cells[len(self.header) :]):
                raise _error(
                    path,
                    line,
                    f"has {len(cells)} cells, and the header has {len(self.header)}. Put text with "
                    "a separator in it into quotes.",
                )
            cells += [""] * (len(self.header) - len(cells))

        self.start = self._require("start", columns.start, _START)
        self.end = self._require("end", columns.end, _end_names(self.header, self.start))
        self.label = self._label_column(columns.label)
        self.files = self._file_columns(columns.file)
        # Raven's times count from the first file of a sequence; the offset from the file itself.
        self.offset = None if columns.start else _find(self.header, None, ("fileoffset",))
        self.names_offsets_elsewhere = (
            columns.start is None
            and self.offset is None
            and any(_plain(self.header[place]) in _RAVEN_FILE for place in self.files)
        )
        self.selection = _find(self.header, None, ("selection",))
        self.view = _find(self.header, None, ("view",))
        self.low = _find(self.header, None, _LOW)
        self.high = _find(self.header, None, _HIGH)
        self.score = _find(self.header, None, _SCORE)

    def parse(self) -> ParsedTable:
        rows: list[AnnotationRow] = []
        empty: list[tuple[int, str]] = []
        place_of: dict[object, int] = {}
        for line, cells in self.lines:
            file = self._file(line, cells)
            if file is not None and not (cells[self.start] or cells[self.end] or cells[self.label]):
                empty.append((line, file))
                continue
            row = self._row(line, cells, file)
            if self.view is None or self.selection is None:
                rows.append(row)
                continue
            key = (cells[self.selection], file, row.start_s, row.end_s, row.label)
            if key not in place_of:
                place_of[key] = len(rows)
                rows.append(row)
            elif "spectrogram" in cells[self.view].lower():
                rows[place_of[key]] = row  # the view that has the selection's own frequencies
        named = {row.file for row in rows}
        if self.names_offsets_elsewhere and len(named) > 1:
            raise DatasetError(
                f"{self.path} is about {len(named)} recordings, and its times may count from the "
                "start of the first. Save it from Raven with the column 'File Offset (s)'. If they do "
                f"count from the start of each recording, pass start_column={self.header[self.start]!r}."
            )
        return ParsedTable(rows, empty, names_files=bool(self.files))

    def _row(self, line: int, cells: list[str], file: str | None) -> AnnotationRow:
        start = self._number(line, cells, self.start)
        end = self._number(line, cells, self.end)
        if self.offset is not None:
            offset = self._number(line, cells, self.offset)
            end = _EXACT.add(offset, _EXACT.subtract(end, start))
            start = offset
        label = cells[self.label]
        if not label:
            raise _blank_label(self.path, line)
        _check_times(self.path, line, start, end)
        optional = [
            float(self._number(line, cells, place)) if place is not None and cells[place] else None
            for place in (self.low, self.high, self.score)
        ]
        return AnnotationRow(line, file, float(start), float(end), label, *optional)

    def _number(self, line: int, cells: list[str], place: int) -> Decimal:
        text = cells[place].replace(",", ".") if self.decimal_comma else cells[place]
        return _number(self.path, line, text, f"the column {self.header[place]!r}")

    def _file(self, line: int, cells: list[str]) -> str | None:
        if not self.files:
            return None
        for place in self.files:
            if cells[place]:
                return cells[place]
        raise _error(
            self.path, line, f"names no recording in the column {self.header[self.files[0]]!r}."
        )

    def _require(self, what: str, given: str | None, usual: Sequence[str]) -> int:
        place = _find(self.header, given, usual)
        if place is not None:
            return place
        raise self._no_column(what, given)

    def _no_column(self, what: str, given: str | None) -> DatasetError:
        names = [name for name in self.header if name]
        lowered = {name.lower(): name for name in names}
        close = difflib.get_close_matches((given or what).lower(), lowered, n=1, cutoff=0.5)
        hint = f" Did you mean {lowered[close[0]]!r}?" if close else ""
        missing = f"no column {given!r}" if given else f"no column known to hold the {what}"
        return DatasetError(
            f"{self.path} has {missing}.{hint} Its columns: {', '.join(names)}. Name the right one "
            f"with {what}_column=."
        )

    def _label_column(self, given: str | None) -> int:
        if given is not None:
            return self._require("label", given, ())
        usual = [place for name in _LABEL for place in _places(self.header, name)]
        usual += [place for name in _SPECIES_NAMES for place in _places(self.header, name)][:1]
        if not usual:
            raise self._no_column("label", None)
        values = {
            place: [cells[place] for _, cells in self.lines]
            for place in usual
            if any(cells[place] for _, cells in self.lines)
        }
        places = list(values)
        if any(values[place] != values[places[0]] for place in places[1:]):
            names = " or ".join(repr(self.header[place]) for place in places)
            raise DatasetError(
                f"The labels of {self.path} may be in the column {names}. Say which with label_column=."
            )
        return (places or usual)[0]

    def _file_columns(self, given: str | None) -> list[int]:
        if given is not None:
            return [self._require("file", given, ())]
        places = [place for name in _FILE for place in _places(self.header, name)]
        filled = [place for place in places if any(cells[place] for _, cells in self.lines)]
        return filled if self.lines else places


def _audacity_rows(path: Path, text: str) -> Iterator[AnnotationRow]:
    waiting: AnnotationRow | None = None  # for a second line with its frequencies
    for line, content in enumerate(io.StringIO(text, newline=None), start=1):
        cells = [cell.strip() for cell in content.rstrip("\n").split("\t")]
        if not any(cells):
            continue
        while len(cells) > 3 and not cells[-1]:
            cells.pop()
        if cells[0] == "\\":
            if waiting is None or len(cells) != 3:
                raise _error(
                    path, line, "expected a label line, then a backslash and two frequencies in Hz."
                )
            low, high = (_number(path, line, cell, "a frequency") for cell in cells[1:])
            yield AnnotationRow(
                waiting.line,
                None,
                waiting.start_s,
                waiting.end_s,
                waiting.label,
                None if low < 0 else float(low),  # -1 is Audacity's "undefined"
                None if high < 0 else float(high),
                waiting.score,
            )
            waiting = None
            continue
        if waiting is not None:
            yield waiting
        if len(cells) not in (2, 3, 4):
            raise _error(
                path,
                line,
                f"expected start, end and label with tabs between them, found {len(cells)} cells.",
            )
        start = _number(path, line, cells[0], "the start")
        end = _number(path, line, cells[1], "the end")
        if len(cells) == 2 or not cells[2]:
            raise _blank_label(path, line)
        if start == end:
            raise _error(
                path,
                line,
                f"the label {cells[2]!r} is a point at {start} s: it has no length. Drag its ends "
                "apart in Audacity, or remove it.",
            )
        _check_times(path, line, start, end)
        # BirdNET-Analyzer appends its confidence; Audacity itself writes three cells.
        score = float(_number(path, line, cells[3], "the score")) if len(cells) == 4 else None
        waiting = AnnotationRow(line, None, float(start), float(end), cells[2], score=score)
    if waiting is not None:
        yield waiting


def _separator(text: str, columns: ColumnNames) -> str:
    """The separator under which the header has the columns; else the one that gives the most."""
    header = _first_line(text)

    def fit(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator))
        start = _find(names, columns.start, _START)
        end = _find(names, columns.end, _end_names(names, start))
        return (start is not None) + (end is not None), len(names)

    return max((",", ";", "\t"), key=fit)


def _first_line(text: str) -> str:
    lines = (line.rstrip("\n") for line in io.StringIO(text, newline=None) if line.strip())
    return next(lines, "")[: csv.field_size_limit()]  # what is longer is no header


def _plain(name: str) -> str:
    """``Begin Time (s)``, ``begin_time`` and ``BeginTime`` are the same; ``Begin Time (ms)`` is not."""
    bare = re.sub(r"\((s|sec|seconds|hz)\)", "", name.lower())
    return re.sub(r"[\s_.-]", "", bare)


def _places(header: Iterable[str], plain_name: str) -> list[int]:
    return [place for place, name in enumerate(header) if _plain(name) == plain_name]


def _find(header: Sequence[str], given: str | None, usual: Sequence[str]) -> int | None:
    names = [name.strip() for name in header]
    if given is not None:
        if given in names:
            return names.index(given)
        lowered = [name.lower() for name in names]
        return lowered.index(given.lower()) if given.lower() in lowered else None
    return next((place for name in usual for place in _places(names, name)), None)


def _end_names(header: Sequence[str], start: int | None) -> tuple[str, ...]:
    # An offset is the end beside an onset; alone it is where something starts.
    beside_onset = start is not None and _plain(header[start]) == "onset"
    return (*_END, "offset") if beside_onset else _END


def _number(path: Path, line: int, text: str, what: str) -> Decimal:
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    comma = "," in text and _NUMBER.fullmatch(text.replace(",", ".", 1))
    hint = " Write decimals with a point." if comma else ""
    came = repr(text) if text else "nothing"
    raise _error(path, line, f"expected a number in {what}, found {came}.{hint}")


def _check_times(path: Path, line: int, start: Decimal, end: Decimal) -> None:
    if start < 0:
        raise _error(path, line, f"starts at {start} s: times count from 0, the recording's start.")
    if float(end) <= float(start):
        raise _error(
            path, line, f"starts at {start} s and ends at {end} s: the end must be after the start."
        )


def _blank_label(path: Path, line: int) -> DatasetError:
    return _error(path, line, "has no label. Give it one, or remove the line.")


def _error(path: Path, line: int, problem: str) -> DatasetError:
    return DatasetError(f"{path}, line {line}: {problem}")
