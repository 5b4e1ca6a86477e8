"""Reading tables of annotations and writing them again."""

import math
import wave
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beats_trainer.datasets import (
    Annotations,
    read_annotations,
    window_clips,
    write_annotation_csv,
    write_audacity,
    write_raven,
)
from beats_trainer.errors import DatasetError, DatasetNotFoundError

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def write_recording(path: Path, seconds: float = 10.0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(1000)
        file.writeframes(b"\1\0" * round(seconds * 1000))
    return str(path)


def write_raven_rows(path: Path, *rows: str, header: str = f"{RAVEN}\tAnnotation") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def rows_of(annotations: Annotations) -> list[tuple]:
    table = annotations.table
    return list(
        zip(
            (Path(file).name for file in table["file"]),
            table["start_time"],
            table["end_time"],
            table["label"],
            strict=True,
        )
    )


@pytest.fixture
def dawn(tmp_path) -> str:
    """A recording of 10 s."""
    return write_recording(tmp_path / "dawn.wav")


def test_raven_table_gives_seconds_labels_and_frequencies(tmp_path, dawn):
    table = write_raven_rows(
        tmp_path / "dawn.Table.1.selections.txt",
        "1\tSpectrogram 1\t1\t0.5\t1.25\t1000.0\t2500.5\trobin",
        '2\tSpectrogram 1\t1\t3\t4\t\t\tcalls "loud"',
    )

    annotations = read_annotations(table)

    assert rows_of(annotations) == [
        ("dawn.wav", 0.5, 1.25, "robin"),
        ("dawn.wav", 3.0, 4.0, 'calls "loud"'),
    ]
    assert annotations.table["file"][0] == dawn
    assert annotations.table["low_freq"][0] == 1000.0
    assert annotations.table["high_freq"][0] == 2500.5
    assert math.isnan(annotations.table["high_freq"][1])
    assert annotations.recordings == {dawn: 10.0}


@pytest.mark.parametrize(
    ("table", "recording"),
    [
        ("dawn.Table.1.selections.txt", "dawn.wav"),
        ("dawn.selections.txt", "dawn.WAV"),
        ("dawn.txt", "Dawn.Flac"),
        ("dawn.BirdNET.selection.table.txt", "dawn.mp3"),
        ("dawn.wav.txt", "dawn.wav"),
        ("site.1.Table.2.selections.txt", "site.1.wav"),
    ],
)
def test_recording_is_found_by_the_tables_name(tmp_path, table, recording):
    file = write_recording(tmp_path / recording)
    write_recording(tmp_path / "site.wav")  # the shorter name must not win
    path = write_raven_rows(tmp_path / table, "1\tSpectrogram 1\t1\t0\t1\t\t\trobin")

    assert list(read_annotations(path).recordings) == [file]


def test_waveform_rows_of_raven_are_the_same_selection(tmp_path, dawn):
    table = write_raven_rows(
        tmp_path / "dawn.txt",
        "1\tWaveform 1\t1\t0.5\t1.25\t0.0\t8000.0\trobin",
        "1\tSpectrogram 1\t1\t0.5\t1.25\t1000.0\t2500.0\trobin",
        "2\tWaveform 1\t1\t3\t4\t\t\twren",
        "3\tSpectrogram 1\t1\t3\t4\t\t\twren",
    )

    annotations = read_annotations(table)

    assert [row[3] for row in rows_of(annotations)] == ["robin", "wren", "wren"]
    assert annotations.table["low_freq"][0] == 1000.0


def test_file_offset_is_the_time_in_tables_over_several_recordings(tmp_path):
    for name in ("a.wav", "b.wav"):
        write_recording(tmp_path / "sound" / name)
    table = write_raven_rows(
        tmp_path / "week.txt",
        "1\tSpectrogram 1\t1\t2.0\t3.0\tC:\\card\\a.wav\t2.0\trobin",
        "2\tSpectrogram 1\t1\t11.3\t12.4\tC:\\card\\B.WAV\t1.3\twren",
        header="Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin Path\t"
        "File Offset (s)\tAnnotation",
    )

    annotations = read_annotations(table, audio_dir=tmp_path / "sound")

    assert rows_of(annotations) == [("a.wav", 2.0, 3.0, "robin"), ("b.wav", 1.3, 2.4, "wren")]


def test_several_recordings_without_file_offsets_are_refused_unless_the_start_column_is_named(
    tmp_path,
):
    for name in ("a.wav", "b.wav"):
        write_recording(tmp_path / name)
    table = write_raven_rows(
        tmp_path / "week.txt",
        "2.0\t3.0\ta.wav\trobin",
        "1.3\t2.4\tb.wav\twren",
        header="Begin Time (s)\tEnd Time (s)\tBegin File\tSpecies",
    )

    with pytest.raises(DatasetError, match=r"2 recordings.*File Offset"):
        read_annotations(table)

    assert len(read_annotations(table, start_column="Begin Time (s)")) == 2


@pytest.mark.parametrize(
    "column",
    ["Annotation", "species", "Label", "TAG", "Class", "Call Type", "Common Name", "call_type"],
)
def test_usual_names_of_the_label_column_are_known(tmp_path, dawn, column):
    table = write_raven_rows(
        tmp_path / "dawn.txt", "1\tS\t1\t0\t1\t\t\t007", header=f"{RAVEN}\t{column}"
    )

    assert read_annotations(table).labels == ["007"]


def test_of_two_label_columns_one_must_be_named_unless_they_agree_or_one_is_blank(tmp_path, dawn):
    header = f"{RAVEN}\tSpecies\tCall Type"
    table = write_raven_rows(tmp_path / "dawn.txt", "1\tS\t1\t0\t1\t\t\trobin\tsong", header=header)

    with pytest.raises(DatasetError, match=r"'Call Type'.*label_column="):
        read_annotations(table)

    assert read_annotations(table, label_column="call type").labels == ["song"]
    write_raven_rows(table, "1\tS\t1\t0\t1\t\t\t\tsong", header=header)
    assert read_annotations(table).labels == ["song"]


def test_the_table_of_birdnet_is_read_with_common_names_and_confidence(tmp_path, dawn):
    table = write_raven_rows(
        tmp_path / "dawn.BirdNET.selection.table.txt",
        f"1\tSpectrogram 1\t1\t3.0\t6.0\t0\t15000\tEuropean Robin\teurrob1\t0.87\t{dawn}\t3.0",
        header=f"{RAVEN}\tCommon Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)",
    )

    annotations = read_annotations(table)

    assert rows_of(annotations) == [("dawn.wav", 3.0, 6.0, "European Robin")]
    assert annotations.table["score"].tolist() == [0.87]


def test_an_unknown_label_column_is_answered_with_the_nearest_and_all_there_are(tmp_path, dawn):
    table = write_raven_rows(tmp_path / "dawn.txt", header=f"{RAVEN}\tBird Song")

    with pytest.raises(DatasetError, match="no column known to hold the label"):
        read_annotations(table)
    with pytest.raises(DatasetError, match=r"'Bird Sog'. Did you mean 'Bird Song'\?.*Selection"):
        read_annotations(table, label_column="Bird Sog")


def test_audacity_labels_may_have_a_second_line_of_frequencies(tmp_path, dawn):
    table = tmp_path / "dawn.txt"
    table.write_text(
        "0.5\t1.250000\trobin\n\\\t1000.5\t-1.000000\n2\t3\tNA\n", encoding="utf-8-sig"
    )

    annotations = read_annotations(table)

    assert rows_of(annotations) == [
        ("dawn.wav", 0.5, 1.25, "robin"),
        ("dawn.wav", 2.0, 3.0, "NA"),
    ]
    assert annotations.table["low_freq"][0] == 1000.5
    assert "high_freq" not in annotations.table  # it was undefined everywhere
    assert math.isnan(annotations.table["low_freq"][1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filename,start_time,end_time,category\ndawn.wav,0.5,2,robin\n", ("robin", 0.5, 2.0)),
        ("File;Start (s);End (s);Common name\r\ndawn.wav;0,5;2,0;robin\r\n", ("robin", 0.5, 2.0)),
        ("filename\tonset\toffset\tevent_label\ndawn.wav\t0.5\t2\trobin", ("robin", 0.5, 2.0)),
        ('path,start,end,label\ndawn.wav,.5,2e0,"robin, song"\n', ("robin, song", 0.5, 2.0)),
        ("start,end,species\n0.5,2,robin\n", ("robin", 0.5, 2.0)),
        ("Begin Time (s),End Time (s),Begin File,Species\n0.5,2,dawn,robin\n", ("robin", 0.5, 2.0)),
    ],
)
def test_csv_with_usual_columns_needs_no_settings(tmp_path, dawn, text, expected):
    table = tmp_path / "dawn.csv"
    table.write_bytes(text.encode())

    annotations = read_annotations(table)

    label, start, end = expected
    assert rows_of(annotations) == [("dawn.wav", start, end, label)]


def test_csv_columns_can_be_named(tmp_path, dawn):
    table = tmp_path / "list.csv"
    table.write_text("which,from,until,what,label\ndawn.wav,1,2,wren,x\n")

    annotations = read_annotations(
        table, file_column="which", start_column="from", end_column="until", label_column="what"
    )

    assert rows_of(annotations) == [("dawn.wav", 1.0, 2.0, "wren")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dawn.txt", ""),
        ("dawn.selections.txt", f"{RAVEN}\tAnnotation\n"),
        ("dawn.csv", "start,end,label\n"),
        ("any.csv", "file,start,end,label\ndawn.wav,,,\n"),
    ],
)
def test_a_recording_with_an_empty_table_is_annotated_with_nothing(tmp_path, dawn, name, text):
    (tmp_path / name).write_text(text)

    annotations = read_annotations(tmp_path / name)

    assert len(annotations) == 0
    assert annotations.recordings == {dawn: 10.0}
    assert window_clips(annotations)["category"].tolist() == [[], []]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("4.0\t3.0\trobin", "end must be after the start"),
        ("3.0\t3.0\trobin", "is a point"),
        ("-1.0\t3.0\trobin", "count from 0"),
        ("1.0\tx\trobin", "expected a number in the end, found 'x'"),
        ("1.0\tnan\trobin", "expected a number"),
        ("1,5\t2,5\trobin", "decimals with a point"),
        ("1.0\t2.0\t ", "no label"),
        ("1.0\t2.0", "no label"),
        ("9.0\t10.06\trobin", r"from 9.0 to 10.06 s, and .*dawn.wav is 10.000 s long"),
        ("10.01\t10.02\trobin", "10.000 s long"),
    ],
)
def test_a_wrong_row_is_named_with_its_file_and_line(tmp_path, dawn, row, problem):
    table = tmp_path / "dawn.txt"
    table.write_text(f"0.5\t1.0\twren\n\n{row}\n")

    with pytest.raises(DatasetError, match=rf"dawn\.txt, line 3: .*{problem}"):
        read_annotations(table)


