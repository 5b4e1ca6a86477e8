"""The BEATs network: waveforms in, tokens out.

waveforms -> fbank -> [patches -> encoder] -> tokens -> pooling -> embeddings | head

Rewritten from BEATs (arXiv 2212.09058) and held equal to its reference, microsoft/unilm ``beats/BEATs.py``,
``beats/backbone.py`` at 768a3c8 (MIT), by the golden tensors in ``tests/parity``. What differs on purpose:

- padding is counted exactly (`lengths.py`), so a clip has the same tokens alone and in a batch;
- attention is softmax(q k / sqrt(d) + gate * bias), the same sum as the original's shifted and rescaled one
  without its temporaries: plain products on a CPU, a kernel that computes the bias on a GPU (`flex.py`);
- layer drop draws from torch's generator, and only while training;
- what is cheap to compute again is not kept for the backward pass.

Parameter names are Microsoft's but for two: the weight-normed position convolution uses torch's current
parametrisation, and the relative-position table, which the original repeats in every layer, is stored once.

Shapes in this file: B clips, S samples, F frames, T tokens (time-major: 8 frequency patches per time
step), D width, H heads, C channels of a patch (``embed_dim``).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from beats_trainer.constants import NUM_MEL_BINS
from beats_trainer.model.architecture import Architecture
from beats_trainer.model.blocks import attend_in_blocks, blocks_fit
from beats_trainer.model.dropout import Dropout, drop
from beats_trainer.model.fbank import KaldiFbank
from beats_trainer.model.flex import attend_in_kernel, kernel_fits, table_of
from beats_trainer.model.lengths import count_frames, count_tokens, min_samples

__all__ = ["BEATs", "BEATsOutput"]

_MANY_SCORES = 2**19
"""From so many attention scores of a clip on, training on a CPU takes clips one by one, and keeps none of them:
5 s in a base network have 738,000. For fewer, the calls would cost more than the memory is worth."""

_MANY_VALUES = 2**20
"""From so many values of a feed-forward network on, training on a CPU computes them again."""


@dataclass(frozen=True)
class BEATsOutput:
    """What the network returns.

    Attributes:
        tokens: The last layer's output, shape ``(B, T, D)``.
        token_lengths: Real tokens per clip, shape ``(B,)``, int64; what follows in a row is padding.
        layers: ``None``, or ``(L + 1, B, T, D)``: the first layer's input, then each layer's output.
    """

    tokens: Tensor
    token_lengths: Tensor
    layers: Tensor | None = None


class BEATs(nn.Module):
    """The encoder with its front end, randomly initialised as in the paper.

    Args:
        architecture: Dimensions and variants; the default is the released base model.

    Example:
        >>> tiny = Architecture(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64,
        ...                     encoder_attention_heads=2, embed_dim=16)
        >>> BEATs(tiny).eval()(torch.zeros(2, 16000)).tokens.shape
        torch.Size([2, 48, 32])
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        a = architecture or Architecture()
        self.architecture = a
        self.fbank = KaldiFbank(a.fbank_mean, a.fbank_std)
        self.patch_embedding = nn.Conv2d(
            1, a.embed_dim, a.input_patch_size, stride=a.input_patch_size, bias=a.conv_bias
        )
        self.layer_norm = nn.LayerNorm(a.embed_dim)
        self.post_extract_proj = (
            nn.Linear(a.embed_dim, a.encoder_embed_dim)
            if a.embed_dim != a.encoder_embed_dim
            else None
        )
        self.dropout_input = Dropout(a.dropout_input)
        self.encoder = TransformerEncoder(a)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, output_layers: bool = False
    ) -> BEATsOutput:
        """Encode a batch of waveforms.

        Args:
            waveforms: Shape ``(B, S)``, 16 kHz, about -1..1. Clips under 2,800 samples (175 ms) are
                zero-padded to that.
            lengths: Real samples per clip, shape ``(B,)``, integer, each in ``1..S``; what follows
                them is ignored, whatever it holds. ``None`` means that no clip is padded. In the
                memory of the CPU they cost a GPU no wait.
            output_layers: Whether to return every layer's output too.

        Returns:
            Tokens of the last layer with their lengths, and the layers if asked.

        Raises:
            ValueError: If the shapes or lengths are not as above.
        """
        fbank, frame_lengths = self.front_end(waveforms, lengths)
        return self.encode_fbank(fbank, frame_lengths=frame_lengths, output_layers=output_layers)

    def front_end(
        self, waveforms: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Turn waveforms into what ``encode_fbank`` reads; training changes it in between.

        Args:
            waveforms: As for ``forward``.
            lengths: As for ``forward``.

        Returns:
            The normalised filterbank ``(B, F, 128)``, and real frames per clip ``(B,)``, on the device of
            ``lengths``; ``None`` without them.

        Raises:
            ValueError: As ``forward``.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] == 0:
            raise ValueError(
                f"Expected waveforms of shape (batch, samples), got {tuple(waveforms.shape)}. "
                "A single clip needs a batch dimension: waveform[None, :]."
            )
        patch = self.architecture.input_patch_size
        frame_lengths = None
        if lengths is not None:
            lengths = _checked_lengths(lengths, waveforms, "samples")
            samples = torch.arange(waveforms.shape[1], device=waveforms.device)
            real_BS = samples < _moved(lengths, waveforms)[:, None]
            waveforms = waveforms.masked_fill(~real_BS, 0.0)
            frame_lengths = count_frames(lengths, patch)
        missing = min_samples(patch) - waveforms.shape[1]
        if missing > 0:
            waveforms = F.pad(waveforms, (0, missing))
        return self.fbank(waveforms), frame_lengths

    def encode_fbank(
        self,
        fbank: Tensor,
        frame_lengths: Tensor | None = None,
        token_padding_mask: Tensor | None = None,
        output_layers: bool = False,
    ) -> BEATsOutput:
        """Encode a batch of normalised filterbanks, the output of ``self.fbank``.

        Args:
            fbank: Shape ``(B, F, 128)``; left-over frames that fill no time step are dropped.
            frame_lengths: Real frames per clip, shape ``(B,)``, at least one time step each.
            token_padding_mask: Shape ``(B, T)``, bool, True where a token is padding. Replaces
                ``frame_lengths``; for masks that are not a suffix, or not exact.
            output_layers: Whether to return every layer's output too.

        Returns:
            As ``forward``. With a ``token_padding_mask``, ``token_lengths`` counts its real tokens.

        Raises:
            ValueError: If shapes do not fit, or a clip has no real token.
        """
        patch = self.architecture.input_patch_size
        if fbank.ndim != 3 or fbank.shape[2] != NUM_MEL_BINS or fbank.shape[1] < patch:
            raise ValueError(
                f"Expected a filterbank of shape (batch, at least {patch} frames, {NUM_MEL_BINS}), "
                f"got {tuple(fbank.shape)}."
            )
        tokens_BTD = self.embed_patches(fbank)
        num_clips, num_tokens = tokens_BTD.shape[:2]
        padded_BT: Tensor | None = None
        if token_padding_mask is not None:
            padded_BT = token_padding_mask.to(device=fbank.device, dtype=torch.bool)
            if padded_BT.shape != (num_clips, num_tokens):
                raise ValueError(
                    f"Expected a token_padding_mask of shape {(num_clips, num_tokens)}, "
                    f"got {tuple(padded_BT.shape)}."
                )
            token_lengths = (~padded_BT).sum(dim=1)
            _require_tokens(token_lengths, patch)
            if not bool(padded_BT.any()):
                padded_BT = None
        elif frame_lengths is not None:
            frame_lengths = _checked_lengths(frame_lengths, fbank, "frames")
            token_lengths = count_tokens(frame_lengths, patch)
            _require_tokens(token_lengths, patch)
            if bool((token_lengths < num_tokens).any()):  # else attention needs no mask
                steps = torch.arange(num_tokens, device=fbank.device)
                padded_BT = steps >= _moved(token_lengths, fbank)[:, None]
        else:
            token_lengths = torch.full((num_clips,), num_tokens, device=fbank.device)

        tokens_BTD, layers = self.encoder(tokens_BTD, padded_BT, output_layers)
        return BEATsOutput(tokens_BTD, _moved(token_lengths, tokens_BTD), layers)

    def embed_patches(self, fbank: Tensor) -> Tensor:
        """Turn each patch of a filterbank into a token, which knows nothing of the others.

        Args:
            fbank: Normalised, shape ``(B, F, 128)``, of at least one time step.

        Returns:
            What the encoder reads, shape ``(B, T, D)``, time-major: token = step * 8 + band.
        """
        patches_BCtf = self.patch_embedding(fbank[:, None])
        tokens_BTC = self.layer_norm(patches_BCtf.flatten(2).transpose(1, 2))
        if self.post_extract_proj is not None:
            tokens_BTC = self.post_extract_proj(tokens_BTC)
        tokens_BTD: Tensor = self.dropout_input(tokens_BTC)
        return tokens_BTD


