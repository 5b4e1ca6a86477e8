"""Tables of events that Raven, Audacity, R and Kaleidoscope open, written and read again."""

import csv
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.audio import probe_audio
from beats_trainer.datasets import read_annotations
from beats_trainer.detection import writing
from beats_trainer.detection.reading import read_detections
from beats_trainer.detection.tables import (
    EVENT_COLUMNS,
    FORMATS,
    STANDARD_NAMES,
    join_names,
    split_label,
)
from beats_trainer.detection.writing import (
    write_audacity_tables,
    write_birdnet_csv,
    write_detection_csv,
    write_detection_parquet,
    write_detections,
    write_frames,
    write_kaleidoscope_csv,
    write_raven_combined,
    write_raven_tables,
)
from beats_trainer.errors import AudioError, DatasetError, DatasetNotFoundError
from beats_trainer.file_names import printable_name
from sounds import write_tone

# The columns as the programs' own documents and sources have them, not as our code does.
RAVEN = [
    "Selection",
    "Begin Time (s)",
    "End Time (s)",
    "Common Name",
    "Scientific Name",
    "Species Code",
    "Confidence",
    "View",
    "Channel",
    "File Offset (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin Path",
]
BIRDNET = ["Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"]
KALEIDOSCOPE = ["INDIR", "FOLDER", "IN FILE", "OFFSET", "DURATION", "TOP1MATCH", "TOP1DIST"]
FRAMES = ["filename", "onset", "offset", "event_label"]
ODD_LABELS = [
    "Turdus merula_Eurasian Blackbird",
    "crying_baby",
    "say \"hi\", again; and 'again'",
    "Fjellrev 🦊 çé",
    "NA",
    "0",
    "#hash \\ back",
    "=1+1",
]
ONE_FILE = ("csv", "parquet", "raven-combined", "birdnet", "kaleidoscope", "frames")
WITH_SCORE = ("csv", "parquet", "raven", "raven-combined", "birdnet", "kaleidoscope")


def events_of(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(EVENT_COLUMNS))


def absolute(events: pd.DataFrame) -> pd.DataFrame:
    return events.assign(file=[os.path.abspath(file) for file in events["file"]])


def same_events(found: pd.DataFrame, expected: pd.DataFrame, scores: bool = True) -> None:
    """The same events, in whatever order."""
    assert list(found.columns) == list(EVENT_COLUMNS)
    order = ["file", "start_time", "end_time", "label"]
    found, expected = (
        table[list(EVENT_COLUMNS)].sort_values(order, ignore_index=True)
        for table in (found, expected)
    )
    for column in order:
        assert found[column].tolist() == expected[column].tolist()
    if scores:
        np.testing.assert_allclose(found["score"], expected["score"], rtol=0, atol=1e-15)
    else:
        assert found["score"].isna().all()


@pytest.fixture
def events(tmp_path) -> pd.DataFrame:
    """Events of three recordings, in no order, with odd names; the recordings are not there."""
    dawn, noon, dusk = (
        str(tmp_path / "rec" / name)
        for name in ("site A/dawn.wav", "site B/dawn.wav", "dusk 🐦,é.flac")
    )
    times = [(0.0, 0.1), (0.1 + 0.2, 3.0), (59.16, 61.0), (1e-05, 2.5), (1 / 3, 2 / 3)]
    rows = [
        (file, *times[(place + shift) % len(times)], label, score)
        for shift, file in enumerate((noon, dawn, dusk))
        for place, (label, score) in enumerate(
            zip(ODD_LABELS, [0.0, 1.0, 0.5, 0.1, 1e-07, 0.123456789012, 0.9, 1 / 3], strict=True)
        )
    ]
    return events_of(*rows)


@pytest.fixture
def lengths(events) -> dict[str, float]:
    return dict.fromkeys(events["file"].unique(), 61.0123456789)


def rounded(events: pd.DataFrame) -> pd.DataFrame:
    return events.assign(
        start_time=events["start_time"].round(6), end_time=events["end_time"].round(6)
    )


# --- every format ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_again_by_every_format(tmp_path, events, lengths, name):
    written = write_detections(events, tmp_path / "out", name, durations=lengths)

    found = read_detections(tmp_path / "out")

    expected = rounded(events)
    if name == "audacity":  # tables that only have their own names
        root = str(tmp_path / "rec") + os.sep
        expected["file"] = [file.removeprefix(root) for file in expected["file"]]
    assert list(written) == [name]
    assert all(path.is_file() for path in written[name])
    same_events(found, expected, scores=name in WITH_SCORE)


