"""Microsoft's layout: ``{"cfg": dict, "model": state_dict}``, with ``label_dict`` if fine-tuned.

file -> [Microsoft's keys -> ours] -> Checkpoint -> network -> [to_microsoft]

Of microsoft/unilm ``beats`` at 768a3c8 (MIT). Its names differ from ours in two places: the position
convolution's ``weight_g`` and ``weight_v``, and the relative-position table, which appears in every layer
there, with equal content, and once here. Exporting gives back exactly the tensors that were loaded.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from beats_trainer.checkpoints.audioset_labels import name_labels
from beats_trainer.checkpoints.content import Checkpoint, weights_of
from beats_trainer.checkpoints.shapes import complete_architecture
from beats_trainer.constants import FBANK_MEAN, FBANK_STD
from beats_trainer.errors import InvalidCheckpointError
from beats_trainer.model import AcousticTokenizer, Architecture, BEATs, BEATsClassifier

__all__ = [
    "classifier_parts",
    "interpret",
    "read_microsoft",
    "rename_to_ours",
    "to_microsoft",
]

logger = logging.getLogger(__name__)

_POS_CONV = "encoder.pos_conv.0."
_TO_OURS = {
    f"{_POS_CONV}weight_g": f"{_POS_CONV}parametrizations.weight.original0",
    f"{_POS_CONV}weight_v": f"{_POS_CONV}parametrizations.weight.original1",
}
_TO_MICROSOFT = {ours: theirs for theirs, ours in _TO_OURS.items()}
_SHARED_BIAS = "encoder.relative_attention_bias.weight"
_LAYER_BIAS = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.weight")


def read_microsoft(content: Mapping[str, Any], where: str) -> Checkpoint:
    """Interpret the content of a Microsoft file: pre-trained, fine-tuned or tokenizer.

    Raises:
        InvalidCheckpointError: If it is none of these.
    """
    cfg, model = content["cfg"], content["model"]
    architecture, assumed = complete_architecture(model, cfg, where)
    return interpret(
        model, cfg, architecture, assumed, content.get("label_dict"), where, "Microsoft"
    )


def interpret(
    model: Mapping[str, Tensor],
    cfg: Mapping[str, Any],
    architecture: Architecture,
    assumed: dict[str, Any],
    label_dict: Any,
    where: str,
    layout: str,
) -> Checkpoint:
    """Tell encoder, classifier and tokenizer apart by their tensors."""
    provenance = {"layout": layout, **({"assumed": assumed} if assumed else {})}
    tensors = rename_to_ours(model, where)
    if any(key.startswith("quantize") for key in model):
        codebook = _codebook(model, cfg, where)
        return Checkpoint(
            "tokenizer", architecture, tensors, layout, codebook=codebook, provenance=provenance
        )
    if "predictor.weight" not in model and "predictor.bias" not in model:
        if cfg.get("finetuned_model"):
            raise InvalidCheckpointError(
                f"{where}: the cfg says finetuned_model, but predictor.weight is missing."
            )
        return Checkpoint("encoder", architecture, tensors, layout, provenance=provenance)
    weight = model.get("predictor.weight")
    bias = model.get("predictor.bias")
    parts, head = classifier_parts(
        tensors, weight, bias, "predictor", float(cfg.get("predictor_dropout", 0.0)), where
    )
    num_classes = int(head["num_classes"])
    if cfg.get("finetuned_model") and cfg.get("predictor_class", num_classes) != num_classes:
        raise InvalidCheckpointError(
            f"{where}: cfg says {cfg['predictor_class']} classes, the predictor has {num_classes}."
        )
    labels, codes = name_labels(_labels(label_dict, num_classes, where))
    return Checkpoint(
        "classifier",
        architecture,
        parts,
        layout,
        labels=labels,
        label_codes=codes,
        activation="sigmoid",  # the original returns sigmoid probabilities, always
        pooling="mean",
        head=head,
        provenance=provenance,
    )


def classifier_parts(
    tensors: dict[str, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    name: str,
    dropout: float,
    where: str,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Join encoder tensors (ours) and a linear head into ``BEATsClassifier``'s state dict.

    Returns:
        The tensors, and ``ClassifierHead``'s arguments.
    """
    if weight is None or bias is None or weight.ndim != 2:
        shape = None if weight is None else tuple(weight.shape)
        raise InvalidCheckpointError(
            f"{where}: expected {name}.weight of shape (classes, width) and {name}.bias, found "
            f"weight {shape}, bias {None if bias is None else tuple(bias.shape)}."
        )
    parts = {
        f"beats.{key}": tensor
        for key, tensor in tensors.items()
        if key not in (f"{name}.weight", f"{name}.bias")
    }
    parts |= {"head.layers.1.weight": weight, "head.layers.1.bias": bias}
    head = {
        "embedding_dim": weight.shape[1],
        "num_classes": weight.shape[0],
        "hidden_dims": [],
        "activation": "relu",
        "dropout": dropout,
    }
    return parts, head


