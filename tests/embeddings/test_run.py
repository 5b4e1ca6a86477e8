"""A run into a store: stopped anywhere it ends as one that was not; what is new or changed is done, once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import soundfile

from beats_trainer import BEATsFeatureExtractor
from beats_trainer.audio import remote
from beats_trainer.embeddings import open_store, pieces, run, windowed
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.store import EmbeddingStore
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.embeddings.windows import Windowing
from beats_trainer.errors import AudioError, AudioNotFoundError, StoreError, StoreMismatchError
from beats_trainer.loading import Clip, plan_windows
from checkpoint_files import tiny_architecture, write_microsoft_checkpoint
from sounds import tone, write_tone
from stored import WatchedNetwork, rows_of, times_of

WIDTH = 32
PER_SHARD = 8
WINDOWS = {"window_s": 0.5, "hop_s": 0.25}
CUTS = {
    "windows": WINDOWS,
    "files": {},
    "steps": {"window_s": 0.7, "per_step": True},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_microsoft_checkpoint(folder / "model.pt", tiny_architecture())


@pytest.fixture(scope="module")
def extractor(checkpoint):
    return BEATsFeatureExtractor(checkpoint, "cpu", precision="float32", batch_size=4)


@pytest.fixture
def folder(tmp_path):
    """Recordings of several lengths and rates, and two files that are none."""
    place = tmp_path / "recordings"
    write_tone(place / "a.wav", seconds=0.4, seed=1)
    (place / "b.wav").write_text("not a recording")
    write_tone(place / "c.flac", seconds=2.3, sample_rate=8_000, seed=2)
    write_tone(place / "deeper" / "d.wav", seconds=0.05, seed=3)
    write_tone(place / "long.wav", seconds=5.1, seed=4)
    write_tone(place / "y.wav", seconds=0.9, seed=5)
    (place / "z.wav").touch()
    return place


@pytest.fixture
def network(monkeypatch):
    return WatchedNetwork(monkeypatch)


def embed(extractor, inputs, out, **options):
    """Windows of half a second, eight rows to a shard, unless said otherwise."""
    settings = {"rows_per_shard": PER_SHARD, "progress": False, **WINDOWS} | options
    return extractor.embed_to(inputs, out, **settings)


def embed_cut(extractor, inputs, out, cut, **options):
    settings = {"rows_per_shard": PER_SHARD, "progress": False, **CUTS[cut]} | options
    return extractor.embed_to(inputs, out, **settings)


def state_of(folder):
    """Name, content and date of every file, but for the lock."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def failed_files(store):
    return [file.rsplit("/", 1)[-1] for file in open_store(store).failures["file"]]


# ---------------------------------------------------------------- what is stored


def test_rows_are_those_of_the_same_windows_in_memory(extractor, folder, tmp_path):
    readable = [folder / name for name in ("a.wav", "c.flac", "deeper/d.wav", "long.wav", "y.wav")]

    store = embed(extractor, folder, tmp_path / "out")

    table = extractor.embed(readable, 0.5, 0.25)
    rows = store.to_pandas()
    assert rows["file"].tolist() == [str(file) for file in table.file]
    np.testing.assert_array_equal(rows["start_time"], table.start_time)
    np.testing.assert_array_equal(rows["end_time"], table.end_time)
    at_8_khz = np.array([file.endswith(".flac") for file in table.file])
    got = store.to_numpy()
    np.testing.assert_allclose(got[~at_8_khz], table.embeddings[~at_8_khz], atol=1e-5)
    # Where a shard ends, so does what is resampled in one go: above 4 kHz, where such a file holds nothing,
    # the network hears the resampler's own noise.
    np.testing.assert_allclose(got[at_8_khz], table.embeddings[at_8_khz], atol=0.05)
    assert failed_files(store.path) == ["b.wav", "z.wav"]


def test_the_tail_of_a_recording_has_a_row_and_padding_is_not_in_its_mean(extractor, tmp_path):
    sound = tone(2.3, seed=6)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")

    store = embed(extractor, tmp_path / "a.wav", tmp_path / "out", window_s=1.0, hop_s=None)

    assert times_of(tmp_path / "out") == {"a.wav": [(0.0, 1.0), (1.0, 2.0), (2.0, 2.3)]}
    alone = extractor.extract_from_array(sound[32_000:])
    np.testing.assert_allclose(store.to_numpy()[2], alone, atol=1e-5)