@pytest.mark.parametrize("name", FORMATS)
def test_no_event_gives_tables_with_a_header(tmp_path, name):
    nothing = events_of()

    write_detections(nothing, tmp_path / "out", [name], recordings=["rec/dawn.wav"])

    found = read_detections(tmp_path / "out")
    assert list(found.columns) == list(EVENT_COLUMNS)
    assert len(found) == 0
    assert found["start_time"].dtype == np.float64
    headers = {
        "csv": ",".join(EVENT_COLUMNS),
        "raven": "\t".join(RAVEN),
        "raven-combined": "\t".join(RAVEN),
        "birdnet": ",".join(BIRDNET),
        "kaleidoscope": ",".join(KALEIDOSCOPE),
        "frames": "\t".join(FRAMES),
        "audacity": None,
    }
    if name != "parquet":
        path = tmp_path / "out" / STANDARD_NAMES[name]
        path = next(path.glob("dawn.wav*")) if path.is_dir() else path
        assert path.read_text().splitlines() == ([headers[name]] if headers[name] else [])


def test_empty_parquet_has_types(tmp_path):
    schema = pq.read_schema(write_detection_parquet(events_of(), tmp_path / "none.parquet"))

    assert [str(schema.field(name).type) for name in EVENT_COLUMNS] == [
        *("string", "double", "double", "string", "double"),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_class_a_score_of_zero_and_a_start_at_zero_are_written(tmp_path, name):
    first = events_of(("a.wav", 0.0, 1.0, "0", 0.0), ("a.wav", 0.0, 1.0, "1", 1.0))

    write_detections(first, tmp_path, name)

    assert sorted(read_detections(tmp_path)["label"]) == ["0", "1"]


def test_all_formats_are_written_under_their_names(tmp_path, events, lengths):
    written = write_detections(events, tmp_path / "out", FORMATS, durations=lengths)

    assert tuple(written) == FORMATS
    top = {path.name for path in (tmp_path / "out").iterdir()}
    assert top == {
        *("detections.csv", "detections.parquet", "raven", "detections.selections.txt"),
        *("audacity", "birdnet.csv", "kaleidoscope.csv", "detections.tsv"),
    }
    for name in FORMATS:
        assert len(read_detections(tmp_path / "out", name)) == len(events)
    with pytest.raises(DatasetError, match=r"several formats: csv, parquet.*format='csv'"):
        read_detections(tmp_path / "out")


def test_times_have_no_rounding_noise(tmp_path):
    noisy = events_of(("a.wav", 0.1 + 0.2, 0.1 * 7, "robin", 0.5))

    path = write_detection_csv(noisy, tmp_path / "x.csv")

    assert path.read_text().splitlines()[1] == "a.wav,0.3,0.7,robin,0.5"


def test_single_precision_scores_are_short(tmp_path):
    table = events_of(("a.wav", 0.0, 1.0, "robin", 0.9)).astype({"score": np.float32})

    path = write_birdnet_csv(table, tmp_path / "x.csv")

    assert path.read_text().splitlines()[1].split(",")[4] == "0.9"


def test_a_table_is_written_whole_or_not_at_all(tmp_path, events, monkeypatch):
    path = write_frames(events, tmp_path / "x.tsv")
    before = path.read_bytes()

    def fails(*columns):
        yield "half a line"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_lines", fails)

    with pytest.raises(OSError, match="No space left"):
        write_frames(events, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.tsv"]


@pytest.mark.parametrize("sign", ["\t", "\n", "\r"])
@pytest.mark.parametrize("name", ["raven", "raven-combined", "audacity", "frames"])
def test_a_label_that_a_format_cannot_hold_is_an_error_before_anything_is_written(
    tmp_path, name, sign
):
    odd = events_of(("a.wav", 0.0, 1.0, f"two{sign}parts", 0.5))

    with pytest.raises(DatasetError, match=r"two\\\wparts.*tab or a line end"):
        write_detections(odd, tmp_path / "out", ["csv", name])
    assert not (tmp_path / "out").exists()


@given(
    label=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    stem=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1),
)
@pytest.mark.parametrize("write", [write_detection_csv, write_birdnet_csv, write_detection_parquet])
def test_csv_and_parquet_hold_any_text(tmp_path_factory, write, label, stem):
    label = f"a{label}"
    path = (
        tmp_path_factory.mktemp("any") / f"x{'.parquet' if 'parquet' in write.__name__ else '.csv'}"
    )
    table = events_of((f"{stem}.wav", 0.0, 1.0, label, 0.5))

    found = read_detections(write(table, path))

    assert found[["file", "label"]].values.tolist() == [[f"{stem}.wav", label]]


@pytest.mark.parametrize("name", FORMATS)
def test_odd_file_names_are_printable_and_stop_nothing(tmp_path, name):
    raw = os.fsdecode(b"caf\xe9 \t\n.wav")
    row = [raw, 0.0, 1.0, "robin", 0.5]
    odd = pd.DataFrame([row], columns=list(EVENT_COLUMNS), dtype=object)  # text cannot hold it

    write_detections(odd, tmp_path / "out", name, recordings=[raw, "noon.wav"])

    (file,) = read_detections(tmp_path / "out")["file"]
    keeps = name in ("csv", "parquet", "birdnet", "kaleidoscope")
    assert os.path.basename(file) == ("caf\\xe9 \t\n.wav" if keeps else "caf\\xe9 \\t\\n.wav")
    assert printable_name(raw) == "caf\\xe9 \t\n.wav"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_time": -0.5}, r"Row 1 of the events is from -0\.5"),
        ({"end_time": 0.0}, r"from 0\.0 to 0\.0 s"),
        ({"end_time": np.nan}, "to nan s"),
        ({"end_time": np.inf}, "to inf s"),
        ({"label": 0}, "Row 1 of the events has no label but 0"),
        ({"label": "  "}, "has no label"),
        ({"file": None}, "has no file"),
        ({"score": np.inf}, "score inf"),
        ({"score": "high"}, "'score' of the events is no number"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    table = events_of(("a.wav", 0.0, 1.0, "robin", 0.5)).assign(**change)

    with pytest.raises(DatasetError, match=message):
        write_detections(table, tmp_path / "out", "csv")


def test_a_missing_column_and_an_unknown_format_are_named(tmp_path):
    table = events_of(("a.wav", 0.0, 1.0, "robin", 0.5))

    with pytest.raises(DatasetError, match="score is missing"):
        write_detection_csv(table.drop(columns="score"), tmp_path / "x.csv")
    with pytest.raises(ValueError, match="Did you mean 'audacity'"):
        write_detections(table, tmp_path, ["audacty"])
    with pytest.raises(ValueError, match="Did you mean 'raven'"):
        read_detections(tmp_path, "ravn")


@pytest.mark.slow
def test_many_events_are_written_and_read_in_seconds(tmp_path):
    rows, files = 200_000, 1000
    random = np.random.default_rng(0)
    start = random.integers(0, 3_600_000, rows) / 1000
    table = pd.DataFrame(
        {
            "file": np.repeat(
                [f"/rec/site {n % 7}/{n:04}.wav" for n in range(files)], rows // files
            ),
            "start_time": start,
            "end_time": start + 3,
            "label": random.choice(["Turdus merula_Eurasian Blackbird", "robin", "rain"], rows),
            "score": random.random(rows),
        }
    )
    durations = dict.fromkeys(table["file"].unique(), 3603.0)
    rates = dict.fromkeys(durations, 48_000)

    for name in FORMATS:
        began = time.monotonic()
        write_detections(table, tmp_path / name, name, durations=durations, sample_rates=rates)
        wrote = time.monotonic()
        if name != "audacity":  # read row by row
            assert len(read_detections(tmp_path / name)) == rows
        print(f"{name}: written in {wrote - began:.1f} s, read in {time.monotonic() - wrote:.1f} s")
        assert wrote - began < 20  # a tenth of it on an idle core


# --- our own columns ------------------------------------------------------------------------------


def test_other_columns_are_kept_in_csv_and_parquet(tmp_path):
    when = pd.Timestamp("2024-05-01 06:30", tz="Europe/Oslo")
    table = events_of(("a.wav", 0.0, 1.0, "robin", 0.5)).assign(datetime=when, station="north")

    text = write_detection_csv(table, tmp_path / "x.csv").read_text()
    typed = pd.read_parquet(write_detection_parquet(table, tmp_path / "x.parquet"))

    assert text.splitlines() == [
        "file,start_time,end_time,label,score,datetime,station",
        "a.wav,0.0,1.0,robin,0.5,2024-05-01 06:30:00+02:00,north",
    ]
    assert typed["datetime"][0] == when
    assert typed["station"][0] == "north"


def test_an_index_of_its_own_changes_nothing(tmp_path):
    table = events_of(("a.wav", 0.0, 1.0, "robin", 0.5), ("b.wav", 1.0, 2.0, "wren", 0.6))
    table = table.assign(extra=[1, 2]).iloc[::-1]

    rows = write_detection_csv(table, tmp_path / "x.csv").read_text().splitlines()[1:]

    assert rows == ["b.wav,1.0,2.0,wren,0.6,2", "a.wav,0.0,1.0,robin,0.5,1"]


# --- Raven ----------------------------------------------------------------------------------------


def test_raven_table_has_the_columns_and_values_that_raven_and_birdnet_have(tmp_path):
    recording = str(write_tone(tmp_path / "dawn.wav", seconds=3, sample_rate=48_000))
    table = events_of(
        (recording, 0.5, 2.0, "Turdus merula_Eurasian Blackbird", 0.81),
        (recording, 1, 3, "rain", 1),
    )

    (path,) = write_raven_tables(table, tmp_path / "raven")

    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert list(rows[0]) == RAVEN
    assert list(rows[0].values()) == [
        *("1", "0.5", "2.0", "Eurasian Blackbird", "Turdus merula"),
        *("Turdus merula_Eurasian Blackbird", "0.81", "Spectrogram 1", "1", "0.5", "0", "8000"),
        recording,
    ]
    assert [rows[1][name] for name in RAVEN[:6]] == ["2", "1.0", "3.0", "rain", "rain", "rain"]


@pytest.mark.parametrize("given", [True, False])
def test_the_highest_frequency_is_half_the_sample_rate_and_at_most_what_is_heard(tmp_path, given):
    low, high = (
        str(write_tone(tmp_path / f"{rate}.wav", sample_rate=rate)) for rate in (11_025, 96_000)
    )
    table = events_of((low, 0, 1, "a", 0.3), (high, 0, 1, "a", 0.3), ("gone.wav", 0, 1, "a", 0.3))
    rates = {low: 11_025, high: 96_000} if given else None

    paths = write_raven_tables(table, tmp_path / "raven", sample_rates=rates)

    frequencies = {
        path.name: pd.read_csv(path, sep="\t")["High Freq (Hz)"].tolist() for path in paths
    }
    assert frequencies == {
        "11025.wav.selections.txt": [5512.5],
        "96000.wav.selections.txt": [8000],
        "gone.wav.selections.txt": [8000],
    }


def test_a_combined_raven_table_counts_on_across_all_recordings(tmp_path):
    table = events_of(
        ("c.wav", 1, 2, "x", 0.5), ("a.wav", 3, 4, "x", 0.6), ("c.wav", 0, 1, "y", 0.7)
    )
    durations = {"a.wav": 60.25, "b.wav": 30.0, "c.wav": 10.0}

    path = write_raven_combined(
        table, tmp_path / "all.txt", recordings=["a.wav", "b.wav", "c.wav"], durations=durations
    )

    rows = pd.read_csv(path, sep="\t")
    assert list(rows.columns) == RAVEN
    assert rows["Selection"].tolist() == [1, 2, 3]
    assert rows["Begin Time (s)"].tolist() == [3.0, 91.25, 90.25]
    assert rows["End Time (s)"].tolist() == [4.0, 92.25, 91.25]
    assert rows["File Offset (s)"].tolist() == [3.0, 1.0, 0.0]
    assert [os.path.basename(file) for file in rows["Begin Path"]] == ["a.wav", "c.wav", "c.wav"]


def test_lengths_that_are_not_given_are_looked_up(tmp_path, caplog):
    for name in ("a.wav", "c.wav"):
        write_tone(tmp_path / name, seconds=2.5)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    files = [str(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]
    table = events_of((files[2], 1.0, 2.0, "x", 0.5))

    with caplog.at_level(logging.WARNING):
        path = write_raven_combined(table, tmp_path / "all.txt", recordings=files)

    assert pd.read_csv(path, sep="\t")["Begin Time (s)"].tolist() == [3.5]
    assert "b.wav" in caplog.text
    with pytest.raises(AudioError, match=r"b\.wav"):
        write_raven_combined(
            events_of((files[1], 0, 1, "x", 0.5), (files[2], 0, 1, "x", 0.5)), tmp_path / "no.txt"
        )
    assert not (tmp_path / "no.txt").exists()


def test_raven_tables_are_annotations_too(tmp_path):
    for name in ("a/dawn.wav", "b/dawn.wav"):
        write_tone(tmp_path / "rec" / name, seconds=3)
    heard, quiet = (str(tmp_path / "rec" / name) for name in ("a/dawn.wav", "b/dawn.wav"))
    table = events_of((heard, 0.5, 2.0, "rain", 0.9))

    write_raven_tables(table, tmp_path / "raven", recordings=[heard, quiet])

    annotations = read_annotations(tmp_path / "raven", audio_dir=tmp_path / "rec")
    assert annotations.table[list(EVENT_COLUMNS)].values.tolist() == table.values.tolist()
    assert set(annotations.recordings) == {heard, quiet}


# --- one table per recording ----------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".tables.json"
    )


def test_tables_mirror_the_folders_of_the_recordings(tmp_path):
    recordings = ["/rec/a/dawn.wav", "/rec/b/dawn.wav", "/rec/b/dawn.flac"]

    write_audacity_tables(events_of(), tmp_path / "below", recordings=recordings)
    write_audacity_tables(
        events_of(), tmp_path / "rooted", recordings=[*recordings, "/old/dawn.wav"], root="/rec/b"
    )

    assert names_in(tmp_path / "below") == ["a/dawn.wav.txt", "b/dawn.flac.txt", "b/dawn.wav.txt"]
    assert names_in(tmp_path / "rooted") == [
        *("dawn.flac.txt", "dawn.wav.txt", "old/dawn.wav.txt", "rec/a/dawn.wav.txt"),
    ]


def test_recordings_of_one_name_have_tables_of_their_own(tmp_path):
    recordings = ["/rec/dawn.wav", "/rec/Dawn.wav", "/rec/rec/Dawn.wav", "/rec/rec/../dawn.wav"]
    table = events_of(*((file, 0, n + 1, "x", 0.5) for n, file in enumerate(recordings)))

    paths = write_audacity_tables(table, tmp_path / "labels", root="/rec/rec")

    folded = {str(path).casefold() for path in paths}
    assert len(folded) == 3  # the last is the first, spelled otherwise
    found = read_detections(tmp_path / "labels")
    assert sorted(found["end_time"]) == [1, 2, 3, 4]
    assert sorted(found["file"]) == ["Dawn.wav", "rec/Dawn.wav", "rec/dawn.wav", "rec/dawn.wav"]


def test_relative_and_absolute_names_are_one_recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = events_of(("dawn.wav", 0, 1, "x", 0.5))

    paths = write_raven_tables(table, "raven", recordings=[str(tmp_path / "dawn.wav")])

    assert [path.name for path in paths] == ["dawn.wav.selections.txt"]
    assert read_detections("raven")["file"].tolist() == [str(tmp_path / "dawn.wav")]


def test_a_very_long_name_has_a_table(tmp_path):
    recording = f"/rec/{'é' * 120}.wav"

    (path,) = write_raven_tables(events_of((recording, 0, 1, "x", 0.5)), tmp_path / "raven")

    assert len(os.fsencode(path.name)) < 230
    assert read_detections(path)["file"].tolist() == [recording]


def test_tables_of_an_earlier_run_go_and_what_others_wrote_stays(tmp_path):
    folder = tmp_path / "raven"
    write_raven_tables(
        events_of(("/rec/a/1.wav", 0, 1, "x", 0.5), ("/rec/b/2.wav", 0, 1, "x", 0.5)), folder
    )
    (folder / "b" / "notes.txt").write_text("mine")
    (folder / "mine.wav.selections.txt").write_text("mine")

    write_raven_tables(events_of(), folder, recordings=["/rec/c/3.wav", "/rec/d/4.wav"])

    assert names_in(folder) == [
        *("b/notes.txt", "c/3.wav.selections.txt", "d/4.wav.selections.txt"),
        "mine.wav.selections.txt",
    ]
    assert not (folder / "a").exists()


def test_a_run_stopped_between_tables_leaves_none_that_the_next_does_not_know(
    tmp_path, monkeypatch
):
    table = events_of(("/rec/1.wav", 0, 1, "x", 0.5), ("/rec/2.wav", 0, 1, "x", 0.5))
    write = writing._raven_lines

    def stops(grouped, recording, *rest):
        if recording.endswith("2.wav"):
            raise KeyboardInterrupt
        return write(grouped, recording, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_raven_lines", stops)
        with pytest.raises(KeyboardInterrupt):
            write_raven_tables(table, tmp_path)
    assert names_in(tmp_path) == ["1.wav.selections.txt"]

    write_raven_tables(events_of(), tmp_path, recordings=["/rec/3.wav"])

    assert names_in(tmp_path) == ["3.wav.selections.txt"]


def test_a_list_that_names_files_elsewhere_removes_nothing_there(tmp_path):
    outside = tmp_path / "precious.txt"
    outside.write_text("mine")
    folder = tmp_path / "raven"
    folder.mkdir()
    (folder / ".tables.json").write_text(
        json.dumps({"tables": ["../precious.txt", str(outside), "a/../../precious.txt"]})
    )

    write_raven_tables(events_of(), folder)

    assert outside.read_text() == "mine"


def test_a_damaged_list_is_told_and_removes_nothing(tmp_path, caplog):
    write_audacity_tables(events_of(), tmp_path, recordings=["/rec/a.wav"])
    (tmp_path / ".tables.json").write_text("{")

    write_audacity_tables(events_of(), tmp_path, recordings=["/rec/b.wav"])

    assert names_in(tmp_path) == ["a.wav.txt", "b.wav.txt"]
    assert "cannot be read" in caplog.text


# --- Audacity, BirdNET, Kaleidoscope, DCASE --------------------------------------------------------


def test_audacity_labels_have_three_cells_and_a_score_only_if_asked(tmp_path):
    table = events_of(("/rec/a.wav", 0.5, 2, "rain [x]", 0.91234), ("/rec/a.wav", 3, 4, "wren", 1))

    (plain,) = write_audacity_tables(table, tmp_path / "plain")
    (scored,) = write_audacity_tables(table, tmp_path / "scored", scores=True)

    assert plain.read_text() == "0.5\t2.0\train [x]\n3.0\t4.0\twren\n"
    assert scored.read_text() == "0.5\t2.0\train [x] [0.912]\n3.0\t4.0\twren [1.000]\n"
    found = read_detections(scored)
    assert found["label"].tolist() == ["rain [x]", "wren"]
    assert found["score"].tolist() == [0.912, 1.0]


def test_audacity_labels_know_their_recording_where_it_is(tmp_path):
    recording = write_tone(tmp_path / "rec" / "a" / "dawn.wav")
    write_tone(tmp_path / "rec" / "b" / "dawn.wav")
    files = [str(recording), str(tmp_path / "rec" / "b" / "dawn.wav")]

    write_audacity_tables(
        events_of((files[0], 0, 0.5, "x", 0.5)), tmp_path / "out", recordings=files
    )

    found = read_detections(tmp_path / "out", audio_dir=tmp_path / "rec")
    assert found["file"].tolist() == [files[0]]


def test_birdnet_csv_has_its_columns(tmp_path):
    table = events_of(
        ("a, b.wav", 0, 3, "Turdus merula_Eurasian Blackbird", 0.8123), ("a.wav", 3, 6, "rain", 0.5)
    )

    rows = pd.read_csv(write_birdnet_csv(table, tmp_path / "x.csv"))

    assert list(rows.columns) == BIRDNET
    assert rows.values.tolist() == [
        [0.0, 3.0, "Turdus merula", "Eurasian Blackbird", 0.8123, "a, b.wav"],
        [3.0, 6.0, "rain", "rain", 0.5, "a.wav"],
    ]


def test_kaleidoscope_table_has_its_columns_and_a_distance(tmp_path):
    table = events_of(
        ("/data/site 1/rec1.wav", 0.1, 0.4, "robin", 0.9), ("/rec2.wav", 2, 3, "wren", 0.25)
    )

    rows = pd.read_csv(write_kaleidoscope_csv(table, tmp_path / "x.csv"), keep_default_na=False)

    assert list(rows.columns) == KALEIDOSCOPE
    assert rows.values.tolist() == [
        ["/data", "site 1", "rec1.wav", 0.1, 0.3, "robin", 0.1],
        ["/", "", "rec2.wav", 2.0, 1.0, "wren", 0.75],
    ]
    same_events(read_detections(tmp_path / "x.csv"), table)


def test_frames_have_the_columns_of_dcase(tmp_path):
    table = events_of(("a.wav", 0.16, 0.48, "dog", 0.5))

    path = write_frames(table, tmp_path / "x.tsv")

    assert path.read_text() == "filename\tonset\toffset\tevent_label\na.wav\t0.16\t0.48\tdog\n"


@pytest.mark.parametrize("label", [*ODD_LABELS, "Homo sapiens_Homo sapiens", "_x", "x_", "Ab cd_"])
def test_the_two_names_of_a_label_give_it_back(label):
    assert join_names(*split_label(label)) == label


# --- tables of other programs ---------------------------------------------------------------------


def test_birdnet_analyzers_own_tables_are_read(tmp_path):
    header = "\t".join(RAVEN)
    rows = [
        "1\t0.0\t3.0\tEurasian Blackbird\tTurdus merula\teurbla\t0.8123\tSpectrogram 1\t1\t0.0\t0\t15000\t/d/1.wav",
        "2\t63.0\t66.0\tEuropean Robin\tErithacus rubecula\teurrob1\t0.44\tSpectrogram 1\t1\t3.0\t0\t15000\t/d/2.wav",
    ]
    (tmp_path / "BirdNET_SelectionTable.txt").write_text("\n".join([header, *rows]) + "\n")

    same_events(
        read_detections(tmp_path / "BirdNET_SelectionTable.txt"),
        events_of(
            ("/d/1.wav", 0.0, 3.0, "Turdus merula_Eurasian Blackbird", 0.8123),
            ("/d/2.wav", 3.0, 6.0, "Erithacus rubecula_European Robin", 0.44),
        ),
    )


def test_older_birdnet_tables_are_read_and_nocall_is_no_event(tmp_path):
    header = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
        "Common Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)"
    )
    (tmp_path / "a.txt").write_text(
        f"{header}\n1\tSpectrogram 1\t1\t0\t3\t0\t15000\tnocall\tnocall\t1.0\t/d/1.wav\t0\n"
        "2\tSpectrogram 1\t1\t3\t6\t0\t15000\tWren\twren\t0.7\t/d/1.wav\t3\n"
    )
    (tmp_path / "a.csv").write_text(
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,common_name,confidence,lat,lon\n"
        "/d,s,1.wav,3.0,3.0,Troglodytes troglodytes,Wren,0.7,-1,-1\n"
    )

    same_events(read_detections(tmp_path / "a.txt"), events_of(("/d/1.wav", 3.0, 6.0, "Wren", 0.7)))
    same_events(
        read_detections(tmp_path / "a.csv"),
        events_of(("/d/s/1.wav", 3.0, 6.0, "Troglodytes troglodytes_Wren", 0.7)),
    )


def test_birdnet_parquet_is_read(tmp_path):
    pd.DataFrame(
        [[0.0, 3.0, "Turdus merula", "Blackbird", 0.8, "/d/1.wav"]], columns=BIRDNET
    ).to_parquet(tmp_path / "x.parquet")

    same_events(
        read_detections(tmp_path / "x.parquet"),
        events_of(("/d/1.wav", 0.0, 3.0, "Turdus merula_Blackbird", 0.8)),
    )


def test_kaleidoscopes_own_clusters_are_read(tmp_path):
    (tmp_path / "cluster.csv").write_bytes(
        b"INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,DATE,TOP1MATCH*,TOP1DIST,MANUAL ID\r\n"
        b"D:\\bats,night1,S4U1_20240701_213000.wav,0,10.5,0.75,2024-07-01,CONI,1.25,\r\n"
    )

    found = read_detections(tmp_path / "cluster.csv")

    assert found.values.tolist() == [
        ["D:\\bats\\night1\\S4U1_20240701_213000.wav", 10.5, 11.25, "CONI", -0.25]
    ]


def test_ravens_own_table_is_about_the_recording_of_its_name(tmp_path):
    (tmp_path / "dawn.Table.1.selections.txt").write_text(
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
        "1\tWaveform 1\t1\t0.25\t0.75\t\t\tGreat Tit\n"
        "1\tSpectrogram 1\t1\t0.25\t0.75\t2000\t6000\tGreat Tit\n"
    )
    expected = ["dawn", 0.25, 0.75, "Great Tit"]

    alone = read_detections(tmp_path / "dawn.Table.1.selections.txt")
    recording = str(write_tone(tmp_path / "dawn.wav"))
    beside = read_detections(tmp_path / "dawn.Table.1.selections.txt")

    assert alone.values.tolist()[0][:4] == expected
    assert beside["file"].tolist() == [recording]


def test_our_table_saved_by_raven_with_a_row_per_view_has_each_event_once(tmp_path):
    (path,) = write_raven_tables(events_of(("/r/a.wav", 0, 1, "x", 0.5)), tmp_path / "raven")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].replace("Spectrogram 1", "Waveform 1")]) + "\n")

    assert len(read_detections(path)) == 1


