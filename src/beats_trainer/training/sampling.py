"""In which order an epoch hears the clips, and which of them.

targets, epoch seed -> [order of rows] -> batches

Shapes in this file: N clips, C classes.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["epoch_order", "rank_batches"]


def epoch_order(targets: NDArray[np.float32], sampling: str, seed: int) -> NDArray[np.int64]:
    """The rows of one epoch, in the order in which they are heard.

    Args:
        targets: Shape ``(N, C)``, 1 where a class is present, NaN where unknown.
        sampling: ``"all"``: each clip once, shuffled. ``"class_balanced"``: N draws with replacement, each
            of a class that comes up as often as every other one, then of one of its clips; clips
            without any class count as a class of their own.
        seed: Of the epoch.

    Returns:
        Row numbers, shape ``(N,)``.

    Raises:
        ValueError: If ``sampling`` is unknown.

    Example:
        >>> rare = np.eye(2, dtype=np.float32)[[0] * 98 + [1] * 2]
        >>> order = epoch_order(rare, "class_balanced", seed=0)
        >>> int((order >= 98).sum())  # as often as the other 98 together
        50
    """
    # RandomState's stream is frozen for good (NEP 19), default_rng's is not.
    random = np.random.RandomState(seed % 2**32)
    num_clips = len(targets)
    if sampling == "all":
        return random.permutation(num_clips).astype(np.int64)
    if sampling != "class_balanced":
        raise ValueError(f"Unknown sampling {sampling!r}: expected all or class_balanced.")
    present = np.nan_to_num(targets) > 0
    present = np.column_stack([present, ~present.any(axis=1)])
    members = [np.flatnonzero(column) for column in present.T if column.any()]
    # Every class equally often, to within one; only which gets the rest is left to chance.
    classes = np.arange(num_clips) % len(members)
    classes = random.permutation(len(members))[classes]
    rows = [members[number][random.randint(len(members[number]))] for number in classes]
    return random.permutation(np.array(rows, dtype=np.int64))


def rank_batches(
    num_clips: int, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> list[list[int]]:
    """Deal the rows of each batch out to several processes, such that together they have the whole of it.

    Args:
        num_clips: Rows, in the order of the epoch.
        batch_size: Clips of a batch over all processes together.
        rank: Whose share.
        num_ranks: Processes.

    Returns:
        One list of rows per batch; empty where a last batch has fewer clips than there are processes.

    Example:
        >>> rank_batches(5, 4, rank=0, num_ranks=2), rank_batches(5, 4, rank=1, num_ranks=2)
        ([[0, 2], [4]], [[1, 3], []])
    """
    return [
        list(range(start + rank, min(start + batch_size, num_clips), num_ranks))
        for start in range(0, num_clips, batch_size)
    ]
