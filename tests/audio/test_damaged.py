"""A damaged file gives the right samples or an error that names it: never silently fewer samples."""

import contextlib
import os
import re
import struct

import numpy as np
import pytest
import soundfile

from beats_trainer.audio import AUDIO_EXTENSIONS, load_audio, probe_audio
from beats_trainer.errors import AudioError
from sounds import encode, tone, write_tone

WRITERS = {
    ".wav": None,
    ".flac": None,
    ".ogg": None,
    ".opus": "libopus",
    ".mp3": None,
    ".aiff": None,
    ".w64": None,
    ".rf64": None,
    ".caf": None,
    ".au": None,
    ".m4a": "aac",
    ".webm": "libopus",
    ".wma": "wmav2",
    ".wv": "wavpack",
}
"""Formats that state how much they hold, so that no end can be missed, and FFmpeg's encoder for some."""


def write_whole(path):
    """Write 3 s at 48 kHz to a file whose ending says the format."""
    samples = tone(seconds=3, sample_rate=48_000)
    codec = WRITERS[path.suffix]
    if codec is not None:
        options = (
            {"aac_pns": "0"} if codec == "aac" else {}
        )  # no noise that differs at each reading
        bit_rate = None if codec == "wavpack" else 96_000
        encode(path, samples, 48_000, codec, bit_rate=bit_rate, **options)
        if path.suffix == ".wv":  # without the tag at its end, whose loss is none
            path.write_bytes(path.read_bytes().partition(b"APETAGEX")[0])
    else:
        soundfile.write(path, samples, 48_000, format="RF64" if path.suffix == ".rf64" else None)
    return path


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("share", [0.002, 0.03, 0.3, 0.6, 0.95, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix, share):
    content = write_whole(tmp_path / f"whole{suffix}").read_bytes()
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(content[: int(len(content) * share)])

    for read in (load_audio, probe_audio, lambda path: load_audio(path, 2.9, 0.1)):
        if read is probe_audio and suffix in (".flac", ".wv"):
            continue  # what is missing of these shows when it is decoded
        with pytest.raises(AudioError, match=f"damaged{suffix}") as error:
            read(damaged)
        assert error.value.file == str(damaged)
        assert error.value.reason.endswith((".", "?"))


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_same_file_whole_is_read(tmp_path, suffix):
    path = write_whole(tmp_path / f"whole{suffix}")

    assert len(load_audio(path)) == pytest.approx(48_000, abs=1200)


def test_a_header_cut_at_any_byte_is_refused(tmp_path):
    for suffix in (".wav", ".m4a", ".webm", ".mp3"):
        content = write_whole(tmp_path / f"whole{suffix}").read_bytes()
        damaged = tmp_path / f"damaged{suffix}"
        for length in range(1, 100, 3):
            damaged.write_bytes(content[:length])
            with pytest.raises(AudioError):
                load_audio(damaged)


@pytest.mark.parametrize(
    "suffix", [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".webm", ".wma", ".caf"]
)
def test_flipped_bytes_give_sound_or_an_audio_error(tmp_path, suffix):
    content = write_whole(tmp_path / f"whole{suffix}").read_bytes()
    damaged = tmp_path / f"damaged{suffix}"
    random = np.random.default_rng(0)
    for place in (200, len(content)):  # in the header, and anywhere
        for _ in range(6):
            flipped = np.frombuffer(content, np.uint8).copy()
            flipped[random.integers(0, place, 5)] = random.integers(0, 256, 5)
            damaged.write_bytes(flipped.tobytes())
            with contextlib.suppress(AudioError):
                waveform = load_audio(damaged)
                assert len(waveform) > 0
                assert np.isfinite(waveform).all()


NO_SOUND = {
    "empty": b"",
    "four bytes": b"RIFF",
    "text": b"This is a text, and not a sound at all.\n" * 100,
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "random": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(5000),
    "playlist": b"#EXTM3U\n#EXTINF:9,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n",
    "other file list": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    "picture": b"\xff\xd8\xff\xe0\x00\x10JFIF" + np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("content", NO_SOUND.values(), ids=NO_SOUND)
@pytest.mark.parametrize("suffix", [*AUDIO_EXTENSIONS, ".raw", ".snd", ".g722", ""])
def test_what_is_no_audio_is_refused_whatever_its_name(tmp_path, content, suffix):
    # libsndfile alone takes anything named .au, FFmpeg alone anything named .g722.
    path = tmp_path / f"renamed{suffix}"
    path.write_bytes(content)

    for read in (load_audio, probe_audio):
        with pytest.raises(AudioError, match=r"not audio|0 bytes|cut off|no samples") as error:
            read(path)
        assert error.value.file == str(path)


def test_a_wav_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 2), np.float32), 16_000)

    with pytest.raises(AudioError, match=r"holds no samples|not audio"):
        load_audio(tmp_path / "a.wav")


