import wave
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beats_trainer.datasets import build_manifest, load_csv_dataset, validate_dataset
from beats_trainer.datasets import manifest as manifest_module
from beats_trainer.errors import ConfigError, DatasetError, DatasetNotFoundError


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
    said = r"'dig' is not among the 2 given classes: cat, dog, in row 2 .*Did you mean 'dog'\?"
    with pytest.raises(DatasetError, match=said):
        build_manifest(table_of(["cat", "dig"]), clips, labels=["cat", "dog"])
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


def write_seconds(folder, name, duration_s):
    with wave.open(str(folder / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\1\0" * int(8000 * duration_s))


@pytest.fixture
def recordings(tmp_path):
    write_seconds(tmp_path, "long.wav", 3.0)
    write_seconds(tmp_path, "short.wav", 1.0)
    return tmp_path


def parts_of(rows, **columns) -> pd.DataFrame:
    names, labels, starts, ends = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "filename": names,
            "category": labels,
            "start_time": starts,
            "end_time": ends,
            **columns,
        }
    )


def test_rows_may_be_parts_of_files_which_stay_together(recordings):
    table = parts_of(
        [
            ("long.wav", "a", 0, 1),
            ("long.wav", "b", "0.5", "1.5"),
            ("long.wav", "a", 2.0, 3.04),
            ("short.wav", "b", None, None),
        ]
    )

    manifest = build_manifest(table, recordings)

    assert manifest.table["start_time"].tolist()[:3] == [0.0, 0.5, 2.0]
    assert manifest.table["end_time"].tolist()[:3] == [1.0, 1.5, 3.04]
    assert manifest.table[["start_time", "end_time"]].iloc[3].isna().all()
    assert manifest.table["group"].tolist() == [manifest.table["path"][0]] * 3 + [
        manifest.table["path"][3]
    ]


def test_columns_of_times_that_are_all_blank_mean_whole_files(recordings):
    table = parts_of([("long.wav", "a", None, None), ("short.wav", "b", None, None)])

    assert not {"start_time", "group"} & set(build_manifest(table, recordings).table.columns)


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        (1.0, 1.0, r"start_time 1 s and end_time 1 s are not a part"),
        (-0.1, 1.0, r"expected 0 <= start_time < end_time"),
        (0.0, None, r"end_time is blank in row 2"),
        (None, 1.0, r"start_time is blank in row 2"),
        ("soon", 1.0, r"'start_time' must hold seconds, but is 'soon' in row 2"),
        (0.0, float("inf"), r"'end_time' must hold seconds, but is inf"),
        (0.0, True, r"'end_time' must hold seconds, but is True"),
        (0.0, 1.06, r"from 0 to 1\.06 s reaches past the end of its file, which has 1\.000 s"),
        (1.01, 1.04, r"reaches past the end"),
    ],
)
def test_impossible_times_are_errors_that_name_row_and_file(recordings, start, end, told):
    table = parts_of([("long.wav", "a", 0, 1), ("short.wav", "b", start, end)])

    with pytest.raises(DatasetError, match=told) as failure:
        build_manifest(table, recordings)

    assert "row 2" in str(failure.value)
    assert str(recordings / "short.wav") in str(failure.value)


def test_a_start_without_an_end_column_is_an_error(recordings):
    table = parts_of([("long.wav", "a", 0, 1), ("short.wav", "b", 0, 1)]).drop(columns="end_time")

    with pytest.raises(DatasetError, match="'start_time' but no column 'end_time'"):
        build_manifest(table, recordings)


def test_a_part_listed_twice_is_an_error_and_the_length_is_looked_up_once(recordings, monkeypatch):
    asked = []
    probe = manifest_module.probe_audio
    monkeypatch.setattr(
        manifest_module, "probe_audio", lambda file: asked.append(file) or probe(file)
    )
    table = parts_of(
        [("long.wav", "a", 0, 1), ("long.wav", "b", 1, 2), ("./long.wav", "b", 0.0, 1)]
    )

    with pytest.raises(DatasetError, match=r"long\.wav from 0 to 1 s, in rows 1 and 3, as 'a' and"):
        build_manifest(table, recordings)

    assert len(asked) == 1


def test_parts_of_one_file_in_two_groups_are_an_error(recordings):
    table = parts_of([("long.wav", "a", 0, 1), ("long.wav", "b", 1, 2)], group=["x", "y"])

    with pytest.raises(DatasetError, match=r"different groups.*long\.wav has 'x', 'y'"):
        build_manifest(table, recordings)


def test_groups_come_from_a_named_column_or_a_pattern(clips):
    table = table_of(["a", "b", "a"], site=["n", "s", "n"], group=["x", "y", "z"])

    assert build_manifest(table, clips, group_column="site").table["group"].tolist() == [
        *("n", "s", "n")
    ]
    for pattern in (r"(\d)\.wav$", r"(?P<group>\d)(\.)wav$", r"\d(?=\.wav$)"):
        found = build_manifest(table, clips, group_pattern=pattern).table["group"]
        assert found.tolist() == ["0", "1", "2"]


