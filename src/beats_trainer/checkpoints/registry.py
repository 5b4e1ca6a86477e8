"""The checkpoints that have a name: where each lies, what it is, and whose it is.

[name -> record] -> download -> read -> network

A record names a source only where the exact file is known to lie there. Where none is known, ``hf_repo``
is ``None`` and ``how_to_get`` says which file to put where; ``sha256`` then tells whether it is the right
one. Sizes are in megabytes of a million bytes: four per parameter, and the file's own overhead.

Sources. Names and tables: microsoft/unilm ``beats/README.md`` (its links open in a browser only). Sizes and
sha256 of Microsoft's files: as published by several independent users of the originals, and equal among
them and to the hub's own checksums where a mirror exists. OpenBEATs: the repositories of arXiv 2507.14129.
"""

import copy
import json
from pathlib import Path
from typing import Any

from beats_trainer.errors import UnknownCheckpointError

__all__ = [
    "AUTO",
    "BUNDLED",
    "DEFAULT_MODEL",
    "SMALL_MODEL",
    "get_model_info",
    "list_available_models",
]

DEFAULT_MODEL = "BEATs_iter3_plus_AS2M"
"""What is loaded where no model is named."""

SMALL_MODEL = "beats_nano"
"""What comes with the package."""

AUTO = "auto"
"""Says: the first of the large models that is on this machine, else ``SMALL_MODEL``."""

BUNDLED = Path(__file__).parent / "bundled"
"""Model folders that come with the package, by name."""

_BEATS_PAPER = "https://arxiv.org/abs/2212.09058"
_OPENBEATS_PAPER = "https://arxiv.org/abs/2507.14129"
_BEATS_PAGE = "https://github.com/microsoft/unilm/tree/master/beats"
_AUDIOSET_LABELS = (
    "527 AudioSet classes by name (their codes, /m/..., are label_codes), in the order of the file's own "
    "label_dict, which is not the order of AudioSet's class_labels_indices.csv"
)
_SEVEN_MILLION = "work/nvme/bbjs/sbharadwaj/7Msounds/exp"
_RECIPE = "tune_lr5e-4_warmup40000_bins1600000_totalsteps400000"

_BASE_BYTES = 361_499_833
_FINETUNED_BYTES = 363_145_291

# Microsoft's files with their sha256. The tokenizers' are not known.
_MICROSOFT_SHA256 = {
    "BEATs_iter1": "b5f4cc10bcbff63a437c695f33389e6411513b3f7d5cdae8fb62b5005f4a1fcd",
    "BEATs_iter2": "81a23e00aa4878d7e8627ded87ea697fb347c8ceffed21223e0398ed0fa34ad8",
    "BEATs_iter3": "8d1b234032a9ccff353612dc6c20982346dc2968b205b79d97303eb5e77bfb34",
    "BEATs_iter3_plus_AS20K": "8008b126bb5e8ab08912c60c58847ed676d32e64a5864c922356b7c2522fb2f8",
    "BEATs_iter3_plus_AS2M": "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34",
    "BEATs_iter1_finetuned_on_AS2M_cpt1": "e0e739e3670bfbb93c51adefb1d02981621397addc979d392aefd3dc53c22cab",
    "BEATs_iter1_finetuned_on_AS2M_cpt2": "2f3a7b65ab232c4f75570d4d17e21e5ebc34b3c40fe1a074f27d199e81354960",
    "BEATs_iter2_finetuned_on_AS2M_cpt1": "3a120810c0f6dbfd50a7f48dc03ed077971a50cb2dbb7999695d5c700d03da45",
    "BEATs_iter2_finetuned_on_AS2M_cpt2": "08363b9b5eabeb47b0879c84145b27c603e7e50c116a633fa5b98ade119fc354",
    "BEATs_iter3_finetuned_on_AS2M_cpt1": "379369a41d0b3749f746cdcea8036de506cb3aedecce84de7db0a75fda2a4fe7",
    "BEATs_iter3_finetuned_on_AS2M_cpt2": "08374f1cbd49143900b351bc81cd307de386a11f8e609eb3862634e992068b55",
    "BEATs_iter3_plus_AS20K_finetuned_on_AS2M_cpt1": "2c366278dcf835e9bdefad4f7147b0edba4b940c59146fd05dc49a401fa82ff8",
    "BEATs_iter3_plus_AS20K_finetuned_on_AS2M_cpt2": "6d28b32bfa7bcaaf84ab834186581c2a360c6669e372e808d054cf0ef4d5c2d2",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt1": "7f9362028ac6e5c049e8dc314d87e90e4f82a15a8e472deb56af55d7f9b34d6a",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2": "e5815275a04b6885e7b8af63d120b29bffae2cd2225cf4915e1ec6d819d3022c",
}

