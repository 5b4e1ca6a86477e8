"""From which score on a class counts as heard, chosen on clips that were not trained on.

targets, probabilities -> [cutoffs of each class -> the best] -> one threshold per class

Shapes in this file: N clips, K of them known, C classes, S distinct scores.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.reports.ranking import cutoff_counts
from beats_trainer.reports.scores import DEFAULT_THRESHOLD, Task, check_probabilities

__all__ = ["fit_thresholds"]


def fit_thresholds(
    targets: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    task: Task,
    *,
    target_precision: float | None = None,
) -> dict[str, float]:
    """Choose each class's threshold: a clip has the class if its score is at least that.

    A cutoff is as good anywhere between two scores that follow each other; the threshold is the middle of
    them, so that it does not hang on the rounding of one score. Of cutoffs that are equally good in F1 it
    is the highest, in precision the lowest.

    Args:
        targets: Shape ``(N,)``, class ids, for ``"single"``, where each class is set against all others;
            shape ``(N, C)`` for ``"multi"``: 1 present, 0 absent, NaN unknown. Unknown clips are left out.
        probabilities: Shape ``(N, C)``.
        labels: Class names, C of them, in the order of the columns.
        task: Whether a clip has one class or any number of them.
        target_precision: Choose the lowest threshold with at least this precision, which finds the most;
            where none has it, the one with the highest precision, and a warning names the class. ``None``
            chooses the highest F1.

    Returns:
        Thresholds by class name; 0.5 for a class that no clip has, and a warning names it.

    Raises:
        ValueError: If the arrays do not fit, or ``target_precision`` is not above 0 and at most 1.

    Example:
        >>> scores = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
        >>> thresholds = fit_thresholds([0, 0, 1], scores, ["a", "b"], "single")
        >>> round(thresholds["a"], 3), round(thresholds["b"], 3)
        (0.4, 0.6)
    """
    if target_precision is not None and not 0 < target_precision <= 1:
        raise ValueError(
            f"target_precision must be above 0 and at most 1, not {target_precision!r}."
        )
    data = check_probabilities(task, targets, probabilities, len(labels))
    thresholds: dict[str, float] = {}
    never_present: list[str] = []
    out_of_reach: list[str] = []
    for index, label in enumerate(labels):
        known = data.known[:, index]
        present, scores = data.present[known, index], data.scores[known, index]
        if not present.any():
            never_present.append(label)
            thresholds[label] = DEFAULT_THRESHOLD
            continue
        hits, predictions, cutoffs = cutoff_counts(present, scores)
        if target_precision is None:
            best = int(np.argmax(2 * hits / (predictions + hits[-1])))
        else:
            precision = hits / predictions
            if precision.max() < target_precision:
                out_of_reach.append(label)
            enough = min(target_precision, float(precision.max()))
            best = int(np.flatnonzero(precision >= enough)[-1])
        thresholds[label] = _middle(cutoffs, best)
    if never_present:
        warnings.warn(
            f"No clip has {_names(never_present)}, of those that thresholds are fitted on: the threshold "
            f"stays {DEFAULT_THRESHOLD}.",
            stacklevel=2,
        )
    if out_of_reach:
        warnings.warn(
            f"No threshold reaches a precision of {target_precision} for {_names(out_of_reach)}: the "
            "threshold with the highest precision is taken.",
            stacklevel=2,
        )
    return thresholds


def _middle(cutoffs: NDArray[np.float64], index: int) -> float:
    """The middle between a cutoff and the next lower score, which it must leave out."""
    upper = float(cutoffs[index])
    lower = float(cutoffs[index + 1]) if index + 1 < len(cutoffs) else 0.0
    middle = 0.5 * (lower + upper)
    return middle if middle > lower else upper  # neighbouring floats have no middle


def _names(labels: Sequence[str]) -> str:
    return ", ".join(repr(label) for label in labels)
