"""The packed encoder: the same numbers on every variant, never stale, used only where it can be."""

import pytest
import torch
from torch import nn

from beats_trainer.model import Architecture, BEATs, packed
from beats_trainer.model.packed import (
    can_pack,
    is_packed_from,
    pack_for_inference,
    prepared_for_inference,
)
from checkpoint_files import tiny_architecture

needs_onednn = pytest.mark.skipif(
    not packed._multiplies_packed(torch.float32), reason="needs torch's oneDNN products (x86)"
)
VARIANTS = {
    "released": {},
    "pre-norm": {"layer_norm_first": True, "deep_norm": False},
    "ungated": {"gru_rel_pos": False},
    "without position bias": {"relative_position_embedding": False},
    "tanh-gelu": {"activation_fn": "gelu_accurate"},
    "relu": {"activation_fn": "relu"},
    "tanh": {"activation_fn": "tanh"},
}


def build(**changes):
    torch.manual_seed(0)
    network = BEATs(tiny_architecture(**changes)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            nn.init.normal_(parameter, std=0.3)
    return network


@needs_onednn
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_plain_give_the_same_tokens_in_all_layers_with_and_without_padding(
    variant, dtype
):
    network = build(**VARIANTS[variant])
    waveforms = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20_000, 9_000, 1_000])
    fast = pack_for_inference(network, dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 0.1

    with torch.inference_mode():
        for given in (lengths, None):
            plain = network(waveforms, given, output_layers=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
                quick = fast(waveforms, given, output_layers=True)
            assert torch.equal(quick.token_lengths, plain.token_lengths)
            for clip, num_tokens in enumerate(plain.token_lengths.tolist()):
                torch.testing.assert_close(
                    quick.layers[:, clip, :num_tokens].float(),
                    plain.layers[:, clip, :num_tokens],
                    atol=tolerance,
                    rtol=tolerance,
                )


@needs_onednn
@pytest.mark.parametrize(
    "change",
    [
        lambda linear: linear.weight.data.mul_(1.01),
        lambda linear: setattr(linear, "weight", nn.Parameter(linear.weight.detach() * 2)),
        lambda linear: linear.load_state_dict(
            {"weight": torch.ones_like(linear.weight), "bias": linear.bias.detach()}
        ),
    ],
    ids=["in place, behind autograd's back", "replaced", "loaded"],
)
def test_a_network_whose_weights_changed_is_packed_anew(change):
    network = build()
    waveforms = torch.randn(1, 8_000)
    before = prepared_for_inference(network, torch.float32)

    change(network.encoder.layers[1].fc1)

    assert not is_packed_from(before, network)
    with torch.inference_mode():
        after = prepared_for_inference(network, torch.float32)(waveforms).tokens
        torch.testing.assert_close(after, network(waveforms).tokens, atol=2e-5, rtol=2e-5)


@needs_onednn
@pytest.mark.parametrize(
    "change",
    [
        lambda linear: linear.weight.data[17].add_(1e-3),
        lambda linear: linear.weight.data[:, 5].mul_(1.01),
        lambda linear: linear.bias.data[:1].add_(1e-3),
        lambda linear: linear.weight.data.copy_(linear.weight.detach().roll(1, 0)),
    ],
    ids=["a row", "a column", "one value of a bias", "rows in another order"],
)
def test_a_small_change_that_torch_has_not_counted_is_seen(change):
    wide = Architecture(
        encoder_layers=1,
        encoder_embed_dim=256,
        encoder_ffn_embed_dim=512,
        encoder_attention_heads=4,
        embed_dim=16,
    )
    network = BEATs(wide).eval()
    before = prepared_for_inference(network, torch.float32)

    change(network.encoder.layers[0].fc1)

    assert not is_packed_from(before, network)


@needs_onednn
def test_a_network_is_packed_once_and_leaves_with_its_original():
    network = build()

    first = prepared_for_inference(network, torch.float32)
    again = prepared_for_inference(network, torch.float32)

    assert again is first
    assert network.encoder is not first.encoder
    num_prepared = len(packed._prepared)
    del network
    assert len(packed._prepared) == num_prepared - 1


def test_what_cannot_be_packed_runs_as_it_is(monkeypatch):
    network = build()
    assert prepared_for_inference(network, torch.float16) is network

    network.encoder.layers[0].fc1 = nn.Sequential(network.encoder.layers[0].fc1)  # an adapter, say
    assert not can_pack(network, torch.float32)

    other = build()
    packed._multiplies_packed.cache_clear()
    monkeypatch.setattr(packed.platform, "machine", lambda: "arm64")
    assert prepared_for_inference(other, torch.float32) is other
    packed._multiplies_packed.cache_clear()


def test_operators_that_give_wrong_products_are_not_used(monkeypatch, caplog):
    packed._multiplies_packed.cache_clear()
    monkeypatch.setattr(packed._PackedLinear, "__call__", lambda self, values: torch.zeros(48, 32))

    assert not packed._multiplies_packed(torch.float32)

    packed._multiplies_packed.cache_clear()


@needs_onednn
def test_a_packed_network_needs_no_gradient_and_keeps_no_copy_of_the_front_end():
    network = build()

    fast = pack_for_inference(network, torch.float32)

    assert fast.patch_embedding is network.patch_embedding
    assert list(fast.encoder.parameters(recurse=False)) == []
    assert network.encoder.layers[0].fc1.weight.requires_grad