def test_a_csv_with_other_names_is_read(tmp_path):
    (tmp_path / "x.csv").write_text(
        "File;Start (sec);End (sec);Class;Score\nrec.wav;1,5;2,5;Tit;0,42\n"
    )

    same_events(read_detections(tmp_path / "x.csv"), events_of(("rec.wav", 1.5, 2.5, "Tit", 0.42)))


def test_a_folder_of_tables_is_read_and_what_is_none_is_told(tmp_path, caplog):
    table = events_of(("/r/a.wav", 0, 1, "x", 0.5), ("/r/b.wav", 0, 1, "y", 0.5))
    (tmp_path / "b").mkdir()
    write_birdnet_csv(table[:1], tmp_path / "a.BirdNET.results.csv")
    write_birdnet_csv(table[1:], tmp_path / "b" / "b.BirdNET.results.csv")
    (tmp_path / "birdnet.analyze-params.csv").write_text("Parameter,Value\nModel,V2.4\n")

    same_events(read_detections(tmp_path), table)
    assert "birdnet.analyze-params.csv" in caplog.text


def test_tables_of_a_folder_are_read_as_each_alone(tmp_path):
    table = events_of(("/r/a.wav", 0, 1, "x", 0.5), ("/r/a.wav", 0, 1, "x", 0.5))
    for name in ("a.txt", "b.txt"):  # the same events twice: so they are in each
        write_raven_combined(table, tmp_path / "raven" / name)
    (tmp_path / "raven" / "c.txt").write_text("Begin Time (s)\tEnd Time (s)\tSpecies\n0\t2\tTit\n")
    last = tmp_path / "raven" / "d.txt"
    last.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "raven" / "a.txt").read_bytes().rstrip(b"\n"))

    found = read_detections(tmp_path / "raven")

    assert sorted(found["label"]) == ["Tit", *["x"] * 6]
    last.write_text(last.read_text(encoding="utf-8-sig").replace("\t0.5\t", "\thalf\t"))
    with pytest.raises(DatasetError, match=r"d\.txt, row 1: .*'Confidence', found 'half'"):
        read_detections(tmp_path / "raven")


