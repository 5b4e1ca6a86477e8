"""Which parameter learns how fast: optimiser, layer-wise learning rates, schedule by step.

network, TrainingConfig -> [parameter groups -> optimiser -> schedule] -> fit | cached_head

Layer-wise rates are true ones, per parameter group. The original code scales gradients per layer instead,
which Adam's normalisation cancels.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from beats_trainer.config import TrainingConfig, settled
from beats_trainer.errors import ConfigError

__all__ = ["decays", "layer_depth", "make_optimizer", "make_scheduler", "parameter_groups"]

_BETAS = (0.9, 0.98)  # as BEATs and OpenBEATs are trained and fine-tuned
_STEP_EPOCHS, _STEP_FACTOR = 30, 0.1
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def layer_depth(name: str, num_layers: int, norm_first: bool = False) -> int:
    """Tell how far from the input a parameter of a classifier is.

    Args:
        name: Its name in `BEATsClassifier`.
        num_layers: Encoder layers L.
        norm_first: Whether the encoder's norm follows the layers (pre-norm) or precedes them.

    Returns:
        0 for all that comes before the first layer (patches, projection, position embeddings, input
        norm), ``i`` for layer ``i`` of ``1..L``, and ``L + 1`` for the head.

    Example:
        >>> layer_depth("beats.encoder.layers.0.fc1.weight", 12)
        1
        >>> layer_depth("head.layers.1.weight", 12)
        13
    """
    if not name.startswith("beats."):
        return num_layers + 1
    if found := _LAYER.search(name):
        return int(found.group(1)) + 1
    if norm_first and name.startswith("beats.encoder.layer_norm."):
        return num_layers
    return 0


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    num_layers: int,
    norm_first: bool = False,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of one learning rate and weight decay each.

    Args:
        network: A `BEATsClassifier`, or any module with its parameter names.
        learning_rate: Of the head.
        weight_decay: Of matrices and kernels; biases, norms, gates and gains have none.
        layer_decay: Factor per layer below the head: depth ``d`` learns at
            ``learning_rate * layer_decay ** (L + 1 - d)``.
        num_layers: Encoder layers L.
        norm_first: As for `layer_depth`.

    Returns:
        Groups for a torch optimiser, each with a ``name``, from the input to the head.
    """
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            depth = layer_depth(name, num_layers, norm_first)
            members[depth, decays(name, parameter)].append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (num_layers + 1 - depth),
            "weight_decay": weight_decay if is_decayed else 0.0,
            "name": f"depth_{depth}{'' if is_decayed else '_no_decay'}",
        }
        for (depth, is_decayed), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has weight decay: matrices and kernels do; biases, norms, gates and gains do not.

    Args:
        name: Its name in the network.
        parameter: The parameter.
    """
    if parameter.ndim < 2:  # biases and norms
        return False
    # Of more dimensions, but still a gate, a bias and a gain (weight norm's magnitude).
    return not name.endswith(("grep_a", "relative_attention_bias.weight", "original0"))


def make_optimizer(
    groups: list[dict[str, Any]], training: TrainingConfig, learning_rate: float
) -> Optimizer:
    """Build the optimiser that the config names.

    Args:
        groups: From `parameter_groups`.
        training: Its ``optimizer`` is read.
        learning_rate: For groups that bring none.

    Raises:
        ConfigError: If the optimiser is unknown.
    """
    if training.optimizer == "adamw":
        return AdamW(groups, lr=learning_rate, betas=_BETAS)
    if training.optimizer == "adam":
        return Adam(groups, lr=learning_rate, betas=_BETAS)
    if training.optimizer == "sgd":
        return SGD(groups, lr=learning_rate, momentum=0.9)
    raise ConfigError(f"training.optimizer must be adamw, adam or sgd, not {training.optimizer!r}.")


def make_scheduler(
    optimizer: Optimizer, training: TrainingConfig, num_steps: int, steps_per_epoch: int
) -> LambdaLR:
    """Build the schedule that the config names; call its ``step()`` after every optimiser step.

    The rate rises linearly over the first ``warmup_ratio`` of all steps, and then falls to zero along a
    cosine, to a tenth every 30 epochs, or not at all.

    Args:
        optimizer: Its groups keep their ratios to one another.
        training: ``scheduler`` and ``warmup_ratio`` are read.
        num_steps: Optimiser steps of the whole run.
        steps_per_epoch: Optimiser steps of one epoch.

    Raises:
        ConfigError: If the scheduler is unknown.
    """
    return LambdaLR(optimizer, _rate_factor(training, num_steps, steps_per_epoch))


def _rate_factor(
    training: TrainingConfig, num_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    num_warmup = round(settled(training.warmup_ratio) * num_steps)

    def after_warmup(step: int) -> float:
        if training.scheduler in (None, "constant"):
            return 1.0
        if training.scheduler == "step":
            return float(_STEP_FACTOR ** (step // steps_per_epoch // _STEP_EPOCHS))
        if training.scheduler == "cosine":
            progress = (step - num_warmup) / max(1, num_steps - num_warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        raise ConfigError(
            "training.scheduler must be cosine, step, constant or null, "
            f"not {training.scheduler!r}."
        )

    def factor(step: int) -> float:
        # The first step already learns: (step + 1), for a rate of zero would waste it.
        return (step + 1) / num_warmup if step < num_warmup else after_warmup(step)

    return factor
