"""How much work a run does, counted: looks at files, decodes, forward passes, and what goes on side by side."""

import threading
import weakref

import numpy as np
import pytest
import torch

from beats_trainer import BEATsFeatureExtractor, BEATsModel
from beats_trainer.embeddings import journal, pieces, windows
from beats_trainer.embeddings.encode import encode_stream
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.pieces import Work
from beats_trainer.embeddings.windowed import encode_windows
from beats_trainer.embeddings.windows import Windowing
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip
from checkpoint_files import tiny_architecture
from sounds import write_tone


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BEATsModel(tiny_architecture())


def counting(monkeypatch, owner, name):
    """Note the first argument of each call."""
    calls, original = [], getattr(owner, name)

    def counted(first, *args, **options):
        calls.append(first)
        return original(first, *args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_file_is_asked_once_for_its_length_and_decoded_once(model, tmp_path, monkeypatch):
    for index in range(20):
        write_tone(tmp_path / "in" / f"{index}.wav", seconds=0.3)
    planned = counting(monkeypatch, windows, "probe_audio")
    cut = counting(monkeypatch, pieces, "probe_audio")
    decoded = counting(monkeypatch, pieces, "load_audio")
    states = counting(monkeypatch, journal.os, "stat")

    BEATsFeatureExtractor(model, device="cpu").embed_to(tmp_path / "in", tmp_path / "out")

    files = sorted(map(str, (tmp_path / "in").iterdir()))
    assert sorted(planned) == sorted(decoded) == files
    assert cut == []
    # Two to see whether it changed, one each by the reader for its length and its sound.
    assert sum(str(path) == files[0] for path in states) <= 4


def test_overlapping_windows_cost_one_decode_and_full_batches(model, tmp_path, monkeypatch):
    write_tone(tmp_path / "in" / "a.wav", seconds=33)
    decoded = counting(monkeypatch, pieces, "load_audio")
    batches = []
    encode_batch = Encoder.encode_batch

    def counted(self, waveforms):
        batches.append(len(waveforms))
        return encode_batch(self, waveforms)

    monkeypatch.setattr(Encoder, "encode_batch", counted)
    extractor = BEATsFeatureExtractor(model, device="cpu", batch_size=8)

    store = extractor.embed_to(tmp_path / "in", tmp_path / "out", window_s=2.0, hop_s=1.0)

    assert len(store) == 32
    assert len(decoded) == 1
    assert batches == [8, 8, 8, 8]


def test_rows_per_time_step_come_in_full_batches_too(model, tmp_path, monkeypatch):
    write_tone(tmp_path / "in" / "a.wav", seconds=16)
    batches = []
    encode_batch = Encoder.encode_batch

    def counted(self, waveforms):
        batches.append(len(waveforms))
        return encode_batch(self, waveforms)

    monkeypatch.setattr(Encoder, "encode_batch", counted)
    extractor = BEATsFeatureExtractor(model, device="cpu", batch_size=4)

    store = extractor.embed_to(
        tmp_path / "in", tmp_path / "out", window_s=2.0, per_step=True, rows_per_shard=12
    )

    assert len(store) == 99  # 16 s have 1,598 frames
    assert batches[:2] == [4, 4]


def test_what_comes_next_is_decoded_while_the_network_computes(model, tmp_path, monkeypatch):
    file = str(write_tone(tmp_path / "a.wav", seconds=0.3))
    num_read, changed = 0, threading.Condition()
    load = pieces.load_audio

    def counted(*args):
        nonlocal num_read
        with changed:
            num_read += 1
            changed.notify_all()
        return load(*args)

    monkeypatch.setattr(pieces, "load_audio", counted)
    encode_batch = Encoder.encode_batch
    was_ahead = []

    def waits_for_readers(self, waveforms):
        if not was_ahead:  # a pool of 16 batches is in: of the next one, most is read meanwhile
            with changed:
                was_ahead.append(changed.wait_for(lambda: num_read >= 16 * 2 + 24, timeout=20))
        return encode_batch(self, waveforms)

    monkeypatch.setattr(Encoder, "encode_batch", waits_for_readers)
    work = (Work(Clip(file, 0.01 * index, 0.1)) for index in (0, 20) * 50)

    list(encode_stream(Encoder(model, precision="float32"), work, batch_size=2, num_threads=2))

    assert was_ahead == [True]


def test_sound_that_is_encoded_is_not_kept_until_its_mates_are(model, monkeypatch):
    alive = set()

    def clips():
        for index in range(48):
            waveform = np.zeros(4_000, np.float32)
            weakref.finalize(waveform, alive.remove, index)
            alive.add(index)
            yield Work(waveform)

    encode_batch = Encoder.encode_batch
    kept = []

    def counted(self, waveforms):
        kept.append(min(alive))
        return encode_batch(self, waveforms)

    monkeypatch.setattr(Encoder, "encode_batch", counted)

    list(encode_stream(Encoder(model, precision="float32"), clips(), batch_size=2, num_threads=1))

    # But for what was read in one go, 16 clips, of which the last goes last.
    assert all(first >= 2 * batch - 16 for batch, first in enumerate(kept))


def test_files_that_cannot_be_read_are_given_on_the_way_not_at_the_end(model, tmp_path):
    taken = 0

    def clips():
        nonlocal taken
        for index in range(20_000):
            taken += 1
            yield Clip(str(tmp_path / f"{index}.wav")), 0

    encoder = Encoder(model, precision="float32")
    outcomes = encode_windows(encoder, clips(), Windowing(), windows_per_group=64, num_threads=2)
    _, error = next(outcomes)
    outcomes.close()

    assert isinstance(error, AudioError)
    assert taken < 2_000
