"""Fit attentive pooling and head on cached tokens: a frozen backbone, of which all layers are read.

clips -> encoder, once -> normed tokens of all layers, float16 in memory -> [pooling -> head, many epochs]

A frozen encoder gives the same tokens in every epoch. They take far more memory than embeddings (10 s of
sound in the base model: 9.9 MB), so they are cached only if they fit a budget; else the caller encodes anew
in every epoch. Tokens are kept as the pooling reads them, normed to deviation 1: float16 neither overflows
on them nor loses more than their fourth digit.

Shapes in this file: N clips, B clips of a batch, T tokens, D width, L layers, C classes.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from beats_trainer.audio import probe_audio
from beats_trainer.config import Config, TrainingConfig, settled
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.datasets import Task, targets_of
from beats_trainer.embeddings.encode import ClipInput, encode_clips
from beats_trainer.loading import Clip, read_ahead
from beats_trainer.model import Architecture, AttentivePooling, BEATs, BEATsClassifier
from beats_trainer.model.lengths import count_frames, count_tokens
from beats_trainer.training.cached_head import FittedHead, embedding_moments
from beats_trainer.training.embedded import EmbeddedSplit, clips_of, encoding_batch_size
from beats_trainer.training.epochs import FitTask, fit_epochs, task_for
from beats_trainer.training.losses import soft_targets

__all__ = [
    "FittedAttentive",
    "TokenCache",
    "TokenFeatures",
    "cache_tokens",
    "estimate_token_bytes",
    "fit_attentive_of",
    "fit_cached_attentive",
]

log = logging.getLogger(__name__)

_CHUNK_BYTES = 512 * 2**20
"""Tokens that are in float32 at once before they are kept in float16."""


@dataclass(frozen=True)
class TokenFeatures:
    """The clips of a split, as attentive pooling sees them.

    Attributes:
        tokens: Of each clip, shape ``(L + 1, T, D)``, float16 on the CPU: every layer's tokens, normed.
        targets: Class ids ``(N,)``, int64; or ``(N, C)``, float32, NaN where unknown.
        precision: The number format that the encoder ran in.
    """

    tokens: list[Tensor]
    targets: NDArray[Any]
    precision: str = "float32"

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Memory of the tokens."""
        return sum(tokens.nbytes for tokens in self.tokens)

    def pool(self, pooling: AttentivePooling, rows: Sequence[int] | None = None) -> Tensor:
        """Pool some clips, or all.

        Args:
            pooling: On the device where to compute.
            rows: Numbers of the clips, ``B`` of them.

        Returns:
            Embeddings, shape ``(B, D)``, float32 on the pooling's device.
        """
        device = pooling.layer_weights.device
        tokens = [
            self.tokens[row].to(device, non_blocking=True)
            for row in (range(len(self)) if rows is None else rows)
        ]
        token_lengths = torch.tensor([tokens_LTD.shape[1] for tokens_LTD in tokens])
        mixed_BTD = _mix_layers(pooling.mix_weights(), tokens)
        return pooling.attend(mixed_BTD, token_lengths).result()

    @torch.inference_mode()
    def embed(self, pooling: AttentivePooling, batch_size: int = 64) -> EmbeddedSplit:
        """What a fitted pooling makes of the clips, for `embedding_logits`."""
        batches = [
            self.pool(pooling, range(start, min(start + batch_size, len(self)))).cpu()
            for start in range(0, len(self), batch_size)
        ]
        return EmbeddedSplit(torch.cat(batches).numpy(), self.targets)


@dataclass(frozen=True)
class FittedAttentive(FittedHead):
    """A pooling and a head that were fitted together, and how they came to be.

    Attributes:
        history: As for `Fitted`, as ``best_epoch`` and ``best_score``.
        head: The head of the best epoch; reads raw embeddings.
        pooling: The pooling of the best epoch.
    """

    pooling: AttentivePooling


