"""Encode the clips of tables, once each, into what a head is fitted and measured on.

manifest rows -> Clip -> encoder -> [EmbeddedSplit] -> head

Shapes in this file: N clips, D width of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.config import Config
from beats_trainer.embeddings.encode import encode_clips
from beats_trainer.loading import Clip
from beats_trainer.model import BEATsClassifier

__all__ = ["EmbeddedSplit", "clips_of", "embed_tables"]


@dataclass(frozen=True)
class EmbeddedSplit:
    """The clips of a split, as the head sees them.

    Attributes:
        embeddings: Shape ``(N, D)``, float32, as the encoder gives them.
        targets: Class ids, shape ``(N,)``, int64.
    """

    embeddings: NDArray[np.float32]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)


def clips_of(table: pd.DataFrame, max_duration_s: float | None = None) -> list[Clip]:
    """The clips of a manifest's rows, whole or only their first seconds."""
    return [Clip(str(path), duration_s=max_duration_s) for path in table["path"]]


def embed_tables(
    classifier: BEATsClassifier,
    tables: Sequence[pd.DataFrame],
    config: Config,
    progress: bool | None = None,
) -> list[EmbeddedSplit]:
    """Encode the clips of several tables in one go.

    Args:
        classifier: Its encoder and pooling are used, on its device.
        tables: Rows of a manifest, at least one each.
        config: Batch size, precision, reading threads.
        progress: Show a bar; ``None`` shows one on a terminal.

    Returns:
        One split per table, rows in its order.

    Raises:
        AudioError: If a recording cannot be read; names the file and the reason.
    """
    clips = [clip for table in tables for clip in clips_of(table)]
    encoded = encode_clips(
        classifier.beats,
        clips,
        pooling=classifier.clip_pooling,
        batch_size=config.data.batch_size,
        precision=config.training.precision_name,
        num_threads=max(1, config.data.num_workers),
        progress=progress,
        description="Encoding",
    )
    rows = iter(encoded.embeddings)
    return [
        EmbeddedSplit(
            np.stack([next(rows) for _ in range(len(table))]),
            table["target"].to_numpy(np.int64, copy=True),  # torch takes writable arrays only
        )
        for table in tables
    ]
