"""Train a tokenizer whose codes tell what a teacher hears: the self-distilled tokenizer.

log-mel -> [tokenizer's encoder -> nearest codes -> estimator] -> estimate of the teacher's tokens -> loss

Of BEATs (arXiv 2212.09058, section 3.2, equation 3): the cosine between estimate and teacher grows, vectors come
closer to their codes, codes follow by moving averages. The estimator (three layers, as in the paper) is thrown
away afterwards. The equation sums the distance to the code over its values; the original's code takes their mean, 256
times less, and so does this.

Shapes in this file: B clips, F frames, T tokens, N real tokens of all clips, Q width of a code, D width of a token,
K codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.model import AcousticTokenizer, BEATs
from beats_trainer.model.beats import LayerStack
from beats_trainer.pretraining.codebook import move_codes, start_codes

__all__ = ["DistillationOutput", "TokenizerDistiller"]

_ESTIMATOR_LAYERS = 3


@dataclass(frozen=True)
class DistillationOutput:
    """How well the teacher was imitated.

    Attributes:
        loss_sum: Sum over real tokens of ``1 - cosine + commitment * distance``.
        num_tokens: N.
        cosine_sum: Sum over real tokens of the cosine between estimate and teacher.
        distance_sum: Sum over real tokens of the mean squared distance to the code.
        code_counts: How often each code came up, shape ``(K,)``.
    """

    loss_sum: Tensor
    num_tokens: Tensor
    cosine_sum: Tensor
    distance_sum: Tensor
    code_counts: Tensor


class TokenizerDistiller(nn.Module):
    """A tokenizer with the teacher and the estimator that it is trained with.

    Args:
        tokenizer: Is trained.
        teacher: Stays as it is, in evaluation mode; it is not part of this module's state.
        commitment: Weight of the distance to the code.

    Raises:
        ValueError: If the two have other patches or another front end.
    """

    def __init__(
        self, tokenizer: AcousticTokenizer, teacher: BEATs, commitment: float = 1.0
    ) -> None:
        super().__init__()
        own, other = tokenizer.architecture, teacher.architecture
        for name in ("input_patch_size", "fbank_mean", "fbank_std"):
            if getattr(own, name) != getattr(other, name):
                raise ValueError(
                    f"Tokenizer and teacher must have the same {name}, not {getattr(own, name)} and "
                    f"{getattr(other, name)}."
                )
        width = own.encoder_embed_dim
        self.tokenizer = tokenizer
        self.commitment = commitment
        self.connector = nn.Linear(tokenizer.code_dim, width)
        self.layers = LayerStack(
            own.replace(
                encoder_layers=_ESTIMATOR_LAYERS,
                encoder_layerdrop=0.0,
                deep_norm=True,
                layer_norm_first=False,
            )
        )
        self.norm = nn.LayerNorm(width)
        self.to_teacher = (
            nn.Linear(width, other.encoder_embed_dim) if width != other.encoder_embed_dim else None
        )
        self._teacher = [teacher.eval().requires_grad_(False)]  # a list hides it from the state

    def forward(self, fbank: Tensor, frame_lengths: Tensor | None = None) -> DistillationOutput:
        """Compare estimate and teacher; while training, move the codes, too.

        Args:
            fbank: Normalised log-mel, shape ``(B, F, 128)``.
            frame_lengths: Real frames per clip, shape ``(B,)``; ``None`` means that no clip is padded.
        """
        encoded = self.tokenizer.encode_fbank(fbank, frame_lengths)
        num_tokens = encoded.tokens.shape[1]
        steps = torch.arange(num_tokens, device=fbank.device)
        padded_BT = steps >= encoded.token_lengths[:, None]
        unit_BTQ = F.normalize(self.tokenizer.quantize_layer(encoded.tokens).float(), dim=-1)
        codes_BT: Tensor = self.tokenizer.quantize(unit_BTQ)
        nearest_BTQ = self.tokenizer.quantize.embedding.weight[codes_BT].float()
        real_BT = ~padded_BT
        if self.training:
            move_codes(self.tokenizer.quantize, unit_BTQ[real_BT].detach(), codes_BT[real_BT])
        counts_K = codes_BT[real_BT].bincount(minlength=self.tokenizer.num_codes)
        distance_N = (nearest_BTQ - unit_BTQ)[real_BT].square().mean(dim=1)
        # The estimate is made of the code; its gradient goes on to the vector as if that were the code.
        through_BTQ = unit_BTQ + (nearest_BTQ - unit_BTQ).detach()
        estimate_BTD = self._estimate(through_BTQ, padded_BT if bool(padded_BT.any()) else None)
        with torch.no_grad():
            teacher = self._teacher[0].to(fbank.device)
            target_BTD = teacher.encode_fbank(fbank, frame_lengths).tokens
        cosine_N = F.cosine_similarity(
            estimate_BTD[real_BT].float(), target_BTD[real_BT].float(), dim=1
        )
        loss_sum = (1.0 - cosine_N + self.commitment * distance_N).sum()
        return DistillationOutput(
            loss_sum,
            torch.tensor(len(cosine_N), device=fbank.device),
            cosine_N.detach().sum(),
            distance_N.detach().sum(),
            counts_K,
        )

    def _estimate(self, codes_BTQ: Tensor, padded_BT: Tensor | None) -> Tensor:
        tokens_BTD = self.connector(codes_BTQ)
        position = self.layers.position_bias(tokens_BTD)
        tokens_BTD = self.norm(self.layers.run_layers(tokens_BTD, position, padded_BT)[0])
        if self.to_teacher is not None:
            tokens_BTD = self.to_teacher(tokens_BTD)
        estimate_BTD: Tensor = tokens_BTD
        return estimate_BTD

    @torch.no_grad()
    def start(self, batches: Iterable[tuple[Tensor, Tensor | None]], seed: int) -> None:
        """Set the codes to the k means of what the tokenizer makes of some sound.

        Args:
            batches: Log-mel and frame lengths, as `forward` takes them; ten tokens per code are good.
            seed: Of the start of k-means.

        Raises:
            ConfigError: If they have fewer tokens than there are codes.
        """
        was_training = self.training
        self.eval()
        vectors = []
        for fbank, frame_lengths in batches:
            encoded = self.tokenizer.encode_fbank(fbank, frame_lengths)
            vectors_BTQ = self.tokenizer.quantize_layer(encoded.tokens).float()
            steps = torch.arange(vectors_BTQ.shape[1], device=fbank.device)
            vectors.append(vectors_BTQ[steps < encoded.token_lengths[:, None]])
        nothing = torch.zeros(0, self.tokenizer.code_dim)
        start_codes(self.tokenizer.quantize, torch.cat(vectors or [nothing]), seed)
        self.train(was_training)
