"""Write annotations as Raven selection tables, Audacity labels or CSV, whole or not at all.

Annotations | table -> [checks] -> file that read_annotations, Raven and Audacity open

Numbers are written with all the digits they have, so that reading gives the same ones back.
"""

import csv
import io
import os
from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from beats_trainer.audio import probe_audio
from beats_trainer.datasets.annotations import Annotations
from beats_trainer.errors import DatasetError

__all__ = ["write_annotation_csv", "write_audacity", "write_raven"]

_COLUMNS = ("file", "start_time", "end_time", "label")
_OPTIONAL = ("low_freq", "high_freq", "score")
_EXACT = Context(prec=60)


def write_raven(table: pd.DataFrame | Annotations, path: str | os.PathLike[str]) -> Path:
    """Write one Raven selection table, over one recording or several.

    Times of several recordings are counted as Raven does for a sequence of files: one after another, in the
    order of their paths, with the time in the file itself as ``File Offset (s)``.

    Args:
        table: ``file``, ``start_time``, ``end_time`` (seconds), ``label``; ``low_freq``, ``high_freq``
            (Hz, blank where NaN) and ``score`` where there. Recordings of :class:`Annotations` with nothing
            in them are not in the file: a table that is empty is found by its name.
        path: Where, such as ``dawn.selections.txt``; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If a column is missing, or a time, label or number cannot be written.
        AudioError: If there are several recordings and one cannot be read for its length.

    Example:
        >>> table = pd.DataFrame(
        ...     {"file": ["dawn.wav"], "start_time": [0.5], "end_time": [2.0], "label": ["robin"]}
        ... )
        >>> print(write_raven(table, "dawn.selections.txt").read_text().split("\\t")[-1].strip())
        robin
    """
    checked = _checked(table, forbidden="\t\r\n")
    has_score = "score" in checked.columns
    starts_of_files = _starts_in_sequence(checked)
    header = [
        *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)"),
        *("High Freq (Hz)", "Begin Path", "File Offset (s)", "Annotation"),
        *(["Score"] if has_score else []),
    ]
    lines = ["\t".join(header)]
    for number, row in enumerate(_rows(checked), start=1):
        before = starts_of_files[row["file"]]
        begin, end = (
            format(_EXACT.add(before, Decimal(_text(row[column]))), "f")
            for column in ("start_time", "end_time")
        )
        cells = [
            *(str(number), "Spectrogram 1", "1", begin, end),
            *(_text(row.get("low_freq")), _text(row.get("high_freq"))),
            *(row["file"], _text(row["start_time"]), row["label"]),
            *([_text(row["score"])] if has_score else []),
        ]
        lines.append("\t".join(cells))
    return _write_whole("".join(f"{line}\n" for line in lines), path)


def write_audacity(table: pd.DataFrame | Annotations, path: str | os.PathLike[str]) -> Path:
    """Write Audacity's labels of one recording; the format has no place for a score or a file name.

    Args:
        table: As in :func:`write_raven`, about one recording. Frequencies go into a second line.
        path: Where: the recording's name with ``.txt``, so that it is found again.

    Returns:
        The path.

    Raises:
        DatasetError: If the table is about several recordings, a column is missing, or a time, label or
            number cannot be written.

    Example:
        >>> table = pd.DataFrame(
        ...     {"file": ["dawn.wav"], "start_time": [0.5], "end_time": [2.0], "label": ["robin"]}
        ... )
        >>> write_audacity(table, "dawn.txt").read_text().split()
        ['0.5', '2.0', 'robin']
    """
    checked = _checked(table, forbidden="\t\r\n")
    files = sorted(set(checked["file"]))
    if len(files) > 1:
        raise DatasetError(
            f"Audacity's labels are about one recording, and the table has {len(files)}: "
            f"{', '.join(files[:3])}. Write each on its own: for file, part in table.groupby('file')."
        )
    lines = []
    for row in _rows(checked):
        lines.append(f"{_text(row['start_time'])}\t{_text(row['end_time'])}\t{row['label']}")
        low, high = _text(row.get("low_freq")), _text(row.get("high_freq"))
        if low or high:
            lines.append(f"\\\t{low or '-1'}\t{high or '-1'}")
    return _write_whole("".join(f"{line}\n" for line in lines), path)


def write_annotation_csv(table: pd.DataFrame | Annotations, path: str | os.PathLike[str]) -> Path:
    """Write a CSV with the columns of the table; recordings with nothing in them have a row with no times.

    Args:
        table: As in :func:`write_raven`.
        path: Where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If a column is missing, or a time, label or number cannot be written.

    Example:
        >>> table = pd.DataFrame(
        ...     {"file": ["dawn.wav"], "start_time": [0.5], "end_time": [2.0], "label": ["robin"]}
        ... )
        >>> write_annotation_csv(table, "annotations.csv").read_text().splitlines()
        ['file,start_time,end_time,label', 'dawn.wav,0.5,2.0,robin']
    """
    checked = _checked(table, forbidden="")
    columns = [*_COLUMNS, *(column for column in _OPTIONAL if column in checked.columns)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in _rows(checked):
        writer.writerow(
            row[name] if name in ("file", "label") else _text(row[name]) for name in columns
        )
    if isinstance(table, Annotations):
        annotated = set(checked["file"])
        for file in table.recordings:
            if file not in annotated:
                writer.writerow([file, *[""] * (len(columns) - 1)])
    return _write_whole(text.getvalue(), path)


def _checked(table: pd.DataFrame | Annotations, forbidden: str) -> pd.DataFrame:
    if isinstance(table, Annotations):
        table = table.table
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise DatasetError(
            f"Expected a table with {', '.join(_COLUMNS)}; {', '.join(missing)} is missing. Its "
            f"columns: {', '.join(str(name) for name in table.columns)}."
        )
    for number, row in enumerate(_rows(table), start=1):
        start, end, label = row["start_time"], row["end_time"], row["label"]
        if not (np.isfinite(start) and np.isfinite(end) and 0 <= start < end):
            raise DatasetError(
                f"Row {number} is from {start} to {end} s: expected 0 <= start < end, in seconds."
            )
        if not isinstance(label, str) or not label.strip():
            raise DatasetError(f"Row {number} has no label but {label!r}: expected text.")
        for text in (label, str(row["file"])):
            if any(sign in text for sign in forbidden):
                raise DatasetError(
                    f"Row {number}: {text!r} has a tab or a line end in it, which this format cannot "
                    "hold. Replace it, or write a CSV."
                )
    return table.assign(file=[os.fspath(file) for file in table["file"]])


def _rows(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    return ({str(key): value for key, value in row.items()} for row in table.to_dict("records"))


def _text(value: float | None) -> str:
    """The shortest decimal number that is this float; blank where it is none."""
    number = np.nan if value is None else np.float64(value)
    if np.isnan(number):
        return ""
    return np.format_float_positional(number, unique=True, trim="0")


def _starts_in_sequence(table: pd.DataFrame) -> dict[str, Decimal]:
    """Where each file starts when all are played one after another, in seconds."""
    starts: dict[str, Decimal] = {}
    now = Decimal(0)
    files = sorted(set(table["file"]))
    for file in files:
        starts[file] = now
        if len(files) > 1:
            now = _EXACT.add(now, Decimal(_text(probe_audio(file).duration_s)))
    return starts


def _write_whole(text: str, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
