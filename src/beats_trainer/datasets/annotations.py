"""Annotations of long recordings: what sounds from when to when, and which recordings were annotated.

Raven, Audacity or CSV tables -> [rows, recordings, checks] -> Annotations -> window_clips -> build_manifest

A recording whose table is empty was annotated too, and nothing is in it; a recording without a table is
not known, and is nowhere here.
"""

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from beats_trainer.audio import AUDIO_EXTENSIONS, probe_audio
from beats_trainer.datasets.annotation_formats import (
    AnnotationRow,
    ColumnNames,
    ParsedTable,
    TableFormat,
    names_of_recording,
    parse_table,
    read_text,
    recognise_format,
)
from beats_trainer.datasets.locating import locate_files
from beats_trainer.errors import DatasetError, DatasetNotFoundError

__all__ = ["Annotations", "RecordingFinder", "read_annotations"]

_TOLERANCE_S = 0.05
"""An annotation may reach this far past the end: editors round, and lossy formats pad."""

_TABLE_ENDINGS = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Annotations:
    """What was annotated, and where.

    Raises:
        DatasetError: If the table lacks a column, is about a recording that is not among ``recordings``,
            or has an annotation outside its recording.

    Example:
        >>> table = pd.DataFrame(
        ...     {"file": ["/dawn.wav"], "start_time": [1.0], "end_time": [2.5], "label": ["robin"]}
        ... )
        >>> Annotations(table, {"/dawn.wav": 60.0, "/noon.wav": 60.0}).labels
        ['robin']
    """

    table: pd.DataFrame
    """One row per annotation: ``file`` (absolute path), ``start_time`` and ``end_time`` (seconds from its
    start), ``label``; ``low_freq``, ``high_freq`` (Hz) and ``score`` where a table has them, NaN where not."""
    recordings: dict[str, float]
    """Every annotated recording, also those with nothing in them: absolute path to seconds."""

    def __post_init__(self) -> None:
        missing = {"file", "start_time", "end_time", "label"} - set(self.table.columns)
        if missing:
            raise DatasetError(
                f"Expected a table with file, start_time, end_time and label; "
                f"{', '.join(sorted(missing))} is missing."
            )
        unknown = sorted(set(self.table["file"]) - set(self.recordings))
        if unknown:
            raise DatasetError(
                f"{len(unknown)} files of the table are not among the recordings: "
                f"{', '.join(unknown[:5])}. Give each its duration."
            )
        start = self.table["start_time"].to_numpy(np.float64)
        end = self.table["end_time"].to_numpy(np.float64)
        duration = self.table["file"].map(self.recordings).to_numpy(np.float64)
        fits = (start >= 0) & (end > start) & (start < duration) & (end <= duration + _TOLERANCE_S)
        if not fits.all():
            row = int(np.argmin(fits))
            raise DatasetError(
                f"Row {row + 1} of the table is from {start[row]} to {end[row]} s, outside "
                f"{self.table['file'].iloc[row]}, which is {duration[row]} s long."
            )

    @property
    def labels(self) -> list[str]:
        """The labels there are, sorted."""
        return sorted(set(self.table["label"]))

    def __len__(self) -> int:
        """How many annotations there are."""
        return len(self.table)


