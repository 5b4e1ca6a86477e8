"""The store on disk: killed at any moment it can go on, and what comes back is what went in, once."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beats_trainer.embeddings import open_store
from beats_trainer.embeddings import store as reading
from beats_trainer.embeddings.journal import (
    Covered,
    Entry,
    FileState,
    Journal,
    WindowFailure,
    decode_entries,
    encode_entries,
    key_of,
)
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.embeddings.table import EmbeddingTable
from beats_trainer.errors import (
    BEATsTrainerError,
    StoreError,
    StoreInUseError,
    StoreMismatchError,
    StoreNotFoundError,
)
from beats_trainer.loading.clips import Clip

RECIPE = {"pooling": "mean", "window_s": 1.0, "model": {"name": "tiny", "layer": 12}}
WIDTH = 4
STATE = FileState(1000, 1)


def writer_of(folder, recipe=RECIPE, **options):
    return StoreWriter(folder, {"embedding": WIDTH}, recipe, **options)


def vectors_of(file, windows):
    """A vector that says of which file and window it is."""
    number = float(int.from_bytes(file.encode("utf-8", "surrogateescape"), "big") % 997)
    return np.array([[number, window, 0.5, -1.0] for window in windows], np.float32).reshape(-1, 4)


def write(writer, *parts, state=STATE):
    """Write one shard of ``(file, first, stop, is_last)``, a window per second."""
    covered = [
        Covered(Clip(file), state, None, first, stop, last) for file, first, stop, last in parts
    ]
    file = [name for name, first, stop, _ in parts for _ in range(first, stop)]
    start = np.array([window for _, first, stop, _ in parts for window in range(first, stop)])
    values = [vectors_of(name, range(first, stop)) for name, first, stop, _ in parts]
    return writer.write_shard(
        covered, file, start, start + 1, {"embedding": np.concatenate(values)}
    )


def write_failed(writer, file, reason="no sound"):
    """Write a shard without rows: a clip that failed as a whole."""
    failed = (WindowFailure(None, None, reason),)
    covered = Covered(Clip(file), STATE, None, 0, 0, True, failed)
    return writer.write_shard([covered], [], [], [], {"embedding": np.zeros((0, WIDTH))})


def windows_in(store):
    """Which windows each file has, in the order of the rows."""
    found = {}
    for row in open_store(store):
        found.setdefault(row["file"], []).append(int(row["start_time"]))
        np.testing.assert_array_equal(
            row["embedding"], vectors_of(row["file"], [row["start_time"]])[0]
        )
    return found


def names_in(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def filled(out):
    """A store of three files in two shards; the long file lies in both."""
    with writer_of(out) as writer:
        write(writer, ("a.wav", 0, 2, True), ("long.wav", 0, 2, False))
        write(writer, ("long.wav", 2, 4, True), ("b.wav", 0, 1, True))
        writer.write_errors()
    return out


# ---------------------------------------------------------------- writing, and going on


def test_what_was_written_comes_back_in_order(filled):
    store = open_store(filled)

    assert len(store) == 7
    assert store.files == ["a.wav", "long.wav", "b.wav"]
    assert store.recipe == RECIPE
    assert store.columns == {"embedding": WIDTH}
    assert windows_in(filled) == {"a.wav": [0, 1], "long.wav": [0, 1, 2, 3], "b.wav": [0]}


def test_a_run_goes_on_where_the_one_before_ended(out):
    with writer_of(out) as writer:
        write(writer, ("a.wav", 0, 2, True), ("long.wav", 0, 3, False))

    with writer_of(out) as writer:
        assert writer.progress(Clip("a.wav")).is_complete
        unfinished = writer.progress(Clip("long.wav"))
        assert (unfinished.next_window, unfinished.is_complete) == (3, False)
        assert unfinished.state == STATE
        assert writer.progress(Clip("new.wav")) is None
        assert writer.clips_known == [Clip("a.wav"), Clip("long.wav")]
        write(writer, ("long.wav", 3, 5, True))

    assert windows_in(out) == {"a.wav": [0, 1], "long.wav": [0, 1, 2, 3, 4]}


def test_parts_of_one_file_are_known_apart(out):
    first, second = Clip("a.wav", 0.0, 5.0), Clip("a.wav", 2.0, 5.0)
    values = {"embedding": np.ones((3, WIDTH), np.float32)}
    with writer_of(out) as writer:
        covered = [
            Covered(first, STATE, 5.0, 0, 2, True, num_rows=2),
            Covered(second, STATE, 5.0, 0, 1, True, num_rows=1),
        ]
        writer.write_shard(covered, ["a.wav"] * 3, [0, 1, 2], [1, 2, 3], values)
        assert writer.forget([first]) == 2

    with writer_of(out) as writer:
        assert writer.clips_known == [second]
    assert open_store(out).read("a.wav").start_time.tolist() == [2.0]


def test_rows_of_several_clips_of_one_file_need_their_number(out):
    covered = [Covered(Clip("a.wav", start, 1.0), STATE, 1.0, 0, 1, True) for start in (0.0, 1.0)]
    values = {"embedding": np.ones((2, WIDTH), np.float32)}

    with writer_of(out) as writer, pytest.raises(ValueError, match="give num_rows"):
        writer.write_shard(covered, ["a.wav"] * 2, [0, 1], [1, 2], values)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("a.wav", 0, 2, True)], "Forget the clip first"),  # its rows are there
        ([("long.wav", 3, 4, True)], "cannot go on with window 3"),  # 2 is next
        ([("new.wav", 1, 2, True)], "cannot go on with window 1"),
        ([("new.wav", 0, 1, False), ("new.wav", 2, 3, True)], "give num_rows"),
    ],
)
def test_what_would_store_a_window_twice_or_lose_one_is_refused(out, parts, message):
    with writer_of(out) as writer:
        write(writer, ("a.wav", 0, 2, True), ("long.wav", 0, 2, False))

        with pytest.raises(ValueError, match=message):
            write(writer, *parts)
    assert windows_in(out) == {"a.wav": [0, 1], "long.wav": [0, 1]}


def test_rows_that_belong_to_no_clip_are_refused(out):
    covered = [Covered(Clip("a.wav"), STATE, 1.0, 0, 1, True)]
    values = {"embedding": np.ones((2, WIDTH), np.float32)}

    with writer_of(out) as writer:
        with pytest.raises(ValueError, match=r"the first of no clip is of b\.wav"):
            writer.write_shard(covered, ["a.wav", "b.wav"], [0, 0], [1, 1], values)
        with pytest.raises(ValueError, match="Expected columns of the shapes"):
            writer.write_shard(covered, ["a.wav"], [0], [1], values)
        with pytest.raises(ValueError, match="got no `covered`"):
            writer.write_shard([], [], [], [], {"embedding": np.zeros((0, WIDTH))})
    with pytest.raises(ValueError, match="closed"):
        writer.write_shard(covered, ["a.wav"], [0], [1], values)


def test_other_settings_are_refused_and_named(filled):
    other = {"pooling": "max", "window_s": 1.0, "model": {"name": "tiny", "layer": 6}, "hop_s": 1}

    with pytest.raises(StoreMismatchError) as caught:
        StoreWriter(filled, {"embedding": 8}, other, "float16")

    assert caught.value.differences == [
        ("pooling", '"mean"', '"max"'),
        ("model.layer", "12", "6"),
        ("width of embedding", "4", "8"),
        ("dtype", "float32", "float16"),
        ("hop_s", "(not there)", "1"),
    ]
    assert "--overwrite" in str(caught.value)
    assert isinstance(caught.value, BEATsTrainerError)
    assert len(open_store(filled)) == 7  # as it was


def test_values_that_json_writes_alike_are_the_same_recipe(out):
    with writer_of(out, {"layers": (6, 12)}) as writer:
        write(writer, ("a.wav", 0, 1, True))

    with writer_of(out, {"layers": [6, 12]}) as writer:
        assert writer.progress(Clip("a.wav")).is_complete


def test_a_store_without_rows_takes_any_recipe(out):
    with writer_of(out):
        pass  # killed before its first shard

    with writer_of(out, {"pooling": "max"}) as writer:
        write(writer, ("a.wav", 0, 1, True))
    assert json.loads((out / "store.json").read_text())["recipe"] == {"pooling": "max"}


def test_overwriting_removes_our_own_files_only(filled):
    (filled / "notes.txt").write_text("mine")
    (filled / "shards" / "mine.parquet").write_text("mine")

    with writer_of(filled, {"pooling": "max"}, overwrite=True) as writer:
        assert writer.clips_known == []
        write(writer, ("c.wav", 0, 1, True))

    assert windows_in(filled) == {"c.wav": [0]}
    assert {"notes.txt", "shards/mine.parquet"} < set(names_in(filled))
    assert "errors.csv" not in names_in(filled)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.doc").write_text("important")

    with pytest.raises(StoreError, match=r"holds no store.*thesis\.doc"):
        writer_of(tmp_path, overwrite=overwrite)
    assert [name for name in names_in(tmp_path) if not name.startswith(".")] == ["thesis.doc"]


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match="is a file"):
        writer_of(tmp_path / "file")
    with pytest.raises(OSError, match="is a file"):
        writer_of(tmp_path / "file" / "out")

    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(
        OSError, match=r"Read-only file system\. Make the folder writable"
    ) as caught:
        writer_of(tmp_path / "new")
    assert caught.value.errno == errno.EROFS


def test_leftovers_of_a_killed_run_are_removed(filled):
    for name in (
        "shards/.part-000002.parquet.77.part",
        ".errors.csv.77.part",
        ".store.json.77.part",
    ):
        (filled / name).write_text("half")

    with writer_of(filled):
        pass

    assert not [name for name in names_in(filled) if name.endswith(".part")]


# ---------------------------------------------------------------- one writer at a time


def test_a_second_run_is_told_who_writes(out):
    with writer_of(out) as writer:
        write(writer, ("a.wav", 0, 1, True))
        with pytest.raises(StoreInUseError, match=rf"process {os.getpid()} on .*, since 20\d\d-"):
            writer_of(out)
        with pytest.raises(StoreInUseError):
            writer_of(out, overwrite=True)
        write(writer, ("b.wav", 0, 1, True))  # the first is not disturbed

    with writer_of(out) as writer:
        assert len(writer.clips_known) == 2


def test_a_refused_store_is_not_kept_locked(filled):
    with pytest.raises(StoreMismatchError):
        writer_of(filled, {"pooling": "max"})

    with writer_of(filled):
        pass


def test_a_store_is_read_while_it_is_written(out):
    with writer_of(out) as writer:
        assert len(open_store(out)) == 0
        write(writer, ("a.wav", 0, 2, True))
        before = open_store(out)
        write(writer, ("b.wav", 0, 1, True))

        assert (len(before), before.to_numpy().shape) == (2, (2, WIDTH))
        assert windows_in(out) == {"a.wav": [0, 1], "b.wav": [0]}


# ---------------------------------------------------------------- failures


def test_failures_stand_in_a_table_neighbours_in_one_row(out):
    gap = tuple(WindowFailure(float(n), n + 1.0, "noise") for n in (2, 1))  # any order
    after = (WindowFailure(3.0, 4.0, "noise"), WindowFailure(4.0, 5.0, "other"))
    ones = np.ones((1, WIDTH), np.float32)
    with writer_of(out) as writer:
        clip = Clip("long.wav")
        covered = Covered(clip, STATE, 6.0, 0, 3, False, gap)
        writer.write_shard([covered], ["long.wav"], [0], [1], {"embedding": ones})
        covered = Covered(clip, STATE, 6.0, 3, 6, True, after)
        writer.write_shard([covered], ["long.wav"], [5], [6], {"embedding": ones})
        write_failed(writer, "caf\udce9.wav", 'no, "sound"')
        covered = Covered(
            Clip("part.wav", 2.0, 3.0), None, None, 0, 0, True, (WindowFailure(None, None, "gone"),)
        )
        writer.write_shard([covered], [], [], [], {"embedding": ones[:0]})
        table = writer.write_errors()

    expected = [
        ["long.wav", 1.0, 4.0, "noise"],
        ["long.wav", 4.0, 5.0, "other"],
        ["caf\\xe9.wav", None, None, 'no, "sound"'],
        ["part.wav", 2.0, 5.0, "gone"],
    ]
    expected = pd.DataFrame(expected, columns=["file", "start_time", "end_time", "reason"])
    pd.testing.assert_frame_equal(table, expected)
    pd.testing.assert_frame_equal(pd.read_csv(out / "errors.csv"), expected)
    pd.testing.assert_frame_equal(open_store(out).failures, expected)


def test_without_failures_the_table_has_a_header(filled):
    assert (filled / "errors.csv").read_text() == "file,start_time,end_time,reason\n"
    assert len(pd.read_csv(filled / "errors.csv")) == 0


def test_a_clip_that_failed_can_be_tried_again(out):
    with writer_of(out) as writer:
        write_failed(writer, "a.wav")
        assert writer.progress(Clip("a.wav")).has_failed
        write(writer, ("a.wav", 0, 2, True))

    with writer_of(out) as writer:
        assert not writer.progress(Clip("a.wav")).has_failed
        assert len(writer.write_errors()) == 0
    assert windows_in(out) == {"a.wav": [0, 1]}


# ---------------------------------------------------------------- a file has changed


def test_what_is_forgotten_is_gone_and_the_rest_is_as_it_was(filled):
    with writer_of(filled) as writer:
        assert writer.forget([Clip("long.wav"), Clip("never seen.wav")]) == 4
        assert writer.progress(Clip("long.wav")) is None
        assert windows_in(filled) == {"a.wav": [0, 1], "b.wav": [0]}
        write(writer, ("long.wav", 0, 1, True), state=FileState(5, 5))

    with writer_of(filled) as writer:
        assert writer.progress(Clip("long.wav")).state == FileState(5, 5)
    assert windows_in(filled) == {"a.wav": [0, 1], "b.wav": [0], "long.wav": [0]}


def test_a_shard_of_which_nothing_is_left_is_removed(filled):
    with writer_of(filled) as writer:
        assert writer.forget([Clip("long.wav"), Clip("b.wav")]) == 5

    assert [name for name in names_in(filled) if "part-" in name] == ["shards/part-000000.parquet"]


@pytest.mark.parametrize("renames_before", [0, 1])
def test_forgetting_that_is_broken_off_leaves_a_beginning_to_go_on_from(
    filled, monkeypatch, renames_before
):
    renames = []

    def break_off(source, target, replace=os.replace):
        if len(renames) == renames_before:
            raise OSError(errno.ENOSPC, "No space left on device")
        renames.append(target)
        replace(source, target)

    with writer_of(filled) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", break_off)
            with pytest.raises(OSError, match="No space left"):
                writer.forget([Clip("long.wav")])
        left = writer.progress(Clip("long.wav"))

    with writer_of(filled) as writer:
        assert writer.progress(Clip("long.wav")) == left
        assert windows_in(filled)["long.wav"] == list(range(left.next_window))
        assert left.next_window == (2 if renames_before else 4)
        writer.forget([Clip("long.wav")])
    assert windows_in(filled) == {"a.wav": [0, 1], "b.wav": [0]}


def test_a_changed_file_is_told_from_an_unchanged_one(tmp_path):
    file = tmp_path / "a.wav"
    assert FileState.of(file) is None
    file.write_bytes(b"12")
    before = FileState.of(file)
    assert FileState.of(file) == before
    file.write_bytes(b"123")

    assert FileState.of(file) != before
    assert FileState.of(tmp_path / "a\0.wav") is None
    of_url = FileState.of("s3://bucket/a.wav")
    assert of_url == FileState.of("zip://a.wav::s3://bucket/b.zip") == FileState(0, 0)


# ---------------------------------------------------------------- disks that fail


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_full_disk_leaves_the_store_whole_and_the_writer_usable(out, monkeypatch, where):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with writer_of(out) as writer:
        write(writer, ("a.wav", 0, 1, True))
        with monkeypatch.context() as patch:
            if where == "write":
                patch.setattr(pq.ParquetWriter, "write_table", fail)
            else:
                patch.setattr(os, "replace", fail)
            with pytest.raises(
                OSError, match=r"No space left on device\. What was written"
            ) as caught:
                write(writer, ("b.wav", 0, 1, True))
        assert caught.value.errno == errno.ENOSPC
        assert writer.progress(Clip("b.wav")) is None
        assert windows_in(out) == {"a.wav": [0]}
        assert not [name for name in names_in(out) if name.endswith(".part")]

        write(writer, ("b.wav", 0, 1, True))
    assert windows_in(out) == {"a.wav": [0], "b.wav": [0]}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_loses_nothing_that_was_written(small_disk):
    random = np.random.default_rng(0)
    file, times = ["a.wav"] * 10, np.arange(10.0)

    def write_next(writer, number):
        covered = [
            Covered(Clip("a.wav"), STATE, None, 10 * number, 10 * number + 10, is_last=False)
        ]
        values = {"embedding": random.standard_normal((10, 1000), np.float32)}
        writer.write_shard(covered, file, times, times + 1, values)

    with StoreWriter(small_disk, {"embedding": 1000}, RECIPE) as writer:
        for number in range(4):  # 36 kB each
            write_next(writer, number)
        (small_disk / "others").write_bytes(bytes(90_000))
        with pytest.raises(OSError, match=r"No space left on device\. What was written") as caught:
            write_next(writer, 4)
        assert caught.value.errno == errno.ENOSPC
        assert len(open_store(small_disk).to_numpy()) == 40
        assert not list(small_disk.rglob(".*.part"))
        (small_disk / "others").unlink()
        write_next(writer, 4)

    assert len(open_store(small_disk).to_numpy()) == 50


def test_a_damaged_shard_is_named_then_set_aside_and_its_clips_done_again(filled, caplog):
    shard = filled / "shards" / "part-000000.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])

    with pytest.raises(StoreError, match=r"part-000000\.parquet is damaged.*once more"):
        open_store(filled)
    with caplog.at_level(logging.WARNING), writer_of(filled) as writer:
        assert "damaged-part-000000.parquet" in caplog.text
        assert "lost windows of 1 clips" in caplog.text  # the long file's beginning
        assert writer.clips_known == [Clip("b.wav")]
        assert windows_in(filled) == {"b.wav": [0]}
        write(writer, ("a.wav", 0, 2, True), ("long.wav", 0, 4, True))

    assert (filled / "damaged-part-000000.parquet").is_file()
    assert windows_in(filled) == {"b.wav": [0], "a.wav": [0, 1], "long.wav": [0, 1, 2, 3]}


def test_a_damaged_last_shard_leaves_the_beginning_of_its_clips(filled):
    (filled / "shards" / "part-000001.parquet").write_bytes(b"")

    with writer_of(filled) as writer:
        assert writer.progress(Clip("long.wav")).next_window == 2
        assert writer.progress(Clip("b.wav")) is None


def test_damage_is_not_touched_by_a_run_with_other_settings(filled):
    (filled / "shards" / "part-000001.parquet").write_bytes(b"")

    with pytest.raises(StoreMismatchError):
        writer_of(filled, {"pooling": "max"})
    assert (filled / "shards" / "part-000001.parquet").is_file()


def test_a_bit_that_the_disk_lost_is_noticed_when_it_is_read(filled):
    shard = filled / "shards" / "part-000000.parquet"
    column = next(
        column
        for column in map(pq.read_metadata(shard).row_group(0).column, range(4))
        if column.path_in_schema.startswith("embedding")
    )
    content = bytearray(shard.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 3] ^= 8
    shard.write_bytes(content)

    with pytest.raises(StoreError, match=r"part-000000\.parquet is damaged"):
        open_store(filled).to_numpy()


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"format_version": "x"}'])
def test_a_lost_description_is_rebuilt_from_a_shard(filled, content):
    description = filled / "store.json"
    before = description.read_text()
    description.unlink()
    if content is not None:
        description.write_text(content)

    assert open_store(filled).recipe == RECIPE
    with writer_of(filled):
        pass
    assert description.read_text() == before


def test_a_store_of_a_newer_version_is_refused(filled):
    description = filled / "store.json"
    description.write_text(
        description.read_text().replace('"format_version": 1', '"format_version": 2')
    )

    with pytest.raises(StoreError, match="update beats_trainer"):
        writer_of(filled)
    newer = encode_entries([]).replace('"format_version":1', '"format_version":2')
    with pytest.raises(StoreError, match="update beats_trainer"):
        list(decode_entries(newer))


def test_a_foreign_shard_is_not_taken_for_ours(filled):
    table = EmbeddingTable(
        ["x.wav"], np.zeros(1), np.ones(1), np.zeros((1, WIDTH), np.float32), RECIPE
    )
    table.to_parquet(filled / "shards" / "part-000002.parquet")

    with pytest.raises(StoreError, match="was not written by a run into this store"):
        writer_of(filled)


# ---------------------------------------------------------------- reading


def test_plain_readers_see_the_shards_as_one_table(filled):
    frame = pd.read_parquet(filled / "shards")

    assert list(frame.columns) == ["file", "start_time", "end_time", "embedding"]
    np.testing.assert_array_equal(np.stack(frame["embedding"]), open_store(filled).to_numpy())
    schema = pq.read_schema(filled / "shards" / "part-000000.parquet")
    assert schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)
    for metadata in (
        schema.metadata,
        pq.read_metadata(filled / "shards" / "part-000001.parquet").metadata,
    ):
        assert json.loads(metadata[b"beats_trainer"]) == RECIPE


def test_rows_are_chosen_by_file(filled):
    store = open_store(filled)

    assert store.to_pandas(files=["b.wav", "a.wav"])["file"].tolist() == ["a.wav", "a.wav", "b.wav"]
    assert store.to_numpy(files=["long.wav"])[:, 1].tolist() == [0, 1, 2, 3]
    assert store.read("long.wav").start_time.tolist() == [0, 1, 2, 3]
    assert store.to_numpy(files=[]).shape == (0, WIDTH)
    assert list(store.to_pandas(files=[]).columns) == [
        "file",
        "start_time",
        "end_time",
        "embedding",
    ]
    with pytest.raises(StoreError, match=r"does not know c\.wav and 1 more\. Names are .* a\.wav"):
        store.to_numpy(files=["d.wav", "a.wav", "c.wav"])


def test_a_file_that_failed_is_known_and_has_no_rows(out):
    with writer_of(out) as writer:
        write_failed(writer, "broken.wav")

    store = open_store(out)
    assert len(store.read("broken.wav")) == 0
    assert store.files == []
    assert store.to_numpy().shape == (0, WIDTH)


def test_pieces_hold_at_most_so_many_rows_and_together_all(filled):
    store = open_store(filled)

    pieces = list(store.batches(max_rows=3))

    assert [len(piece) for piece in pieces] == [3, 1, 3]
    vectors = np.concatenate([piece.values["embedding"] for piece in pieces])
    np.testing.assert_array_equal(vectors, store.to_numpy())
    assert [len(piece) for piece in store.batches(["b.wav"], 3)] == [1]
    assert list(pieces[0].to_pandas().columns) == ["file", "start_time", "end_time", "embedding"]
    with pytest.raises(ValueError, match="max_rows"):
        store.batches(max_rows=0)


def test_iterating_gives_as_many_rows_as_there_are(filled):
    rows = list(open_store(filled))

    assert len(rows) == 7
    assert (rows[-1]["file"], rows[-1]["start_time"], rows[-1]["end_time"]) == ("b.wav", 0.0, 1.0)


def test_rows_of_a_file_come_in_time_order_wherever_they_lie(out):
    with writer_of(out) as writer:
        for start in (5.0, 0.0):
            covered = [Covered(Clip("a.wav", start, 2.0), STATE, 2.0, 0, 2, True)]
            times = np.array([start, start + 1])
            values = {"embedding": np.tile(times[:, None], WIDTH)}
            writer.write_shard(covered, ["a.wav"] * 2, times, times + 1, values)

    rows = open_store(out).read("a.wav")

    assert rows.start_time.tolist() == [0, 1, 5, 6]
    assert rows.values["embedding"][:, 0].tolist() == [0, 1, 5, 6]
    assert open_store(out).durations == {"a.wav": 7.0}


def test_what_was_planned_of_files_is_told_once_and_whether_it_is_all(out):
    clips = [
        (Clip("a.wav", 5.0, 2.0), 2.0),
        (Clip("a.wav", 0.0, 2.0), 2.0),
        (Clip("a.wav", 1.0, 2.0), 2.0),  # overlaps
        (Clip("b.wav"), 4.0),
        (Clip("b.wav", 1.0, 2.0), 2.0),
        (Clip("c.wav", 3.0), 1.0),
    ]
    with writer_of(out) as writer:
        for clip, seconds in clips:
            covered = [Covered(clip, STATE, seconds, 0, 1, True, num_rows=1)]
            writer.write_shard(
                covered, [clip.file], [0.0], [1.0], {"embedding": np.ones((1, WIDTH))}
            )
        write_failed(writer, "bad.wav")

    parts = open_store(out).parts

    assert parts.to_numpy().tolist() == [
        ["a.wav", 0.0, 3.0, False],
        ["a.wav", 5.0, 7.0, False],
        ["b.wav", 0.0, 4.0, True],
        ["c.wav", 3.0, 4.0, False],
    ]


def test_several_columns_are_read_one_by_one(out):
    columns = {"embedding_layer_6": 2, "embedding_layer_12": 3}
    values = {
        "embedding_layer_12": np.full((2, 3), 12.0),
        "embedding_layer_6": np.full((2, 2), 6.0),
    }
    with StoreWriter(out, columns, RECIPE) as writer:
        covered = [Covered(Clip("a.wav"), STATE, 2.0, 0, 2, True)]
        writer.write_shard(covered, ["a.wav"] * 2, [0, 1], [1, 2], values)

    store = open_store(out)
    np.testing.assert_array_equal(store.to_numpy("embedding_layer_6"), np.full((2, 2), 6.0))
    assert list(store.to_pandas(columns=["file", "embedding_layer_12"])) == [
        "file",
        "embedding_layer_12",
    ]
    assert list(store.read("a.wav").values) == list(columns)
    with pytest.raises(StoreError, match="Several columns"):
        store.to_numpy()
    with pytest.raises(StoreError, match="no column 'scores'"):
        store.to_numpy("scores")


def test_half_precision_comes_back_as_it_was_stored(out):
    values = np.array([[0.1, -60000, 6e-8, 3]], np.float32)
    with writer_of(out, dtype="float16") as writer:
        covered = [Covered(Clip("a.wav"), STATE, 1.0, 0, 1, True)]
        writer.write_shard(covered, ["a.wav"], [0], [1], {"embedding": values})

        with pytest.raises(StoreError, match=r"70000, is beyond the range of float16 \(65504\)"):
            writer.write_shard(
                [Covered(Clip("b.wav"), STATE, 1.0, 0, 1, True)],
                ["b.wav"],
                [0],
                [1],
                {"embedding": np.full((1, WIDTH), -70000, np.float32)},
            )

    for store in (
        open_store(out),
        open_store(open_store(out).merge_to(out.parent / "one.parquet")),
    ):
        back = store.to_numpy()
        assert back.dtype == np.float16
        np.testing.assert_array_equal(back, values.astype(np.float16))
        np.testing.assert_array_equal(store.read("a.wav").values["embedding"], back)


def test_names_that_are_no_text_are_printable_in_rows_and_exact_in_the_journal(out):
    names = ["caf\udce9.wav", "with space.wav", "🐦 bird.wav"]
    with writer_of(out) as writer:
        write(writer, *((name, 0, 1, True) for name in names))

    with writer_of(out) as writer:
        assert writer.clips_known == [Clip(name) for name in names]
        assert writer.progress(Clip(names[0])).is_complete
    store = open_store(out)
    assert store.files == ["caf\\xe9.wav", *names[1:]]
    assert len(store.read(names[0])) == len(store.read("caf\\xe9.wav")) == 1


def test_a_store_lies_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "\udcff 🐦"
    with writer_of(folder) as writer:
        write(writer, ("a.wav", 0, 1, True))

    assert windows_in(folder) == {"a.wav": [0]}


def test_merged_into_one_file_it_is_the_same_store(filled, tmp_path):
    with writer_of(filled) as writer:
        write_failed(writer, "broken.wav")
    store = open_store(filled)

    merged = open_store(store.merge_to(tmp_path / "new" / "one.parquet"))

    pd.testing.assert_frame_equal(merged.to_pandas(), store.to_pandas())
    pd.testing.assert_frame_equal(merged.failures, store.failures)
    assert merged.recipe == store.recipe
    assert merged.files == store.files
    assert pq.read_metadata(merged.path).num_row_groups == 3
    assert len(merged.read("broken.wav")) == 0
    assert merged.durations == {}
    assert list(merged.parts.columns) == ["file", "start_time", "end_time", "is_whole"]
    again = open_store(merged.merge_to(tmp_path / "two.parquet"))
    pd.testing.assert_frame_equal(again.to_pandas(), store.to_pandas())
    with pytest.raises(ValueError, match="outside of"):
        store.merge_to(filled / "shards" / "one.parquet")
    with pytest.raises(ValueError, match="outside of"):
        merged.merge_to(merged.path)


def test_a_merge_that_is_broken_off_leaves_the_file_as_it_was(filled, tmp_path):
    store = open_store(filled)
    before = store.merge_to(tmp_path / "one.parquet").read_bytes()
    shard = filled / "shards" / "part-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])

    with pytest.raises(StoreError, match=r"part-000001\.parquet is damaged"):
        store.merge_to(tmp_path / "one.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_a_merge_says_when_its_footer_has_no_room_for_all_failures(
    out, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(reading, "_MOST_FAILURE_BYTES", 600)
    with writer_of(out) as writer:
        for number in range(20):
            write_failed(writer, f"{number}.wav")

    with caplog.at_level(logging.WARNING):
        merged = open_store(open_store(out).merge_to(tmp_path / "one.parquet"))

    assert 0 < len(merged.failures) < 20
    assert f"lists {len(merged.failures)} of 20 failures" in caplog.text


def test_a_table_of_embeddings_opens_as_a_store(tmp_path):
    table = EmbeddingTable(["a.wav"], np.zeros(1), np.ones(1), np.ones((1, 3), np.float32), RECIPE)

    store = open_store(table.to_parquet(tmp_path / "table.parquet"))

    assert (len(store), store.recipe, store.columns) == (1, RECIPE, {"embedding": 3})
    assert len(store.failures) == 0
    assert "1 rows, embedding (3), float32" in repr(store)


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    pd.DataFrame({"file": ["a"]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("text")

    with pytest.raises(StoreNotFoundError, match="There is no store at"):
        open_store(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no store"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="is not a table of embeddings"):
        open_store(tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="is damaged"):
        open_store(tmp_path / "text.parquet")


def test_arrows_threads_hold_nothing_of_python_that_could_end_before_them(filled, monkeypatch):
    sources = []

    class Watched(pq.ParquetFile):
        def __init__(self, source, **options):
            sources.append(source)
            super().__init__(source, **options)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    open_store(filled).to_pandas()

    assert sources
    assert all(isinstance(source, pa.OSFile) for source in sources)


def test_a_store_that_changes_under_its_reader_says_so(filled):
    store = open_store(filled)
    with writer_of(filled) as writer:
        writer.forget([Clip("a.wav")])

    with pytest.raises(StoreError, match="Open it again"):
        store.to_numpy()


def test_reading_needs_no_torch():
    code = "import sys; from beats_trainer.embeddings import open_store; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- the journal in general, and kills


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans(), st.booleans()),
        max_size=30,
    )
)
@settings(max_examples=60)
def test_the_journal_counts_each_window_once_whatever_the_order_of_shards(steps):
    journal, expected = Journal(), {}
    for file, count, is_last, fails in steps:
        done, failed, complete = expected.get(file, (0, 0, False))
        if complete:
            continue
        failures = (WindowFailure(done, done + 1.0, "noise"),) if fails else ()
        covered = Covered(Clip(file), STATE, None, done, done + count, is_last, failures)
        entry = Entry(
            key_of(covered.clip), STATE, None, done, done + count, is_last, count - fails, failures
        )
        (entry,) = decode_entries(encode_entries([entry]))
        journal.add(entry)
        expected[file] = (done + count, failed + fails, is_last)

    assert not journal.broken
    for file, (done, failed, complete) in expected.items():
        progress = journal.progress[key_of(Clip(file))]
        assert (progress.next_window, progress.is_complete) == (done, complete)
        assert progress.num_rows == done - failed
        assert progress.has_failed == (failed > 0)


def test_a_run_that_ended_before_its_recipe_was_written_is_no_obstacle(out):
    (out / "shards").mkdir(parents=True)

    with writer_of(out) as writer:
        write(writer, ("a.wav", 0, 1, True))

    assert windows_in(out) == {"a.wav": [0]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked run")
def test_killed_at_any_moment_journal_and_rows_agree_and_nothing_is_there_twice(out):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_run.py")), str(out), "24"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12  # else this showed nothing
