import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.datasets import build_manifest, read_clip_table, write_clip_table
from beats_trainer.datasets.manifest import Manifest
from beats_trainer.errors import DatasetError, DatasetNotFoundError


def assert_same(read, written):
    pd.testing.assert_frame_equal(
        read[written.columns.tolist()], written, check_dtype=False, check_exact=True
    )


def test_rows_with_several_labels_read_back_the_same(make_clips, tmp_path):
    clips = make_clips("NA.wav", "1.wav", "b, c.wav", "3.wav")
    table = pd.DataFrame(
        {
            "filename": ["NA.wav", "1.wav", "b, c.wav", "3.wav"],
            "category": [["NA", "007"], [], ["null", "?007"], ["-NA"]],
            "start_time": [0.0, None, 1e-4 / 3, None],
            "end_time": [0.1 / 300, None, 4e-4, None],
            "fold": [1, 2, 3, 4],
            "group": ["007", "7", "NA", "x"],
        }
    )
    manifest = build_manifest(table, clips)
    written = manifest.table.assign(split="train")

    write_clip_table(written, manifest.labels, "multi", tmp_path / "splits.csv")

    read = read_clip_table(tmp_path / "splits.csv", manifest.labels, "multi")
    assert_same(read, written)
    text = pd.read_csv(tmp_path / "splits.csv", dtype=str, keep_default_na=False)
    assert text["category"].tolist() == ["007;NA", "", "null", ""]
    assert text["unknown"].tolist() == ["", "", "007", "007;null"]
    assert not list(tmp_path.glob("*.part"))


def test_rows_with_one_label_read_back_the_same(make_clips, tmp_path):
    clips = make_clips("a.wav", "b.wav", "c.wav")
    table = pd.DataFrame(
        {"filename": ["a.wav", "b.wav", "c.wav"], "category": ["NA", "007", "a;b"]}
    )
    manifest = build_manifest(table.assign(fold=[1, 2, 10]), clips)

    write_clip_table(manifest.table, manifest.labels, "single", tmp_path / "splits.csv")

    read = read_clip_table(tmp_path / "splits.csv", manifest.labels, "single")
    assert_same(read, manifest.table)
    assert read["target"].dtype == "int64"


def test_class_ids_are_those_of_the_model_whatever_was_written(make_clips, tmp_path):
    clips = make_clips("a.wav", "b.wav")
    table = pd.DataFrame({"filename": ["a.wav", "b.wav"], "category": ["a", "b"]})
    manifest = build_manifest(table, clips)
    write_clip_table(manifest.table, manifest.labels, "single", tmp_path / "splits.csv")

    assert read_clip_table(tmp_path / "splits.csv", ["b", "a"], "single")["target"].tolist() == [
        1,
        0,
    ]
    with pytest.raises(DatasetError, match=r"class 'b' in row 2.*not among the 1 of the model: a"):
        read_clip_table(tmp_path / "splits.csv", ["a"], "single")


@given(st.lists(st.tuples(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4))), min_size=1))
def test_any_labels_read_back_the_same(tmp_path_factory, clips):
    labels = ["NA", "a,b", '"', " 1", "nan"]
    present = [tuple(sorted(there)) for there, _ in clips]
    unknown = [tuple(sorted(maybe - there)) for there, maybe in clips]
    table = pd.DataFrame({"path": [f"/{n}" for n in range(len(clips))], "filename": "x"})
    table["category"] = [";".join(labels[n] for n in there) for there in present]
    table["present"] = pd.Series(present, dtype=object)
    table["unknown"] = pd.Series(unknown, dtype=object)
    file = tmp_path_factory.mktemp("table") / "x.csv"

    write_clip_table(table, labels, "multi", file)

    assert_same(read_clip_table(file, labels, "multi"), table)


def test_classes_of_partial_labels_are_not_written_one_by_one(tmp_path):
    labels = [f"species {n}" for n in range(500)]
    table = pd.DataFrame({"path": ["/a"], "filename": ["a"], "category": ["species 3"]})
    table["present"] = pd.Series([(3,)], dtype=object)
    table["unknown"] = pd.Series([tuple(n for n in range(500) if n != 3)], dtype=object)

    write_clip_table(table, labels, "multi", tmp_path / "x.csv")

    assert (tmp_path / "x.csv").read_text("utf-8").splitlines()[1] == "/a,a,species 3,*"
    assert_same(read_clip_table(tmp_path / "x.csv", labels, "multi"), table)


def test_blank_folds_and_groups_stay_blank(tmp_path):
    table = pd.DataFrame(
        {
            "path": ["/a", "/b"],
            "filename": ["a", "b"],
            "category": ["x", "y"],
            "target": [0, 1],
            "fold": ["01", None],
            "group": [None, "g"],
        }
    )
    manifest = Manifest(table, ["x", "y"])

    write_clip_table(manifest.table, manifest.labels, "single", tmp_path / "x.csv")

    read = read_clip_table(tmp_path / "x.csv", ["x", "y"], "single")
    assert read["fold"][0] == "01"
    assert read[["fold", "group"]].isna().values.tolist() == [[False, True], [True, False]]


def test_tables_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no table of clips"):
        read_clip_table(tmp_path / "x.csv", ["a"], "single")

    (tmp_path / "x.csv").write_text("path,filename,category,target\n/a,a,a,0\n", "utf-8")
    with pytest.raises(DatasetError, match="no column 'unknown', which the clips of a multi-label"):
        read_clip_table(tmp_path / "x.csv", ["a"], "multi")

    text = "path,filename,category,start_time,end_time\n/a,a,a,,\n/b,b,a,x,1\n"
    (tmp_path / "x.csv").write_text(text, "utf-8")
    with pytest.raises(DatasetError, match="holds 'x' as start_time in row 2"):
        read_clip_table(tmp_path / "x.csv", ["a"], "single")
    (tmp_path / "x.csv").write_text(text.replace(",x,", ",0.5,"), "utf-8")
    assert math.isnan(read_clip_table(tmp_path / "x.csv", ["a"], "single")["start_time"][0])