def estimate_token_bytes(
    clips: Sequence[ClipInput], architecture: Architecture, num_threads: int = 8
) -> int:
    """Tell how much memory `cache_tokens` will take, from the lengths of the clips.

    Reads the files' headers only.

    Args:
        clips: Files, parts of files (`Clip`), or waveforms ``(S,)`` at 16 kHz.
        architecture: The encoder's.
        num_threads: Threads that open files.

    Returns:
        Bytes: 2 per value, for ``(L + 1) * T * D`` values per clip.

    Raises:
        AudioError: If a recording cannot be opened; names the file and the reason.

    Example:
        >>> estimate_token_bytes([np.zeros(160_000, np.float32)], Architecture())
        9904128
    """
    return sum(_bytes_per_clip(clips, architecture, num_threads))


def cache_tokens(
    network: BEATs,
    clips: Sequence[Sequence[ClipInput]],
    targets: Sequence[NDArray[Any]],
    *,
    budget_bytes: int,
    batch_size: int = 16,
    precision: str = "auto",
    num_threads: int | None = None,
    progress: bool | None = None,
) -> list[TokenFeatures] | None:
    """Encode the clips of several splits, once each, and keep the tokens of all layers.

    Args:
        network: Is run in eval mode, without gradients, where it is.
        clips: Of each split: files, parts of files, or waveforms.
        targets: Of each split, as for `TokenFeatures`.
        budget_bytes: Most memory that the tokens of all splits may take.
        batch_size: Most clips in a batch.
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        num_threads: Threads that decode ahead; ``None`` chooses by the machine.
        progress: Show a bar; ``None`` shows one on a terminal.

    Returns:
        One per split; or ``None``, before anything was encoded, if they would not fit the budget.

    Raises:
        AudioError: If a recording cannot be read; names the file and the reason.
        ValueError: If a split has not one target per clip.
    """
    for part, truth in zip(clips, targets, strict=True):
        if len(part) != len(truth):
            raise ValueError(
                f"Expected one target per clip, got {len(truth)} for {len(part)} clips."
            )
    every = [clip for part in clips for clip in part]
    sizes = _bytes_per_clip(every, network.architecture, num_threads or 8)
    needed = sum(sizes)
    if needed > budget_bytes:
        log.info(
            "The tokens of all layers would take %.1f GB, more than %.1f GB: they are not cached.",
            needed / 1e9,
            budget_bytes / 1e9,
        )
        return None
    kept: list[Tensor] = []
    precision_that_ran = precision
    is_off = None if progress is None else not progress  # None: tqdm shows it on a terminal only
    with tqdm(total=len(every), desc="Encoding", unit="clip", disable=is_off) as bar:
        for chunk in _chunks(sizes):
            encoded = encode_clips(
                network,
                every[chunk.start : chunk.stop],
                pooling="none",
                layer="all",
                batch_size=batch_size,
                precision=precision,
                num_threads=num_threads,
                progress=False,
            )
            precision_that_ran = encoded.precision
            for layers_LTD in encoded.embeddings:
                normed_LTD = AttentivePooling.norm_layers(torch.from_numpy(layers_LTD))
                kept.append(normed_LTD.to(torch.float16))
            bar.update(len(encoded.embeddings))
    tokens = iter(kept)
    return [
        TokenFeatures([next(tokens) for _ in part], truth, precision_that_ran)
        for part, truth in zip(clips, targets, strict=True)
    ]