def test_a_short_clip_is_not_repeated_to_fill_its_window(extractor, tmp_path):
    short = tone(0.4, seed=7)
    soundfile.write(tmp_path / "short.wav", short, 16_000, subtype="FLOAT")
    write_tone(tmp_path / "whole.wav", seconds=2.0)

    store = embed(extractor, tmp_path, tmp_path / "out", window_s=2.0, hop_s=None)

    row = store.to_numpy()[0]
    np.testing.assert_allclose(row, extractor.extract_from_array(short), atol=1e-5)
    assert np.abs(row - extractor.extract_from_array(np.tile(short, 5))).max() > 1e-3


def test_rows_per_time_step_follow_one_another_every_160_ms(extractor, folder, tmp_path):
    store = embed_cut(extractor, folder / "long.wav", tmp_path / "out", "steps")

    num_steps = (round(5.1 * 16_000) - 240) // 2_560
    rows = store.to_pandas()
    expected = 0.16 * np.arange(num_steps)
    np.testing.assert_allclose(rows["start_time"], expected, atol=1e-9)
    np.testing.assert_allclose(rows["end_time"], expected + 0.16, atol=1e-9)


def test_rows_per_time_step_are_the_mean_of_that_steps_patches(checkpoint, folder, tmp_path):
    network = BEATsFeatureExtractor(checkpoint, "cpu", precision="float32")
    every_token = BEATsFeatureExtractor(checkpoint, "cpu", pooling="none", precision="float32")

    store = embed_cut(
        network, folder / "y.wav", tmp_path / "out", "steps", window_s=None, hop_s=None
    )

    tokens = every_token.extract_from_file(folder / "y.wav")
    steps = tokens.reshape(-1, 8, WIDTH).mean(axis=1)
    np.testing.assert_allclose(store.to_numpy(), steps, atol=1e-5)


def test_several_layers_are_columns_side_by_side(extractor, folder, tmp_path):
    files = [folder / "a.wav", folder / "y.wav"]

    store = embed_cut(extractor, files, tmp_path / "out", "files", layers=[0, 2])

    expected = extractor.extract_from_files(files, return_all_layers=True)
    assert store.columns == {"embedding_layer_0": WIDTH, "embedding_layer_2": WIDTH}
    for layer in (0, 2):
        got = store.to_numpy(f"embedding_layer_{layer}")
        np.testing.assert_allclose(got, expected[:, layer], atol=1e-5)


def test_half_precision_and_unit_length_are_of_the_same_rows(extractor, folder, tmp_path):
    plain = embed(extractor, folder, tmp_path / "plain").to_numpy()

    half = embed(extractor, folder, tmp_path / "half", dtype="float16").to_numpy()
    unit = embed(extractor, folder, tmp_path / "unit", normalize=True).to_numpy()

    np.testing.assert_array_equal(half, plain.astype(np.float16))
    length = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, plain / length, atol=1e-6)


def test_parts_of_one_file_are_clips_of_their_own(extractor, folder, tmp_path):
    file = str(folder / "long.wav")
    parts = [Clip(file, 0.0, 1.0), Clip(file, 4.0, 2.0), Clip(file, 0.5, 1.0)]

    embed(extractor, parts, tmp_path / "out", hop_s=None)
    embed(extractor, parts, tmp_path / "out", hop_s=None)

    assert times_of(tmp_path / "out") == {
        "long.wav": [
            (0.0, 0.5),
            (0.5, 1.0),
            (4.0, 4.5),
            (4.5, 5.0),
            (5.0, 5.1),
            (0.5, 1.0),
            (1.0, 1.5),
        ]
    }


def test_a_file_that_is_meant_twice_has_its_rows_once(extractor, folder, tmp_path):
    once = embed(extractor, folder, tmp_path / "once")

    embed(extractor, [folder, folder / "a.wav", str(folder / "c*")], tmp_path / "out")

    assert rows_of(tmp_path / "out") == rows_of(once.path)


