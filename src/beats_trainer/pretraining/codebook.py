"""Move the codes of a tokenizer while it is trained, and tell how well they are used.

unit vectors -> [nearest codes -> their means, over all processes -> moving average] -> codebook

Of BEATs' tokenizer (arXiv 2212.09058, section 3.2; the original's ``beats/quantizer.py``, NormEMAVectorQuantizer).
As there, a code that nothing was near to stays as it is. What differs: padding is not counted, the start by
k-means is made once, before processes part, and evaluation changes nothing.

Shapes in this file: N vectors, Q width of a code, K codes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from beats_trainer.errors import CodebookCollapseError, ConfigError
from beats_trainer.model.tokenizer import Codebook

__all__ = ["CodeUsage", "check_usage", "move_codes", "start_codes"]

_DECAY = 0.99
_KMEANS_STEPS = 10

_LEAST_PERPLEXITY = 4.0
"""Codes are taken for collapsed under it, or under an eighth of their number."""


@dataclass(frozen=True)
class CodeUsage:
    """How evenly codes are used.

    Attributes:
        num_used: Codes that came up.
        perplexity: Equally common codes that would be as hard to guess: ``exp`` of the entropy.
        top_share: Share of the commonest code.
        entropy: In nats.
    """

    num_used: int
    perplexity: float
    top_share: float
    entropy: float

    @classmethod
    def of(cls, counts_K: Tensor) -> "CodeUsage":
        """Measure counts of codes, shape ``(K,)``.

        Example:
            >>> CodeUsage.of(torch.tensor([2, 0, 2])).perplexity
            2.0
        """
        share_K = counts_K.double() / counts_K.sum().clamp(min=1)
        entropy = float(-torch.special.xlogy(share_K, share_K).sum())
        return cls(
            int((counts_K > 0).sum()), round(math.exp(entropy), 6), float(share_K.max()), entropy
        )


def check_usage(counts_K: Tensor, what: str) -> None:
    """Stop a run whose codes have become all alike.

    Args:
        counts_K: How often each code came up of late.
        what: Whose codes they are, for the message.

    Raises:
        CodebookCollapseError: If their perplexity is below 4 (or an eighth of a small codebook).
    """
    usage = CodeUsage.of(counts_K)
    least = min(_LEAST_PERPLEXITY, len(counts_K) / 8)
    if float(counts_K.sum()) > 0 and usage.perplexity < least:
        raise CodebookCollapseError(
            f"{what} have collapsed: {usage.num_used} of {len(counts_K)} codes came up, one of them for "
            f"{usage.top_share:.0%} of the tokens (perplexity {usage.perplexity:.1f}). Is the sound silence, or one "
            "steady noise? Else use the projection 'normalized', more steps of sound per batch (batch_s), or a lower "
            "tokenizer_learning_rate."
        )


@torch.no_grad()
def move_codes(codebook: Codebook, unit_NQ: Tensor, codes_N: Tensor) -> Tensor:
    """Move each code towards the mean of the vectors that are nearest to it; all processes alike.

    Args:
        codebook: Is changed.
        unit_NQ: Real vectors of length 1 of this process, float32.
        codes_N: The code of each.

    Returns:
        How often each code came up in all processes, shape ``(K,)``.
    """
    weight_KQ = codebook.embedding.weight
    counts_K = codes_N.bincount(minlength=len(weight_KQ)).to(weight_KQ.dtype)
    sums_KQ = torch.zeros_like(weight_KQ).index_add_(0, codes_N, unit_NQ.to(weight_KQ.dtype))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts_K)
        torch.distributed.all_reduce(sums_KQ)
    codebook.cluster_size.mul_(_DECAY).add_(counts_K, alpha=1 - _DECAY)
    means_KQ = F.normalize(sums_KQ / counts_K.clamp(min=1)[:, None], dim=1)
    means_KQ = torch.where(counts_K[:, None] > 0, means_KQ, weight_KQ)
    weight_KQ.mul_(_DECAY).add_(means_KQ, alpha=1 - _DECAY)
    weight_KQ.copy_(F.normalize(weight_KQ, dim=1))
    return counts_K


@torch.no_grad()
def start_codes(codebook: Codebook, vectors_NQ: Tensor, seed: int) -> None:
    """Set the codes to the k means of some vectors, by angle.

    Args:
        codebook: Is changed.
        vectors_NQ: Vectors of any length, float32, more than there are codes; ten times as many are good.
        seed: Of the vectors that the means start from.

    Raises:
        ConfigError: If there are fewer vectors than codes.
    """
    weight_KQ = codebook.embedding.weight
    num_codes = len(weight_KQ)
    if len(vectors_NQ) < num_codes:
        raise ConfigError(
            f"{num_codes} codes need at least as many patches to start from, and {len(vectors_NQ)} were heard. "
            "Use more sound, or fewer codes (num_codes)."
        )
    unit_NQ = F.normalize(vectors_NQ.float(), dim=1)
    order = torch.randperm(len(unit_NQ), generator=torch.Generator().manual_seed(seed))
    means_KQ = unit_NQ[order[:num_codes].to(unit_NQ.device)]
    for _ in range(_KMEANS_STEPS):
        codes_N = (unit_NQ @ means_KQ.T).argmax(dim=1)
        counts_K = codes_N.bincount(minlength=num_codes)
        sums_KQ = torch.zeros_like(means_KQ).index_add_(0, codes_N, unit_NQ)
        means_KQ = torch.where(counts_K[:, None] > 0, F.normalize(sums_KQ, dim=1), means_KQ)
    weight_KQ.copy_(means_KQ)
    codebook.embedding.embed_avg.copy_(means_KQ)
    codebook.embedding.cluster_size.copy_(counts_K.to(weight_KQ.dtype))
    codebook.embedding.initted.fill_(1.0)
    codebook.cluster_size.zero_()