def test_a_wrong_row_of_a_table_with_columns_names_the_column(tmp_path, dawn):
    table = write_raven_rows(tmp_path / "dawn.txt", "1\tS\t1\t0\tend\t\t\trobin")
    with pytest.raises(DatasetError, match=r"dawn\.txt, line 2: .*'End Time \(s\)', found 'end'"):
        read_annotations(table)
    write_raven_rows(table, "1\tS\t1\t0\t1\tlow\t\trobin")
    with pytest.raises(DatasetError, match=r"'Low Freq \(Hz\)', found 'low'"):
        read_annotations(table)
    write_raven_rows(table, "1\tS\t1\t0\t1\t\t\trobin\tmore")
    with pytest.raises(DatasetError, match=r"line 2: has 9 cells, and the header has 8"):
        read_annotations(table)


def test_an_end_just_past_the_recordings_is_cut_back(tmp_path, dawn):
    (tmp_path / "dawn.txt").write_text("9.0\t10.04\trobin\n")

    assert rows_of(read_annotations(tmp_path / "dawn.txt")) == [("dawn.wav", 9.0, 10.0, "robin")]


def test_a_recording_that_is_not_there_is_an_error_that_says_where_it_was_looked_for(tmp_path):
    table = write_raven_rows(tmp_path / "dusk.selections.txt")
    listed = tmp_path / "list.csv"
    listed.write_text("file,start,end,label\ndusk.wav,0,1,robin\n")
    (tmp_path / "sound").mkdir()

    with pytest.raises(DatasetError, match=rf"'dusk'.*Looked in {tmp_path}.*audio_dir="):
        read_annotations(table)
    with pytest.raises(DatasetError, match=rf"line 2: .*'dusk.wav'.*below {tmp_path / 'sound'}"):
        read_annotations(listed, audio_dir=tmp_path / "sound")


