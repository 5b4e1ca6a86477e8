"""A BEATs encoder with a classifier head: waveforms in, one score per class out.

waveforms -> fbank -> encoder -> pooling -> [head] -> logits -> activation -> probabilities

Shapes in this file: B clips, S samples, D width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from beats_trainer.model.beats import BEATs, BEATsOutput
from beats_trainer.model.heads import ClassifierHead
from beats_trainer.model.pooling import (
    POOLING_MODES,
    AttentivePooling,
    ClassifierPooling,
    PoolingMode,
    pool_tokens,
    pooled_width,
)

__all__ = [
    "Activation",
    "BEATsClassifier",
    "ClassifierOutput",
    "ClassifierTask",
    "apply_activation",
]

Activation = Literal["softmax", "sigmoid"]
"""What turns logits into scores: together, so that they sum to one, or each class for itself."""

ClassifierTask = Literal["single", "multi"]
"""What a clip has: exactly one class, or any number of them."""


@dataclass(frozen=True)
class ClassifierOutput:
    """What the classifier returns.

    Attributes:
        logits: Class scores before the activation, shape ``(B, C)``.
        embeddings: Pooled tokens that the head read, shape ``(B, D)``.
        activation: What turns logits into probabilities.
    """

    logits: Tensor
    embeddings: Tensor
    activation: Activation

    @property
    def probs(self) -> Tensor:
        """Class probabilities, shape ``(B, C)``, float32."""
        return apply_activation(self.logits, self.activation)


def apply_activation(logits: Tensor, activation: Activation) -> Tensor:
    """Turn logits ``(B, C)`` into probabilities: they sum to one under ``"softmax"`` only.

    In float32, or in float64 where the logits are.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.softmax(dim=-1) if activation == "softmax" else logits.sigmoid()


class BEATsClassifier(nn.Module):
    """Encoder, pooling, head, and what its outputs mean.

    Args:
        beats: The encoder.
        head: Reads pooled tokens.
        labels: One name per class, in the order of the logits.
        activation: ``"softmax"`` where exactly one class is true, ``"sigmoid"`` where any may be.
        pooling: How tokens become the embedding that the head reads.
        attentive_pooling: The module that does so; with ``pooling="attentive"`` and only then.
        task: ``"single"`` where a clip has exactly one class, ``"multi"`` where it has any number; ``None``
            takes what the activation is for. (A head that was trained class by class, with
            ``"sigmoid"``, may still be for clips of one class.)

    Attributes:
        is_backbone_frozen: Whether the encoder is kept as it is, see `freeze_backbone`.

    Raises:
        ValueError: If labels, head, pooling and encoder do not fit, or a label appears twice.
    """

    def __init__(
        self,
        beats: BEATs,
        head: ClassifierHead,
        labels: Sequence[str],
        activation: Activation = "softmax",
        pooling: ClassifierPooling = "mean",
        *,
        attentive_pooling: AttentivePooling | None = None,
        task: ClassifierTask | None = None,
    ) -> None:
        super().__init__()
        if len(labels) != head.num_classes:
            raise ValueError(f"{len(labels)} labels for a head of {head.num_classes} classes.")
        if len(set(labels)) != len(labels):
            raise ValueError("A label appears twice: each class needs a name of its own.")
        if activation not in get_args(Activation):
            raise ValueError(f"Unknown activation {activation!r}: expected softmax or sigmoid.")
        if task not in (None, *get_args(ClassifierTask)):
            raise ValueError(f"Unknown task {task!r}: expected single or multi.")
        if task == "multi" and activation == "softmax":
            raise ValueError(
                "Under softmax the classes exclude each other: task='multi' needs activation='sigmoid'."
            )
        if pooling not in (*POOLING_MODES, "attentive"):
            raise ValueError(
                f"Unknown pooling {pooling!r}: expected {', '.join(POOLING_MODES)} or attentive."
            )
        if (pooling == "attentive") != (attentive_pooling is not None):
            raise ValueError(
                "pooling='attentive' and attentive_pooling=AttentivePooling(...) go together, got "
                f"pooling={pooling!r} {'without' if attentive_pooling is None else 'with'} such a module."
            )
        if attentive_pooling is not None:
            attentive_pooling.require_fit(beats.architecture)
        width = pooled_width(beats.architecture, pooling)
        if head.embedding_dim != width:
            raise ValueError(
                f"The head reads {head.embedding_dim} values, the encoder gives {width} with pooling={pooling!r}."
            )
        self.beats = beats
        self.head = head
        self.labels = list(labels)
        self.activation: Activation = activation
        self.task: ClassifierTask = task or ("single" if activation == "softmax" else "multi")
        self.pooling: ClassifierPooling = pooling
        self.attentive_pooling = attentive_pooling
        self.is_backbone_frozen = False

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> ClassifierOutput:
        """Score a batch of waveforms; arguments as ``BEATs.forward``.

        The original's fine-tuned model averages per-token logits; its predictor is linear, so this is
        the same number.
        """
        output = self.beats(waveforms, lengths, output_layers=self.attentive_pooling is not None)
        embeddings = self.pool(output)
        return ClassifierOutput(self.head(embeddings), embeddings, self.activation)

    def pool(self, output: BEATsOutput) -> Tensor:
        """Turn the encoder's output into what the head reads, shape ``(B, D)``.

        Args:
            output: With its layers, if ``pooling`` is ``"attentive"``.
        """
        pooling = self.clip_pooling
        if isinstance(pooling, AttentivePooling):
            assert output.layers is not None
            embeddings: Tensor = pooling(output.layers, output.token_lengths)
            return embeddings
        patches = self.beats.architecture.patches_per_step
        return pool_tokens(output.tokens, output.token_lengths, pooling, patches)

    @property
    def clip_pooling(self) -> PoolingMode | AttentivePooling:
        """How tokens are pooled, as ``embeddings.encode.encode_clips`` takes it."""
        if self.attentive_pooling is not None:
            return self.attentive_pooling
        assert self.pooling != "attentive"
        return self.pooling

    def freeze_backbone(self) -> Self:
        """Keep the encoder as it is: without gradients, and in eval mode whatever `train` is told.

        Its dropout and layer drop are then off, so that head and pooling are trained on what they will
        read later.
        """
        self.beats.requires_grad_(False)
        self.beats.eval()
        self.is_backbone_frozen = True
        return self

    def unfreeze_backbone(self) -> Self:
        """Train the encoder too from now on: the reverse of `freeze_backbone`."""
        self.beats.requires_grad_(True)
        self.beats.train(self.training)
        self.is_backbone_frozen = False
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and layer drop on or off; a frozen encoder's stay off."""
        super().train(mode)
        if self.is_backbone_frozen:
            self.beats.eval()
        return self
