"""Choose which tokens of a clip are hidden from the encoder.

token lengths, noise -> [the tokens with the least noise are kept] -> positions of kept tokens, hidden or not

BEATs (arXiv 2212.09058, section 3.3) hides 75 % of the patches, each as likely as any other. Padding is neither
kept nor hidden.

Shapes in this file: B clips, T tokens of the longest, K tokens that the longest keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeptTokens", "choose_kept", "mask_noise"]


@dataclass(frozen=True)
class KeptTokens:
    """What the encoder sees of a batch, and what it must guess.

    Attributes:
        positions: Where the kept tokens stand in their clips, rising, shape ``(B, K)``, int64.
        padded: True in rows that are padding, whose position is 0, shape ``(B, K)``; ``None``: there are none.
        hidden: True where a real token is hidden, shape ``(B, T)``.
    """

    positions: Tensor
    padded: Tensor | None
    hidden: Tensor


def choose_kept(
    noise_BT: Tensor, token_lengths: Tensor | None = None, mask_ratio: float = 0.75
) -> KeptTokens:
    """Keep a share of each clip's tokens: those with the least noise.

    Args:
        noise_BT: Shape ``(B, T)``, as from `mask_noise`.
        token_lengths: Real tokens per clip, shape ``(B,)``; ``None`` means that no clip is padded.
        mask_ratio: Share that is hidden, between 0 and 1. Of n tokens ``round((1 - mask_ratio) * n)`` are kept,
            at least one, and at least one is hidden where there are two.

    Raises:
        ValueError: If ``mask_ratio`` is not between 0 and 1.

    Example:
        >>> kept = choose_kept(torch.tensor([[0.9, 0.1, 0.5, 0.7]]), mask_ratio=0.5)
        >>> kept.positions.tolist(), kept.hidden.tolist()
        ([[1, 2]], [[True, False, False, True]])
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(
            f"mask_ratio is the share of hidden tokens, between 0 and 1, not {mask_ratio}."
        )
    num_clips, num_tokens = noise_BT.shape
    if token_lengths is None:
        token_lengths = torch.full((num_clips,), num_tokens)
    lengths = token_lengths.tolist()
    numbers = [_number_kept(length, mask_ratio) for length in lengths]
    most = max(numbers)
    steps = torch.arange(num_tokens, device=noise_BT.device)
    real_BT = steps < torch.tensor(lengths, device=noise_BT.device)[:, None]
    by_noise_BT = noise_BT.masked_fill(~real_BT, torch.inf).argsort(dim=1)
    is_kept_BK = (
        torch.arange(most, device=noise_BT.device)
        < torch.tensor(numbers, device=noise_BT.device)[:, None]
    )
    # What is too much sorts behind all real positions.
    positions_BK = by_noise_BT[:, :most].masked_fill(~is_kept_BK, num_tokens).sort(dim=1).values
    hidden_BT1 = torch.nn.functional.pad(real_BT, (0, 1)).scatter(1, positions_BK, False)
    is_ragged = min(numbers) < most
    return KeptTokens(
        positions_BK.masked_fill(~is_kept_BK, 0),
        ~is_kept_BK if is_ragged else None,
        hidden_BT1[:, :num_tokens],
    )


def mask_noise(seed: int, step: int, clips: Sequence[int], num_tokens: int) -> Tensor:
    """Draw the noise of some clips of a batch: the same wherever, and with whichever others, it is drawn.

    Args:
        seed: Of the run.
        step: Which batch.
        clips: Which of its clips, by their number in the whole batch.
        num_tokens: T.

    Returns:
        Uniform in 0..1, shape ``(B, T)``, float32, on the CPU. A clip's noise is the start of its noise for
        more tokens.

    Example:
        >>> bool((mask_noise(0, 7, [3], 5)[0] == mask_noise(0, 7, [2, 3], 8)[1, :5]).all())
        True
    """
    rows = [
        np.random.default_rng([seed, step, clip]).random(num_tokens, dtype=np.float32)
        for clip in clips
    ]
    return torch.from_numpy(np.stack(rows))


def _number_kept(num_tokens: int, mask_ratio: float) -> int:
    kept = max(1, round((1 - mask_ratio) * num_tokens))
    return min(kept, num_tokens - 1) if num_tokens > 1 else kept
