"""What goes wrong in the field while recordings are embedded: no run of good files ends, nothing is lost.

Through the command line where the command line is what a user sees; with a tiny network throughout.
"""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

import beats_trainer
from beats_trainer import BEATsFeatureExtractor, feature_extractor
from beats_trainer.cli import main
from beats_trainer.embeddings import open_store, pieces
from beats_trainer.embeddings.windows import Windowing, plan_clip
from beats_trainer.loading import Clip
from checkpoint_files import tiny_architecture, write_microsoft_checkpoint
from sounds import tone, write_tone
from stored import WatchedNetwork, rows_of, times_of

CPU = ["--device", "cpu", "--precision", "float32"]
PER_SHARD = 512  # of the command line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_microsoft_checkpoint(folder / "model.pt", tiny_architecture())


@pytest.fixture(scope="module")
def extractor(checkpoint):
    """One thread that decodes, and batches of one: little is read ahead of what the network is given."""
    return BEATsFeatureExtractor(
        checkpoint, "cpu", precision="float32", batch_size=1, num_threads=1
    )


@pytest.fixture
def network(monkeypatch):
    return WatchedNetwork(monkeypatch)


def embed(extractor, inputs, out, **options):
    settings = {"window_s": 1.0, "rows_per_shard": 8, "progress": False} | options
    return extractor.embed_to(inputs, out, **settings)


def failures_of(store):
    """The reasons of each file that failed, by the last part of its name."""
    found = {}
    for row in open_store(store).failures.itertuples():
        found.setdefault(row.file.rsplit("/", 1)[-1], []).append(row.reason)
    return found


def write_noise(path, seconds, sample_rate=8_000, seed=0):
    """A long recording of few bytes."""
    levels = np.random.default_rng(seed).integers(0, 256, round(seconds * sample_rate), np.uint8)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(sample_rate)
        file.writeframes(levels.tobytes())
    return path


# ---------------------------------------------------------------- files that are not as they should be


def test_every_kind_of_bad_file_is_named_and_the_good_ones_are_done(extractor, tmp_path):
    folder = tmp_path / "in"
    write_tone(folder / "a good.wav", seconds=1.5)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no sound")
    (folder / "header.wav").write_bytes((folder / "a good.wav").read_bytes()[:44])
    cut = write_tone(folder / "cut.flac", seconds=5.0)
    cut.write_bytes(cut.read_bytes()[:20_000])
    bytes_as_numbers = np.full(16_000, 1e20, np.float32)
    soundfile.write(folder / "levels.wav", bytes_as_numbers, 16_000, subtype="FLOAT")
    soundfile.write(folder / "nan.wav", np.full(800, np.nan, np.float32), 16_000, subtype="FLOAT")
    os.symlink(tmp_path / "nowhere.wav", folder / "link.wav")
    inputs = [folder, folder / "not there.wav", Clip(f"{folder}/zero\0byte.wav"), Clip("n" * 300)]
    write_tone(folder / "z good.wav", seconds=0.5)

    store = embed(extractor, inputs, tmp_path / "out")

    failures = failures_of(store.path)
    good = {file.rsplit("/", 1)[-1] for file in store.files} - {"cut.flac"}
    assert good == {"a good.wav", "z good.wav"}
    assert times_of(store.path)["a good.wav"] == [(0.0, 1.0), (1.0, 1.5)]
    expected = {"empty.wav", "text.wav", "header.wav", "cut.flac", "levels.wav", "nan.wav"}
    assert set(failures) == expected | {"link.wav", "not there.wav", "zero\0byte.wav", "n" * 300}
    assert "levels of sound (1e+20" in failures["levels.wav"][0]


def test_the_shortest_sound_has_its_row(extractor, tmp_path):
    soundfile.write(tmp_path / "10 ms.wav", tone(0.01), 16_000)
    soundfile.write(tmp_path / "a sample.wav", tone(0.01)[:1], 16_000)

    embed(extractor, tmp_path, tmp_path / "out")

    assert times_of(tmp_path / "out") == {
        "10 ms.wav": [(0.0, 0.01)],
        "a sample.wav": [(0.0, 1 / 16_000)],
    }


def test_any_rate_and_any_number_of_channels_is_the_same_sound(extractor, tmp_path):
    for name, rate in (
        ("1 channel.wav", 16_000),
        ("384 kHz.wav", 384_000),
        ("8 channels.wav", 48_000),
    ):
        time_s = np.arange(2 * rate) / rate
        sound = 0.3 * np.sin(2 * np.pi * (300 + 900 * time_s) * time_s)
        if name.startswith("8"):
            # Each channel its own noise, which is not there in their mean.
            others = np.random.default_rng(0).uniform(-0.3, 0.3, (len(sound), 8))
            sound = sound[:, None] + others - others.mean(axis=1, keepdims=True)
        soundfile.write(tmp_path / name, sound, rate, subtype="FLOAT")

    store = embed(extractor, tmp_path, tmp_path / "out")

    mono, high, several = store.to_numpy().reshape(3, 2, -1)
    assert len(store.files) == 3
    np.testing.assert_allclose(high, mono, atol=0.05)
    np.testing.assert_allclose(several, mono, atol=0.05)


