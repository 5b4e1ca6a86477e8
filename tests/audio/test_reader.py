"""A reader goes on where it stopped: what it gives, what it costs in time and in memory."""

import gc
import os
import threading
import tracemalloc

import av
import numpy as np
import pytest
import soundfile
import soxr

from beats_trainer.audio import AudioReader, decode, load_audio, probe_audio
from beats_trainer.audio.waveform import resample, resample_pieces
from beats_trainer.errors import AudioError, AudioNotFoundError
from sounds import encode, sweep, tone, write_tone

PARTS = {
    "one after the other": [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, None)],
    "overlapping": [(0.0, 2.0), (1.0, 2.0), (1.5, 2.0), (3.0, 2.0), (3.01, 0.5)],
    "with gaps": [(0.3, 0.1), (2.2, 0.7), (4.9, 0.5)],
    "backward": [(4.0, 1.0), (2.0, 1.0), (0.0, 1.0), (0.0, None)],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_reader_gives_what_loading_each_part_gives(encoded, parts):
    path, _, _ = encoded
    tolerance = {"with_noise.m4a": 2e-2, "a.mp2": 1e-4}.get(
        path.name, 0
    )  # these differ at each reading

    with AudioReader(path, overlap_s=1.5) as reader:
        for start_s, duration_s in parts:
            part = reader.read(start_s, duration_s)
            np.testing.assert_allclose(
                part, load_audio(path, start_s, duration_s), atol=tolerance, rtol=0
            )


def test_a_reader_finds_every_place_again_and_again(encoded):
    # libsndfile alone, sent to and fro in one open Vorbis file, gives wrong samples one time in three.
    path, _, _ = encoded
    whole = load_audio(path)
    tolerance = {"with_noise.m4a": 2e-2, "a.mp2": 1e-4}.get(path.name, 1e-5)
    random = np.random.default_rng(0)

    with AudioReader(path) as reader:
        for start in random.integers(0, len(whole) - 100, 40):
            part = reader.read(start / 16_000, 0.2)
            np.testing.assert_allclose(part, whole[start : start + 3200], atol=tolerance, rtol=0)


def test_a_reader_knows_what_probing_tells(encoded):
    path, _, _ = encoded

    with AudioReader(path) as reader:
        assert reader.info == probe_audio(path)


def test_files_in_which_no_place_is_found_at_once_are_told(encoded):
    path, _, _ = encoded
    slow = {"gsm.wav", "no_count.mp3", "ffmpeg.mp3", "a.wv"}
    is_slow = path.name in slow or path.suffix in (".mp3", ".mp2", ".aac", ".mka", ".webm", ".wma")

    assert probe_audio(path).is_seekable == (not is_slow)


def count_decoded(monkeypatch):
    """Samples that any decoder gives from now on, in a list of one number per piece."""
    counts = []
    frames, sound_file = decode._AvFile.frames, soundfile.SoundFile

    def counted(self, *expected):
        for frame in frames(self, *expected):
            counts.append(frame.samples if frame else 0)
            yield frame

    class Counted(sound_file):
        def read(self, *args, **kwargs):
            samples = super().read(*args, **kwargs)
            counts.append(len(samples))
            return samples

    monkeypatch.setattr(decode._AvFile, "frames", counted)
    monkeypatch.setattr(soundfile, "SoundFile", Counted)
    return counts


