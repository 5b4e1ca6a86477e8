"""Attention on a CPU without gradients, in blocks of scores that stay in the processor's cache.

queries, keys, values, gate, position bias -> [scores of a block -> softmax -> mixed values] -> tokens

The same sums as `beats.attend`. Scores, and the gated bias that is added to them, are as many as pairs of
tokens: a window of 30 s has 27 million in each layer, and written to memory and read again in every step they
cost more than all other products. A block is filled, used and overwritten in one place.

Two tricks keep it short:

- keys and values are taken in reverse order, which changes no sum. The bias of query i and reversed key j then
  is entry i + j of one line: its table is a view of that line, never stored;
- their number is rounded up to what vector instructions like; what is too much weighs nothing.

Shapes in this file: B clips, H heads, T tokens, K keys (T, rounded up), d width of a head.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["add_product", "attend_in_blocks", "blocks_fit"]

_LANES = 32
"""Keys come in multiples of this: bfloat16 values in the widest vector register."""

_BLOCK_SCORES = 2**19
"""Scores of a block, per thread: a megabyte of bfloat16, about a core's second cache."""

_SCORES_PER_LINEAR = 25_000
"""From this many scores of a head, per thread, oneDNN's own float32 product wins over the batched one."""


def blocks_fit(tokens_BTD: Tensor, *, dropout: float, needs_gradient: bool) -> bool:
    """Whether attention over these tokens can be computed in blocks.

    Args:
        tokens_BTD: The input of the first layer.
        dropout: Of the attention weights: blocks have none.
        needs_gradient: Whether anything here needs a gradient: blocks give none.

    Example:
        >>> blocks_fit(torch.zeros(1, 8, 4), dropout=0.0, needs_gradient=False)
        True
    """
    if tokens_BTD.device.type != "cpu" or dropout > 0 or needs_gradient:
        return False
    if (
        torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    ):  # an exported graph has plain products
        return False
    is_cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_cast else tokens_BTD.dtype
    return dtype in (torch.float32, torch.bfloat16)


