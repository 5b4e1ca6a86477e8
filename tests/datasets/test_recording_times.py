"""The names of common recorders tell when; other digits do not; summer time shifts nothing."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from beats_trainer.datasets.recording_times import (
    event_times,
    find_time_zone,
    parse_recording_time,
)

DAWN = datetime(2024, 5, 10, 4, 30)


@pytest.mark.parametrize(
    "name",
    [
        "20240510_043000.WAV",  # AudioMoth
        "20240510_043000T.WAV",  # AudioMoth, triggered
        "24A04F085FDF2793_20240510_043000.wav",  # AudioMoth with its device's id
        "S4A01234_20240510_043000.wav",  # Song Meter
        "PREFIX_0+1_20240510_043000.wav",  # Song Meter, stereo
        "ARIZONA-1_20240510$043000.wac",  # Song Meter with GPS
        "swift3_20240510-043000.flac",
        "20240510T043000.wav",
        "SITE_20240510043000.wav",
        "2024-05-10T04-30-00.wav",
        "2024-05-10T04:30:00.wav",
        "2024-05-10_04-30-00.wav",
        "2024_05_10_04_30_00.wav",
        "2024.05.10 04.30.00.mp3",
        "5678.240510043000.wav",  # SoundTrap
        "671879183.240510043000.d24.wav",
        "20240510_043000_000.wav",
        "20240510_043000-0001.wav",  # a number: no zone is one minute behind UTC
        "20240510_043000-12.wav",
        "20190101_20240510_043000.wav",
        "20241332_250000_20240510_043000.wav",  # the first is impossible
        "folder.wav/20240510_043000",
        r"D:\DATA\20240510_043000.WAV",
        "s3://bucket/20240510_043000.WAV",
        "zip://site/20240510_043000.WAV::s3://bucket/2023.zip",
    ],
)
def test_names_of_common_recorders_tell_the_time(name):
    assert parse_recording_time(name) == DAWN


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        ("20240510T043000Z.flac", 0),
        ("2024-05-10-04-30-00-UTC.wav", 0),
        ("20240510T043000+1000_REC.flac", 10),
        ("20240510T043000+10_REC.flac", 10),
        ("20240510_043000+0530.wav", 5.5),
        ("SITE_20240510_043000-0500.wav", -5),
        ("20240510T043000.000000-03:00.wav", -3),
    ],
)
def test_an_offset_in_the_name_is_kept_and_holds_against_the_zone(name, hours):
    time = parse_recording_time(name)

    assert time.replace(tzinfo=None) == DAWN
    assert time.utcoffset() == timedelta(hours=hours)
    in_zone = parse_recording_time(name, "Asia/Kolkata")
    assert in_zone == time
    assert in_zone.utcoffset() == timedelta(hours=5.5)


@pytest.mark.parametrize(
    "name",
    [
        "1min.wav",
        "aru_1.wav",
        "20240510.wav",
        "20240510.WAV",  # in hexadecimal it would be of 1987
        "20240510_0430.wav",  # four digits may be a number
        "1202405100430001.wav",
        "20240510_0430001.wav",
        "120240510_043000.wav",
        "20240230_043000.wav",
        "20240510_243000.wav",
        "20240510_046000.wav",
        "30240510_043000.wav",
        "2024-0510_043000.wav",
        "19700101_000013.WAV",  # a clock that was never set
        "DEADBEEF.WAV",
        "58123456.wav",  # AudioMoth writes WAV
        "5ce2f8a0.wav",
        "5CE2F8A01.WAV",
        "1-100032-A-0.wav",
        "٢٠٢٤٠٥١٠_٠٤٣٠٠٠.wav",
        "20240510_043000/clip.wav",  # a folder's name tells nothing of the file's start
        "",
    ],
)
def test_other_names_tell_no_time(name):
    assert parse_recording_time(name) is None
    assert parse_recording_time(name, "Europe/Berlin") is None


def test_hexadecimal_names_are_unix_time_in_utc():
    assert parse_recording_time("5CE2F8A0.WAV") == datetime(2019, 5, 20, 18, 57, 36, tzinfo=UTC)
    assert parse_recording_time("58123456.WAV") == datetime.fromtimestamp(0x58123456, UTC)
    assert parse_recording_time("5CE2F8A0.WAV", "UTC+2").hour == 20


def test_the_zone_of_the_clock_makes_a_time_aware():
    summer = parse_recording_time("20240710_043000.WAV", "Europe/Berlin")
    winter = parse_recording_time("20240110_043000.WAV", "Europe/Berlin")
    fixed = parse_recording_time("20240710_043000.WAV", "UTC+1")

    assert [time.utcoffset() for time in (summer, winter, fixed)] == [
        timedelta(hours=hours) for hours in (2, 1, 1)
    ]
    assert parse_recording_time("20240710_043000.WAV").tzinfo is None


def test_times_that_a_zone_has_twice_or_never():
    twice = parse_recording_time("20241027_023000.wav", "Europe/Berlin")
    never = parse_recording_time("20240331_023000.wav", "Europe/Berlin")

    assert twice.isoformat() == "2024-10-27T02:30:00+02:00"
    assert never.isoformat() == "2024-03-31T03:30:00+02:00"


def test_seconds_pass_evenly_through_a_night_in_which_clocks_change():
    spring, autumn = "A_20240331_000000.wav", "A_20241027_000000.wav"
    hours = np.arange(6) * 3600.0

    times = event_times([spring] * 6 + [autumn] * 6, np.tile(hours, 2), "Europe/Berlin")

    steps = times.diff().drop([0, 6])
    assert (steps == pd.Timedelta(hours=1)).all()
    assert times.dt.hour.tolist() == [0, 1, 3, 4, 5, 6, 0, 1, 2, 2, 3, 4]


def test_event_times_have_one_type_whatever_the_names():
    files = ["20240510_043000.WAV", "20240510_043000+1000.wav", "dawn.wav", "5CE2F8A0.WAV"]

    clock = event_times(files, [1.5, 0, 0, 0])
    berlin = event_times(files, [1.5, 0, 0, 0], "Europe/Berlin", convert_to="UTC")

    assert str(clock.dtype) == "datetime64[us]"
    assert [str(time) for time in clock] == [
        "2024-05-10 04:30:01.500000",
        "2024-05-10 04:30:00",
        "NaT",
        "2019-05-20 18:57:36",
    ]
    assert str(berlin.dtype) == "datetime64[us, UTC]"
    assert [str(time) for time in berlin] == [
        "2024-05-10 02:30:01.500000+00:00",
        "2024-05-09 18:30:00+00:00",
        "NaT",
        "2019-05-20 18:57:36+00:00",
    ]
    assert event_times([], [], "UTC").dtype == berlin.dtype
    assert event_times([], []).dtype == clock.dtype


def test_times_of_many_events_in_few_files():
    files = np.repeat([f"A_202405{day:02d}_043000.wav" for day in range(1, 11)], 20_000)

    times = event_times(files, np.tile(np.arange(20_000) / 10, 10), "Europe/Berlin")

    assert times.dt.day.value_counts().tolist() == [20_000] * 10


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("New York", "America/New_York"),
        ("Europe", ""),
        ("", ""),
        ("UTC+25", ""),
        ("../../etc/passwd", ""),
    ],
)
def test_an_unknown_zone_is_named_with_a_hint(name, hint):
    with pytest.raises(ValueError, match=f"There is no time zone.*{hint}"):
        parse_recording_time("dawn.wav", name)


@pytest.mark.parametrize(
    ("name", "hours"), [("UTC+10", 10), ("+05:30", 5.5), ("-0300", -3), ("GMT-3", -3), ("UTC", 0)]
)
def test_a_zone_may_be_a_fixed_offset(name, hours):
    assert find_time_zone(name).utcoffset(DAWN) == timedelta(hours=hours)


def test_times_cannot_be_converted_from_an_unknown_zone():
    with pytest.raises(ValueError, match="timezone="):
        event_times("20240510_043000.WAV", [0.0], convert_to="UTC")
    with pytest.raises(ValueError, match="2 files for 1 times"):
        event_times(["a", "b"], [0.0])


def test_a_real_recorders_name_is_understood(shared_data):
    names = [path.name for path in (shared_data / "field").iterdir()]

    times = {name: parse_recording_time(name) for name in names}

    assert {name: time for name, time in times.items() if time is not None} == {
        "242A2604603691DD_20250503_031300.WAV": datetime(2025, 5, 3, 3, 13)
    }
