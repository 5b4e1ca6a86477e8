"""How well a class's score ranks the clips with it before those without: average precision, ROC AUC.

OneVsRest -> [sort by score] -> ClassRanking; weights -> [cumulate] -> average precision, ROC AUC

Equal to scikit-learn's ``average_precision_score`` (the step function, not the interpolated one) and
``roc_auc_score``: clips of one score are one step. Both are undefined, NaN, for a class that all or none of
the clips have. Weights make one pass serve a split (all 1) and its bootstrap resamples (how often each clip
was drawn).

Shapes in this file: N clips, K of them known, C classes, R weightings, S steps.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beats_trainer.reports.averages import mean_over, ratio
from beats_trainer.reports.scores import OneVsRest, Task, check_probabilities

__all__ = [
    "ClassRanking",
    "cutoff_counts",
    "macro_mean",
    "precision_recall_points",
    "rank_classes",
    "sort_classes",
]


def rank_classes(
    classes: Sequence["ClassRanking"], weights: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute average precision and ROC AUC of each class.

    Args:
        classes: C of them, from ``sort_classes``.
        weights: How often each clip counts, shape ``(N, R)``.

    Returns:
        Average precision and ROC AUC, each of shape ``(R, C)``, NaN where undefined.
    """
    # Classes one after the other: all at once would hold R times N times C numbers.
    ranked = np.array([ranking(weights) for ranking in classes])
    return ranked[:, 0].T, ranked[:, 1].T


def sort_classes(data: OneVsRest) -> list["ClassRanking"]:
    """Sort the known clips of each class by its score; what every weighting has in common."""
    columns = zip(data.present.T, data.known.T, data.scores.T, strict=True)
    return [
        ClassRanking(present[known], scores[known], known) for present, known, scores in columns
    ]


def macro_mean(of_class: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over the classes that are defined; shape ``(..., C)`` to ``(...)``, NaN if none is."""
    return mean_over(of_class, ~np.isnan(of_class))


class ClassRanking:
    """Average precision and ROC AUC of one class under any weighting of the clips.

    Args:
        present: The clip has the class, shape ``(K,)``.
        scores: Shape ``(K,)``; only their order matters.
        known: Which of all clips these are, shape ``(N,)``, K times ``True``; ``None`` for all.

    Example:
        >>> ClassRanking(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))(np.ones((3, 1)))
        (array([0.83333333]), array([0.5]))
    """

    def __init__(
        self,
        present: NDArray[np.bool_],
        scores: NDArray[np.float64],
        known: NDArray[np.bool_] | None = None,
    ) -> None:
        self.is_defined = bool(present.any()) and not bool(present.all())
        if not self.is_defined:
            return
        order = np.argsort(-scores, kind="stable")
        ranked, descending = present[order], scores[order]
        # A step is all clips of one score. Neighbouring steps without the class change neither number in
        # between, so they are one: a rare class has few steps, however many clips there are.
        tie = np.r_[0, np.cumsum(descending[1:] != descending[:-1])]
        has_class = np.bincount(tie, ranked) > 0
        starts_step = np.r_[
            True, (tie[1:] != tie[:-1]) & (has_class[tie[1:]] | has_class[tie[:-1]])
        ]
        self.starts = np.flatnonzero(starts_step)
        found = np.flatnonzero(ranked)
        step_of_found = (np.cumsum(starts_step) - 1)[found]
        self.steps_with_class, self.first_found = np.unique(step_of_found, return_index=True)
        clips = order if known is None else np.flatnonzero(known)[order]
        self.clips = clips.astype(np.int32)  # half the memory; there are C of these
        self.clips_with_class = self.clips[found]

    def __call__(
        self, weights: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rank the clips.

        Args:
            weights: How often each clip counts, shape ``(N, R)``, whole numbers of any float type.

        Returns:
            Average precision and ROC AUC, each of shape ``(R,)``; NaN where all or none of the weight is
            on clips with the class.
        """
        average_precision = np.full(weights.shape[1], np.nan)
        roc_auc = average_precision.copy()
        if not self.is_defined:
            return average_precision, roc_auc
        total_SR = _sum_steps(weights, self.clips, self.starts)
        positive_SR = _sum_steps(weights, self.clips_with_class, self.first_found)
        seen_SR = np.cumsum(total_SR, axis=0)
        all_clips = seen_SR[-1]
        seen_SR, total_SR = seen_SR[self.steps_with_class], total_SR[self.steps_with_class]
        hits_SR = np.cumsum(positive_SR, axis=0)
        positives = hits_SR[-1]
        negatives = all_clips - positives
        has_both = (positives > 0) & (negatives > 0)

        precision_SR = ratio(hits_SR, seen_SR)
        precision_SR *= positive_SR
        # A clip without the class that ties counts half: the area under the ROC curve's slanted step.
        below_SR = negatives - (seen_SR - hits_SR) + 0.5 * (total_SR - positive_SR)
        below_SR *= positive_SR
        np.divide(precision_SR.sum(axis=0), positives, out=average_precision, where=has_both)
        np.divide(below_SR.sum(axis=0), positives * negatives, out=roc_auc, where=has_both)
        return average_precision, roc_auc


