"""Whatever the user names as input becomes clips: all that is meant, each once, and nothing goes wrong silently."""

import io
import logging
import os
import sys
import threading
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.audio import load_audio
from beats_trainer.errors import AudioError, AudioNotFoundError, DatasetError, DatasetNotFoundError
from beats_trainer.loading import Clip, find_clips
from beats_trainer.loading.folders import match_files
from sounds import write_tone


def files_of(inputs):
    clips = find_clips(inputs)
    assert all(clip == Clip(clip.file) for clip in clips), "expected whole files"
    return [clip.file for clip in clips]


def touch(*files):
    for file in files:
        os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
        with open(file, "wb"):
            pass


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def feed(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


# --- files and folders -------------------------------------------------------------------------------------


def test_a_file_is_taken_as_it_is_whether_it_is_there_or_not():
    assert find_clips("not/there.wav") == [Clip("not/there.wav")]
    assert files_of(["sheet.xlsx", b"dawn.wav"]) == ["sheet.xlsx", "dawn.wav"]
    assert find_clips([]) == []


def test_a_folder_is_searched_below_and_sorted_by_path():
    touch("rec/b/2.WAV", "rec/b/1.flac", "rec/a.mp3", "rec/notes.txt", "rec/clips.csv", "rec/x")
    touch("rec/.hidden.wav", "rec/.trash/1.wav", "rec/._a.wav")

    assert files_of("rec") == ["rec/a.mp3", "rec/b/1.flac", "rec/b/2.WAV"]
    assert files_of([os.path.abspath("rec")])[0] == os.path.abspath("rec/a.mp3")


def test_inputs_keep_their_order_and_what_is_meant_twice_stands_once():
    touch("rec/1.wav", "rec/2.wav", "rec/3.wav")

    assert files_of(["rec/2.wav", "rec"]) == ["rec/2.wav", "rec/1.wav", "rec/3.wav"]
    absolute = os.path.abspath("rec/1.wav")
    assert files_of([absolute, "./rec/1.wav", "rec", "rec/*.wav"]) == [
        absolute,
        "rec/2.wav",
        "rec/3.wav",
    ]
    part = Clip("rec/1.wav", 1.0, 2.0)
    assert find_clips(["rec/1.wav", part, part, Clip("rec/1.wav", 1.0)]) == [
        Clip("rec/1.wav"),
        part,
        Clip("rec/1.wav", 1.0),
    ]


def test_two_files_that_links_and_dots_make_look_like_one_are_both_kept():
    touch("x.wav", "far/x.wav", "far/away/y.wav")
    os.symlink("far/away", "link")

    # By its text alone "link/../x.wav" would be "x.wav"; it is far/x.wav.
    assert files_of(["x.wav", "link/../x.wav"]) == ["x.wav", "link/../x.wav"]


def test_links_are_followed_and_those_that_lead_back_up_end():
    touch("rec/a/1.wav", "elsewhere/2.wav")
    os.symlink("..", "rec/a/up")
    os.symlink(os.path.abspath("rec"), "rec/self")
    os.symlink("loop", "rec/loop.wav")
    os.symlink("loop.wav", "rec/loop")
    os.symlink("../elsewhere", "rec/linked")
    os.symlink("a", "rec/0_before_a")

    found = files_of("rec")

    # Through no link where there is a way without one; the broken one is the reader's to complain of.
    assert found == ["rec/a/1.wav", "rec/linked/2.wav", "rec/loop.wav"]
    assert files_of("rec/**/*.wav") == found


def test_a_link_to_a_missing_recording_is_listed_so_that_someone_says_so():
    touch("rec/a.wav")
    os.symlink("gone.wav", "rec/b.wav")

    assert files_of("rec") == ["rec/a.wav", "rec/b.wav"]


def test_a_pipe_is_left_out_and_named(caplog):
    touch("rec/a.wav")
    os.mkfifo("rec/pipe.wav")

    assert files_of("rec") == ["rec/a.wav"]
    assert "rec/pipe.wav is not a file" in caplog.text


def deny(monkeypatch, folder):
    """What a folder without permission does, also to the superuser."""
    scandir = os.scandir

    def denying(path="."):
        if os.path.abspath(path) == os.path.abspath(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denying)


@pytest.mark.parametrize("given", ["rec", "rec/**/*.wav", "rec/*/*.wav"])
def test_a_subfolder_that_cannot_be_listed_is_named(given, monkeypatch, caplog):
    touch("rec/closed/1.wav", "rec/open/2.wav")
    deny(monkeypatch, "rec/closed")

    with caplog.at_level(logging.WARNING):
        assert files_of(given) == ["rec/open/2.wav"]

    assert "rec/closed cannot be listed (Permission denied)" in caplog.text


@pytest.mark.parametrize("given", ["rec", "rec/*.wav"])
def test_a_folder_that_cannot_be_listed_is_an_error_where_it_was_named(given, monkeypatch):
    touch("rec/1.wav")
    deny(monkeypatch, "rec")

    with pytest.raises(AudioError, match=r"rec/?: the folder cannot be listed: Permission denied"):
        find_clips(given)


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9.wav", "Eule 🦉 im Regen.wav".encode(), b"two\nlines.wav", b"[x] *.wav", b"-.wav"],
)
def test_a_file_with_any_name_is_found_in_every_way_and_can_be_opened(name, monkeypatch):
    os.mkdir(b"r\xe9c")
    with open(b"r\xe9c/" + name, "wb") as file:
        file.write(b"here")
    path = os.fsdecode(b"r\xe9c/" + name)
    feed(monkeypatch, os.fsencode(path) + b"\0")

    for found in (files_of(os.fsdecode(b"r\xe9c")), files_of("r*/*.wav"), files_of("-")):
        assert found == [path]
        with open(found[0], "rb") as file:
            assert file.read() == b"here"
    assert files_of(path) == [path]
    assert files_of(os.fsencode(path)) == [path]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("empty", "no audio file in this folder"),
        ("*.wav", "no file matches"),
        ("gone/*", "no file"),
    ],
)
def test_folders_and_patterns_without_recordings_are_errors(given, said):
    touch("empty/notes.txt")

    with pytest.raises(AudioNotFoundError, match=said):
        find_clips(given)


