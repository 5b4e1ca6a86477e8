import os
import warnings
from pathlib import Path

import pandas as pd
import pytest

from beats_trainer.audio import AUDIO_EXTENSIONS
from beats_trainer.datasets import (
    build_manifest,
    load_csv_dataset,
    load_dataset,
    load_split_csvs,
    load_split_directories,
    scan_directory_dataset,
    split_manifest,
)
from beats_trainer.errors import DatasetError, DatasetNotFoundError


def names(table: pd.DataFrame) -> list[str]:
    return [Path(file).name for file in table["filename"]]


def test_classes_are_the_names_of_the_folders(make_clips):
    root = make_clips("dog/1.wav", "cat/1.wav", "cat/2.wav")

    table = scan_directory_dataset(root)

    assert table["category"].tolist() == ["cat", "cat", "dog"]
    assert table["filename"][0] == str(root / "cat" / "1.wav")
    assert table.attrs["data_dir"] == str(root)


def test_clips_deep_inside_a_class_folder_are_found_and_hidden_ones_are_not(make_clips):
    root = make_clips(
        "dog/site/2024/1.wav", "dog/._1.wav", "dog/.cache/2.wav", "cat/3.wav", ".git/4.wav"
    )

    table = scan_directory_dataset(root)

    assert names(table) == ["3.wav", "1.wav"]
    assert table["category"].tolist() == ["cat", "dog"]


@pytest.mark.parametrize("ending", [".wav", ".mp3", ".flac", ".m4a", ".ogg", ".WAV", ".Ogg"])
def test_every_audio_ending_counts_in_any_case(make_clips, ending):
    root = make_clips(f"dog/a{ending}", "cat/a.wav")
    (root / "dog" / "notes.txt").write_text("")

    assert len(scan_directory_dataset(root)) == 2


def test_the_documents_five_formats_are_scanned():
    assert {".wav", ".mp3", ".flac", ".m4a", ".ogg"} <= set(AUDIO_EXTENSIONS)


@pytest.mark.parametrize("endings", [["ogg"], [".OGG"], ".ogg"])
def test_given_endings_replace_the_usual_ones(make_clips, endings):
    root = make_clips("dog/a.wav", "dog/a.ogg", "cat/a.ogg")

    assert names(scan_directory_dataset(root, endings)) == ["a.ogg", "a.ogg"]


def test_the_order_does_not_depend_on_the_file_system(make_clips, monkeypatch):
    root = make_clips(*(f"{c}/{n}.wav" for c in "bca" for n in range(5)))
    expected = scan_directory_dataset(root)
    listdir, walk = Path.iterdir, os.walk

    def backwards(*args, **kwargs):
        for parent, folders, files in walk(*args, **kwargs):
            yield parent, folders, files[::-1]

    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(listdir(self))))
    monkeypatch.setattr(os, "walk", backwards)

    pd.testing.assert_frame_equal(scan_directory_dataset(root), expected)


def test_a_link_to_the_folder_above_does_not_go_round_in_circles(make_clips):
    root = make_clips("dog/1.wav", "cat/2.wav")
    (root / "dog" / "up").symlink_to(root / "dog")

    assert names(scan_directory_dataset(root)) == ["2.wav", "1.wav"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="nowhere does not exist"):
        scan_directory_dataset(tmp_path / "nowhere")


def test_audio_without_class_folders_says_how_to_arrange_it(make_clips):
    with pytest.raises(DatasetError, match=r"holds 2 audio files but no folders.*load_csv_dataset"):
        scan_directory_dataset(make_clips("1.wav", "2.wav"))


def test_class_folders_without_audio_say_what_counts_as_audio(tmp_path):
    (tmp_path / "dog").mkdir()

    with pytest.raises(DatasetError, match=r"No audio files in the 1 class folders.*\.flac"):
        scan_directory_dataset(tmp_path)


def test_empty_class_folders_and_stray_clips_are_named(make_clips):
    root = make_clips("dog/1.wav", "cat/1.wav", "stray.wav")
    (root / "horse").mkdir()

    with (
        pytest.warns(UserWarning, match="no audio files and give no class: horse"),
        pytest.warns(UserWarning, match=r"outside every class folder.*stray.wav"),
    ):
        table = scan_directory_dataset(root)

    assert set(table["category"]) == {"dog", "cat"}


