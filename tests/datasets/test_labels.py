import logging

import numpy as np
import pandas as pd
import pytest

from beats_trainer.datasets import build_manifest, load_csv_dataset, targets_of
from beats_trainer.errors import ConfigError, DatasetError

NAN = float("nan")


@pytest.fixture
def clips(make_clips):
    return make_clips(*(f"{n}.wav" for n in range(8)))


def table_of(cells, **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "filename": [f"{n}.wav" for n in range(len(cells))],
            "category": pd.Series(cells, dtype=object),
            **columns,
        }
    )


def targets(manifest) -> list[list[float]]:
    return targets_of(manifest.table, manifest.num_classes, manifest.task).tolist()


def assert_targets(manifest, expected):
    np.testing.assert_array_equal(targets(manifest), expected)  # NaN equals NaN here


def test_lists_of_names_are_any_number_of_labels_and_an_empty_list_is_none(clips):
    manifest = build_manifest(table_of([["frog", "toad"], ["frog"], [], ("toad",)]), clips)

    assert (manifest.task, manifest.labels) == ("multi", ["frog", "toad"])
    assert manifest.table["category"].tolist() == ["frog;toad", "frog", "", "toad"]
    assert manifest.table["present"].tolist() == [(0, 1), (0,), (), (1,)]
    assert manifest.table["unknown"].tolist() == [(), (), (), ()]
    assert "target" not in manifest.table
    assert_targets(manifest, [[1, 1], [1, 0], [0, 0], [0, 1]])
    assert manifest.class_counts() == {"frog": 2, "toad": 2}


def test_one_label_per_clip_stays_a_single_label_data_set(clips):
    manifest = build_manifest(table_of(["toad", "frog;toad"]), clips)

    assert (manifest.task, manifest.labels) == ("single", ["frog;toad", "toad"])
    assert targets(manifest) == [1, 0]


def test_arrays_and_whole_numbers_are_labels_as_lists_and_text_are(clips):
    cells = [np.array([10, 2]), [2], [np.int64(10)]]

    manifest = build_manifest(table_of(cells), clips)

    assert manifest.labels == ["2", "10"]
    assert_targets(manifest, [[1, 1], [1, 0], [0, 1]])


def test_delimited_text_is_any_number_of_labels(clips):
    manifest = build_manifest(
        table_of(["toad, frog,", "frog", "background"]), clips, label_delimiter=","
    )

    assert_targets(manifest, [[1, 1], [1, 0], [0, 0]])
    assert manifest.table["category"].tolist() == ["frog;toad", "frog", ""]


@pytest.mark.parametrize("cell", ["background", "Background", ["background"]])
def test_background_is_no_class_and_says_that_none_is_there(clips, cell):
    manifest = build_manifest(
        table_of([["a"], ["b"], cell]), clips, multi_label=True, unlisted="unknown"
    )

    assert manifest.labels == ["a", "b"]
    assert_targets(manifest, [[1, NAN], [NAN, 1], [0, 0]])


def test_other_names_may_stand_for_background(clips):
    manifest = build_manifest(
        table_of(["a", "noise", "background"]),
        clips,
        multi_label=True,
        background_labels=["noise"],
    )

    assert manifest.labels == ["a", "background"]
    assert_targets(manifest, [[1, 0], [0, 0], [0, 1]])


def test_a_negative_alone_leaves_the_other_classes_unknown(clips):
    manifest = build_manifest(
        table_of(["-a", "a;-b", "b;c", "-a;background"]), clips, label_delimiter=";"
    )

    assert_targets(manifest, [[0, NAN, NAN], [1, 0, 0], [0, 1, 1], [0, 0, 0]])


def test_a_question_mark_leaves_that_class_unknown(clips):
    manifest = build_manifest(
        table_of(["?a;b", "?a", "a", "background;?b"]), clips, label_delimiter=";"
    )

    assert_targets(manifest, [[NAN, 1], [NAN, 0], [1, 0], [0, NAN]])


def test_unlisted_classes_may_be_unknown(clips):
    manifest = build_manifest(
        table_of(["a;-b", "b", "background"]), clips, label_delimiter=";", unlisted="unknown"
    )

    assert_targets(manifest, [[1, 0], [NAN, 1], [0, 0]])