def test_an_input_that_is_none_is_a_type_error():
    with pytest.raises(TypeError, match=r"Expected a file, folder, pattern, table or Clip.*float"):
        find_clips(["a.wav", 1.5])


def test_urls_and_clips_are_taken_as_they_are():
    inputs = ["s3://bucket/*.wav", "https://x.org/list.csv", Clip("a.wav", 5.0, 1.0)]

    assert find_clips(inputs) == [Clip(inputs[0]), Clip(inputs[1]), inputs[2]]


# --- patterns ----------------------------------------------------------------------------------------------

TREE = [
    *("rec/a.wav", "rec/notes.txt", "rec/site_1/b.wav", "rec/site_1/deep/c.WAV"),
    *("rec/site_2/d.flac", "rec/site_2/.hid/e.wav", "rec/.f.wav", "rec/site_3/g.dat"),
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("rec/*.wav", ["rec/a.wav"]),
        ("rec/**/*.wav", ["rec/a.wav", "rec/site_1/b.wav"]),
        ("**/*.[wW][aA][vV]", ["rec/a.wav", "rec/site_1/b.wav", "rec/site_1/deep/c.WAV"]),
        ("rec/**/**/?.wav", ["rec/a.wav", "rec/site_1/b.wav"]),
        ("*/site_*/*.wav", ["rec/site_1/b.wav"]),
        ("rec/site_[12]/[bd].*", ["rec/site_1/b.wav", "rec/site_2/d.flac"]),
        ("rec/site_*", ["rec/site_1/b.wav", "rec/site_1/deep/c.WAV", "rec/site_2/d.flac"]),
        ("rec/*", ["rec/a.wav", "rec/site_1/b.wav", "rec/site_1/deep/c.WAV", "rec/site_2/d.flac"]),
        ("rec/**/deep", ["rec/site_1/deep/c.WAV"]),
        ("./rec/site_1/**", ["./rec/site_1/b.wav", "./rec/site_1/deep/c.WAV"]),
        ("rec/*/.hid/*", ["rec/site_2/.hid/e.wav"]),
        ("rec/*/*.dat", ["rec/site_3/g.dat"]),  # an ending that is named is meant
    ],
)
def test_a_pattern_stands_for_what_it_matches(pattern, expected):
    touch(*TREE)

    assert files_of(pattern) == expected
    assert files_of(os.path.abspath(pattern)) == [os.path.abspath(file) for file in expected]


