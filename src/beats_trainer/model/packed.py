"""The encoder prepared for inference on a CPU: the same sums, arranged as the processor likes them.

tokens -> [position convolution -> layers, with weights packed once and products fused] -> tokens

What differs from `beats.TransformerEncoder`, and never by more than rounding:

- weights are cast and brought into oneDNN's order once, not in every call;
- queries, keys, values and the gate of the position bias are one product: the gate is a linear map of the
  query, so it is one of the tokens;
- the position bias is added inside the product of queries and keys, whose scores stay in the cache
  (`blocks.py`); activations inside that of the feed-forward network;
- the weight norm of the position convolution is computed once.

`pack_for_inference` gives a network that shares everything else with the one it was made of. It is for calls
without gradients, and does not see later changes of the encoder's weights: `is_packed_from` tells.

Shapes in this file: B clips, T tokens, D width, H heads, d width of a head.
"""

import copy
import functools
import logging
import platform
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beats_trainer.model.beats import BEATs, EncoderLayer, TransformerEncoder
from beats_trainer.model.blocks import add_product, attend_in_blocks

__all__ = ["can_pack", "is_packed_from", "pack_for_inference", "prepared_for_inference"]

_logger = logging.getLogger(__name__)

_COLUMNS = 16
"""Outputs of a product come in multiples of this, with zeros where there are fewer."""

_TYPICAL_TOKENS = 248
"""Length of a clip of 5 s, for which oneDNN chooses the order of a convolution's weights; others work too."""

_STRIDE = 251
"""Of a large weight one value in so many is looked at, to tell whether it has changed: a prime number, smaller than
a row, so that each row and each column has some."""

_LOOKED_AT_WHOLE = 2**13
"""Values of a weight of which each is looked at: biases, norms, gates, position biases."""

_prepared: "weakref.WeakKeyDictionary[BEATs, dict[torch.dtype, BEATs]]" = (
    weakref.WeakKeyDictionary()
)


def prepared_for_inference(network: BEATs, dtype: torch.dtype) -> BEATs:
    """Give the fastest form of a network for calls without gradients; made once, while its weights stay.

    Args:
        network: In eval mode.
        dtype: Of the products, as `autocast` is told.

    Returns:
        A packed network where that is possible; else the network itself.
    """
    if not can_pack(network, dtype):
        return network
    packed = _prepared.setdefault(network, {})
    if dtype not in packed or not is_packed_from(packed[dtype], network):
        packed[dtype] = pack_for_inference(network, dtype)
    return packed[dtype]


def can_pack(network: BEATs, dtype: torch.dtype) -> bool:
    """Whether this machine gains from packing, and the network is one that can be packed.

    Args:
        network: On the CPU, or elsewhere: then the answer is no.
        dtype: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        False too where torch lacks oneDNN, or its products are not what they should be.
    """
    encoder = network.encoder
    if not isinstance(encoder, TransformerEncoder):
        return False
    weights = list(encoder.parameters())
    is_plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in weights)
    has_linears = all(
        type(linear) is nn.Linear for layer in _layers(encoder) for linear in _linears(layer)
    )
    return is_plain and has_linears and _multiplies_packed(dtype)


def pack_for_inference(network: BEATs, dtype: torch.dtype) -> BEATs:
    """Prepare a network for many calls without gradients.

    Args:
        network: One for which `can_pack` is true.
        dtype: Of the products: ``torch.float32``, or ``torch.bfloat16`` as under autocast.

    Returns:
        A network in eval mode that is called in the same way. Its front end and patches are those of
        ``network``, not copies; its encoder has packed copies.

    Example:
        >>> from beats_trainer.model.architecture import Architecture
        >>> tiny = BEATs(Architecture(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64,
        ...                           encoder_attention_heads=2, embed_dim=16)).eval()
        >>> fast = pack_for_inference(tiny, torch.float32) if can_pack(tiny, torch.float32) else tiny
        >>> waveforms = torch.rand(1, 16000)
        >>> with torch.inference_mode():
        ...     bool((fast(waveforms).tokens - tiny(waveforms).tokens).abs().max() < 1e-4)
        True
    """
    packed = copy.copy(network)
    packed._modules = dict(network._modules)
    encoder = _PackedEncoder(network.encoder, dtype)
    packed._modules["encoder"] = encoder
    # What they share with the network is in the mode of that: these two modules are all that is new.
    packed.training = encoder.training = False
    return packed


