"""How much goes through the network at once, where the user does not say.

A batch is counted in tokens, not in clips: short clips come in large batches, long ones in small. What a clip
comes to does not depend on it beyond rounding.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from beats_trainer.loading import POOL_BATCHES
from beats_trainer.model.architecture import Architecture

__all__ = ["BatchLimit", "BatchSize", "attention_bytes", "batch_limit", "check_batch_size"]

BatchSize: TypeAlias = int | Literal["auto"] | None
"""Most clips in a batch; ``None`` and ``"auto"`` choose by the device, its free memory and the network."""

_CPU_TOKENS = 2_048
"""About eight clips of 5 s: on a CPU a base network gains nothing from more (docs/performance.md)."""

_MOST_TOKENS = 32_768
"""66 clips of 10 s: matrix products of a base network are as large as a GPU needs. Not measured on one yet."""

_UNKNOWN_TOKENS = 8_192
"""For devices that do not tell their free memory."""

_BASE_WIDTH = 768

_MOST_CLIPS = 256
_POOLED_CLIPS = 1_024
"""Clips of a batch, and clips that are sorted by length together, where tokens are what is counted."""

_ATTENTION_BYTES = 256 * 2**20
"""Memory that one layer's position bias, the largest tensor of a batch, may take."""

_FRAME_BYTES = 16 * 2**10
"""What the front end holds for a frame: its samples a few times, its spectrum, its bands; float32."""


@dataclass(frozen=True)
class BatchLimit:
    """What ends a batch.

    Attributes:
        num_clips: Most clips.
        num_tokens: Most tokens, padding included; ``None`` for no limit.
        pool_batches: Batches of ``num_clips`` that are sorted by length together.
    """

    num_clips: int
    num_tokens: int | None = None
    pool_batches: int = POOL_BATCHES

    @property
    def num_pooled(self) -> int:
        """Clips that are sorted together at most."""
        return self.num_clips * self.pool_batches


def check_batch_size(batch_size: object) -> int | None:
    """Return a number of clips, or ``None`` for a choice by the device.

    Raises:
        ValueError: If it is neither a whole number of at least 1, nor ``None`` or ``"auto"``.

    Example:
        >>> check_batch_size("auto") is None
        True
    """
    if batch_size is None or batch_size == "auto":
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, or 'auto', not {batch_size!r}.")
    return batch_size


def batch_limit(
    batch_size: BatchSize,
    architecture: Architecture,
    device: torch.device,
    num_layers_held: int = 1,
) -> BatchLimit:
    """What ends a batch of this network on this device.

    Args:
        batch_size: The user's wish.
        architecture: The network's.
        device: Where it runs.
        num_layers_held: Outputs of layers that are in memory at the end of a batch.

    Raises:
        ValueError: As `check_batch_size`.

    Example:
        >>> batch_limit("auto", Architecture(), torch.device("cpu")).num_tokens
        2048
    """
    num_clips = check_batch_size(batch_size)
    if num_clips is not None:
        return BatchLimit(num_clips)
    if device.type == "cpu":
        # A small network needs more tokens for products of the same size.
        num_tokens = _CPU_TOKENS * _BASE_WIDTH // architecture.encoder_embed_dim
        num_tokens = min(8 * _CPU_TOKENS, max(_CPU_TOKENS, num_tokens))
    elif device.type == "cuda":
        per_token = _bytes_per_token(architecture, num_layers_held)
        fitting = max(1, _free_bytes(device) // 4 // per_token)
        # A power of two: what else runs on the GPU changes batches, and with them the last bit, seldom.
        num_tokens = min(_MOST_TOKENS, max(_CPU_TOKENS, 1 << (fitting.bit_length() - 1)))
    else:
        num_tokens = _UNKNOWN_TOKENS
    return BatchLimit(_MOST_CLIPS, num_tokens, _POOLED_CLIPS // _MOST_CLIPS)


def attention_bytes(device: torch.device) -> int:
    """Memory that one layer's position bias may take."""
    if device.type != "cuda":
        return _ATTENTION_BYTES
    return max(_ATTENTION_BYTES, _free_bytes(device) // 8)


def _bytes_per_token(a: Architecture, num_layers_held: int) -> int:
    """What a token takes at the fullest moment, counted generously: all in float32."""
    hidden = 2 * a.encoder_ffn_embed_dim + 12 * a.encoder_embed_dim
    held = 2 * num_layers_held * a.encoder_embed_dim
    frames = a.input_patch_size // a.patches_per_step or 1
    return 4 * (hidden + held) + frames * _FRAME_BYTES


def _free_bytes(device: torch.device) -> int:
    """What a GPU has left, with what this process holds of it without need."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
