"""Which number format the network multiplies in, and the context that makes it so.

bfloat16 where the hardware multiplies it fast, else float32; the front end stays in float32 always.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Precision",
    "autocast",
    "fast_float32_products",
    "resolve_device",
    "resolve_precision",
]

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Number formats, by the name that users write."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Choose where to compute.

    Args:
        device: ``None`` or ``"auto"`` for the first of CUDA, Apple's MPS and CPU that is there; or a
            name that torch knows, such as ``"cuda:1"``.

    Raises:
        ValueError: If the device is asked for by name and is not there.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {device!r}: expected auto, cpu, cuda or mps.") from error
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"Device {device!r} was asked for, but torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA devices. Use device='auto' or 'cpu', or install a "
            "CUDA build of torch."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("Device 'mps' was asked for, but this machine has none.")
    return chosen


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Choose the number format for a device.

    Args:
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where the network runs.

    Returns:
        The dtype of matrix products; anything but float32 is applied through autocast.

    Raises:
        ValueError: If the precision is unknown.

    Example:
        >>> resolve_precision("float32", torch.device("cpu"))
        torch.float32
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"Unknown precision {precision!r}: expected {', '.join(get_args(Precision))}."
        )
    if precision != "auto":
        return _DTYPES[precision]
    return torch.bfloat16 if _multiplies_bfloat16_fast(device) else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Context in which matrix products run in ``dtype``; float32 means no autocast at all."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextlib.contextmanager
def fast_float32_products(enabled: bool = True) -> Iterator[bool]:
    """Context in which a CPU multiplies float32 by oneDNN, where that is as exact as what torch does otherwise.

    On CPUs with AVX512-BF16, torch leaves float32 products to oneDNN only when it is allowed to round them to
    bfloat16. On some of these oneDNN has no such product, and multiplies float32 as it stands, on AMD's twice
    as fast as MKL. Whether it does is measured: where anything is rounded, nothing is changed. The setting
    is torch's own and of the whole process; one that is not torch's default is left alone.

    Args:
        enabled: False for a context that does nothing.

    Returns:
        Whether products are made by oneDNN inside.

    Example:
        >>> matrix = torch.rand(8, 8)
        >>> with fast_float32_products():
        ...     bool(torch.allclose(matrix @ matrix, (matrix.double() @ matrix.double()).float()))
        True
        >>> torch.get_float32_matmul_precision()
        'highest'
    """
    if not enabled or not _is_default_precision():
        yield False
        return
    torch.set_float32_matmul_precision("medium")
    try:
        is_exact = _multiplies_float32_exactly()
        if not is_exact:
            torch.set_float32_matmul_precision("highest")
        yield is_exact
    finally:
        torch.set_float32_matmul_precision("highest")


def _is_default_precision() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the user has set it for one backend alone
        return False


_FLOAT32_ERROR = 3e-6
"""Relative error of a product that float32 allows; 4e-7 is usual, rounding to bfloat16 gives 2e-3."""


def _multiplies_float32_exactly() -> bool:
    """Try the products of a linear map, forward and backward, and of attention, at sizes that go to oneDNN."""
    generator = torch.Generator().manual_seed(0)
    values, weight, gradient = (
        torch.randn(shape, generator=generator) for shape in ((256, 768), (512, 768), (256, 512))
    )

    def products(values: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
        parts = [tensor.view(4, -1, tensor.shape[1]) for tensor in (values, weight)]
        return [
            F.linear(values, weight),
            gradient @ weight,
            gradient.T @ values,
            torch.bmm(parts[0], parts[1].transpose(1, 2)),
        ]

    with torch.autocast("cpu", enabled=False):
        found = products(values, weight, gradient)
        expected = products(values.double(), weight.double(), gradient.double())
    return all(
        float((one.double() - other).norm() / other.norm()) < _FLOAT32_ERROR
        for one, other in zip(found, expected, strict=True)
    )


def _multiplies_bfloat16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        # Emulated bfloat16 (before Ampere) is slower than float32.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch has no public question for this; an older or newer torch without it means "no".
        return any(
            getattr(torch.cpu, name, bool)()
            for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
    return False