@pytest.mark.parametrize(
    ("folders", "told"),
    [(["train", "valid"], "load_split_directories"), (["fold1", "fold2"], "folds")],
)
def test_splits_and_folds_are_not_taken_for_classes(make_clips, folders, told):
    root = make_clips(*(f"{folder}/dog/1.wav" for folder in folders))

    with pytest.raises(DatasetError, match=told):
        scan_directory_dataset(root)


def test_train_is_a_class_beside_others(make_clips):
    assert len(scan_directory_dataset(make_clips("train/1.wav", "airplane/1.wav"))) == 2


def test_clips_of_esc50_keep_their_folds_and_recordings_when_scanned(make_clips):
    root = make_clips(
        *(f"{c}/{fold}-77{fold}-A-{n}.wav" for n, c in enumerate("ab") for fold in range(1, 6))
    )

    table = scan_directory_dataset(root)

    assert table["fold"].tolist() == [1, 2, 3, 4, 5] * 2
    assert table["group"].tolist() == ["771", "772", "773", "774", "775"] * 2


def test_a_few_clips_of_esc50_keep_their_recordings(make_clips):
    table = scan_directory_dataset(make_clips("a/1-77-A.ogg", "a/1-77-B.ogg", "b/2-78-A.ogg"))

    assert table["group"].tolist() == ["77", "77", "78"]
    assert "fold" not in table


def test_clips_of_organized_urbansound8k_keep_their_recordings(make_clips):
    root = make_clips("a/100-3-0-1.wav", "b/200-5-0-1.wav", folder="UrbanSound8K_organized")

    assert scan_directory_dataset(root)["group"].tolist() == ["100", "200"]


def write_csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_files_of_a_csv_are_found_from_its_own_folder(make_clips, monkeypatch, tmp_path):
    root = make_clips("audio/sample1.wav", "audio/sample2.wav")
    file = write_csv(
        root / "dataset.csv", "filename,category\naudio/sample1.wav,bird\naudio/sample2.wav,dog\n"
    )
    monkeypatch.chdir(tmp_path)

    table = load_csv_dataset("clips/dataset.csv")

    assert table["filename"].tolist() == [str(root / "audio" / f"sample{n}.wav") for n in (1, 2)]
    assert table["category"].tolist() == ["bird", "dog"]
    assert table.attrs["data_dir"] == str(file.parent)


def test_files_are_looked_for_in_the_promised_order(make_clips, monkeypatch):
    beside = make_clips("a.wav", "audio/c.wav", folder="csv")
    below = beside / "audio"
    given = make_clips("b.wav", folder="given")
    current = make_clips("d.wav", folder="current")
    for folder in (below, given, current):
        (folder / "a.wav").write_bytes(b"")
    for folder in (below, current):
        (folder / "b.wav").write_bytes(b"")
    (current / "c.wav").write_bytes(b"")
    monkeypatch.chdir(current)
    rows = "".join(f"{name}.wav,x\n" for name in "abcd")
    file = write_csv(beside / "x.csv", f"filename,category\n{rows}")

    table = load_csv_dataset(file, data_dir=given)

    assert [Path(found).parent for found in table["filename"]] == [beside, given, below, current]


def test_absolute_paths_and_backslashes_are_understood(make_clips):
    root = make_clips("deep/1.wav", "2.wav")
    file = write_csv(root / "x.csv", f"filename,category\n{root / '2.wav'},a\ndeep\\1.wav,b\n")

    assert names(load_csv_dataset(file)) == ["2.wav", "1.wav"]


def test_missing_files_are_named_with_the_folders_looked_in(make_clips):
    root = make_clips("1.wav")
    file = write_csv(root / "x.csv", "filename,category\n1.wav,a\nlost.wav,b\n")

    with pytest.warns(UserWarning, match=r"1 of 2 audio files is not there: lost.wav. Looked in"):
        table = load_csv_dataset(file)

    assert table["filename"][1] == "lost.wav"
    with pytest.raises(DatasetError, match=rf"lost.wav. Looked in {root}, then {root / 'audio'}"):
        build_manifest(table)


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
def test_the_separator_is_recognised(make_clips, separator):
    root = make_clips("1.wav")
    text = (
        f"{separator.join(['file', 'note', 'species'])}\n{separator.join(['1.wav', 'x', 'owl'])}\n"
    )

    table = load_csv_dataset(
        write_csv(root / "x.csv", "\ufeff" + text), audio_col="file", label_col="species"
    )

    assert table["category"].tolist() == ["owl"]
    assert table["note"].tolist() == ["x"]


