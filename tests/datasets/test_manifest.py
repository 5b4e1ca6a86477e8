from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beats_trainer.datasets import build_manifest, load_csv_dataset, validate_dataset
from beats_trainer.errors import DatasetError, DatasetNotFoundError


@pytest.fixture
def clips(make_clips):
    return make_clips(*(f"{n}.wav" for n in range(12)))


def table_of(labels, **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"filename": [f"{n}.wav" for n in range(len(labels))], "category": labels, **columns}
    )


def test_each_clip_has_its_path_its_name_and_the_id_of_its_class(clips):
    manifest = build_manifest(table_of(["dog", "cat", "dog"]), clips)

    assert manifest.labels == ["cat", "dog"]
    assert manifest.num_classes == 2
    assert len(manifest) == 3
    assert manifest.table["path"].tolist() == [str(clips / f"{n}.wav") for n in range(3)]
    assert manifest.table["filename"].tolist() == ["0.wav", "1.wav", "2.wav"]
    assert manifest.table["target"].tolist() == [1, 0, 1]
    assert manifest.table["target"].dtype == np.int64
    assert manifest.class_counts() == {"cat": 1, "dog": 2}


def test_the_table_given_is_not_changed(clips):
    table = table_of([" dog", "cat"])
    before = table.copy()

    with pytest.warns(UserWarning, match="Spaces around labels"):
        build_manifest(table, clips)

    pd.testing.assert_frame_equal(table, before)


def test_columns_may_have_any_name(clips):
    table = pd.DataFrame({"file": [Path("0.wav"), Path("1.wav")], "species": ["a", "b"]})

    manifest = build_manifest(table, clips, audio_column="file", label_column="species")

    assert manifest.table["category"].tolist() == ["a", "b"]


def test_split_fold_and_group_are_kept_and_other_columns_are_not(clips):
    table = table_of(["a", "b"], split=["train", "test"], fold=[1, 2], fsID=["x", "y"], note="n")

    manifest = build_manifest(table, clips)

    columns = ["path", "filename", "category", "target", "split", "fold", "group"]
    assert manifest.table.columns.tolist() == columns
    assert manifest.table["group"].tolist() == ["x", "y"]


def test_files_are_looked_for_where_the_tables_source_found_its_own(clips, monkeypatch, tmp_path):
    table = table_of(["a", "b"])
    table.attrs["data_dir"] = str(clips)
    monkeypatch.chdir(tmp_path)

    assert build_manifest(table).table["path"][0] == str(clips / "0.wav")


def test_files_are_looked_for_in_the_current_directory_last(clips, monkeypatch):
    monkeypatch.chdir(clips)

    assert build_manifest(table_of(["a", "b"])).table["path"][0] == str(clips / "0.wav")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 2, 1], ["1", "2", "10"]),
        ([10.0, 2.0, 1.0], ["1", "2", "10"]),
        (["10", "2", "1"], ["1", "2", "10"]),
        (["b", "C", "a"], ["C", "a", "b"]),
        ([True, False, True], ["False", "True"]),
        (pd.Categorical(["b", "a", "b"]), ["a", "b"]),
        (np.array(["b", "a", "b"], dtype=object), ["a", "b"]),
    ],
)
def test_labels_are_numbered_in_sorted_order(clips, labels, expected):
    assert build_manifest(table_of(labels), clips).labels == expected


def test_given_labels_keep_their_ids_whatever_the_table_holds(clips):
    manifest = build_manifest(table_of(["cat", "cat"]), clips, labels=["dog", "owl", "cat"])

    assert manifest.labels == ["dog", "owl", "cat"]
    assert manifest.table["target"].tolist() == [2, 2]
    assert manifest.class_counts() == {"dog": 0, "owl": 0, "cat": 2}


def test_a_label_that_is_not_among_the_given_is_an_error(clips):
    with pytest.raises(
        DatasetError, match=r"1 classes of the table are not among the 2 given: owl"
    ):
        build_manifest(table_of(["cat", "owl"]), clips, labels=["cat", "dog"])
    with pytest.raises(DatasetError, match="names a class twice: cat"):
        build_manifest(table_of(["cat"]), clips, labels=["cat", "cat"])


@pytest.mark.parametrize("blank", [None, np.nan, "", "  ", pd.NA])
def test_blank_labels_are_named_by_row(clips, blank):
    with pytest.raises(DatasetError, match=r"'category' has no label in rows 2, 4 "):
        build_manifest(table_of(["a", blank, "b", blank]), clips)


