"""Guess the codes of hidden tokens from the encoded visible ones.

visible tokens, their positions -> [back among placeholders -> light transformer -> logits of the hidden] -> loss

The label predictor of BEATs (arXiv 2212.09058, section 3.3). It is thrown away after pre-training: what it
learns is not in the encoder, so it is small.

Shapes in this file: B clips, T tokens, K visible tokens, N hidden tokens of all clips, D width of the encoder,
P width of the predictor, C codes.
"""

import torch
from torch import Tensor, nn

from beats_trainer.model import Architecture
from beats_trainer.model.beats import LayerStack
from beats_trainer.pretraining.masking import KeptTokens

__all__ = ["LabelPredictor"]


class LabelPredictor(nn.Module):
    """A few transformer layers over all positions of a clip.

    Args:
        encoder: Architecture of the encoder whose tokens it reads.
        num_codes: C.
        num_layers: Transformer layers.
        width: P; ``None`` takes the encoder's.

    Raises:
        ValueError: If the width is no multiple of that of the encoder's heads, which its own heads have.
    """

    def __init__(
        self,
        encoder: Architecture,
        num_codes: int = 1024,
        num_layers: int = 2,
        width: int | None = None,
    ) -> None:
        super().__init__()
        width = width or encoder.encoder_embed_dim
        if width % encoder.head_dim:
            raise ValueError(
                f"The predictor's width must be a multiple of {encoder.head_dim}, the width of the "
                f"encoder's heads, not {width}."
            )
        architecture = encoder.replace(
            encoder_layers=num_layers,
            encoder_embed_dim=width,
            encoder_ffn_embed_dim=4 * width,
            encoder_attention_heads=width // encoder.head_dim,
            conv_pos_groups=1,
            encoder_layerdrop=0.0,
            deep_norm=True,
            layer_norm_first=False,
        )
        self.num_codes = num_codes
        self.connector = nn.Linear(encoder.encoder_embed_dim, width)
        self.placeholder = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = LayerStack(architecture)
        self.norm = nn.LayerNorm(width)
        self.to_codes = nn.Linear(width, num_codes)
        for linear in (self.connector, self.to_codes):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self, encoded_BKD: Tensor, kept: KeptTokens, padded_BT: Tensor | None = None
    ) -> Tensor:
        """Give each hidden token a score for each code.

        Args:
            encoded_BKD: The encoder's output for the visible tokens.
            kept: Where these stood.
            padded_BT: True where a token of the clip is padding; ``None``: none is.

        Returns:
            Logits, shape ``(N, C)``, float32, in the order of ``kept.hidden``.
        """
        visible_BKP = self.connector(encoded_BKD)
        num_tokens = kept.hidden.shape[1]
        placeholder_P = self.placeholder.to(visible_BKP.dtype)
        grid_BTP = placeholder_P.expand(len(visible_BKP), num_tokens, -1)
        positions_BK = kept.positions
        if kept.padded is not None:  # rows that are none go to a place behind, which is cut off
            positions_BK = positions_BK.masked_fill(kept.padded, num_tokens)
            grid_BTP = placeholder_P.expand(len(visible_BKP), num_tokens + 1, -1)
        where_BKP = positions_BK[:, :, None].expand_as(visible_BKP)
        grid_BTP = grid_BTP.scatter(1, where_BKP, visible_BKP)[:, :num_tokens]
        tokens_BTP, _ = self.layers.run_layers(
            grid_BTP, self.layers.position_bias(grid_BTP), padded_BT
        )
        logits_NC: Tensor = self.to_codes(self.norm(tokens_BTP[kept.hidden]))
        return logits_NC.float()