@given(st.lists(st.sampled_from(["**", "*", "s*", "a", "?", "[ab]*"]), max_size=3))
def test_patterns_match_what_pythons_own_do(tmp_path_factory, parts):
    import glob

    root = tmp_path_factory.getbasetemp() / "patterns"
    names = ["a", "b", "s1"]
    if not root.exists():
        folders = [*names, *(f"{x}/{y}" for x in names for y in names), "s1/s1/a"]
        touch(*(str(root / folder / f"{n}.wav") for folder in folders for n in names))
    pattern = os.path.join(str(root), *parts, "*.wav")

    expected = sorted(set(glob.glob(pattern, recursive=True)))

    assert match_files(pattern) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_itself():
    touch("dawn[1].wav", "dawn1.wav", "rec[1]/a.wav")

    assert files_of("dawn[1].wav") == ["dawn[1].wav"]
    assert files_of("rec[1]") == ["rec[1]/a.wav"]


def test_a_pattern_that_names_tables_reads_them_as_if_they_were_named():
    touch("rec/a.wav")
    os.mkdir("lists")
    for name in ("1.csv", "2.csv"):
        pd.DataFrame({"file": ["../rec/a.wav"], "start": [int(name[0])], "end": [5]}).to_csv(
            f"lists/{name}", index=False
        )

    assert [clip.start_s for clip in find_clips("lists/*.csv")] == [1.0, 2.0]


# --- lists -------------------------------------------------------------------------------------------------


def test_standard_input_has_one_path_per_line(monkeypatch):
    feed(monkeypatch, b"a.wav\n\nnight 1/b.wav \r\ns3://x/c.wav\na.wav\n")

    assert files_of(["z.wav", "-", "-"]) == ["z.wav", "a.wav", "night 1/b.wav ", "s3://x/c.wav"]


def test_standard_input_with_zero_bytes_keeps_line_breaks_in_names(monkeypatch):
    feed(monkeypatch, b"a\nb.wav\0caf\xe9.wav\0")

    assert files_of("-") == ["a\nb.wav", os.fsdecode(b"caf\xe9.wav")]


def test_empty_standard_input_is_an_error(monkeypatch):
    feed(monkeypatch, b"\n")

    with pytest.raises(DatasetError, match="standard input, but it names no file"):
        find_clips("-")


def test_a_list_is_read_from_its_own_folder_first_then_from_the_current_one(here, caplog):
    touch("lists/a.wav", "a.wav", "b.wav")
    (here / "lists/all.txt").write_bytes(b"\xef\xbb\xbfa.wav\r\nb.wav\nhttp://x/c.wav\nd.wav\n")

    found = files_of("lists/all.txt")

    assert found == [os.path.abspath("lists/a.wav"), "b.wav", "http://x/c.wav", "d.wav"]
    assert "lists/all.txt: 1 of 3 audio files is not there: d.wav. Looked in" in caplog.text


def test_a_list_in_utf_16_is_refused(here):
    (here / "all.txt").write_text("a.wav\n", encoding="utf-16")

    with pytest.raises(DatasetError, match=r"all\.txt is in UTF-16"):
        find_clips("all.txt")


def test_a_selection_table_is_not_taken_for_a_list(here):
    (here / "dawn.txt").write_text("Selection\tView\tBegin Path\n1\tSpectrogram 1\ta.wav\n")

    with pytest.raises(DatasetError, match=r"dawn\.txt, but it starts with a row of cells"):
        find_clips("dawn.txt")


# --- tables ------------------------------------------------------------------------------------------------

ROWS = pd.DataFrame(
    {
        "file": ["a.wav", "a.wav", "b.wav", "b.wav", "b.wav"],
        "start_time": [0.0, 5.3, np.nan, np.nan, 60.0],
        "end_time": [5.3, 10.3, np.nan, 2.0, np.nan],
        "label": ["x", "y", "", "", ""],
    }
)
CLIPS = [
    Clip("a.wav", 0.0, 5.3),
    Clip("a.wav", 5.3, 5.0),
    Clip("b.wav"),
    Clip("b.wav", 0.0, 2.0),
    Clip("b.wav", 60.0),
]


def write(table, path):
    writers = {
        "csv": lambda: table.to_csv(path, index=False),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "parquet": lambda: table.to_parquet(path),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
    }
    writers[path.rpartition(".")[2]]()
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_gives_a_clip_per_row_in_every_format(ending):
    touch("a.wav", "b.wav")

    assert find_clips(write(ROWS, f"clips.{ending}")) == CLIPS
    assert find_clips([ROWS]) == CLIPS


def test_a_table_written_with_semicolons_may_have_decimal_commas():
    ROWS.to_csv("clips.csv", sep=";", decimal=",", index=False, encoding="utf-8-sig")

    assert find_clips("clips.csv") == CLIPS


