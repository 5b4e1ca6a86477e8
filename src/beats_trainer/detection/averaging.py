"""Make one score of those of windows that overlap: their mean, or the lowest.

windows with scores -> [cut time at every start and end -> combine what covers each piece] -> cells -> events

Windows may overlap by any amount and be of any length; where none is, as after a window that could not be
read, there is no cell. Memory holds only the windows that later ones may still overlap.

Shapes in this file: N windows, P of them pending, M cells, C classes.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.constants import SAMPLE_RATE

__all__ = ["COMBINATIONS", "Cells", "Combination", "OverlapAverage", "check_scored_times"]

Cells = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Starts ``(M,)`` and ends ``(M,)`` in seconds, rising and without overlap, and combined scores ``(M, C)``."""

Combination = Literal["mean", "lowest"]
"""How the scores of windows that overlap become one."""
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
"""The same, to iterate over."""


@dataclass
class _Windows:
    """Windows whose end lies ahead, in the order of their starts; times also in samples at 16 kHz."""

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __getitem__(self, which: NDArray[np.bool_]) -> "_Windows":
        return _Windows(
            self.starts[which],
            self.ends[which],
            self.first[which],
            self.stop[which],
            self.scores[which],
        )

    def __add__(self, later: "_Windows") -> "_Windows":
        return _Windows(
            np.concatenate([self.starts, later.starts]),
            np.concatenate([self.ends, later.ends]),
            np.concatenate([self.first, later.first]),
            np.concatenate([self.stop, later.stop]),
            np.concatenate([self.scores, later.scores]),
        )


@dataclass
class OverlapAverage:
    """Scores over time, from windows that come in the order of their starts.

    Time is cut at the start and the end of every window; a cell between two cuts has the mean of the
    windows that cover it, or the lowest of their scores. Cuts are the same if they round to the same sample at 16 kHz: what differs by
    less is rounding. The result does not depend on how the windows are divided into calls.

    Attributes:
        combine: ``"mean"``, or ``"lowest"``: of a classifier that is sure of a sound wherever in its window it
            lies, the mean stays high for as long as any window reaches the sound, and so begins before it;
            the lowest is high only where no window without the sound reaches.

    Example:
        >>> average = OverlapAverage()
        >>> starts, ends, means = average.add([0.0, 5.0], [10.0, 15.0], [[0.2], [0.6]])
        >>> starts, ends, means  # later windows start at 5 s or after
        (array([0.]), array([5.]), array([[0.2]]))
        >>> starts, ends, means = average.finish()
        >>> starts, ends, means.round(3)
        (array([ 5., 10.]), array([10., 15.]), array([[0.4],
               [0.6]]))
    """

    combine: Combination = "mean"
    _pending: _Windows | None = field(default=None, init=False, repr=False)
    _last_start: float = field(default=-np.inf, init=False, repr=False)
    _done: tuple[int, float] = field(default=(0, 0.0), init=False, repr=False)
    """Up to which sample, and which time, cells were given."""

    def add(self, starts: ArrayLike, ends: ArrayLike, scores: ArrayLike) -> Cells:
        """Take further windows.

        Args:
            starts: Seconds from the recording's start, shape ``(N,)``; never smaller than one before.
            ends: Seconds, each above its start, shape ``(N,)``.
            scores: Shape ``(N, C)``.

        Returns:
            The cells that no later window can change.

        Raises:
            ValueError: If shapes do not fit, a number is not finite, a window ends before it starts, or the
                windows are not in the order of their starts.
        """
        start, end, score = check_scored_times(starts, ends, scores)
        previous = self._pending
        if previous is not None and score.shape[1] != previous.scores.shape[1]:
            raise ValueError(
                f"Expected {previous.scores.shape[1]} scores per window, as before; got {score.shape[1]}."
            )
        if not len(start):
            return _no_cells(score.shape[1])
        if np.diff(start, prepend=self._last_start).min() < 0:
            raise ValueError(
                "Windows must come in the order of their starts; one starts before the window that came "
                "before it. Sort them, and use one OverlapAverage per recording."
            )
        first = np.rint(start * SAMPLE_RATE).astype(np.int64)
        stop = np.maximum(np.rint(end * SAMPLE_RATE).astype(np.int64), first + 1)
        windows = _Windows(start, end, first, stop, score)
        if previous is None:
            self._done = (int(first[0]), float(start[0]))
        else:
            windows = previous + windows
        self._last_start = float(start[-1])
        return self._give(windows, up_to=int(first[-1]))

    def finish(self) -> Cells:
        """Give the rest of the cells, and forget everything: the next window is of another recording."""
        windows = self._pending
        if windows is None:
            return _no_cells(0)
        cells = self._give(windows, up_to=int(windows.stop.max(initial=self._done[0])))
        self._pending, self._last_start = None, -np.inf
        return cells

    def _give(self, windows: _Windows, up_to: int) -> Cells:
        """Cells from where we are up to a cut, at which they end or begin; what lies beyond stays pending."""
        done, done_s = self._done
        cuts, where = np.unique(np.concatenate([windows.first, windows.stop]), return_inverse=True)
        # The earliest of the times that are one cut: those to come are later than all that are decided.
        times = np.full(len(cuts), np.inf)
        np.minimum.at(times, where, np.concatenate([windows.starts, windows.ends]))
        is_between = (cuts > done) & (cuts <= up_to)
        cuts = np.concatenate([[done], cuts[is_between]])
        times = np.concatenate([[done_s], times[is_between]])
        combined, is_covered = _combine(windows, cuts, self.combine)
        self._done = (int(cuts[-1]), float(times[-1]))
        self._pending = windows[windows.stop > up_to]
        return times[:-1][is_covered], times[1:][is_covered], combined


