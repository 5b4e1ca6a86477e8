"""The engine as a stream: order, groups, time steps, several layers, neighbours decoded once, clean ends."""

import threading

import numpy as np
import pytest
import soundfile
import torch

from beats_trainer.embeddings import pieces
from beats_trainer.embeddings.encode import encode_clips, encode_stream
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.pieces import Work
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip
from beats_trainer.model import AttentivePooling, BEATs
from checkpoint_files import tiny_architecture
from sounds import encode as write_encoded
from sounds import tone, write_tone


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = BEATs(tiny_architecture()).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def stream(network, sources, groups=None, batch_size=4, **options):
    encoder = Encoder(network, **{"precision": "float32", **options})
    groups = groups or [0] * len(sources)
    work = (Work(source, group) for source, group in zip(sources, groups, strict=True))
    return list(encode_stream(encoder, work, batch_size, num_threads=2))


def test_values_come_in_the_order_given_with_the_unreadable_in_their_places(network, tmp_path):
    gone = str(tmp_path / "gone.wav")
    sources = [tone(0.5), gone, tone(3.0), tone(0.3), gone, gone]

    outcomes = stream(network, sources, window_s=1.0)

    assert [index for index, _ in outcomes] == [0, 1, 2, 3, 4, 5]
    assert [isinstance(values, AudioError) for _, values in outcomes] == [
        *(False, True, False, False, True, True)
    ]
    alone = encode_clips(network, [sources[2]], window_s=1.0, precision="float32").embeddings[0]
    np.testing.assert_allclose(outcomes[2][1], alone, atol=2e-5)


