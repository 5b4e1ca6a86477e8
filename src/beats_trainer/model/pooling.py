"""Pool a clip's tokens into one embedding.

waveforms -> fbank -> encoder -> [pooling] -> embeddings | head

Padding never counts: a clip has the same embedding alone and in a batch. `pool_tokens` has nothing to
learn; `AttentivePooling` learns which layers and which tokens matter, and is trained with the head.

Shapes in this file: B clips, T tokens (time-major: P = 8 frequency patches per time step), D width, L layers of
the encoder, H heads of the pooling.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.model.architecture import Architecture

__all__ = [
    "POOLING_MODES",
    "AttentivePooling",
    "ClassifierPooling",
    "PartialPooling",
    "PoolingMode",
    "pool_tokens",
    "pooled_width",
]

PoolingMode = Literal["mean", "max", "first", "last", "bands"]
"""How tokens become one vector."""
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
"""The same, to iterate over."""
ClassifierPooling: TypeAlias = PoolingMode | Literal["attentive"]
"""What a classifier may have before its head."""


def pool_tokens(
    tokens: Tensor,
    token_lengths: Tensor | None = None,
    mode: PoolingMode = "mean",
    patches_per_step: int = 8,
) -> Tensor:
    """Reduce each clip's tokens to one vector, counting real tokens only.

    Args:
        tokens: Encoder output, shape ``(B, T, D)``.
        token_lengths: Real tokens per clip, shape ``(B,)``, int64, each in ``1..T``; what
            follows them in a row is padding. ``None`` means that no clip is padded.
        mode: ``"mean"`` or ``"max"`` over the real tokens, or the ``"first"`` or ``"last"``
            of them. BEATs has no CLS token: ``"first"`` is the earliest patch, not a summary.
            ``"bands"`` is the mean over time of each frequency band, the bands side by side (as masked
            spectrogram models are read in MSM-MAE, arXiv 2204.12260, section 3.1).
        patches_per_step: P, for ``"bands"`` only.

    Returns:
        Embeddings, shape ``(B, D)``, with the dtype and device of ``tokens``; not normalised. For ``"bands"``
        ``(B, P * D)``, the lowest band first.

    Raises:
        ValueError: If ``mode`` is unknown, a clip has no real token, or tokens make no whole time steps.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0], [9.0]]])  # (1, 3, 1); the 9.0 is padding
        >>> pool_tokens(tokens, torch.tensor([2]))
        tensor([[2.]])
    """
    if mode not in POOLING_MODES:
        raise ValueError(f"Unknown pooling {mode!r}: expected one of {', '.join(POOLING_MODES)}.")
    num_clips, num_tokens, _ = tokens.shape
    token_lengths = _known_lengths(tokens, token_lengths)
    if mode == "bands":
        if num_tokens % patches_per_step or bool((token_lengths % patches_per_step).any()):
            raise ValueError(
                f"Pooling 'bands' takes whole time steps of {patches_per_step} tokens each, got {num_tokens} tokens."
            )
        num_tokens, token_lengths = (
            num_tokens // patches_per_step,
            token_lengths // patches_per_step,
        )
        tokens = tokens.reshape(num_clips, num_tokens, -1)
    if mode == "first":
        return tokens[:, 0]
    if mode == "last":
        return tokens[torch.arange(num_clips, device=tokens.device), token_lengths - 1]
    real_BT1 = _real_tokens(num_tokens, token_lengths)[..., None]
    if mode == "max":
        return tokens.masked_fill(~real_BT1, -math.inf).amax(dim=1)
    return tokens.masked_fill(~real_BT1, 0.0).sum(dim=1) / token_lengths[:, None].to(tokens.dtype)


def pooled_width(architecture: Architecture, mode: str) -> int:
    """Count the values of an embedding.

    Args:
        architecture: Of the encoder.
        mode: As for `pool_tokens`; every other pooling leaves the width of a token.

    Example:
        >>> pooled_width(Architecture(), "mean"), pooled_width(Architecture(), "bands")
        (768, 6144)
    """
    bands = architecture.patches_per_step if mode == "bands" else 1
    return bands * architecture.encoder_embed_dim


class AttentivePooling(nn.Module):
    """Learned pooling: a mix of the encoder's layers, then attention over the tokens.

    Every layer is normed to mean 0 and deviation 1 per token, without learned scale, so that no layer
    counts for its magnitude; a softmax over L + 1 learned weights mixes them (ELMo, arXiv 1802.05365,
    equation 1; SUPERB, arXiv 2105.01051). Each head scores every token by a learned vector, over
    the square root of D as in any attention, and averages its own D / H values of the tokens with the softmax
    of the scores (attention pooling of Ilse et al., arXiv 1802.04712, without the hidden layer).

    All weights start at zero: a new module gives the plain mean over layers and real tokens. It computes in
    float32, also under autocast.

    Args:
        embedding_dim: Width D of a token.
        num_layers: Layers L of the encoder; it gives L + 1 outputs, the first layer's input among them.
        num_heads: Heads H; must divide D.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embedding_dim``, or a size is not positive.

    Example:
        >>> pooling = AttentivePooling(embedding_dim=4, num_layers=2, num_heads=2)
        >>> pooling(torch.randn(3, 5, 7, 4)).shape  # 3 outputs of 2 layers, 5 clips of 7 tokens
        torch.Size([5, 4])
    """

    def __init__(self, embedding_dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        if min(embedding_dim, num_layers, num_heads) < 1 or embedding_dim % num_heads:
            raise ValueError(
                f"num_heads ({num_heads}) must divide embedding_dim ({embedding_dim}), and all sizes be "
                f"at least 1 (num_layers is {num_layers})."
            )
        self.embedding_dim = embedding_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.layer_weights = nn.Parameter(torch.zeros(num_layers + 1))
        # A bias would move all scores of a head alike, which the softmax undoes.
        self.scores = nn.Linear(embedding_dim, num_heads, bias=False)
        nn.init.zeros_(self.scores.weight)

    @classmethod
    def for_architecture(
        cls, architecture: Architecture, num_heads: int | None = None
    ) -> "AttentivePooling":
        """Build one for an encoder; ``num_heads=None`` takes as many as its attention has.

        Example:
            >>> AttentivePooling.for_architecture(Architecture()).num_heads
            12
        """
        heads = architecture.encoder_attention_heads if num_heads is None else num_heads
        return cls(architecture.encoder_embed_dim, architecture.encoder_layers, heads)

    def require_fit(self, architecture: Architecture) -> None:
        """Check that this pooling was made for an encoder of this size.

        Raises:
            ValueError: If it was not.
        """
        num_layers, width = architecture.encoder_layers, architecture.encoder_embed_dim
        if (self.num_layers, self.embedding_dim) != (num_layers, width):
            raise ValueError(
                f"The pooling was made for {self.num_layers} layers of width {self.embedding_dim}, the "
                f"encoder has {num_layers} of {width}. Build it with "
                "AttentivePooling.for_architecture(encoder.architecture)."
            )

    def to_dict(self) -> dict[str, Any]:
        """What rebuilds it for its encoder: ``for_architecture(architecture, **pooling.to_dict())``."""
        return {"num_heads": self.num_heads}

    def forward(self, layers: Tensor, token_lengths: Tensor | None = None) -> Tensor:
        """Pool a batch.

        Args:
            layers: ``BEATsOutput.layers``, shape ``(L + 1, B, T, D)``, of any dtype.
            token_lengths: As for `pool_tokens`.

        Returns:
            Embeddings, shape ``(B, D)``, float32.

        Raises:
            ValueError: If ``layers`` are not of this shape, or a clip has no real token.
        """
        return self.partial(layers, token_lengths).result()

    def partial(self, layers: Tensor, token_lengths: Tensor | None = None) -> "PartialPooling":
        """Pool a piece of each clip; arguments as for calling. Pieces merge to the whole exactly."""
        expected = (self.num_layers + 1, self.embedding_dim)
        if layers.ndim != 4 or (layers.shape[0], layers.shape[3]) != expected:
            raise ValueError(
                f"Expected layers of shape ({expected[0]}, clips, tokens, {expected[1]}), got "
                f"{tuple(layers.shape)}: call the encoder with output_layers=True."
            )
        with torch.autocast(layers.device.type, enabled=False):
            normed_LBTD = self.norm_layers(layers)
            mixed_BTD = torch.einsum("l,lbtd->btd", self.mix_weights(), normed_LBTD)
            return self.attend(mixed_BTD, token_lengths)

    @staticmethod
    def norm_layers(layers: Tensor) -> Tensor:
        """Norm every token, shape ``(..., D)``, to mean 0 and deviation 1, in float32."""
        return F.layer_norm(layers.float(), layers.shape[-1:])

    def mix_weights(self) -> Tensor:
        """Each layer's share of the mix, shape ``(L + 1,)``; they sum to 1."""
        return self.layer_weights.float().softmax(dim=0)

    def attend(self, mixed: Tensor, token_lengths: Tensor | None = None) -> "PartialPooling":
        """Pool tokens ``(B, T, D)`` that are mixed of normed layers already, in float32."""
        token_lengths = _known_lengths(mixed, token_lengths)
        real_BT1 = _real_tokens(mixed.shape[1], token_lengths)[..., None]
        mixed_BTD = mixed.masked_fill(~real_BT1, 0.0)
        scores_BTH = F.linear(mixed_BTD, self.scores.weight.float()) / math.sqrt(self.embedding_dim)
        scores_BTH = scores_BTH.masked_fill(~real_BT1, -math.inf)
        # Subtracting the largest cancels in the result, so that no gradient need pass through it.
        peak_BH = scores_BTH.detach().amax(dim=1)
        weights_BTH = (scores_BTH - peak_BH[:, None]).exp()
        values_BTHd = mixed_BTD.reshape(*mixed_BTD.shape[:2], self.num_heads, -1)
        total_BHd = torch.einsum("bth,bthd->bhd", weights_BTH, values_BTHd)
        return PartialPooling(peak_BH, weights_BTH.sum(dim=1), total_BHd)