@pytest.mark.parametrize("given", [".", "*.wav", "no/such/*.flac"])
def test_inputs_that_mean_nothing_are_an_error_and_no_empty_store(
    extractor, tmp_path, monkeypatch, given
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    with pytest.raises(AudioNotFoundError):
        embed(extractor, given, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_size": -1}, {"rows_per_shard": 0}])
def test_sizes_below_one_are_refused_before_anything_is_made(extractor, folder, tmp_path, sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        embed(extractor, folder, tmp_path / "out", **sizes)

    assert not (tmp_path / "out").exists()


def test_shards_are_written_on_the_way_and_hold_no_more_than_was_asked(
    extractor, folder, tmp_path, monkeypatch, network
):
    """At most a shard is in memory, or is lost: the network sees nothing beyond what is stored by then."""
    written = []
    write = StoreWriter.write_shard

    def watched(writer, covered, file, *rest):
        written.append((network.num_windows, len(file)))
        return write(writer, covered, file, *rest)

    monkeypatch.setattr(StoreWriter, "write_shard", watched)
    embed(extractor, folder, tmp_path / "out")

    encoded, rows = zip(*written, strict=True)
    assert len(rows) > 3
    assert max(rows) <= PER_SHARD
    assert list(encoded) == np.cumsum(rows).tolist()


# ---------------------------------------------------------------- stopped and started again


@pytest.mark.parametrize("cut", CUTS)
def test_stopped_before_any_batch_it_ends_as_if_it_never_was(
    extractor, folder, tmp_path, network, cut
):
    embed_cut(extractor, folder, tmp_path / "unbroken", cut)
    expected, num_batches, num_windows = (
        rows_of(tmp_path / "unbroken"),
        network.num_batches,
        network.num_windows,
    )
    assert num_batches >= 2

    for number in range(num_batches):
        out = tmp_path / f"stopped {number}"
        network.reset()
        network.interrupt_before_batch(number)
        with pytest.raises(KeyboardInterrupt):
            embed_cut(extractor, folder, out, cut)
        stored = rows_of(out)
        assert stored == expected[: len(stored)]
        embed_cut(extractor, folder, out, cut)

        assert rows_of(out) == expected
        assert failed_files(out) == ["b.wav", "z.wav"]
        assert network.num_windows - num_windows < PER_SHARD


def test_stopped_again_and_again_it_gets_on_by_a_shard_each_time(
    extractor, folder, tmp_path, network
):
    expected = rows_of(embed(extractor, folder, tmp_path / "unbroken").path)
    out, before = tmp_path / "out", -1

    while True:
        network.reset()
        network.interrupt_before_batch(4)  # a shard is two to four batches
        try:
            embed(extractor, folder, out)
            break
        except KeyboardInterrupt:
            assert len(rows_of(out)) > before
            before = len(rows_of(out))

    assert rows_of(out) == expected


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_has_the_rows_of_an_unbroken_run(tmp_path):
    script = Path(__file__).with_name("killed_embedding.py")
    command = [sys.executable, str(script), str(tmp_path), "16"]

    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout) >= 16  # that many were hit in their work


def test_the_same_command_again_changes_nothing(extractor, folder, tmp_path, network):
    embed(extractor, folder, tmp_path / "out")
    before = state_of(tmp_path / "out")
    network.reset()

    embed(extractor, folder, tmp_path / "out")

    after = state_of(tmp_path / "out")
    assert network.num_windows == 0
    before.pop(Path("errors.csv"))
    after.pop(Path("errors.csv"))  # written each time
    assert after == before


def test_new_files_are_added_wherever_they_are_in_the_order(extractor, folder, tmp_path, network):
    out = tmp_path / "out"
    network.interrupt_before_batch(4)
    with pytest.raises(KeyboardInterrupt):
        embed(extractor, folder, out)
    write_tone(folder / "0.wav", seconds=1.1, seed=8)
    write_tone(folder / "between.wav", seconds=1.1, seed=9)

    embed(extractor, folder, out)

    # In another order than in one go: what was there already is not moved.
    fresh = rows_of(embed(extractor, folder, tmp_path / "fresh", batch_size=1).path)
    got = rows_of(out)
    assert sorted(row[:3] for row in got) == sorted(row[:3] for row in fresh)
    vectors = {row[:3]: np.frombuffer(row[3], np.float32) for row in fresh}
    for row in got:
        np.testing.assert_allclose(np.frombuffer(row[3], np.float32), vectors[row[:3]], atol=1e-5)


def test_only_what_is_new_is_encoded(extractor, folder, tmp_path, network):
    embed(extractor, folder, tmp_path / "out")
    network.reset()
    write_tone(folder / "new.wav", seconds=1.0)

    store = embed(extractor, folder, tmp_path / "out")

    assert network.num_windows == len(times_of(store.path)["new.wav"]) == 3


def test_a_changed_file_is_noticed_and_done_anew_alone(
    extractor, folder, tmp_path, network, caplog
):
    embed(extractor, folder, tmp_path / "out")
    write_tone(folder / "c.flac", seconds=1.0, seed=10)
    network.reset()

    store = embed(extractor, folder, tmp_path / "out")

    fresh = embed(extractor, folder, tmp_path / "fresh")
    assert "not what they were" in caplog.text
    assert times_of(store.path) == times_of(fresh.path)
    changed = str(folder / "c.flac")
    np.testing.assert_allclose(
        store.to_numpy(files=[changed]), fresh.to_numpy(files=[changed]), atol=1e-5
    )
    assert network.num_windows == 3 + len(fresh)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window_s": 0.6}, "window_s: 0.5 -> 0.6"),
        ({"hop_s": 0.2}, "hop_s: 0.25 -> 0.2"),
        ({"per_step": True}, "per_step: false -> true"),
        ({"layers": [1]}, "layers"),
        ({"normalize": True}, "normalize: false -> true"),
        ({"dtype": "float16"}, "dtype: float32 -> float16"),
    ],
)
def test_another_recipe_is_refused_and_changes_nothing(extractor, folder, tmp_path, options, named):
    embed(extractor, folder, tmp_path / "out")
    before = state_of(tmp_path / "out")

    with pytest.raises(StoreMismatchError, match=named):
        embed(extractor, folder, tmp_path / "out", **options)

    assert state_of(tmp_path / "out") == before


