"""The acoustic tokenizer: waveforms in, one code per token out.

waveforms -> fbank -> encoder -> [quantize_layer -> nearest code] -> codes

Inference of the tokenizers that BEATs was pre-trained with (arXiv 2212.09058, section 3.2; the
original's ``beats/Tokenizers.py`` and ``beats/quantizer.py`` at 768a3c8, MIT). Unlike there, encoding
changes no state: the original counts code usage even in eval mode, and starts k-means on a fresh model.

Shapes in this file: B clips, S samples, T tokens, D width, K codes, Q width of a code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.model.architecture import Architecture
from beats_trainer.model.beats import BEATs

__all__ = ["AcousticTokenizer", "TokenizerOutput"]


@dataclass(frozen=True)
class TokenizerOutput:
    """What a tokenizer returns.

    Attributes:
        codes: Index of the nearest code per token, shape ``(B, T)``, int64, each in ``0..K-1``.
        token_lengths: Real tokens per clip, shape ``(B,)``; codes behind them mean nothing.
    """

    codes: Tensor
    token_lengths: Tensor


class AcousticTokenizer(BEATs):
    """A BEATs encoder whose tokens are matched to a codebook of unit vectors.

    Args:
        architecture: The encoder's.
        num_codes: K, 1024 in the released tokenizers.
        code_dim: Q, 256 in the released tokenizers.
    """

    def __init__(
        self, architecture: Architecture | None = None, num_codes: int = 1024, code_dim: int = 256
    ) -> None:
        super().__init__(architecture)
        width = self.architecture.encoder_embed_dim
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.quantize_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_dim)
        )
        self.quantize = Codebook(num_codes, code_dim)

    @torch.no_grad()
    def encode(self, waveforms: Tensor, lengths: Tensor | None = None) -> TokenizerOutput:
        """Find each token's code.

        Args:
            waveforms: Shape ``(B, S)``, 16 kHz, about -1..1.
            lengths: Real samples per clip, shape ``(B,)``; ``None`` means that no clip is padded.

        Returns:
            Codes with the number of real ones.
        """
        output = self(waveforms, lengths)
        return TokenizerOutput(self.codes_of(output.tokens), output.token_lengths)

    def codes_of(self, tokens: Tensor) -> Tensor:
        """Find the codes of encoder outputs ``(B, T, D)``: shape ``(B, T)``, int64."""
        codes: Tensor = self.quantize(self.quantize_layer(tokens))
        return codes


class Codebook(nn.Module):
    """K unit vectors; a vector's code is the index of the nearest one.

    ``cluster_size`` (how often a code was used), ``embed_avg`` and ``initted`` belong to training; they
    are kept so that a loaded tokenizer can be written back whole.
    """

    cluster_size: Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = _CodeVectors(num_codes, code_dim)
        self.register_buffer("cluster_size", torch.zeros(num_codes))

    def forward(self, vectors_BTQ: Tensor) -> Tensor:
        """Return the codes of vectors ``(B, T, Q)``: shape ``(B, T)``."""
        with torch.autocast(vectors_BTQ.device.type, enabled=False):
            unit_BTQ = F.normalize(vectors_BTQ.float(), dim=-1)
            codes_KQ = self.embedding.weight.float()
            distance_BTK = codes_KQ.pow(2).sum(dim=1) - 2 * unit_BTQ @ codes_KQ.T
            return distance_BTK.argmin(dim=-1)


class _CodeVectors(nn.Module):
    """The state of the original's ``EmbeddingEMA``, moved by averages and never by gradients.

    Buffers: as parameters, which the original has, some trainers overwrite them in every step.
    """

    weight: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    initted: Tensor

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        vectors = F.normalize(torch.randn(num_codes, code_dim), dim=-1)
        self.register_buffer("weight", vectors)
        self.register_buffer("embed_avg", vectors.clone())
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        self.register_buffer("initted", torch.ones(1))
