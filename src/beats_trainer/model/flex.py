"""Attention on a GPU that never holds its position bias: the kernel computes it where it is added.

queries, keys, values, gates, one line of biases per head -> [FlexAttention] -> mixed values

The bias of a query and a key is ``gate[b, h, q] * line[h, k - q]``: a few numbers per token, but as a tensor
``(B, H, T, T)`` the largest one of the network. FlexAttention (arXiv 2412.05496) builds a kernel that reads
gate and line instead, for the forward and the backward pass.

The kernel is tried once per process, number format and size of head, against plain products; where it cannot
be built or is wrong, attention goes on with the bias as a tensor, after one warning. The formula and its
gradients are tested on the CPU through the same compiler, without the kernel; **the kernel itself has not run
on a GPU of ours yet**, neither for its numbers nor for its speed (its test waits for one). Gradients of the
line are summed by atomic additions, in no fixed order: with torch's deterministic algorithms the kernel is
left out of training.

Shapes in this file: B clips, H heads, T tokens, d width of a head, R = 2T - 1 distances.
"""

import functools
import importlib.util
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attend_in_kernel", "kernel_fits", "table_of"]

_logger = logging.getLogger(__name__)

_LEAST_TOKENS = 128
"""Tokens from which on the kernel is used, a block of it: for shorter clips the bias is small anyway."""

_LEAST_HEAD_DIM = 16
"""Width of a head that the kernel's matrix units need."""

_TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""Relative error from which on the kernel counts as wrong; float32 may be multiplied as TensorFloat32."""

_given_up: set[torch.dtype] = set()


def kernel_fits(
    tokens_BTD: Tensor, num_heads: int, *, dropout: float = 0.0, needs_gradient: bool = False
) -> bool:
    """Whether attention over these tokens runs in the kernel. The first call on a GPU tries it, which takes
    the compiler some seconds.

    Args:
        tokens_BTD: The input of the first layer.
        num_heads: Heads H, which share the width of a token.
        dropout: Of the attention weights: the kernel has none.
        needs_gradient: Whether gates and line need gradients.

    Example:
        >>> kernel_fits(torch.zeros(1, 496, 768), num_heads=12)  # on a CPU there is no kernel
        False
    """
    device = tokens_BTD.device
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    head_dim = tokens_BTD.shape[2] // num_heads
    if dropout > 0 or tokens_BTD.shape[1] < _LEAST_TOKENS or head_dim < _LEAST_HEAD_DIM:
        return False
    if needs_gradient and torch.are_deterministic_algorithms_enabled():
        return False
    is_cast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_cast else tokens_BTD.dtype
    if dtype in _given_up or dtype not in _TOLERANCES:
        return False
    return _is_right(device, dtype, num_heads, head_dim, needs_gradient)


def attend_in_kernel(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    gate_BHT1: Tensor | None,
    line_HR: Tensor,
    padded_BT: Tensor | None,
) -> Tensor:
    """Softmax(q k / sqrt(d) + gate * line[key - query]) v, without padded keys; shape ``(B, H, T, d)``.

    Args:
        q_BHTd: Queries.
        k_BHTd: Keys.
        v_BHTd: Values.
        gate_BHT1: What scales each query's bias; ``None`` leaves it as it is.
        line_HR: Bias of each head by distance, from ``1 - T`` (the key far behind) to ``T - 1``.
        padded_BT: Whether a token is padding; at least one of a clip is not.
    """
    try:
        return _in_kernel(q_BHTd, k_BHTd, v_BHTd, gate_BHT1, line_HR, padded_BT)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # which the compiler's are: a size that it cannot do after all
        _give_up(q_BHTd.dtype, error)
        return _attend_with_table(q_BHTd, k_BHTd, v_BHTd, gate_BHT1, line_HR, padded_BT)


def table_of(line_HR: Tensor) -> Tensor:
    """The bias of every pair of positions, shape ``(H, T, T)``, query before key; a copy.

    Example:
        >>> table_of(torch.tensor([[-1.0, 0.0, 1.0]]))  # two tokens: behind, here, ahead
        tensor([[[ 0.,  1.],
                 [-1.,  0.]]])
    """
    num_tokens = (line_HR.shape[1] + 1) // 2
    # Row i reads distances -i .. T-1-i: a window that slides backwards over one line of 2T-1.
    return line_HR.unfold(-1, num_tokens, 1).flip(1)


def _in_kernel(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    gate_BHT1: Tensor | None,
    line_HR: Tensor,
    padded_BT: Tensor | None,
) -> Tensor:
    num_clips, num_heads, num_tokens, _ = q_BHTd.shape
    # Gates and padding are always given: without them, or with other strides, all would be compiled anew.
    gate = line_HR.new_ones(1, 1, 1, 1) if gate_BHT1 is None else gate_BHT1
    gate_BHT = gate.expand(num_clips, num_heads, num_tokens, 1)[..., 0]
    padded = line_HR.new_zeros(1, 1, dtype=torch.bool) if padded_BT is None else padded_BT
    padded_BT = padded.expand(num_clips, num_tokens).contiguous()
    # Copies, a few numbers per token: torch 2.13 loses, and says nothing, the gradients of what a score
    # function reads where that is a view of another tensor.
    gate_BHT, line_HR = (
        value.clone(memory_format=torch.contiguous_format) for value in (gate_BHT, line_HR)
    )
    with torch.autocast(q_BHTd.device.type, enabled=False):
        return _compiled()(q_BHTd, k_BHTd, v_BHTd, gate_BHT, line_HR, padded_BT)


def _attend(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    gate_BHT: Tensor,
    line_HR: Tensor,
    padded_BT: Tensor,
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    last = q_BHTd.shape[2] - 1

    def with_position(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        score = score + gate_BHT[b, h, q] * line_HR[h, k - q + last]
        return torch.where(padded_BT[b, k], -math.inf, score)

    mixed = flex_attention(q_BHTd, k_BHTd, v_BHTd, score_mod=with_position)
    assert isinstance(mixed, Tensor)
    return mixed


@functools.cache
def _compiled(backend: str = "inductor") -> Callable[..., Tensor]:
    """`_attend` for inputs of any number and length of clips."""
    return torch.compile(_attend, dynamic=True, fullgraph=True, backend=backend)


def _attend_with_table(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    gate_BHT1: Tensor | None,
    line_HR: Tensor,
    padded_BT: Tensor | None,
) -> Tensor:
    """The same by a kernel that is given the bias."""
    bias = table_of(line_HR)[None]
    if gate_BHT1 is not None:
        bias = gate_BHT1 * bias
    if padded_BT is not None:
        bias = bias.masked_fill(padded_BT[:, None, None, :], -math.inf)
    return F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=bias.to(q_BHTd.dtype))


@functools.cache
def _is_right(
    device: torch.device, dtype: torch.dtype, num_heads: int, head_dim: int, needs_gradient: bool
) -> bool:
    """Try the kernel on two batches, against plain products in double precision on the CPU."""
    _logger.info("Compiling the attention kernel for %s on %s, once per process.", dtype, device)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            error = max(
                _error(device, dtype, (num_clips, num_heads, num_tokens, head_dim), needs_gradient)
                for num_clips, num_tokens in ((2, _LEAST_TOKENS + 8), (3, 2 * _LEAST_TOKENS + 40))
            )
    except Exception as failure:  # a compiler may fail in any way; the work goes on without it
        _give_up(dtype, failure)
        return False
    if error > _TOLERANCES[dtype]:
        _give_up(dtype, f"its relative error is {error:.1e}")
        return False
    return True


def _error(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], with_gradients: bool
) -> float:
    """Largest relative error of the kernel's output, and of each of its gradients."""
    num_clips, num_heads, num_tokens, head_dim = shape
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    side_by_side = (num_clips, num_tokens, num_heads, head_dim)  # as projections give them
    inputs = [noise(*side_by_side).to(dtype) for _ in range(3)]
    inputs += [
        noise(num_clips, num_heads, num_tokens, 1).abs(),
        noise(num_heads, 2 * num_tokens - 1),
    ]
    lengths = torch.arange(num_clips) * (num_tokens // num_clips) + num_tokens // num_clips
    padded_BT = torch.arange(num_tokens) >= lengths[:, None]
    weights = noise(*shape)

    def run(attend: Callable[..., Tensor], device: torch.device | str, exact: bool) -> list[Tensor]:
        leaves = [
            (value.double() if exact else value).to(device).requires_grad_(with_gradients)
            for value in inputs
        ]
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves[:3])
        gate, line = (leaf.view_as(leaf) for leaf in leaves[3:])
        mixed = attend(q, k, v, gate, line, padded_BT.to(device))
        if not with_gradients:
            return [mixed.cpu().double()]
        gradients = torch.autograd.grad((mixed * weights.to(mixed)).sum(), leaves)
        return [value.detach().cpu().double() for value in (mixed, *gradients)]

    # Not `attend_in_kernel`: a failure must show, and not be made up for.
    found, expected = run(_in_kernel, device, False), run(_attend_with_table, "cpu", True)
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-30))
        for a, b in zip(found, expected, strict=True)
    )


def _give_up(dtype: torch.dtype, reason: object) -> None:
    if dtype in _given_up:
        return
    _given_up.add(dtype)
    _logger.warning(
        "The attention kernel cannot be used for %s here; attention goes on without it, with more memory. "
        "The reason: %s",
        dtype,
        reason,
    )
