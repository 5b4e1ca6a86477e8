"""The public models: networks that know how to be loaded, saved and shared.

name | path | folder | hub -> sources -> read -> [BEATsModel | BEATsForAudioClassification | BEATsTokenizer]
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch

from beats_trainer.checkpoints.content import Checkpoint, Uninitialised, fill
from beats_trainer.checkpoints.folder import save_model
from beats_trainer.checkpoints.microsoft import to_microsoft
from beats_trainer.checkpoints.read import read_checkpoint
from beats_trainer.checkpoints.sources import locate
from beats_trainer.errors import InvalidCheckpointError
from beats_trainer.model import (
    AcousticTokenizer,
    Activation,
    AttentivePooling,
    BEATs,
    BEATsClassifier,
    ClassifierHead,
    ClassifierPooling,
    ClassifierTask,
    RandomProjectionTokenizer,
)

__all__ = ["BEATsForAudioClassification", "BEATsModel", "BEATsTokenizer", "load_tokenizer"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


class _Shareable:
    """Saving, publishing and exporting; for networks of this file."""

    provenance: Mapping[str, Any] = MappingProxyType({})
    """Where the weights come from: ``source``, ``file``, ``sha256``, ``licence``, ...; plain values."""

    def save_pretrained(
        self,
        folder: PathLike,
        *,
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a model folder: ``config.json``, ``model.safetensors`` and ``README.md``.

        Args:
            folder: Is created; an existing model folder is replaced, safely.
            provenance: What to say of the model's origin, besides ``self.provenance``.
            metrics: Test results by name, for the model card.

        Returns:
            The folder; ``from_pretrained`` reads it, on any machine.

        Raises:
            FileExistsError: If the folder holds something else.
            ValueError: If a value is not plain data, or the encoder has adapters that are not merged.
        """
        assert isinstance(self, BEATs | BEATsClassifier)
        return save_model(
            self,
            folder,
            label_codes=getattr(self, "label_codes", None),
            thresholds=getattr(self, "thresholds", None),
            window_s=getattr(self, "window_s", None),
            calibration=getattr(self, "calibration", None),
            provenance={**self.provenance, **(provenance or {})},
            metrics=metrics,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload with beats_trainer",
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Publish the model on the Hugging Face hub.

        Args:
            repo_id: ``"owner/name"``; is created if it does not exist. A model card that is there already
                is left as it is.
            private: Whether a new repository is private; ``None`` takes the owner's default.
            token: Of a user who may write; ``None`` uses the stored login.
            commit_message: For the repository's history.
            provenance: As for ``save_pretrained``.
            metrics: As for ``save_pretrained``.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token, library_name="beats_trainer")
        api.create_repo(repo_id, private=private, exist_ok=True)
        keep_card = api.file_exists(repo_id, "README.md")
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(
                Path(scratch) / repo_id.rpartition("/")[2], provenance=provenance, metrics=metrics
            )
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                ignore_patterns=["README.md"] if keep_card else None,
            )
        return str(commit.commit_url)

    def to_microsoft(self) -> dict[str, Any]:
        """Export in Microsoft's layout.

        Returns:
            ``{"cfg", "model"}``, for a classifier with ``"label_dict"``; written with ``torch.save``, it
            loads in the original code. The tensors are exactly those that were loaded.

        Raises:
            ValueError: If the original has no such classifier (hidden layers, other pooling than mean).
        """
        assert isinstance(self, BEATs | BEATsClassifier)
        return to_microsoft(self)


