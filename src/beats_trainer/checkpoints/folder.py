"""Our own format: a folder with ``config.json``, ``model.safetensors`` and ``README.md``.

network -> [folder] -> Checkpoint -> network

Plain data: reading it executes nothing. A folder appears whole or not at all: it is written aside and
renamed. ``config.json`` carries the weights' sha256, so a mixed or damaged folder is noticed.
"""

import contextlib
import datetime
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from beats_trainer._version import __version__
from beats_trainer.checkpoints.card import write_card
from beats_trainer.checkpoints.checksums import file_sha256
from beats_trainer.checkpoints.content import Checkpoint, check, weights_of
from beats_trainer.checkpoints.files import load_safetensors
from beats_trainer.errors import CheckpointError, InvalidCheckpointError
from beats_trainer.model import (
    AcousticTokenizer,
    Architecture,
    BEATs,
    BEATsClassifier,
    RandomProjectionTokenizer,
)

__all__ = ["FORMAT_VERSION", "is_model_folder", "read_folder", "save_model"]

FORMAT_VERSION = 1
"""Of ``config.json``; raised when an older library could misread a newer folder."""

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds both files of a model."""
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


def save_model(
    network: BEATs | BEATsClassifier | RandomProjectionTokenizer,
    folder: str | os.PathLike[str],
    *,
    label_codes: Sequence[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    window_s: float | None = None,
    calibration: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a network to a folder that needs nothing else to be loaded.

    Args:
        network: An encoder, a tokenizer or a classifier.
        folder: Is created. An existing model folder is replaced as a whole, other files in it stay; any
            other existing folder must be empty.
        label_codes: The classes' codes in the data set that they come from, in the order of the labels.
        thresholds: Score from which on a class counts as heard, per label.
        window_s: Seconds of sound that the classifier was trained on.
        calibration: How its probabilities were calibrated: plain values.
        provenance: Where it comes from: plain values.
        metrics: Test results by name, for the model card.
        dtype: Number format of the weights on disk, such as ``torch.float16`` for half the size; ``None`` leaves
            them as they are. They are loaded in float32 whatever it is. Not for tokenizers: some codes would be others.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something else.
        ValueError: If thresholds name other classes, a class has no code, a value is not plain data, a tokenizer is to be
            rounded, or the network still has adapters.
    """
    if dtype is not None and isinstance(network, AcousticTokenizer | RandomProjectionTokenizer):
        raise ValueError(
            f"A tokenizer rounded to {dtype} gives other codes than it was used with: leave dtype out."
        )
    folder = Path(folder).expanduser()
    target = folder.resolve()  # through links: the folder itself is renamed, not a link to it
    if (
        target.exists()
        and not is_model_folder(target)
        and (target.is_file() or any(target.iterdir()))
    ):
        raise FileExistsError(
            f"{folder} exists and is not a model folder: choose a new one, or empty it first."
        )
    config = _describe(network, label_codes, thresholds, window_s, calibration, provenance or {})
    tensors = {key: value.to(dtype).contiguous() for key, value in weights_of(network).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished-{secrets.token_hex(4)}")
    unfinished.mkdir()
    try:
        save_file(tensors, unfinished / _WEIGHTS, metadata={"format": "pt"})
        config["weights_sha256"] = _sha256(unfinished / _WEIGHTS)
        (unfinished / _CONFIG).write_text(
            json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        # safetensors writes for the owner's eyes only; a model is read by whoever may read its folder.
        shutil.copymode(unfinished / _CONFIG, unfinished / _WEIGHTS)
        write_card(unfinished / _CARD, target.name, config, metrics)
        for file in unfinished.iterdir():
            _flush(file)
        _put_in_place(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def read_folder(folder: Path, *, check_weights: bool = True) -> Checkpoint:
    """Read a model folder.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        check_weights: Whether to compare the weights with their sha256.

    Raises:
        InvalidCheckpointError: If a file is damaged, or from a newer format.
    """
    where = str(folder)
    config = _read_config(folder / _CONFIG)
    weights = folder / _WEIGHTS
    tensors = load_safetensors(weights)
    if check_weights and config.get("weights_sha256") not in (None, file_sha256(weights)):
        raise InvalidCheckpointError(
            f"{weights} is damaged, or belongs to another {_CONFIG}: its sha256 is not the one written "
            "there. Save or download the model again."
        )
    try:
        checkpoint = Checkpoint(
            kind=config["kind"],
            architecture=Architecture(**config["architecture"]),
            tensors=tensors,
            layout="model folder",
            provenance=config.get("provenance") or {},
            codebook=config.get("codebook"),
        )
        if checkpoint.kind == "classifier":
            thresholds = config.get("thresholds")
            window_s = config.get("window_s")
            attentive_pooling = config.get("attentive_pooling")
            calibration = config.get("calibration")
            label_codes = config.get("label_codes")
            checkpoint = checkpoint.replace(
                labels=[str(label) for label in config["labels"]],
                label_codes=None if label_codes is None else [str(code) for code in label_codes],
                activation=config["activation"],
                task=config.get("task"),
                pooling=config["pooling"],
                attentive_pooling=None if attentive_pooling is None else dict(attentive_pooling),
                head=dict(config["head"]),
                thresholds=None
                if thresholds is None
                else {str(label): float(value) for label, value in thresholds.items()},
                window_s=None if window_s is None else float(window_s),
                calibration=None if calibration is None else dict(calibration),
            )
            if label_codes is not None and len(label_codes) != len(config["labels"]):
                raise ValueError(
                    f"it has {len(label_codes)} label_codes for {len(config['labels'])} labels"
                )
        elif checkpoint.kind not in ("encoder", "tokenizer"):
            raise ValueError(f"kind {checkpoint.kind!r} is not encoder, classifier or tokenizer")
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidCheckpointError(f"{folder / _CONFIG} is not as expected: {reason}.") from error
    check(checkpoint, where)
    return checkpoint


def _describe(
    network: BEATs | BEATsClassifier | RandomProjectionTokenizer,
    label_codes: Sequence[str] | None,
    thresholds: Mapping[str, float] | None,
    window_s: float | None,
    calibration: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    beats = network.beats if isinstance(network, BEATsClassifier) else network
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model_type": "beats",
        "library_name": "beats_trainer",
        "kind": "encoder",
        "architecture": beats.architecture.to_dict(),
    }
    if isinstance(network, RandomProjectionTokenizer):
        config["kind"] = "tokenizer"
        config["codebook"] = network.settings()
    if isinstance(network, AcousticTokenizer):
        config["kind"] = "tokenizer"
        config["codebook"] = {"num_codes": network.num_codes, "code_dim": network.code_dim}
    if isinstance(network, BEATsClassifier):
        if len(set(network.labels)) != network.head.num_classes:
            raise ValueError(
                f"The head has {network.head.num_classes} classes, but {len(set(network.labels))} "
                "different labels name them."
            )
        if label_codes is not None and len(label_codes) != len(network.labels):
            raise ValueError(f"{len(label_codes)} label_codes for {len(network.labels)} labels.")
        if thresholds is not None and set(thresholds) - set(network.labels):
            strange = sorted(set(thresholds) - set(network.labels))
            raise ValueError(f"Thresholds for classes that the model does not have: {strange[:5]}.")
        config |= {
            "kind": "classifier",
            "labels": list(network.labels),
            "label_codes": None if label_codes is None else list(label_codes),
            "activation": network.activation,
            "task": network.task,
            "pooling": network.pooling,
            "attentive_pooling": None
            if network.attentive_pooling is None
            else network.attentive_pooling.to_dict(),
            "head": network.head.to_dict(),
            "thresholds": None
            if thresholds is None
            else {label: float(value) for label, value in thresholds.items()},
            "window_s": None if window_s is None else float(window_s),
            "calibration": None if calibration is None else dict(calibration),
        }
    config["provenance"] = {
        **provenance,
        "saved_with": f"beats_trainer {__version__}",
        "saved_on": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A model's description holds plain values only (text, finite numbers, lists): {error}."
        ) from error
    return config


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidCheckpointError(f"{file} is damaged: {error}.") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version is None:
        raise InvalidCheckpointError(
            f"{file} is not beats_trainer's: it has no format_version. Is this another library's model?"
        )
    if version != FORMAT_VERSION:
        raise InvalidCheckpointError(
            f"{file} has format_version {version!r}; this library (beats_trainer {__version__}) reads "
            f"{FORMAT_VERSION}. Upgrade it."
        )
    assert isinstance(config, dict)
    return config


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Make the finished folder the model, in one rename where none is there yet."""
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(unfinished, folder)
        return
    replaced = folder.with_name(f".{folder.name}.replaced-{secrets.token_hex(4)}")
    os.replace(folder, replaced)
    try:
        os.replace(unfinished, folder)
    except BaseException:
        os.replace(replaced, folder)
        raise
    for other in replaced.iterdir():
        if other.name not in (_CONFIG, _WEIGHTS, _CARD):
            shutil.move(other, folder / other.name)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(file: Path) -> None:
    with contextlib.suppress(OSError), open(file, "rb") as stream:
        os.fsync(stream.fileno())  # a crash right after must not leave a renamed, empty file


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
