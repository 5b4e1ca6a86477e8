"""The first acoustic tokenizer: patches of the filterbank, matched to random codes. Nothing of it is trained.

waveforms -> fbank -> [patches -> normalise -> random projection -> nearest random code] -> codes

BEATs labels its first iteration so (arXiv 2212.09058, section 3.2, equation 1), after BEST-RQ (arXiv 2202.01855). No
weights were released, and the paper does not say how patches are normalised, on which everything depends: taken
literally, its formula uses 60 of 1,024 codes. Variants (perplexity on ESC-10: docs/pretraining.md):

- ``"normalized"``: each patch has mean 0 and deviation 1, projections and codes have length 1. Uses nearly all codes;
- ``"best-rq"``: projections and codes have length 1;
- ``"espnet"``: as ESPnet's ``espnet2/beats/random_tokenizer.py``: two projections with a layer norm after each;
- ``"paper"``: the formula as it stands.

A code says what a patch is like, whatever its level with ``"normalized"``, and knows nothing of its neighbours.

Shapes in this file: B clips, F frames, T tokens, P values of a patch, Q width of a code, K codes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.model.architecture import Architecture
from beats_trainer.model.beats import BEATs
from beats_trainer.model.fbank import KaldiFbank
from beats_trainer.model.lengths import count_tokens
from beats_trainer.model.tokenizer import TokenizerOutput

__all__ = ["Projection", "RandomProjectionTokenizer"]

Projection = Literal["normalized", "best-rq", "espnet", "paper"]
"""How patches are normalised before and after they are projected."""

_ESPNET_WIDTH = 512


class RandomProjectionTokenizer(nn.Module):
    """Codes from random weights, which a seed decides: the same in every process and with every thread count.

    Args:
        architecture: Patch size and statistics of the front end are read.
        num_codes: K.
        code_dim: Q.
        projection: How patches are normalised.
        seed: Of the weights; torch's global generator is not touched.

    Raises:
        ValueError: If ``projection`` is unknown.

    Example:
        >>> tokenizer = RandomProjectionTokenizer(num_codes=16, code_dim=8)
        >>> tokenizer.encode(torch.zeros(1, 16000)).codes.shape
        torch.Size([1, 48])
    """

    projection_weight: Tensor
    codes: Tensor
    provenance: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        architecture: Architecture | None = None,
        num_codes: int = 1024,
        code_dim: int = 256,
        projection: Projection = "normalized",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if projection not in get_args(Projection):
            known = ", ".join(get_args(Projection))
            raise ValueError(f"projection must be one of {known}, not {projection!r}.")
        a = architecture or Architecture()
        self.architecture = a
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.projection: Projection = projection
        self.seed = seed
        self.fbank = KaldiFbank(a.fbank_mean, a.fbank_std)
        generator = torch.Generator().manual_seed(seed)

        def drawn(outputs: int, inputs: int, fan: int | None = None) -> Tensor:
            """Xavier's normal distribution; ``fan`` is the sum of both fans."""
            std = (2.0 / (fan or outputs + inputs)) ** 0.5
            weight: Tensor = torch.randn(outputs, inputs, generator=generator) * std
            return weight

        size = a.input_patch_size**2
        width = size
        if projection == "espnet":
            width = _ESPNET_WIDTH  # a convolution's fans: its outputs are counted once per value of a patch
            self.register_buffer("patch_weight", drawn(width, size, fan=size + width * size))
        self.register_buffer("projection_weight", drawn(code_dim, width))
        codes = torch.randn(num_codes, code_dim, generator=generator)
        is_unit = projection in ("normalized", "best-rq")
        self.register_buffer("codes", F.normalize(codes, dim=1) if is_unit else codes)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "RandomProjectionTokenizer":
        """Follow to another device, never to another number format: rounded weights give other codes.

        A trainer in half precision casts all that it holds (``.half()``, ``.to(torch.bfloat16)``).
        """

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def settings(self) -> dict[str, int | str]:
        """What it was made of, besides the architecture."""
        return {
            "num_codes": self.num_codes,
            "code_dim": self.code_dim,
            "projection": self.projection,
            "seed": self.seed,
        }

    @torch.no_grad()
    def encode(self, waveforms: Tensor, lengths: Tensor | None = None) -> TokenizerOutput:
        """Find each token's code.

        Args:
            waveforms: Shape ``(B, S)``, 16 kHz, about -1..1.
            lengths: Real samples per clip, shape ``(B,)``; ``None`` means that no clip is padded.

        Returns:
            Codes with the number of real ones.

        Raises:
            ValueError: As ``BEATs.front_end``.
        """
        fbank, frame_lengths = BEATs.front_end(self, waveforms, lengths)  # type: ignore[arg-type]
        return self.encode_fbank(fbank, frame_lengths)

    @torch.no_grad()
    def encode_fbank(self, fbank: Tensor, frame_lengths: Tensor | None = None) -> TokenizerOutput:
        """The same from normalised log-mel on.

        Args:
            fbank: Shape ``(B, F, 128)``, the output of ``self.fbank`` or of a network with the same statistics.
            frame_lengths: Real frames per clip, shape ``(B,)``; ``None`` means that no clip is padded.
        """
        patch = self.architecture.input_patch_size
        num_steps = fbank.shape[1] // patch
        with torch.autocast(fbank.device.type, enabled=False):
            # time-major: token = step * 8 + band
            shape = (len(fbank), num_steps, patch, fbank.shape[2] // patch, patch)
            patches = fbank[:, : num_steps * patch].float().reshape(shape).transpose(2, 3)
            patches_BTP = patches.reshape(len(fbank), -1, patch * patch)
            codes_BT = self._nearest(self._project(patches_BTP))
        if frame_lengths is None:
            frame_lengths = torch.full((len(fbank),), fbank.shape[1])
        token_lengths = count_tokens(frame_lengths, patch)
        return TokenizerOutput(codes_BT, token_lengths.to(fbank.device))

    def _project(self, patches_BTP: Tensor) -> Tensor:
        if self.projection == "espnet":
            patches_BTP = F.linear(patches_BTP, self.get_buffer("patch_weight"))
            patches_BTP = F.layer_norm(patches_BTP, patches_BTP.shape[-1:])
        if self.projection == "normalized":
            patches_BTP = F.layer_norm(patches_BTP, patches_BTP.shape[-1:])
        projected_BTQ = F.linear(patches_BTP, self.projection_weight)
        if self.projection == "espnet":
            return F.layer_norm(projected_BTQ, projected_BTQ.shape[-1:])
        return projected_BTQ

    def _nearest(self, projected_BTQ: Tensor) -> Tensor:
        """Of codes of length 1 the one with the largest product, whatever the length of the projection."""
        scores_BTK = projected_BTQ @ self.codes.T
        if self.projection in ("espnet", "paper"):
            scores_BTK = 2.0 * scores_BTK - self.codes.pow(2).sum(dim=1)
        return scores_BTK.argmax(dim=-1)