def attend_in_blocks(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    gate_BHT1: Tensor | None = None,
    bias_HL: Tensor | None = None,
    padded_BT: Tensor | None = None,
) -> Tensor:
    """Softmax(q k / sqrt(d) + gate * bias) v, computed block by block.

    Args:
        q_BHTd: Queries, on the CPU, float32 or bfloat16, of any strides.
        k_BHTd: Keys, as the queries.
        v_BHTd: Values, as the queries.
        gate_BHT1: What each query scales its bias by; ``None`` leaves it as it is.
        bias_HL: Position bias by distance, ``1 - T .. T - 1`` from query to key, shape ``(H, 2T - 1)``, in
            the queries' dtype.
        padded_BT: True where a key is padding; no clip may be all padding.

    Returns:
        Mixed values, shape ``(B, T, H * d)``.

    Example:
        >>> q, k, v = torch.zeros(3, 1, 2, 8, 4).unbind()
        >>> attend_in_blocks(q, k, v + 1.0).shape
        torch.Size([1, 8, 8])
    """
    num_clips, num_heads, num_tokens, head_dim = q_BHTd.shape
    num_keys = -(-num_tokens // _LANES) * _LANES
    order_K = torch.arange(num_tokens - 1, num_tokens - 1 - num_keys, -1).clamp(min=0)
    keys, values = k_BHTd.index_select(2, order_K), v_BHTd.index_select(2, order_K)
    blocked_B1K = None
    if padded_BT is not None:
        blocked_B1K = padded_BT.index_select(1, order_K)[:, None]
    queries = torch.mul(q_BHTd, head_dim**-0.5, out=torch.empty(q_BHTd.shape, dtype=q_BHTd.dtype))
    bias_HTK = None if bias_HL is None else _by_reversed_key(bias_HL, num_tokens, num_keys)
    threads = torch.get_num_threads()
    use_linear = (
        q_BHTd.dtype == torch.float32
        and num_tokens * num_keys >= _SCORES_PER_LINEAR * threads
        and _adds_products()
    )
    if use_linear:  # a linear map's weight: one row per output
        values = values.transpose(2, 3).contiguous()

    mixed_BTHd = torch.empty(num_clips, num_tokens, num_heads, head_dim, dtype=q_BHTd.dtype)
    most = max(_BLOCK_SCORES * threads, num_keys)
    buffer = torch.empty(
        min(most, num_clips * num_heads * num_tokens * num_keys), dtype=q_BHTd.dtype
    )
    for clips, heads, rows in _blocks(num_clips, num_heads, num_tokens, num_keys, most, use_linear):
        q = queries[clips, heads, rows]
        shape = (*q.shape[:3], num_keys)
        scores = buffer[: q.shape[:3].numel() * num_keys].view(shape)
        if bias_HTK is None:
            scores.zero_()
        elif gate_BHT1 is None:
            scores.copy_(bias_HTK[heads, rows])
        else:
            torch.mul(gate_BHT1[clips, heads, rows], bias_HTK[heads, rows], out=scores)
        if use_linear:
            scores = add_product(scores[0, 0], q[0, 0], keys[clips, heads][0, 0])[None, None]
        else:
            scores.flatten(0, 1).baddbmm_(
                q.flatten(0, 1), keys[clips, heads].flatten(0, 1).transpose(1, 2)
            )
        if blocked_B1K is not None:
            scores.masked_fill_(blocked_B1K[clips, :, None], -torch.inf)
        scores[..., num_tokens:] = -torch.inf
        torch.softmax(scores, dim=-1, out=scores)
        part = values[clips, heads]
        if use_linear:
            mixed = _linear(scores[0, 0], part[0, 0])[None, None]
        else:
            mixed = torch.bmm(scores.flatten(0, 1), part.flatten(0, 1)).view(q.shape)
        mixed_BTHd[clips, rows, heads] = mixed.transpose(1, 2)
    return mixed_BTHd.flatten(2)


def add_product(sums: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Add ``values @ weight.T`` to what is there, by oneDNN: in float32 twice as fast as MKL on some CPUs.

    Args:
        sums: Shape ``(N, M)``; stays as it is.
        values: Shape ``(N, K)``.
        weight: Shape ``(M, K)``.
    """
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(values, sums, weight, None, "add")
    return added


@functools.cache
def _adds_products() -> bool:
    """Try oneDNN's own product once: its operators are torch's inner ones, and may change."""
    values = torch.arange(12.0).view(3, 4)
    try:
        with torch.inference_mode():
            added = add_product(torch.ones(3, 3), values, values)
            product = _linear(values, values)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return torch.equal(added, product + 1.0) and torch.equal(product, values @ values.T)


def _by_reversed_key(bias_HL: Tensor, num_tokens: int, num_keys: int) -> Tensor:
    """A view ``(H, T, K)`` of the bias, whose keys count from the last: entry (i, j) is that of key T - 1 - j."""
    line = torch.zeros(len(bias_HL), num_tokens + num_keys - 1, dtype=bias_HL.dtype)
    line[:, : 2 * num_tokens - 1] = bias_HL.flip(1)
    return line.as_strided((len(line), num_tokens, num_keys), (line.shape[1], 1, 1))


def _blocks(
    num_clips: int, num_heads: int, num_tokens: int, num_keys: int, most: int, one_head: bool
) -> Iterator[tuple[slice, slice, slice]]:
    """Cut all scores into blocks of at most ``most`` or, if that is less than a row, of a row."""
    of_head = num_tokens * num_keys
    clips = 1 if one_head else max(1, most // (num_heads * of_head))
    heads = 1 if one_head else max(1, min(num_heads, most // of_head))
    rows = min(num_tokens, max(1, most // num_keys))
    for clip in range(0, num_clips, clips):
        for head in range(0, num_heads, heads):
            for row in range(0, num_tokens, rows):
                yield (
                    slice(clip, clip + clips),
                    slice(head, head + heads),
                    slice(row, min(row + rows, num_tokens)),
                )


def _linear(scores: Tensor, values: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(scores, values, None, "none", [], "")
    return product
