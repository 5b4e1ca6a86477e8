"""Encode the clips of tables, once each, into what a head is fitted and measured on.

manifest rows -> Clip -> encoder -> [EmbeddedSplit] -> head

Shapes in this file: N clips, C classes, D width of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.config import Config, settled
from beats_trainer.datasets import Task, targets_of
from beats_trainer.embeddings.encode import encode_clips
from beats_trainer.loading import Clip
from beats_trainer.model import BEATsClassifier

__all__ = ["EmbeddedSplit", "EmbeddingCache", "clips_of", "embed_tables", "encoding_batch_size"]

_MOST_AT_ONCE = 32


@dataclass(frozen=True)
class EmbeddedSplit:
    """The clips of a split, as the head sees them.

    Attributes:
        embeddings: Shape ``(N, D)``, float32, as the encoder gives them.
        targets: Class ids ``(N,)``, int64; or ``(N, C)`` float32 with 1 for present, 0 for absent, NaN for
            unknown where clips may have any number of classes.
    """

    embeddings: NDArray[np.float32]
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)


def clips_of(table: pd.DataFrame, max_duration_s: float | None = None) -> list[Clip]:
    """The clips of a manifest's rows: files, or their parts, whole or only the first seconds."""
    if "start_time" not in table.columns:
        return [Clip(str(path), duration_s=max_duration_s) for path in table["path"]]
    clips = []
    for path, start, end in zip(table["path"], table["start_time"], table["end_time"], strict=True):
        duration_s = None if pd.isna(end) else float(end - start)
        if max_duration_s is not None:
            duration_s = min(duration_s or max_duration_s, max_duration_s)
        clips.append(Clip(str(path), 0.0 if pd.isna(start) else float(start), duration_s))
    return clips


def encoding_batch_size(config: Config) -> int:
    """Clips that are encoded at once, where nothing is learned from them."""
    return min(settled(config.data.batch_size), _MOST_AT_ONCE)


def embed_tables(
    classifier: BEATsClassifier,
    tables: Sequence[pd.DataFrame],
    config: Config,
    progress: bool | None = None,
    task: Task = "single",
) -> list[EmbeddedSplit]:
    """Encode the clips of several tables in one go.

    Args:
        classifier: Its encoder and pooling are used, on its device.
        tables: Rows of a manifest, at least one each.
        config: Batch size, precision, reading threads; resolved.
        progress: Show a bar; ``None`` shows one on a terminal.
        task: What the tables' targets are.

    Returns:
        One split per table, rows in its order.

    Raises:
        AudioError: If a recording cannot be read; names the file and the reason.
    """
    return EmbeddingCache(classifier, config, task).split(classifier, tables, progress)


class EmbeddingCache:
    """Embeddings of clips under one frozen encoder, each made once: for several folds, or several heads.

    Args:
        classifier: Whose encoder and pooling it belongs to.
        config: Batch size, precision, reading threads; resolved.
        task: What the tables' targets are.
        max_duration_s: Seconds of each clip's beginning that are encoded; ``None``: all of it.
    """

    def __init__(
        self,
        classifier: BEATsClassifier,
        config: Config,
        task: Task,
        max_duration_s: float | None = None,
    ) -> None:
        self.num_classes = len(classifier.labels)
        self.config = config
        self.task: Task = task
        self.max_duration_s = max_duration_s
        self._embeddings: dict[Clip, NDArray[np.float32]] = {}

    def split(
        self,
        classifier: BEATsClassifier,
        tables: Sequence[pd.DataFrame],
        progress: bool | None = None,
    ) -> list[EmbeddedSplit]:
        """Give the clips of tables as a head sees them; what is not known yet is encoded in one go.

        Args:
            classifier: With the encoder and pooling of this cache.
            tables: Rows of a manifest, at least one each.
            progress: Show a bar; ``None`` shows one on a terminal.

        Raises:
            AudioError: If a recording cannot be read; names the file and the reason.
        """
        clips = [clips_of(table, self.max_duration_s) for table in tables]
        new = list(dict.fromkeys(c for part in clips for c in part if c not in self._embeddings))
        if new:
            encoded = encode_clips(
                classifier.beats,
                new,
                pooling=classifier.clip_pooling,
                batch_size=encoding_batch_size(self.config),
                precision=self.config.training.precision_name,
                num_threads=max(1, self.config.data.num_workers),
                progress=progress,
                description="Encoding",
            )
            self._embeddings.update(zip(new, encoded.embeddings, strict=True))
        return [
            EmbeddedSplit(
                np.stack([self._embeddings[clip] for clip in part]),
                targets_of(table, self.num_classes, self.task),
            )
            for part, table in zip(clips, tables, strict=True)
        ]
