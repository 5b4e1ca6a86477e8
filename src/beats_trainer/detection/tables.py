"""The tables of events that are written and read: their names, columns, and what must hold in them.

events -> [tables] -> writing | reading

Events are a pandas table ``file, start_time, end_time, label, score``, in seconds from the file's start.

Sources of the formats: Raven selection tables, CSV and the split of a path for Kaleidoscope are those of
BirdNET-Analyzer (``birdnet_analyzer/analyze/core.py`` at 37912401), whose tables Raven Pro and
Kaleidoscope open; labels are Audacity's (manual.audacityteam.org/man/importing_and_exporting_labels.html);
frames are the columns of DCASE's reference tables, as sed_eval reads them.
"""

import os
import re
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.errors import DatasetError
from beats_trainer.file_names import printable_name

__all__ = [
    "BIRDNET_COLUMNS",
    "EVENT_COLUMNS",
    "FORMATS",
    "FRAME_COLUMNS",
    "KALEIDOSCOPE_COLUMNS",
    "RAVEN_COLUMNS",
    "STANDARD_NAMES",
    "TIME_DIGITS",
    "TableFormat",
    "check_events",
    "join_names",
    "on_one_line",
    "split_label",
]

TableFormat = Literal[
    "csv", "parquet", "raven", "raven-combined", "audacity", "birdnet", "kaleidoscope", "frames"
]
"""A kind of table; ``raven`` and ``audacity`` are one file per recording."""

FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)
"""The kinds of tables that can be written and read."""

STANDARD_NAMES: dict[TableFormat, str] = {
    "csv": "detections.csv",
    "parquet": "detections.parquet",
    "raven": "raven",
    "raven-combined": "detections.selections.txt",
    "audacity": "audacity",
    "birdnet": "birdnet.csv",
    "kaleidoscope": "kaleidoscope.csv",
    "frames": "detections.tsv",
}
"""The file, or the folder of one file per recording, that each format has in a folder of results."""

EVENT_COLUMNS = ("file", "start_time", "end_time", "label", "score")
"""Columns of events, of our CSV and of our Parquet."""

RAVEN_COLUMNS = (
    *("Selection", "Begin Time (s)", "End Time (s)", "Common Name", "Scientific Name"),
    *("Species Code", "Confidence", "View", "Channel", "File Offset (s)", "Low Freq (Hz)"),
    *("High Freq (Hz)", "Begin Path"),
)
"""Columns of a Raven selection table, as BirdNET-Analyzer writes it."""

BIRDNET_COLUMNS = (
    *("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"),
)
"""Columns of BirdNET-Analyzer's CSV and Parquet."""

KALEIDOSCOPE_COLUMNS = (
    *("INDIR", "FOLDER", "IN FILE", "OFFSET", "DURATION", "TOP1MATCH", "TOP1DIST"),
)
"""Columns of a table of Wildlife Acoustics' Kaleidoscope."""

FRAME_COLUMNS = ("filename", "onset", "offset", "event_label")
"""Columns of DCASE's tables of events."""

TIME_DIGITS = 6
"""Decimals of seconds: a microsecond is under half a sample at up to 500 kHz."""

_SCIENTIFIC_NAME = re.compile(r"[A-Z][a-z-]+( [a-z-]+){1,2}")


