"""The run behind `BEATsPredictor.detect`: a store of window scores, kept up to date, and the events in it.

clips -> [those to score] -> windows -> engine -> [scores -> store] -> [read by file -> events]

Shapes in this file: N windows, C classes, D width of an embedding.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.detection.events import EventRules
from beats_trainer.detection.export import is_clip_name
from beats_trainer.detection.recording_tables import absolute
from beats_trainer.detection.recordings import ScoredWindows, find_events_of_recordings
from beats_trainer.embeddings import EmbeddingStore, open_store
from beats_trainer.embeddings.batch_size import BatchSize
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.journal import FileState
from beats_trainer.embeddings.parquet import Dtype
from beats_trainer.embeddings.run import DEFAULT_ROWS_PER_SHARD, run_to_store
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.embeddings.table import StoredRows
from beats_trainer.embeddings.windows import Windowing
from beats_trainer.errors import AudioNotFoundError
from beats_trainer.loading import Clip

__all__ = ["SCORES", "RunOptions", "find_stored_events", "scored", "without_exports"]

log = logging.getLogger(__name__)

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


def without_exports(clips: Sequence[Clip], output: Path) -> list[Clip]:
    """Leave out what an earlier run exported for review, where its folder lies among the recordings.

    Args:
        clips: The recordings, or parts of them.
        output: The folder of the run.

    Returns:
        The others.

    Raises:
        AudioNotFoundError: If there are no others.
    """
    inside = os.path.join(os.path.abspath(output), "")
    kept = [
        clip
        for clip in clips
        if not is_clip_name(os.path.basename(clip.file))
        or not os.path.abspath(clip.file).startswith(inside)
    ]
    num_exported = len(clips) - len(kept)
    if num_exported and not kept:
        raise AudioNotFoundError(
            str(output),
            "all that is to be searched are clips that an earlier run exported into this output. To search "
            "them, choose another output.",
        )
    if num_exported:
        log.info(
            "%d clips in %s, which an earlier run exported for review, are no recordings and are left out.",
            num_exported,
            output,
        )
    return kept


@contextlib.contextmanager
def scored(
    encoder: Encoder,
    clips: Sequence[Clip],
    folder: Path,
    windowing: Windowing,
    to_scores: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    recipe: Mapping[str, Any],
    options: RunOptions,
) -> Iterator[tuple[EmbeddingStore, list[Clip]]]:
    """Bring a store of window scores up to date, and keep other runs from it meanwhile.

    Args:
        encoder: The network with the classifier's pooling.
        clips: The recordings, or parts of them.
        folder: The store's.
        windowing: How recordings are cut.
        to_scores: Turns embeddings ``(N, D)`` into scores ``(N, C)``.
        recipe: How scores are made: a store goes on with the same only. Holds ``labels``.
        options: The rest.

    Yields:
        The store, with a column ``scores``: of these clips, and of those that it had before; and the clips,
        under the names that they have there. Until it is left, another run is refused: what is made of
        the scores belongs to them.

    Raises:
        StoreError: As `StoreWriter`.
        AudioError: If a file cannot be read and errors are not skipped.
        OSError: If the store cannot be written.
    """
    columns = {SCORES: len(recipe["labels"])}
    with StoreWriter(folder, columns, recipe, options.dtype, options.overwrite) as writer:
        named = _named_as_before(clips, writer)
        run_to_store(
            encoder,
            named,
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
        yield open_store(folder), named


def _named_as_before(clips: Sequence[Clip], writer: StoreWriter) -> list[Clip]:
    """Give clips the names that they have in the store: another spelling of a path is no other recording.

    A relative name may have been given in another folder then: the file must be the same one, too.
    """
    known = {_place(clip): clip for clip in writer.clips_known}

    def named(clip: Clip) -> Clip:
        other = known.get(_place(clip))
        if other is None or writer.progress(clip) is not None:
            return clip
        progress = writer.progress(other)
        state = FileState.of(clip.file)
        return other if progress and state is not None and state == progress.state else clip

    return [named(clip) for clip in clips]


def _place(clip: Clip) -> tuple[str, float, float | None]:
    return absolute(clip.file), clip.start_s, clip.duration_s


def find_stored_events(
    store: EmbeddingStore, labels: Sequence[str], rules: EventRules
) -> pd.DataFrame:
    """Find the events of all recordings in a store of window scores, in bounded memory.

    Args:
        store: From `scored`.
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
