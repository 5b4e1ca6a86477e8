"""What a checkpoint holds, whatever file it came from, and how it becomes a network.

file -> layout -> [Checkpoint] -> network with its weights

Tensors are under our own keys here. A checkpoint is checked as a whole, against the network that its
architecture describes, before any network is filled: there is no half-loaded model.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from beats_trainer.errors import InvalidCheckpointError
from beats_trainer.model import (
    AcousticTokenizer,
    Activation,
    Architecture,
    AttentivePooling,
    BEATs,
    BEATsClassifier,
    ClassifierHead,
    ClassifierPooling,
    ClassifierTask,
    RandomProjectionTokenizer,
)

__all__ = ["Checkpoint", "Kind", "Uninitialised", "check", "fill", "weights_of"]

Kind = Literal["encoder", "classifier", "tokenizer"]
"""What a checkpoint is of."""
Network = TypeVar("Network", bound=nn.Module)

_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """One model's weights and all that is needed to use them.

    Attributes:
        kind: Which network it is for.
        architecture: The encoder's, with the front end's statistics.
        tensors: The network's state dict: of ``BEATs``, ``AcousticTokenizer`` or ``BEATsClassifier``.
        layout: Where its format comes from, in words.
        labels: A classifier's class names, in the order of its outputs.
        label_codes: The same classes as the file has them, where ``labels`` are readable names in their
            place (AudioSet's ``/m/...``); else ``None``.
        activation: What turns a classifier's logits into probabilities.
        task: Whether a clip has exactly one class (``"single"``) or any number; ``None`` where the file does
            not say, which means what the activation is for.
        pooling: How a classifier pools tokens.
        attentive_pooling: What ``AttentivePooling.for_architecture`` takes besides the architecture, where
            ``pooling`` is ``"attentive"``; else ``None``.
        head: ``ClassifierHead``'s arguments.
        codebook: ``AcousticTokenizer``'s ``num_codes`` and ``code_dim``; with ``projection`` and ``seed`` it is
            a ``RandomProjectionTokenizer``'s.
        thresholds: Score from which on a class counts as heard, per label, or ``None``.
        window_s: Seconds of sound that the classifier was trained on, or ``None``.
        calibration: How a classifier's probabilities were calibrated: plain values, or ``None``. The head
            has absorbed the temperature already.
        provenance: Where it comes from: plain values.
    """

    kind: Kind
    architecture: Architecture
    tensors: dict[str, Tensor]
    layout: str
    labels: list[str] | None = None
    label_codes: list[str] | None = None
    activation: Activation = "softmax"
    task: ClassifierTask | None = None
    pooling: ClassifierPooling = "mean"
    attentive_pooling: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    codebook: dict[str, Any] | None = None
    thresholds: dict[str, float] | None = None
    window_s: float | None = None
    calibration: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def encoder(self) -> "Checkpoint":
        """The same without its classifier head."""
        assert self.kind != "tokenizer"
        if self.kind == "encoder":
            return self
        tensors = {
            key.removeprefix("beats."): tensor
            for key, tensor in self.tensors.items()
            if key.startswith("beats.")
        }
        return Checkpoint(
            "encoder", self.architecture, tensors, self.layout, provenance=self.provenance
        )

    def build_pooling(self) -> AttentivePooling | None:
        """A classifier's learned pooling, without its weights; ``None`` if it has none.

        Raises:
            TypeError, ValueError: If its description does not fit the encoder.
        """
        if self.attentive_pooling is None:
            return None
        return AttentivePooling.for_architecture(self.architecture, **self.attentive_pooling)

    def replace(self, **changes: Any) -> "Checkpoint":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def check(checkpoint: Checkpoint, where: str) -> None:
    """Compare keys and shapes with the network that the architecture describes.

    Reads no weights: tensors may be mapped from a file.

    Raises:
        InvalidCheckpointError: If a tensor is missing, unknown, or of another shape.
    """
    with Uninitialised():
        expected = {
            key: value.shape for key, value in _skeleton(checkpoint, where).state_dict().items()
        }
    tensors = checkpoint.tensors
    missing = [key for key in expected if key not in tensors]
    unknown = [key for key in tensors if key not in expected]
    reshaped = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in tensors and tensors[key].shape != shape
    ]
    faults = [
        f"{len(keys)} {fault}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for fault, keys in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if faults:
        raise InvalidCheckpointError(
            f"{where} ({checkpoint.layout}) does not fit a BEATs {checkpoint.kind} of its own "
            f"architecture. Tensors {'; '.join(faults)}. Nothing was loaded."
        )
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InvalidCheckpointError(
                f"{where}: {key} holds {tensor.dtype}, expected floating-point weights."
            )


class Uninitialised(TorchFunctionMode):
    """Within this context, networks are built without drawing random weights: each must be filled.

    Large tensors are left as they were allocated, untouched, so this costs neither time nor memory. (torch's
    meta device would do, but computing anything on it, even a window, first imports torch's compiler:
    seconds in every new process.)
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave out what only draws numbers."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "randn":
            return torch.empty(*args, **{k: v for k, v in kwargs.items() if k != "generator"})
        if name in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def fill(network: Network, tensors: dict[str, Tensor], where: str) -> Network:
    """Give an uninitialised network its weights, in float32.

    Args:
        network: Built within ``Uninitialised``.
        tensors: Its whole state dict, checked with ``check``. They are copied: the file may go.
        where: The file, for errors.

    Returns:
        The network itself, on the CPU, in evaluation mode.

    Raises:
        InvalidCheckpointError: If a weight is NaN or infinite.
    """
    values = {}
    for key, tensor in tensors.items():
        value = tensor.detach().to(torch.float32, copy=True).contiguous()
        # One NaN or infinity shows in the sum, which is ten times faster than looking at each value.
        if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            raise InvalidCheckpointError(f"{where}: {key} holds NaN or infinite values.")
        values[key] = value
    network.load_state_dict(values, strict=True, assign=True)
    return network.eval()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network that can be stored, by name, on the CPU; not copied if they are there.

    Raises:
        ValueError: If the network still has adapters, whose names no file of ours has.
    """
    weights = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    adapted = [key for key in weights if ".lora_" in key or ".base_layer." in key]
    if adapted:
        raise ValueError(
            f"The encoder still has LoRA adapters ({adapted[0]} and {len(adapted) - 1} more tensors): merge "
            "them first, with beats_trainer.training.lora.merge_lora(encoder)."
        )
    return weights


def _skeleton(checkpoint: Checkpoint, where: str) -> nn.Module:
    try:
        if checkpoint.kind == "tokenizer" and "projection" in (checkpoint.codebook or {}):
            return RandomProjectionTokenizer(checkpoint.architecture, **(checkpoint.codebook or {}))
        if checkpoint.kind == "tokenizer":
            return AcousticTokenizer(checkpoint.architecture, **(checkpoint.codebook or {}))
        beats = BEATs(checkpoint.architecture)
        if checkpoint.kind == "encoder":
            return beats
        return BEATsClassifier(
            beats,
            ClassifierHead(**(checkpoint.head or {})),
            checkpoint.labels or [],
            checkpoint.activation,
            checkpoint.pooling,
            attentive_pooling=checkpoint.build_pooling(),
            task=checkpoint.task,
        )
    except (TypeError, ValueError) as error:
        raise InvalidCheckpointError(f"{where}: {error}") from error
