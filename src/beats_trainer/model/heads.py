"""Classifier heads: one embedding per clip in, one score per class out.

embeddings -> [head] -> logits

Shapes in this file: B clips, D width of an embedding, C classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ClassifierHead"]


class ClassifierHead(nn.Module):
    """A linear layer, or hidden layers with a linear one on top.

    Args:
        embedding_dim: Width D of an embedding.
        num_classes: Classes C.
        hidden_dims: Widths of hidden layers; empty for a linear head.
        activation: After each hidden layer: ``"relu"`` or ``"gelu"``.
        dropout: Before each linear layer, while training.

    Example:
        >>> ClassifierHead(8, 3, hidden_dims=[4])(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        hidden_dims: Sequence[int] = (),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ("relu", "gelu"):
            raise ValueError(f"Unknown head activation {activation!r}: expected relu or gelu.")
        self.embedding_dim = embedding_dim
        self.num_classes = num_classes
        self.hidden_dims = tuple(hidden_dims)
        self.activation = activation
        self.dropout = dropout
        layers: list[nn.Module] = []
        width = embedding_dim
        for hidden in self.hidden_dims:
            layers += [nn.Dropout(dropout), nn.Linear(width, hidden)]
            layers.append(nn.ReLU() if activation == "relu" else nn.GELU())
            width = hidden
        layers += [nn.Dropout(dropout), nn.Linear(width, num_classes)]
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Score embeddings of shape ``(B, D)``: logits of shape ``(B, C)``."""
        logits: Tensor = self.layers(embeddings)
        return logits

    @property
    def first_linear(self) -> nn.Linear:
        """The layer that reads the embedding."""
        linear = self.layers[1]
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def last_linear(self) -> nn.Linear:
        """The layer that writes the logits."""
        linear = self.layers[-1]
        assert isinstance(linear, nn.Linear)
        return linear

    @torch.no_grad()
    def absorb_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Rewrite the first layer so that the head takes raw instead of standardised embeddings.

        A head that was fitted on ``(embedding - mean) / std`` gives the same logits for
        ``embedding`` afterwards, so that nothing but the head has to be stored.

        Args:
            mean: Shape ``(D,)``.
            std: Shape ``(D,)``, positive.
        """
        linear = self.first_linear
        weight = linear.weight / std.to(linear.weight)
        linear.bias.sub_(weight @ mean.to(linear.weight))
        linear.weight.copy_(weight)

    @torch.no_grad()
    def absorb_temperature(self, value: float) -> None:
        """Rewrite the last layer so that it gives ``logits / value``.

        A temperature that was fitted on validation logits (Guo et al., arXiv 1706.04599) then needs to be
        applied by nobody who uses the head.

        Args:
            value: Above 1 makes the probabilities more even, below 1 more extreme.

        Raises:
            ValueError: If the temperature is not positive and finite.

        Example:
            >>> head = ClassifierHead(2, 3)
            >>> before = head(torch.ones(1, 2))
            >>> head.absorb_temperature(2.0)
            >>> torch.allclose(head(torch.ones(1, 2)), before / 2)
            True
        """
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"A temperature must be positive and finite, not {value}.")
        self.last_linear.weight.div_(value)
        self.last_linear.bias.div_(value)

    def to_dict(self) -> dict[str, Any]:
        """What rebuilds this head: ``ClassifierHead(**head.to_dict())``."""
        return {
            "embedding_dim": self.embedding_dim,
            "num_classes": self.num_classes,
            "hidden_dims": list(self.hidden_dims),
            "activation": self.activation,
            "dropout": self.dropout,
        }