def test_zeros_behind_a_header_are_not_searched_for_sound(tmp_path):
    path = tmp_path / "lost.wav"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWAVE")
        file.truncate(2**40)  # takes no room; to look at all of it takes days

    with pytest.raises(AudioError, match="zeros and no sound"):
        probe_audio(path)


def test_samples_of_64_bits_are_refused_by_name(tmp_path):
    samples = (tone(0.1).astype(np.float64) * 2**62).astype("<i8").tobytes()
    layout = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 128_000, 8, 64)
    content = b"WAVEfmt " + layout + b"data" + struct.pack("<I", len(samples)) + samples
    path = tmp_path / "wide.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)

    with pytest.raises(AudioError, match=r"wide\.wav.*s64"):
        load_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_refused_with_their_place(tmp_path, value):
    samples = tone()
    samples[8000] = value
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")

    with pytest.raises(AudioError, match=r"not finite.*0\.500 s"):
        load_audio(tmp_path / "a.wav")
    assert len(load_audio(tmp_path / "a.wav", 0, 0.25)) == 4000  # the rest is sound


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(AudioError, match="a folder"):
        load_audio(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.wav")

    with pytest.raises(AudioError, match="not a file"):
        load_audio(tmp_path / "a.wav")


def test_an_mp4_without_its_index_says_what_is_missing(tmp_path):
    path = write_whole(tmp_path / "a.m4a")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])

    with pytest.raises(AudioError, match=r"'moov'.*never finished"):
        load_audio(path)


@pytest.mark.parametrize(
    "size", [0, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x7FFFF000, 0x80000000]
)
def test_a_recorder_that_never_wrote_the_length_loses_nothing(tmp_path, size):
    path = write_tone(tmp_path / "a.wav", seconds=2)
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", size)
    path.write_bytes(content)

    waveform = load_audio(path)

    np.testing.assert_allclose(waveform, tone(seconds=2), atol=1e-4)
    np.testing.assert_allclose(load_audio(path, 1.0, 0.5), waveform[16_000:24_000], atol=1e-6)


def test_a_promise_of_gigabytes_is_not_taken_for_a_live_recording(tmp_path):
    path = write_tone(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 3_000_000_000)
    path.write_bytes(content)

    with pytest.raises(AudioError, match="3,000,000,000 bytes of sound and 32,000 are there"):
        load_audio(path)


@pytest.mark.parametrize("rate", [0, 1, 0xFFFFFFFF])
def test_a_header_with_a_senseless_rate_is_refused(tmp_path, rate):
    path = write_tone(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)

    with pytest.raises(AudioError, match=r"sample rate|not audio"):
        load_audio(path)