def is_packed_from(packed: BEATs, network: BEATs) -> bool:
    """Whether a packed network still has the weights of the one that it was made of."""
    encoder = packed.encoder
    assert isinstance(encoder, _PackedEncoder)
    return encoder.fingerprint == _fingerprint(network.encoder)


class _PackedEncoder(nn.Module):
    """Stands in for a `TransformerEncoder`; holds no parameters."""

    def __init__(self, encoder: TransformerEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.layer_norm_first = encoder.layer_norm_first
        self.layer_norm = encoder.layer_norm
        self.relative_attention_bias = encoder.relative_attention_bias
        self.fingerprint = _fingerprint(encoder)
        with torch.inference_mode():
            conv = encoder.pos_conv[0]
            assert isinstance(conv, nn.Conv1d)
            assert conv.bias is not None
            self.position_conv = _PackedConvolution(
                conv.weight, conv.bias, int(conv.padding[0]), conv.groups, dtype
            )
            self.packed_layers = [_PackedLayer(layer, dtype) for layer in _layers(encoder)]

    def forward(
        self, tokens_BTD: Tensor, padded_BT: Tensor | None, output_layers: bool
    ) -> tuple[Tensor, Tensor | None]:
        # Products choose their own format; between them, everything is in float32.
        with torch.autocast("cpu", enabled=False):
            return self._encode(tokens_BTD.float(), padded_BT, output_layers)

    def _encode(
        self, tokens_BTD: Tensor, padded_BT: Tensor | None, output_layers: bool
    ) -> tuple[Tensor, Tensor | None]:
        if padded_BT is not None:
            tokens_BTD = tokens_BTD.masked_fill(padded_BT[:, :, None], 0.0)
        tokens_BTD = tokens_BTD + self._positions(tokens_BTD)
        if not self.layer_norm_first:
            tokens_BTD = self.layer_norm(tokens_BTD)
        bias_HL = None
        if self.relative_attention_bias is not None:
            bias_HL = self.relative_attention_bias.by_distance(tokens_BTD.shape[1]).to(self.dtype)
        layers = [tokens_BTD]
        for layer in self.packed_layers:
            tokens_BTD = layer(tokens_BTD, bias_HL, padded_BT)
            if output_layers:
                layers.append(tokens_BTD)
        if self.layer_norm_first:
            tokens_BTD = self.layer_norm(tokens_BTD)
        return tokens_BTD, torch.stack(layers) if output_layers else None

    def _positions(self, tokens_BTD: Tensor) -> Tensor:
        convolved_BTD = self.position_conv(tokens_BTD)[:, : tokens_BTD.shape[1]]
        return F.gelu(convolved_BTD.float())


class _PackedLayer:
    """An `EncoderLayer` whose products are packed."""

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        attention = layer.self_attn
        self.dtype = dtype
        self.layer_norm_first = layer.layer_norm_first
        self.residual_scale = layer.residual_scale
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.is_gated = attention.is_gated
        self.attention_norm, self.final_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.activation = layer.activation
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        weights: list[Tensor] = [linear.weight for linear in projections]
        biases: list[Tensor] = [linear.bias for linear in projections]
        if self.is_gated:
            gate_weight, gate_bias = _gate_of_tokens(attention)
            weights.append(gate_weight)
            biases.append(gate_bias)
            self.grep_a = attention.grep_a.detach().to(dtype)
        self.project_in = _PackedLinear(torch.cat(weights), torch.cat(biases), dtype)
        self.project_out = _PackedLinear(attention.out_proj.weight, attention.out_proj.bias, dtype)
        fused = _fusable(layer.activation)
        self.is_activation_fused = fused is not None
        self.expand = _PackedLinear(layer.fc1.weight, layer.fc1.bias, dtype, fused)
        self.contract = _PackedLinear(layer.fc2.weight, layer.fc2.bias, dtype)

    def __call__(
        self, tokens_BTD: Tensor, bias_HL: Tensor | None, padded_BT: Tensor | None
    ) -> Tensor:
        if self.layer_norm_first:
            normed_BTD = self.attention_norm(tokens_BTD)
            tokens_BTD = tokens_BTD + self._attend(normed_BTD, bias_HL, padded_BT)
            return tokens_BTD + self._feed_forward(self.final_norm(tokens_BTD))
        attended_BTD = self._attend(tokens_BTD, bias_HL, padded_BT)
        tokens_BTD = self.attention_norm(
            torch.add(attended_BTD, tokens_BTD, alpha=self.residual_scale)
        )
        fed_BTD = self._feed_forward(tokens_BTD)
        normed: Tensor = self.final_norm(torch.add(fed_BTD, tokens_BTD, alpha=self.residual_scale))
        return normed

    def _attend(
        self, tokens_BTD: Tensor, bias_HL: Tensor | None, padded_BT: Tensor | None
    ) -> Tensor:
        width, heads = tokens_BTD.shape[2], self.num_heads
        projected = self.project_in(tokens_BTD)
        qkv = projected[..., : 3 * width]
        q, k, v = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        gate = None
        if bias_HL is not None and self.is_gated:
            gate = self._gate(projected[..., 3 * width :])
        return self.project_out(attend_in_blocks(q, k, v, gate, bias_HL, padded_BT))

    def _gate(self, gates: Tensor) -> Tensor:
        """What each query scales its position bias by, ``(B, H, T, 1)``."""
        halves = gates[..., : 2 * self.num_heads].reshape(*gates.shape[:2], self.num_heads, 2)
        a_BHT1, b_BHT1 = halves.transpose(1, 2).contiguous().sigmoid().chunk(2, dim=-1)
        return (a_BHT1 * (b_BHT1 * self.grep_a - 1.0) + 2.0).contiguous()

    def _feed_forward(self, tokens_BTD: Tensor) -> Tensor:
        hidden = self.expand(tokens_BTD)
        return self.contract(hidden if self.is_activation_fused else self.activation(hidden))


class _PackedLinear:
    """A linear map in oneDNN's own order, with an activation inside where it knows one."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        activation: tuple[str, str] | None = None,
    ) -> None:
        weight, bias = weight.detach(), bias.detach()
        missing = -len(weight) % _COLUMNS
        if missing:
            weight, bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing))
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous())
        self.bias = bias.to(dtype)
        self.activation = activation or ("none", "")

    def __call__(self, values: Tensor) -> Tensor:
        name, algorithm = self.activation
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            values.to(self.dtype), self.weight, self.bias, name, [], algorithm
        )
        return product


class _PackedConvolution:
    """A convolution over tokens in oneDNN's own order.

    Of images one pixel high, whose channels lie last, as tokens have them.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, padding: int, groups: int, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self.bias = bias.detach().to(dtype)
        self.padding, self.groups = [0, padding], groups
        image = weight.detach().to(dtype)[:, :, None].contiguous()
        size = [1, groups * weight.shape[1], 1, _TYPICAL_TOKENS]
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            image, self.padding, [1, 1], [1, 1], groups, size
        )

    def __call__(self, values_BTD: Tensor) -> Tensor:
        image_BD1T = values_BTD.to(self.dtype).transpose(1, 2)[:, :, None]
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            image_BD1T,
            self.weight,
            self.bias,
            self.padding,
            [1, 1],
            [1, 1],
            self.groups,
            "none",
            [],
            "",
        )
        return convolved[:, :, 0].transpose(1, 2)


