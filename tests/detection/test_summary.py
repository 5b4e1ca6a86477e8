"""Events are counted on the right day and hour, and the picture shows all of it as valid XML."""

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from beats_trainer.detection import draw_summary, recorded_hours, summarise

SVG = "{http://www.w3.org/2000/svg}"


def events_of(*rows):
    columns = ["file", "start_time", "end_time", "label", "score"]
    table = pd.DataFrame(list(rows), columns=columns)
    return table.astype({"start_time": float, "end_time": float, "score": float})


def random_summary(num_days, labels=("owl", "frog"), first="2024-01-01", share=1.0):
    """A row for each label, day and hour, or for a share of them."""
    days = pd.date_range(first, periods=num_days).strftime("%Y-%m-%d")
    table = pd.MultiIndex.from_product([labels, days, range(24)]).to_frame(index=False)
    table.columns = ["label", "date", "hour"]
    rng = np.random.default_rng(0)
    table["num_events"] = rng.integers(1, 60, len(table))
    return table[rng.random(len(table)) < share].reset_index(drop=True)


def texts_of(picture):
    root = ET.fromstring(picture)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def colours_of(picture):
    """How many squares of each colour are drawn, by their area."""
    areas = {}
    for path in ET.fromstring(picture).iter(f"{SVG}path"):
        if path.get("fill"):
            for piece in path.get("d").split("M")[1:]:
                width, height = piece.split("h")[1].split("v")
                area = int(width) * int(height)
                areas[path.get("fill")] = areas.get(path.get("fill"), 0) + area
    return areas


def test_events_are_counted_by_label_date_and_hour_in_which_they_start():
    events = events_of(
        ("A_20240510_235900.wav", 10.0, 20.0, "owl", 0.7),
        ("A_20240510_235900.wav", 59.0, 65.0, "owl", 0.9),  # reaches into the next day
        ("A_20240510_235900.wav", 61.0, 62.0, "owl", 0.6),
        ("A_20240510_235900.wav", 61.0, 62.0, "frog", 0.5),
        ("dawn.wav", 0.0, 2.0, "owl", 0.8),
    )

    summary = summarise(events)

    assert summary.drop(columns="recorded_s").astype(object).fillna("").values.tolist() == [
        ["frog", "2024-05-11", 0, 1, 1.0, 0.5],
        ["owl", "2024-05-10", 23, 2, 16.0, 0.9],
        ["owl", "2024-05-11", 0, 1, 1.0, 0.6],
        ["owl", "", "", 1, 2.0, 0.8],
    ]
    assert summary["recorded_s"].isna().all()
    assert int(summary["num_events"].sum()) == len(events)


def test_dates_and_hours_are_told_in_the_zone_that_was_asked_for():
    events = events_of(("20240510_233000.WAV", 0.0, 1.0, "owl", 0.7))

    berlin = summarise(events, timezone="UTC", convert_to="Europe/Berlin")

    assert berlin[["date", "hour"]].values.tolist() == [["2024-05-11", 1]]


def test_hours_of_recording_are_given_beside_the_events():
    durations = {"A_20240510_040000.wav": 5400.0, "B_20240510_043000.wav": 600.0, "dawn.wav": 60.0}
    events = events_of(
        ("A_20240510_040000.wav", 0.0, 1.0, "owl", 0.7),
        ("A_20240510_040000.wav", 3700.0, 3701.0, "owl", 0.7),
        ("dawn.wav", 0.0, 1.0, "owl", 0.7),
    )

    summary = summarise(events, durations=durations)

    assert summary["recorded_s"].tolist() == [3600.0 + 600.0, 1800.0, 60.0]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_hours_of_recording_are_those_of_counting_second_by_second(zone):
    durations = {
        "A_20240331_005947.wav": 9321.0,  # clocks go forward in Berlin
        "A_20241027_010101.wav": 12345.0,  # and back
        "B_20241027_013000.wav": 1.0,
        "B_20240406_231459.wav": 40_000.0,  # back by half an hour on Lord Howe
    }

    recorded = recorded_hours(durations, timezone=zone)

    expected = {}
    for file, seconds in durations.items():
        stamp = pd.to_datetime(file[2:17], format="%Y%m%d_%H%M%S")
        if zone:
            stamp = stamp.tz_localize(zone, ambiguous=True).tz_convert("UTC")
        every = pd.Series(stamp + pd.to_timedelta(np.arange(seconds), unit="s"))
        every = every.dt.tz_convert(zone) if zone else every
        for name, count in every.dt.strftime("%Y-%m-%d %H").value_counts().items():
            expected[name] = expected.get(name, 0) + count
    found = {
        f"{row.date} {row.hour:02d}": row.recorded_s for row in recorded.itertuples(index=False)
    }
    assert found == pytest.approx(expected)


def test_parts_of_recordings_count_where_they_lie():
    parts = pd.DataFrame(
        [("A_20240510_043000.wav", 600.0, 660.0), ("A_20240510_043000.wav", 1790.0, 1805.0)],
        columns=["file", "start_time", "end_time"],
    )

    recorded = recorded_hours(parts)

    assert recorded["hour"].tolist() == [4, 5]
    assert recorded["recorded_s"].tolist() == [70.0, 5.0]


def test_recordings_without_a_time_are_one_row_at_the_end():
    table = recorded_hours({"a.wav": 10.0, "A_20240510_040000.wav": 5.0, "b.wav": 20.0})
    alone = recorded_hours({"a.wav": 10.0})
    none = recorded_hours({})

    assert table["recorded_s"].tolist() == [5.0, 30.0]
    assert table["date"].isna().tolist() == [False, True]
    assert alone["hour"].isna().all()
    assert list(none.columns) == list(table.columns)
    assert len(none) == 0