def test_chunks_around_the_sound_are_no_damage(tmp_path):
    path = write_tone(tmp_path / "a.wav", seconds=1)
    content = path.read_bytes()
    notes = b"LIST" + struct.pack("<I", 6) + b"INFOab"
    head = content.index(b"data")
    path.write_bytes(content[:head] + notes + content[head:] + notes)

    assert len(load_audio(path)) == 16_000


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".m4a"])
@pytest.mark.parametrize("tail", [b"TAG" + b"x" * 125, bytes(3000), b"<html>" * 300])
def test_what_an_editor_left_behind_the_sound_is_no_damage(tmp_path, suffix, tail):
    path = write_whole(tmp_path / f"a{suffix}")
    whole = load_audio(path)
    path.write_bytes(path.read_bytes() + tail)

    waveform = load_audio(path)
    assert 0 <= len(waveform) - len(whole) < 400  # where MP3's padding ends, it no longer knows
    np.testing.assert_allclose(waveform[: len(whole) - 400], whole[:-400], atol=1e-6)
    np.testing.assert_allclose(load_audio(path, 2.0, 0.5), whole[32_000:40_000], atol=1e-5)


def test_a_flac_file_that_was_streamed_is_read_to_its_end(tmp_path):
    path = write_tone(tmp_path / "a.flac", seconds=2)
    whole = load_audio(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)

    assert probe_audio(path).duration_s == 2
    np.testing.assert_array_equal(load_audio(path), whole)
    np.testing.assert_allclose(load_audio(path, 1.5, 0.1), whole[24_000:25_600], atol=1e-6)


def ogg_pages(content):
    starts = [m.start() for m in re.finditer(b"OggS", content)]
    return [bytearray(content[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]


def with_checksum(page):
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", checksum)
    return bytes(page)


def test_an_ogg_file_without_an_end_mark_is_read_with_a_warning(tmp_path, caplog):
    path = write_whole(tmp_path / "a.ogg")
    whole = load_audio(path)
    *pages, last = ogg_pages(path.read_bytes())
    last[5] &= ~0x04
    path.write_bytes(b"".join(pages) + with_checksum(last))

    waveform = load_audio(path)

    np.testing.assert_allclose(waveform[: len(whole)], whole, atol=1e-6)
    assert "no end mark" in caplog.text


def test_ogg_files_put_one_behind_the_other_are_read_to_the_end(tmp_path):
    path = write_whole(tmp_path / "a.ogg")
    content = path.read_bytes()
    second = [page[:14] + b"\x07\x00\x00\x00" + page[18:] for page in ogg_pages(content)]
    path.write_bytes(content + b"".join(map(with_checksum, second)))

    assert len(load_audio(path)) == pytest.approx(96_000, abs=300)


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)])
def test_mp3_files_put_one_behind_the_other_are_read_to_the_end(tmp_path, tag):
    path = write_whole(tmp_path / "a.mp3")
    content = path.read_bytes()
    path.write_bytes(content + tag + content)

    waveform = load_audio(path)

    assert len(waveform) == pytest.approx(96_000, abs=2000)
    np.testing.assert_allclose(load_audio(path, 4.5, 0.5), waveform[72_000:80_000], atol=1e-5)


def test_an_mp3_without_a_frame_count_is_read_to_its_end(tmp_path):
    path = encode(
        tmp_path / "a.mp3",
        tone(seconds=5, sample_rate=44_100),
        44_100,
        "libmp3lame",
        container={"write_xing": "0"},
    )

    assert len(load_audio(path)) == pytest.approx(80_000, abs=1600)


def test_an_mp3_behind_a_cover_picture_is_read(tmp_path):
    path = write_tone(tmp_path / "a.mp3", seconds=2, sample_rate=44_100)
    content = path.read_bytes()
    size = 200_000
    header = b"ID3\x04\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(header + b"\xff\xfb\x90\x00" * (size // 4) + content)

    assert len(load_audio(path)) == 32_000


def test_an_error_survives_the_way_out_of_a_worker_process():
    import pickle

    error = pickle.loads(pickle.dumps(AudioError("a.wav", "it is damaged.")))

    assert (error.file, error.reason) == ("a.wav", "it is damaged.")
