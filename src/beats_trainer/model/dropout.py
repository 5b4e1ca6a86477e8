"""Dropout that costs little on a CPU.

encoder, head while training -> [drop] -> the same values, some of them zero

There, torch draws a number for each value one after the other, which takes longer than attention itself. Here a
draw of 64 bits decides about four values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout", "drop"]

_STEPS = 2**16
"""A value is lost with a probability that is a multiple of one part in so many."""


def drop(values: Tensor, probability: float) -> Tensor:
    """Set values to zero at random, and scale the others such that the mean stays.

    Args:
        values: Any shape, dtype and device.
        probability: Of each value to be lost, from 0 to 1; on a CPU it is rounded to a multiple of 1/65,536,
            and the scale is of the rounded one. The draws are from torch's global generator.

    Returns:
        With the shape, dtype and device of ``values``.

    Example:
        >>> kept = drop(torch.ones(1000), 0.25) > 0
        >>> 600 < int(kept.sum()) < 900
        True
    """
    num_lost = round(probability * _STEPS)
    if values.device.type != "cpu" or num_lost == _STEPS:
        return F.dropout(values, probability)
    if num_lost == 0:
        return values
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: values.numel()].view(values.shape)
    kept = levels >= num_lost - _STEPS // 2
    return torch.where(kept, values, 0.0) * (_STEPS / (_STEPS - num_lost))


class Dropout(nn.Dropout):
    """`drop` as a module: while training only."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop values, if in training mode."""
        return drop(input, self.p) if self.training else input
