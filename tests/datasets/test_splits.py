from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beats_trainer.datasets import Manifest, split_manifest
from beats_trainer.errors import DatasetError


def manifest_of(categories, **columns) -> Manifest:
    labels = sorted(set(categories))
    paths = [f"/clips/{category}/{n:04d}.wav" for n, category in enumerate(categories)]
    table = pd.DataFrame(
        {
            "path": paths,
            "filename": paths,
            "category": categories,
            "target": np.array([labels.index(category) for category in categories], dtype=np.int64),
            **columns,
        }
    )
    return Manifest(table, labels)


def sizes(splits) -> list[int]:
    return [len(part) for part in (splits.train, splits.val, splits.test)]


def counts(part) -> dict[str, int]:
    return part["category"].value_counts().sort_index().to_dict()


def test_every_class_has_its_share_in_every_part():
    splits = split_manifest(manifest_of(["a"] * 50 + ["b"] * 100 + ["c"] * 10))

    assert counts(splits.train) == {"a": 40, "b": 80, "c": 8}
    assert counts(splits.val) == {"a": 5, "b": 10, "c": 1}
    assert counts(splits.test) == {"a": 5, "b": 10, "c": 1}
    assert splits.labels == ["a", "b", "c"]
    assert "stratified by class, seed 42: 128 train, 16 validation, 16 test clips" in splits.how


def test_parts_have_their_sizes_even_where_classes_are_small():
    with pytest.warns(UserWarning, match="have no clip in the"):
        splits = split_manifest(manifest_of([f"c{n:02d}" for n in range(20)] * 5))

    assert sizes(splits) == [80, 10, 10]


def test_the_split_does_not_depend_on_the_order_of_rows_or_on_the_folder():
    manifest = manifest_of(["a", "b"] * 40)
    shuffled = Manifest(manifest.table.sample(frac=1, random_state=1), manifest.labels)
    moved = Manifest(
        manifest.table.assign(path="/other/machine" + manifest.table["path"]), manifest.labels
    )

    expected = set(split_manifest(manifest).test["filename"])

    assert set(split_manifest(shuffled).test["filename"]) == expected
    assert set(split_manifest(moved).test["filename"]) == expected


def test_the_split_of_a_seed_is_fixed_for_good():
    splits = split_manifest(manifest_of(["a", "b"] * 10), seed=7)

    assert splits.test["filename"].tolist() == ["/clips/b/0003.wav", "/clips/a/0016.wav"]
    assert splits.val["filename"].tolist() == ["/clips/b/0007.wav", "/clips/a/0010.wav"]


def test_another_seed_gives_another_split():
    manifest = manifest_of(["a", "b"] * 40)

    assert set(split_manifest(manifest, seed=1).test.index) != set(
        split_manifest(manifest, seed=2).test.index
    )


def test_rows_keep_their_index_and_order():
    splits = split_manifest(manifest_of(["a", "b"] * 40))

    for part in (splits.train, splits.val, splits.test):
        assert part.index.is_monotonic_increasing
    assert sorted([*splits.train.index, *splits.val.index, *splits.test.index]) == list(range(80))