def test_a_column_of_unknown_classes_is_honoured(clips):
    table = table_of([["a"], ["b"], []], unknown=[["b"], [], ["a", "b"]])

    assert_targets(build_manifest(table, clips), [[1, NAN], [0, 1], [NAN, NAN]])


def test_one_column_per_class_tells_presence_absence_and_ignorance(clips):
    table = table_of(
        ["ignored"] * 4,
        frog=[1, 0, None, 0],
        toad=["True", "false", "1", ""],
        background=[0, 1, None, 0],
    )

    manifest = build_manifest(table, clips, label_columns=["frog", "toad", "background"])

    assert manifest.labels == ["frog", "toad"]
    assert_targets(manifest, [[1, 1], [0, 0], [NAN, 1], [0, NAN]])


def test_a_class_without_a_column_is_unknown(clips):
    table = table_of(["x"] * 2, frog=[1, 0])

    manifest = build_manifest(table, clips, label_columns=["frog"], labels=["toad", "frog"])

    assert_targets(manifest, [[NAN, 1], [NAN, 0]])


@pytest.mark.parametrize("value", [2, "yes", 0.5, "maybe", [1]])
def test_a_cell_of_a_class_column_that_is_no_flag_is_named_by_row_and_column(clips, value):
    table = table_of(["x"] * 2, frog=pd.Series([1, value], dtype=object), toad=[0, 1])

    with pytest.raises(DatasetError, match=r"class column 'frog' holds .* in row 2.*expected 1 or"):
        build_manifest(table, clips, label_columns=["frog", "toad"])


def test_rows_of_one_clip_are_put_together_and_counted(clips, caplog):
    table = pd.DataFrame(
        {
            "filename": ["0.wav", "1.wav", "0.wav", "0.wav"],
            "category": ["frog", "toad", "toad", "frog"],
            "fold": [1, 2, 1, None],
        }
    )
    caplog.set_level(logging.INFO)

    manifest = build_manifest(table, clips, multi_label=True, background_labels=())

    assert manifest.table["filename"].tolist() == ["0.wav", "1.wav"]
    assert manifest.table["fold"].tolist() == [1, 2]
    assert_targets(manifest, [[1, 1], [0, 1]])
    assert "Put 4 rows together to 2 clips" in caplog.text


def test_rows_of_one_clip_in_two_folds_are_an_error(clips):
    table = pd.DataFrame(
        {"filename": ["0.wav", "0.wav"], "category": ["frog", "toad"], "fold": [1, 2]}
    )

    with pytest.raises(DatasetError, match=r"Rows 1 and 2 are the same clip.*its fold is 1 in one"):
        build_manifest(table, clips, multi_label=True)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("a;-a", "'a' is both present and absent"),
        ("?a;a", "'a' is both present and unknown"),
        ("?a;-a", "'a' is both absent and unknown"),
        ("a;background", "'a' is present in a clip that is background"),
    ],
)
def test_labels_that_contradict_each_other_are_an_error_with_row_and_file(clips, cell, told):
    with pytest.raises(DatasetError, match=rf"in row 2 \(.*1\.wav.*{told}"):
        build_manifest(table_of(["b", cell]), clips, label_delimiter=";")


def test_rows_of_one_clip_that_contradict_each_other_are_both_named(clips):
    table = pd.DataFrame({"filename": ["0.wav", "1.wav", "0.wav"], "category": ["a", "b", "-a"]})

    with pytest.raises(DatasetError, match=r"row 3 \(.*0\.wav.*together with row 1 "):
        build_manifest(table, clips, multi_label=True)


@pytest.mark.parametrize("blank", [None, NAN, "", " ; "])
def test_a_blank_cell_is_an_error_that_says_how_to_write_what_is_meant(clips, blank):
    with pytest.raises(DatasetError, match=r"blank in row 2 .*'background'.*\?NAME"):
        build_manifest(table_of(["a;b", blank]), clips, label_delimiter=";")


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([["a;b"], ["c"]], r"'a;b' cannot be the name of a class"),
        ([["--a"], ["c"]], r"'-a' cannot be the name"),
        ([["-"], ["c"]], r"'' cannot be the name"),
        ([["*"], ["c"]], r"'\*' cannot be the name"),
        ([["-background"], ["c"]], r"'-background' in row 1"),
        ([["a"], [["b"]]], r"row 2 holds \[\['b'\]\]"),
        ([["a"], [None]], r"row 2 holds \[None\]"),
        ([["a"], [-1]], r"row 2 holds \[-1\]"),
        ([["a"], [1]], r"different types: text in row 1, whole number in row 2"),
    ],
)
def test_names_that_are_none_are_refused(clips, cells, told):
    with pytest.raises(DatasetError, match=told):
        build_manifest(table_of(cells), clips)