class TokenCache:
    """Tokens of clips under one frozen encoder, each made once: for several folds.

    Args:
        classifier: Whose encoder it belongs to.
        config: ``model.cache_gb``, batch size, precision, reading threads; resolved.
        task: What the tables' targets are.
    """

    def __init__(self, classifier: BEATsClassifier, config: Config, task: Task) -> None:
        self.num_classes = len(classifier.labels)
        self.config = config
        self.task: Task = task
        self._tokens: dict[Clip, Tensor] = {}
        self._precision = "float32"
        self._is_too_small = False

    def split(
        self,
        classifier: BEATsClassifier,
        tables: Sequence[pd.DataFrame],
        progress: bool | None = None,
    ) -> list[TokenFeatures] | None:
        """Give the tokens of tables' clips; what is not known yet is encoded in one go.

        Args:
            classifier: With the encoder of this cache.
            tables: Rows of a manifest, at least one each.
            progress: Show a bar; ``None`` shows one on a terminal.

        Returns:
            One per table; ``None`` if all together would take more than ``model.cache_gb``.

        Raises:
            AudioError: If a recording cannot be read; names the file and the reason.
        """
        clips = [clips_of(table) for table in tables]
        new = list(dict.fromkeys(c for part in clips for c in part if c not in self._tokens))
        if self._is_too_small:
            return None
        if new:
            taken = sum(tokens.nbytes for tokens in self._tokens.values())
            made = cache_tokens(
                classifier.beats,
                [new],
                [np.zeros(len(new), np.int64)],
                budget_bytes=int(self.config.model.cache_gb * 1e9) - taken,
                batch_size=encoding_batch_size(self.config),
                precision=self.config.training.precision_name,
                num_threads=max(1, self.config.data.num_workers),
                progress=progress,
            )
            if made is None:
                self._is_too_small = True
                self._tokens.clear()
                return None
            self._precision = made[0].precision
            self._tokens.update(zip(new, made[0].tokens, strict=True))
        return [
            TokenFeatures(
                [self._tokens[clip] for clip in part],
                targets_of(table, self.num_classes, self.task),
                self._precision,
            )
            for part, table in zip(clips, tables, strict=True)
        ]