@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=60),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.7, 0.0, 0.3), (1.0, 0.0, 0.0)]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.filterwarnings("ignore:.*have no clip in the", "ignore:The .* part is empty")
def test_any_table_is_divided_completely_with_every_class_in_training(
    categories, shares, grouped, seed
):
    columns = {"group": [n // 3 for n in range(len(categories))]} if grouped else {}
    manifest = manifest_of(categories, **columns)

    splits = split_manifest(manifest, *shares, seed=seed)

    assert sum(sizes(splits)) == len(manifest)
    assert set(splits.train["category"]) == set(categories)
    for part, share in ((splits.val, shares[1]), (splits.test, shares[2])):
        assert share > 0 or part.empty
    if grouped:
        parts = [set(part["group"]) for part in (splits.train, splits.val, splits.test)]
        assert sum(len(part) for part in parts) == len(set(columns["group"]))


def test_a_class_too_small_for_all_parts_stays_in_training_and_is_named():
    with (
        pytest.warns(
            UserWarning, match="1 of 3 classes have no clip in the validation part.*: rare"
        ),
        pytest.warns(UserWarning, match="1 of 3 classes have no clip in the test part.*: rare"),
    ):
        splits = split_manifest(manifest_of(["a"] * 40 + ["rare"] + ["b"] * 40))

    assert "rare" in set(splits.train["category"])


def test_a_part_that_stays_empty_is_said():
    with (
        pytest.warns(UserWarning, match="The validation part is empty: there are too few clips"),
        pytest.warns(UserWarning, match="The test part is empty"),
    ):
        splits = split_manifest(manifest_of(["a", "b"]))

    assert sizes(splits) == [2, 0, 0]


def test_groups_stay_whole_and_classes_keep_their_shares():
    categories = ["a"] * 100 + ["b"] * 100
    groups = [f"recording {n // 4}" for n in range(200)]

    splits = split_manifest(manifest_of(categories, group=groups))

    assert counts(splits.train) == {"a": 80, "b": 80}
    for part in (splits.val, splits.test):
        assert counts(part) in (
            {"a": 8, "b": 8},
            {"a": 12, "b": 12},
        )  # 10, to the nearest groups of 4
    assert not set(splits.train["group"]) & set(splits.test["group"])
    assert "whole groups (50 of them)" in splits.how


def test_few_large_groups_still_fill_every_part():
    splits = split_manifest(manifest_of(["a", "b", "c"] * 20, group=[n // 15 for n in range(60)]))

    assert sizes(splits) == [30, 15, 15]


def test_a_class_with_one_group_stays_in_training():
    categories = ["a"] * 40 + ["b"] * 4
    groups = [n // 4 for n in range(44)]

    with (
        pytest.warns(UserWarning, match="have no clip in the validation part.*: b"),
        pytest.warns(UserWarning, match="have no clip in the test part.*: b"),
    ):
        splits = split_manifest(manifest_of(categories, group=groups))

    assert counts(splits.train)["b"] == 4


def test_the_highest_fold_is_for_testing_and_the_next_for_validation():
    splits = split_manifest(manifest_of(["a", "b"] * 11, fold=[n // 2 for n in range(22)]))

    assert set(splits.test["fold"]) == {10}
    assert set(splits.val["fold"]) == {9}
    assert set(splits.train["fold"]) == set(range(9))
    assert "validation on 9; test on 10" in splits.how


def test_named_folds_are_ordered_by_their_number():
    splits = split_manifest(manifest_of(["a", "b"] * 11, fold=[f"fold{n // 2}" for n in range(22)]))

    assert set(splits.test["fold"]) == {"fold10"}
    assert set(splits.val["fold"]) == {"fold9"}


def test_a_fold_whose_part_is_not_wanted_goes_to_the_next():
    manifest = manifest_of(["a", "b"] * 3, fold=[1, 1, 2, 2, 3, 3])

    without_val = split_manifest(manifest, 0.9, 0.0, 0.1)
    without_test = split_manifest(manifest, 0.9, 0.1, 0.0)
    neither = split_manifest(manifest, 1.0, 0.0, 0.0)

    assert sizes(without_val) == [4, 0, 2]
    assert sizes(without_test) == [4, 2, 0]
    assert set(without_test.val["fold"]) == {3}
    assert sizes(neither) == [6, 0, 0]


def test_too_few_folds_are_an_error():
    with pytest.raises(DatasetError, match="2 folds, but 3 are needed"):
        split_manifest(manifest_of(["a", "b"] * 2, fold=[1, 1, 2, 2]))


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "DEV", " val "])
def test_a_split_column_decides_before_folds_and_groups(val):
    names = ["Train", "train", val, "TEST"]
    manifest = manifest_of(["a", "b", "a", "b"], split=names, fold=[1, 2, 3, 4], group=[1, 2, 3, 4])

    with pytest.warns(UserWarning, match="have no clip in the"):
        splits = split_manifest(manifest)

    assert [list(part.index) for part in (splits.train, splits.val, splits.test)] == [
        [0, 1],
        [2],
        [3],
    ]
    assert "column 'split'" in splits.how


def test_an_unknown_split_is_an_error():
    with pytest.raises(DatasetError, match=r"must say train, val .* or test, not 'holdout'"):
        split_manifest(manifest_of(["a", "b"], split=["train", "holdout"]))


@pytest.mark.parametrize("column", ["split", "fold", "group"])
def test_a_deciding_column_with_blanks_is_an_error_that_names_the_rows(column):
    with pytest.raises(DatasetError, match=rf"'{column}' decides .* blank in 1 rows: 2 "):
        split_manifest(manifest_of(["a", "b", "a"], **{column: ["train", None, "train"]}))


def test_a_class_without_a_training_clip_is_an_error_that_names_it():
    with pytest.raises(DatasetError, match="1 of 2 classes have no clip to train on: b"):
        split_manifest(manifest_of(["a", "a", "b"], split=["train", "train", "test"]))


def test_a_class_of_the_labels_without_any_clip_is_an_error():
    manifest = Manifest(manifest_of(["a", "b"] * 20).table, ["a", "b", "c"])

    with pytest.raises(DatasetError, match="no clip to train on: c"):
        split_manifest(manifest)


def test_a_given_split_that_leaks_a_recording_is_pointed_out():
    manifest = manifest_of(
        ["a", "b", "a", "b"], split=["train", "train", "test", "test"], group=["x", "y", "x", "z"]
    )

    with pytest.warns(
        UserWarning, match="1 of 3 groups, such as 'x', have clips in more than one part"
    ):
        split_manifest(manifest)


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="shares that sum to 1"):
        split_manifest(manifest_of(["a", "b"]), *shares)


def multi_manifest_of(clips, **columns) -> Manifest:
    """Clips of "ab": classes a and b are present; of "": none."""
    labels = sorted(set("".join(clips)))
    paths = [f"/clips/{n:04d}.wav" for n in range(len(clips))]
    table = pd.DataFrame(
        {
            "path": paths,
            "filename": paths,
            "category": [";".join(sorted(clip)) for clip in clips],
            "present": pd.Series(
                [tuple(labels.index(name) for name in sorted(clip)) for clip in clips], dtype=object
            ),
            "unknown": pd.Series([() for _ in clips], dtype=object),
            **columns,
        }
    )
    return Manifest(table, labels, "multi")


def present_in(part) -> Counter:
    return Counter("".join(part["category"]).replace(";", ""))


def test_clips_with_several_labels_are_divided_with_every_class_at_its_share():
    clips = ["ab"] * 100 + ["a"] * 100 + ["bc"] * 50 + [""] * 50

    splits = split_manifest(multi_manifest_of(clips))

    assert splits.task == "multi"
    assert sizes(splits) == [240, 30, 30]
    for part, share in ((splits.train, 0.8), (splits.val, 0.1), (splits.test, 0.1)):
        assert present_in(part) == Counter(a=200 * share, b=150 * share, c=50 * share)
        assert (part["category"] == "").sum() == 50 * share


@given(
    st.lists(st.text("abcde", max_size=3), min_size=3, max_size=50),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.filterwarnings("ignore:.*have no clip in the", "ignore:The .* part")
def test_any_table_of_several_labels_is_divided_with_every_class_in_training(clips, grouped, seed):
    assume("".join(clips))
    columns = {"group": [n // 3 for n in range(len(clips))]} if grouped else {}
    manifest = multi_manifest_of(clips, **columns)

    splits = split_manifest(manifest, seed=seed)
    shuffled = Manifest(manifest.table.sample(frac=1, random_state=1), manifest.labels, "multi")

    assert sum(sizes(splits)) == len(manifest)
    assert set(present_in(splits.train)) == set(manifest.labels)
    assert set(split_manifest(shuffled, seed=seed).val.index) == set(splits.val.index)
    if grouped:
        parts = [set(part["group"]) for part in (splits.train, splits.val, splits.test)]
        assert sum(len(part) for part in parts) == len(set(columns["group"]))


def test_a_class_without_a_present_training_clip_is_an_error_that_names_where_it_is():
    manifest = multi_manifest_of(["a", "a", "ab"], split=["train", "train", "test"])

    with pytest.raises(
        DatasetError, match=r"no clip to train on: b\. 'b' is in the test part, in /clips/0002\.wav"
    ):
        split_manifest(manifest)


@pytest.mark.parametrize("column", ["split", "fold"])
def test_parts_of_one_file_in_two_parts_of_a_given_split_are_an_error(column):
    manifest = manifest_of(["a", "b"] * 3, **{column: ["train", "val", "test"] * 2})
    manifest.table["path"] = ["/x.wav", "/y.wav", "/x.wav", "/z.wav", "/y.wav", "/v.wav"]
    manifest.table["start_time"], manifest.table["end_time"] = 0.0, 1.0

    with pytest.raises(DatasetError, match=r"Parts of one file are in \w+ and \w+.*/x\.wav"):
        split_manifest(manifest)


def test_parts_of_one_file_stay_together_without_a_group():
    manifest = manifest_of(["a", "b"] * 40)
    manifest.table["path"] = [f"/{n // 4}.wav" for n in range(80)]
    manifest.table["start_time"], manifest.table["end_time"] = 0.0, 1.0

    splits = split_manifest(manifest)

    parts = [set(part["path"]) for part in (splits.train, splits.val, splits.test)]
    assert sum(len(part) for part in parts) == 20
    assert "whole files (20 of them)" in splits.how


def test_a_part_with_one_class_only_is_pointed_out():
    manifest = manifest_of(["a", "b", "b", "b"], split=["train", "train", "val", "test"])

    with (
        pytest.warns(UserWarning, match="The validation part has clips of one class only, 'b'"),
        pytest.warns(UserWarning, match="The test part has clips of one class only, 'b'"),
    ):
        split_manifest(manifest)
