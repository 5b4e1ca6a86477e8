"""Read events from the tables that are written here, and from those of the programs they are made for.

CSV | Parquet | Raven | Audacity | BirdNET | Kaleidoscope | DCASE -> [columns, checks] -> events

Tables with the columns of a known program are read whole by pandas; others, such as Raven's own or a CSV
with other names, row by row as annotations are.
"""

import codecs
import csv
import difflib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beats_trainer.audio import AUDIO_EXTENSIONS
from beats_trainer.datasets.annotation_formats import (
    ColumnNames,
    names_of_recording,
    parse_table,
    read_text,
    recognise_format,
)
from beats_trainer.datasets.annotations import RecordingFinder
from beats_trainer.detection.recording_tables import holds_recording_tables
from beats_trainer.detection.tables import (
    BIRDNET_COLUMNS,
    EVENT_COLUMNS,
    FORMATS,
    FRAME_COLUMNS,
    KALEIDOSCOPE_COLUMNS,
    RAVEN_COLUMNS,
    STANDARD_NAMES,
    TIME_DIGITS,
    TableFormat,
    join_names,
)
from beats_trainer.errors import DatasetError, DatasetNotFoundError

__all__ = ["read_detections"]

logger = logging.getLogger(__name__)

_ENDINGS = (".txt", ".csv", ".tsv", ".parquet")
_SCORE_IN_LABEL = re.compile(r"(.+) \[([01]\.\d{3})\]", re.DOTALL)
_RAVEN_NEEDED = ("Begin Time (s)", "End Time (s)", "Common Name", "File Offset (s)", "Begin Path")
_TOGETHER = 1000
"""Tables that are read at once."""