def test_other_weights_are_another_recipe(extractor, folder, tmp_path):
    embed(extractor, folder, tmp_path / "out")
    other = write_microsoft_checkpoint(tmp_path / "other.pt", tiny_architecture(), seed=1)

    with pytest.raises(StoreMismatchError, match="weights_sha256"):
        embed(BEATsFeatureExtractor(other, "cpu", precision="float32"), folder, tmp_path / "out")


def test_batch_size_and_place_of_the_model_may_change_between_runs(
    checkpoint, extractor, folder, tmp_path, network
):
    network.interrupt_before_batch(3)
    with pytest.raises(KeyboardInterrupt):
        embed(extractor, folder, tmp_path / "out")
    moved = shutil.copy(checkpoint, tmp_path / "moved.pt")

    other = BEATsFeatureExtractor(moved, "cpu", precision="float32", batch_size=3)
    store = embed(other, folder, tmp_path / "out")

    assert times_of(store.path) == times_of(embed(extractor, folder, tmp_path / "fresh").path)


def test_overwriting_begins_anew(extractor, folder, tmp_path):
    embed(extractor, folder, tmp_path / "out")

    store = embed(
        extractor, folder / "a.wav", tmp_path / "out", window_s=0.2, hop_s=None, overwrite=True
    )

    assert times_of(store.path) == {"a.wav": [(0.0, 0.2), (0.2, 0.4)]}
    assert store.failures.empty


# ---------------------------------------------------------------- what cannot be read


def test_errors_csv_names_what_failed_and_why(extractor, folder, tmp_path):
    store = embed(extractor, folder, tmp_path / "out")

    errors = pd.read_csv(tmp_path / "out" / "errors.csv")
    assert errors["file"].tolist() == [str(folder / "b.wav"), str(folder / "z.wav")]
    assert "not audio" in errors["reason"][0]
    assert "empty" in errors["reason"][1]
    pd.testing.assert_frame_equal(errors, store.failures, check_dtype=False)


