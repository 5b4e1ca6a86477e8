"""How well a linear classifier tells labelled clips apart by an encoder's embeddings: a look at what is learned.

labelled folder -> clips -> encoder -> embeddings -> [ridge regression, fold by fold] -> accuracy

It is quick and has nothing to tune, so that looks at different times can be compared. For a result to publish, see
`compare_models`.

Shapes in this file: N clips, D width of an embedding, C classes.
"""

import os
import warnings

import numpy as np
from numpy.typing import NDArray

from beats_trainer.datasets import build_manifest, fold_splits, scan_directory_dataset
from beats_trainer.embeddings.encode import DEFAULT_WINDOW_S, encode_clips
from beats_trainer.model import BEATs
from beats_trainer.training.embedded import clips_of

__all__ = ["LinearProbe", "ridge_accuracy"]

_PENALTY = 0.1
"""Of the squared weights, per clip, on standardised embeddings."""


class LinearProbe:
    """Labelled clips, to look at encoders with.

    Args:
        folder: One folder per class; official folds and groups are kept where the data set is known by its names.
        seed: Of the folds, where there are no official ones.

    Raises:
        DatasetError: If it cannot be divided into folds.
    """

    def __init__(self, folder: str | os.PathLike[str], seed: int = 42) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            manifest = build_manifest(scan_directory_dataset(folder))
            folds = fold_splits(manifest, val_split=0.0, seed=seed)
        self.clips = clips_of(manifest.table, DEFAULT_WINDOW_S)
        self.targets = manifest.table["target"].to_numpy()
        self.num_classes = len(manifest.labels)
        self.tested = [fold.splits.test.index.to_numpy() for fold in folds]

    def measure(self, network: BEATs) -> float:
        """Mean accuracy over the folds, of mean-pooled embeddings of the last layer.

        Args:
            network: Where it is, its device is used; put back into its mode afterwards.

        Raises:
            AudioError: If a clip cannot be read.
        """
        encoded = encode_clips(network, self.clips, progress=False)
        embeddings = np.stack(encoded.embeddings)
        return float(
            np.mean(
                [
                    ridge_accuracy(embeddings, self.targets, rows, self.num_classes)
                    for rows in self.tested
                ]
            )
        )


def ridge_accuracy(
    embeddings_ND: NDArray[np.float32],
    targets_N: NDArray[np.int64],
    tested: NDArray[np.int64],
    num_classes: int,
) -> float:
    """Fit a linear map to one-hot classes on all clips but the tested ones, and count how many of those it tells.

    Args:
        embeddings_ND: Shape ``(N, D)``.
        targets_N: Class ids.
        tested: Rows that are not trained on.
        num_classes: C.

    Example:
        >>> embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.2, 0.8]], np.float32)
        >>> ridge_accuracy(embeddings, np.array([0, 1, 0, 1]), np.array([2, 3]), 2)
        1.0
    """
    is_tested = np.zeros(len(targets_N), bool)
    is_tested[tested] = True
    known = embeddings_ND[~is_tested].astype(np.float64)
    mean, std = known.mean(axis=0), known.std(axis=0)
    scaled = (embeddings_ND.astype(np.float64) - mean) / np.where(std > 0, std, 1.0)
    wanted = np.eye(num_classes)[targets_N[~is_tested]]
    offset = wanted.mean(axis=0)
    features = scaled[~is_tested]
    penalty = _PENALTY * len(features) * np.eye(features.shape[1])
    weights = np.linalg.solve(features.T @ features + penalty, features.T @ (wanted - offset))
    guesses = (scaled[is_tested] @ weights + offset).argmax(axis=1)
    return float((guesses == targets_N[is_tested]).mean())
