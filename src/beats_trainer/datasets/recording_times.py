"""When a recording was made, from the name that the recorder gave it.

file name -> [find a date and a time] -> date-time of its first sample -> + seconds -> date-time of an event

Names that are understood, anywhere in the file's name (not its folders'):

=============================================  ==================================================
``20240510_043000.WAV``                        AudioMoth, and with ``T`` for a triggered one
``24A04F085FDF2793_20230430_050000.wav``       AudioMoth with its device's id
``5CE2F8A0.WAV``                               AudioMoth of old: Unix time in hexadecimal, UTC
``S4A01234_20190521_171602.wav``               Song Meter; ``_0+1_`` before the date; ``$`` for ``_`` with GPS
``20240510T043000+1000_REC.flac``              Frontier Labs
``SITE_20200304-101500.wav``                   Swift and others
``5678.180912073628.wav``                      SoundTrap: YYMMDDHHMMSS after its serial number
``2024-05-10T04-30-00``, ``2024.05.10 04.30.00``  other separators, the same in a date or a time; none too
``...Z``, ``...UTC``, ``...+0200``, ``-05:00``   an offset from UTC right behind the time
=============================================  ==================================================

A time needs seconds: four digits may as well be a number. So may two behind a minus sign, which are no offset.
Digits inside a longer row of digits do not count, and an impossible date is none. A clock that was never set
tells 1970, and no time.

Sources: SM3BAT User Guide, 8.1 (Wildlife Acoustics); PAMGuard's help, File Dates (SoundTrap); Open
Ecoacoustics, Filenames for audio files; AudioMoth Operation Manual.
"""

import difflib
import functools
import ntpath
import os
import re
import zoneinfo
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import timezone as fixed_offset

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ["event_times", "find_time_zone", "parse_recording_time"]

_TIME = re.compile(
    r"""
    (?<![0-9])
    (?P<year>(?:19|20)[0-9]{2}) (?P<between>[-_.]?) (?P<month>[0-9]{2}) (?P=between) (?P<day>[0-9]{2})
    (?:[-_.T$ ]|_T|__)?
    (?P<hour>[0-9]{2}) (?P<within>[-_.:]?) (?P<minute>[0-9]{2}) (?P=within) (?P<second>[0-9]{2})
    (?![0-9])
    (?:[.](?P<fraction>[0-9]{3}|[0-9]{6})(?![0-9]))?
    (?P<offset>
        Z(?![A-Za-z0-9]) | [-_ ]?UTC(?![A-Za-z0-9+-])
        | [+-][0-9]{2}:?[0-9]{2}(?![0-9]) | [+][0-9]{2}(?![0-9])
    )?
    """,
    re.VERBOSE,
)
_SOUNDTRAP = re.compile(r"[0-9]{3,}\.([0-9]{12})(?![0-9])")
_HEXADECIMAL = re.compile(r"[0-9A-F]{8}")
_EARLIEST_HEXADECIMAL = datetime(2016, 1, 1, tzinfo=UTC)  # AudioMoth is of 2017
_LATEST_HEXADECIMAL = datetime(2036, 1, 1, tzinfo=UTC)
_ZONE_AS_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])([0-9]{1,2})(?::?([0-9]{2}))?")
_LARGEST_OFFSET = timedelta(hours=14)


def parse_recording_time(
    file: str | os.PathLike[str], timezone: str | None = None
) -> datetime | None:
    """Read from its name when a recording begins.

    Args:
        file: A path or a name.
        timezone: Zone of the recorder's clock: a name of the IANA data base such as ``"Europe/Berlin"``,
            ``"UTC"`` (AudioMoth's own setting), or a fixed offset such as ``"UTC+10"`` for a clock that
            is not switched in summer. A name that tells its own offset is right without it.

    Returns:
        The time; ``None`` if the name tells none. With ``timezone`` it is aware, in that zone. Without, it
        is what the clock showed, unless the name tells the offset: then it is aware, with that offset.

        Of an hour that a zone has twice, when summer time ends, it is the first. A time that a zone skips,
        when summer time begins, is taken to be of a clock that was not yet switched.

    Raises:
        ValueError: If there is no such zone.

    Example:
        >>> parse_recording_time("S4A01234_20190521_171602.wav")
        datetime.datetime(2019, 5, 21, 17, 16, 2)
        >>> parse_recording_time("20240510_043000.WAV", "Europe/Berlin").isoformat()
        '2024-05-10T04:30:00+02:00'
        >>> parse_recording_time("20240510T043000Z.flac", "Europe/Berlin").isoformat()
        '2024-05-10T06:30:00+02:00'
        >>> parse_recording_time("dawn_chorus.wav") is None
        True
    """
    zone = None if timezone is None else find_time_zone(timezone)
    name = os.fspath(file)
    if "://" in name:  # zip://site/20240510_043000.WAV::s3://bucket/recordings.zip
        name = name.partition("::")[0]
    time = _read_name(ntpath.basename(name))  # which knows both separators
    if time is None or zone is None:
        return time
    if time.tzinfo is None:
        time = time.replace(tzinfo=zone).astimezone(
            UTC
        )  # by way of UTC no time is one that was skipped
    return time.astimezone(zone)


