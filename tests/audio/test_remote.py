"""Recordings behind URLs: fetched once, bounded on disk, errors that name the URL."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from beats_trainer.audio import AudioReader, is_url, load_audio, probe_audio, remote
from beats_trainer.errors import AudioError, AudioNotFoundError
from sounds import tone, write_tone


@pytest.fixture(autouse=True)
def fresh_copies():
    remote._copies.remove_all()
    yield
    remote._copies.remove_all()


@pytest.fixture
def memory(tmp_path):
    """Put tones into fsspec's memory; ``memory(name)`` gives the URL of one."""

    def put(name, seconds=1.0, suffix=".wav"):
        path = write_tone(tmp_path / f"source{suffix}", seconds)
        fsspec.filesystem("memory").pipe_file(f"/{name}", path.read_bytes())
        return f"memory://{name}"

    yield put
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def fetches(monkeypatch):
    """The URLs' places that are fetched from now on."""
    places = []
    get_file = type(fsspec.filesystem("memory")).get_file

    def counted(self, place, *args, **kwargs):
        places.append(place)
        time.sleep(0.05)  # so that others ask meanwhile
        return get_file(self, place, *args, **kwargs)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", counted)
    return places


def local_files():
    folder = remote._copies._folder
    return sorted(os.listdir(folder)) if folder else []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_a_url_gives_what_its_file_gives(tmp_path, memory, suffix):
    url = memory(f"a b{suffix}", 2.0, suffix)
    path = tmp_path / f"source{suffix}"

    np.testing.assert_array_equal(load_audio(url), load_audio(path))
    np.testing.assert_array_equal(load_audio(url, 0.5, 1.0), load_audio(path, 0.5, 1.0))
    with AudioReader(url) as reader:
        np.testing.assert_array_equal(reader.read(0.5, 1.0), load_audio(path, 0.5, 1.0))
    assert probe_audio(url).duration_s == 2.0
    assert probe_audio(url).file == url


def test_a_member_of_an_archive_is_read(tmp_path):
    write_tone(tmp_path / "a.wav")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.wav", "folder/a.wav")

    waveform = load_audio(f"zip://folder/a.wav::{tmp_path}/b.zip")

    np.testing.assert_array_equal(waveform, load_audio(tmp_path / "a.wav"))
    with pytest.raises(AudioNotFoundError, match=r"zip://folder/c\.wav"):
        load_audio(f"zip://folder/c.wav::{tmp_path}/b.zip")


@pytest.mark.parametrize("name", ["a.wav", "a b \N{BIRD}.wav", "100%.wav"])
def test_a_file_url_is_read_in_place(tmp_path, name):
    path = write_tone(tmp_path / "x.wav").rename(tmp_path / name)

    assert len(load_audio(path.as_uri())) == 16_000
    assert len(load_audio(f"file://{path}")) == 16_000
    assert local_files() == []
    with pytest.raises(AudioNotFoundError, match=r"file://.*nowhere"):
        load_audio(f"file://{tmp_path}/nowhere.wav")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/a.wav", True),
        ("HTTPS://example.org/a.wav", True),
        ("zip://a.wav::s3://bucket/b.zip", True),
        ("simplecache::s3://bucket/a.wav", True),
        ("C:\\sounds\\a.wav", False),
        ("C://sounds/a.wav", False),
        ("2025-05-03T03:13:00.wav", False),
        ("/a/b://c.wav", False),
        ("-", False),
    ],
)
def test_urls_are_told_from_paths(name, expected):
    assert is_url(name) == expected


def test_a_file_is_fetched_once_for_many_parts_and_threads(memory, fetches):
    url = memory("a.wav", 3.0)

    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda k: load_audio(url, k / 4, 0.25), range(12)))

    assert len(fetches) == 1
    np.testing.assert_allclose(np.concatenate(parts), tone(3.0), atol=1e-4)