def fit_cached_attentive(
    classifier: BEATsClassifier,
    train: TokenFeatures,
    val: TokenFeatures | None,
    training: TrainingConfig,
    *,
    learning_rate: float,
    batch_size: int,
    seed: int,
    task: FitTask | None = None,
    device: torch.device | None = None,
    progress: bool | None = None,
) -> FittedAttentive:
    """Fit a classifier's attentive pooling and head together; the encoder is not run.

    The head reads embeddings that are standardised as the untrained pooling gives them for the training
    clips, which is then absorbed into its first layer. See `fit_epochs` for which epoch is the best.

    Args:
        classifier: Gives the pooling, the head and the labels; left as it is.
        train: Clips to learn from.
        val: Clips to choose the best epoch on, or ``None``.
        training: Optimiser, schedule, epochs, patience, monitored metric, gradient clipping.
        learning_rate: Peak rate.
        batch_size: Clips per step.
        seed: Of the order of the clips and of dropout; torch's global generator is not touched.
        task: Loss and metrics; ``None`` for one class per clip, with cross entropy.
        device: Where to compute; ``None`` for the CPU.
        progress: Show a bar over epochs; ``None`` shows one on a terminal.

    Returns:
        The fitted pooling and head, on the CPU and in eval mode, and their history.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
        ConfigError: If the monitored metric is none of those that are measured.
        ValueError: If the classifier has no attentive pooling, or the targets are not class ids and no task
            says what to do with them.
    """
    if classifier.attentive_pooling is None:
        raise ValueError(
            f"Expected a classifier with pooling='attentive', got pooling={classifier.pooling!r}: fit its "
            "head with fit_cached_head."
        )
    device = device or torch.device("cpu")
    pooling = copy.deepcopy(classifier.attentive_pooling).to(device)
    head = copy.deepcopy(classifier.head).to(device)
    embeddings = train.embed(pooling, batch_size).embeddings
    mean, std = (part.to(device) for part in embedding_moments(torch.from_numpy(embeddings)))

    def val_logits() -> Tensor:
        assert val is not None
        pooled = torch.from_numpy(val.embed(pooling, batch_size).embeddings).to(device)
        logits: Tensor = head((pooled - mean) / std)
        return logits

    fitted = fit_epochs(
        nn.ModuleDict({"pooling": pooling, "head": head}),
        lambda rows: head((train.pool(pooling, rows.tolist()) - mean) / std),
        torch.from_numpy(soft_targets(train.targets, len(classifier.labels))).to(device),
        None if val is None else val_logits,
        task_for(
            task,
            [split.targets for split in (train, val) if split is not None],
            classifier.labels,
        ),
        training,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    head.absorb_standardisation(mean, std)
    return FittedAttentive(
        fitted.history,
        fitted.best_epoch,
        fitted.best_score,
        head.cpu().eval(),
        pooling.cpu().eval(),
    )


def fit_attentive_of(
    classifier: BEATsClassifier,
    train: TokenFeatures,
    val: TokenFeatures | None,
    config: Config,
    *,
    device: torch.device | None = None,
    progress: bool | None = None,
) -> FittedAttentive:
    """Fit learned pooling and head of a classifier as the settings say: mode ``attentive`` of training.

    Args:
        classifier: With a fresh pooling and head, which are left as they are.
        train: Clips to learn from.
        val: Clips to choose the best epoch on, or ``None``.
        config: Loss, optimiser, rate, batch size, epochs, seed; resolved.
        device: Where to compute; ``None`` for the CPU.
        progress: Show a bar over epochs; ``None`` shows one on a terminal.

    Raises:
        BEATsTrainerError: If the loss stops being finite.
    """
    return fit_cached_attentive(
        classifier,
        train,
        val,
        config.training,
        learning_rate=config.resolved_learning_rate(),
        batch_size=settled(config.data.batch_size),
        seed=config.seed,
        task=FitTask.of_classifier(
            classifier, config.training, train.targets, None if val is None else val.targets
        ),
        device=device,
        progress=progress,
    )


def _mix_layers(weights_L: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """Mix the normed layers ``(L + 1, T, D)`` of each clip to ``(B, T, D)``, float32, with zeros behind short ones."""
    mixed_BTD = _MixLayers.apply(weights_L, *tokens)  # type: ignore[no-untyped-call]
    assert isinstance(mixed_BTD, Tensor)
    return mixed_BTD


class _MixLayers(torch.autograd.Function):
    """Weighted sums of float16 layers whose gradient keeps them in float16.

    Autograd would keep every batch's tokens in float32 until its step: gigabytes, to save 13 numbers. And the
    gradient of `pad_sequence` is as large as the batch once for each of its clips.
    """

    @staticmethod
    def forward(ctx: Any, weights_L: Tensor, *tokens: Tensor) -> Tensor:
        ctx.save_for_backward(*tokens)
        longest = max(tokens_LTD.shape[1] for tokens_LTD in tokens)
        mixed_BTD = weights_L.new_zeros(len(tokens), longest, tokens[0].shape[2])
        for mixed_TD, tokens_LTD in zip(mixed_BTD, tokens, strict=True):
            mixed = weights_L @ tokens_LTD.float().flatten(1)
            mixed_TD[: tokens_LTD.shape[1]] = mixed.view(tokens_LTD.shape[1:])
        return mixed_BTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BTD,) = gradients
        parts = [
            tokens_LTD.float().flatten(1) @ gradient_TD[: tokens_LTD.shape[1]].flatten()
            for gradient_TD, tokens_LTD in zip(gradient_BTD, ctx.saved_tensors, strict=True)
        ]
        return (torch.stack(parts).sum(dim=0), *(None for _ in parts))


def _bytes_per_clip(
    clips: Sequence[ClipInput], architecture: Architecture, num_threads: int
) -> list[int]:
    """Memory of each clip's tokens of all layers in float16."""
    patch = architecture.input_patch_size
    per_token = 2 * (architecture.encoder_layers + 1) * architecture.encoder_embed_dim
    sizes = []
    for _, samples in read_ahead(
        range(len(clips)), lambda index: _count_samples(clips[index]), num_threads, 64
    ):
        if isinstance(samples, Exception):
            raise samples
        sizes.append(per_token * count_tokens(count_frames(samples, patch), patch))
    return sizes


def _chunks(sizes: Sequence[int]) -> Iterator[range]:
    """Neighbouring clips whose tokens fit into ``_CHUNK_BYTES`` in float32; at least one at a time."""
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + 2 * size > _CHUNK_BYTES:
            yield range(start, index)
            start, total = index, 0
        total += 2 * size
    if start < len(sizes):
        yield range(start, len(sizes))


def _count_samples(clip: ClipInput) -> int:
    if isinstance(clip, np.ndarray):
        return max(1, len(clip))
    part = clip if isinstance(clip, Clip) else Clip(str(clip))
    remaining_s = probe_audio(part.file).duration_s - part.start_s
    duration_s = remaining_s if part.duration_s is None else min(part.duration_s, remaining_s)
    return max(1, round(duration_s * SAMPLE_RATE))