# Mirrors on the hub: (repository, type, path in it). None of them is Microsoft's own.
_MICROSOFT_MIRRORS = {
    "BEATs_iter3": ("lpepino/beats_ckpts", "model", "BEATs_iter3.pt"),
    "BEATs_iter3_plus_AS20K": ("lpepino/beats_ckpts", "model", "BEATs_iter3_plus_AS20K.pt"),
    "BEATs_iter3_plus_AS2M": ("Bencr/beats-checkpoints", "dataset", "BEATs_iter3_plus_AS2M.pt"),
    "BEATs_iter3_finetuned_on_AS2M_cpt1": (
        "lpepino/beats_ckpts",
        "model",
        "BEATs_iter3_finetuned_on_AS2M_cpt1.pt",
    ),
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2": (
        "WeiChihChen/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
        "model",
        "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
    ),
    "Tokenizer_iter3": (
        "Hoar012/lv_checkpoints",
        "model",
        "audio_encoder/BEATs/Tokenizer_iter3.pt",
    ),
}


def _microsoft(name: str, kind: str, description: str) -> dict[str, Any]:
    repo, repo_type, path = _MICROSOFT_MIRRORS.get(name, (None, None, None))
    filename = f"{name}.pt"
    size_bytes = {"encoder": _BASE_BYTES, "classifier": _FINETUNED_BYTES}.get(kind)
    return {
        "hf_repo": repo,
        "repo_type": repo_type,
        "hf_filename": path,
        "filename": filename,
        "description": description,
        # Tokenizers: 91,624,560 parameters of four bytes; the exact file size is not known.
        "size_mb": round(size_bytes / 1e6, 1) if size_bytes else 366.7,
        "size_bytes": size_bytes,
        "sha256": _MICROSOFT_SHA256.get(name),
        "licence": "MIT",
        "paper": _BEATS_PAPER,
        "kind": kind,
        "labels": _AUDIOSET_LABELS if kind == "classifier" else None,
        "num_classes": 527 if kind == "classifier" else None,
        "how_to_get": (
            f"Download {filename} with a browser from the table at {_BEATS_PAGE} and put it, under "
            "this name, into ./checkpoints"
        ),
    }


def _openbeats(iteration: int, size: str = "base") -> dict[str, Any]:
    repo = f"shikhar7ssu/OpenBEATs-{size.capitalize()}-i{iteration}"
    run = {1: "beats_iter0_base", 2: "beats_iter1_base", 3: "beats_iter2_base2"}[iteration]
    filename = (
        f"openbeats_i{iteration}.pt" if size == "base" else f"openbeats_large_i{iteration}.pt"
    )
    return {
        "hf_repo": repo,
        "repo_type": "model",
        # The large models' paths are not known: the repository is listed, and must hold one checkpoint.
        "hf_filename": (
            f"{_SEVEN_MILLION}/{run}.{_RECIPE}/epoch_latest.pt" if size == "base" else None
        ),
        "filename": filename,
        "description": (
            f"OpenBEATs {size}, iteration {iteration}: pre-trained on about 20,000 hours of "
            "environmental sound, music and bioacoustics"
        ),
        "size_mb": 361.5 if size == "base" else 1245.7,
        "size_bytes": None,
        "sha256": None,
        "licence": f"as the model card of {repo} says",
        "paper": _OPENBEATS_PAPER,
        "kind": "encoder",
        "labels": None,
        "num_classes": None,
        "how_to_get": (
            f"Download the checkpoint of https://huggingface.co/{repo} and put it as {filename} "
            "into ./checkpoints"
        ),
    }


