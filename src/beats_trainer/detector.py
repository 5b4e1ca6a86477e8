"""The run behind `BEATsPredictor.detect`: a store of window scores, kept up to date, and the events in it.

clips -> windows -> engine -> [scores -> store] -> [read by file -> events]

Shapes in this file: N windows, C classes, D width of an embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.detection.events import EventRules
from beats_trainer.detection.recordings import ScoredWindows, find_events_of_recordings
from beats_trainer.embeddings import EmbeddingStore, open_store
from beats_trainer.embeddings.batch_size import BatchSize
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.parquet import Dtype
from beats_trainer.embeddings.run import DEFAULT_ROWS_PER_SHARD, run_to_store
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.embeddings.table import StoredRows
from beats_trainer.embeddings.windows import Windowing
from beats_trainer.loading import Clip

__all__ = ["SCORES", "RunOptions", "find_stored_events", "store_scores"]

SCORES = "scores"
"""Column of a store that holds one score per class."""

_PIECE_BYTES = 16_000_000
"""Scores that are read at once to find events in them."""


@dataclass(frozen=True)
class RunOptions:
    """How a run over recordings is done; the rows do not depend on it, but on ``dtype``.

    Attributes:
        batch_size: Most windows in a batch; ``None`` chooses.
        num_threads: Threads that decode ahead; ``None`` chooses.
        dtype: ``"float32"``, or ``"float16"`` for half the size.
        on_error: ``"skip"`` what cannot be read and list it, or ``"raise"``.
        retry_failed: Do files anew of which a part could not be read.
        overwrite: Begin anew.
        rows_per_shard: Rows that are written at a time.
        progress: Show a progress bar; ``None`` shows one on a terminal.

    Raises:
        ValueError: If ``on_error`` is unknown.
    """

    batch_size: BatchSize = None
    num_threads: int | None = None
    dtype: Dtype = "float32"
    on_error: Literal["raise", "skip"] = "skip"
    retry_failed: bool = False
    overwrite: bool = False
    rows_per_shard: int = DEFAULT_ROWS_PER_SHARD
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {self.on_error!r}.")


def store_scores(
    encoder: Encoder,
    clips: Sequence[Clip],
    folder: Path,
    windowing: Windowing,
    to_scores: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    recipe: Mapping[str, Any],
    options: RunOptions,
) -> EmbeddingStore:
    """Bring a store of window scores up to date.

    Args:
        encoder: The network with the classifier's pooling.
        clips: The recordings, or parts of them.
        folder: The store's.
        windowing: How recordings are cut.
        to_scores: Turns embeddings ``(N, D)`` into scores ``(N, C)``.
        recipe: How scores are made: a store goes on with the same only. Holds ``labels``.
        options: The rest.

    Returns:
        The store, with a column ``scores``: of these clips, and of those that it had before.

    Raises:
        StoreError: As `StoreWriter`.
        AudioError: If a file cannot be read and errors are not skipped.
        OSError: If the store cannot be written.
    """
    columns = {SCORES: len(recipe["labels"])}
    with StoreWriter(folder, columns, recipe, options.dtype, options.overwrite) as writer:
        run_to_store(
            encoder,
            clips,
            writer,
            windowing,
            lambda embeddings: {SCORES: to_scores(embeddings)},
            batch_size=options.batch_size,
            num_threads=options.num_threads,
            rows_per_shard=options.rows_per_shard,
            on_error=options.on_error,
            retry_failed=options.retry_failed,
            progress=options.progress,
            description="Detecting",
        )
    return open_store(folder)


def find_stored_events(
    store: EmbeddingStore, labels: Sequence[str], rules: EventRules
) -> pd.DataFrame:
    """Find the events of all recordings in a store of window scores, in bounded memory.

    Args:
        store: From `store_scores`.
        labels: Class names in the order of the scores.
        rules: What counts as an event.

    Returns:
        As `beats_trainer.detection.recordings.find_events_of_recordings`.
    """

    def scored(rows: StoredRows) -> ScoredWindows:
        return rows.start_time, rows.end_time, rows.values[SCORES]

    max_rows = max(1, _PIECE_BYTES // (4 * len(labels)))
    pieces = store.batches_by_file(max_rows, [SCORES])
    return find_events_of_recordings(
        ((name, scored(rows)) for name, rows in pieces),
        lambda name: scored(store.read(name)),
        labels,
        rules,
    )
