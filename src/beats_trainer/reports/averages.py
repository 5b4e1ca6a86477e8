"""Precision, recall and F1 from counts, and their means over classes.

hits, support, predictions -> [ratios] -> per class -> [mean over the classes that count]

The counts may have any leading axes: a whole split is one row of classes, the bootstrap has a row per
resample.

Shapes in this file: C classes; ... any leading axes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassRates", "class_rates", "mean_over", "ratio"]


@dataclass(frozen=True)
class ClassRates:
    """Rates of each class, and their macro averages.

    Macro averages run over the classes that occur among the targets or the predictions, as scikit-learn's
    do by default; a class without predictions has precision 0, one without targets has recall 0. They are
    0 where no class occurs.

    Attributes:
        precision: Shape ``(..., C)``.
        recall: Shape ``(..., C)``.
        f1: Shape ``(..., C)``.
        macro_precision: Shape ``(...)``.
        macro_recall: Shape ``(...)``.
        macro_f1: Shape ``(...)``.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    macro_precision: NDArray[np.float64]
    macro_recall: NDArray[np.float64]
    macro_f1: NDArray[np.float64]


def class_rates(hits: NDArray[Any], support: NDArray[Any], predictions: NDArray[Any]) -> ClassRates:
    """Compute rates from counts.

    Args:
        hits: Clips in which a class is present and predicted, shape ``(..., C)``.
        support: Clips in which it is present, shape ``(..., C)``.
        predictions: Clips in which it is predicted, shape ``(..., C)``.

    Example:
        >>> rates = class_rates(np.array([1, 0]), np.array([2, 0]), np.array([1, 1]))
        >>> rates.recall.tolist(), rates.macro_recall.tolist()
        ([0.5, 0.0], 0.25)
    """
    precision, recall = ratio(hits, predictions), ratio(hits, support)
    f1 = ratio(2 * hits, support + predictions)
    occurs = support + predictions > 0
    macro = [mean_over(rate, occurs, otherwise=0.0) for rate in (precision, recall, f1)]
    return ClassRates(precision, recall, f1, *macro)


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Divide, with 0 where there is nothing to divide by; shapes ``(...)``."""
    quotient: NDArray[np.float64] = np.divide(
        numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0
    )
    return quotient


def mean_over(
    values: NDArray[np.float64], counts: NDArray[np.bool_], otherwise: float = np.nan
) -> NDArray[np.float64]:
    """Average over the classes that count.

    Args:
        values: Shape ``(..., C)``; ignored, NaN too, where ``counts`` is ``False``.
        counts: Shape ``(..., C)``.
        otherwise: The mean of no class.

    Returns:
        Shape ``(...)``.
    """
    num = counts.sum(axis=-1)
    total = np.where(counts, values, 0.0).sum(axis=-1)
    mean: NDArray[np.float64] = np.where(num > 0, total / np.maximum(num, 1), otherwise)
    return mean
