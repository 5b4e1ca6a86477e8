"""What is computed again in the backward pass: the same gradients, no product more than needed, less kept."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from beats_trainer.model import BEATs, beats
from checkpoint_files import tiny_architecture

VARIANTS = {
    "released": {},
    "with all dropout": {
        "dropout": 0.2,
        "attention_dropout": 0.2,
        "activation_dropout": 0.2,
        "dropout_input": 0.2,
    },
    "with layer drop": {"encoder_layerdrop": 0.5, "encoder_layers": 4},
    "pre-norm": {"layer_norm_first": True, "deep_norm": False},
    "ungated": {"gru_rel_pos": False},
    "without position bias": {"relative_position_embedding": False},
}


@pytest.fixture(autouse=True)
def _spare_memory_in_tiny_networks_too(monkeypatch):
    monkeypatch.setattr(beats, "_MANY_SCORES", 0)
    monkeypatch.setattr(beats, "_MANY_VALUES", 0)


def build(**changes):
    torch.manual_seed(0)
    network = BEATs(tiny_architecture(**changes))
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            nn.init.normal_(parameter, std=0.3)
    return network.train()


def gradients(network, lengths=None, dtype=torch.float32):
    """Of a sum over the real tokens; dropout and layer drop draw the same in each call."""
    waveforms = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(1))
    network.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        output = network(waveforms, lengths)
    real = torch.arange(output.tokens.shape[1]) < output.token_lengths[:, None]
    (output.tokens.float() * real[:, :, None]).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([20_000, 9_000, 3_000])])
def test_layers_that_are_computed_again_give_the_same_gradients(variant, lengths):
    network = build(**VARIANTS[variant])
    expected = gradients(network, lengths)

    network.encoder.recomputes_layers = True
    found = gradients(network, lengths)

    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_layers_that_are_computed_again_give_the_same_gradients_in_bfloat16():
    network = build(dropout=0.1, attention_dropout=0.1)
    expected = gradients(network, dtype=torch.bfloat16)

    network.encoder.recomputes_layers = True
    found = gradients(network, dtype=torch.bfloat16)

    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "drop" not in v])
@pytest.mark.parametrize("lengths", [None, torch.tensor([20_000, 9_000, 3_000])])
def test_attention_clip_by_clip_gives_the_gradients_of_the_whole_batch_at_once(variant, lengths):
    network = build(**VARIANTS[variant])
    found = gradients(network, lengths)

    expected = gradients(network.eval(), lengths)  # no dropout: the same, with everything kept

    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


class Products(TorchDispatchMode):
    """Counts matrix products by the number of elements that they multiply."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__.split(".")[0] in ("mm", "addmm", "bmm", "baddbmm"):
            self.counts[function.__name__.split(".")[0]] += 1
        return result


def test_a_training_step_makes_no_product_of_weights_twice():
    network = build(encoder_layers=1, gru_rel_pos=False)
    with Products() as kept:
        gradients(network.eval())

    with Products() as recomputed:
        gradients(network.train())

    # Scores are made again, clip by clip; weights multiply as often as where all is kept.
    assert recomputed.counts["addmm"] == kept.counts["addmm"]
    assert recomputed.counts["mm"] == kept.counts["mm"]
    assert recomputed.counts["baddbmm"] == 2 * 3


def kept_bytes(network):
    """Of the tensors that a forward pass leaves for the backward pass."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(torch.randn(2, 80_000, generator=torch.Generator().manual_seed(1)))
    assert math.isfinite(float(output.tokens.detach().sum()))
    return sum(size for where, size in kept.items() if where not in weights)


def test_no_scores_are_kept_while_training_on_a_cpu():
    network = build(encoder_layers=1)

    training = kept_bytes(network)
    scores = 2 * network.architecture.encoder_attention_heads * 248**2 * 4

    assert training + scores < kept_bytes(network.eval())


def test_without_gradients_nothing_is_wrapped(monkeypatch):
    monkeypatch.setattr(beats, "checkpoint", None)
    network = build()
    network.encoder.recomputes_layers = True

    with torch.no_grad():
        network(torch.zeros(1, 16_000))
    network.eval()(torch.zeros(1, 16_000))


def test_where_little_would_be_spared_the_whole_batch_attends_at_once(monkeypatch):
    monkeypatch.setattr(beats, "_MANY_SCORES", 2**19)
    monkeypatch.setattr(beats, "_MANY_VALUES", 2**20)
    monkeypatch.setattr(beats, "checkpoint", None)  # would fail if it were called
    network = BEATs(tiny_architecture()).train()

    network(torch.randn(3, 8_000)).tokens.sum().backward()

    assert network.encoder.layers[0].fc1.weight.grad is not None
