"""ESPnet's own layout: a bare state dict (``.pth``) with its ``config.yaml`` in the same folder.

file + config.yaml -> [prefixes off, head and labels found] -> Checkpoint -> network

Encoder keys begin with ``encoder.``, a classifier's head is ``decoder.linear_out`` (espnet2/cls), and a
DeepSpeed checkpoint wraps it all in ``module``. A pre-training checkpoint's label predictor (``decoder.*``)
is left out, and said so. The architecture is not in the file: see `shapes.py` for how it is completed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from beats_trainer.checkpoints.audioset_labels import name_labels
from beats_trainer.checkpoints.content import Checkpoint
from beats_trainer.checkpoints.microsoft import classifier_parts, rename_to_ours
from beats_trainer.checkpoints.openbeats import drop_pad_kernels
from beats_trainer.checkpoints.shapes import complete_architecture
from beats_trainer.errors import CheckpointNotFoundError, InvalidCheckpointError
from beats_trainer.model import Activation, PoolingMode

__all__ = ["read_espnet"]

logger = logging.getLogger(__name__)

_HEAD = "decoder.linear_out"
_ACTIVATIONS: dict[str, Activation] = {"multi-label": "sigmoid", "multi-class": "softmax"}
_POOLINGS: dict[str, PoolingMode] = {"mean": "mean", "max": "max", "CLS": "first"}


def read_espnet(tensors: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """Interpret a state dict whose encoder keys begin with ``encoder.``.

    Args:
        tensors: The state dict, out of its ``module`` if it had one.
        file: Where it lies; ``config.yaml`` is looked for beside it.

    Raises:
        CheckpointNotFoundError: If a classifier's ``config.yaml``, which names its classes, is missing.
        InvalidCheckpointError: If tensors and settings do not fit.
    """
    where = str(file)
    settings = _read_settings(file.with_name("config.yaml"))
    encoder_conf = _mapping(settings, "encoder_conf", where)
    cfg: dict[str, Any] | None = None
    if settings is not None:
        cfg = dict(_mapping(encoder_conf, "beats_config", where))
        for key in ("fbank_mean", "fbank_std"):
            # The encoder's own argument is what ESPnet uses; inside beats_config it only stores them.
            if encoder_conf.get(key) is not None:
                cfg[key] = encoder_conf[key]
    encoder = {
        key.removeprefix("encoder."): tensor
        for key, tensor in tensors.items()
        if key.startswith("encoder.")
    }
    others = {key: tensor for key, tensor in tensors.items() if not key.startswith("encoder.")}
    encoder = drop_pad_kernels(encoder, where)
    architecture, assumed = complete_architecture(
        encoder, cfg, where, extends_released=bool(encoder_conf.get("beats_ckpt_path"))
    )
    ours = rename_to_ours(encoder, where)
    provenance = {"layout": "ESPnet", **({"assumed": assumed} if assumed else {})}
    if f"{_HEAD}.weight" not in others:
        left_out = [key for key in others if key.startswith("decoder.")]
        _require_nothing_else([key for key in others if key not in left_out], where)
        if left_out:
            logger.info("%s: left out the label predictor (%d tensors)", where, len(left_out))
        return Checkpoint("encoder", architecture, ours, "ESPnet", provenance=provenance)

    _require_nothing_else(
        [key for key in others if key not in (f"{_HEAD}.weight", f"{_HEAD}.bias")], where
    )
    if settings is None:
        raise CheckpointNotFoundError(
            f"{where} is a classifier of ESPnet, whose class names are in its config.yaml. There is none "
            f"in {file.parent}: put it there."
        )
    decoder_conf = _mapping(settings, "decoder_conf", where)
    parts, head = classifier_parts(
        ours,
        others[f"{_HEAD}.weight"],
        others.get(f"{_HEAD}.bias"),
        _HEAD,
        float(decoder_conf.get("dropout", 0.0)),
        where,
    )
    kind = _mapping(settings, "model_conf", where).get("classification_type", "multi-class")
    pooling = decoder_conf.get("pooling", "mean")
    if kind not in _ACTIVATIONS or pooling not in _POOLINGS:
        raise InvalidCheckpointError(
            f"{where}: config.yaml says classification_type {kind!r} and pooling {pooling!r}; expected "
            f"one of {', '.join(_ACTIVATIONS)} and of {', '.join(_POOLINGS)}."
        )
    labels, codes = name_labels(
        _labels(settings.get("token_list"), int(head["num_classes"]), where)
    )
    return Checkpoint(
        "classifier",
        architecture,
        parts,
        "ESPnet",
        labels=labels,
        label_codes=codes,
        activation=_ACTIVATIONS[kind],
        pooling=_POOLINGS[pooling],
        head=head,
        provenance=provenance,
    )


def _read_settings(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidCheckpointError(f"{file} is not readable as plain YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InvalidCheckpointError(f"{file} should hold settings by name.")
    return settings


def _mapping(settings: Mapping[str, Any] | None, key: str, where: str) -> dict[str, Any]:
    value = (settings or {}).get(key) or {}
    if not isinstance(value, dict):
        raise InvalidCheckpointError(f"{where}: config.yaml's {key} should hold settings by name.")
    return value


def _require_nothing_else(keys: list[str], where: str) -> None:
    if keys:
        raise InvalidCheckpointError(
            f"{where}: {len(keys)} tensors belong neither to a BEATs encoder nor to ESPnet's linear "
            f"classifier: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}."
        )


def _labels(tokens: Any, num_classes: int, where: str) -> list[str]:
    """Class names in order; ESPnet may list special symbols after them, which are no classes."""
    if not isinstance(tokens, list):
        raise InvalidCheckpointError(f"{where}: config.yaml has no token_list, the class names.")
    labels = [str(token) for token in tokens]
    while len(labels) > num_classes and labels[-1].startswith("<") and labels[-1].endswith(">"):
        labels.pop()
    if len(labels) != num_classes:
        raise InvalidCheckpointError(
            f"{where}: config.yaml's token_list names {len(labels)} classes, the head has {num_classes}."
        )
    return labels