def test_a_file_that_failed_is_tried_again_and_may_succeed(extractor, folder, tmp_path, network):
    embed(extractor, folder, tmp_path / "out")
    shards = state_of(tmp_path / "out" / "shards")
    embed(extractor, folder, tmp_path / "out")
    assert state_of(tmp_path / "out" / "shards") == shards  # that it failed again is no news

    shutil.copy(folder / "y.wav", folder / "b.wav")
    network.reset()
    store = embed(extractor, folder, tmp_path / "out")

    times = times_of(store.path)
    assert times["b.wav"] == times["y.wav"]
    assert network.num_windows == len(times["b.wav"])
    assert failed_files(store.path) == ["z.wav"]


def test_a_file_that_failed_and_is_gone_is_listed_until_nobody_asks_for_it(
    extractor, folder, tmp_path
):
    embed(extractor, folder, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    (folder / "b.wav").unlink()

    embed(extractor, [folder, folder / "b.wav"], tmp_path / "out")
    assert failed_files(tmp_path / "out") == ["b.wav", "z.wav"]
    embed(extractor, folder, tmp_path / "out")
    assert failed_files(tmp_path / "out") == ["z.wav"]
    embed(extractor, folder / "deeper", tmp_path / "out")  # z.wav is still there

    assert failed_files(tmp_path / "out") == ["z.wav"]
    assert rows_of(tmp_path / "out") == rows


def test_a_file_that_was_away_and_comes_back_keeps_its_rows(extractor, folder, tmp_path, network):
    expected = rows_of(embed(extractor, folder, tmp_path / "out").path)
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    (folder / "c.flac").rename(tmp_path / "away")
    network.reset()

    embed(extractor, files, tmp_path / "out")
    assert rows_of(tmp_path / "out") == expected
    (tmp_path / "away").rename(folder / "c.flac")
    embed(extractor, files, tmp_path / "out")

    assert rows_of(tmp_path / "out") == expected
    assert network.num_windows == 0
    assert failed_files(tmp_path / "out") == ["b.wav", "z.wav"]


def stopped_within_the_long_file(extractor, folder, out, network):
    network.interrupt_before_batch(6)
    with pytest.raises(KeyboardInterrupt):
        embed(extractor, folder, out)
    network.reset()
    times = times_of(out)["long.wav"]
    assert 0 < len(times) < 20
    return times


def test_a_file_that_is_away_when_its_run_goes_on_keeps_the_rows_it_has(
    extractor, folder, tmp_path, network
):
    out, long = tmp_path / "out", folder / "long.wav"
    times = stopped_within_the_long_file(extractor, folder, out, network)
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    long.rename(tmp_path / "away")

    embed(extractor, files, out)

    assert times_of(out)["long.wav"] == times
    assert "y.wav" in times_of(out)
    assert failed_files(out) == ["b.wav", "long.wav", "z.wav"]

    (tmp_path / "away").rename(long)
    embed(extractor, files, out)
    assert (
        sorted(times_of(out)["long.wav"])
        == times_of(embed(extractor, long, tmp_path / "fresh").path)["long.wav"]
    )
    assert failed_files(out) == ["b.wav", "z.wav"]


@pytest.mark.parametrize("change", ["shorter", "longer", "removed", "unreadable"])
@pytest.mark.parametrize("moment", ["before it is planned", "while it is planned"])
def test_a_file_that_changes_before_its_run_goes_on_with_it_ends_no_run(
    extractor, folder, tmp_path, network, change, moment
):
    out, long = tmp_path / "out", folder / "long.wav"
    times = stopped_within_the_long_file(extractor, folder, out, network)

    def change_it():
        if change == "removed":
            long.unlink()
        elif change == "unreadable":
            long.write_text("no more")
        else:
            write_tone(long, seconds=0.4 if change == "shorter" else 7.0, seed=11)

    find_work, plan_clip = run._find_work, windowed.plan_clip

    def find_work_then_change(*arguments):
        work = find_work(*arguments)
        change_it()
        return work

    def change_then_plan(clip, windowing):
        if clip.file == str(long):
            change_it()
        return plan_clip(clip, windowing)

    with pytest.MonkeyPatch.context() as patch:
        if moment == "before it is planned":
            patch.setattr(run, "_find_work", find_work_then_change)
        else:
            patch.setattr(windowed, "plan_clip", change_then_plan)
        embed(extractor, folder, out)

    assert "long.wav" in failed_files(out)
    assert len(times_of(out)["y.wav"]) == 3
    if (change, moment) != ("longer", "while it is planned"):
        assert times_of(out)["long.wav"] == times  # of the file as it was, and in doubt

    if change in ("shorter", "longer"):
        embed(extractor, folder, out)
        fresh = times_of(embed(extractor, folder, tmp_path / "fresh").path)
        assert sorted(times_of(out)["long.wav"]) == fresh["long.wav"]
        assert "long.wav" not in failed_files(out)


def test_a_damaged_stretch_costs_its_windows_alone(extractor, tmp_path):
    sound = tone(3.0)
    sound[20_000:20_010] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")

    store = embed(extractor, tmp_path / "a.wav", tmp_path / "out", hop_s=None)

    assert [start for start, _ in times_of(store.path)["a.wav"]] == [0.0, 0.5, 1.5, 2.0, 2.5]
    failure = store.failures.iloc[0]
    assert (failure["start_time"], failure["end_time"]) == (1.0, 1.5)


def test_what_failed_in_part_is_done_anew_only_when_asked(
    extractor, folder, tmp_path, monkeypatch, network
):
    """As on a network drive that was away for a while."""
    load, long = pieces.load_audio, folder / "long.wav"

    def fail_behind_2_s(file, start_s=0.0, duration_s=None):
        if start_s >= 2.0:
            raise AudioError(file, "the drive does not answer.")
        return load(file, start_s, duration_s)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "load_audio", fail_behind_2_s)
        patch.setattr(pieces, "_BLOCK_SAMPLES", 8_000)
        embed(extractor, long, tmp_path / "out")
    assert times_of(tmp_path / "out")["long.wav"][-1] == (1.75, 2.25)
    network.reset()

    embed(extractor, long, tmp_path / "out")
    assert network.num_windows == 0
    store = embed(extractor, long, tmp_path / "out", retry_failed=True)

    assert rows_of(store.path) == rows_of(embed(extractor, long, tmp_path / "fresh").path)
    assert store.failures.empty