@pytest.mark.parametrize(
    "name",
    [
        *("file", "path", "filename", "filepath", "file_path", "audio", "audio_path"),
        *("audio_file", "begin_path", "Begin Path", "FILE", "audio_filepath"),
    ],
)
def test_the_recordings_are_in_a_column_of_any_usual_name(name):
    assert files_of(pd.DataFrame({"id": [1, 2], name: ["a.wav", "b.wav"]})) == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"start": [2], "end": [3]}, (2.0, 1.0)),
        ({"start_s": ["2"], "end_s": ["3.5"]}, (2.0, 1.5)),
        ({"Start Time": [2], "Duration": [4]}, (2.0, 4.0)),
        ({"start": [2], "duration_s": [4]}, (2.0, 4.0)),
        ({"duration": [4]}, (0.0, 4.0)),
        ({"start": [2], "end": [3], "duration": [600]}, (2.0, 1.0)),  # the recording's, then
        ({"start": [2], "end": [None], "duration": [4]}, (2.0, 4.0)),
        ({"onset": [2], "offset": [3]}, (2.0, 1.0)),
        ({"offset": [2], "duration": [3]}, (2.0, 3.0)),
        ({"start": [pd.NA], "end": [pd.NA]}, (0.0, None)),
        ({"start": [""], "end": ["  "]}, (0.0, None)),
        ({"start": [0.1], "end": [0.3]}, (0.1, 0.2)),
        ({"Begin Time (s)": [3602], "End Time (s)": [3603], "File Offset (s)": [2]}, (2.0, 1.0)),
        ({"Begin Time (s)": [2], "End Time (s)": [3]}, (2.0, 1.0)),
    ],
)
def test_times_are_understood_in_every_usual_way(columns, expected):
    assert find_clips(pd.DataFrame({"file": ["a.wav"], **columns})) == [Clip("a.wav", *expected)]


def test_ravens_times_that_may_count_from_another_file_are_refused():
    table = pd.DataFrame({"Begin Path": ["a.wav", "b.wav"], "Begin Time (s)": [1, 3601]})

    with pytest.raises(DatasetError, match=r"about 2 recordings.*File Offset"):
        find_clips(table)


def test_a_tables_files_are_looked_for_beside_it_first_and_keep_their_names_where_they_can(here):
    touch("tables/a.wav", "a.wav", "b.wav", "rec/c.wav", "tables/audio/d.wav")
    names = [
        "a.wav",
        "b.wav",
        "d.wav",
        "rec\\c.wav",
        str(here / "b.wav"),
        "gone.wav",
        "s3://x/y.wav",
    ]
    write(pd.DataFrame({"path": names}), "tables/all.csv")

    found = files_of("tables/all.csv")

    audio = [str(here / "tables/audio/d.wav"), str(here / "rec/c.wav")]
    assert found == [
        *(str(here / "tables/a.wav"), "b.wav", *audio, "gone.wav", "s3://x/y.wav"),
    ]


