"""Divide clips so that every part has its share of every class, whole groups at a time.

clips, their classes and groups -> [divide | spread] -> the part, or the fold, of each clip

The result depends on the clips and the seed alone, not on the order of the rows or on the machine. A class
has its share of the clips in which it is present; clips without any class are shared out like one more.

Shapes in this file: N clips, G groups, C classes (with several labels per clip, the last is "none of them").
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.datasets.labels import Task
from beats_trainer.errors import DatasetError

__all__ = [
    "TEST",
    "TRAIN",
    "VAL",
    "Groups",
    "class_pairs",
    "divide",
    "filled_column",
    "groups_of",
    "spread",
]

TRAIN = 0
"""Number of the part to train on."""
VAL = 1
"""Number of the part to choose the epoch on."""
TEST = 2
"""Number of the part to report on."""


@dataclass(frozen=True)
class Groups:
    """Clips that belong together, and what they hold."""

    names: NDArray[Any]
    """Name of each group, sorted, shape ``(G,)``."""
    of_clip: NDArray[np.int64]
    """The group of each clip, shape ``(N,)``, place in ``names``."""
    counts: NDArray[np.int64]
    """Clips of each group in which each class is present, shape ``(G, C)``."""
    kind: str
    """``"groups"``, ``"files"`` whose parts stay together, or ``"clips"``, each for itself."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Clips of each group, shape ``(G,)``."""
        return np.bincount(self.of_clip, minlength=len(self.names))


def groups_of(table: pd.DataFrame, num_classes: int, task: Task) -> Groups:
    """Find what belongs together: equal ``group``, else parts of one file, else each clip for itself.

    Args:
        table: Rows of a manifest.
        num_classes: Number of classes.
        task: The manifest's.

    Returns:
        The groups.

    Raises:
        DatasetError: If ``group`` is blank in some row.
    """
    if "group" in table.columns:
        kind, keys = "groups", filled_column(table, "group").astype(str).to_numpy(dtype=object)
    else:
        kind, keys = "files" if "start_time" in table.columns else "clips", _paths(table)
    names, of_clip = np.unique(keys, return_inverse=True)
    rows, classes = class_pairs(table, task)
    if task == "multi":  # clips without a class are to be shared out too
        nothing = np.setdiff1d(np.arange(len(table)), rows)
        rows = np.concatenate([rows, nothing])
        classes = np.concatenate([classes, np.full(len(nothing), num_classes)])
        num_classes += 1
    counts = np.zeros((len(names), num_classes), dtype=np.int64)
    np.add.at(counts, (of_clip[rows], classes), 1)
    return Groups(names, of_clip, counts, kind)