def precision_recall_points(
    targets: ArrayLike, probabilities: ArrayLike, class_index: int, task: Task
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the precision-recall curve of one class, against all others where a clip has one class.

    Args:
        targets: Shape ``(N,)``, class ids, for ``"single"``; shape ``(N, C)`` for ``"multi"``: 1 present,
            0 absent, NaN unknown. Unknown clips are left out.
        probabilities: Shape ``(N, C)``.
        class_index: Which class, in ``0..C-1``.
        task: Whether a clip has one class or any number of them.

    Returns:
        Precision, recall and thresholds as scikit-learn's ``precision_recall_curve`` gives them: at the
        i-th threshold, rising, a clip counts if its score is at least the threshold; after the last
        threshold stands the point of precision 1 and recall 0. Three empty arrays for a class that no clip
        has: it has no curve.

    Raises:
        ValueError: If the arrays do not fit, or there is no such class.

    Example:
        >>> probabilities = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]
        >>> precision, recall, thresholds = precision_recall_points([0, 1, 0], probabilities, 0, "single")
        >>> recall.tolist(), thresholds.tolist()
        ([1.0, 0.5, 0.5, 0.0], [0.3, 0.4, 0.9])
    """
    data = check_probabilities(task, targets, probabilities)
    num_classes = data.scores.shape[1]
    if not 0 <= class_index < num_classes:
        raise ValueError(f"There is no class {class_index}; the classes are 0..{num_classes - 1}.")
    known = data.known[:, class_index]
    present, scores = data.present[known, class_index], data.scores[known, class_index]
    if not present.any():
        return np.empty(0), np.empty(0), np.empty(0)
    hits, predictions, cutoffs = cutoff_counts(present, scores)
    precision = np.r_[(hits / predictions)[::-1], 1.0]
    recall = np.r_[(hits / hits[-1])[::-1], 0.0]
    return precision, recall, cutoffs[::-1].copy()


def cutoff_counts(
    present: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Count what each score finds when it is the threshold.

    Args:
        present: The clip has the class, shape ``(K,)``.
        scores: Shape ``(K,)``.

    Returns:
        Clips with the class, and all clips, that score at least the cutoff; and the cutoffs, which are
        the distinct scores, falling. Each of shape ``(S,)``.
    """
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    last = np.r_[np.flatnonzero(descending[1:] != descending[:-1]), len(descending) - 1]
    hits = np.cumsum(present[order], dtype=np.int64)[last]
    return hits, (last + 1).astype(np.int64), descending[last]


def _sum_steps(
    weights: NDArray[np.floating], clips: NDArray[np.int32], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.add.reduceat(np.take(weights, clips, axis=0), starts, axis=0)
    return sums.astype(np.float64)