def read_annotations(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    audio_dir: str | os.PathLike[str] | None = None,
    format: Literal["auto", "raven", "audacity", "csv"] = "auto",
    label_column: str | None = None,
    file_column: str | None = None,
    start_column: str | None = None,
    end_column: str | None = None,
) -> Annotations:
    r"""Read Raven selection tables, Audacity labels and CSVs, and find the recordings they are about.

    A table says which recording it is about in a column (``Begin Path``, ``Begin File``, ``filename`` and
    the like), or by its own name: ``dawn.Table.1.selections.txt``, ``dawn.selections.txt`` and
    ``dawn.txt`` are about ``dawn.wav``, with any audio ending in any case. Recordings are looked for
    under ``audio_dir`` and beside the table; a path from another computer counts by its last parts.
    Several tables about one recording are taken together.

    Raven: of a selection's rows in several views one is kept, and where there is a ``File Offset (s)``
    it is the start, because ``Begin Time (s)`` counts from the first file of a sequence. CSV: with a
    header, separated by commas, semicolons or tabs; a row that has a file and neither times nor a label says
    that nothing is in that file. Text is UTF-8, and labels stay text: ``007`` and ``NA`` are labels.

    Args:
        source: A table, a folder (every table in it and below: .txt, .csv, .tsv), or a list of these.
        audio_dir: Folder with the recordings, at any depth; ``None``: they are beside their tables.
        format: Of the tables; ``"auto"`` tells from each one's first line.
        label_column: Raven and CSV: the column with the labels; ``None`` finds one of the usual names
            (``Annotation``, ``Species``, ``Label``, ``Tag``, ``Class``, ``Call Type``, ``Common Name``, ...).
        file_column: The same for the recording.
        start_column: The same for the start in seconds; a named one counts from the recording's own start.
        end_column: The same for the end in seconds.

    Returns:
        The annotations in the order of the tables and their rows. Ends up to 50 ms past the recording's
        end are cut back to it.

    Raises:
        DatasetNotFoundError: If ``source`` or ``audio_dir`` is not there.
        DatasetError: If a folder has no table, a table is in no known format, a recording is not found or
            may be one of several, or a row is wrong: a time that is no number, negative, or past the
            recording's end; an end not after its start; no label. It names the file and the line.
        AudioError: If a recording cannot be read.
        ValueError: If ``format`` is unknown.

    Warns:
        UserWarning: If files of a folder are no tables, or a table about several recordings has no row.

    Example:
        >>> annotations = read_annotations("selections", audio_dir="recordings")  # doctest: +SKIP
        >>> annotations.table.head()  # doctest: +SKIP
    """
    if format not in ("auto", "raven", "audacity", "csv"):
        raise ValueError(f"Unknown format {format!r}: expected auto, raven, audacity or csv.")
    columns = ColumnNames(file_column, start_column, end_column, label_column)
    finder = RecordingFinder(audio_dir)
    collected = _Collected()
    skipped: dict[str, str] = {}
    tables = _list_tables(source)
    for path, root in tables.items():
        wanted: TableFormat | None = None if format == "auto" else format
        try:
            text = read_text(path)
            found = recognise_format(text, columns)
        except DatasetError as error:
            if root is None:
                raise
            skipped[str(path)] = str(error)
            continue
        if root is not None and (found is None or (text.strip() and wanted not in (None, found))):
            skipped[str(path)] = f"it is not {f'in the format {wanted}' if wanted else 'a table'}"
            continue
        # A file that was named is read, if only for the message that says what it lacks.
        parsed = parse_table(path, text, wanted or found or "csv", columns)
        own = None
        if not (parsed.rows and parsed.names_files) and not parsed.empty_files:
            own = finder.find_of_table(path, root)
        if own is None and not parsed.rows and not parsed.empty_files:
            if root is not None and not text.strip():
                skipped[str(path)] = "it is empty, and no recording goes by its name"
                continue
            if parsed.names_files:
                warnings.warn(
                    f"{path} has no rows and no recording goes by its name: it tells nothing.",
                    stacklevel=2,
                )
                continue
        if own is None and not parsed.names_files:
            raise DatasetError(finder.describe_missing_of_table(path, root))
        collected.add(path, parsed, own, root, finder)
    if skipped:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:5])
        if len(skipped) == len(tables):
            raise DatasetError(
                f"None of {len(tables)} files could be read as annotations. {reasons}."
            )
        warnings.warn(
            f"{len(skipped)} of {len(tables)} files are left out. {reasons}"
            f"{'; ...' if len(skipped) > 5 else '.'}",
            stacklevel=2,
        )
    return collected.to_annotations()