def _gate_of_tokens(attention: Any) -> tuple[Tensor, Tensor]:
    """The two halves of each head's gate as a linear map of the tokens: weights ``(2 H, D)``, bias ``(2 H,)``.

    The gate sums fours of eight outputs of a map of the query, which is a map of the token.
    """
    with torch.inference_mode():
        weight_2d = attention.grep_linear.weight.unflatten(0, (2, 4)).sum(dim=1)
        bias_2 = attention.grep_linear.bias.unflatten(0, (2, 4)).sum(dim=1)
        query_HdD = attention.q_proj.weight.unflatten(0, (attention.num_heads, -1))
        query_Hd = attention.q_proj.bias.unflatten(0, (attention.num_heads, -1))
        weight = torch.einsum("gd,hdD->hgD", weight_2d.double(), query_HdD.double())
        bias = query_Hd.double() @ weight_2d.double().T + bias_2.double()
        return weight.flatten(0, 1).float(), bias.flatten().float()


def _fusable(activation: nn.Module) -> tuple[str, str] | None:
    """How oneDNN calls an activation; ``None`` if it is computed apart."""
    if isinstance(activation, nn.GELU):
        return ("gelu", activation.approximate)
    if isinstance(activation, nn.ReLU):
        return ("relu", "")
    return None


