"""Tables of predictions: a row per clip or window, with its best labels, what is detected, and scores.

windows with embeddings -> [score -> labels | thresholds -> detected] -> table, piece by piece

Shapes in this file: N rows, C classes, D width of an embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.datasets.labels import LABEL_SEPARATOR
from beats_trainer.embeddings.windowed import Window
from beats_trainer.errors import AudioError
from beats_trainer.file_names import printable_name

__all__ = ["PredictionTables", "score_columns"]

_OWN_COLUMNS = ("file", "start_time", "end_time", "label", "score", "detected", "error")
_ROWS_OF_A_PIECE = 4096


def score_columns(labels: Sequence[str]) -> list[str]:
    """Name the column of each class's scores: the class, with ``_score`` if another column is called so.

    Example:
        >>> score_columns(["wren", "score"])
        ['wren', 'score_score']
    """
    columns = []
    taken = {*_OWN_COLUMNS, *labels}
    for label in labels:
        name = label
        while name in _OWN_COLUMNS or (name != label and name in taken):
            name += "_score"
        taken.add(name)
        columns.append(name)
    return columns


@dataclass(frozen=True)
class PredictionTables:
    """What stands in a table of predictions; `pieces` makes it.

    Attributes:
        labels: Class names, C of them, in the order of the scores.
        limits: Score from which on each class is detected, shape ``(C,)``.
        has_one_class: Whether a clip has exactly one class, so that only the best can be detected.
        has_times: Whether there are ``start_time`` and ``end_time``.
        top_k: How many labels have columns, in the place of every class's score; ``None`` for these.
        skips_errors: Whether a clip that cannot be read has a row that says why, or is an error.
    """

    labels: Sequence[str]
    limits: NDArray[np.float64]
    has_one_class: bool
    has_times: bool
    top_k: int | None
    skips_errors: bool

    def pieces(
        self,
        outcomes: Iterable[tuple[Window, NDArray[np.float32] | AudioError]],
        to_scores: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    ) -> Iterator[pd.DataFrame]:
        """Make the table piece by piece.

        Args:
            outcomes: Each window with its embedding ``(D,)``, or why there is none.
            to_scores: Turns embeddings ``(N, D)``, N at least 1, into scores ``(N, C)``.

        Yields:
            Consecutive rows; at least one piece, which is empty if there are no windows.

        Raises:
            AudioError: If a clip could not be read, and errors are not skipped.
        """
        windows: list[Window] = []
        embeddings: list[NDArray[np.float32]] = []
        errors: dict[int, str] = {}
        is_first = True
        for window, values in outcomes:
            if not isinstance(values, AudioError):
                embeddings.append(values)
            elif self.skips_errors:
                errors[len(windows)] = values.reason
            else:
                raise values
            windows.append(window)
            if len(windows) == _ROWS_OF_A_PIECE:
                yield self._piece(windows, embeddings, errors, to_scores)
                windows, embeddings, errors, is_first = [], [], {}, False
        if windows or is_first:
            yield self._piece(windows, embeddings, errors, to_scores)

    def _piece(
        self,
        windows: list[Window],
        embeddings: list[NDArray[np.float32]],
        errors: dict[int, str],
        to_scores: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    ) -> pd.DataFrame:
        has_scores = np.array([row not in errors for row in range(len(windows))], dtype=bool)
        scores = np.full((len(windows), len(self.labels)), np.nan, np.float32)
        if embeddings:
            scores[has_scores] = to_scores(np.stack(embeddings))
        files = [printable_name(window.clip.file) for window in windows]
        columns: dict[str, Any] = {"file": files}
        if self.has_times:
            times = [(window.start_time, window.end_time) for window in windows]
            columns["start_time"] = np.array([start for start, _ in times], np.float64)
            columns["end_time"] = np.array([end for _, end in times], np.float64)
        table = pd.DataFrame(columns | self._label_columns(scores, has_scores))
        if self.top_k is None:
            of_classes = pd.DataFrame(scores, columns=score_columns(self.labels))
            table = pd.concat([table, of_classes], axis=1)
        if self.skips_errors:
            table["error"] = [errors.get(row) for row in range(len(windows))]
        return table

    def _label_columns(
        self, scores: NDArray[np.float32], has_scores: NDArray[np.bool_]
    ) -> dict[str, NDArray[Any]]:
        """The best labels, their scores, and what is detected; missing where there are no scores."""
        best = (-scores).argsort(axis=1, kind="stable")[:, : self.top_k or 1]
        names = np.array(self.labels, dtype=object)[best]
        names[~has_scores] = None
        detected = np.full(len(scores), None, dtype=object)
        detected[has_scores] = self._detected(scores[has_scores])
        values = np.take_along_axis(scores, best, axis=1)
        columns = {"label": names[:, 0], "score": values[:, 0], "detected": detected}
        for rank in range(1, best.shape[1]):
            columns |= {
                f"label_{rank + 1}": names[:, rank],
                f"score_{rank + 1}": values[:, rank],
            }
        return columns

    def _detected(self, scores: NDArray[np.float32]) -> list[str]:
        """Names of the classes that are heard in each of N rows, as text."""
        is_heard = scores >= self.limits
        if self.has_one_class:
            is_heard &= np.arange(len(self.labels)) == scores.argmax(axis=1)[:, None]
        return [
            LABEL_SEPARATOR.join(self.labels[index] for index in np.flatnonzero(row).tolist())
            for row in is_heard
        ]
