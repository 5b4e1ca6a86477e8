"""Masked audio modelling: hide most patches, and let the network guess their codes.

log-mel, codes -> [masking -> encoder on what is visible -> predictor -> cross-entropy on what is hidden] -> loss

Of BEATs (arXiv 2212.09058, section 3.3). What the paper leaves open is an option here: whether the encoder is told
where the visible patches stand (``"true"``), or sees them side by side as ESPnet's ``espnet2/beats`` has
them (``"packed"``); and label smoothing, which is ESPnet's.

Shapes in this file: B clips, F frames, T tokens, K visible tokens, N hidden tokens of all clips, D width, C codes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.model import BEATs
from beats_trainer.model.lengths import count_tokens
from beats_trainer.pretraining.masking import KeptTokens, choose_kept
from beats_trainer.pretraining.predictor import LabelPredictor

__all__ = ["MaskedAudioModel", "MaskedOutput", "Positions"]

Positions = Literal["true", "packed"]
"""Where the encoder takes visible tokens to stand: where they do, or side by side."""


@dataclass(frozen=True)
class MaskedOutput:
    """How well the codes of hidden tokens were guessed.

    Attributes:
        loss_sum: Sum of the cross-entropies of all hidden tokens, in nats, to be divided by their number.
        num_hidden: N.
        num_right: Hidden tokens whose likeliest code is the right one.
        target_counts: How often each code was to be guessed, shape ``(C,)``.
        guess_counts: How often each was guessed, shape ``(C,)``.
    """

    loss_sum: Tensor
    num_hidden: Tensor
    num_right: Tensor
    target_counts: Tensor
    guess_counts: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean cross-entropy of a hidden token, in nats."""
        return self.loss_sum / self.num_hidden


class MaskedAudioModel(nn.Module):
    """An encoder with the predictor that it is pre-trained with.

    Args:
        beats: The encoder, which stays what it is: only ``beats`` is kept when pre-training is done.
        predictor: Reads its tokens.
        mask_ratio: Share of hidden tokens.
        positions: ``"true"`` or ``"packed"``.
        label_smoothing: Share of a target that is spread over all codes.

    Example:
        >>> from beats_trainer.model import Architecture
        >>> tiny = Architecture(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64,
        ...                     encoder_attention_heads=2, embed_dim=16)
        >>> model = MaskedAudioModel(BEATs(tiny), LabelPredictor(tiny, num_codes=8, num_layers=1))
        >>> output = model(torch.randn(2, 32, 128), torch.zeros(2, 16, dtype=torch.int64), torch.rand(2, 16))
        >>> int(output.num_hidden)
        24
    """

    def __init__(
        self,
        beats: BEATs,
        predictor: LabelPredictor,
        mask_ratio: float = 0.75,
        positions: Positions = "true",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if positions not in ("true", "packed"):
            raise ValueError(f"positions must be 'true' or 'packed', not {positions!r}.")
        self.beats = beats
        self.predictor = predictor
        self.mask_ratio = mask_ratio
        self.positions = positions
        self.label_smoothing = label_smoothing

    def forward(
        self,
        fbank: Tensor,
        codes_BT: Tensor,
        noise_BT: Tensor,
        frame_lengths: Tensor | None = None,
    ) -> MaskedOutput:
        """Hide tokens, and guess their codes.

        Args:
            fbank: Normalised log-mel, shape ``(B, F, 128)``.
            codes_BT: Code of each token, shape ``(B, T)``, int64; at padding, anything.
            noise_BT: From `mask_noise`, shape ``(B, T)``.
            frame_lengths: Real frames per clip, shape ``(B,)``; ``None`` means that no clip is padded.

        Raises:
            ValueError: If there is not one code per token.
        """
        tokens_BTD = self.beats.embed_patches(fbank)
        num_clips, num_tokens = tokens_BTD.shape[:2]
        if codes_BT.shape != (num_clips, num_tokens):
            raise ValueError(
                f"Expected one code for each of {num_clips} x {num_tokens} tokens, got {tuple(codes_BT.shape)}. "
                "Codes must come from a tokenizer with the patches of this network."
            )
        token_lengths = padded_BT = None
        if frame_lengths is not None:
            token_lengths = count_tokens(frame_lengths, self.beats.architecture.input_patch_size)
            if bool((token_lengths < num_tokens).any()):
                steps = torch.arange(num_tokens, device=fbank.device)
                padded_BT = steps >= token_lengths.to(fbank.device)[:, None]
        kept = choose_kept(noise_BT.to(fbank.device), token_lengths, self.mask_ratio)
        encoded_BKD = self.encode(tokens_BTD, kept)
        logits_NC = self.predictor(encoded_BKD, kept, padded_BT)
        targets_N = codes_BT.to(fbank.device)[kept.hidden]
        loss_sum = F.cross_entropy(
            logits_NC, targets_N, reduction="sum", label_smoothing=self.label_smoothing
        )
        guesses_N = logits_NC.detach().argmax(dim=1)
        num_codes = logits_NC.shape[1]
        return MaskedOutput(
            loss_sum,
            torch.tensor(len(targets_N), device=fbank.device),
            (guesses_N == targets_N).sum(),
            targets_N.bincount(minlength=num_codes),
            guesses_N.bincount(minlength=num_codes),
        )

    def encode(self, tokens_BTD: Tensor, kept: KeptTokens) -> Tensor:
        """Encode the visible tokens; nothing of the others gets in. Shape ``(B, K, D)``."""
        where_BKD = kept.positions[:, :, None].expand(-1, -1, tokens_BTD.shape[2])
        visible_BKD = tokens_BTD.gather(1, where_BKD)
        encoder = self.beats.encoder
        if self.positions == "true":
            return encoder.encode_kept(
                visible_BKD, kept.positions, tokens_BTD.shape[1], kept.padded
            )
        encoded_BKD: Tensor = encoder(visible_BKD, kept.padded, False)[0]
        return encoded_BKD
