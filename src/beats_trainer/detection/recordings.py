"""Events of many recordings from their window scores, in bounded memory.

scores, recording by recording -> [combine overlaps -> find events] -> one table of events
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from beats_trainer.detection.averaging import OverlapAverage
from beats_trainer.detection.events import EventFinder, EventRules, Events

__all__ = ["ScoredWindows", "find_events_of_recordings"]

ScoredWindows: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Starts ``(N,)`` and ends ``(N,)`` in seconds, and scores ``(N, C)``."""


def find_events_of_recordings(
    pieces: Iterable[tuple[str, ScoredWindows]],
    read: Callable[[str], ScoredWindows],
    labels: Sequence[str],
    rules: EventRules,
) -> pd.DataFrame:
    """Find the events of every recording.

    Args:
        pieces: A recording's name and some of its windows, at least one; the next piece is of the same
            recording, or of another. Only one is needed at a time.
        read: Gives all windows of a recording in time order; called for those that do not come in one go, or
            not in order of time.
        labels: Class names, C of them, in the order of the scores.
        rules: What counts as an event.

    Returns:
        Columns ``file``, ``start_time``, ``end_time`` (seconds from the file's start), ``label``, ``score``:
        recording by recording in the order in which they first came, and in each as `find_events` gives
        them.

    Raises:
        ValueError: As `find_events`.

    Example:
        >>> windows = ([0, 5], [10, 15], [[0.9], [0.5]])
        >>> find_events_of_recordings([("a.wav", windows)], lambda name: windows, ["owl"], EventRules(0.8))
            file  start_time  end_time label  score
        0  a.wav         0.0       5.0   owl    0.9
    """
    found: dict[str, list[Events]] = {}
    again: set[str] = set()
    current: str | None = None
    average, finder = OverlapAverage(rules.combine), EventFinder(rules)
    last_start = -np.inf
    for name, (starts, ends, scores) in pieces:
        if name != current:
            if current is not None:
                found[current] += _finish(average, finder)
            current, last_start = name, -np.inf
            if name in found:  # a part of it was done later than the rest
                again.add(name)
            found[name] = []
        start = np.asarray(starts, np.float64)
        if np.diff(start, prepend=last_start).min() < 0:
            again.add(name)
        if name not in again:
            last_start = float(start[-1])
            found[name].append(finder.add(*average.add(start, ends, scores)))
    if current is not None:
        found[current] += _finish(average, finder)
    for name in again:
        found[name] = [finder.add(*average.add(*read(name))), *_finish(average, finder)]
    return _to_table(found, labels)


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