def check_events(events: pd.DataFrame) -> pd.DataFrame:
    """Give events in the form in which they are written.

    Args:
        events: ``file``, ``start_time``, ``end_time``, ``label``, ``score`` and any other columns.

    Returns:
        A new table with these columns first. Times are rounded to a microsecond, so that 0.1 + 0.2 is
        0.3; scores of lower precision are the shortest decimal number that they are; file names that
        are no Unicode are in their printable form.

    Raises:
        DatasetError: If a column is missing, a time is none or an event does not end after it starts,
            a label is not text or blank, or a score is not a number. It names the row.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.1 + 0.2, 1, "robin", 0.5)], columns=EVENT_COLUMNS)
        >>> float(check_events(events)["start_time"][0])
        0.3
    """
    missing = [column for column in EVENT_COLUMNS if column not in events.columns]
    if missing:
        raise DatasetError(
            f"Expected events with the columns {', '.join(EVENT_COLUMNS)}; {', '.join(missing)} is "
            f"missing. There are: {', '.join(str(name) for name in events.columns)}."
        )
    start = np.round(_numbers(events, "start_time"), TIME_DIGITS)
    end = np.round(_numbers(events, "end_time"), TIME_DIGITS)
    score = _numbers(events, "score")
    with np.errstate(invalid="ignore"):
        fits = (start >= 0) & (end > start) & (end < np.inf)
    if not fits.all():
        row = int(np.argmin(fits))
        raise DatasetError(
            f"Row {row + 1} of the events is from {events['start_time'].iloc[row]} to "
            f"{events['end_time'].iloc[row]} s: expected 0 <= start < end, a microsecond at least."
        )
    if np.isinf(score).any():
        row = int(np.argmax(np.isinf(score)))
        raise DatasetError(f"Row {row + 1} of the events has the score {score[row]}: not finite.")
    others = events.drop(columns=list(EVENT_COLUMNS)).reset_index(drop=True)
    checked = pd.DataFrame(
        {
            "file": _each_value(events["file"], _file_name),
            "start_time": start,
            "end_time": end,
            "label": _each_value(events["label"], _label),
            "score": score,
        }
    )
    return pd.concat([checked, others], axis=1) if len(others.columns) else checked


def on_one_line(text: str) -> str:
    r"""Give text without tabs and line ends, which then stand as backslash escapes.

    Example:
        >>> print(on_one_line("two\nlines"))
        two\nlines
    """
    return text.translate({9: "\\t", 10: "\\n", 13: "\\r"})


def split_label(label: str) -> tuple[str, str]:
    """Split BirdNET's ``Turdus merula_Eurasian Blackbird`` into its two names.

    BirdNET-Analyzer splits at the first underscore, whatever stands there. Here only a scientific name
    of two or three words is split off: ``crying_baby`` is one name. A label with one name has it twice,
    as in earlier releases of BirdNET-Analyzer, so that neither column has gaps.

    Returns:
        The scientific and the common name; `join_names` gives the label back.

    Example:
        >>> split_label("Turdus merula_Eurasian Blackbird"), split_label("crying_baby")
        (('Turdus merula', 'Eurasian Blackbird'), ('crying_baby', 'crying_baby'))
    """
    scientific, _, common = label.partition("_")
    if common and scientific != common and _SCIENTIFIC_NAME.fullmatch(scientific):
        return scientific, common
    return label, label


def join_names(scientific: str, common: str) -> str:
    """Give the label that has these two names: the inverse of `split_label`.

    Example:
        >>> join_names("Turdus merula", "Eurasian Blackbird"), join_names("rain", "rain")
        ('Turdus merula_Eurasian Blackbird', 'rain')
    """
    if scientific and common and scientific != common:
        return f"{scientific}_{common}"
    return scientific or common


def _numbers(events: pd.DataFrame, column: str) -> NDArray[np.float64]:
    values = events[column]
    if values.dtype in (np.float32, np.float16):
        values = values.astype(str)  # 0.9 rather than 0.8999999761581421
    try:
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"The column {column!r} of the events is no number: {error}.") from error


def _each_value(values: pd.Series, convert: Callable[[object, int], str]) -> pd.Series:
    """Convert each different value once; which row it is first in is told for messages."""
    codes, different = pd.factorize(values, use_na_sentinel=False)
    first = np.full(len(different), len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    converted = [
        convert(value, row + 1) for value, row in zip(different, first.tolist(), strict=True)
    ]
    return pd.Series(np.array(converted, dtype=object)[codes])


def _file_name(value: object, row: int) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise DatasetError(f"Row {row} of the events has no file but {value!r}: expected a path.")
    return printable_name(value)


def _label(value: object, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"Row {row} of the events has no label but {value!r}: expected text.")
    return printable_name(value)
