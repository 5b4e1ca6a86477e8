"""The encoder's layers compiled for the shapes that a GPU really meets.

tokens -> [position convolution -> layers, compiled: fewer, larger kernels, launched together] -> tokens

Windows of one length in full batches are always the same shape, for which torch's compiler fuses what lies between the
products and records a CUDA graph. Compiling takes a minute for each shape, and was **not measured on a GPU**: so
it is an option, and its first result for each shape is compared with the plain network's. Where they differ, or
the compiler fails, the plain network goes on, with one warning.

Shapes in this file: B clips, T tokens, D width.
"""

import copy
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from beats_trainer.model.beats import BEATs, PositionLine, TransformerEncoder

__all__ = ["compiled_for_inference"]

_logger = logging.getLogger(__name__)

_MOST_SHAPES = 8
"""Shapes that are compiled for; from then on new ones run as they are."""

_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Relative error that a compiled network may have, of all tokens together, by the format of the products."""

_prepared: "weakref.WeakKeyDictionary[BEATs, BEATs]" = weakref.WeakKeyDictionary()


def compiled_for_inference(network: BEATs, backend: Callable[..., Any] | str = "inductor") -> BEATs:
    """Give a network that computes the same in compiled layers, for calls without gradients.

    Args:
        network: In eval mode, on its device.
        backend: Of ``torch.compile``.

    Returns:
        A network that is called in the same way and shares all weights. Not to be saved or trained.

    Example:
        >>> from beats_trainer.model.architecture import Architecture
        >>> tiny = BEATs(Architecture(encoder_layers=1, encoder_embed_dim=32, encoder_ffn_embed_dim=64,
        ...                           encoder_attention_heads=2, embed_dim=16)).eval()
        >>> compiled = compiled_for_inference(tiny, backend="eager")
        >>> with torch.inference_mode():
        ...     compiled(torch.zeros(1, 16000)).tokens.shape
        torch.Size([1, 48, 32])
    """
    known = _prepared.get(network)
    if known is not None and _stand_in(known).stands_for(network.encoder, backend):
        return known
    compiled = copy.copy(network)
    compiled._modules = dict(network._modules)
    encoder = _CompiledEncoder(network.encoder, backend)
    compiled._modules["encoder"] = encoder
    compiled.training = encoder.training = False
    _prepared[network] = compiled
    return compiled


def _stand_in(compiled: BEATs) -> "_CompiledEncoder":
    encoder = compiled.encoder
    assert isinstance(encoder, _CompiledEncoder)
    return encoder


class _CompiledEncoder(nn.Module):
    """Stands in for a `TransformerEncoder`; holds no parameters of its own."""

    def __init__(self, encoder: TransformerEncoder, backend: Callable[..., Any] | str) -> None:
        super().__init__()
        self._encoder = [encoder]  # a list hides it from the state
        options = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        self._run = torch.compile(_run, dynamic=False, backend=backend, **options)  # type: ignore[call-overload]
        self._is_trusted: dict[tuple[Any, ...], bool] = {}
        self._backend = backend

    def stands_for(self, encoder: nn.Module, backend: Callable[..., Any] | str) -> bool:
        return self._encoder[0] is encoder and self._backend == backend

    def forward(
        self, tokens_BTD: Tensor, padded_BT: Tensor | None, output_layers: bool
    ) -> tuple[Tensor, Tensor | None]:
        encoder = self._encoder[0]
        dtype = torch.get_autocast_dtype(tokens_BTD.device.type)
        is_cast = torch.is_autocast_enabled(tokens_BTD.device.type)
        dtype = dtype if is_cast else tokens_BTD.dtype
        shape = (tuple(tokens_BTD.shape), padded_BT is None, output_layers, dtype)
        is_trusted = self._is_trusted.get(shape)
        if is_trusted:
            return self._compiled(encoder, tokens_BTD, padded_BT, output_layers)
        has_failed = not all(self._is_trusted.values())
        if is_trusted is None and not has_failed and len(self._is_trusted) < _MOST_SHAPES:
            return self._try(shape, dtype, tokens_BTD, padded_BT, output_layers)
        return self._plain(tokens_BTD, padded_BT, output_layers)

    def _plain(
        self, tokens_BTD: Tensor, padded_BT: Tensor | None, output_layers: bool
    ) -> tuple[Tensor, Tensor | None]:
        encoded: tuple[Tensor, Tensor | None] = self._encoder[0](
            tokens_BTD, padded_BT, output_layers
        )
        return encoded

    def _try(
        self,
        shape: tuple[Any, ...],
        dtype: torch.dtype,
        tokens_BTD: Tensor,
        padded_BT: Tensor | None,
        output_layers: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Compile for a shape, and compare; gives the plain result."""
        expected, layers = self._plain(tokens_BTD, padded_BT, output_layers)
        _logger.info("Compiling the encoder for %s clips of %s tokens.", *shape[0][:2])
        self._is_trusted[shape] = False
        try:
            found = self._compiled(self._encoder[0], tokens_BTD, padded_BT, output_layers)[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # a compiler may fail in any way; the work goes on without it
            _logger.warning(
                "The encoder could not be compiled, and runs as it is: %s", str(failure)[:500]
            )
            return expected, layers
        is_real = torch.ones_like(expected[..., :1]) if padded_BT is None else ~padded_BT[..., None]
        error = float(
            ((found - expected) * is_real).double().norm() / (expected * is_real).double().norm()
        )
        self._is_trusted[shape] = error < _TOLERANCES.get(dtype, 0.0)
        if not self._is_trusted[shape]:
            _logger.warning(
                "The compiled encoder is wrong here (relative error %.1e), and is not used.", error
            )
        return expected, layers

    def _compiled(
        self,
        encoder: TransformerEncoder,
        tokens_BTD: Tensor,
        padded_BT: Tensor | None,
        output_layers: bool,
    ) -> tuple[Tensor, Tensor | None]:
        tokens_BTD = encoder.start(tokens_BTD, padded_BT)
        position = encoder.position_bias(tokens_BTD)
        if isinstance(position, PositionLine) and position.in_blocks:
            assert encoder.relative_attention_bias is not None
            position = encoder.relative_attention_bias(tokens_BTD.shape[1])
        if tokens_BTD.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        tokens, layers = self._run(encoder, tokens_BTD, position, padded_BT, output_layers)
        # The next call writes to the same memory.
        return tokens.clone(), None if layers is None else layers.clone()


def _run(
    encoder: TransformerEncoder,
    tokens_BTD: Tensor,
    position: Tensor | PositionLine | None,
    padded_BT: Tensor | None,
    output_layers: bool,
) -> tuple[Tensor, Tensor | None]:
    tokens_BTD, layers = encoder.run_layers(tokens_BTD, position, padded_BT, output_layers)
    return encoder.end(tokens_BTD), torch.stack(layers) if output_layers else None