def test_a_quotation_mark_without_its_partner_swallows_no_other_table(tmp_path):
    for name in ("a", "b", "c"):
        write_detection_csv(events_of((f"{name}.wav", 0, 1, "x", 0.5)), tmp_path / f"{name}.csv")
    path = tmp_path / "b.csv"
    path.write_text(path.read_text().replace(",x,", ',"x,'))

    with pytest.raises(DatasetError, match=r"b\.csv"):
        read_detections(tmp_path)


def test_a_folder_with_two_formats_is_not_counted_twice(tmp_path):
    table = events_of(("/r/a.wav", 0, 1, "x", 0.5))
    write_birdnet_csv(table, tmp_path / "one.csv")
    write_frames(table, tmp_path / "two.tsv")

    with pytest.raises(DatasetError, match="several formats: birdnet, frames"):
        read_detections(tmp_path)
    same_events(read_detections(tmp_path, "birdnet"), table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "no known format.*'a,b'"),
        (
            "x.csv",
            "file,start_time,end_time,label,score\na.wav,0,1,x,1\na.wav,zero,1,x,1\n",
            "row 2",
        ),
        (
            "x.csv",
            "file,start_time,end_time,label,score\na.wav,2,1,x,1\n",
            "row 1 is not from a time",
        ),
        ("x.csv", "file,start_time,end_time,label,score\na.wav,0,inf,x,1\n", "no finite number"),
        (
            "x.csv",
            "file,start_time,end_time,label,score\na.wav,0,1,,1\n",
            "nothing in the column 'label'",
        ),
        ("x.csv", "file,start_time,end_time,label,score\na.wav,0,1,\xe9,1\n", "not in UTF-8"),
        ("x.parquet", "no", "cannot be read as Parquet"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))

    with pytest.raises(DatasetError, match=message):
        read_detections(tmp_path / name)