def event_times(
    file: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    start_time: ArrayLike,
    timezone: str | None = None,
    convert_to: str | None = None,
) -> pd.Series:
    """Tell when something in a recording happened.

    Seconds are added to the time at which the recording begins as they passed, so that the result is right
    in a night in which summer time begins or ends.

    Args:
        file: The recording, or that of each row.
        start_time: Seconds from its start, shape ``(N,)``.
        timezone: Zone of the recorder's clock, as for :func:`parse_recording_time`.
        convert_to: Zone to tell the times in; ``None`` means ``timezone``.

    Returns:
        Date-times in microseconds, shape ``(N,)``, in the zone; without a zone what the recorder's clock
        showed, also where a name tells the offset of that clock from UTC. ``NaT`` where a name tells no
        time.

    Raises:
        ValueError: If there is no such zone, ``convert_to`` comes without ``timezone``, or the numbers of
            files and times differ.

    Example:
        >>> night = "20241027_013000.wav"  # an hour and a half before clocks go back from 3 to 2
        >>> [str(time) for time in event_times(night, [0.5, 7200.5], "Europe/Berlin")]
        ['2024-10-27 01:30:00.500000+02:00', '2024-10-27 02:30:00.500000+01:00']
    """
    if convert_to is not None and timezone is None:
        raise ValueError(
            f"Times cannot be told in {convert_to} without knowing the zone of the recorder's clock: pass "
            "timezone= too, for example timezone='UTC'."
        )
    seconds = np.atleast_1d(np.asarray(start_time, dtype=np.float64))
    zone = None if timezone is None else find_time_zone(convert_to or timezone)
    if isinstance(file, str | os.PathLike):
        codes, names = np.zeros(len(seconds), dtype=np.intp), [os.fspath(file)]
    else:
        codes, unique = pd.factorize(np.array([os.fspath(name) for name in file], dtype=object))
        names = list(unique)
    if len(codes) != len(seconds):
        raise ValueError(f"There are {len(codes)} files for {len(seconds)} times.")
    begins = np.array(
        [_as_datetime64(parse_recording_time(name, timezone), zone) for name in names],
        dtype="datetime64[us]",
    )
    is_known = np.isfinite(seconds)
    offsets = np.where(is_known, np.rint(seconds * 1e6), 0).astype("timedelta64[us]")
    times = (begins[codes] if len(codes) else begins[:0]) + offsets
    times[~is_known] = np.datetime64("NaT")
    series = pd.Series(times, name="datetime")
    return series if zone is None else series.dt.tz_localize(UTC).dt.tz_convert(zone)


@functools.lru_cache(maxsize=64)
def find_time_zone(name: str) -> tzinfo:
    """Find a time zone.

    Args:
        name: Of the IANA data base, such as ``"Europe/Berlin"``, or a fixed offset such as ``"UTC+10"``,
            ``"+05:30"`` or ``"-0300"``; plus is east of Greenwich.

    Raises:
        ValueError: If there is none of this name.

    Example:
        >>> find_time_zone("UTC-3")
        datetime.timezone(datetime.timedelta(days=-1, seconds=75600))
    """
    match = _ZONE_AS_OFFSET.fullmatch(name)
    if match is not None:
        sign, hours, minutes = match.groups()
        offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
        if offset <= _LARGEST_OFFSET and int(minutes or 0) < 60:
            return fixed_offset(-offset if sign == "-" else offset)
    else:
        try:
            return zoneinfo.ZoneInfo(name)
        except (
            zoneinfo.ZoneInfoNotFoundError,
            ValueError,
            OSError,
        ):  # OSError: "Europe" is a folder
            pass
    known = {zone.casefold(): zone for zone in zoneinfo.available_timezones()}
    cities = {zone.rpartition("/")[2]: zone for zone in sorted(known, reverse=True)}
    wanted = name.strip().replace(" ", "_").casefold()
    close = difflib.get_close_matches(wanted, known, n=1) or [
        cities[city] for city in difflib.get_close_matches(wanted, cities, n=1)
    ]
    hint = f" Did you mean {known[close[0]]!r}?" if close else ""
    raise ValueError(
        f"There is no time zone {name!r}.{hint} Expected a name such as 'Europe/Berlin', or an offset such "
        "as 'UTC+10'."
    )


def _as_datetime64(time: datetime | None, zone: tzinfo | None) -> np.datetime64:
    """In UTC if there is a zone, else what the clock showed."""
    if time is None:
        return np.datetime64("NaT")
    if zone is not None:
        time = time.astimezone(UTC)
    return np.datetime64(time.replace(tzinfo=None), "us")


def _read_name(name: str) -> datetime | None:
    start = 0
    while match := _TIME.search(name, start):
        time = _to_datetime(match)
        if time is not None and time.year != 1970:
            return time
        start = match.start() + 1
    match = _SOUNDTRAP.match(name)
    if match is not None:
        try:
            return datetime.strptime(match[1], "%y%m%d%H%M%S")
        except ValueError:
            return None
    return _read_hexadecimal(name)


def _to_datetime(match: re.Match[str]) -> datetime | None:
    year, month, day, hour, minute, second = (
        int(match[part]) for part in ("year", "month", "day", "hour", "minute", "second")
    )
    fraction = int((match["fraction"] or "").ljust(6, "0"))
    zone = _offset_of(match["offset"] or "")
    try:
        return datetime(year, month, day, hour, minute, second, fraction, tzinfo=zone)
    except ValueError:
        return None


def _offset_of(text: str) -> tzinfo | None:
    """``+0200`` as a zone; ``None`` for what no zone has, which is a number behind the time."""
    if not text:
        return None
    if text[0] not in "+-" or text.endswith("UTC"):
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    if offset > _LARGEST_OFFSET or int(digits[2:]) not in (0, 15, 30, 45):
        return None
    return fixed_offset(-offset if text[0] == "-" else offset)


def _read_hexadecimal(name: str) -> datetime | None:
    stem, ending = os.path.splitext(name)
    if not _HEXADECIMAL.fullmatch(stem):
        return None
    if stem.isdigit() and ending != ".WAV":  # more likely a number, or a date without a time
        return None
    time = datetime.fromtimestamp(int(stem, 16), UTC)
    return time if _EARLIEST_HEXADECIMAL <= time < _LATEST_HEXADECIMAL else None