def rename_to_ours(model: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Give tensors our keys; the relative-position tables must be equal, and become one.

    Raises:
        InvalidCheckpointError: If the layers' tables differ.
    """
    ours: dict[str, Tensor] = {}
    for key, tensor in model.items():
        if not _LAYER_BIAS.fullmatch(key):
            ours[_TO_OURS.get(key, key)] = tensor
        elif _SHARED_BIAS not in ours:
            ours[_SHARED_BIAS] = tensor
        elif not torch.equal(ours[_SHARED_BIAS], tensor):
            raise InvalidCheckpointError(
                f"{where}: {key} differs from the first layer's. BEATs shares one table of relative "
                "positions among all layers."
            )
    return ours


def to_microsoft(network: BEATs | BEATsClassifier) -> dict[str, Any]:
    """Export to Microsoft's layout; the result loads in the original code, also after ``torch.save``.

    Args:
        network: An encoder, a tokenizer, or a classifier with a linear head on mean-pooled tokens.

    Returns:
        ``{"cfg", "model"}``, for a classifier with ``"label_dict"``: its ``label_codes``, if it has them,
        else its labels. Tensors are on the CPU, copied, and bit-identical to the network's.

    Raises:
        ValueError: If the original has no such classifier, or the network still has adapters.
    """
    beats = network.beats if isinstance(network, BEATsClassifier) else network
    state = {key: value.clone() for key, value in weights_of(beats).items()}
    model: dict[str, Tensor] = {}
    shared_bias = state.pop(_SHARED_BIAS, None)
    for key, tensor in state.items():
        model[_TO_MICROSOFT.get(key, key)] = tensor
    if shared_bias is not None:
        for layer in range(beats.architecture.encoder_layers):
            model[f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight"] = shared_bias
    cfg = beats.architecture.to_dict()
    mean, std = cfg.pop("fbank_mean"), cfg.pop("fbank_std")
    if (mean, std) != (FBANK_MEAN, FBANK_STD):
        cfg |= {"fbank_mean": mean, "fbank_std": std}
        logger.warning(
            "This model expects other filterbank statistics than the original's code assumes: call its "
            "extract_features with fbank_mean=%s, fbank_std=%s.",
            mean,
            std,
        )
    if isinstance(network, AcousticTokenizer):
        cfg.pop("layer_wise_gradient_decay_ratio")  # not a setting of the original's tokenizers
        cfg |= {"quant_n": network.num_codes, "quant_dim": network.code_dim}
    if not isinstance(network, BEATsClassifier):
        return {"cfg": cfg, "model": model}

    head = network.head
    if head.hidden_dims or network.pooling != "mean":
        pooling = "learned (attentive)" if network.pooling == "attentive" else network.pooling
        raise ValueError(
            "The original's classifier is one linear layer on mean-pooled tokens; this one has hidden "
            f"layers {list(head.hidden_dims)} and pooling {pooling!r}. Export its encoder "
            "(model.beats) instead, or use save_pretrained."
        )
    if network.activation != "sigmoid":
        logger.warning(
            "The original's code applies a sigmoid; this classifier was trained with %s. The order of "
            "its scores will be the same, their values will not.",
            network.activation,
        )
    linear = head.last_linear
    model["predictor.weight"] = linear.weight.detach().cpu().clone()
    model["predictor.bias"] = linear.bias.detach().cpu().clone()
    cfg |= {
        "finetuned_model": True,
        "predictor_class": head.num_classes,
        "predictor_dropout": head.dropout,
    }
    labels = getattr(network, "label_codes", None) or network.labels
    return {"cfg": cfg, "model": model, "label_dict": dict(enumerate(labels))}


def _codebook(model: Mapping[str, Tensor], cfg: Mapping[str, Any], where: str) -> dict[str, int]:
    vectors = model.get("quantize.embedding.weight")
    if vectors is None or vectors.ndim != 2:
        raise InvalidCheckpointError(
            f"{where}: a tokenizer needs quantize.embedding.weight of shape (codes, width)."
        )
    codebook = {"num_codes": vectors.shape[0], "code_dim": vectors.shape[1]}
    for key, name in (("quant_n", "num_codes"), ("quant_dim", "code_dim")):
        if cfg.get(key, codebook[name]) != codebook[name]:
            raise InvalidCheckpointError(
                f"{where}: cfg says {key}={cfg[key]}, the codebook has {codebook[name]}."
            )
    initted = model.get("quantize.embedding.initted")
    if initted is not None and not bool(initted.bool().all()):
        raise InvalidCheckpointError(
            f"{where}: this tokenizer was never trained (its codebook is not initialised)."
        )
    return codebook


def _labels(label_dict: Any, num_classes: int, where: str) -> list[str]:
    if label_dict is None:
        logger.warning(
            "%s is fine-tuned but names no classes: they are called '0' to '%d'.",
            where,
            num_classes - 1,
        )
        return [str(index) for index in range(num_classes)]
    try:
        by_index = {int(index): str(label) for index, label in dict(label_dict).items()}
    except (TypeError, ValueError) as error:
        raise InvalidCheckpointError(
            f"{where}: label_dict must map class numbers to names, not {type(label_dict).__name__}."
        ) from error
    if sorted(by_index) != list(range(num_classes)):
        raise InvalidCheckpointError(
            f"{where}: label_dict names {len(by_index)} classes, the predictor has {num_classes}."
        )
    return [by_index[index] for index in range(num_classes)]