def write_silent_day(path):
    """24 h at 8 kHz; takes no room on the disk."""
    num_bytes = 24 * 3600 * 8_000 * 2
    header = struct.pack(
        "<4sI8sIHHIIHH4sI",
        *(b"RIFF", 36 + num_bytes, b"WAVEfmt ", 16, 1, 1, 8_000, 16_000, 2, 16, b"data", num_bytes),
    )
    path.write_bytes(header)
    os.truncate(path, len(header) + num_bytes)
    return str(path)


def test_a_day_of_sound_is_planned_at_once_and_read_anywhere(extractor, tmp_path):
    day = write_silent_day(tmp_path / "day.wav")
    parts = [Clip(day, 0.0, 10.0), Clip(day, 43_200.0, 20.0), Clip(day, 86_385.0)]

    start = time.perf_counter()
    plan = plan_clip(Clip(day), Windowing(10.0))
    embed(extractor, parts, tmp_path / "out", window_s=10.0)

    assert time.perf_counter() - start < 30  # seconds, not a day's worth of decoding
    assert len(plan) == 8640
    assert times_of(tmp_path / "out")["day.wav"] == [
        (0.0, 10.0),
        (43_200.0, 43_210.0),
        (43_210.0, 43_220.0),
        (86_385.0, 86_395.0),
        (86_395.0, 86_400.0),
    ]


# ---------------------------------------------------------------- files that change during a run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A short recording, a long one, of which the end is read late, and another short one, in this order."""
    monkeypatch.setattr(pieces, "_BLOCK_SAMPLES", 10 * 16_000)
    place = tmp_path / "in"
    write_tone(place / "a.wav", seconds=1.5, seed=1)
    write_noise(place / "long.wav", seconds=200)
    write_tone(place / "z.wav", seconds=2.5, seed=2)
    return place


def append(path, seconds):
    """As a recorder does that writes the length at the end."""
    with path.open("ab") as file:
        file.write(bytes(seconds * 8_000))


@pytest.mark.parametrize("change", ["grows", "is replaced by a longer one", "is cut off"])
def test_a_file_that_changes_while_it_is_read_is_named_and_done_by_the_next_run(
    extractor, folder, tmp_path, network, change
):
    long = folder / "long.wav"
    action = {
        "grows": lambda: append(long, 30),
        "is replaced by a longer one": lambda: write_noise(long, 220, seed=3),
        "is cut off": lambda: os.truncate(long, 200_000),
    }[change]
    network.before_batch(1, action)

    embed(extractor, folder, tmp_path / "out", window_s=5.0)

    assert (
        "changed, or went away, while it was read" in failures_of(tmp_path / "out")["long.wav"][0]
    )
    times = times_of(tmp_path / "out")
    assert (len(times["a.wav"]), len(times["z.wav"])) == (1, 1)
    assert len(set(times["long.wav"])) == len(times["long.wav"]) <= 40
    if change == "is cut off":  # what is not the sound that its header states is no sound
        write_noise(long, 20, seed=4)

    embed(extractor, folder, tmp_path / "out", window_s=5.0)

    fresh = embed(extractor, folder, tmp_path / "fresh", window_s=5.0)
    assert times_of(tmp_path / "out") == times_of(fresh.path)
    rows = {row[:2]: np.frombuffer(row[3], np.float32) for row in rows_of(fresh.path)}
    for row in rows_of(tmp_path / "out"):
        np.testing.assert_allclose(np.frombuffer(row[3], np.float32), rows[row[:2]], atol=0.01)
    assert fresh.failures.empty
    assert failures_of(tmp_path / "out") == {}


def test_a_recorder_that_writes_all_along_is_named_each_time_and_ends_no_run(
    extractor, folder, tmp_path
):
    stop = threading.Event()

    def record():
        while not stop.wait(0.01):
            append(folder / "long.wav", 1)

    recorder = threading.Thread(target=record)
    recorder.start()
    try:
        for _ in range(2):
            embed(extractor, folder, tmp_path / "out", window_s=5.0)
            assert list(failures_of(tmp_path / "out")) == ["long.wav"]
    finally:
        stop.set()
        recorder.join()
    embed(extractor, folder, tmp_path / "out", window_s=5.0)

    assert failures_of(tmp_path / "out") == {}
    fresh = embed(extractor, folder, tmp_path / "fresh", window_s=5.0)
    assert times_of(tmp_path / "out") == times_of(fresh.path)


