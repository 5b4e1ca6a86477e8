import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from beats_trainer.datasets import Manifest, build_manifest, fold_splits, load_csv_dataset
from beats_trainer.errors import ConfigError, DatasetError


def manifest_of(clips, task="single", **columns) -> Manifest:
    """Clips of "ab", multi: classes a and b are present; single: the class is called so."""
    labels = sorted(set(clips) if task == "single" else set("".join(clips)))
    paths = [f"/clips/{n:04d}.wav" for n in range(len(clips))]
    table = pd.DataFrame({"path": paths, "filename": paths, "category": clips, **columns})
    if task == "single":
        table["target"] = np.array([labels.index(name) for name in clips], dtype=np.int64)
    else:
        present = [tuple(labels.index(name) for name in sorted(set(clip))) for clip in clips]
        table["present"] = pd.Series(present, dtype=object)
        table["unknown"] = pd.Series([()] * len(clips), dtype=object)
    return Manifest(table, labels, task)


def parts(fold) -> list[pd.DataFrame]:
    return [fold.splits.train, fold.splits.val, fold.splits.test]


def held(table) -> set[str]:
    """Classes that are present in a table of :func:`manifest_of`, multi."""
    return set("".join(table["category"]))


def test_each_official_fold_is_tested_once_and_has_no_say_in_validation():
    manifest = manifest_of(["a", "b"] * 30, fold=[n // 2 % 3 + 8 for n in range(60)])

    folds = fold_splits(manifest)

    assert [fold.name for fold in folds] == ["8", "9", "10"]
    for fold in folds:
        train, val, test = parts(fold)
        assert set(test["fold"].astype(str)) == {fold.name}
        assert set(train["fold"]) | set(val["fold"]) == {8, 9, 10} - {int(fold.name)}
        assert [len(train), len(val), len(test)] == [36, 4, 20]
        assert val["category"].value_counts().to_dict() == {"a": 2, "b": 2}
    assert folds[0].splits.how.startswith("Fold 8 (1 of 3; official folds): 36 train, 4 valid")


@pytest.mark.parametrize(("given", "name"), [(2.0, "2"), ("fold2", "fold2"), (2, "2")])
def test_official_folds_keep_their_names(given, name):
    folds = fold_splits(manifest_of(["a", "b"] * 2, fold=[given] * 2 + [type(given)(1)] * 2))

    assert name in [fold.name for fold in folds]


def test_the_number_of_official_folds_may_be_said_but_not_changed():
    manifest = manifest_of(["a", "b"] * 6, fold=[n // 4 for n in range(12)])

    assert len(fold_splits(manifest, 3)) == 3
    with pytest.raises(
        DatasetError, match=r"folds=5, but the table has 3 official folds \(0, 1, 2"
    ):
        fold_splits(manifest, 5)


def test_a_class_of_one_official_fold_only_is_an_error_that_names_both():
    manifest = manifest_of(["a", "b"] * 6 + ["rare"], fold=[n // 4 for n in range(13)])

    with pytest.raises(DatasetError, match=r"Fold 3: 1 of 3 classes have no clip .* on: rare\."):
        fold_splits(manifest)


def test_parts_of_one_file_in_two_official_folds_are_an_error():
    manifest = manifest_of(["a", "b"] * 2, fold=[1, 1, 2, 2], start_time=0.0, end_time=1.0)
    manifest.table["path"] = ["/x.wav", "/y.wav", "/x.wav", "/z.wav"]

    with pytest.raises(DatasetError, match=r"in fold 1 and fold 2, of 1 files: /x\.wav"):
        fold_splits(manifest)


def test_a_group_in_two_official_folds_is_pointed_out():
    manifest = manifest_of(["a", "b"] * 4, fold=[1, 1, 2, 2] * 2, group=list("xxxyyyzz"))

    with pytest.warns(UserWarning, match="groups, such as 'x', have clips in more than one part"):
        fold_splits(manifest, val_split=0)


def test_made_folds_have_every_class_at_its_share():
    folds = fold_splits(manifest_of(["a"] * 50 + ["b"] * 23))

    assert [fold.name for fold in folds] == ["1", "2", "3", "4", "5"]
    assert [(fold.splits.test["category"] == "a").sum() for fold in folds] == [10] * 5
    assert sorted((fold.splits.test["category"] == "b").sum() for fold in folds) == [4, 4, 5, 5, 5]
    assert [len(fold.splits.val) for fold in folds] == [6] * 5


def test_leftover_clips_of_many_classes_do_not_all_come_into_one_fold():
    folds = fold_splits(manifest_of([f"c{n % 10}" for n in range(60)]))

    sizes = [len(fold.splits.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 2


def test_every_class_is_in_as_many_folds_as_it_has_groups():
    categories = ["a"] * 20 + ["b"] * 60 + ["c"] * 4
    groups = [f"a{n // 5}" for n in range(20)] + [f"b{n // 4}" for n in range(60)]
    groups += ["c0", "c0", "c1", "c1"]

    folds = fold_splits(manifest_of(categories, group=groups), 4)

    num_folds = {
        label: sum(label in set(fold.splits.test["category"]) for fold in folds) for label in "abc"
    }
    assert num_folds == {"a": 4, "b": 4, "c": 2}


def test_without_validation_everything_else_is_for_training():
    folds = fold_splits(manifest_of(["a", "b"] * 10), 2, val_split=0)

    assert [[len(part) for part in parts(fold)] for fold in folds] == [[10, 0, 10]] * 2


def test_one_group_is_left_out_at_a_time():
    manifest = manifest_of(["a", "b"] * 30, group=[f"speaker {n // 2 % 12}" for n in range(60)])

    folds = fold_splits(manifest, "groups")

    assert [fold.name for fold in folds] == [f"speaker {n}" for n in range(12)]
    for fold in folds:
        assert set(fold.splits.test["group"]) == {fold.name}
        assert not set(fold.splits.val["group"]) & set(fold.splits.train["group"])


def test_leaving_groups_out_takes_groups():
    with pytest.raises(DatasetError, match=r"the table has no groups.*group_pattern="):
        fold_splits(manifest_of(["a", "b"] * 10), "groups")
    with pytest.raises(DatasetError, match="2 folds need as many groups to test, but there are 0"):
        fold_splits(manifest_of(["a", "b"] * 10, group="x"), "groups")


def test_a_group_that_alone_holds_a_class_stays_in_training_and_is_named():
    manifest = manifest_of(
        ["a", "b"] * 12 + ["rare", "a"], group=[n // 2 for n in range(24)] + ["solo", "solo"]
    )

    with pytest.warns(
        UserWarning, match=r"1 of 3 classes are tested in no fold.*: rare\. 2 of 26 clips.*'solo'"
    ):
        folds = fold_splits(manifest, 3)

    assert all("solo" in set(fold.splits.train["group"]) for fold in folds)
    assert sum(len(fold.splits.test) for fold in folds) == 24


def test_classes_that_cannot_all_be_in_two_folds_are_still_trained_on_in_each():
    manifest = manifest_of(["ab", "bc", "ca"], "multi")  # each two of them share a class

    with pytest.warns(UserWarning, match="1 of 3 clips are never tested"):
        folds = fold_splits(manifest, 2, val_split=0)

    assert all(held(fold.splits.train) == set("abc") for fold in folds)


def test_a_fold_with_one_class_only_is_named():
    manifest = manifest_of(["a", "a", "b", "b"], group=list("wxyz"))

    with pytest.warns(
        UserWarning, match=r"4 of 4 folds have .* one class only.*: w \(a\), x \(a\)"
    ):
        fold_splits(manifest, "groups", val_split=0)


def test_a_validation_that_stays_empty_is_said():
    manifest = manifest_of(["a", "b"] * 2, group=list("xxyy"))

    with pytest.warns(UserWarning, match=r"Validation is empty in 2 of 2 folds \(x, y\)"):
        fold_splits(manifest, "groups")


def test_an_official_split_is_not_passed_over_in_silence():
    manifest = manifest_of(["a", "b"] * 10, split="train")

    with pytest.warns(UserWarning, match="column 'split' is passed over"):
        fold_splits(manifest, 2)


@pytest.mark.parametrize("folds", [1, 0, -3, 2.5, True, "all"])
def test_numbers_of_folds_that_are_none_are_refused(folds):
    with pytest.raises(ConfigError, match="whole number of at least 2"):
        fold_splits(manifest_of(["a", "b"] * 10), folds)


def test_more_folds_than_groups_and_shares_that_are_none_are_refused():
    manifest = manifest_of(["a", "b"] * 10, group=[n // 5 for n in range(20)])

    with pytest.raises(DatasetError, match="5 folds need as many groups to test, but there are 4"):
        fold_splits(manifest)
    with pytest.raises(DatasetError, match="one fold only"):
        fold_splits(manifest_of(["a", "b"] * 10, fold=1))
    with pytest.raises(ConfigError, match="val_split must be a share"):
        fold_splits(manifest, 2, val_split=1.0)


@given(
    st.lists(st.sampled_from(["a", "b", "c", "ab", "bc", "abc", ""]), min_size=6, max_size=40),
    st.sampled_from(["single", "multi"]),
    st.sampled_from([2, 3, "groups"]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_cross_validation_tests_each_clip_once_and_leaks_nothing(
    clips, task, folds, group_size, seed
):
    assume(len(set(clips)) > 1 and "".join(clips))
    columns = {} if group_size == 1 else {"group": [n // group_size for n in range(len(clips))]}
    manifest = manifest_of(clips, task, **columns)
    shuffled = Manifest(manifest.table.sample(frac=1, random_state=seed), manifest.labels, task)
    try:
        made = fold_splits(manifest, folds, val_split=0.2, seed=seed)
    except DatasetError as error:
        if not re.search("need as many|has no groups", str(error)):
            raise
        return

    tested = [index for fold in made for index in fold.splits.test.index]
    assert len(tested) == len(set(tested))
    always_trained = set(manifest.table.index) - set(tested)
    groups = manifest.table["group" if columns else "path"]
    assert not set(groups[list(always_trained)]) & set(groups[tested])
    for fold in made:
        train, val, test = (set(part.index) for part in parts(fold))
        assert len(train) + len(val) + len(test) == len(manifest)
        assert train | val | test == set(manifest.table.index)
        assert test
        assert always_trained <= train | val
        held_groups = [set(groups[list(part)]) for part in (train, val, test)]
        assert sum(len(names) for names in held_groups) == groups.nunique()
        if task == "multi":
            assert held(fold.splits.train) == set(manifest.labels)
        else:
            assert set(fold.splits.train["category"]) == set(manifest.labels)
    if not always_trained:
        assert sorted(tested) == list(manifest.table.index)
    again = fold_splits(shuffled, folds, val_split=0.2, seed=seed)
    for fold, other in zip(made, again, strict=True):
        assert fold.name == other.name
        for part, same in zip(parts(fold), parts(other), strict=True):
            assert set(part.index) == set(same.index)


def test_esc10_is_tested_on_its_official_folds(shared_data):
    manifest = build_manifest(load_csv_dataset(shared_data / "esc10" / "esc10.csv"))

    folds = fold_splits(manifest)

    assert [(fold.name, len(fold.splits.test)) for fold in folds] == [
        (str(n), 80) for n in range(1, 6)
    ]
    for fold in folds:
        groups = [set(part["group"]) for part in parts(fold)]
        assert sum(len(names) for names in groups) == manifest.table["group"].nunique()
        assert fold.splits.val["category"].nunique() == 10


def test_real_speakers_are_left_out_one_by_one(shared_data):
    files = sorted(str(file) for file in (shared_data / "fsdd" / "recordings").glob("*_[0-9].wav"))
    table = pd.DataFrame({"filename": files, "category": [Path(file).name[0] for file in files]})
    manifest = build_manifest(table, group_pattern=r"_(\w+)_\d+\.wav$")

    folds = fold_splits(manifest, "groups")

    assert [fold.name for fold in folds] == sorted(manifest.table["group"].unique())
    assert [len(fold.splits.test) for fold in folds] == [100] * 6