def test_a_name_that_is_no_text_of_any_encoding_survives_a_table(here):
    name = os.fsdecode(b"caf\xe9, NA.wav")
    touch(name)
    (here / "all.csv").write_bytes(b'file,start\n"caf\xe9, NA.wav",\nNA,\n')
    pd.DataFrame({"file": [b"caf\xe9, NA.wav"]}).to_parquet("all.parquet")

    assert files_of("all.csv") == [name, "NA"]
    assert files_of("all.parquet") == [name]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"files": ["a.wav"]},
            r"no column that names the recordings.*mean 'files'.*columns: files",
        ),
        ({"file": []}, "no rows"),
        ({"file": ["a", " "], "label": 7}, "2: names no recording in the column 'file'"),
        ({"file": ["a", None], "label": 7}, "2: names no recording in the column 'file'"),
        ({"file": ["a"], "start": [-1]}, "1: the column 'start' has -1.0 s"),
        (
            {"file": ["a", "b"], "start": [0, 5], "end": [1, 5]},
            "2: starts at 5.0 s .column 'start'. and",
        ),
        ({"file": ["a"], "end": [0]}, "1: starts at 0.0 s"),
        ({"file": ["a"], "duration": [0]}, "1: has no length: the column 'duration'"),
        (
            {"file": ["a"], "start": ["0:05"]},
            "1: expected seconds in the column 'start', found '0:05'",
        ),
        ({"file": ["a"], "start": ["1,5"]}, "found '1,5'.*Write decimals with a point"),
        ({"file": ["a"], "end": [np.inf]}, "the column 'end' has inf s"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", None])
def test_a_table_that_makes_no_sense_is_an_error_that_names_row_and_column(columns, said, ending):
    table = pd.DataFrame(columns)
    if ending is None:
        with pytest.raises(DatasetError, match=rf"(?s)The table.*{said}"):
            find_clips(table)
        return
    # In a file the header is line 1.
    said = said.replace("2: ", "3: ").replace("1: ", "2: ")

    with pytest.raises(DatasetError, match=rf"clips\.csv.*{said}"):
        find_clips(write(table, "clips.csv"))


def test_a_cell_that_holds_no_path_is_an_error():
    for value in ({"bytes": b"", "path": "a.wav"}, np.zeros(3), 7):
        with pytest.raises(DatasetError, match="row 1: expected the path of a recording"):
            find_clips(pd.DataFrame({"audio": [value]}))
    with pytest.raises(DatasetError, match="row 1: expected seconds in the column 'start'"):
        find_clips(pd.DataFrame({"file": ["a"], "start": [pd.Timestamp("2024-05-01")]}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b'file\n"a.wav\nb.wav\n', "line 3: cannot be read as a CSV"),
        ("a.csv", b"file,start\na,b.wav,1\n", "line 2: has 3 cells, and the header has 2"),
        ("a.csv", "file\na.wav\n".encode("utf-16"), "UTF-16"),
        ("a.parquet", b"PAR1 not at all", "cannot be read as Parquet"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"file": "a.wav"}\n{"file"\n', "line 2: cannot be read as JSON"),
        ("a.jsonl", b'["a.wav"]\n', "line 1: expected an object"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error(here, name, content, said):
    (here / name).write_bytes(content)

    with pytest.raises(DatasetError, match=said):
        find_clips(name)


@pytest.mark.parametrize("name", ["gone.csv", "gone.parquet", "gone.txt"])
def test_a_table_or_list_that_is_not_there_is_an_error(name):
    with pytest.raises(DatasetNotFoundError, match=f"There is no .*{name}"):
        find_clips(name)


def test_other_columns_of_a_table_are_not_read(here):
    pd.DataFrame({"file": ["a.wav"], "audio": [{"bytes": b"x"}], "embedding": [[1.0]]}).to_parquet(
        "all.parquet"
    )

    assert files_of("all.parquet") == ["a.wav"]


# --- size --------------------------------------------------------------------------------------------------


def test_a_clip_is_small_and_times_of_a_table_are_shared():
    clips = find_clips(
        pd.DataFrame({"file": ["a.wav"] * 200, "start": np.arange(200) * 5.0, "duration": 5.0})
    )

    assert not hasattr(clips[0], "__dict__")
    assert len({id(clip.duration_s) for clip in clips}) == 1
    assert len({id(clip.file) for clip in clips}) == 1


@pytest.mark.slow
def test_a_hundred_thousand_files_are_listed_in_seconds_and_little_memory():
    for folder in range(100):
        os.makedirs(f"rec/site_{folder:03}")
        for index in range(1000):
            os.close(os.open(f"rec/site_{folder:03}/2024_{index:04}.wav", os.O_CREAT))
    tracemalloc.start()

    begin = time.perf_counter()
    clips = find_clips("rec")
    took = time.perf_counter() - begin

    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(clips) == 100_000
    assert took < 30  # about 1 s; tracing and a busy machine slow it down
    assert held < 30e6


def test_a_published_data_sets_own_table_names_its_clips(shared_data):
    clips = find_clips(shared_data / "esc10" / "esc10.csv")

    assert len(clips) == 400
    assert {clip.file for clip in clips} == set(files_of(shared_data / "esc10" / "audio"))


def test_the_part_of_a_recording_that_a_table_names_can_be_read(here):
    path = write_tone(here / "tone.wav", seconds=2.0)
    table = pd.DataFrame({"file": ["tone.wav"], "start": [0.5], "end": [1.25]})

    (clip,) = find_clips(table)

    assert len(load_audio(clip.file, clip.start_s, clip.duration_s)) == 0.75 * 16000
    assert str(path).endswith(clip.file)


def test_reading_a_list_works_off_the_main_thread(monkeypatch):
    feed(monkeypatch, b"a.wav\n")
    found = []

    thread = threading.Thread(target=lambda: found.extend(files_of("-")))
    thread.start()
    thread.join()

    assert found == ["a.wav"]