def _records() -> dict[str, dict[str, Any]]:
    records = {
        DEFAULT_MODEL: _microsoft(
            DEFAULT_MODEL,
            "encoder",
            "BEATs iteration 3+, pre-trained on AudioSet-2M with a tokenizer distilled from a model "
            "that was fine-tuned on AudioSet-2M",
        ),
        "openbeats": _openbeats(3),
        "openbeats_i1": _openbeats(1),
        "openbeats_i2": _openbeats(2),
        "openbeats_i3": _openbeats(3),
    }
    records["openbeats"]["description"] += " (the same file as openbeats_i3)"
    stages = {
        "BEATs_iter1": "iteration 1, random-projection tokenizer",
        "BEATs_iter2": "iteration 2",
        "BEATs_iter3": "iteration 3",
        "BEATs_iter3_plus_AS20K": "iteration 3+, tokenizer distilled from a model fine-tuned on "
        "AudioSet-20K",
        "BEATs_iter3_plus_AS2M": "iteration 3+, tokenizer distilled from a model fine-tuned on "
        "AudioSet-2M",
    }
    for name, stage in stages.items():
        if name not in records:
            records[name] = _microsoft(
                name, "encoder", f"BEATs {stage}; pre-trained on AudioSet-2M"
            )
    for name, stage in stages.items():
        for checkpoint in (1, 2):
            finetuned = f"{name}_finetuned_on_AS2M_cpt{checkpoint}"
            records[finetuned] = _microsoft(
                finetuned,
                "classifier",
                f"BEATs {stage}; fine-tuned on AudioSet-2M, checkpoint {checkpoint} of 2",
            )
    for stage in ("iter2", "iter3", "iter3_plus_AS20K", "iter3_plus_AS2M"):
        name = f"Tokenizer_{stage}"
        records[name] = _microsoft(
            name,
            "tokenizer",
            f"The acoustic tokenizer whose codes BEATs_{stage} was trained to predict",
        )
    for iteration in (1, 2, 3):
        records[f"openbeats_large_i{iteration}"] = _openbeats(iteration, "large")
    return records


def _bundled(folder: Path) -> dict[str, dict[str, Any]]:
    """Records of the models that are in the package: what their folders say of themselves."""
    records = {}
    for model in sorted(folder.glob("*/model.safetensors")):
        config = json.loads((model.parent / "config.json").read_text(encoding="utf-8"))
        provenance = config.get("provenance", {})
        size_bytes = model.stat().st_size
        records[model.parent.name] = {
            "hf_repo": None,
            "repo_type": None,
            "hf_filename": None,
            "filename": model.parent.name,
            "description": provenance.get("description", "comes with this package"),
            "size_mb": round(size_bytes / 1e6, 1),
            "size_bytes": size_bytes,
            "sha256": config.get("weights_sha256"),
            "licence": provenance.get("licence", "as its README.md says"),
            "paper": _BEATS_PAPER,
            "kind": config["kind"],
            "labels": None,
            "num_classes": None,
            "how_to_get": f"{model.parent.name} comes with this package",
            "bundled": True,
        }
    return records


_RECORDS = _records() | _bundled(BUNDLED)


def list_available_models() -> dict[str, dict[str, Any]]:
    """List the checkpoints that can be asked for by name, with where each comes from.

    Returns:
        A fresh copy: name to record. A record holds ``hf_repo``, ``repo_type`` and ``hf_filename`` (the
        source on the Hugging Face hub; ``None`` where none is known), ``filename`` (what the file is
        called on disk), ``description``, ``size_mb``, ``size_bytes`` and ``sha256`` (where known),
        ``licence``, ``paper``, ``kind`` (``"encoder"``, ``"classifier"`` or ``"tokenizer"``),
        ``labels`` and ``num_classes`` (of classifiers), and ``how_to_get`` (by hand). One that comes with the
        package has ``bundled``, and its file is a folder.

    Example:
        >>> list(list_available_models())[:3]
        ['BEATs_iter3_plus_AS2M', 'openbeats', 'openbeats_i1']
    """
    return copy.deepcopy(_RECORDS)


def get_model_info(model_name: str) -> dict[str, Any]:
    """Look up one checkpoint's record.

    Args:
        model_name: A name that ``list_available_models`` gives.

    Returns:
        A fresh copy of the record; its fields are described at ``list_available_models``.

    Raises:
        UnknownCheckpointError: If there is no such name (a ``ValueError``).

    Example:
        >>> get_model_info("openbeats")["filename"]
        'openbeats_i3.pt'
    """
    if model_name not in _RECORDS:
        raise UnknownCheckpointError(model_name, _RECORDS)
    return copy.deepcopy(_RECORDS[model_name])