def _layers(encoder: TransformerEncoder) -> Iterator[EncoderLayer]:
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        yield layer


def _linears(layer: EncoderLayer) -> list[nn.Module]:
    attention = layer.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
    return [*projections, layer.fc1, layer.fc2]


def _fingerprint(encoder: nn.Module) -> tuple[Any, ...]:
    """What changes when a weight is changed, in any way: where it lies, its version, its values.

    Of the values, a sum with rising factors, so that such as have changed places show too. A change that torch has
    not counted (made through ``.data``) to a few values of a large weight, no row or column of it, can go unseen.
    """
    with torch.inference_mode():
        parts: list[Any] = []
        sums = []
        for parameter in encoder.parameters():
            parts.append(
                (parameter.data_ptr(), None if parameter.is_inference() else parameter._version)
            )
            values = parameter.detach().reshape(-1)
            if len(values) > _LOOKED_AT_WHOLE:
                values = values[::_STRIDE]
            sums.append(values.double() @ _factors(len(values)))
        return (*parts, *torch.stack(sums).tolist())


@functools.cache
def _factors(count: int) -> Tensor:
    return torch.linspace(1.0, 2.0, count, dtype=torch.float64)


@functools.cache
def _multiplies_packed(dtype: torch.dtype) -> bool:
    """Try a packed product, once per format: its operators are torch's own, and may change."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if platform.machine().lower() not in ("x86_64", "amd64") or not has_onednn:
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    values, weight = (torch.randn(shape, generator=generator) for shape in ((48, 64), (32, 64)))
    bias = torch.randn(32, generator=generator)
    try:
        with torch.inference_mode():
            product = F.linear(values, weight)
            kernel = weight.view(32, 16, 4)
            convolved = F.conv1d(values.T[None], kernel, bias, padding=2, groups=4)[0].T
            linear = _PackedLinear(weight, bias, dtype, ("gelu", "none"))(values)
            convolution = _PackedConvolution(kernel, bias, 2, 4, dtype)(values[None])[0]
            sums = add_product(torch.ones_like(product), values, weight)
    except (RuntimeError, AttributeError, TypeError) as error:
        _logger.debug("Weights cannot be packed for oneDNN here: %s", error)
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    is_right = all(
        torch.allclose(ours.float(), expected, atol=tolerance, rtol=tolerance)
        for ours, expected in (
            (linear, F.gelu(product + bias)),
            (convolution, convolved),
            (sums, product + 1.0),
        )
    )
    if not is_right:
        _logger.warning("oneDNN's packed products are wrong on this machine; they are not used.")
    return is_right