@dataclass(frozen=True)
class PartialPooling:
    """What is known of the attention over some of a clip's tokens; pieces merge in any order.

    Attributes:
        peak: Largest score, shape ``(B, H)``.
        weight: Sum of ``exp(score - peak)``, shape ``(B, H)``.
        total: Sum of ``exp(score - peak)`` times the head's values, shape ``(B, H, D / H)``.
    """

    peak: Tensor
    weight: Tensor
    total: Tensor

    def merge(self, other: "PartialPooling") -> "PartialPooling":
        """The same of both pieces' tokens."""
        peak = torch.maximum(self.peak, other.peak)
        mine, others = (self.peak - peak).exp(), (other.peak - peak).exp()
        return PartialPooling(
            peak,
            self.weight * mine + other.weight * others,
            self.total * mine[..., None] + other.total * others[..., None],
        )

    def to(self, dtype: torch.dtype) -> "PartialPooling":
        """The same in another precision."""
        return PartialPooling(self.peak.to(dtype), self.weight.to(dtype), self.total.to(dtype))

    def result(self) -> Tensor:
        """Embeddings, shape ``(B, D)``."""
        return (self.total / self.weight[..., None]).flatten(1)


def _known_lengths(tokens: Tensor, token_lengths: Tensor | None) -> Tensor:
    num_clips, num_tokens, _ = tokens.shape
    if token_lengths is None:
        return torch.full((num_clips,), num_tokens, device=tokens.device)
    # Where they lie: a look at what lies on a GPU would wait for it.
    if bool(((token_lengths < 1) | (token_lengths > num_tokens)).any()):
        raise ValueError(
            f"Token lengths must lie in 1..{num_tokens}, got {token_lengths.tolist()}."
        )
    return token_lengths.to(tokens.device, non_blocking=True)


def _real_tokens(num_tokens: int, token_lengths: Tensor) -> Tensor:
    """Which tokens are real, shape ``(B, T)``, bool."""
    return torch.arange(num_tokens, device=token_lengths.device) < token_lengths[:, None]