def test_groups_that_cannot_be_told_are_errors(clips):
    table = table_of(["a", "b", "a"], speaker=["n", "s", "n"])

    with pytest.raises(DatasetError, match=r"no column 'speeker'\. Did you mean 'speaker'\?"):
        build_manifest(table, clips, group_column="speeker")
    with pytest.raises(ConfigError, match="pass one of them"):
        build_manifest(table, clips, group_column="speaker", group_pattern="x")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        build_manifest(table, clips, group_pattern="(")
    with pytest.raises(DatasetError, match=r"finds no group in 2 of 3 files.*1\.wav.*2\.wav"):
        build_manifest(table, clips, group_pattern=r"0\.wav")


def test_split_and_fold_columns_may_have_other_names(clips):
    table = table_of(["a", "b"], subset=["train", "test"], cv=[1, 2], split=["?", "?"])

    manifest = build_manifest(table, clips, split_column="subset", fold_column="cv")

    assert manifest.table["split"].tolist() == ["train", "test"]
    assert manifest.table["fold"].tolist() == [1, 2]
    with pytest.raises(DatasetError, match=r"no column 'cvs'\. Did you mean 'cv'\?.*fold_column="):
        build_manifest(table, clips, fold_column="cvs")
    with pytest.raises(DatasetError, match=r"no column 'subsets'.*split_column="):
        build_manifest(table, clips, split_column="subsets")


def test_the_speakers_of_real_recordings_are_groups(shared_data):
    files = sorted(str(file) for file in (shared_data / "fsdd" / "recordings").glob("*.wav"))
    table = pd.DataFrame({"filename": files, "category": [Path(file).name[0] for file in files]})

    manifest = build_manifest(table, group_pattern=r"_(\w+)_\d+\.wav$")

    assert manifest.table["group"].value_counts().to_dict() == dict.fromkeys(
        ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"), 500
    )


def test_a_recording_under_two_names_is_one_clip(clips):
    (clips / "link.wav").symlink_to(clips / "0.wav")
    (clips / "again").symlink_to(clips)
    for other in ("link.wav", "again/0.wav"):
        table = table_of(["dog", "cat", "dog"]).assign(filename=["0.wav", "1.wav", other])

        with pytest.raises(DatasetError, match=rf"rows 1 and 3, .*named 0\.wav and {other}"):
            build_manifest(table, clips)
        manifest = build_manifest(table, clips, multi_label=True)

        assert manifest.table["path"].tolist() == [str(clips / "0.wav"), str(clips / "1.wav")]


def test_names_of_one_file_that_differ_in_case_are_one_clip(clips):
    # As on a disk that does not care about case: both names are there, and are the same file.
    (clips / "A.wav").write_bytes(b"")
    (clips / "a.wav").hardlink_to(clips / "A.wav")
    table = table_of(["dog", "cat"]).assign(filename=["A.wav", "a.wav"])

    with pytest.raises(DatasetError, match="listed more than once"):
        build_manifest(table, clips)


def test_files_that_differ_only_in_case_are_two_clips(make_clips):
    clips = make_clips("A.wav", "a.wav")
    if len(list(clips.iterdir())) < 2:
        pytest.skip("this disk does not tell them apart")

    table = table_of(["dog", "cat"]).assign(filename=["A.wav", "a.wav"])

    assert len(build_manifest(table, clips)) == 2


def test_parts_of_one_file_under_two_names_are_one_group(recordings):
    (recordings / "link.wav").symlink_to(recordings / "long.wav")
    table = parts_of([("long.wav", "a", 0, 1), ("link.wav", "b", 1, 2)])

    assert build_manifest(table, recordings).table["group"].nunique() == 1


def test_groups_and_folds_that_read_the_same_are_the_same(clips):
    ones = [1, "1", 1.0, np.int64(1), " 1 ", "1.0"]
    accents = ["Jose\u0301", "Jos\u00e9", "Jos\u00e9 "]

    mixed = build_manifest(table_of(["a", "b"] * 3, group=ones, fold=ones), clips).table
    spelled = build_manifest(table_of(["a", "b", "a"], site=accents), clips, group_column="site")
    whole = build_manifest(table_of(["a", "b", "a"], group=[1.0, 2.0, np.nan]), clips).table

    assert mixed["group"].tolist() == mixed["fold"].tolist() == ["1"] * 6
    assert spelled.table["group"].nunique() == 1
    assert whole["group"].isna().tolist() == [False, False, True]


def test_groups_that_differ_only_in_case_are_warned_of(clips):
    table = table_of(["a", "b", "a"], group=["Anna", "anna", "Bert"])

    with pytest.warns(UserWarning, match="differ only in case.*Anna / anna"):
        build_manifest(table, clips)


def test_labels_whose_accents_are_encoded_in_two_ways_are_warned_of(clips):
    table = table_of(["cafe\u0301", "caf\u00e9", "tea"])

    with pytest.warns(UserWarning, match="how accents are encoded.*row 2"):
        build_manifest(table, clips)