def test_a_table_that_fits_two_recordings_is_an_error(tmp_path, dawn):
    (tmp_path / "dawn.txt").write_text("0\t1\trobin\n")
    write_recording(tmp_path / "deep" / "1" / "noon.wav")
    write_recording(tmp_path / "deep" / "2" / "noon.wav")
    (tmp_path / "noon.txt").write_text("0\t1\trobin\n")
    (tmp_path / "list.csv").write_text("file,start,end,label\nnoon.wav,0,1,robin\n")
    for table in ("noon.txt", "list.csv"):
        with pytest.raises(DatasetError, match=r"2 recordings: .*1/noon.wav, .*2/noon.wav"):
            read_annotations(tmp_path / table, audio_dir=tmp_path / "deep")

    write_recording(tmp_path / "dawn.mp3")
    with pytest.raises(DatasetError, match=r"dawn.txt may be about any of 2 recordings"):
        read_annotations(tmp_path / "dawn.txt")


def test_a_folder_gives_all_its_tables_and_says_what_it_leaves_out(tmp_path):
    for place in ("north", "south"):
        write_recording(tmp_path / "sound" / place / "dawn.wav", 5.0)
        table = tmp_path / "tables" / place / "dawn.txt"
        table.parent.mkdir(parents=True)
        table.write_text(f"0\t1\t{place}\n")
    write_raven_rows(
        tmp_path / "tables" / "north" / "dawn.Table.1.selections.txt",
        "1\tS\t1\t2\t3\t\t\trobin",
    )
    (tmp_path / "tables" / "readme.txt").write_text("Annotated in May.\n")

    with pytest.warns(UserWarning, match=r"1 of 4 files are left out.*readme.txt"):
        annotations = read_annotations(tmp_path / "tables", audio_dir=tmp_path / "sound")

    found = {
        (Path(file).parent.name, label)
        for file, label in zip(annotations.table["file"], annotations.table["label"], strict=True)
    }
    assert found == {("north", "north"), ("north", "robin"), ("south", "south")}
    assert list(annotations.recordings.values()) == [5.0, 5.0]