@pytest.mark.parametrize("label", ["007", "NA", "None", "1.0", "true"])
def test_labels_stay_what_they_are_in_the_csv(make_clips, label):
    root = make_clips("1.wav")

    table = load_csv_dataset(write_csv(root / "x.csv", f"filename,category\n1.wav,{label}\n"))

    assert table["category"].tolist() == [label]


def test_other_columns_are_kept_and_a_recording_becomes_the_group(make_clips):
    root = make_clips("1.wav")
    text = "filename,category,fold,split,src_file,take\n1.wav,a,3,train,116765,A\n"

    table = load_csv_dataset(write_csv(root / "x.csv", text))

    row = table.iloc[0]
    assert (row["fold"], row["split"], row["group"], row["take"]) == (3, "train", 116765, "A")
    assert row["src_file"] == 116765


def test_a_column_that_already_has_the_canonical_name_is_not_lost(make_clips):
    root = make_clips("1.wav")
    text = "filename,path,category\nold.wav,1.wav,a\n"

    table = load_csv_dataset(write_csv(root / "x.csv", text), audio_column="path")

    assert names(table) == ["1.wav"]
    assert table["filename_original"].tolist() == ["old.wav"]


def test_both_spellings_of_a_column_parameter_at_once_are_refused(make_clips):
    root = make_clips("1.wav")
    file = write_csv(root / "x.csv", "a,b,category\n1.wav,1.wav,x\n")

    with pytest.raises(ValueError, match="pass one"):
        load_csv_dataset(file, audio_column="a", audio_col="b")


def test_a_missing_column_is_an_error_with_those_that_exist(tmp_path):
    file = write_csv(tmp_path / "x.csv", "file_name,species\n1.wav,a\n")

    with pytest.raises(DatasetError, match=r"no column 'filename'. Did you mean 'file_name'\?"):
        load_csv_dataset(file)
    with pytest.raises(
        DatasetError, match=r"no column 'category'.*file_name, species.*label_column="
    ):
        load_csv_dataset(file, audio_column="file_name")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as a CSV"),
        (b"filename,category\n", "a header but no rows"),
        (b"filename,category\na,b\nc,d,e,f\n", "cannot be read as a CSV"),
        ("filename,category\n1.wav,bl\u00e5meis\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used_is_an_error_that_names_it(tmp_path, content, told):
    (tmp_path / "x.csv").write_bytes(content)

    with pytest.raises(DatasetError, match=told) as failure:
        load_csv_dataset(tmp_path / "x.csv")

    assert str(tmp_path / "x.csv") in str(failure.value)


def test_a_csv_that_is_not_there_or_a_folder_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no CSV file"):
        load_csv_dataset(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="that is a folder"):
        load_csv_dataset(tmp_path)


def test_load_dataset_sees_what_it_is_given(make_clips):
    root = make_clips("dog/1.wav", "cat/1.wav")
    file = write_csv(root / "x.csv", "filename,category\ndog/1.wav,dog\n")

    assert len(load_dataset(root)) == 2
    assert len(load_dataset(file)) == 1
    with pytest.raises(ValueError, match="auto, directory or csv"):
        load_dataset(root, "parquet")


def test_split_folders_become_tables_that_keep_their_split(make_clips):
    root = make_clips("train/a/1.wav", "train/b/1.wav", folder="s")
    make_clips("valid/a/2.wav", "valid/b/2.wav", "test/a/3.wav", "test/b/3.wav", folder="s")

    tables = load_split_directories(root)
    splits = split_manifest(build_manifest(pd.concat(tables.values())))

    assert list(tables) == ["train", "val", "test"]
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2, 2, 2]


def test_split_folders_may_be_named_and_lie_anywhere(make_clips):
    train = make_clips("a/1.wav", "b/1.wav", folder="one")
    held_out = make_clips("a/2.wav", "b/2.wav", folder="two")

    tables = load_split_directories(train_dir=train, val_dir=held_out, test_dir=None)

    assert list(tables) == ["train", "val"]