def test_blank_file_names_are_named_by_row(clips):
    table = table_of(["a", "b"])
    table.loc[1, "filename"] = None

    with pytest.raises(DatasetError, match="names no file in row 2"):
        build_manifest(table, clips)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["a", 1, "b"], r"mixes labels of different types \(text, whole number\).*row 2"),
        ([True, "a", "b"], "mixes labels"),
        ([0.5, 1.5, 2.0], "Expected one label per clip"),
        ([["a", "b"], "a", "b"], r"row.*holds \['a', 'b'\] \(list\)"),
    ],
)
def test_labels_that_are_no_labels_are_errors(clips, labels, told):
    with pytest.raises(DatasetError, match=told):
        build_manifest(table_of(labels), clips)


def test_labels_that_differ_only_in_case_are_pointed_out(clips):
    with pytest.warns(UserWarning, match="differ only in case are different classes: Dog / dog"):
        build_manifest(table_of(["Dog", "dog", "cat"]), clips)


def test_missing_files_are_counted_and_named_with_where_they_were_looked_for(clips):
    table = table_of(["a"] * 19 + ["b"])

    with pytest.raises(DatasetError) as failure:
        build_manifest(table, clips)

    message = str(failure.value)
    assert message.startswith(
        "8 of 20 audio files are not there: 12.wav, 13.wav, 14.wav, 15.wav, 16.wav"
    )
    assert f"Looked in {clips}, then {Path.cwd()}." in message
    assert "data_dir=" in message


def test_a_folder_is_not_an_audio_file(clips):
    (clips / "folder.wav").mkdir()

    with pytest.raises(DatasetError, match=r"not there: folder.wav"):
        build_manifest(
            pd.DataFrame({"filename": ["0.wav", "folder.wav"], "category": ["a", "b"]}), clips
        )


def test_a_data_dir_that_is_not_there_is_an_error(clips):
    with pytest.raises(DatasetNotFoundError, match="data_dir is no folder"):
        build_manifest(table_of(["a", "b"]), clips / "nowhere")


@pytest.mark.parametrize(
    ("second", "label", "told"),
    [("0.wav", "b", "as 'a' and as 'b'"), ("../clips/0.wav", "a", "as 'a' both times")],
)
def test_a_file_listed_twice_is_an_error(clips, second, label, told):
    table = pd.DataFrame({"filename": ["0.wav", "1.wav", second], "category": ["a", "b", label]})

    with pytest.raises(DatasetError, match=f"rows 1 and 3, {told}"):
        build_manifest(table, clips)


def test_fewer_than_two_classes_are_an_error_unless_that_is_wanted(clips):
    with pytest.raises(DatasetError, match=r"at least 2 classes, found 1 \(a\)"):
        build_manifest(table_of(["a", "a"]), clips)

    assert build_manifest(table_of(["a", "a"]), clips, min_classes=1).labels == ["a"]


def test_a_table_without_rows_or_columns_is_an_error(clips):
    with pytest.raises(DatasetError, match="has no rows"):
        build_manifest(table_of([]), clips)
    with pytest.raises(DatasetError, match=r"no column 'label'.*filename, category.*label_column="):
        build_manifest(table_of(["a"]), clips, label_column="label")
    with pytest.raises(TypeError, match="DataFrame"):
        build_manifest([("a.wav", "a")], clips)


def test_validate_dataset_describes_without_requiring(clips):
    table = table_of(["a"] * 11 + ["b"] + ["a"] * 8)

    with (
        pytest.warns(UserWarning, match="8 of 20 audio files are not there"),
        pytest.warns(UserWarning, match="'a' has 19 times the clips of 'b'"),
    ):
        report = validate_dataset(table, clips)

    assert report == {
        "total_samples": 20,
        "num_classes": 2,
        "class_names": ["a", "b"],
        "class_distribution": {"a": 19, "b": 1},
        "existing_files": 12,
        "missing_files": 8,
        "missing_file_list": [f"{n}.wav" for n in range(12, 20)],
        "imbalance_ratio": 19.0,
    }


def test_validate_dataset_describes_an_empty_table(clips):
    report = validate_dataset(table_of([]), clips)

    assert (report["total_samples"], report["num_classes"], report["imbalance_ratio"]) == (
        0,
        0,
        0.0,
    )


def test_real_clips_and_their_official_table_make_a_manifest(shared_data):
    manifest = build_manifest(load_csv_dataset(shared_data / "esc10" / "esc10.csv"))

    assert len(manifest) == 400
    assert manifest.class_counts()["chainsaw"] == 40
    assert manifest.table["path"].str.endswith(".ogg").all()