def test_a_folder_does_not_leave_out_a_table_whose_recording_is_missing(tmp_path, dawn):
    (tmp_path / "dawn.txt").write_text("0\t1\trobin\n")
    (tmp_path / "dusk.txt").write_text("0\t1\trobin\n")

    with pytest.raises(DatasetError, match=r"dusk\.txt"):
        read_annotations(tmp_path)


def test_sources_that_hold_no_table_are_errors(tmp_path, dawn):
    with pytest.raises(DatasetNotFoundError, match="no table or folder"):
        read_annotations(tmp_path / "dawn.csv")
    with pytest.raises(DatasetError, match="no table of annotations in"):
        read_annotations(tmp_path)
    (tmp_path / "dawn.txt").write_bytes(b"0\t1\t\xe4\n")
    with pytest.raises(DatasetError, match="not in UTF-8"):
        read_annotations([tmp_path / "dawn.txt"])
    with pytest.raises(DatasetError, match="None of 1 files"):
        read_annotations(tmp_path)
    (tmp_path / "dawn.txt").write_text("notes\n")
    with pytest.raises(DatasetError, match="no column known to hold the start"):
        read_annotations(tmp_path / "dawn.txt")
    with pytest.raises(DatasetNotFoundError, match="audio_dir"):
        read_annotations(tmp_path, audio_dir=tmp_path / "none")
    with pytest.raises(ValueError, match="'textgrid'"):
        read_annotations(tmp_path, format="textgrid")


