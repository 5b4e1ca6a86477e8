"""What is minimised: classification losses that take soft, several and unknown labels.

logits, targets -> [loss per clip -> mean] -> scalar

Every loss reads targets of shape ``(B, C)``: one-hot or mixed for clips of one class, 1 or 0 (or between, after
mixup) for any number of classes, NaN where a label is unknown. An unknown label gives no gradient. A clip's
loss does not depend on its neighbours, so that the mean over a batch is the mean over its parts: two
processes with half a batch each learn what one learns from the whole.

Shapes in this file: B clips, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from beats_trainer.config import TrainingConfig
from beats_trainer.model import Activation

__all__ = ["ClassificationLoss", "activation_of", "class_weights", "soft_targets"]

_ACTIVATIONS: dict[str, tuple[Activation, ...]] = {
    "cross_entropy": ("softmax",),
    "bce": ("sigmoid",),
    "focal": ("softmax", "sigmoid"),
    "asymmetric": ("sigmoid",),
}

_ASYMMETRIC_GAMMA, _ASYMMETRIC_MARGIN = 4.0, 0.05  # gamma-, m of arXiv 2009.14119; its gamma+ is 0
_EFFECTIVE_BETA = (
    0.999  # of the four in arXiv 1901.05555, the one for hundreds to thousands of clips
)


class ClassificationLoss:
    """The loss of a batch; call it with logits ``(B, C)`` and targets ``(B, C)``.

    - ``cross_entropy``: softmax; needs every label known.
    - ``bce``: binary cross entropy of each class, mean over a clip's known classes.
    - ``focal``: the same two with easy decisions weighed down (Lin et al. 2017, arXiv 1708.02002, equation
      4 without alpha): over the softmax where the activation is one, else over each class's sigmoid.
    - ``asymmetric``: ``bce`` with easy absent classes weighed down and, below a score of 0.05, left out
      (Ridnik et al. 2021, arXiv 2009.14119, equation 7).

    Args:
        name: Which loss.
        activation: How the classifier's scores are made: ``"softmax"`` or ``"sigmoid"``.
        label_smoothing: Share of a target that is spread evenly: over the classes under softmax, over
            present and absent under sigmoid.
        focal_gamma: Exponent of the focal loss.
        weights: Weight of each class, shape ``(C,)``; ``None`` weighs all alike.

    Raises:
        ValueError: If there is no such loss, or it does not fit the activation.

    Example:
        >>> loss = ClassificationLoss("cross_entropy", "softmax")
        >>> round(float(loss(torch.zeros(1, 4), torch.tensor([[1.0, 0, 0, 0]]))), 4)
        1.3863
    """

    def __init__(
        self,
        name: str,
        activation: Activation,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        weights: Tensor | None = None,
    ) -> None:
        if name not in _ACTIVATIONS:
            raise ValueError(f"Unknown loss {name!r}: expected {', '.join(_ACTIVATIONS)}.")
        if activation not in _ACTIVATIONS[name]:
            raise ValueError(
                f"The loss {name!r} is for {' or '.join(_ACTIVATIONS[name])} scores, not {activation}."
            )
        self.name = name
        self.activation = activation
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.weights = weights

    @classmethod
    def from_config(
        cls, training: TrainingConfig, activation: Activation, targets: NDArray[np.float32]
    ) -> "ClassificationLoss":
        """The loss that the settings ask for.

        Args:
            training: ``loss_function`` (resolved), ``label_smoothing``, ``focal_gamma``, ``class_weights``.
            activation: The classifier's.
            targets: Of all training clips, shape ``(N, C)``, NaN where unknown; the weights come from
                them.
        """
        weights = None
        if training.class_weights != "none":
            counts = np.nansum(targets, axis=0)
            weights = torch.from_numpy(class_weights(counts, training.class_weights)).float()
        return cls(
            training.loss_function,
            activation,
            label_smoothing=training.label_smoothing,
            focal_gamma=training.focal_gamma,
            weights=weights,
        )

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        return self.per_clip(logits, targets).mean()

    def per_clip(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each clip's loss, shape ``(B,)``, float32."""
        logits, targets = logits.float(), targets.float()
        known = ~targets.isnan()
        targets = targets.nan_to_num(0.0)
        terms = (
            self._of_one_class(logits, targets)
            if self.activation == "softmax"
            else self._of_any_classes(logits, targets)
        )
        if self.weights is not None:
            terms = terms * self.weights.to(terms)
        if self.activation == "softmax":
            return terms.sum(dim=1)
        return (terms * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)

    def _of_one_class(self, logits: Tensor, targets: Tensor) -> Tensor:
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[1]
        log_probs = F.log_softmax(logits, dim=1)
        terms = -targets * log_probs
        if self.name == "focal":
            terms = terms * (1 - log_probs.exp()) ** self.focal_gamma
        return terms

    def _of_any_classes(self, logits: Tensor, targets: Tensor) -> Tensor:
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        present, absent = -F.logsigmoid(logits), -F.logsigmoid(-logits)
        if self.name == "focal":
            probs = logits.sigmoid()
            present = present * (1 - probs) ** self.focal_gamma
            absent = absent * probs**self.focal_gamma
        if self.name == "asymmetric":
            shifted = (logits.sigmoid() - _ASYMMETRIC_MARGIN).clamp(min=0)
            absent = -torch.log1p(-shifted) * shifted**_ASYMMETRIC_GAMMA
        return targets * present + (1 - targets) * absent