def read_detections(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    audio_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Read events from a table, or from a folder of tables.

    Each format is known by its columns, and Audacity's labels by having none. A recording is what the
    table calls it; Raven's and Audacity's tables without a name in them are about the recording that
    goes by their own name: beside the table or below ``audio_dir``, else the name itself.

    In Raven's tables the time is the one in the file (``File Offset (s)``) where there is one. BirdNET's two
    names of a species are put together as ``Turdus merula_Eurasian Blackbird``. The score of a
    Kaleidoscope table is ``1 - TOP1DIST``: below 0 for a distance above 1, which Kaleidoscope's own
    clusters have. Audacity and DCASE have no score: it is NaN, unless every label ends in one, as
    ``robin [0.912]``.

    Args:
        path: A table; a folder that `write_detections` wrote into; or a folder with tables of one
            format, at any depth.
        format: One of `FORMATS`; ``None`` finds out. It says which is meant where a folder has several.
        audio_dir: Folder with the recordings.

    Returns:
        Columns ``file``, ``start_time``, ``end_time``, ``label``, ``score``; a table with no event
        has no rows.

    Raises:
        ValueError: If ``format`` is unknown.
        DatasetNotFoundError: If ``path`` or ``audio_dir`` is not there.
        DatasetError: If a table is in no known format or not in the one asked for, a folder has tables of
            several formats or none, or a row is wrong. It names the file and the row.

    Example:
        >>> _ = Path("birdnet.csv").write_text(
        ...     "Start (s),End (s),Scientific name,Common name,Confidence,File\\n"
        ...     "0.0,3.0,Turdus merula,Eurasian Blackbird,0.8123,/rec/dawn.wav\\n"
        ... )
        >>> read_detections("birdnet.csv")["label"].tolist()
        ['Turdus merula_Eurasian Blackbird']
    """
    if format is not None and format not in FORMATS:
        close = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown format {format!r}.{hint} Known: {', '.join(FORMATS)}.")
    wanted = next((name for name in FORMATS if name == format), None)
    finder = RecordingFinder(audio_dir)
    path = Path(os.path.abspath(path))
    if path.is_dir():
        path = _standard_table(path, wanted)
    if path.is_dir():
        return _read_folder(path, wanted, finder)
    if not path.is_file():
        raise DatasetNotFoundError(f"There is no table or folder of detections {path}.")
    found = _recognise(path)
    if found is None and wanted is None:
        raise DatasetError(
            f"{path} is in no known format of detections: {_shown_header(path)}. Expected the columns "
            f"{', '.join(EVENT_COLUMNS)}, or a table of {', '.join(FORMATS[1:])}."
        )
    _check_format(path, found, wanted)
    assert found is not None, "what was asked for and not found is an error"
    return _joined([_read_table(path, found, None, finder)])


def _standard_table(folder: Path, wanted: TableFormat | None) -> Path:
    """What to read of a folder of results: the one table that is meant, or the folder itself."""
    if holds_recording_tables(folder):
        return folder
    present = {name: folder / STANDARD_NAMES[name] for name in FORMATS}
    present = {name: path for name, path in present.items() if path.exists()}
    if wanted is not None:
        return present.get(wanted, folder)
    if len(present) > 1:
        raise DatasetError(
            f"{folder} has the same events in several formats: {', '.join(present)}. Say which to read "
            f"with format={next(iter(present))!r}."
        )
    return next(iter(present.values()), folder)


def _read_folder(folder: Path, wanted: TableFormat | None, finder: RecordingFinder) -> pd.DataFrame:
    tables = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        tables += [
            Path(parent, name)
            for name in sorted(files)
            if name.lower().endswith(_ENDINGS) and not name.startswith(".")
        ]
    if not tables and holds_recording_tables(folder):
        return _joined([])  # nothing was searched
    formats = {path: _recognise(path) for path in tables}
    # An empty file is Audacity's only where the others are.
    blank = {path for path in tables if path.stat().st_size == 0}
    kinds = {_kind(found) for path, found in formats.items() if found and path not in blank}
    if wanted is not None:
        kinds &= {_kind(wanted)}
    if len(kinds) > 1:
        raise DatasetError(
            f"{folder} has tables in several formats: {', '.join(sorted(kinds))}. Say which to read with "
            "format=, so that no event is counted twice."
        )
    if not kinds and blank and wanted in (None, "audacity"):
        kinds = {"audacity"}
    chosen = {path: found for path, found in formats.items() if found and _kind(found) in kinds}
    left_out = [path for path in tables if path not in chosen]
    if not chosen:
        kind = f" in the format {wanted}" if wanted else ""
        raise DatasetError(
            f"There is no table of detections{kind} in {folder}: expected files that end in "
            f"{', '.join(_ENDINGS)}."
        )
    if left_out:
        logger.warning(
            "%d of %d files in %s are left out, because they are no tables of detections%s: %s",
            len(left_out),
            len(tables),
            folder,
            f" in the format {wanted}" if wanted else "",
            ", ".join(str(path) for path in left_out[:5]),
        )
    return _joined(_read_tables(chosen, folder, finder))


def _read_tables(
    tables: Mapping[Path, TableFormat], root: Path, finder: RecordingFinder
) -> Iterator[pd.DataFrame]:
    """Read tables that have the same columns together: a hundred thousand small ones take a while."""
    alike: dict[tuple[TableFormat, str], list[Path]] = {}
    for path, format in tables.items():
        alike.setdefault((format, _first_line(path)), []).append(path)
    for (format, header), paths in alike.items():
        columns = _COLUMNS_OF.get(format)
        together = columns is not None and _has(_names(header, columns.separator), columns.needed)
        for first in range(0, len(paths), _TOGETHER if together else 1):
            some = paths[first : first + (_TOGETHER if together else 1)]
            rows = _rows_below(some, header) if columns and len(some) > 1 else None
            if columns and rows is not None:
                try:
                    content = io.BytesIO(header.encode() + b"\n" + rows)
                    cells = _read_cells(content, root, columns.separator)
                    yield columns.to_events(root, cells)
                    continue
                except DatasetError:
                    pass  # one by one it says which table, and which row of it
            yield from (_read_table(path, format, root, finder) for path in some)


def _rows_below(paths: Iterable[Path], header: str) -> bytes | None:
    """What follows the header in all of these tables; ``None`` if they are better read one by one."""
    if "\r" in header:
        return None
    bodies = []
    for path in paths:
        first, _, body = path.read_bytes().partition(b"\n")
        if first.removeprefix(codecs.BOM_UTF8).rstrip(b"\r") != header.encode():
            return None
        if body.count(b'"') % 2:
            return None  # an open quotation mark would swallow the rows of the next
        bodies.append(body if not body or body.endswith(b"\n") else body + b"\n")
    return b"".join(bodies)


def _recognise(path: Path) -> TableFormat | None:
    if path.suffix.lower() == ".parquet":
        names = set(_read_schema(path).names)
        return "parquet" if _has(names, EVENT_COLUMNS[:4]) or _has(names, BIRDNET_COLUMNS) else None
    header = _first_line(path)
    tabbed = {name.strip() for name in header.split("\t")}
    if _has(tabbed, RAVEN_COLUMNS[1:3]):
        return "raven"
    if _has(tabbed, FRAME_COLUMNS):
        return "frames"
    names = _names(header, ",")
    for format in ("csv", "birdnet", "kaleidoscope"):
        if _has(names, _COLUMNS_OF[format].needed):
            return format
    return recognise_format(header, ColumnNames())


def _check_format(path: Path, found: TableFormat | None, wanted: TableFormat | None) -> None:
    if wanted is not None and found is not None and _kind(found) != _kind(wanted):
        raise DatasetError(f"{path} is not in the format {wanted} but {found}.")
    if wanted is not None and found is None:
        raise DatasetError(f"{path} is not in the format {wanted}: {_shown_header(path)}.")


def _kind(format: TableFormat) -> TableFormat:
    return "raven" if format == "raven-combined" else format


def _read_table(
    path: Path, format: TableFormat, root: Path | None, finder: RecordingFinder
) -> pd.DataFrame:
    if format == "parquet":
        return _read_parquet(path)
    if format == "audacity":
        return _read_audacity(path, root, finder)
    columns = _COLUMNS_OF[_kind(format)]
    if _has(_names(_first_line(path), columns.separator), columns.needed):
        return columns.to_events(path, _read_cells(path, path, columns.separator))
    return _read_row_by_row(path, "raven" if format != "csv" else "csv", root, finder)


def _read_parquet(path: Path) -> pd.DataFrame:
    names = _read_schema(path).names
    columns = EVENT_COLUMNS if _has(names, EVENT_COLUMNS[:4]) else BIRDNET_COLUMNS
    table = pq.read_table(path, columns=[name for name in columns if name in names]).to_pandas()
    if columns == BIRDNET_COLUMNS:
        return _read_birdnet(path, table)
    return _events_of(path, table, *EVENT_COLUMNS)


def _read_birdnet(path: Path, cells: pd.DataFrame) -> pd.DataFrame:
    cells = cells.assign(label=_joined_names(cells["Scientific name"], cells["Common name"]))
    return _events_of(path, cells, "File", "Start (s)", "End (s)", "label", "Confidence")


def _read_raven(path: Path, cells: pd.DataFrame) -> pd.DataFrame:
    if "Species Code" in cells:  # so older BirdNET tables say "no event"
        nothing = (cells["Common Name"] == "nocall") & (cells["Species Code"] == "nocall")
        cells = cells[~nothing]
    offset = _numbers(path, cells, "File Offset (s)")
    length = _numbers(path, cells, "End Time (s)") - _numbers(path, cells, "Begin Time (s)")
    common = cells["Common Name"]
    cells = cells.assign(
        start=offset,
        end=np.round(offset + length, TIME_DIGITS),
        label=_joined_names(cells.get("Scientific Name", common), common),
    )
    if _has(cells.columns, ("Selection", "View")) and cells["View"].nunique() > 1:
        # Raven saves a row for each view of a selection.
        one = ["Selection", "Begin Path", "start", "end", "label"]
        cells = cells[cells["View"] == cells.groupby(one, sort=False)["View"].transform("first")]
    return _events_of(path, cells, "Begin Path", "start", "end", "label", "Confidence")


def _read_kaleidoscope(path: Path, cells: pd.DataFrame) -> pd.DataFrame:
    places = cells[["INDIR", "FOLDER", "IN FILE"]]
    files = {
        place: _kaleidoscope_path(*place)
        for place in places.drop_duplicates().itertuples(index=False, name=None)
    }
    start = _numbers(path, cells, "OFFSET")
    end = np.round(start + _numbers(path, cells, "DURATION"), TIME_DIGITS)
    if match := next((name for name in ("TOP1MATCH", "TOP1MATCH*") if name in cells), None):
        label = cells[match]
    elif _has(cells.columns, ("scientific_name", "common_name")):  # older BirdNET tables
        label = _joined_names(cells["scientific_name"], cells["common_name"])
    else:
        raise DatasetError(f"{path} has no column 'TOP1MATCH' with the labels.")
    cells = cells.assign(
        file=[files[place] for place in places.itertuples(index=False, name=None)],
        start=start,
        end=end,
        label=label,
    )
    if "TOP1DIST" in cells:
        distance = _numbers(path, cells, "TOP1DIST", blank_is_nan=True)
        cells = cells.assign(confidence=np.round(1 - distance, 15))
    return _events_of(path, cells, "file", "start", "end", "label", "confidence")


def _kaleidoscope_path(folder_above: str, folder: str, name: str) -> str:
    separator = "\\" if re.match(r"[A-Za-z]:|\\\\", folder_above) else "/"
    parts = [part for part in (folder_above.rstrip("/\\"), folder, name) if part]
    rooted = folder_above.startswith("/") and not folder_above.rstrip("/")
    return ("/" if rooted else "") + separator.join(parts)


def _read_audacity(path: Path, root: Path | None, finder: RecordingFinder) -> pd.DataFrame:
    events = _read_row_by_row(path, "audacity", root, finder)
    parts = [_SCORE_IN_LABEL.fullmatch(label) for label in events["label"]]
    if parts and all(parts) and events["score"].isna().all():
        found = [(part[1], float(part[2])) for part in parts if part]
        labels, scores = zip(*found, strict=True)
        return events.assign(label=list(labels), score=np.array(scores, np.float64))
    return events


def _read_row_by_row(
    path: Path, kind: str, root: Path | None, finder: RecordingFinder
) -> pd.DataFrame:
    table_format = kind if kind in ("raven", "audacity") else "csv"
    text = read_text(path)
    parsed = parse_table(path, text, table_format, ColumnNames())  # type: ignore[arg-type]
    own = "" if parsed.names_files else _named_by(path, root, finder)
    rows = parsed.rows
    return pd.DataFrame(
        {
            "file": [own if row.file is None else row.file for row in rows],
            "start_time": np.array([row.start_s for row in rows], np.float64),
            "end_time": np.array([row.end_s for row in rows], np.float64),
            "label": [row.label for row in rows],
            "score": np.array(
                [np.nan if row.score is None else row.score for row in rows], np.float64
            ),
        }
    )


def _named_by(path: Path, root: Path | None, finder: RecordingFinder) -> str:
    """The recording that a table without names is about."""
    found = finder.find_of_table(path, root)
    if found is not None:
        return found
    names = names_of_recording(path)
    sound = (name for name in names if os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS)
    name = next(sound, names[-1] if names else path.name)
    return name if root is None else (path.parent.relative_to(root) / name).as_posix()


def _events_of(
    path: Path, cells: pd.DataFrame, file: str, start: str, end: str, label: str, score: str = ""
) -> pd.DataFrame:
    """Take the columns with these names for those of events, and check each row."""
    events = pd.DataFrame(
        {
            "file": cells[file].to_numpy(dtype=object),
            "start_time": _numbers(path, cells, start),
            "end_time": _numbers(path, cells, end),
            "label": cells[label].to_numpy(dtype=object),
            "score": _numbers(path, cells, score, blank_is_nan=True)
            if score in cells
            else np.full(len(cells), np.nan),
        }
    )
    times = (events["start_time"] >= 0) & (events["end_time"] > events["start_time"])
    _check_rows(
        path, cells, times.to_numpy(), "is not from a time to a later one, counted from the start"
    )
    for name, column in (("file", file), ("label", label)):
        filled = events[name].notna() & (events[name] != "")
        _check_rows(path, cells, filled.to_numpy(), f"has nothing in the column {column!r}")
    return events


def _numbers(
    path: Path, cells: pd.DataFrame, column: str, blank_is_nan: bool = False
) -> NDArray[np.float64]:
    values = cells[column]
    if values.dtype.kind in "fiu":
        numbers = values.to_numpy(np.float64)
    else:
        texts = [str(text).strip() for text in values.tolist()]
        if blank_is_nan:
            texts = [text or "nan" for text in texts]
        try:
            numbers = np.array(list(map(float, texts)), np.float64)
        except ValueError:
            row = next(place for place, text in enumerate(texts) if not _is_number(text))
            raise DatasetError(
                f"{path}, row {cells.index[row] + 1}: expected a number in the column {column!r}, "
                f"found {texts[row]!r}."
            ) from None
    if not blank_is_nan:
        fits = np.isfinite(numbers)
        _check_rows(path, cells, fits, f"has no finite number in the column {column!r}")
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_rows(path: Path, cells: pd.DataFrame, fits: NDArray[np.bool_], problem: str) -> None:
    if not fits.all():
        raise DatasetError(f"{path}, row {cells.index[int(np.argmin(fits))] + 1} {problem}.")


def _read_cells(source: Path | io.BytesIO, path: Path, separator: str) -> pd.DataFrame:
    """All cells as the text they are: ``NA`` and ``007`` are labels."""
    try:
        cells = pd.read_csv(
            source,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8-sig",
            # Programs that separate by tabs write a quotation mark as it is.
            quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
            index_col=False,
        )
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not in UTF-8: {error}. Save it again as UTF-8.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DatasetError(f"{path} cannot be read as a table: {error}.") from error
    return cells.rename(columns=lambda name: str(name).strip())


def _names(header: str, separator: str) -> set[str]:
    return {name.strip() for name in next(csv.reader([header], delimiter=separator), [])}


def _read_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except pa.ArrowException as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}.") from error


def _first_line(path: Path) -> str:
    with path.open("rb") as stream:
        line = stream.readline(1 << 16)
        while line and not line.strip():
            line = stream.readline(1 << 16)
    return line.decode("utf-8-sig", errors="replace").rstrip("\r\n")


def _shown_header(path: Path) -> str:
    header = _first_line(path)
    return f"its first line is {header[:200]!r}" if header else "it is empty"


def _has(names: Iterable[str], wanted: Sequence[str]) -> bool:
    return set(wanted) <= set(names)


@dataclass(frozen=True)
class _Columns:
    """How a table with a header is read."""

    separator: str
    needed: Sequence[str]
    to_events: Callable[[Path, pd.DataFrame], pd.DataFrame]
    """Path for messages, and cells."""


_COLUMNS_OF: dict[TableFormat, _Columns] = {
    "csv": _Columns(
        ",", EVENT_COLUMNS[:4], lambda path, cells: _events_of(path, cells, *EVENT_COLUMNS)
    ),
    "birdnet": _Columns(",", BIRDNET_COLUMNS, _read_birdnet),
    "kaleidoscope": _Columns(",", KALEIDOSCOPE_COLUMNS[:5], _read_kaleidoscope),
    "raven": _Columns("\t", _RAVEN_NEEDED, _read_raven),
    "frames": _Columns(
        "\t", FRAME_COLUMNS, lambda path, cells: _events_of(path, cells, *FRAME_COLUMNS)
    ),
}


def _joined_names(scientific: pd.Series, common: pd.Series) -> pd.Series:
    pairs = pd.DataFrame({"scientific": scientific, "common": common}).fillna("")
    different = pairs.drop_duplicates().itertuples(index=False, name=None)
    labels = {pair: join_names(*pair) for pair in different}
    values = [labels[pair] for pair in pairs.itertuples(index=False, name=None)]
    return pd.Series(values, index=pairs.index, dtype=object)


def _joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    if not filled:
        empty = {name: pd.Series(dtype="float64") for name in EVENT_COLUMNS}
        return pd.DataFrame(empty | {name: pd.Series([], dtype=str) for name in ("file", "label")})
    return pd.concat(filled, ignore_index=True)[list(EVENT_COLUMNS)]
