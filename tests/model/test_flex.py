"""Attention in a kernel: the formula and its gradients on the CPU, the kernel itself where there is a GPU."""

import logging
import math

import pytest
import torch
import torch.nn.attention.flex_attention as flex_attention_module

from beats_trainer.model import BEATs, beats, flex
from beats_trainer.model.beats import RelativePositionBias
from beats_trainer.model.flex import attend_in_kernel, kernel_fits, table_of
from checkpoint_files import tiny_architecture

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def without_compiler(monkeypatch):
    """The same trace and the same graph of gradients as on a GPU, computed by torch's plain operators."""
    # torch refuses gradients on the CPU for want of a kernel; here none is wanted.
    monkeypatch.setattr(flex_attention_module, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    compiled = torch.compile(flex._attend, dynamic=True, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    monkeypatch.setattr(flex, "_give_up", _fail)


def _fail(dtype, reason):
    raise AssertionError(f"The kernel's formula cannot be used: {reason}") from reason


def plainly(q, k, v, gate, line, padded):
    """Written out index by index, unlike the code under test."""
    num_tokens, head_dim = q.shape[2:]
    key_ahead = torch.arange(num_tokens)[None, :] - torch.arange(num_tokens)[:, None]
    bias = line[:, key_ahead + num_tokens - 1][None]
    scores = q @ k.transpose(2, 3) / math.sqrt(head_dim) + (bias if gate is None else gate * bias)
    if padded is not None:
        scores = scores.masked_fill(padded[:, None, None, :], -math.inf)
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_kernels_formula_and_all_its_gradients_are_those_of_plain_products(
    dtype, tolerance, head_dim, monkeypatch
):
    without_compiler(monkeypatch)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        leaf = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        return leaf.view_as(leaf)  # as layers give them: torch has lost gradients of such

    for num_clips, num_tokens, is_gated, is_padded in (
        (2, 24, True, True),
        (3, 40, True, False),
        (3, 24, False, True),
        (2, 40, False, False),
    ):
        q, k, v = (noise(num_clips, num_tokens, 4, head_dim).transpose(1, 2) for _ in range(3))
        gate = noise(num_clips, 4, num_tokens, 1) if is_gated else None
        line = noise(4, 2 * num_tokens - 1)
        lengths = torch.tensor([num_tokens, 8, 16])[:num_clips]
        padded = torch.arange(num_tokens) >= lengths[:, None] if is_padded else None
        weights = noise(*q.shape).detach()
        leaves = [leaf for leaf in (q, k, v, gate, line) if leaf is not None]

        found = attend_in_kernel(q, k, v, gate, line, padded)
        expected = plainly(q, k, v, gate, line, padded)

        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(
            torch.autograd.grad((found * weights).sum(), leaves),
            torch.autograd.grad((expected * weights).sum(), leaves),
            atol=tolerance,
            rtol=tolerance,
        )


def variant(name):
    changes = {
        "released": {},
        "pre-norm": {"layer_norm_first": True, "deep_norm": False},
        "ungated": {"gru_rel_pos": False},
    }[name]
    torch.manual_seed(0)
    network = BEATs(tiny_architecture(**changes))
    torch.nn.init.normal_(network.encoder.relative_attention_bias.weight)
    for layer in network.encoder.layers:
        if layer.self_attn.is_gated:
            torch.nn.init.normal_(layer.self_attn.grep_linear.weight)
    return network


@pytest.mark.parametrize("name", ["released", "pre-norm", "ungated"])
def test_a_network_whose_attention_runs_in_the_kernel_gives_the_same_and_learns_the_same(
    name, monkeypatch
):
    without_compiler(monkeypatch)
    network = variant(name)
    waveforms = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([12_000, 5_000])

    def run():
        network.zero_grad()
        output = network(waveforms, lengths, output_layers=True)
        (
            output.tokens[0].sin().sum() + output.tokens[1, : output.token_lengths[1]].sum()
        ).backward()
        return output.layers.detach(), {
            key: parameter.grad.clone() for key, parameter in network.named_parameters()
        }

    plain = run()
    calls = []
    monkeypatch.setattr(beats, "kernel_fits", lambda *args, **options: not calls.append(options))
    in_kernel = run()

    assert calls == [{"dropout": 0.0, "needs_gradient": True}]
    torch.testing.assert_close(in_kernel, plain, atol=2e-5, rtol=1e-4)
    assert plain[1]["encoder.relative_attention_bias.weight"].abs().max() > 0.01


def test_one_compiled_function_serves_batches_of_any_size(monkeypatch):
    num_compiled = 0

    def counting(graph, inputs):
        nonlocal num_compiled
        num_compiled += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(flex._attend, dynamic=True, fullgraph=True, backend=counting)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    monkeypatch.setattr(flex, "_give_up", _fail)

    with torch.inference_mode():
        for num_clips, num_tokens in ((2, 136), (3, 296), (16, 128), (5, 136)):
            q = torch.randn(num_clips, 4, num_tokens, 16)
            gate = torch.randn(num_clips, 4, num_tokens, 1)
            line = torch.randn(4, 2 * num_tokens - 1)
            padded = torch.arange(num_tokens).expand(num_clips, -1) > 100
            for given in (gate, None):
                for mask in (padded, None):
                    mixed = attend_in_kernel(q, q, q, given, line, mask)
                    torch.testing.assert_close(mixed, plainly(q, q, q, given, line, mask))

    assert num_compiled == 1


def test_the_table_of_a_line_holds_each_distance_on_a_diagonal():
    bias = RelativePositionBias(32, 80, num_heads=2)
    line = bias.by_distance(9)

    table = bias(9)

    assert line.shape == (2, 17)
    torch.testing.assert_close(table, table_of(line))
    assert table[1, 2, 7] == line[1, 7 - 2 + 8]
    assert table[0, 8, 0] == line[0, 0]


def test_a_kernel_that_cannot_be_built_is_given_up_after_one_warning(monkeypatch, caplog):
    def fails():
        def compiled(*inputs):
            raise RuntimeError("no valid configuration")

        return compiled

    monkeypatch.setattr(flex, "_compiled", fails)
    monkeypatch.setattr(flex, "_given_up", set())
    flex._is_right.cache_clear()
    q, line = torch.randn(1, 2, 24, 16), torch.randn(2, 47)

    with caplog.at_level(logging.WARNING):
        is_right = flex._is_right(torch.device("cpu"), torch.float32, 2, 16, True)
        again = flex._is_right(torch.device("cpu"), torch.float32, 2, 16, True)
    mixed = attend_in_kernel(q, q, q, None, line, None)

    assert not is_right
    assert not again
    assert flex._given_up == {torch.float32}
    assert "no valid configuration" in caplog.records[0].getMessage()
    assert len(caplog.records) == 1
    torch.testing.assert_close(mixed, plainly(q, q, q, None, line, None))
    flex._is_right.cache_clear()


@pytest.mark.parametrize("fault", ["numbers", "gradients"])
def test_a_kernel_that_is_wrong_in_any_part_is_not_used(fault, monkeypatch):
    monkeypatch.setattr(flex, "_given_up", set())
    flex._is_right.cache_clear()

    def wrong(q, k, v, gate, line, padded):
        lacks_gradient = line.detach() + 0.0 * line.sum()
        line = line.roll(1, dims=1) if fault == "numbers" else lacks_gradient
        return flex._attend_with_table(q, k, v, gate[..., None], line, padded)

    monkeypatch.setattr(flex, "_compiled", lambda: wrong)

    assert not flex._is_right(torch.device("cpu"), torch.float32, 2, 16, True)
    flex._is_right.cache_clear()


def test_the_trial_passes_what_is_right(monkeypatch):
    without_compiler(monkeypatch)
    flex._is_right.cache_clear()

    for dtype in (torch.float32, torch.bfloat16):
        assert flex._is_right(torch.device("cpu"), dtype, 2, 16, True)
    flex._is_right.cache_clear()


def test_on_a_cpu_attention_stays_with_plain_products():
    assert not kernel_fits(torch.zeros(1, 496, 768), num_heads=12)


@needs_cuda
@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_kernel_is_right_on_this_gpu(dtype, needs_gradient):
    flex._is_right.cache_clear()

    assert flex._is_right(torch.device("cuda"), dtype, 12, 64, needs_gradient)


@needs_cuda
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_tokens_on_a_gpu_are_those_of_double_precision_on_the_cpu(dtype, tolerance):
    torch.manual_seed(0)
    network = BEATs(
        tiny_architecture(encoder_embed_dim=128, encoder_attention_heads=2, conv_pos=128)
    ).eval()
    torch.nn.init.normal_(network.encoder.relative_attention_bias.weight)
    waveforms = torch.randn(3, 80_000)
    lengths = torch.tensor([80_000, 50_000, 3_000])
    fbank, frame_lengths = network.front_end(waveforms, lengths)

    with torch.inference_mode():
        exact = network.double().encode_fbank(fbank.double(), frame_lengths)
        network.float().to("cuda")
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            fits = kernel_fits(torch.zeros(3, 248, 128, device="cuda"), num_heads=2)
            found = network.encode_fbank(fbank.to("cuda"), frame_lengths)

    assert fits
    for row, length in enumerate(exact.token_lengths.tolist()):
        error = found.tokens[row, :length].double().cpu() - exact.tokens[row, :length]
        assert error.norm() / exact.tokens[row, :length].norm() < tolerance