@pytest.mark.parametrize("change", ["removed", "renamed"])
def test_a_file_that_goes_before_its_turn_is_named(
    extractor, folder, tmp_path, monkeypatch, change
):
    find_clips = feature_extractor.find_clips

    def find_and_go(inputs):
        clips = find_clips(inputs)
        (folder / "a.wav").rename(folder / "renamed.wav" if change == "renamed" else tmp_path / "x")
        return clips

    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor, "find_clips", find_and_go)
        embed(extractor, folder, tmp_path / "out", window_s=5.0)
    assert failures_of(tmp_path / "out") == {"a.wav": ["there is no such file."]}
    assert len(times_of(tmp_path / "out")["long.wav"]) == 40

    embed(extractor, folder, tmp_path / "out", window_s=5.0)

    names = {"long.wav", "z.wav"} | ({"renamed.wav"} if change == "renamed" else set())
    assert set(times_of(tmp_path / "out")) == names


def test_a_file_that_goes_halfway_keeps_the_rows_it_has_and_is_named(
    extractor, folder, tmp_path, network
):
    long = folder / "long.wav"
    whole = rows_of(embed(extractor, long, tmp_path / "whole", window_s=5.0).path)
    network.reset()
    network.before_batch(1, lambda: long.rename(folder / "renamed.wav"))

    embed(extractor, folder, tmp_path / "out", window_s=5.0)

    kept = [row for row in rows_of(tmp_path / "out") if row[0] == str(long)]
    assert 8 <= len(kept) < 40
    assert [row[1:3] for row in kept] == [row[1:3] for row in whole[: len(kept)]]
    assert "there is no such file." in failures_of(tmp_path / "out")["long.wav"]
    assert len(times_of(tmp_path / "out")["z.wav"]) == 1

    embed(extractor, folder, tmp_path / "out", window_s=5.0)  # which finds it by its new name
    assert len(times_of(tmp_path / "out")["renamed.wav"]) == 40
    assert [row for row in rows_of(tmp_path / "out") if row[0] == str(long)] == kept


# ---------------------------------------------------------------- disks


def command_for(inputs, out, checkpoint, *options):
    windows = ["--window", "0.2", "--hop", "0.1"]
    given = [inputs] if isinstance(inputs, str | bytes | os.PathLike) else inputs
    return [
        *("embed", *map(os.fsdecode, given), "-o", os.fsdecode(out)),
        *("--model", str(checkpoint), *CPU, *windows, *options),
    ]


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Five minutes: 2,999 windows of the commands here, 6 shards."""
    folder = tmp_path_factory.mktemp("night")
    return write_noise(folder / "night.wav", seconds=300)


@pytest.fixture(scope="module")
def night_rows(night, checkpoint, tmp_path_factory):
    """What an unbroken run gives of it."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert main(command_for(night, out, checkpoint)) == 0
    return rows_of(out)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a disk of a size at ``tmp_path / "disk"``, where the system lets us; and again with options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a disk")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize("name", ["out", "one.parquet"])
def test_a_full_disk_ends_the_run_with_a_clear_word_and_it_goes_on_after_room_is_made(
    night, night_rows, checkpoint, mounted, capsys, name
):
    disk = mounted("size=300k")
    command = command_for(night, disk / name, checkpoint)

    assert main(command) == 1

    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "make room" in said
    assert "run the same command again" in said
    stored = rows_of(disk / (name if name == "out" else "one.parquet.parts"))
    assert stored == night_rows[: len(stored)]
    assert len(stored) >= PER_SHARD
    assert not list(disk.rglob(".*.part"))

    remount(disk, "size=10m")
    assert main(command) == 0
    assert rows_of(disk / name) == night_rows


@pytest.mark.parametrize(
    ("number", "renames_before"),
    [(errno.ENOSPC, 0), (errno.ENOSPC, 1), (errno.ENOSPC, 4), (errno.EROFS, 5), (errno.EIO, 8)],
)
def test_a_disk_that_fails_at_any_moment_loses_no_row(
    night, night_rows, checkpoint, tmp_path, monkeypatch, capsys, number, renames_before
):
    """Full, turned read-only, or broken: at the lock, the recipe, a shard, the list of failures."""
    replace, left = os.replace, renames_before

    def replace_while_it_works(*arguments):
        nonlocal left
        if left == 0:
            raise OSError(number, os.strerror(number))
        left -= 1
        replace(*arguments)

    command = command_for(night, tmp_path / "out", checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_while_it_works)
        assert main(command) == 1
    assert os.strerror(number) in capsys.readouterr().err

    assert main(command) == 0
    assert rows_of(tmp_path / "out") == night_rows