def test_a_split_folder_that_was_named_must_be_there(make_clips):
    root = make_clips("train/a/1.wav")

    with pytest.raises(DatasetNotFoundError, match="holdout with val clips"):
        load_split_directories(root, val_dir="holdout")
    assert list(load_split_directories(root)) == ["train"]
    with pytest.raises(DatasetNotFoundError, match="train clips"):
        load_split_directories(root / "train")


def test_split_csvs_start_from_the_data_folder(make_clips, monkeypatch, tmp_path):
    root = make_clips("1.wav", "2.wav")
    write_csv(root / "meta" / "train.csv", "filename,category\n1.wav,a\n")
    test = write_csv(tmp_path / "test.csv", "filename,category\n2.wav,a\n")

    tables = load_split_csvs(root, "meta/train.csv", test_csv=test)

    assert list(tables) == ["train", "test"]
    assert names(tables["test"]) == ["2.wav"]
    assert tables["test"]["split"].tolist() == ["test"]


def test_folders_that_look_like_several_labels_are_pointed_out_unless_that_is_said(make_clips):
    root = make_clips("frog,toad/1.wav", "frog/2.wav", "toad/3.wav", "-frog/4.wav")

    with pytest.warns(UserWarning, match=r"2 folders .* one class each.*data\.label_delimiter=','"):
        scan_directory_dataset(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = scan_directory_dataset(root, label_delimiter=",")
    manifest = build_manifest(table, label_delimiter=",")

    assert manifest.labels == ["frog", "toad"]
    assert manifest.table["present"].tolist() == [(), (0,), (0, 1), (1,)]
    assert manifest.table["unknown"].tolist() == [(1,), (), (), ()]


def test_split_folders_may_hold_several_labels(make_clips):
    root = make_clips("train/a,b/1.wav", "train/b/2.wav", folder="s")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = load_split_directories(root, label_delimiter=",")

    assert tables["train"]["category"].tolist() == ["a,b", "b"]


def test_class_columns_times_and_unknown_labels_of_a_csv_are_kept_as_they_are(make_clips):
    root = make_clips("1.wav")
    text = "file;NA;007;start_time;end_time;unknown\n1.wav;1;0;0.5;1.5;NA\n"
    file = write_csv(root / "x.csv", text)

    table = load_csv_dataset(file, audio_col="file", label_columns=["NA", "007"])

    row = table.iloc[0]
    assert "category" not in table
    assert (row["NA"], row["007"], row["unknown"]) == ("1", "0", "NA")
    assert (row["start_time"], row["end_time"]) == (0.5, 1.5)
    with pytest.raises(DatasetError, match=r"no column 'NAA'.*label_columns="):
        load_csv_dataset(file, audio_col="file", label_columns=["NAA"])
    split = load_split_csvs(root, "x.csv", audio_column="file", label_columns=["NA", "007"])
    assert split["train"]["NA"].tolist() == ["1"]


def test_a_separator_at_the_end_of_each_line_shifts_no_column(make_clips, tmp_path):
    clips = make_clips("a.wav", "b.wav")
    (clips / "m.csv").write_text("\n\nfilename , category \na.wav,007,\nb.wav,cat,\n")

    table = load_csv_dataset(clips / "m.csv")

    assert table["filename"].tolist() == [str(clips / "a.wav"), str(clips / "b.wav")]
    assert table["category"].tolist() == ["007", "cat"]


def test_more_cells_than_the_header_has_are_an_error(make_clips):
    clips = make_clips("a.wav")
    (clips / "m.csv").write_text("filename,category\na.wav,dog,big\n")

    with pytest.raises(DatasetError, match=r"m\.csv has rows with more cells than its header"):
        load_csv_dataset(clips / "m.csv")


def test_clips_of_ones_own_beside_those_of_esc50_leave_their_recordings_known(make_clips):
    root = make_clips()
    for name in ("dog/1-100-A-0.wav", "dog/1-100-B-0.wav", "owl/mine.wav"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")

    table = scan_directory_dataset(root)

    assert table["group"].tolist() == ["100", "100", str(root / "owl" / "mine.wav")]
    assert "fold" not in table
