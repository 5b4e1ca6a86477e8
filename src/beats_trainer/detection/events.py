"""From scores over time to events: when a class starts to be heard, and when it ends.

windows with scores -> [combine overlaps] -> cells -> [thresholds, hysteresis -> merge -> drop] -> events

1. A class is **on** in a cell if its score is at least ``release * threshold``, and it is among the cell's
   ``top_n`` classes.
2. Cells that touch and in which a class is on are one **run**. A run in which the score reaches the
   threshold somewhere is an event, all of it: hysteresis lets an event begin before its score is high, as it
   lets it fade out.
3. Events of a class with at most ``merge_gap_s`` between them are **merged**, whatever is between them: low
   scores, or sound that is missing.
4. What is then shorter than ``min_duration_s`` is **dropped**.

Shapes in this file: M cells, C classes, R runs, E events.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.detection.averaging import (
    COMBINATIONS,
    Combination,
    OverlapAverage,
    check_scored_times,
)

__all__ = ["EventFinder", "EventRules", "Events", "find_events"]

_ROUNDING_S = 0.5 / SAMPLE_RATE
"""Times closer than this are the same."""


@dataclass(frozen=True, eq=False)
class EventRules:
    """What counts as an event.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> EventRules([0.5, 0.8], release=0.6).lows.tolist()
        [0.3, 0.48]
    """

    thresholds: ArrayLike
    """Score from which on each class counts as heard, shape ``(C,)``, or one number for all; not negative.
    ``inf`` for a class that is not to be found."""
    release: float = 1.0
    """Part of the threshold that an event's score may fall to, above 0 to 1; 1 for no hysteresis."""
    min_duration_s: float = 0.0
    """Seconds that an event lasts at least, after merging."""
    merge_gap_s: float = 0.0
    """Seconds that may lie between two events of a class that are one."""
    top_n: int | None = None
    """How many classes may be on at a time, the best-scoring ones; ``None`` for any number. Of equal scores
    the class with the lower id is better."""
    combine: Combination = "mean"
    """What a moment's score is where windows overlap: their ``"mean"``, or the ``"lowest"``, see
    `OverlapAverage`."""

    def __post_init__(self) -> None:
        thresholds = np.array(self.thresholds, dtype=np.float64)  # a copy: ours cannot be changed
        if thresholds.ndim > 1 or thresholds.size == 0:
            raise ValueError(
                f"thresholds must be one number per class, or one for all; got shape {thresholds.shape}."
            )
        if not (thresholds >= 0).all():  # NaN too
            raise ValueError(
                f"Thresholds must not be negative nor NaN; the lowest is {thresholds.min()}. Take inf for "
                "a class that is not to be found."
            )
        if not 0 < self.release <= 1:
            raise ValueError(
                f"release must be above 0 and at most 1, a part of the threshold; not {self.release}."
            )
        for name in ("min_duration_s", "merge_gap_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be seconds from 0 on, not {value}.")
        if self.top_n is not None and (self.top_n < 1 or int(self.top_n) != self.top_n):
            raise ValueError(
                f"top_n must be a number of classes from 1 on, or None; not {self.top_n}."
            )
        if self.combine not in COMBINATIONS:
            raise ValueError(
                f"combine must be {' or '.join(map(repr, COMBINATIONS))}, not {self.combine!r}."
            )
        thresholds.setflags(write=False)
        object.__setattr__(self, "thresholds", thresholds)

    @property
    def highs(self) -> NDArray[np.float64]:
        """Score that an event reaches, shape ``(C,)``, or ``()`` if it is one for all."""
        return np.asarray(self.thresholds, dtype=np.float64)

    @property
    def lows(self) -> NDArray[np.float64]:
        """Score that an event stays at or above, of the same shape."""
        return self.release * self.highs


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one recording.

    Attributes:
        starts: Seconds from the recording's start, shape ``(E,)``.
        ends: Seconds, shape ``(E,)``.
        classes: Class ids, shape ``(E,)``, int64.
        scores: The highest score in each, shape ``(E,)``.
    """

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.starts)

    def to_pandas(self, labels: Sequence[str]) -> pd.DataFrame:
        """Name the classes.

        Args:
            labels: Class names in the order of their ids.

        Returns:
            Columns ``start_time``, ``end_time``, ``label``, ``score``; in the order of the events.
        """
        return pd.DataFrame(
            {
                "start_time": self.starts,
                "end_time": self.ends,
                "label": np.array(labels, dtype=object)[self.classes],
                "score": self.scores,
            }
        ).astype({"label": "str"})


@dataclass
class _Runs:
    """Stretches in which a class is on, sorted by class and then by time."""

    classes: NDArray[np.int64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    scores: NDArray[np.float64]
    is_event: NDArray[np.bool_]
    is_open: NDArray[np.bool_]
    """Whether it reaches the last cell so far, and may go on."""

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "_Runs":
        return _Runs(
            self.classes[which],
            self.starts[which],
            self.ends[which],
            self.scores[which],
            self.is_event[which],
            self.is_open[which],
        )

    def __add__(self, later: "_Runs") -> "_Runs":
        """Both, where those of a class in the first precede those in the second."""
        both = _Runs(
            np.concatenate([self.classes, later.classes]),
            np.concatenate([self.starts, later.starts]),
            np.concatenate([self.ends, later.ends]),
            np.concatenate([self.scores, later.scores]),
            np.concatenate([self.is_event, later.is_event]),
            np.concatenate([self.is_open, later.is_open]),
        )
        return both[np.argsort(both.classes, kind="stable")]

    def join(self, gap_s: float) -> "_Runs":
        """Make one of those of a class that at most this many seconds lie between."""
        if len(self) < 2:
            return self
        is_new = np.empty(len(self), dtype=bool)
        is_new[0] = True
        is_new[1:] = (self.classes[1:] != self.classes[:-1]) | (
            self.starts[1:] - self.ends[:-1] > gap_s + _ROUNDING_S
        )
        first = np.flatnonzero(is_new)
        last = np.append(first[1:], len(self)) - 1
        return _Runs(
            self.classes[first],
            self.starts[first],
            self.ends[last],
            np.maximum.reduceat(self.scores, first),
            np.logical_or.reduceat(self.is_event, first),
            self.is_open[last],
        )


@dataclass
class EventFinder:
    """Find the events of one recording while its scores come in.

    Memory holds, of each class, at most one run that goes on and one event that may be merged with the
    next. The events do not depend on how the cells are divided into calls.

    Attributes:
        rules: What counts as an event.

    Example:
        >>> finder = EventFinder(EventRules([0.5], release=0.5))
        >>> len(finder.add([0, 1, 2], [1, 2, 3], [[0.1], [0.3], [0.7]]))  # it goes on
        0
        >>> events = finder.add([3, 4], [4, 5], [[0.4], [0.2]])
        >>> events.starts, events.ends, events.scores
        (array([1.]), array([4.]), array([0.7]))
        >>> len(finder.finish())
        0
    """

    rules: EventRules
    _open: _Runs | None = field(default=None, init=False, repr=False)
    _waiting: _Runs | None = field(default=None, init=False, repr=False)
    _end: float = field(default=-np.inf, init=False, repr=False)

    def add(self, starts: ArrayLike, ends: ArrayLike, scores: ArrayLike) -> Events:
        """Take further cells.

        Args:
            starts: Seconds from the recording's start, shape ``(M,)``.
            ends: Seconds, shape ``(M,)``; no cell starts before the one before it ends.
            scores: Shape ``(M, C)``.

        Returns:
            The events that no later cell can change, by class and then by time.

        Raises:
            ValueError: If shapes do not fit, a number is not finite, or cells overlap.
        """
        start, end, score = check_scored_times(starts, ends, scores)
        if not len(start):
            return _no_events()
        num_classes = score.shape[1]
        if self.rules.highs.ndim and len(self.rules.highs) != num_classes:
            raise ValueError(
                f"There are thresholds for {len(self.rules.highs)} classes, and scores of {num_classes}."
            )
        before = np.concatenate([[self._end], end[:-1]])
        if (start - before < -_ROUNDING_S).any():
            raise ValueError(
                "Each cell must start where the one before it ends, or later. Average windows that overlap "
                "with OverlapAverage first, and use one EventFinder per recording."
            )
        runs = self._runs_of(start, end, score, follows_gap=start - before > _ROUNDING_S)
        runs = (runs if self._open is None else self._open + runs).join(0.0)
        runs.is_open &= runs.ends >= end[-1]  # what was open and did not go on, no more
        self._end = float(end[-1])
        return self._close(runs)

    def finish(self) -> Events:
        """Give the rest of the events, and forget everything: the next cell is of another recording."""
        runs = self._open
        if runs is None:
            return _no_events()
        self._end = np.inf
        runs.is_open[:] = False
        events = self._close(runs)
        self._open, self._waiting, self._end = None, None, -np.inf
        return events

    def _runs_of(
        self,
        starts: NDArray[np.float64],
        ends: NDArray[np.float64],
        scores: NDArray[np.float64],
        follows_gap: NDArray[np.bool_],
    ) -> _Runs:
        is_on = scores >= self.rules.lows
        if self.rules.top_n is not None:
            _keep_best(is_on, scores, self.rules.top_n)
        # By class, then by time.
        classes, cells = np.nonzero(is_on.T)
        values = scores[cells, classes]
        is_first = np.ones(len(cells), dtype=bool)
        is_first[1:] = (
            (classes[1:] != classes[:-1]) | (cells[1:] != cells[:-1] + 1) | follows_gap[cells[1:]]
        )
        first = np.flatnonzero(is_first)
        last = np.append(first[1:], len(cells))[: len(first)] - 1
        highs = np.broadcast_to(self.rules.highs, scores.shape[1:])
        tops = np.maximum.reduceat(values, first) if len(first) else values
        return _Runs(
            classes[first],
            starts[cells[first]],
            ends[cells[last]],
            tops,
            tops >= highs[classes[first]],
            cells[last] == len(starts) - 1,
        )

    def _close(self, runs: _Runs) -> Events:
        """Keep what may still grow, and give what is final."""
        self._open = runs[runs.is_open]
        events = runs[~runs.is_open & runs.is_event]
        if self._waiting is not None:
            events = self._waiting + events
        events = events.join(self.rules.merge_gap_s)
        # The next event of a class starts where its open run does, or not before the end of what we know.
        num_classes = 1 + max(runs.classes.max(initial=0), events.classes.max(initial=0))
        next_start = np.full(num_classes, self._end)
        next_start[self._open.classes] = self._open.starts
        gap = next_start[events.classes] - events.ends
        is_final = gap > self.rules.merge_gap_s + _ROUNDING_S
        self._waiting = events[~is_final]
        lasts = events.ends - events.starts >= self.rules.min_duration_s - _ROUNDING_S
        final = events[is_final & lasts]
        return Events(final.starts, final.ends, final.classes, final.scores)


def find_events(
    chunks: Iterable[tuple[ArrayLike, ArrayLike, ArrayLike]],
    labels: Sequence[str],
    rules: EventRules,
) -> pd.DataFrame:
    """Find the events of one recording.

    Args:
        chunks: Starts ``(N,)``, ends ``(N,)`` and scores ``(N, C)`` of windows, in the order of their starts;
            they may overlap, and are combined where they do. Only one chunk is needed at a time.
        labels: Class names, C of them, in the order of the scores.
        rules: What counts as an event.

    Returns:
        One row per event, ``start_time``, ``end_time`` (seconds from the recording's start), ``label`` and
        ``score`` (the highest combined one); by start, and those that start together in the order of
        ``labels``.

    Raises:
        ValueError: If shapes do not fit, a number is not finite, or windows are not in order.

    Example:
        >>> windows = ([0, 5, 10], [10, 15, 20], [[0.9], [0.5], [0.1]])
        >>> find_events([windows], ["owl"], EventRules(0.6))
           start_time  end_time label  score
        0         0.0      10.0   owl    0.9
    """
    if rules.highs.ndim and len(rules.highs) != len(labels):
        raise ValueError(f"There are {len(rules.highs)} thresholds for {len(labels)} labels.")
    average, finder = OverlapAverage(rules.combine), EventFinder(rules)
    parts = []
    for starts, ends, scores in chunks:
        if np.ndim(scores) == 2 and np.shape(scores)[1] != len(labels):
            raise ValueError(
                f"Each window has {np.shape(scores)[1]} scores, and there are {len(labels)} labels."
            )
        parts.append(finder.add(*average.add(starts, ends, scores)))
    parts += [finder.add(*average.finish()), finder.finish()]
    starts, ends, classes, scores = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("starts", "ends", "classes", "scores")
    )
    order = np.lexsort((classes, starts))
    events = Events(starts[order], ends[order], classes[order], scores[order])
    return events.to_pandas(labels)


def _keep_best(is_on: NDArray[np.bool_], scores: NDArray[np.float64], num: int) -> None:
    """Turn off, in place, what is not among the best of its cell; both of shape ``(M, C)``."""
    num_classes = scores.shape[1]
    rows = np.flatnonzero(is_on.any(axis=1))
    if num >= num_classes or not len(rows):
        return
    values = scores[rows]
    limit = np.partition(values, num_classes - num, axis=1)[:, [num_classes - num]]
    is_above, is_level = values > limit, values == limit
    places = num - is_above.sum(axis=1, keepdims=True)
    is_on[rows] &= is_above | (is_level & (is_level.cumsum(axis=1) <= places))


def _no_events() -> Events:
    return Events(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64), np.empty(0))
