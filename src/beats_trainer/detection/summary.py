"""How many events of each class, on which day and at which hour.

events, lengths of recordings -> [date and hour of each -> count] -> summary -> CSV, picture
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.datasets.recording_times import event_times

__all__ = ["recorded_hours", "summarise"]

_COLUMNS = ("label", "date", "hour", "num_events", "duration_s", "max_score", "recorded_s")
_QUARTER_HOUR_US = 900_000_000


def summarise(
    events: pd.DataFrame,
    *,
    timezone: str | None = None,
    convert_to: str | None = None,
    durations: Mapping[str, float] | pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Count the events of each class by date and hour.

    An event counts, all of it, on the date and in the hour in which it starts.

    Args:
        events: Columns ``file``, ``start_time``, ``end_time``, ``label``, ``score``; seconds from the
            file's start.
        timezone: Zone of the recorders' clocks, as for :func:`~beats_trainer.datasets.recording_times.parse_recording_time`.
        convert_to: Zone to tell dates and hours in; ``None`` means ``timezone``.
        durations: Seconds of every recording that was searched, also of those without an event; or, where
            parts of recordings were, a table of these, ``file``, ``start_time``, ``end_time``.

    Returns:
        One row per label, date and hour with events, in this order: ``label``; ``date`` (``YYYY-MM-DD``);
        ``hour`` (0 to 23); ``num_events``; ``duration_s``, their seconds together; ``max_score``;
        ``recorded_s``, seconds that all recorders together recorded in that hour, to compute rates from,
        missing without ``durations``. Date and hour are missing where a file's name tells no time.

    Raises:
        ValueError: If a column is missing, there is no such zone, or ``convert_to`` comes without
            ``timezone``.

    Example:
        >>> events = pd.DataFrame(
        ...     {"file": "20240510_043000.WAV", "start_time": [2.0, 1795.0, 1801.0],
        ...      "end_time": [3.0, 1805.0, 1803.0], "label": "owl", "score": [0.8, 0.9, 0.7]}
        ... )
        >>> summarise(events, durations={"20240510_043000.WAV": 3600.0}).values.tolist()
        [['owl', '2024-05-10', 4, 2, 11.0, 0.9, 1800.0], ['owl', '2024-05-10', 5, 1, 2.0, 0.7, 1800.0]]
    """
    missing = {"file", "start_time", "end_time", "label", "score"} - set(events.columns)
    if missing:
        raise ValueError(f"The table of events has no column {', '.join(sorted(missing))}.")
    times = event_times(events["file"], events["start_time"], timezone, convert_to)
    dates, hours = _dates_and_hours(times)
    rows = pd.DataFrame(
        {
            "label": events["label"].to_numpy(dtype=object),
            "date": dates,
            "hour": hours,
            "duration_s": (events["end_time"] - events["start_time"]).to_numpy(np.float64),
            "score": events["score"].to_numpy(np.float64),
        }
    )
    groups = rows.groupby(["label", "date", "hour"], dropna=False, sort=True)
    summary = groups.agg(
        num_events=("score", "size"), duration_s=("duration_s", "sum"), max_score=("score", "max")
    ).reset_index()
    if durations is None:
        summary["recorded_s"] = np.nan
    else:
        recorded = recorded_hours(durations, timezone=timezone, convert_to=convert_to)
        summary = summary.merge(recorded, on=["date", "hour"], how="left")
    return summary.astype(
        {
            "label": "str",
            "date": "str",
            "hour": "Int64",
            "num_events": "int64",
            "duration_s": "float64",
            "max_score": "float64",
            "recorded_s": "float64",
        }
    )[list(_COLUMNS)]


def recorded_hours(
    durations: Mapping[str, float] | pd.DataFrame,
    *,
    timezone: str | None = None,
    convert_to: str | None = None,
) -> pd.DataFrame:
    """Sum what was recorded by date and hour: what numbers of events must be seen against.

    Args:
        durations: As for `summarise`.
        timezone: Zone of the recorders' clocks.
        convert_to: Zone to tell dates and hours in; ``None`` means ``timezone``.

    Returns:
        One row per date and hour in which something was recorded: ``date``, ``hour``, ``recorded_s``. What
        several recorders recorded at a time counts several times. Date and hour are missing in a last row
        for files whose names tell no time.

    Example:
        >>> recorded_hours({"A_20240510_235900.wav": 90.0}).values.tolist()
        [['2024-05-10', 23, 60.0], ['2024-05-11', 0, 30.0]]
    """
    files, starts, seconds = _parts_of(durations)
    begins = event_times(files, starts, timezone, convert_to)
    is_known = begins.notna().to_numpy()
    zone = begins.dt.tz
    naive = begins if zone is None else begins.dt.tz_convert("UTC").dt.tz_localize(None)
    first = naive.to_numpy("datetime64[us]")[is_known].astype(np.int64)
    last = first + np.rint(seconds[is_known] * 1e6).astype(np.int64)
    # In pieces of a quarter of an hour: hours begin with one in every zone.
    first_piece = first // _QUARTER_HOUR_US
    num_pieces = np.maximum(-(-last // _QUARTER_HOUR_US) - first_piece, 1)
    of_file = np.repeat(np.arange(len(first)), num_pieces)
    number = np.arange(len(of_file)) - np.repeat(num_pieces.cumsum() - num_pieces, num_pieces)
    piece = (first_piece[of_file] + number) * _QUARTER_HOUR_US
    overlap = np.minimum(last[of_file], piece + _QUARTER_HOUR_US) - np.maximum(
        first[of_file], piece
    )
    # Summed by piece first: converting to a zone is the slow part.
    pieces, where = np.unique(piece, return_inverse=True)
    times = pd.Series(pieces.astype("datetime64[us]"))
    if zone is not None:
        times = times.dt.tz_localize("UTC").dt.tz_convert(zone)
    dates, hours = _dates_and_hours(times)
    table = pd.DataFrame(
        {"date": dates, "hour": hours, "recorded_s": np.bincount(where, overlap, len(pieces)) / 1e6}
    )
    table = table.groupby(["date", "hour"], as_index=False, sort=True).sum()
    if not is_known.all():
        rest = {"date": [None], "hour": [pd.NA], "recorded_s": [seconds[~is_known].sum()]}
        unknown = pd.DataFrame(rest).astype({"date": dates.dtype, "hour": "Int64"})
        table = pd.concat([table, unknown], ignore_index=True) if len(table) else unknown
    return table


def _parts_of(
    durations: Mapping[str, float] | pd.DataFrame,
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Files, and start and length in seconds of what was recorded, or searched, of each."""
    if isinstance(durations, pd.DataFrame):
        starts = durations["start_time"].to_numpy(np.float64)
        return durations["file"].tolist(), starts, durations["end_time"].to_numpy() - starts
    seconds = np.fromiter(durations.values(), np.float64, len(durations))
    return list(durations), np.zeros(len(durations)), seconds


def _dates_and_hours(times: pd.Series) -> tuple[pd.Series, pd.Series]:
    """``YYYY-MM-DD`` and 0 to 23, both missing where there is no time."""
    days = times.dt.tz_localize(None).dt.normalize()
    codes, unique = pd.factorize(days)  # text is slow to make, and days are few
    names = [pd.Timestamp(day).date().isoformat() for day in unique]
    dates = np.array([*names, None], dtype=object)[codes]  # -1, for no time, is the last
    return pd.Series(dates, dtype="str"), times.dt.hour.astype("Int64")