@dataclass(frozen=True)
class PositionLine:
    """The position bias of each distance, for attention that needs no table of all pairs.

    Attributes:
        line: By how far the key lies ahead, ``1 - T .. T - 1``, shape ``(H, 2T - 1)``.
        in_blocks: For blocks on a CPU, rather than a GPU's kernel.
    """

    line: Tensor
    in_blocks: bool


class LayerStack(nn.Module):
    """Transformer layers that share one relative-position table.

    Attributes:
        recomputes_layers: Whether training keeps of each layer its input only, and computes the layer once
            more in the backward pass: less memory for more time, the same gradients.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.layer_drop = a.encoder_layerdrop
        self.recomputes_layers = False
        self._build(a)
        self._initialise(a)

    def _build(self, a: Architecture) -> None:
        self.relative_attention_bias = (
            RelativePositionBias(a.num_buckets, a.max_distance, a.encoder_attention_heads)
            if a.relative_position_embedding
            else None
        )
        self.layers = nn.ModuleList(EncoderLayer(a) for _ in range(a.encoder_layers))

    def _initialise(self, a: Architecture) -> None:
        """BERT's initialisation, then DeepNorm's gains (DeepNet, arXiv 2203.00555, figure 2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if a.deep_norm:
            beta = (8 * a.encoder_layers) ** -0.25
            for layer in self.layers:
                assert isinstance(layer, EncoderLayer)
                attention = layer.self_attn
                for linear, gain in (
                    (attention.q_proj, 1.0),
                    (attention.k_proj, 1.0),
                    (attention.v_proj, beta),
                    (attention.out_proj, beta),
                    (layer.fc1, beta),
                    (layer.fc2, beta),
                ):
                    nn.init.xavier_normal_(linear.weight, gain=gain)

    def run_layers(
        self,
        tokens_BTD: Tensor,
        position: Tensor | PositionLine | None,
        padded_BT: Tensor | None,
        output_layers: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Pass tokens through all layers.

        Args:
            tokens_BTD: The first layer's input.
            position: From `position_bias`, or the table's ``between``.
            padded_BT: True where a token is padding.
            output_layers: Whether to give each layer's output too.

        Returns:
            The last layer's output, and the first layer's input with each output, if asked.
        """
        layers = [tokens_BTD]
        for layer in self.layers:
            if self.training and self.layer_drop > 0 and torch.rand(()) < self.layer_drop:
                # A skipped layer still gets a gradient, of zero: without one, training on several
                # devices would wait for it forever.
                tokens_BTD = tokens_BTD + 0.0 * sum(p.sum() for p in layer.parameters())
            else:
                recompute = self.recomputes_layers and self.training
                tokens_BTD = _call(layer, tokens_BTD, position, padded_BT, recompute=recompute)
            if output_layers:
                layers.append(tokens_BTD)
        return tokens_BTD, layers

    def position_bias(self, tokens_BTD: Tensor) -> "Tensor | PositionLine | None":
        """Of every pair of positions, ``(H, T, T)``; or by distance, where no table is needed."""
        table = self.relative_attention_bias
        if table is None:
            return None
        first = self.layers[0]
        assert isinstance(first, EncoderLayer)
        attention = first.self_attn
        needs_gradient = torch.is_grad_enabled() and (
            tokens_BTD.requires_grad
            or any(parameter.requires_grad for parameter in self.parameters())
        )
        dropout = attention.dropout if self.training else 0.0
        num_tokens = tokens_BTD.shape[1]
        if kernel_fits(
            tokens_BTD, attention.num_heads, dropout=dropout, needs_gradient=needs_gradient
        ):
            return PositionLine(table.by_distance(num_tokens), in_blocks=False)
        if blocks_fit(tokens_BTD, dropout=dropout, needs_gradient=needs_gradient):
            return PositionLine(table.by_distance(num_tokens), in_blocks=True)
        bias_HTT: Tensor = table(num_tokens)
        return bias_HTT


class TransformerEncoder(LayerStack):
    """Position convolution, then transformer layers."""

    def _build(self, a: Architecture) -> None:
        self.dropout = Dropout(a.dropout)
        self.layer_norm_first = a.layer_norm_first
        conv = _PositionConv(
            a.encoder_embed_dim,
            a.encoder_embed_dim,
            a.conv_pos,
            padding=a.conv_pos // 2,
            groups=a.conv_pos_groups,
        )
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (a.conv_pos * a.encoder_embed_dim)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.pos_conv = nn.Sequential(weight_norm(conv, dim=2), _KeepLength(a.conv_pos), nn.GELU())
        self.layer_norm = nn.LayerNorm(a.encoder_embed_dim)
        super()._build(a)

    def forward(
        self, tokens_BTD: Tensor, padded_BT: Tensor | None, output_layers: bool
    ) -> tuple[Tensor, Tensor | None]:
        tokens_BTD = self.start(tokens_BTD, padded_BT)
        position = self.position_bias(tokens_BTD)
        tokens_BTD, layers = self.run_layers(tokens_BTD, position, padded_BT, output_layers)
        return self.end(tokens_BTD), torch.stack(layers) if output_layers else None

    def start(self, tokens_BTD: Tensor, padded_BT: Tensor | None) -> Tensor:
        """What comes before the layers: positions, and the norm of a post-norm network."""
        if padded_BT is not None:
            # The convolution reaches over the clip's end: padding must look like nothing to it.
            tokens_BTD = tokens_BTD.masked_fill(padded_BT[:, :, None], 0.0)
        return self._normed(tokens_BTD + self._convolve(tokens_BTD))

    def end(self, tokens_BTD: Tensor) -> Tensor:
        """What comes after the layers: the norm of a pre-norm network."""
        return self.layer_norm(tokens_BTD) if self.layer_norm_first else tokens_BTD

    def encode_kept(
        self, tokens_BKD: Tensor, kept_BK: Tensor, num_tokens: int, padded_BK: Tensor | None = None
    ) -> Tensor:
        """Encode some of each clip's tokens, each at the position that it has among all of them.

        The others are not there: attention does not see them, and to the position convolution they are zero.

        Args:
            tokens_BKD: The K tokens of each clip.
            kept_BK: Their positions among all of a clip's tokens, each in ``0..num_tokens - 1``.
            num_tokens: Tokens T of a whole clip.
            padded_BK: True where a row is padding, whose position means nothing; ``None``: no row is.

        Returns:
            Shape ``(B, K, D)``. With all tokens kept, the same as ``forward``.
        """
        if padded_BK is not None:
            tokens_BKD = tokens_BKD.masked_fill(padded_BK[:, :, None], 0.0)
        where_BKD = kept_BK[:, :, None].expand_as(tokens_BKD)
        grid_BTD = tokens_BKD.new_zeros(len(tokens_BKD), num_tokens, tokens_BKD.shape[2])
        grid_BTD = grid_BTD.scatter_add(1, where_BKD, tokens_BKD)  # padding adds zeros
        convolved_BTD = self._convolve(grid_BTD)
        tokens_BKD = self._normed(tokens_BKD + convolved_BTD.gather(1, where_BKD))
        table = self.relative_attention_bias
        position = None if table is None else table.between(kept_BK, num_tokens)
        return self.end(self.run_layers(tokens_BKD, position, padded_BK)[0])

    def _convolve(self, tokens_BTD: Tensor) -> Tensor:
        convolved_BTD: Tensor = self.pos_conv(tokens_BTD.transpose(1, 2)).transpose(1, 2)
        return convolved_BTD

    def _normed(self, tokens_BTD: Tensor) -> Tensor:
        if not self.layer_norm_first:
            tokens_BTD = self.layer_norm(tokens_BTD)
        dropped_BTD: Tensor = self.dropout(tokens_BTD)
        return dropped_BTD


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, post-norm with DeepNorm or pre-norm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.layer_norm_first = a.layer_norm_first
        self.residual_scale = (2 * a.encoder_layers) ** 0.25 if a.deep_norm else 1.0
        self.self_attn = GatedRelativeAttention(a)
        self.self_attn_layer_norm = nn.LayerNorm(a.encoder_embed_dim)
        self.fc1 = nn.Linear(a.encoder_embed_dim, a.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(a.encoder_ffn_embed_dim, a.encoder_embed_dim)
        self.activation = _activation(a.activation_fn)
        self.activation_dropout = Dropout(a.activation_dropout)
        self.dropout = Dropout(a.dropout)
        self.final_layer_norm = nn.LayerNorm(a.encoder_embed_dim)

    def forward(
        self, tokens_BTD: Tensor, position: Tensor | PositionLine | None, padded_BT: Tensor | None
    ) -> Tensor:
        if self.layer_norm_first:
            normed_BTD = self.self_attn_layer_norm(tokens_BTD)
            tokens_BTD = tokens_BTD + self.dropout(self.self_attn(normed_BTD, position, padded_BT))
            return tokens_BTD + self._feed_forward(self.final_layer_norm(tokens_BTD))
        attended_BTD = self.dropout(self.self_attn(tokens_BTD, position, padded_BT))
        tokens_BTD = self.self_attn_layer_norm(tokens_BTD * self.residual_scale + attended_BTD)
        fed_BTD = self._feed_forward(tokens_BTD)
        tokens_BTD = self.final_layer_norm(tokens_BTD * self.residual_scale + fed_BTD)
        return tokens_BTD

    def _feed_forward(self, tokens_BTD: Tensor) -> Tensor:
        hidden = self.fc1(tokens_BTD)
        spares = _spares_memory(self, hidden) and hidden.numel() >= _MANY_VALUES
        fed_BTD = _call(self._contract, hidden, recompute=spares)
        dropped_BTD: Tensor = self.dropout(fed_BTD)
        return dropped_BTD

    def _contract(self, hidden: Tensor) -> Tensor:
        fed_BTD: Tensor = self.fc2(self.activation_dropout(self.activation(hidden)))
        return fed_BTD


class GatedRelativeAttention(nn.Module):
    """Multi-head self-attention whose relative-position bias each query scales by a gate.

    The gate is WavLM's (arXiv 2110.13900, equation 4), with one 8-wide projection shared by all heads:
    ``gate = a * (b * grep_a - 1) + 2``, between the sigmoids a and b of the query.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.num_heads = a.encoder_attention_heads
        self.head_dim = a.head_dim
        self.dropout = a.attention_dropout
        self.q_proj = nn.Linear(a.encoder_embed_dim, a.encoder_embed_dim)
        self.k_proj = nn.Linear(a.encoder_embed_dim, a.encoder_embed_dim)
        self.v_proj = nn.Linear(a.encoder_embed_dim, a.encoder_embed_dim)
        self.out_proj = nn.Linear(a.encoder_embed_dim, a.encoder_embed_dim)
        self.is_gated = a.gru_rel_pos
        if self.is_gated:
            self.grep_linear = nn.Linear(a.head_dim, 8)
            self.grep_a = nn.Parameter(torch.ones(1, a.encoder_attention_heads, 1, 1))

    def forward(
        self, tokens_BTD: Tensor, position: Tensor | PositionLine | None, padded_BT: Tensor | None
    ) -> Tensor:
        num_clips, num_tokens, width = tokens_BTD.shape

        def split_heads(projected_BTD: Tensor) -> Tensor:
            return projected_BTD.view(num_clips, num_tokens, self.num_heads, -1).transpose(1, 2)

        q_BHTd = split_heads(self.q_proj(tokens_BTD))
        k_BHTd = split_heads(self.k_proj(tokens_BTD))
        v_BHTd = split_heads(self.v_proj(tokens_BTD))
        gate_BHT1 = self._gate(q_BHTd) if position is not None and self.is_gated else None
        if isinstance(position, PositionLine):
            attend_all = _attend_in_blocks if position.in_blocks else attend_in_kernel
            mixed_BHTd = attend_all(q_BHTd, k_BHTd, v_BHTd, gate_BHT1, position.line, padded_BT)
        else:
            spares = _spares_memory(self, q_BHTd) and num_tokens**2 * self.num_heads >= _MANY_SCORES
            attend_some = self._attend_by_clip if spares else self._attend
            mixed_BHTd = attend_some(q_BHTd, k_BHTd, v_BHTd, gate_BHT1, position, padded_BT)
        mixed_BTD = mixed_BHTd.transpose(1, 2).reshape(num_clips, num_tokens, width)
        attended_BTD: Tensor = self.out_proj(mixed_BTD)
        return attended_BTD

    def _gate(self, q_BHTd: Tensor) -> Tensor:
        """What scales each query's position bias, shape ``(B, H, T, 1)``."""
        halves = self.grep_linear(q_BHTd).unflatten(-1, (2, 4)).sum(dim=-1)
        a_BHT1, b_BHT1 = halves.sigmoid().chunk(2, dim=-1)
        gate_BHT1: Tensor = a_BHT1 * (b_BHT1 * self.grep_a - 1.0) + 2.0
        return gate_BHT1

    def _attend(
        self,
        q_BHTd: Tensor,
        k_BHTd: Tensor,
        v_BHTd: Tensor,
        gate_BHT1: Tensor | None,
        bias: Tensor | None,
        padded_BT: Tensor | None,
    ) -> Tensor:
        bias = _attention_bias(gate_BHT1, bias, padded_BT)
        bias = None if bias is None else bias.to(q_BHTd.dtype)
        return attend(q_BHTd, k_BHTd, v_BHTd, bias, self.dropout if self.training else 0.0)

    def _attend_by_clip(
        self,
        q_BHTd: Tensor,
        k_BHTd: Tensor,
        v_BHTd: Tensor,
        gate_BHT1: Tensor | None,
        bias: Tensor | None,
        padded_BT: Tensor | None,
    ) -> Tensor:
        """As `_attend`; the scores of one clip at a time stay in the processor's cache, and none are kept."""
        of_batch = (q_BHTd, k_BHTd, v_BHTd, gate_BHT1, padded_BT)
        parts = zip(
            *([None] * len(q_BHTd) if each is None else torch.split(each, 1) for each in of_batch),
            [bias] * len(q_BHTd) if bias is None or bias.ndim == 3 else torch.split(bias, 1),
            strict=True,
        )
        return torch.cat(
            [
                _call(self._attend, q, k, v, gate, bias_of_clip, padded, recompute=True)
                for q, k, v, gate, padded, bias_of_clip in parts
            ]
        )


def _attention_bias(
    gate_BHT1: Tensor | None, bias: Tensor | None, padded_BT: Tensor | None
) -> Tensor | None:
    """What is added to the attention scores: gate * position bias, -inf at padded keys.

    The bias is that of all clips, ``(H, T, T)``, or one for each, ``(B, H, T, T)``.
    """
    if bias is not None and gate_BHT1 is not None:
        bias = gate_BHT1 * bias
    if padded_BT is not None:
        blocked_B11T = padded_BT[:, None, None, :]
        if bias is None:
            bias = torch.zeros(blocked_B11T.shape, device=padded_BT.device)
        bias = bias.masked_fill(blocked_B11T, -math.inf)
    return bias


def _call(function: Callable[..., Tensor], *arguments: Any, recompute: bool) -> Tensor:
    """Call a function of tensors; with ``recompute`` its backward pass starts by calling it again.

    Then nothing that it computes on the way is kept, only its arguments. It draws the same numbers again, and
    ends where its last intermediate value is known: a product at its end is not made again.
    """
    if not recompute or not torch.is_grad_enabled():
        return function(*arguments)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return result


def _spares_memory(module: nn.Module, values: Tensor) -> bool:
    """Whether attention scores and activations are computed again rather than kept: in training on a CPU.

    They are two thirds of what a layer keeps and a twentieth of its work. On a GPU the fused kernel keeps no
    scores anyway.
    """
    return module.training and values.device.type == "cpu"


def _attend_in_blocks(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    v_BHTd: Tensor,
    gate_BHT1: Tensor | None,
    line_HR: Tensor,
    padded_BT: Tensor | None,
) -> Tensor:
    """As `attend_in_kernel`; of the gate and the line, which autocast leaves alone, in the queries' format."""
    gate_BHT1 = None if gate_BHT1 is None else gate_BHT1.to(q_BHTd.dtype)
    mixed_BTD = attend_in_blocks(
        q_BHTd, k_BHTd, v_BHTd, gate_BHT1, line_HR.to(q_BHTd.dtype), padded_BT
    )
    num_clips, num_heads, num_tokens, _ = q_BHTd.shape
    return mixed_BTD.view(num_clips, num_tokens, num_heads, -1).transpose(1, 2)


def attend(
    q_BHTd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, bias: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Softmax(q k / sqrt(d) + bias) v, shape ``(B, H, T, d)``; the bias is broadcast to ``(B, H, T, T)``.

    On a GPU in torch's fused kernel. On a CPU that kernel is slower with a bias than three plain products are
    (docs/performance.md): the bias has the size of the scores anyway.
    """
    if q_BHTd.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q_BHTd, k_BHTd, v_BHTd, attn_mask=bias, dropout_p=dropout
        )
    num_clips, num_heads, num_tokens, head_dim = q_BHTd.shape
    scale = head_dim**-0.5
    q, k, v = (
        part.reshape(num_clips * num_heads, num_tokens, head_dim)
        for part in (q_BHTd, k_BHTd, v_BHTd)
    )
    if bias is None:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
    else:
        bias = bias.expand(num_clips, num_heads, num_tokens, num_tokens).flatten(0, 1)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    weights = scores.softmax(dim=-1)
    if dropout:
        weights = drop(weights, dropout)
    return torch.bmm(weights.to(v.dtype), v).view(num_clips, num_heads, num_tokens, head_dim)


class RelativePositionBias(nn.Embedding):
    """A learned bias per head and bucket of token distance (T5, arXiv 1910.10683, section 2.1).

    Half the buckets are for keys behind the query, half for keys ahead. In each half, the first half
    of the buckets is exact and the rest grows logarithmically up to ``max_distance``.
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int) -> None:
        super().__init__(num_buckets, num_heads)
        self.max_distance = max_distance

    def forward(self, num_tokens: int) -> Tensor:  # type: ignore[override]
        """Return the bias of every pair of positions, shape ``(H, T, T)``, query before key."""
        return table_of(self.by_distance(num_tokens))

    def between(self, positions_BK: Tensor, num_tokens: int) -> Tensor:
        """Return the bias between tokens at these of ``num_tokens`` positions, shape ``(B, H, K, K)``."""
        ahead_BKK = positions_BK[:, None, :] - positions_BK[:, :, None]
        bias_BHKK = self.by_distance(num_tokens).T[ahead_BKK + num_tokens - 1].permute(0, 3, 1, 2)
        return bias_BHKK

    def by_distance(self, num_tokens: int) -> Tensor:
        """Return the bias by how far the key lies ahead, ``1 - T .. T - 1``, shape ``(H, 2T - 1)``."""
        distances = torch.arange(1 - num_tokens, num_tokens, device=self.weight.device)
        return super().forward(self._bucket(distances)).T.contiguous()

    def _bucket(self, distances: Tensor) -> Tensor:
        half = self.num_embeddings // 2
        exact = half // 2
        size = distances.abs()
        log_ratio = (size.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (log_ratio * (half - exact)).long()).clamp(max=half - 1)
        return half * (distances > 0) + torch.where(size < exact, size, far)


class _PositionConv(nn.Conv1d):
    """A convolution that can be pickled also when its weight is normed: torch refuses that by default, but
    processes that train together are sent the network."""

    def forward(self, values: Tensor) -> Tensor:
        """Convolve values ``(B, D, T)``.

        On a CPU as images one pixel high whose channels lie last, as those of tokens do: twice as fast.
        """
        if values.device.type != "cpu":
            return super().forward(values)
        weight = self.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        image = values[:, :, None]
        padding = (0, int(self.padding[0]))
        return F.conv2d(image, weight, self.bias, padding=padding, groups=self.groups)[:, :, 0]

    def __reduce__(self) -> tuple[Any, ...]:
        shape = (
            self.in_channels,
            self.out_channels,
            self.kernel_size[0],
            self.padding,
            self.groups,
        )
        is_trained = [parameter.requires_grad for parameter in self.parameters()]
        return _rebuild_position_conv, (shape, self.state_dict(), is_trained, self.training)


def _rebuild_position_conv(
    shape: tuple[Any, ...], state: dict[str, Tensor], is_trained: list[bool], training: bool
) -> nn.Module:
    in_channels, out_channels, kernel_size, padding, groups = shape
    conv: nn.Module = weight_norm(
        _PositionConv(in_channels, out_channels, kernel_size, padding=padding, groups=groups), dim=2
    )
    conv.load_state_dict(state)
    for parameter, requires_grad in zip(conv.parameters(), is_trained, strict=True):
        parameter.requires_grad_(requires_grad)
    return conv.train(training)


class _KeepLength(nn.Module):
    """Drop the extra sample that an even kernel with symmetric padding produces."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.extra = 1 - kernel_size % 2

    def forward(self, values: Tensor) -> Tensor:
        return values[..., : -self.extra] if self.extra else values


def _activation(name: str) -> nn.Module:
    if name in ("gelu_accurate", "gelu_fast"):
        return nn.GELU(approximate="tanh")
    modules: dict[str, type[nn.Module]] = {
        "gelu": nn.GELU,
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "linear": nn.Identity,
    }
    return modules[name]()


def _checked_lengths(lengths: Tensor, padded: Tensor, unit: str) -> Tensor:
    """The lengths as whole numbers, where they lie: a look at what lies on a GPU would wait for it."""
    lengths = lengths.to(torch.int64)
    if lengths.shape != padded.shape[:1]:
        raise ValueError(
            f"Expected one length per clip, shape ({padded.shape[0]},), got {tuple(lengths.shape)}."
        )
    if bool(((lengths < 1) | (lengths > padded.shape[1])).any()):
        raise ValueError(
            f"Lengths must lie in 1..{padded.shape[1]} {unit}, got {lengths.tolist()}."
        )
    return lengths


def _require_tokens(token_lengths: Tensor, patch: int) -> None:
    if not bool((token_lengths > 0).all()):
        raise ValueError(
            f"Every clip needs a real token (at least {patch} real frames); "
            f"token lengths are {token_lengths.tolist()}."
        )


def _moved(lengths: Tensor, values: Tensor) -> Tensor:
    """Lengths on the device of the values, which does not wait for them."""
    return lengths.to(values.device, non_blocking=True)