class _Collected:
    """The checked rows of all tables so far."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.rows: list[AnnotationRow] = []
        self.ends: list[float] = []
        self.recordings: dict[str, float] = {}

    def add(
        self,
        path: Path,
        parsed: ParsedTable,
        own: str | None,
        root: Path | None,
        finder: "RecordingFinder",
    ) -> None:
        if own is not None:
            self._duration(own)
        for line, name in parsed.empty_files:
            self._duration(finder.find_named(name, path, line, root))
        for row in parsed.rows:
            file = own
            if row.file is not None:
                file = finder.find_named(row.file, path, row.line, root)
            assert file is not None, "a table without file names has its own recording"
            duration = self._duration(file)
            if row.end_s > duration + _TOLERANCE_S or row.start_s >= duration:
                raise DatasetError(
                    f"{path}, line {row.line}: {row.label!r} is from {row.start_s} to {row.end_s} s, "
                    f"and {file} is {duration:.3f} s long. Correct the times, or check that this is "
                    "the recording that was annotated."
                )
            self.files.append(file)
            self.rows.append(row)
            self.ends.append(min(row.end_s, duration))

    def _duration(self, file: str) -> float:
        if file not in self.recordings:
            self.recordings[file] = probe_audio(file).duration_s
        return self.recordings[file]

    def to_annotations(self) -> Annotations:
        table = pd.DataFrame(
            {
                "file": self.files,
                "start_time": np.array([row.start_s for row in self.rows], np.float64),
                "end_time": np.array(self.ends, np.float64),
                "label": [row.label for row in self.rows],
            }
        )
        optional = {
            "low_freq": [row.low_hz for row in self.rows],
            "high_freq": [row.high_hz for row in self.rows],
            "score": [row.score for row in self.rows],
        }
        for column, values in optional.items():
            if any(value is not None for value in values):
                table[column] = np.array(
                    [math.nan if value is None else value for value in values], np.float64
                )
        return Annotations(table, self.recordings)


class RecordingFinder:
    """Finds recordings by the names that tables give them, reading each folder once."""

    def __init__(self, audio_dir: str | os.PathLike[str] | None) -> None:
        if audio_dir is not None and not os.path.isdir(audio_dir):
            raise DatasetNotFoundError(f"audio_dir is no folder: {os.path.abspath(audio_dir)}.")
        self.audio_dir = None if audio_dir is None else Path(os.path.abspath(audio_dir))
        self._listed: dict[Path, _Names] = {}
        self._below: _Names | None = None
        self._named: dict[tuple[str, Path], str | None] = {}

    def find_of_table(self, table: Path, root: Path | None) -> str | None:
        """The recording that goes by the table's own name; the longest name that fits counts.

        Args:
            table: The table's absolute path.
            root: The folder that it was found in; ``None``: it was named itself.

        Raises:
            DatasetError: If it may be one of several.
        """
        names = names_of_recording(table)
        for name in names:
            for folder in self._folders(table, root):
                if matches := self._in_folder(folder).matching(name):
                    return _only(matches, f"{table} may be about")
        for name in names:
            if matches := self._anywhere(name):
                return _only(matches, f"{table} may be about")
        return None

    def find_named(self, name: str, table: Path, line: int, root: Path | None) -> str:
        """The recording that a row names.

        Raises:
            DatasetError: If it is not there, or several are.
        """
        key = (name, table.parent)
        if key not in self._named:
            self._named[key] = self._search_named(name, table, line, root)
        found = self._named[key]
        if found is None:
            raise DatasetError(
                f"{table}, line {line}: there is no recording {name!r}. {self._where(table, root)}"
            )
        return found

    def describe_missing_of_table(self, table: Path, root: Path | None) -> str:
        """Say what was looked for, and where."""
        names = " or ".join(repr(name) for name in names_of_recording(table))
        return (
            f"No recording goes by the name of {table}: expected one named {names} with an audio "
            f"ending. {self._where(table, root)}"
        )

    def _search_named(self, name: str, table: Path, line: int, root: Path | None) -> str | None:
        folders = self._folders(table, root)
        parts = [part for part in re.split(r"[\\/]+", name) if part]
        spellings = [name] + ["/".join(parts[first:]) for first in range(1, len(parts))]
        for spelling in spellings:
            path = locate_files([spelling], folders).paths[0]
            if path is not None:
                return path
        problem = f"{table}, line {line}: {name!r} may be"
        for folder in folders:
            if matches := self._in_folder(folder).matching(parts[-1]):
                return _only(matches, problem)
        matches = self._anywhere(parts[-1])
        return _only(matches, problem) if matches else None

    def _folders(self, table: Path, root: Path | None) -> list[Path]:
        folders = [table.parent]
        if self.audio_dir is not None:
            mirrored = [self.audio_dir / table.parent.relative_to(root)] if root else []
            folders = [*mirrored, self.audio_dir, *folders]
        return list(dict.fromkeys([*folders, *([root] if root else [])]))

    def _in_folder(self, folder: Path) -> "_Names":
        if folder not in self._listed:
            names = os.listdir(folder) if folder.is_dir() else []
            self._listed[folder] = _Names(os.path.join(folder, name) for name in names)
        return self._listed[folder]

    def _anywhere(self, name: str) -> list[str]:
        if self.audio_dir is None:
            return []
        if self._below is None:
            self._below = _Names(str(path) for path in _files_below(self.audio_dir))
        return self._below.matching(name)

    def _where(self, table: Path, root: Path | None) -> str:
        looked = ", then ".join(str(folder) for folder in self._folders(table, root))
        below = f", and everywhere below {self.audio_dir}" if self.audio_dir else ""
        return f"Looked in {looked}{below}. Say with audio_dir= which folder has the recordings."


class _Names:
    """Audio files by their names, with and without the ending, as written and in any case."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for path in sorted(paths):
            name = os.path.basename(path)
            stem, ending = os.path.splitext(name)
            if ending.lower() in AUDIO_EXTENSIONS and not name.startswith("."):
                # In this order: the exact name, the exact stem, then both in any case.
                for key in {f"1{name}", f"2{stem}", f"3{name.casefold()}", f"4{stem.casefold()}"}:
                    self._by_name.setdefault(key, []).append(path)

    def matching(self, name: str) -> list[str]:
        folded = name.casefold()
        keys = (f"1{name}", f"2{name}", f"3{folded}", f"4{folded}")
        return next((self._by_name[key] for key in keys if key in self._by_name), [])


def _only(matches: list[str], problem: str) -> str:
    if len(matches) > 1:
        raise DatasetError(
            f"{problem} any of {len(matches)} recordings: {', '.join(matches[:5])}. Name the file in a "
            "column of the table, or move the others away."
        )
    return matches[0]


def _list_tables(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> dict[Path, Path | None]:
    """Each table, and the folder it was found in where it was not named itself."""
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise DatasetError("Expected a table, a folder or a list of these; the list is empty.")
    tables: dict[Path, Path | None] = {}
    for entry in sources:
        path = Path(os.path.abspath(entry))
        if path.is_file():
            tables[path] = None
        elif path.is_dir():
            found = [file for file in _files_below(path) if file.suffix.lower() in _TABLE_ENDINGS]
            if not found:
                raise DatasetError(
                    f"There is no table of annotations in {path}: expected files that end in "
                    f"{', '.join(_TABLE_ENDINGS)}."
                )
            for file in found:
                tables.setdefault(file, path)
        else:
            folder = path.parent
            beside = sorted(os.listdir(folder)) if folder.is_dir() else []
            close = difflib.get_close_matches(path.name, beside, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DatasetNotFoundError(f"There is no table or folder {path}.{hint}")
    return tables


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))
