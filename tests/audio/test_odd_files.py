"""Files as they come: very short, very long, of any rate and name, and changing while they are read."""

import os
import shutil
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from beats_trainer.audio import AudioReader, decode, load_audio, probe_audio
from beats_trainer.errors import AudioError, AudioNotFoundError
from sounds import encode, sweep, tone, write_tone

WRITERS = {
    ".wav": None,
    ".flac": None,
    ".ogg": None,
    ".mp3": None,
    ".m4a": "aac",
    ".wma": "wmav2",
    ".webm": "libopus",
}
"""The encoder of FFmpeg for formats that soundfile does not write."""


def write(path, seconds, sample_rate=48_000):
    if WRITERS[path.suffix] is None:
        return write_tone(path, seconds, sample_rate=sample_rate)
    samples = tone(seconds, sample_rate=sample_rate)
    return encode(path, samples, sample_rate, WRITERS[path.suffix], bit_rate=96_000)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_hundredth_of_a_second_is_read(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", 0.01)
    if suffix == ".wma":  # FFmpeg drops the first frame, and there is no other
        with pytest.raises(AudioError, match="holds no samples"):
            load_audio(path)
        return

    waveform = load_audio(path)

    assert 0 < len(waveform) < 2000  # lossy codecs pad to whole frames
    if suffix in (".wav", ".flac", ".ogg", ".mp3"):
        assert len(waveform) == 160
    part = load_audio(path, 0.005, 10.0)
    np.testing.assert_allclose(part, waveform[80:], atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
@pytest.mark.parametrize("rate", [8_000, 16_000, 384_000])
def test_a_single_sample_is_a_sound(tmp_path, num_samples, rate):
    soundfile.write(tmp_path / "a.wav", np.full(num_samples, 0.5), rate)

    assert 1 <= len(load_audio(tmp_path / "a.wav")) <= 6


DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """24 h at 48 kHz: an RF64 of 8 GB, of which the disk holds the few pages with sound."""
    if sys.platform == "win32":
        pytest.skip("needs files with holes")
    path = tmp_path_factory.mktemp("day") / "day.wav"
    size = DAY_S * 48_000 * 2
    header = (
        b"RF64\xff\xff\xff\xffWAVE" + b"ds64" + struct.pack("<IQQQI", 28, size + 72, size, 0, 0)
    )
    header += b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 48_000, 96_000, 2, 16)
    header += b"data\xff\xff\xff\xff"
    sound = (sweep(1.0, 48_000) * 32767).astype("<i2")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
        for start_s in (0, DAY_S // 2, DAY_S - 1):
            file.seek(len(header) + start_s * 96_000)
            file.write(sound.tobytes())
    if os.stat(path).st_blocks * 512 > 100_000_000:
        path.unlink()
        pytest.skip("this file system keeps no holes")
    yield path, sound
    path.unlink()


def test_any_place_of_a_day_is_read_in_a_moment(day):
    path, sound = day
    soundfile.write(path.parent / "second.wav", sound, 48_000)
    expected = load_audio(path.parent / "second.wav")
    assert probe_audio(path).duration_s == DAY_S
    assert probe_audio(path).is_seekable
    tracemalloc.start()

    with AudioReader(path) as reader:
        for start_s in (DAY_S - 1, DAY_S // 2, 0):
            for read in (reader.read, lambda *part: load_audio(path, *part)):
                part = read(start_s, 5.0)
                assert len(part) == 16_000 * (1 if start_s == DAY_S - 1 else 5)
                np.testing.assert_allclose(part[400:15_600], expected[400:-400], atol=1e-5)
                assert not part[16_400:].any()

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6
    with pytest.raises(AudioError, match=r"86400\.000 s long, and the part starts at 86400\.000 s"):
        load_audio(path, DAY_S, 1.0)


def test_many_channels_at_an_ultrasound_rate_are_read(tmp_path):
    time_s = np.arange(384_000) / 384_000
    sine = np.sin(2 * np.pi * 700 * time_s)
    channels = np.stack([sine * 0.1 * (c + 1) for c in range(8)], axis=1)
    soundfile.write(tmp_path / "a.wav", channels, 384_000, subtype="PCM_24")

    waveform = load_audio(tmp_path / "a.wav")

    assert len(waveform) == 16_000
    expected = 0.45 * np.sin(2 * np.pi * 700 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(waveform[400:-400], expected[400:-400], atol=2e-5)
    part = load_audio(tmp_path / "a.wav", 0.3, 0.4)
    np.testing.assert_allclose(part, waveform[4800:11_200], atol=1e-6)


NAMES = {
    "spaces": b" a  b ",
    "emoji": "\N{BIRD}\N{MUSICAL NOTE}".encode(),
    "latin-1": b"caf\xe9",
    "not unicode": b"\xff\xfe\x80",
    "line break": b"a\nb",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("suffix", WRITERS)
def test_whatever_bytes_a_name_has_the_file_is_read(tmp_path, name, suffix):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name + suffix.encode())
    source = write(tmp_path / f"source{suffix}", 0.5)
    try:
        shutil.copy(source, path)
    except OSError:
        pytest.skip("this file system allows no such names")

    assert probe_audio(path).duration_s == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(load_audio(path), load_audio(source), atol=2e-2)
    with AudioReader(path) as reader:
        assert len(reader.read(0.1, 0.2)) == 3200
    os.rename(path, os.fsdecode(os.fsencode(path) + b".gone"))
    with pytest.raises(AudioNotFoundError) as error:
        load_audio(path)
    assert error.value.file == path


def test_a_file_that_grows_is_read_to_where_it_is_now(tmp_path):
    path = write_tone(tmp_path / "a.wav", seconds=1)
    assert probe_audio(path).duration_s == 1

    with AudioReader(path) as reader:
        with soundfile.SoundFile(path, "r+") as sound:
            sound.seek(0, soundfile.SEEK_END)
            sound.write(tone(seconds=2))
        np.testing.assert_allclose(reader.read(), tone(seconds=1), atol=1e-4)

    assert probe_audio(path).duration_s == 3
    np.testing.assert_allclose(load_audio(path, 1.0, 2.0), tone(seconds=2), atol=1e-4)


def test_a_recording_that_is_still_written_is_read_as_far_as_it_goes_or_refused(tmp_path):
    path = tmp_path / "a.wav"
    with path.open("wb") as file:
        file.write((write_tone(tmp_path / "b.wav", seconds=9)).read_bytes()[:44])
        file.write(bytes(32_000))
        file.flush()
        with pytest.raises(
            AudioError, match="promises 288,000 bytes of sound and 32,000 are there"
        ):
            load_audio(path)
        file.write(bytes(256_000))
    assert len(load_audio(path)) == 9 * 16_000


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_that_is_removed_or_renamed_is_not_found(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", 1.0)
    time.sleep(0.06)  # what was written this moment is not remembered
    probe_audio(path)
    load_audio(path)
    path.rename(tmp_path / "elsewhere")

    for read in (load_audio, probe_audio, AudioReader):
        with pytest.raises(AudioNotFoundError, match=rf"a\{suffix}: there is no such file"):
            read(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_that_vanishes_in_the_last_moment_is_not_found(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}", 1.0)
    time.sleep(0.06)
    probe_audio(path)
    found = decode._find

    def then_removed(*names):
        result = found(*names)
        path.unlink()
        return result

    monkeypatch.setattr(decode, "_find", then_removed)
    with pytest.raises(AudioNotFoundError, match=rf"a\{suffix}: there is no such file"):
        load_audio(path)


def test_a_file_that_is_replaced_in_the_last_moment_is_an_error(tmp_path, monkeypatch):
    path = write_tone(tmp_path / "a.wav", seconds=2)
    time.sleep(0.06)
    probe_audio(path)
    found = decode._find

    def then_replaced(*names):
        result = found(*names)
        write_tone(path, seconds=1)
        return result

    monkeypatch.setattr(decode, "_find", then_replaced)
    with pytest.raises(AudioError, match="changed while it was read"):
        load_audio(path)


@pytest.mark.parametrize("way", ["in place", "by another file"])
def test_a_file_replaced_by_one_of_its_size_and_date_is_read_anew(tmp_path, way):
    path = write_tone(tmp_path / "a.wav", seconds=1, sample_rate=16_000)
    before = path.stat()
    time.sleep(0.06)
    assert probe_audio(path).duration_s == 1

    target = path if way == "in place" else tmp_path / "b.wav"
    write_tone(target, seconds=2, sample_rate=8_000)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(target, path)

    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert probe_audio(path).duration_s == 2
    assert len(load_audio(path)) == 32_000
    assert len(load_audio(path, 1.0, 2.0)) == 16_000


def test_a_file_rewritten_within_a_tick_of_the_clock_is_read_anew(tmp_path):
    path = tmp_path / "a.wav"
    for seconds, rate in [(1, 16_000), (2, 8_000)] * 20:  # all of one size
        write_tone(path, seconds=seconds, sample_rate=rate)
        os.utime(path, ns=(0, 0))
        assert probe_audio(path).duration_s == seconds


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="root reads all")
@pytest.mark.parametrize("suffix", [".wav", ".m4a"])
def test_a_file_that_may_not_be_read_says_why(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", 0.5)
    path.chmod(0)

    with pytest.raises(AudioError, match="Permission denied"):
        load_audio(path)