def test_raising_at_the_first_unreadable_file_keeps_the_shards_that_were_complete(
    extractor, folder, tmp_path
):
    (folder / "b.wav").unlink()

    with pytest.raises(AudioError, match=r"z\.wav"):
        embed(extractor, folder, tmp_path / "out", on_error="raise")

    stored = rows_of(tmp_path / "out")
    (folder / "z.wav").unlink()
    fresh = embed(extractor, folder, tmp_path / "fresh")
    assert len(stored) >= 3 * PER_SHARD
    assert stored == rows_of(fresh.path)[: len(stored)]

    embed(extractor, folder, tmp_path / "out", on_error="raise")
    assert rows_of(tmp_path / "out") == rows_of(fresh.path)


# ---------------------------------------------------------------- one file as output


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_file_is_there_when_all_is_done_and_nothing_else(extractor, folder, tmp_path):
    out = tmp_path / "new" / "one.parquet"

    store = embed(extractor, folder, out)

    assert names_in(out.parent) == ["one.errors.csv", "one.parquet"]
    assert rows_of(out) == rows_of(embed(extractor, folder, tmp_path / "fresh").path)
    assert failed_files(store.path) == ["b.wav", "z.wav"]
    assert pd.read_parquet(out).columns.tolist() == ["file", "start_time", "end_time", "embedding"]