def check_scored_times(
    starts: ArrayLike, ends: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Check stretches of time that have scores.

    Args:
        starts: Seconds, shape ``(N,)``.
        ends: Seconds, each above its start, shape ``(N,)``.
        scores: Shape ``(N, C)``.

    Returns:
        The three as float64.

    Raises:
        ValueError: If shapes do not fit, a number is not finite, or an end is not above its start.
    """
    start = np.asarray(starts, dtype=np.float64)
    end = np.asarray(ends, dtype=np.float64)
    score = np.asarray(scores, dtype=np.float64)
    if start.ndim != 1 or start.shape != end.shape or score.ndim != 2 or len(score) != len(start):
        raise ValueError(
            "Expected starts and ends of shape (N,) and scores of shape (N, classes); got "
            f"{start.shape}, {end.shape} and {score.shape}."
        )
    if not (np.isfinite(start).all() and np.isfinite(end).all() and np.isfinite(score).all()):
        raise ValueError(
            "Times and scores must be finite numbers. Leave out what could not be scored: a gap stays a gap."
        )
    if not (end > start).all():
        worst = int(np.argmin(end - start))
        raise ValueError(
            f"Each end must be above its start; got {start[worst]:g} to {end[worst]:g} s."
        )
    return start, end, score


def _combine(
    windows: _Windows, cuts: NDArray[np.int64], how: Combination
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score of each cell that a window covers, and which of the cells between the cuts those are."""
    num_cells = len(cuts) - 1
    first = np.searchsorted(cuts, windows.first)
    stop = np.minimum(np.searchsorted(cuts, windows.stop, side="right") - 1, num_cells)
    num_covered = np.maximum(stop - first, 0)
    # Each pair of a window and a cell that it covers: by cell, in it in the order of the windows.
    window = np.repeat(np.arange(len(first)), num_covered)
    within = np.arange(len(window)) - np.repeat(num_covered.cumsum() - num_covered, num_covered)
    cell = first[window] + within
    order = np.argsort(cell, kind="stable")
    window, cell = window[order], cell[order]
    depth = np.bincount(cell, minlength=num_cells)
    is_covered = depth > 0
    depth = depth[is_covered]
    offset = depth.cumsum() - depth
    combined = windows.scores[window[offset]]
    # Window by window: a running sum over time would leave rounding where windows have ended.
    for number in range(1, int(depth.max(initial=0))):
        deep = np.flatnonzero(depth > number)
        scores = windows.scores[window[offset[deep] + number]]
        combined[deep] = (
            combined[deep] + scores if how == "mean" else np.minimum(combined[deep], scores)
        )
    if how == "mean":
        combined /= depth[:, None]
    return combined, is_covered


def _no_cells(num_classes: int) -> Cells:
    return np.empty(0), np.empty(0), np.empty((0, num_classes))
