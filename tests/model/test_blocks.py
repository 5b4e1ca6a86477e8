"""Attention in blocks of scores: the same values, however the blocks fall."""

import pytest
import torch

from beats_trainer.model import blocks, packed
from beats_trainer.model.beats import RelativePositionBias, attend
from beats_trainer.model.blocks import attend_in_blocks

needs_onednn = pytest.mark.skipif(
    not packed._multiplies_packed(torch.float32), reason="needs torch's oneDNN products (x86)"
)
CLIPS, HEADS, WIDTH = 3, 4, 8


def draw(num_tokens, dtype=torch.float32):
    """Queries, keys and values as one product gives them, gates, and a position bias by distance."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(CLIPS, num_tokens, 3, HEADS, WIDTH, generator=generator)
    gate = torch.randn(CLIPS, HEADS, num_tokens, 1, generator=generator)
    torch.manual_seed(1)
    bias = RelativePositionBias(num_buckets=16, max_distance=20, num_heads=HEADS)
    with torch.no_grad():
        line, table = bias.by_distance(num_tokens), bias(num_tokens)
    return qkv.to(dtype).permute(2, 0, 3, 1, 4), gate.to(dtype), line.to(dtype), table.to(dtype)


def expected(qkv, gate, table, padded):
    bias = None
    if table is not None:
        bias = table[None].double() if gate is None else gate.double() * table.double()
    if padded is not None:
        blocked = padded[:, None, None]
        bias = torch.zeros(1).double() if bias is None else bias
        bias = bias.expand(CLIPS, HEADS, padded.shape[1], -1).masked_fill(blocked, -torch.inf)
    return attend(*qkv.double(), bias).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("most", [1, 100, 3_000, 20_000, 10**6], ids="at most {} scores".format)
@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("position", ["gated", "ungated", "none"])
@pytest.mark.parametrize("num_tokens", [8, 40, 64])
def test_attention_in_blocks_of_any_size_is_that_of_plain_products(
    num_tokens, position, is_padded, most, monkeypatch
):
    monkeypatch.setattr(blocks, "_BLOCK_SCORES", most)
    qkv, gate, line, table = draw(num_tokens)
    gate = gate if position == "gated" else None
    line, table = (line, table) if position != "none" else (None, None)
    padded = None
    if is_padded:
        padded = torch.arange(num_tokens) >= torch.tensor([num_tokens, num_tokens - 3, 2])[:, None]

    with torch.inference_mode():
        mixed = attend_in_blocks(*qkv, gate, line, padded)

    reference = expected(qkv, gate, table, padded)
    torch.testing.assert_close(mixed.double(), reference, atol=1e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("most", [1_000, 10**6], ids="at most {} scores".format)
@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
def test_onednns_own_product_of_a_head_gives_the_same(most, is_padded, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_SCORES", most)
    monkeypatch.setattr(blocks, "_SCORES_PER_LINEAR", 0)
    qkv, gate, line, table = draw(40)
    padded = torch.arange(40) >= torch.tensor([40, 30, 1])[:, None] if is_padded else None

    with torch.inference_mode():
        mixed = attend_in_blocks(*qkv, gate, line, padded)

    reference = expected(qkv, gate, table, padded)
    torch.testing.assert_close(mixed.double(), reference, atol=1e-5, rtol=1e-5)


def test_bfloat16_differs_by_its_rounding_only():
    qkv, gate, line, table = draw(40, torch.bfloat16)

    with torch.inference_mode():
        mixed = attend_in_blocks(*qkv, gate, line)

    assert mixed.dtype == torch.bfloat16
    reference = expected(qkv, gate, table, None)
    torch.testing.assert_close(mixed.double(), reference, atol=0.05, rtol=0.05)


def test_what_padding_holds_changes_nothing():
    qkv, gate, line, _ = draw(40)
    padded = torch.arange(40) >= torch.tensor([40, 30, 8])[:, None]
    other = qkv.clone()
    other[1:, 1, :, 30:] = 1e4
    other[1:, 2, :, 30:] = -1e4

    with torch.inference_mode():
        mixed = attend_in_blocks(*qkv, gate, line, padded)
        same = attend_in_blocks(*other, gate, line, padded)

    assert torch.equal(mixed, same)


def test_scores_take_no_more_memory_than_a_block(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_SCORES", 5_000 // torch.get_num_threads())
    qkv, gate, line, _ = draw(64)
    largest = []
    empty = torch.empty

    def counted(*shape, **options):
        tensor = empty(*shape, **options)
        largest.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    with torch.inference_mode():
        attend_in_blocks(*qkv, gate, line)

    assert max(largest) <= max(5_000, CLIPS * HEADS * 64 * WIDTH)