@pytest.mark.parametrize(
    "moment", ["while encoding", "before the merge", "in the merge", "after it"]
)
def test_one_file_is_completed_after_an_interruption(
    extractor, folder, tmp_path, monkeypatch, network, moment
):
    out = tmp_path / "new" / "one.parquet"
    embed(extractor, folder / "y.wav", out)
    of_an_earlier_run = out.read_bytes()
    network.reset()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def leave_a_part(store, path):
        path.with_name(f".{path.name}.123.part").write_bytes(b"half")  # as SIGKILL leaves it
        raise KeyboardInterrupt

    remove = shutil.rmtree

    def remove_half(path):
        remove(path / "shards")
        (path / "store.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "while encoding":
            network.interrupt_before_batch(5)
        elif moment == "before the merge":
            patch.setattr(EmbeddingStore, "merge_to", interrupt)
        elif moment == "in the merge":
            patch.setattr(EmbeddingStore, "merge_to", leave_a_part)
        else:
            patch.setattr(shutil, "rmtree", remove_half)
        with pytest.raises(KeyboardInterrupt):
            embed(extractor, folder, out)
    if moment != "after it":
        assert out.read_bytes() == of_an_earlier_run
    network.reset()

    embed(extractor, folder, out)

    assert names_in(out.parent) == ["one.errors.csv", "one.parquet"]
    assert rows_of(out) == rows_of(embed(extractor, folder, tmp_path / "fresh").path)


def test_one_file_that_is_merged_again_after_a_kill_is_encoded_once(
    extractor, folder, tmp_path, monkeypatch, network
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "merge_to", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(extractor, folder, tmp_path / "one.parquet")
    network.reset()

    embed(extractor, folder, tmp_path / "one.parquet")

    assert network.num_windows == 0


def test_every_sample_is_covered_and_no_window_is_there_twice(extractor, folder, tmp_path):
    embed(extractor, folder, tmp_path / "out")
    embed(extractor, folder, tmp_path / "out")

    for name, times in times_of(tmp_path / "out").items():
        file = folder / ("deeper" if name == "d.wav" else "") / name
        seconds = soundfile.info(file).duration
        starts = plan_windows(round(seconds * 16_000), 8_000, 4_000)
        expected = [(s / 16_000, min(s / 16_000 + 0.5, seconds)) for s in starts]
        np.testing.assert_allclose(times, expected, atol=1e-9)


def test_a_store_can_be_moved_with_its_folder(extractor, folder, tmp_path, network):
    network.interrupt_before_batch(4)
    with pytest.raises(KeyboardInterrupt):
        embed(extractor, folder, tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "elsewhere")

    store = embed(extractor, folder, tmp_path / "elsewhere")

    assert rows_of(store.path) == rows_of(embed(extractor, folder, tmp_path / "fresh").path)


def test_a_file_that_no_run_wrote_is_not_replaced_by_one(extractor, folder, tmp_path):
    output = tmp_path / "clips.parquet"
    pd.DataFrame({"file": [str(folder / "a.wav")]}).to_parquet(output)
    before = state_of(tmp_path)

    with pytest.raises(StoreError, match=r"clips\.parquet is there already.*overwrite"):
        embed(extractor, output, output)
    assert state_of(tmp_path) == before

    assert len(embed(extractor, output, output, overwrite=True)) == 1
    assert len(embed(extractor, folder / "y.wav", output)) == 3  # one that a run wrote


# ---------------------------------------------------------------- recordings behind URLs


@pytest.fixture
def fetches(monkeypatch):
    """Puts recordings into fsspec's memory; then the places that are fetched, as they are fetched."""
    system = fsspec.filesystem("memory")
    places = []
    get_file = type(system).get_file

    def counted(self, place, *args, **kwargs):
        places.append(place)
        return get_file(self, place, *args, **kwargs)

    monkeypatch.setattr(type(system), "get_file", counted)
    remote._copies.remove_all()
    yield places
    system.store.clear()
    remote._copies.remove_all()


def put_tones(tmp_path, number, seconds):
    content = write_tone(tmp_path / "source.wav", seconds).read_bytes()
    for index in range(number):
        fsspec.filesystem("memory").pipe_file(f"/{index}.wav", content)
    return [f"memory://{index}.wav" for index in range(number)]


def test_each_url_is_fetched_once_though_it_is_planned_long_before_it_is_read(
    extractor, tmp_path, fetches
):
    urls = put_tones(tmp_path, 40, seconds=0.3)

    store = embed(extractor, urls, tmp_path / "out", window_s=None, hop_s=None)

    assert store.files == urls
    assert len(fetches) == 40


def test_few_urls_are_fetched_before_their_windows_are_wanted(checkpoint, tmp_path, fetches):
    urls = put_tones(tmp_path, 60, seconds=4.0)
    extractor = BEATsFeatureExtractor(checkpoint, "cpu")
    stream = windowed.encode_windows(
        Encoder(extractor.model, precision="float32"),
        [(Clip(url), 0) for url in urls],
        Windowing(0.2, 0.1),
        batch_size=1,
        num_threads=2,
    )

    next(stream)
    stream.close()

    assert len(fetches) < 20