def test_a_table_in_another_format_than_asked_for_is_an_error(tmp_path):
    path = write_birdnet_csv(events_of(("/r/a.wav", 0, 1, "x", 0.5)), tmp_path / "x.csv")

    with pytest.raises(DatasetError, match="not in the format raven but birdnet"):
        read_detections(path, "raven")
    with pytest.raises(DatasetNotFoundError, match="no table or folder"):
        read_detections(tmp_path / "none.csv")
    with pytest.raises(DatasetError, match="no table of detections"):
        read_detections(tmp_path, "audacity")


def test_real_recordings_are_placed_one_after_another(tmp_path, shared_data):
    files = [str(shared_data / "field" / name) for name in ("1min.wav", "great_plains_toad.wav")]
    empty = str(shared_data / "field" / "empty_2c.wav")  # holds no samples: it takes no time
    table = events_of(*((file, 0.25, 0.75, "toad", 0.5) for file in files))

    write_detections(table, tmp_path, ["raven-combined", "raven"], recordings=[*files, empty])

    rows = pd.read_csv(tmp_path / "detections.selections.txt", sep="\t")
    length = probe_audio(files[0]).duration_s
    np.testing.assert_allclose(rows["Begin Time (s)"], [0.25, length + 0.25], atol=1e-6, rtol=0)
    same_events(read_detections(tmp_path, "raven-combined"), table)
    same_events(read_detections(tmp_path, "raven"), table)