def class_pairs(table: pd.DataFrame, task: Task) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each clip and class that is present in it.

    Args:
        table: Rows of a manifest.
        task: The manifest's.

    Returns:
        Places of rows in the table, and class ids, each of shape ``(P,)``.

    Example:
        >>> class_pairs(pd.DataFrame({"present": [(0, 1), (), (1,)]}), "multi")
        (array([0, 0, 2]), array([0, 1, 1]))
    """
    if task == "single":
        return np.arange(len(table)), table["target"].to_numpy(dtype=np.int64)
    present = table["present"].tolist()
    rows = np.repeat(np.arange(len(table)), [len(classes) for classes in present])
    return rows, np.fromiter((n for classes in present for n in classes), dtype=np.int64)


def divide(
    table: pd.DataFrame,
    num_classes: int,
    task: Task,
    shares: tuple[float, float, float],
    seed: int,
) -> tuple[NDArray[np.int64], str]:
    """Divide clips into training, validation and test.

    Every class keeps at least one clip for training.

    Args:
        table: Rows of a manifest.
        num_classes: Number of classes.
        task: The manifest's.
        shares: Of the three parts; they sum to 1.
        seed: Of the random choice.

    Returns:
        The part of each row, shape ``(N,)``, and how it was decided.

    Raises:
        DatasetError: If ``group`` is blank in some row.
    """
    # RandomState's stream is frozen for good (NEP 19), default_rng's is not.
    random = np.random.RandomState(seed)
    groups = groups_of(table, num_classes, task)
    if groups.kind == "clips" and task == "single":
        # The rows' order is an accident of the file system or of an export.
        order = np.argsort(_paths(table), kind="stable")
        parts = np.empty(len(table), dtype=np.int64)
        targets = table["target"].to_numpy()[order]
        parts[order] = _stratified(targets, num_classes, shares, random)
    else:
        parts = _by_group(groups.counts, num_classes, shares, random)[groups.of_clip]
    if groups.kind == "clips":
        return parts, f"clips at random, stratified by class, seed {seed}"
    number = len(groups.names)
    return parts, f"whole {groups.kind} ({number} of them), stratified by class, seed {seed}"


def spread(
    counts: NDArray[np.int64], num_folds: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    """Deal whole groups out to folds, so that each class is in as many folds as its groups allow.

    Groups whose rarest class has the fewest groups come first, then the largest. Each goes to the fold that lacks
    most of its classes (a class counts the more, the fewer groups have it), else to where the classes'
    numbers are furthest below equal shares (chi-square).

    Args:
        counts: Clips of each group and class, shape ``(G, C)``.
        num_folds: How many folds; at most G.
        random: Decides between equals.

    Returns:
        The fold of each group, shape ``(G,)``; no fold is empty.
    """
    num_groups_of_class = np.maximum((counts > 0).sum(axis=0), 1)
    rarity = np.where(counts > 0, num_groups_of_class, len(counts) + 1).min(axis=1)
    wanted = np.maximum(counts.sum(axis=0), 1) / num_folds
    filled = np.zeros((num_folds, counts.shape[1]), dtype=np.int64)
    folds = np.empty(len(counts), dtype=np.int64)
    shuffled = random.permutation(len(counts))
    order = np.lexsort((-counts[shuffled].sum(axis=1), rarity[shuffled]))
    for number in shuffled[order]:
        held = np.flatnonzero(counts[number])
        group, before = counts[number, held], filled[:, held]
        lacking = ((before == 0) / num_groups_of_class[held]).sum(axis=1)
        change = (group * (2 * (before - wanted[held]) + group) / wanted[held]).sum(axis=1)
        # Rounded: sums that are equal but for the order of adding shall be equal.
        keys = (filled.sum(axis=1), np.round(change, 9), -np.round(lacking, 9))
        fold = int(np.lexsort(keys)[0])
        folds[number] = fold
        filled[fold] += counts[number]
    return folds


def filled_column(table: pd.DataFrame, column: str) -> "pd.Series[Any]":
    """A column that decides about the split.

    Raises:
        DatasetError: If it has blanks; it names the rows.
    """
    blank = table[column].isna() | (table[column].astype(str).str.strip() == "")
    if blank.any():
        rows = [str(int(row) + 1) for row in np.flatnonzero(blank.to_numpy())[:10]]
        raise DatasetError(
            f"The column {column!r} decides about the split, but is blank in {int(blank.sum())} rows: "
            f"{', '.join(rows)}{', ...' if blank.sum() > 10 else ''} (the first clip is row 1). Fill it, "
            "or remove the column."
        )
    return table[column]


def _stratified(
    targets: NDArray[np.int64],
    num_classes: int,
    shares: tuple[float, float, float],
    random: np.random.RandomState,
) -> NDArray[np.int64]:
    sizes = np.bincount(targets, minlength=num_classes)
    spare = np.maximum(sizes - 1, 0)  # one clip of each class stays for training
    ties = random.permutation(num_classes)
    num_test = _shared_out(sizes, shares[TEST], spare, ties)
    num_val = _shared_out(sizes, shares[VAL], spare - num_test, ties[::-1])
    parts = np.full(len(targets), TRAIN, dtype=np.int64)
    for target in range(num_classes):
        rows = random.permutation(np.flatnonzero(targets == target))
        parts[rows[: num_test[target]]] = TEST
        parts[rows[num_test[target] : num_test[target] + num_val[target]]] = VAL
    return parts


def _shared_out(
    sizes: NDArray[np.int64], share: float, most: NDArray[np.int64], ties: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many clips of each class go to a part: its share, rounded so that the sum is right too."""
    if share == 0:
        return np.zeros_like(sizes)
    ideal = sizes * share
    counts: NDArray[np.int64] = np.minimum(np.floor(ideal + 1e-9).astype(np.int64), most)
    total = min(max(1, round(float(ideal.sum()))), int(most.sum()))
    while counts.sum() < total:
        lacking = np.where(counts < most, ideal - counts, -np.inf)[ties]
        counts[ties[int(np.argmax(lacking))]] += 1
    return counts


def _by_group(
    counts: NDArray[np.int64],
    num_classes: int,
    shares: tuple[float, float, float],
    random: np.random.RandomState,
) -> NDArray[np.int64]:
    """Assign whole groups, the largest first, each to where it lowers the chi-square distance most."""
    wanted = np.outer(shares, np.maximum(counts.sum(axis=0), 1))
    open_parts = [part for part in range(3) if shares[part] > 0]
    filled = np.zeros((3, counts.shape[1]), dtype=np.int64)
    part_of_group = np.full(len(counts), TRAIN, dtype=np.int64)
    left = counts.sum(axis=0)  # clips of each class not assigned yet

    def cost(part: int, group: NDArray[np.int64]) -> float:
        change = group * (2 * (filled[part] - wanted[part]) + group)
        return float((change / wanted[part]).sum())

    shuffled = random.permutation(len(counts))
    for number in shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]:
        group = counts[number]
        left = left - group
        # The last clips of a class that could still go to training must go there.
        last = bool(((group > 0) & (filled[TRAIN] + left == 0)).any())
        part = TRAIN if last else min(open_parts, key=lambda p: cost(p, group))
        part_of_group[number] = part
        filled[part] += group
    for part in open_parts:
        if filled[part, :num_classes].any():
            continue
        # Groups are coarse: rather too large a part than none, or one that can measure nothing.
        can_leave = [
            n
            for n in shuffled
            if part_of_group[n] == TRAIN
            and not ((counts[n] > 0) & (filled[TRAIN] == counts[n])).any()
        ]
        with_class = [n for n in can_leave if counts[n, :num_classes].any()]
        can_leave = with_class or ([] if filled[part].any() else can_leave)
        if can_leave:
            number = min(can_leave, key=lambda n: cost(part, counts[n]))
            part_of_group[number] = part
            filled[TRAIN] -= counts[number]
            filled[part] += counts[number]
    return part_of_group


def _paths(table: pd.DataFrame) -> NDArray[Any]:
    return table["path"].str.replace("\\", "/").to_numpy(dtype=str)