def test_only_the_files_used_last_are_kept(memory, fetches, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_FILES", 2)
    urls = [memory(f"{number}.wav") for number in range(4)]

    for url in [*urls, urls[3], urls[0]]:
        load_audio(url)
        assert len(local_files()) <= 2

    assert fetches == ["/0.wav", "/1.wav", "/2.wav", "/3.wav", "/0.wav"]


def test_the_kept_files_are_bounded_in_bytes(memory, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_BYTES", 70_000)  # a second has 32,044

    for number in range(4):
        load_audio(memory(f"{number}.wav"))
        assert len(local_files()) <= 2


def test_a_file_that_is_being_read_is_never_removed(memory, fetches, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_FILES", 0)
    url = memory("a.wav", 3.0)

    with AudioReader(url) as reader:
        for number in range(3):
            load_audio(memory(f"other{number}.wav"))
        assert len(local_files()) == 1
        assert len(load_audio(url, 0.5, 1.0)) == 16_000
        assert len(reader.read(1.0, 1.0)) == 16_000

    assert local_files() == []
    assert fetches.count("/a.wav") == 1


def test_a_fetch_that_failed_is_an_error_for_all_who_wait_and_is_tried_again(
    memory, fetches, monkeypatch
):
    url = memory("a.wav")
    counted = type(fsspec.filesystem("memory")).get_file

    def fails(self, place, path, **kwargs):
        counted(self, place, path, **kwargs)  # half of it is there
        raise TimeoutError("no answer in 30 s")

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "get_file", fails)
        with ThreadPoolExecutor(4) as threads:
            errors = list(threads.map(lambda _: _error_of(url), range(4)))
    for error in errors:
        assert isinstance(error, AudioError)
        assert error.file == url
        assert "could not be fetched (no answer in 30 s)" in error.reason
    assert local_files() == []

    assert len(load_audio(url)) == 16_000


def _error_of(url):
    try:
        load_audio(url)
    except AudioError as error:
        return error
    return None


def test_errors_name_the_url_and_not_the_local_copy(memory):
    fsspec.filesystem("memory").pipe_file("/text.wav", b"no sound at all " * 100)
    fsspec.filesystem("memory").mkdir("/folder.wav")

    for read in (load_audio, probe_audio, AudioReader):
        with pytest.raises(AudioError, match=r"memory://text\.wav: it is not audio"):
            read("memory://text.wav")
    with pytest.raises(AudioNotFoundError, match=r"memory://nowhere.wav"):
        load_audio("memory://nowhere.wav")
    with pytest.raises(AudioError, match=r"memory://folder.wav"):
        load_audio("memory://folder.wav")
    url = memory("half.wav")
    store = fsspec.filesystem("memory")
    store.pipe_file("/half.wav", store.cat_file("/half.wav")[:9000])
    with pytest.raises(AudioError, match=r"half\.wav: its header promises"):
        load_audio(url)


def test_an_unknown_protocol_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(AudioError, match=r"nonsense://a.wav: .*nonsense"):
        load_audio("nonsense://a.wav")

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(AudioError, match=r"package for its protocol is missing.*s3fs"):
        load_audio("s3://bucket/a.wav")


def test_the_copies_are_gone_when_the_process_ends(tmp_path):
    program = (
        "import sys, fsspec\n"
        "from beats_trainer.audio import load_audio, remote\n"
        "fsspec.filesystem('memory').pipe_file('/a.wav', open(sys.argv[1], 'rb').read())\n"
        "load_audio('memory://a.wav')\n"
        "print(remote._copies._folder)\n"
    )
    path = write_tone(tmp_path / "a.wav")
    run = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )

    assert "beats_trainer_" in run.stdout
    assert not os.path.exists(run.stdout.strip())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_leaves_its_parents_copies_alone(memory):
    url = memory("a.wav")
    load_audio(url)
    before = local_files()

    child = multiprocessing.get_context("fork").Process(target=_read_and_end, args=(url,))
    child.start()
    child.join(60)

    assert child.exitcode == 0
    assert local_files() == before
    assert len(before) == 1


def _read_and_end(url):
    assert len(load_audio(url)) == 16_000
    remote._copies.remove_all()


def test_reading_does_not_wait_for_the_fetch_of_another_url(memory, monkeypatch):
    slow, quick = memory("slow.wav"), memory("quick.wav")
    get_file = type(fsspec.filesystem("memory")).get_file
    may_end = threading.Event()

    def waits(self, place, *args, **kwargs):
        if place == "/slow.wav":
            assert may_end.wait(60)
        return get_file(self, place, *args, **kwargs)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", waits)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(load_audio, slow)
        assert len(load_audio(quick)) == 16_000
        assert not first.done()
        may_end.set()
        assert len(first.result()) == 16_000