def test_only_unreadable_clips_give_only_errors(network, tmp_path):
    outcomes = stream(network, [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")], groups=[0, 1])

    assert [values.file[-5:] for _, values in outcomes] == ["a.wav", "b.wav"]


def test_a_group_has_the_same_bits_whatever_came_before_it(network):
    before = [tone(0.2 + 0.1 * i, seed=i) for i in range(7)]
    group = [tone(0.3 + 0.13 * i, 500, seed=i) for i in range(6)]

    after_others = stream(network, before + group, groups=[0] * 7 + [1] * 6)[7:]
    first = stream(network, group, groups=[5] * 6)

    for (_, one), (_, other) in zip(after_others, first, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last", "bands"])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.3])
def test_per_time_step_the_eight_patches_of_each_are_pooled(network, pooling, seconds):
    clip = tone(seconds)
    options = {"window_s": 1.2}

    ((_, steps),) = stream(network, [clip], pooling=pooling, per_step=True, **options)

    ((_, tokens),) = stream(network, [clip], pooling="none", **options)
    patches = tokens.reshape(-1, 8, tokens.shape[-1])
    expected = {
        "mean": patches.mean(axis=1),
        "max": patches.max(axis=1),
        "first": patches[:, 0],
        "last": patches[:, -1],
        "bands": patches.reshape(len(patches), -1),
    }[pooling]
    np.testing.assert_allclose(steps, expected, atol=2e-5)


def test_per_time_step_clips_of_a_batch_keep_their_own_number_of_steps(network):
    clips = [tone(0.5), tone(2.0), tone(0.18)]

    outcomes = stream(network, clips, per_step=True)

    assert [len(values) for _, values in outcomes] == [3, 12, 1]
    for clip, (_, values) in zip(clips, outcomes, strict=True):
        ((_, alone),) = stream(network, [clip], per_step=True)
        np.testing.assert_allclose(values, alone, atol=2e-5)


def test_a_learned_pooling_per_time_step_sees_that_steps_patches_in_all_layers(network):
    pooling = AttentivePooling.for_architecture(network.architecture)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(1))
    clip = tone(1.0)

    ((_, steps),) = stream(network, [clip], pooling=pooling, per_step=True)

    with torch.no_grad():
        layers = network(torch.from_numpy(clip)[None], output_layers=True).layers
        expected = [
            pooling(layers[:, :, 8 * step : 8 * step + 8])[0].numpy() for step in range(len(steps))
        ]
    assert len(steps) == 6
    np.testing.assert_allclose(steps, expected, atol=2e-5)


def test_several_layers_are_those_layers_side_by_side(network):
    clips = [tone(0.5), tone(2.5)]

    outcomes = stream(network, clips, layer=(2, 0), window_s=1.0)

    for layer, row in ((2, 0), (0, 1)):
        alone = stream(network, clips, layer=layer, window_s=1.0)
        for (_, several), (_, one) in zip(outcomes, alone, strict=True):
            np.testing.assert_allclose(several[row], one, atol=1e-6)


@pytest.mark.parametrize("layer", [(), (1, 1), (1, -2), (0, 9)])
def test_layers_that_are_not_there_or_asked_for_twice_are_refused(network, layer):
    with pytest.raises(ValueError, match=r"different layers|no layer 9"):
        Encoder(network, layer=layer)


def test_every_token_per_time_step_contradicts_itself(network):
    with pytest.raises(ValueError, match="choose a pooling"):
        Encoder(network, "none", per_step=True)


def overlapping(file, seconds, window_s=2.0, hop_s=0.5):
    count = round((seconds - window_s) / hop_s) + 1
    return [Clip(str(file), hop_s * index, window_s) for index in range(count)]


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_overlapping_windows_are_decoded_once_and_are_what_each_alone_is(
    network, tmp_path, monkeypatch, sample_rate
):
    file = write_tone(tmp_path / "a.wav", seconds=9, sample_rate=sample_rate)
    windows = overlapping(file, 9)
    alone = [stream(network, [window])[0][1] for window in windows]
    decoded = []
    load = pieces.load_audio

    def spy(file, start_s=0.0, duration_s=None):
        decoded.append(duration_s)
        return load(file, start_s, duration_s)

    monkeypatch.setattr(pieces, "load_audio", spy)

    outcomes = stream(network, windows)

    assert decoded == [9.0]
    for (_, values), expected in zip(outcomes, alone, strict=True):
        np.testing.assert_allclose(values, expected, atol=2e-5)


def test_a_fault_in_a_recording_costs_only_the_windows_that_hold_it(network, tmp_path):
    samples = tone(9.0)
    samples[round(4.2 * 16_000)] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    windows = overlapping(tmp_path / "a.wav", 9, window_s=1.0, hop_s=1.0)

    outcomes = stream(network, windows)

    failed = [index for index, values in outcomes if isinstance(values, AudioError)]
    assert failed == [4]
    assert "4.200 s" in outcomes[4][1].reason


def test_windows_behind_the_end_of_a_file_say_so(network, tmp_path):
    file = write_tone(tmp_path / "a.wav", seconds=2.5)

    outcomes = stream(network, overlapping(file, 5.0, window_s=1.0, hop_s=1.0))

    assert [isinstance(values, AudioError) for _, values in outcomes] == [
        *(False, False, False, True, True)
    ]
    assert "2.500 s long" in outcomes[3][1].reason


def test_a_stream_that_is_closed_early_leaves_no_thread_and_no_mode_behind(network, tmp_path):
    file = write_tone(tmp_path / "a.wav", seconds=30)
    network.train()
    try:
        encoder = Encoder(network, precision="float32")
        outcomes = encode_stream(encoder, map(Work, overlapping(file, 30)), 2, num_threads=2)
        next(outcomes)
        outcomes.close()
        assert network.training
    finally:
        network.eval()

    assert not [t for t in threading.enumerate() if t.name.startswith("read_ahead")]


def test_work_is_taken_a_bounded_number_ahead(network, tmp_path):
    file = str(write_tone(tmp_path / "a.wav", seconds=0.3))
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Work(Clip(file, 0.0, 0.3))

    outcomes = encode_stream(Encoder(network, precision="float32"), endless(), 2, num_threads=2)
    for _ in range(10):
        next(outcomes)
    outcomes.close()

    assert taken < 500


@pytest.mark.parametrize("ending", ["mp3", "webm"])
def test_a_recording_that_cannot_be_entered_anywhere_is_decoded_once(
    network, tmp_path, monkeypatch, ending
):
    monkeypatch.setattr(pieces, "_BLOCK_SAMPLES", 3 * 16_000)
    codec = {"mp3": "libmp3lame", "webm": "libopus"}[ending]
    file = write_encoded(tmp_path / f"a.{ending}", tone(30.0, sample_rate=48_000), 48_000, codec)
    windows = overlapping(file, 28, window_s=2.0, hop_s=1.0)
    alone = [stream(network, [window])[0][1] for window in windows]
    opened = []

    class Spy(pieces.AudioReader):
        def __init__(self, file, overlap_s):
            opened.append(file)
            super().__init__(file, overlap_s)

    monkeypatch.setattr(pieces, "AudioReader", Spy)

    outcomes = stream(network, windows)

    assert opened == [str(file)]
    for (_, values), expected in zip(outcomes, alone, strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_a_recording_read_in_turns_that_vanishes_fails_window_by_window(
    network, tmp_path, monkeypatch
):
    monkeypatch.setattr(pieces, "_BLOCK_SAMPLES", 3 * 16_000)
    file = write_encoded(tmp_path / "a.mp3", tone(30.0), 16_000, "libmp3lame")

    def gone(file, overlap_s):
        raise AudioError(str(file), "the drive is away.")

    monkeypatch.setattr(pieces, "AudioReader", gone)

    outcomes = stream(network, overlapping(file, 28, window_s=2.0, hop_s=1.0))

    failed = [isinstance(values, AudioError) for _, values in outcomes]
    assert not failed[0]  # read before turns were needed
    assert failed[-1]
    assert len(failed) == 27


def test_an_unforeseen_error_in_a_recording_read_in_turns_is_raised_and_no_thread_waits_for_ever(
    network, tmp_path, monkeypatch
):
    file = write_encoded(tmp_path / "a.mp3", tone(12.0), 16_000, "libmp3lame")
    apart = [Clip(str(file), float(second), 0.5) for second in range(12)]  # several to a bundle

    class Failing(pieces.AudioReader):
        def read(self, start_s=0.0, duration_s=None):
            if start_s == 2.0:
                raise RuntimeError("not foreseen")
            return super().read(start_s, duration_s)

    monkeypatch.setattr(pieces, "AudioReader", Failing)
    raised = []

    def run():
        with pytest.raises(RuntimeError, match="not foreseen"):
            stream(network, apart)
        raised.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)

    assert raised == [True]