@pytest.mark.parametrize("hop_s", [0.5, 0.2], ids=["consecutive", "overlapping"])
def test_reading_forward_decodes_each_sample_about_once(encoded, monkeypatch, hop_s):
    path, _, rate = encoded
    duration_s = probe_audio(path).duration_s
    counts = count_decoded(monkeypatch)

    with AudioReader(path, overlap_s=0.5) as reader:
        counts.clear()  # without what opening took
        is_seekable = reader.info.is_seekable
        for start_s in np.arange(0, duration_s - 0.1, hop_s):
            reader.read(start_s, 0.5)

    read_s = sum(counts) / rate
    if not is_seekable:
        assert read_s < 1.1 * duration_s
    elif reader._source.decoder == "soundfile" and path.suffix != ".ogg":
        assert read_s < (0.5 + 0.1) / hop_s * duration_s  # 20 ms of context on both sides


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".webm"])
def test_memory_holds_little_beside_the_result(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".webm":
        encode(path, tone(60, sample_rate=48_000), 48_000, "libopus", bit_rate=64_000)
    else:
        second = np.stack([tone(1, sample_rate=384_000, seed=c) for c in range(8)], axis=1)
        with soundfile.SoundFile(path, "w", 96_000 if suffix == ".flac" else 384_000, 8) as sound:
            for _ in range(5):  # 123 MB as float32
                sound.write(second)
    load_audio(path, 0.0, 0.1)  # what is imported and remembered is not counted

    for part in [(0.0, None), (0.5, 3.0)]:
        gc.collect()
        tracemalloc.start()
        waveform = load_audio(path, *part)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - waveform.nbytes < 8e6


@pytest.mark.parametrize(
    "rate", [100, 8_000, 11_025, 16_001, 22_050, 44_100, 48_000, 250_000, 384_000, 10_000_000]
)
def test_resampling_in_pieces_is_bit_identical_to_doing_it_at_once(rate):
    random = np.random.default_rng(rate)
    for length in (1, 2, 159, 1000, 4001, 100_003):
        if rate == 100 and length > 4001:
            continue
        signal = random.standard_normal(length).astype(np.float32)
        expected = resample(signal, rate)
        if length > 1000:
            np.testing.assert_array_equal(expected, soxr.resample(signal, rate, 16_000, "HQ"))
        for size in (1, 7, 1024, 65_536):
            if length / size > 2000:
                continue
            pieces = (signal[i : i + size] for i in range(0, length, size))
            np.testing.assert_array_equal(resample_pieces(pieces, rate, length), expected)


def test_the_first_bad_sample_is_named_wherever_a_piece_begins(tmp_path):
    samples = np.zeros(700_000, np.float32)
    samples[[600_000, 650_000]] = np.inf
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")

    with AudioReader(tmp_path / "a.wav") as reader:
        with pytest.raises(AudioError, match=r"not finite.*37\.500 s"):
            reader.read()
        with pytest.raises(AudioError, match=r"not finite.*40\.625 s"):
            reader.read(38.0)
        assert len(reader.read(0.0, 37.0)) == 37 * 16_000  # and the reader goes on


def test_a_bad_sample_among_what_was_kept_is_named_again(tmp_path):
    samples = tone(3)
    samples[20_000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    path = tmp_path / "a.mka"

    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))

    with AudioReader(path) as reader:
        assert len(reader.read(0.0, 1.0)) == 16_000
        for start_s, duration_s in ((0.5, 1.0), (1.0, 0.5), (1.1, 0.5)):
            with pytest.raises(AudioError, match=r"not finite.*1\.250 s"):
                reader.read(start_s, duration_s)
        np.testing.assert_allclose(reader.read(2.0, 0.5), samples[32_000:40_000], atol=1e-6)


def test_a_header_that_states_more_than_memory_holds_is_an_audio_error(tmp_path):
    path = write_tone(tmp_path / "a.flac", seconds=20, sample_rate=44_100)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # 36 bits of STREAMINFO that count the samples
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)

    with pytest.raises(AudioError, match=r"more than memory holds|cut off or damaged"):
        load_audio(path)


def test_a_reader_that_is_closed_says_so(tmp_path):
    reader = AudioReader(write_tone(tmp_path / "a.wav"))
    reader.close()
    reader.close()

    with pytest.raises(ValueError, match="closed"):
        reader.read()


@pytest.mark.parametrize("overlap_s", [-1.0, float("nan")])
def test_a_senseless_overlap_is_refused(tmp_path, overlap_s):
    with pytest.raises(ValueError, match="overlap_s must not be negative"):
        AudioReader(write_tone(tmp_path / "a.wav"), overlap_s=overlap_s)


def test_readers_of_one_file_in_several_threads_give_the_same(tmp_path):
    path = encode(tmp_path / "a.wma", sweep(6, 44_100), 44_100, "wmav2", bit_rate=96_000)
    expected = load_audio(path)
    results = {}

    def read(number):
        with AudioReader(path) as reader:
            results[number] = [reader.read(start_s, 1.0) for start_s in range(5)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for parts in results.values():
        np.testing.assert_allclose(np.concatenate(parts), expected[:80_000], atol=1e-5)
    assert len(results) == 4


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no open file")
@pytest.mark.parametrize("suffix", [".wav", ".wma"])
def test_going_back_in_a_file_that_is_gone_is_an_error_or_still_right(tmp_path, suffix):
    samples = sweep(4, 44_100)
    path = tmp_path / f"a{suffix}"
    if suffix == ".wma":
        encode(path, samples, 44_100, "wmav2", bit_rate=96_000)
    else:
        soundfile.write(path, samples, 44_100)
    whole = load_audio(path)

    with AudioReader(path, overlap_s=0) as reader:
        reader.read(2.0, 1.0)
        path.rename(tmp_path / "elsewhere")
        np.testing.assert_allclose(reader.read(3.0, 0.5), whole[48_000:56_000], atol=1e-5)
        if suffix == ".wav":
            np.testing.assert_allclose(reader.read(0.0, 1.0), whole[:16_000], atol=1e-5)
        else:
            with pytest.raises(AudioNotFoundError, match=r"a\.wma"):
                reader.read(0.0, 1.0)


def test_going_back_in_a_file_that_was_replaced_is_an_error(tmp_path):
    path = encode(tmp_path / "a.wma", sweep(4, 44_100), 44_100, "wmav2", bit_rate=96_000)
    other = encode(tmp_path / "b.wma", sweep(3, 44_100), 44_100, "wmav2", bit_rate=96_000)

    with AudioReader(path, overlap_s=0) as reader:
        reader.read(2.0, 1.0)
        os.replace(other, path)
        with pytest.raises(AudioError, match="changed while it was read"):
            reader.read(0.0, 1.0)