def test_text_with_a_semicolon_needs_the_delimiter_to_be_told(clips):
    with pytest.raises(DatasetError, match=r"pass label_delimiter=';'"):
        build_manifest(table_of(["a;b", "a"]), clips, multi_label=True)


def test_a_class_that_no_clip_has_is_an_error(clips):
    with pytest.raises(DatasetError, match=r"1 of 2 classes are present in no clip.*: b\."):
        build_manifest(table_of(["a", "-b"]), clips, multi_label=True)

    table = table_of(["x"] * 2, frog=[1, 0], toad=[0, 0])
    with pytest.raises(DatasetError, match=r"present in no clip.*: toad\."):
        build_manifest(table, clips, label_columns=["frog", "toad"])


def test_given_labels_need_not_all_be_in_the_table(clips):
    manifest = build_manifest(table_of([["b"], []]), clips, labels=["c", "b", "a"])

    assert manifest.labels == ["c", "b", "a"]
    assert_targets(manifest, [[0, 1, 0], [0, 0, 0]])
    with pytest.raises(DatasetError, match="'b' is not among the 1 given classes: a, in row 1"):
        build_manifest(table_of([["b"], []]), clips, labels=["a"])
    with pytest.raises(ConfigError, match="'background' is among labels and among background"):
        build_manifest(table_of([["b"], []]), clips, labels=["b", "background"])


def test_a_class_that_is_never_known_to_be_absent_is_pointed_out(clips):
    with pytest.warns(UserWarning, match=r"1 of 2 classes are known to be absent.*: a\. Add"):
        build_manifest(table_of([["a", "b"], ["a"], ["?a"]]), clips)


def test_one_class_and_background_are_enough(clips):
    manifest = build_manifest(table_of(["toad", "background"]), clips, multi_label=True)

    assert_targets(manifest, [[1], [0]])
    with pytest.raises(DatasetError, match="at least 1 class, found 0"):
        build_manifest(table_of(["background"]), clips, multi_label=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label_delimiter": ""}, "label_delimiter must be text"),
        ({"label_delimiter": ";", "label_columns": ["a"]}, "pass one of them"),
        ({"label_columns": []}, "names no column"),
        ({"unlisted": "maybe"}, "'absent' or 'unknown', not 'maybe'"),
    ],
)
def test_settings_that_cannot_be_are_refused(clips, options, told):
    with pytest.raises(ConfigError, match=told):
        build_manifest(table_of(["a", "b"], a=[1, 0]), clips, **options)


def test_a_class_column_that_is_not_there_is_an_error_with_the_nearest(clips):
    table = table_of(["x"] * 2, frog=[1, 0])

    with pytest.raises(DatasetError, match=r"no column 'frogs'\. Did you mean 'frog'\?"):
        build_manifest(table, clips, label_columns=["frogs"])


def test_class_columns_of_a_csv_become_classes(clips):
    file = clips / "x.csv"
    file.write_text("filename;frog;toad;unknown\n0.wav;1;0;\n1.wav;0;1;frog\n2.wav;1;;\n", "utf-8")

    table = load_csv_dataset(file, label_columns=["frog", "toad"])
    with pytest.raises(DatasetError, match="'frog' is both absent and unknown"):
        build_manifest(table, label_columns=["frog", "toad"])
    table["unknown"] = None
    manifest = build_manifest(table, label_columns=["frog", "toad"])

    assert_targets(manifest, [[1, 0], [0, 1], [1, NAN]])


def test_targets_of_an_unknown_task_are_refused(clips):
    manifest = build_manifest(table_of(["a", "b"]), clips)

    with pytest.raises(ValueError, match="'single' or 'multi'"):
        targets_of(manifest.table, 2, "both")