def activation_of(loss_function: str, task: str) -> Activation:
    """What turns logits into scores under a loss.

    Args:
        loss_function: Of the settings, resolved.
        task: ``"single"`` or ``"multi"``.

    Example:
        >>> activation_of("focal", "single"), activation_of("bce", "single")
        ('softmax', 'sigmoid')
    """
    is_softmax = task == "single" and loss_function in ("cross_entropy", "focal")
    return "softmax" if is_softmax else "sigmoid"


def class_weights(counts: Sequence[float] | NDArray[np.float64], how: str) -> NDArray[np.float64]:
    """Weigh classes by how rare they are, such that the mean weight of a label is 1.

    Args:
        counts: Training clips of each class, shape ``(C,)``; a class without any counts as having one.
        how: ``"inverse"`` of the number of clips, or of their ``"effective"`` number
            ``(1 - b**n) / (1 - b)`` with ``b = 0.999`` (Cui et al. 2019, arXiv 1901.05555, equation 2).

    Returns:
        Shape ``(C,)``.

    Raises:
        ValueError: If ``how`` is unknown.

    Example:
        >>> class_weights([30, 10], "inverse").round(2).tolist()
        [0.67, 2.0]
    """
    numbers = np.maximum(np.asarray(counts, np.float64), 1.0)
    if how == "inverse":
        weights = 1 / numbers
    elif how == "effective":
        weights = (1 - _EFFECTIVE_BETA) / (1 - _EFFECTIVE_BETA**numbers)
    else:
        raise ValueError(f"Unknown class weights {how!r}: expected inverse or effective.")
    scaled: NDArray[np.float64] = weights * numbers.sum() / (weights * numbers).sum()
    return scaled


def soft_targets(targets: NDArray[Any], num_classes: int) -> NDArray[np.float32]:
    """Bring targets to the form that a loss gets: ``(N, C)`` float32.

    Args:
        targets: Class ids ``(N,)``, or ``(N, C)`` with 1 present, 0 absent, NaN unknown.
        num_classes: Classes C.

    Raises:
        ValueError: If they have neither form.

    Example:
        >>> soft_targets(np.array([1]), 3).tolist()
        [[0.0, 1.0, 0.0]]
    """
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        rows: NDArray[np.float32] = np.eye(num_classes, dtype=np.float32)[targets]
        return rows
    if targets.ndim == 2 and targets.shape[1] == num_classes:
        return targets.astype(np.float32)
    raise ValueError(
        f"Expected class ids of shape (clips,) or targets of shape (clips, {num_classes}), got "
        f"{targets.dtype} of shape {targets.shape}."
    )
