"""Events of all recordings of a store of scores, in bounded memory.

store of scores -> [pieces, recording by recording -> find_events] -> events

The network has run already: other thresholds and rules cost seconds.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from beats_trainer.detection.averaging import OverlapAverage
from beats_trainer.detection.events import EventFinder, EventRules, Events
from beats_trainer.embeddings.store import EmbeddingStore
from beats_trainer.embeddings.table import StoredRows

__all__ = ["SCORES", "find_stored_events"]

SCORES = "scores"
"""Column of a store that holds one score per class."""

_PIECE_BYTES = 16_000_000


def find_stored_events(
    store: EmbeddingStore, labels: Sequence[str], rules: EventRules
) -> pd.DataFrame:
    """Find the events of every recording in a store of scores.

    Args:
        store: With a column ``scores``, one per label.
        labels: Class names, in the order of the scores.
        rules: What counts as an event.

    Returns:
        Columns ``file``, ``start_time``, ``end_time`` (seconds from the file's start), ``label``, ``score``:
        recording by recording as the store has them, and in each by start.

    Raises:
        ValueError: If the store has no scores, or not one per label.
    """
    width = store.columns.get(SCORES)
    if width != len(labels):
        raise ValueError(
            f"Expected a store with {len(labels)} {SCORES} per row, one per label; {store.path} has "
            + (f"{width}." if width else f"the columns {', '.join(store.columns)}.")
        )
    found: dict[str, list[Events]] = {}
    again: set[str] = set()
    current: str | None = None
    average, finder = OverlapAverage(), EventFinder(rules)
    last_start = -np.inf
    for name, rows in _by_file(store):
        if name != current:
            if current is not None:
                found[current] += _finish(average, finder)
            average, finder, last_start = OverlapAverage(), EventFinder(rules), -np.inf
            current = name
            if name in found:  # a part of it was done later than the rest
                again.add(name)
            found[name] = []
        starts = rows.start_time
        if name in again or starts[0] < last_start or (np.diff(starts) < 0).any():
            again.add(name)
            continue
        last_start = float(starts[-1])
        cells = average.add(starts, rows.end_time, rows.values[SCORES].astype(np.float32))
        found[name].append(finder.add(*cells))
    if current is not None:
        found[current] += _finish(average, finder)
    for name in again:
        rows = store.read(name)
        average, finder = OverlapAverage(), EventFinder(rules)
        cells = average.add(rows.start_time, rows.end_time, rows.values[SCORES].astype(np.float32))
        found[name] = [finder.add(*cells), *_finish(average, finder)]
    return _to_table(found, labels)


def _by_file(store: EmbeddingStore) -> Iterator[tuple[str, StoredRows]]:
    """Pieces of the store, each with rows of one file."""
    max_rows = max(1, _PIECE_BYTES // (4 * store.columns[SCORES]))
    for rows in store.batches(max_rows=max_rows, columns=[SCORES]):
        names = np.array(rows.file, dtype=object)
        cuts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            yield (
                rows.file[start],
                StoredRows(
                    rows.file[start:stop],
                    rows.start_time[start:stop],
                    rows.end_time[start:stop],
                    {SCORES: rows.values[SCORES][start:stop]},
                ),
            )


def _finish(average: OverlapAverage, finder: EventFinder) -> list[Events]:
    return [finder.add(*average.finish()), finder.finish()]


def _to_table(found: dict[str, list[Events]], labels: Sequence[str]) -> pd.DataFrame:
    files: list[str] = []
    starts, ends, classes, scores = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0)]
    for name, parts in found.items():
        start = np.concatenate([part.starts for part in parts])
        class_ids = np.concatenate([part.classes for part in parts])
        order = np.lexsort((class_ids, start))
        files += [name] * len(order)
        starts.append(start[order])
        ends.append(np.concatenate([part.ends for part in parts])[order])
        classes.append(class_ids[order])
        scores.append(np.concatenate([part.scores for part in parts])[order])
    return pd.DataFrame(
        {
            "file": pd.Series(files, dtype=object),
            "start_time": np.concatenate(starts),
            "end_time": np.concatenate(ends),
            "label": np.array(labels, dtype=object)[np.concatenate(classes)]
            if files
            else np.array([], dtype=object),
            "score": np.concatenate(scores),
        }
    )