def test_annotations_of_ones_own_are_checked():
    table = pd.DataFrame({"file": ["a"], "start_time": [1.0], "end_time": [2.0], "label": ["x"]})

    with pytest.raises(DatasetError, match="not among the recordings: a"):
        Annotations(table, {})
    with pytest.raises(DatasetError, match=r"Row 1 .* outside a, which is 1.5 s"):
        Annotations(table, {"a": 1.5})
    with pytest.raises(DatasetError, match="end_time is missing"):
        Annotations(table.drop(columns="end_time"), {"a": 3.0})


# --- Writing -----------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)


@st.composite
def annotation_rows(draw, files=("a.wav",)):
    """Rows inside recordings of 10 s, with times of up to 17 digits."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.floats(0, 9, allow_subnormal=False))
        end = start + draw(st.floats(0.001, 1.0))
        rows.append(
            {
                "file": draw(st.sampled_from(files)),
                "start_time": start,
                "end_time": min(end, 10.0),
                "label": draw(TEXT),
                "low_freq": draw(st.floats(0, 1e5) | st.just(math.nan)),
                "high_freq": draw(st.floats(0, 1e5)),
                "score": draw(st.floats(-5, 1)),
            }
        )
    return pd.DataFrame(rows)


# The folder is the same for all examples on purpose: each writes anew what it reads.
SAME_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def placed(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    for name in ("a.wav", "b.wav"):
        if not (folder / name).exists():
            write_recording(folder / name)
    return table.assign(file=[str(folder / name) for name in table["file"]])


def same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    filled = [name for name in expected.columns if expected[name].notna().any()]
    pd.testing.assert_frame_equal(table, expected[filled], check_exact=True, check_dtype=False)


@SAME_FOLDER
@given(table=annotation_rows(files=("a.wav", "b.wav")))
def test_raven_is_read_as_it_was_written(tmp_path, table):
    table = placed(table, tmp_path)

    same(read_annotations(write_raven(table, tmp_path / "all.txt")).table, table)


@SAME_FOLDER
@given(table=annotation_rows())
def test_audacity_is_read_as_it_was_written(tmp_path, table):
    table = placed(table, tmp_path)

    written = write_audacity(table, tmp_path / "a.txt")

    same(read_annotations(written).table, table.drop(columns="score"))


@SAME_FOLDER
@given(table=annotation_rows(files=("a.wav", "b.wav")))
def test_csv_is_read_as_it_was_written(tmp_path, table):
    table = placed(table, tmp_path)

    same(read_annotations(write_annotation_csv(table, tmp_path / "all.csv")).table, table)


def test_csv_keeps_the_recordings_with_nothing_in_them(tmp_path, dawn):
    noon = write_recording(tmp_path / "noon.wav", 3.0)
    table = pd.DataFrame(
        {"file": [dawn], "start_time": [1.0], "end_time": [2.0], "label": ['a, "b"\nc']}
    )
    annotations = Annotations(table, {dawn: 10.0, noon: 3.0})

    again = read_annotations(write_annotation_csv(annotations, tmp_path / "all.csv"))

    same(again.table, table)
    assert sorted(again.recordings.items()) == sorted(annotations.recordings.items())


def test_raven_tables_have_ravens_columns(tmp_path, dawn):
    noon = write_recording(tmp_path / "noon.wav")
    table = pd.DataFrame(
        {
            "file": [noon, dawn],
            "start_time": [0.1, 0.2],
            "end_time": [1.0, 2.0],
            "label": ["robin", "wren"],
            "score": [0.5, 0.25],
        }
    )

    header, first, second = write_raven(table, tmp_path / "x.txt").read_text().splitlines()

    assert header == f"{RAVEN}\tBegin Path\tFile Offset (s)\tAnnotation\tScore"
    assert first == f"1\tSpectrogram 1\t1\t10.1\t11.0\t\t\t{noon}\t0.1\trobin\t0.5"
    assert second == f"2\tSpectrogram 1\t1\t0.2\t2.0\t\t\t{dawn}\t0.2\twren\t0.25"


@pytest.mark.parametrize("write", [write_raven, write_audacity, write_annotation_csv])
def test_no_annotation_is_written_and_read_as_none(tmp_path, dawn, write):
    nothing = pd.DataFrame({"file": [], "start_time": [], "end_time": [], "label": []})

    annotations = read_annotations(write(nothing, tmp_path / "dawn.txt"))

    assert len(annotations) == 0
    assert list(annotations.recordings) == [dawn]


@pytest.mark.parametrize("write", [write_raven, write_audacity, write_annotation_csv])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"end_time": [1.0]}, "Row 1 is from 1.0 to 1.0 s"),
        ({"start_time": [math.nan]}, "Row 1 is from nan"),
        ({"label": [" "]}, "Row 1 has no label"),
        ({"label": [math.nan]}, "Row 1 has no label"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, write, change, problem):
    table = pd.DataFrame({"file": ["a"], "start_time": [1.0], "end_time": [2.0], "label": ["x"]})
    path = tmp_path / "a.txt"
    path.write_text("what was there")

    with pytest.raises(DatasetError, match=problem):
        write(table.assign(**change), path)

    assert path.read_text() == "what was there"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_labels_and_tables_that_a_format_cannot_hold_are_refused(tmp_path):
    table = pd.DataFrame(
        {"file": ["a", "b"], "start_time": 1.0, "end_time": 2.0, "label": ["x", "y\tz"]}
    )

    for write in (write_raven, write_audacity):
        with pytest.raises(DatasetError, match=r"Row 2: .*tab"):
            write(table, tmp_path / "a.txt")
    with pytest.raises(DatasetError, match=r"has 2: a, b.*groupby"):
        write_audacity(table.assign(label="x"), tmp_path / "a.txt")
    with pytest.raises(DatasetError, match="label is missing"):
        write_raven(table.drop(columns="label"), tmp_path / "a.txt")


def test_a_quotation_mark_without_its_partner_swallows_no_rows(tmp_path, dawn):
    (tmp_path / "dawn.csv").write_text('start,end,label\n0.5,1.5,"robin\n2,3,wren\n')

    with pytest.raises(DatasetError, match=r"dawn\.csv, line 3.*quotation mark"):
        read_annotations(tmp_path / "dawn.csv")


def test_a_tab_at_the_end_of_audacitys_lines_is_no_score(tmp_path, dawn):
    (tmp_path / "dawn.txt").write_text("0.5\t1.5\trobin\t\n2\t3\twren\t\t\n")

    table = read_annotations(tmp_path / "dawn.txt").table

    assert table["label"].tolist() == ["robin", "wren"]
    assert "score" not in table