class BEATsModel(_Shareable, BEATs):
    """The encoder: waveforms in, tokens out. See `BEATs` for calling it.

    Example:
        >>> model = BEATsModel.from_pretrained("openbeats")  # doctest: +SKIP
        >>> model(torch.zeros(1, 160_000)).tokens.shape  # doctest: +SKIP
        torch.Size([1, 496, 768])
    """

    @classmethod
    def from_pretrained(
        cls,
        source: PathLike,
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load an encoder.

        Args:
            source: A name that ``list_available_models`` gives; the path of a ``.pt``, ``.pth``, ``.ckpt``
                or ``.safetensors`` file; a model folder; or a hub repository ``"owner/name"``. Of a
                classifier, the encoder is loaded.
            device: Where the weights go; ``None`` leaves them on the CPU.
            revision: Branch, tag or commit, for what comes from the hub.
            token: For private repositories; ``None`` uses the stored login.
            cache_dir: Where a download lies: see ``ensure_checkpoint``.
            local_files_only: Whether to use only what is on this machine.

        Returns:
            The encoder, in evaluation mode.

        Raises:
            CheckpointError: If the source is unknown or out of reach, damaged, or not an encoder's.
            DownloadError: If a transfer fails, or brings something else.
        """
        checkpoint = _read(source, revision, token, cache_dir, local_files_only)
        if checkpoint.kind == "tokenizer":
            raise InvalidCheckpointError(
                f"{source} is an acoustic tokenizer, not an encoder: load it with load_tokenizer."
            )
        if checkpoint.kind == "classifier":
            logger.info("%s has a classifier head; loading its encoder only", source)
        checkpoint = checkpoint.encoder()
        with Uninitialised():
            model = cls(checkpoint.architecture)
        fill(model, checkpoint.tensors, str(source))
        model.provenance = checkpoint.provenance
        return model if device is None else model.to(device)


class BEATsForAudioClassification(_Shareable, BEATsClassifier):
    """Encoder and head: waveforms in, class scores out. See `BEATsClassifier` for calling it.

    Args:
        beats: The encoder.
        head: Reads pooled tokens.
        labels: One name per class, in the order of the logits.
        activation: ``"softmax"`` where exactly one class is true, ``"sigmoid"`` where any may be.
        pooling: How tokens become the embedding that the head reads.
        attentive_pooling: The module that does so; with ``pooling="attentive"`` and only then.
        task: ``"single"`` where a clip has exactly one class, ``"multi"`` where it has any number; ``None``
            takes what the activation is for. Travels with the model.
        label_codes: What the classes are called in the data set that they come from, in the order of
            ``labels``; travels with the model. ``None`` where ``labels`` says it all.
        thresholds: Score from which on a class counts as heard, per label; travels with the model.
        window_s: Seconds of sound that it was trained on; travels with the model.
        calibration: How its probabilities were calibrated, plain values; travels with the model. It has
            no effect: a temperature is absorbed by the head.

    Example:
        >>> name = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2"
        >>> classifier = BEATsForAudioClassification.from_pretrained(name)  # doctest: +SKIP
        >>> classifier(torch.zeros(1, 160_000)).probs.shape  # doctest: +SKIP
        torch.Size([1, 527])
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
        label_codes: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        window_s: float | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            beats, head, labels, activation, pooling, attentive_pooling=attentive_pooling, task=task
        )
        if label_codes is not None and len(label_codes) != len(labels):
            raise ValueError(f"{len(label_codes)} label_codes for {len(labels)} labels.")
        self.label_codes = None if label_codes is None else list(label_codes)
        self.thresholds = None if thresholds is None else dict(thresholds)
        self.window_s = window_s
        self.calibration = None if calibration is None else dict(calibration)

    @classmethod
    def from_pretrained(
        cls,
        source: PathLike,
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a classifier: a model folder that training saved, or a fine-tuned checkpoint.

        Where a checkpoint names AudioSet's classes by code (``/m/09x0r``), ``labels`` are their readable
        names (``Speech``), in the checkpoint's own order, and ``label_codes`` the codes.

        Args:
            source: As for ``BEATsModel.from_pretrained``.
            device: Where the weights go; ``None`` leaves them on the CPU.
            revision: Branch, tag or commit, for what comes from the hub.
            token: For private repositories; ``None`` uses the stored login.
            cache_dir: Where a download lies: see ``ensure_checkpoint``.
            local_files_only: Whether to use only what is on this machine.

        Returns:
            The classifier, in evaluation mode.

        Raises:
            CheckpointError: If the source is unknown or out of reach, damaged, or has no classifier.
            DownloadError: If a transfer fails, or brings something else.
        """
        checkpoint = _read(source, revision, token, cache_dir, local_files_only)
        if checkpoint.kind != "classifier":
            raise InvalidCheckpointError(
                f"{source} holds an {checkpoint.kind} without classifier head, so it names no classes. Train "
                "one on it with BEATsTrainer, load a fine-tuned checkpoint (such as "
                "'BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2'), or use BEATsModel for embeddings."
                if checkpoint.kind == "encoder"
                else f"{source} is an acoustic tokenizer, not a classifier: load it with load_tokenizer."
            )
        assert checkpoint.head is not None
        assert checkpoint.labels is not None
        with Uninitialised():
            model = cls(
                BEATsModel(checkpoint.architecture),
                ClassifierHead(**checkpoint.head),
                checkpoint.labels,
                checkpoint.activation,
                checkpoint.pooling,
                attentive_pooling=checkpoint.build_pooling(),
                task=checkpoint.task,
                label_codes=checkpoint.label_codes,
                thresholds=checkpoint.thresholds,
                window_s=checkpoint.window_s,
                calibration=checkpoint.calibration,
            )
        fill(model, checkpoint.tensors, str(source))
        model.provenance = checkpoint.provenance
        assert isinstance(model.beats, BEATsModel)
        model.beats.provenance = checkpoint.provenance
        return model if device is None else model.to(device)


class BEATsTokenizer(_Shareable, AcousticTokenizer):
    """The acoustic tokenizer: waveforms in, one code per token out. See `AcousticTokenizer`."""


def load_tokenizer(
    source: PathLike,
    *,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
) -> BEATsTokenizer | RandomProjectionTokenizer:
    """Load an acoustic tokenizer: one that was trained, or a random projection.

    Args:
        source: As for ``BEATsModel.from_pretrained``.
        device: Where the weights go; ``None`` leaves them on the CPU.
        revision: Branch, tag or commit, for what comes from the hub.
        token: For private repositories; ``None`` uses the stored login.
        cache_dir: Where a download lies: see ``ensure_checkpoint``.
        local_files_only: Whether to use only what is on this machine.

    Returns:
        The tokenizer, in evaluation mode; ``.encode(waveforms, lengths).codes`` are its codes.

    Raises:
        CheckpointError: If the source is unknown or out of reach, damaged, or not a tokenizer's.
        DownloadError: If a transfer fails, or brings something else.
    """
    checkpoint = _read(source, revision, token, cache_dir, local_files_only)
    if checkpoint.kind != "tokenizer":
        raise InvalidCheckpointError(
            f"{source} is not an acoustic tokenizer but holds an encoder"
            f"{' with a classifier' if checkpoint.kind == 'classifier' else ''}: load it with BEATsModel."
        )
    assert checkpoint.codebook is not None
    kind = RandomProjectionTokenizer if "projection" in checkpoint.codebook else BEATsTokenizer
    with Uninitialised():
        tokenizer = kind(checkpoint.architecture, **checkpoint.codebook)
    fill(tokenizer, checkpoint.tensors, str(source))
    tokenizer.provenance = checkpoint.provenance
    return tokenizer if device is None else tokenizer.to(device)


def _read(
    source: PathLike,
    revision: str | None,
    token: str | bool | None,
    cache_dir: PathLike | None,
    local_files_only: bool,
) -> Checkpoint:
    path, origin = locate(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    checkpoint = read_checkpoint(path)
    return checkpoint.replace(provenance={**origin, **checkpoint.provenance})
