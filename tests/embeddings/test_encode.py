"""The engine: order, independence of mates, long recordings, failures, layers, memory."""

import numpy as np
import pytest
import torch

from beats_trainer.embeddings import batch_size as batch_sizes
from beats_trainer.embeddings import pieces
from beats_trainer.embeddings.encode import check_layer, check_pooling, encode_clips
from beats_trainer.errors import AudioError, BEATsTrainerError
from beats_trainer.loading import Clip
from beats_trainer.model import AttentivePooling, BEATs, pool_tokens
from checkpoint_files import tiny_architecture
from sounds import tone, write_tone

POOLINGS = ["mean", "max", "first", "last", "bands", "none"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = BEATs(tiny_architecture()).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def encode(network, inputs, **options):
    return encode_clips(network, inputs, **{"precision": "float32", **options})


@pytest.fixture(scope="module")
def attentive(network):
    pooling = AttentivePooling.for_architecture(network.architecture)
    generator = torch.Generator().manual_seed(3)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=3.0, generator=generator)
    return pooling


def mixed_clips():
    seconds = [0.05, 3.0, 0.9, 1.7, 0.3, 2.2, 0.18, 1.0, 5.0, 0.6]
    return [tone(s, 300 + 200 * i, seed=i) for i, s in enumerate(seconds)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_each_embedding_is_the_clips_own_in_the_order_given(network, pooling, batch_size):
    clips = mixed_clips()

    encoded = encode(network, clips, pooling=pooling, batch_size=batch_size)

    assert encoded.kept == list(range(len(clips)))
    for clip, embedding in zip(clips, encoded.embeddings, strict=True):
        with torch.no_grad():
            tokens = network(torch.from_numpy(clip)[None]).tokens
        alone = tokens if pooling == "none" else pool_tokens(tokens, mode=pooling)
        np.testing.assert_allclose(embedding, alone[0].numpy(), atol=2e-5)
        assert embedding.dtype == np.float32


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_a_layer_is_that_layer(network, layer):
    clip = tone(1.0)

    embedding = encode(network, [clip], layer=layer).embeddings[0]

    with torch.no_grad():
        layers = network(torch.from_numpy(clip)[None], output_layers=True).layers
    np.testing.assert_allclose(embedding, layers[layer, 0].mean(dim=0).numpy(), atol=2e-5)


def test_layers_differ_and_all_layers_hold_each(network):
    clips = mixed_clips()[:3]

    every = encode(network, clips, layer="all").embeddings

    for index in range(3):
        single = encode(network, clips, layer=index).embeddings
        for clip in range(3):
            np.testing.assert_allclose(every[clip][index], single[clip], atol=1e-6)
    assert not np.allclose(every[0][0], every[0][1])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("seconds", [2.0, 2.4, 7.3])
def test_windows_of_a_long_recording_have_its_tokens(
    network, tmp_path, pooling, seconds, monkeypatch
):
    path = write_tone(tmp_path / "long.wav", seconds=seconds, sample_rate=44_100)
    whole = encode(network, [path], pooling="none").embeddings[0]
    positions = encode(network, [path], pooling="none", layer=0).embeddings[0]
    fbank_tokens = encode(network, [path], pooling="none", layer=0, window_s=1.0).embeddings[0]

    windowed = encode(network, [path], pooling="none", window_s=1.0).embeddings[0]

    assert windowed.shape == whole.shape  # no token lost, none of padding
    # The position convolution reaches 8 tokens to each side of a window's edge, and no further.
    near_start = slice(0, 20)
    np.testing.assert_allclose(fbank_tokens[near_start], positions[near_start], atol=1e-4)
    pooled = encode(network, [path], pooling=pooling, window_s=1.0).embeddings[0]
    if pooling != "none":
        expected = pool_tokens(torch.from_numpy(windowed)[None], mode=pooling)[0].numpy()
        np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_a_learned_pooling_reads_all_layers_of_each_clip_alone(network, attentive):
    clips = mixed_clips()

    encoded = encode(network, clips, pooling=attentive, batch_size=4)

    for clip, embedding in zip(clips, encoded.embeddings, strict=True):
        with torch.no_grad():
            layers = network(torch.from_numpy(clip)[None], output_layers=True).layers
            expected = attentive(layers)[0].numpy()
        np.testing.assert_allclose(embedding, expected, atol=2e-5)
        assert embedding.dtype == np.float32


@pytest.mark.parametrize("seconds", [2.0, 7.3])
def test_a_learned_pooling_over_windows_is_that_over_all_their_tokens(network, attentive, seconds):
    clip = tone(seconds)
    windows = {"window_s": 1.0}

    pooled = encode(network, [clip], pooling=attentive, **windows).embeddings[0]

    tokens = encode(network, [clip], pooling="none", layer="all", **windows).embeddings[0]
    with torch.no_grad():
        expected = attentive(torch.from_numpy(tokens)[:, None])[0].numpy()
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_a_learned_pooling_of_another_network_or_of_one_layer_is_refused(network, attentive):
    with pytest.raises(ValueError, match="made for 5 layers"):
        encode(network, [tone()], pooling=AttentivePooling(32, 5, 4))
    with pytest.raises(ValueError, match="reads all layers"):
        encode(network, [tone()], pooling=attentive, layer=1)


def test_a_tail_too_short_for_a_token_adds_none(network):
    step = 2_560
    for extra in (0, 100, 2_559):
        clip = tone(1.0)[: 4 * step + 240 + extra]
        windowed = encode(network, [clip], pooling="none", window_s=(2 * step + 240) / 16_000)
        whole = encode(network, [clip], pooling="none")
        assert windowed.embeddings[0].shape == whole.embeddings[0].shape


def test_a_long_recording_is_decoded_once_a_bounded_stretch_at_a_time(
    network, tmp_path, monkeypatch
):
    monkeypatch.setattr(pieces, "_BLOCK_SAMPLES", 7 * 16_000)
    path = write_tone(tmp_path / "long.wav", seconds=20)
    read = []
    load = pieces.load_audio

    def spy(file, start_s=0.0, duration_s=None):
        waveform = load(file, start_s, duration_s)
        read.append(len(waveform))
        return waveform

    monkeypatch.setattr(pieces, "load_audio", spy)

    encode(network, [path], window_s=2.0)

    assert max(read) <= 7 * 16_000
    assert 20 * 16_000 <= sum(read) <= 20.1 * 16_000  # pieces overlap by 15 ms


def test_parts_of_files_and_files_and_arrays_go_together(network, tmp_path):
    path = write_tone(tmp_path / "a.wav", seconds=2)
    samples = tone(2.0)

    encoded = encode(network, [Clip(str(path), 0.5, 1.0), str(path), samples, Clip(str(path), 1.0)])

    from_arrays = encode(network, [samples[8000:24_000], samples, samples, samples[16_000:]])
    np.testing.assert_allclose(encoded.embeddings, from_arrays.embeddings, atol=1e-3)


def test_a_part_longer_than_a_window_ends_where_it_ends(network, tmp_path):
    path = write_tone(tmp_path / "a.wav", seconds=5)

    part = encode(network, [Clip(str(path), 1.0, 3.0)], window_s=1.0, pooling="none").embeddings[0]

    assert len(part) == 8 * ((3 * 16_000 - 240) // 2560)


def test_an_unreadable_file_is_raised_or_skipped_as_asked(network, tmp_path):
    good = write_tone(tmp_path / "good.wav")
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    files = [good, bad, tmp_path / "gone.wav", good]

    with pytest.raises(AudioError, match=r"bad\.wav"):
        encode(network, files)
    encoded = encode(network, files, on_error="skip")

    assert encoded.kept == [0, 3]
    assert [(f.index, f.file) for f in encoded.failures] == [(1, str(bad)), (2, str(files[2]))]
    np.testing.assert_array_equal(encoded.embeddings[0], encoded.embeddings[1])


def test_a_long_recording_that_fails_in_its_middle_fails_as_a_whole(network, tmp_path):
    import soundfile

    samples = tone(6.0)
    samples[80_000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")

    encoded = encode(network, [tmp_path / "a.wav"], window_s=1.0, on_error="skip")

    assert encoded.embeddings == []
    assert "5.000 s" in encoded.failures[0].reason


def test_the_network_is_left_in_the_mode_it_was_in(network):
    network.train()
    network.encoder.eval()
    try:
        first = encode(network, [tone(0.5)]).embeddings[0]
        modes = network.training, network.encoder.training, network.layer_norm.training
    finally:
        network.eval()

    assert modes == (True, False, True)
    np.testing.assert_array_equal(first, encode(network, [tone(0.5)]).embeddings[0])


def test_values_that_are_not_finite_are_an_error_and_no_embedding(network):
    broken = BEATs(network.architecture).eval()
    broken.layer_norm.weight.data.fill_(float("inf"))

    with pytest.raises(BEATsTrainerError, match=r"not finite in torch\.float32"):
        encode(broken, [tone(0.5)])


def test_big_batches_are_cut_to_fit_the_memory_of_attention(network, monkeypatch):
    monkeypatch.setattr(
        batch_sizes, "_ATTENTION_BYTES", 4 * 4 * 120**2 * 2
    )  # two clips of 15 steps
    sizes = []
    forward = BEATs.forward

    def spy(self, waveforms, *arguments, **options):
        sizes.append(len(waveforms))
        return forward(self, waveforms, *arguments, **options)

    monkeypatch.setattr(BEATs, "forward", spy)

    encode(network, [tone(2.4)] * 7, batch_size=8)

    assert sum(sizes) == 7
    assert max(sizes) == 2


def test_reduced_precision_is_reported_and_close(network):
    clips = mixed_clips()[:3]

    half = encode(network, clips, precision="bfloat16")

    assert half.precision == "bfloat16"
    exact = encode(network, clips)
    assert exact.precision == "float32"
    np.testing.assert_allclose(half.embeddings, exact.embeddings, atol=0.1)
    assert not np.array_equal(half.embeddings, exact.embeddings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "median"}, "Unknown pooling"),
        ({"layer": 3}, "no layer 3"),
        ({"layer": "last"}, "whole number"),
        ({"batch_size": 0}, "at least 1"),
        ({"on_error": "ignore"}, "'raise' or 'skip'"),
        ({"precision": "int8"}, "Unknown precision"),
        ({"window_s": 0.1}, "window_s must be"),
        ({"window_s": float("inf")}, "window_s must be a finite"),
    ],
)
def test_unknown_options_are_refused_before_anything_is_read(network, options, message):
    with pytest.raises(ValueError, match=message):
        encode(network, ["not/there.wav"], **options)


def test_names_of_poolings_and_layers_have_one_spelling():
    assert check_pooling("CLS") == "first"
    assert check_layer(-13, 12) == 0
    assert check_layer("all", 12) == "all"