def test_a_disk_that_can_only_be_read_is_refused_before_the_model_is_loaded(
    night, checkpoint, mounted, capsys
):
    disk = mounted("size=1m,ro")

    assert main(command_for(night, disk / "out", "no such model.pt")) == 1

    assert f"Nothing can be written to the folder {disk}" in capsys.readouterr().err


def test_an_output_where_nothing_can_be_made_is_refused(night, checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")

    assert main(command_for(night, tmp_path / "file" / "out", checkpoint)) == 1

    assert "is a file, not a folder" in capsys.readouterr().err


# ---------------------------------------------------------------- processes


def start(command, **options):
    """Start the command line in a process of its own."""
    source = str(Path(beats_trainer.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "beats_trainer", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As in most places of the world, where Python prints nothing that is no text.
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8:strict"},
        **options,
    )


def wait_for(condition, process, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come that far"
        time.sleep(0.002)


@pytest.fixture
def slow_command(night, checkpoint, tmp_path):
    """A command that takes a second or two: batches of four."""
    return command_for(night, tmp_path / "out", checkpoint, "--batch-size", "4")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_ctrl_c_and_a_cluster_that_ends_a_job_leave_a_store_that_goes_on(
    slow_command, night_rows, tmp_path, number, code
):
    process = start(slow_command)
    wait_for(lambda: len(list((tmp_path / "out").glob("shards/part-*"))) >= 2, process)
    process.send_signal(number)
    _, messages = process.communicate(timeout=30)

    assert process.returncode == code
    if number == signal.SIGINT:
        assert messages.decode().strip().splitlines()[-1].startswith("Interrupted.")
        assert b"Traceback" not in messages
        assert not list((tmp_path / "out").rglob("*.part"))
    stored = rows_of(tmp_path / "out")
    assert 2 * PER_SHARD <= len(stored) < len(night_rows)

    assert main(slow_command) == 0
    got = rows_of(tmp_path / "out")
    assert got[: len(stored)] == stored
    assert [row[:3] for row in got] == [row[:3] for row in night_rows]


def test_a_second_run_on_the_same_output_is_told_and_the_first_is_undisturbed(
    slow_command, night_rows, tmp_path, capsys
):
    first = start(slow_command)
    wait_for(lambda: list((tmp_path / "out").glob("shards/part-*")), first)

    assert main(slow_command) == 1

    assert f"is being written to by another run: process {first.pid}" in capsys.readouterr().err
    assert first.wait(60) == 0
    assert [row[:3] for row in rows_of(tmp_path / "out")] == [row[:3] for row in night_rows]


# ---------------------------------------------------------------- names

NAMES = [
    b"a b.wav",
    "🦉 at dawn.wav".encode(),
    b"caf\xe9.wav",  # of a recorder that knows Latin-1
    b"line\nbreak.wav",
    b"[x]*.wav",
    b'"quoted", and so on.wav',
    b"-dash.wav",
]


@pytest.fixture
def odd_names(tmp_path):
    folder = os.fsencode(tmp_path) + b"/in \xff"
    os.mkdir(folder)
    write_tone(tmp_path / "tone.wav", seconds=0.3)
    content = (tmp_path / "tone.wav").read_bytes()
    try:
        for name in NAMES:
            with open(folder + b"/" + name, "wb") as file:
                file.write(content)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    return folder


@pytest.mark.parametrize("given", ["folder", "arguments", "standard input"])
def test_files_of_any_name_are_embedded_and_known_again(
    odd_names, checkpoint, tmp_path, monkeypatch, given
):
    out = os.fsencode(tmp_path) + "/out 🦉".encode() + b" \xe9"
    files = [odd_names + b"/" + name for name in NAMES]
    inputs = {"folder": [odd_names], "arguments": files, "standard input": ["-"]}[given]
    listed = b"\0".join(files) if given == "standard input" else b""

    command = command_for(inputs, out, checkpoint)
    process = start(command, stdin=subprocess.PIPE)
    printed, messages = process.communicate(listed, timeout=60)
    assert process.returncode == 0, messages
    assert b"14 rows of 7 files" in printed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert main(command) == 0

    store = open_store(os.fsdecode(out))
    names = {name.rsplit("/", 1)[-1] for name in store.files}
    assert names == {name.decode("utf-8", "backslashreplace") for name in NAMES}
    assert (
        len(list(Path(os.fsdecode(out)).glob("shards/*"))) == 1
    )  # the second run had nothing to do
    assert len(store.read(os.fsdecode(files[2])).file) == 2
