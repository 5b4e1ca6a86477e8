"""The compiled encoder: the same numbers, for a bounded number of shapes, and never at the price of a run."""

import logging

import pytest
import torch

from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.model import BEATs, compiled
from beats_trainer.model.compiled import compiled_for_inference
from checkpoint_files import tiny_architecture

LOGGER = "beats_trainer.model.compiled"


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = BEATs(tiny_architecture()).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


class CountingBackend:
    """Runs graphs as they are, and counts how many it was given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


@torch.inference_mode()
def test_a_compiled_encoder_gives_the_same_tokens_and_layers_also_of_padded_clips(network):
    fast = compiled_for_inference(network, backend="aot_eager")
    waveforms = torch.randn(2, 8_000)
    lengths = torch.tensor([8_000, 5_000])

    for given in (None, lengths):
        for _ in range(2):  # the first call compares, the second relies on it
            found = fast(waveforms, given, output_layers=True)
            expected = network(waveforms, given, output_layers=True)
            real = range(16) if given is not None else range(expected.tokens.shape[1])
            for clip in range(2):
                torch.testing.assert_close(
                    found.layers[:, clip, real],
                    expected.layers[:, clip, real],
                    atol=1e-5,
                    rtol=1e-5,
                )


@torch.inference_mode()
def test_each_shape_is_compiled_once_and_only_so_many_of_them(network, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_SHAPES", 2)
    backend = CountingBackend()
    fast = compiled_for_inference(network, backend)

    for seconds in (0.5, 1.0, 0.5, 1.0, 1.5, 2.0):
        waveforms = torch.randn(1, round(seconds * 16_000))
        torch.testing.assert_close(fast(waveforms).tokens, network(waveforms).tokens)

    assert backend.graphs == 2


@torch.inference_mode()
def test_where_the_compiler_fails_the_network_goes_on_as_it_is_with_one_warning(network, caplog):
    def failing(graph, _):
        raise RuntimeError("no compiler here")

    fast = compiled_for_inference(network, failing)
    waveforms = torch.randn(1, 8_000)

    with caplog.at_level(logging.WARNING, LOGGER):
        for size in (8_000, 8_000, 16_000):
            waveforms = torch.randn(1, size)
            torch.testing.assert_close(fast(waveforms).tokens, network(waveforms).tokens)

    assert len(caplog.records) == 1
    assert "no compiler here" in caplog.text


@torch.inference_mode()
def test_a_compiled_encoder_that_is_wrong_is_not_used(network, caplog):
    def wrong(graph, _):
        return lambda *inputs: [output + 0.1 for output in graph.forward(*inputs)]

    fast = compiled_for_inference(network, wrong)
    waveforms = torch.randn(1, 8_000)

    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            torch.testing.assert_close(fast(waveforms).tokens, network(waveforms).tokens)

    assert "is wrong here" in caplog.text


def test_a_network_is_compiled_once_and_has_the_state_that_it_had(network):
    before = set(network.state_dict())

    fast = compiled_for_inference(network, "eager")

    assert compiled_for_inference(network, "eager") is fast
    assert set(network.state_dict()) == before
    assert not any("_orig_mod" in name for name in fast.state_dict())


def test_compile_on_a_cpu_is_a_setting_without_effect_and_says_so(network):
    with pytest.warns(UserWarning, match="compile has no effect on cpu"):
        Encoder(network, compile=True)