def test_no_events_give_an_empty_summary_with_the_same_columns_and_types():
    durations = {"A_20240510_040000.wav": 60.0}
    some = summarise(events_of(("A_20240510_040000.wav", 0, 1, "owl", 0.7)), durations=durations)

    for none in (summarise(events_of()), summarise(events_of(), durations=durations)):
        pd.testing.assert_frame_equal(none, some.iloc[:0])


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column end_time"):
        summarise(events_of().drop(columns="end_time"))


def test_the_summary_as_csv_leaves_unknown_values_blank():
    summary = summarise(events_of(("dawn.wav", 0.0, 2.0, "owl", 0.8)))

    assert summary.to_csv(index=False).splitlines() == [
        "label,date,hour,num_events,duration_s,max_score,recorded_s",
        "owl,,,1,2.0,0.8,",
    ]


@pytest.mark.parametrize("num_days", [1, 7, 8, 45, 365, 366 * 3])
def test_the_picture_shows_every_class_with_its_number_of_events(num_days):
    summary = random_summary(num_days)

    picture = draw_summary(summary)

    texts = " | ".join(texts_of(picture))
    assert f"{summary['num_events'].sum():,} events of 2 classes, 2024-01-01" in texts
    for label, number in summary.groupby("label")["num_events"].sum().items():
        assert f"{label}{number:,} events" in texts
    assert len(picture) < 400_000


@pytest.mark.parametrize(("num_days", "per_day"), [(1, 24), (7, 24 * 7), (8, 24 * 8)])
def test_every_hour_with_events_is_a_cell_and_no_other(num_days, per_day):
    summary = random_summary(num_days, labels=["owl"], share=0.6)
    hours = summary[["date", "hour"]].assign(recorded_s=60.0)
    others = random_summary(num_days, labels=["owl"]).assign(recorded_s=60.0)

    areas = colours_of(draw_summary(summary, others))
    whole = sum(areas.values())

    silent = areas.pop("#f0f2f4")
    assert sum(areas.values()) / whole == pytest.approx(len(hours) / per_day)
    assert silent / whole == pytest.approx(1 - len(hours) / per_day)


def test_hours_without_a_recording_are_not_drawn_as_silent():
    summary = random_summary(1, labels=["owl"], share=0.3)
    only_these = summary[["date", "hour"]].assign(recorded_s=60.0)

    assert "#f0f2f4" not in colours_of(draw_summary(summary, only_these))


def test_more_events_are_darker_and_the_legend_says_how_many():
    summary = random_summary(1, labels=["owl"])
    summary["num_events"] = [1, 2, 7] * 8

    picture = draw_summary(summary)

    texts = texts_of(picture)
    assert [text for text in texts if text in {"1", "2", "3\N{EN DASH}4", "5\N{EN DASH}7"}]
    areas = colours_of(picture)
    assert len(areas) == 3
    assert len(set(areas.values())) == 1


def test_labels_are_text_and_never_markup():
    labels = ["<script>alert(1)</script>", 'a & "b"', "null\x00 bell\x07", "🦉 鸟"]
    for summary in (random_summary(2, labels), random_summary(2, labels).assign(date=None)):
        picture = draw_summary(summary)

        picture.encode("utf-8")
        texts = " | ".join(texts_of(picture))
        assert "<script>" in texts
        assert 'a & "b"' in texts
        assert "🦉 鸟" in texts
        assert "script" not in {
            element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()
        }


def test_a_very_long_label_is_cut_and_whole_in_the_tooltip():
    picture = draw_summary(random_summary(1, labels=["x" * 500]))

    assert f">{'x' * 500}</title>" in picture
    assert f"{'x' * 80}\N{HORIZONTAL ELLIPSIS}" in picture


def test_without_times_there_are_bars_of_events_per_class():
    summary = summarise(
        events_of(*[("dawn.wav", second, second + 1, "owl", 0.8) for second in range(3)])
    )

    texts = texts_of(draw_summary(summary))

    assert "3 events of 1 class" in texts
    assert "The names of the recordings tell no time." in texts
    assert texts[-2:] == ["owlowl", "3"]  # the first is the tooltip


def test_what_is_not_shown_is_said():
    many = random_summary(1, labels=[f"class {number}" for number in range(15)])
    untimed = pd.DataFrame({"label": ["owl"], "date": None, "hour": pd.NA, "num_events": 5})

    texts = texts_of(draw_summary(pd.concat([many, untimed.astype(object)])))

    assert "Not shown: 5 events in recordings whose names tell no time." in texts
    assert "Shown: the 12 classes with the most events." in texts
    assert len([text for text in texts if text.startswith("class ")]) == 12


def test_no_events_are_said_in_words():
    picture = draw_summary(summarise(events_of()))

    assert "No events" in texts_of(picture)


def test_a_summary_read_back_from_csv_gives_the_same_picture(tmp_path):
    events = events_of(("A_20240510_040000.wav", 0, 1, "owl", 0.7), ("dawn.wav", 0, 1, "owl", 0.7))
    durations = {"A_20240510_040000.wav": 60.0, "dawn.wav": 60.0}
    summary, recorded = summarise(events, durations=durations), recorded_hours(durations)
    summary.to_csv(tmp_path / "summary.csv", index=False)
    recorded.to_csv(tmp_path / "recorded.csv", index=False)

    again = draw_summary(
        pd.read_csv(tmp_path / "summary.csv"), pd.read_csv(tmp_path / "recorded.csv")
    )

    assert again == draw_summary(summary, recorded)
