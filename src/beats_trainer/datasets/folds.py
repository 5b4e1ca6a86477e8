"""Cross-validation: every clip tested once, by a model that has heard nothing of its recording.

Manifest -> [official folds | whole groups | one group each] -> FoldSplit per fold -> train, evaluate, average

The test part of a fold is that fold; validation, which chooses the epoch, is taken from the others, in whole
groups, so that no test clip has a say in the model it tests. As in :mod:`~beats_trainer.datasets.splits`, the
result depends on the table and the seed alone.
"""

import os
import posixpath
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beats_trainer.datasets.manifest import Manifest
from beats_trainer.datasets.splits import (
    Splits,
    classes_in,
    fold_order,
    make_splits,
    refuse_divided_files,
    refuse_untrained_classes,
    warn_of_leaks,
)
from beats_trainer.datasets.stratify import (
    TEST,
    TRAIN,
    VAL,
    Groups,
    divide,
    filled_column,
    groups_of,
    spread,
)
from beats_trainer.errors import ConfigError, DatasetError

__all__ = ["DEFAULT_FOLDS", "FoldSplit", "fold_splits"]

DEFAULT_FOLDS = 5
"""Where nothing says how many, and there are no official ones."""
_NEVER_TESTED = -1
"""Instead of a fold: these clips are for training in every one."""


@dataclass(frozen=True)
class FoldSplit:
    """One round of a cross-validation."""

    name: str
    """The fold that is tested: its official name, its number from 1, or the name of the group (of a path, what
    tells it from the others)."""
    splits: Splits
    """What to train on, to validate on and to test on."""


def fold_splits(
    manifest: Manifest,
    folds: int | Literal["groups"] | None = None,
    *,
    val_split: float = 0.1,
    seed: int = 42,
) -> list[FoldSplit]:
    """Divide a manifest for cross-validation: each fold is the test part once.

    - A column ``fold`` and ``folds=None`` (or their number): the official folds.
    - ``folds=k`` without that column: k folds of whole groups (without groups: of clips; parts of one
      file are a group), each with its share of every class, and every class in as many folds as its
      groups allow.
    - ``folds="groups"``: one fold per group, such as leave one speaker out.

    A class whose clips are all in one group would be missing from training when that group is tested.
    Where the folds are made here, the group stays in training and is never tested, with a warning that
    names the class; official folds are never changed, so there it is an error.

    Args:
        manifest: What to divide.
        folds: How many folds, or ``"groups"``; ``None``: the official ones, else 5.
        val_split: Share of the clips outside the tested fold to choose the best epoch on, in whole
            groups; 0 for none.
        seed: Of the random choice, 0 to 2**32 - 1.

    Returns:
        One per fold, in the order of their names. Rows keep the manifest's indices.

    Raises:
        ConfigError: If ``folds`` is below 2 or something else, or ``val_split`` is no share below 1.
        DatasetError: If there are fewer groups (or clips) than folds, ``folds`` is not the number of
            official folds, ``folds="groups"`` without groups, a deciding column has blanks, parts of one
            file are in two official folds, or a class is in one official fold only.

    Warns:
        UserWarning: If some clips are never tested, a fold has clips of one class only, validation
            stays empty, a group is in two official folds, or a column ``split`` is passed over.

    Example:
        >>> rounds = fold_splits(build_manifest(load_esc50("datasets")))  # doctest: +SKIP
        >>> [(fold.name, len(fold.splits.test)) for fold in rounds]  # doctest: +SKIP
        [('1', 400), ('2', 400), ('3', 400), ('4', 400), ('5', 400)]
    """
    is_number = isinstance(folds, int) and not isinstance(folds, bool)
    if folds is not None and folds != "groups" and (not is_number or int(folds) < 2):
        raise ConfigError(
            f"folds must be a whole number of at least 2, 'groups' or None, not {folds!r}: one fold is "
            "tested while the others are trained on."
        )
    if not 0 <= val_split < 1:
        raise ConfigError(f"val_split must be a share from 0 to below 1, not {val_split!r}.")
    if "split" in manifest.table.columns:
        warnings.warn(
            "The column 'split' is passed over: in a cross-validation every clip is tested once.",
            stacklevel=2,
        )
    if folds != "groups" and "fold" in manifest.table.columns:
        names, fold_of_clip, how = _official_folds(manifest, folds)
    else:
        names, fold_of_clip, how = _made_folds(manifest, folds or DEFAULT_FOLDS, seed)
    return _rounds(manifest, names, fold_of_clip, how, val_split, seed)


def _official_folds(
    manifest: Manifest, folds: int | str | None
) -> tuple[list[str], NDArray[np.int64], str]:
    column = filled_column(manifest.table, "fold")
    order = sorted(column.unique(), key=fold_order)
    names = [f"{fold:g}" if isinstance(fold, float) else str(fold) for fold in order]
    if len(order) < 2:
        raise DatasetError(
            f"The column 'fold' has one fold only ({names[0]}): a cross-validation needs at least 2. "
            "Remove the column to have folds made."
        )
    if folds is not None and folds != len(order):
        raise DatasetError(
            f"folds={folds}, but the table has {len(order)} official folds ({', '.join(names[:12])}). "
            "Leave folds out to use those, as published results do, or remove the column 'fold' to "
            f"have {folds} made."
        )
    numbers = {fold: number for number, fold in enumerate(order)}
    fold_of_clip = column.map(numbers).to_numpy(dtype=np.int64)
    labels = [f"fold {names[number]}" for number in fold_of_clip]
    refuse_divided_files(manifest.table, labels)
    warn_of_leaks(manifest.table, fold_of_clip)
    return names, fold_of_clip, "official folds"


def _made_folds(
    manifest: Manifest, folds: int | Literal["groups"], seed: int
) -> tuple[list[str], NDArray[np.int64], str]:
    groups = groups_of(manifest.table, manifest.num_classes, manifest.task)
    if folds == "groups" and groups.kind == "clips":
        raise DatasetError(
            "folds='groups' tests one group at a time, but the table has no groups. Say which clips belong "
            "together with a column 'group', group_column= or group_pattern=."
        )
    present = groups.counts[:, : manifest.num_classes] > 0
    only_holders = present[:, present.sum(axis=0) == 1]  # of classes that one group alone has
    stays = np.asarray(only_holders.any(axis=1))
    tested = np.flatnonzero(~stays)
    num_folds = len(tested) if folds == "groups" else int(folds)
    if len(tested) < max(num_folds, 2):
        kept = f", besides {int(stays.sum())} that alone hold a class" if stays.any() else ""
        raise DatasetError(
            f"{max(num_folds, 2)} folds need as many {groups.kind} to test, but there are {len(tested)}"
            f"{kept}. Use fewer folds, or add data."
        )
    fold_of_group = np.full(len(stays), _NEVER_TESTED, dtype=np.int64)
    if folds == "groups":
        fold_of_group[tested] = np.argsort(
            sorted(range(len(tested)), key=lambda n: fold_order(groups.names[tested[n]]))
        )
        names = _without_common_folder(
            sorted((str(name) for name in groups.names[tested]), key=fold_order)
        )
        how = f"one fold per group, {num_folds} groups"
    else:
        random = np.random.RandomState(seed)  # its stream is frozen for good (NEP 19)
        fold_of_group[tested] = spread(groups.counts[tested], num_folds, random)
        names = [str(number) for number in range(1, num_folds + 1)]
        whole = "" if groups.kind == "clips" else f"whole {groups.kind}, "
        how = f"{num_folds} folds made, {whole}stratified by class, seed {seed}"
    _keep_one_group_of_each_class(present, fold_of_group, groups)
    _warn_of_untested(manifest, present, fold_of_group, groups)
    return names, fold_of_group[groups.of_clip], how


def _without_common_folder(names: list[str]) -> list[str]:
    """Groups that are recordings, by as much of their paths as tells them apart."""
    if not all(os.path.isabs(name) for name in names):
        return names
    common = posixpath.commonpath(names).rstrip("/") + "/"
    return [name.removeprefix(common) for name in names]


def _keep_one_group_of_each_class(
    present: NDArray[np.bool_], fold_of_group: NDArray[np.int64], groups: Groups
) -> None:
    """Take the smallest group out of testing where all groups of a class came into one fold.

    Too few folds for classes that share groups in every way cannot be avoided. No fold is emptied: of the
    groups of such a class, at least two are in the fold.
    """
    sizes = groups.sizes
    for label in range(present.shape[1]):
        holders = np.flatnonzero(present[:, label])
        folds = np.unique(fold_of_group[holders])
        if len(folds) == 1 and folds[0] != _NEVER_TESTED:
            fold_of_group[holders[np.argmin(sizes[holders])]] = _NEVER_TESTED


def _warn_of_untested(
    manifest: Manifest,
    present: NDArray[np.bool_],
    fold_of_group: NDArray[np.int64],
    groups: Groups,
) -> None:
    stays = fold_of_group == _NEVER_TESTED
    if not stays.any():
        return
    untested = ~present[~stays].any(axis=0) & present.any(axis=0)
    named = [label for label, never in zip(manifest.labels, untested, strict=True) if never]
    what = (
        f"{len(named)} of {manifest.num_classes} classes are tested in no fold, since all their clips are in "
        f"one of the {groups.kind}, which stays in training: {', '.join(named[:10])}. "
        if named
        else ""
    )
    warnings.warn(
        f"{what}{int(groups.sizes[stays].sum())} of {len(groups.of_clip)} clips are never tested, because "
        f"training would lack a class: {', '.join(repr(str(n)) for n in groups.names[stays][:5])}.",
        stacklevel=4,
    )


def _rounds(
    manifest: Manifest,
    names: Sequence[str],
    fold_of_clip: NDArray[np.int64],
    how: str,
    val_split: float,
    seed: int,
) -> list[FoldSplit]:
    table = manifest.table
    rounds: list[FoldSplit] = []
    of_one_class: list[str] = []
    without_val: list[str] = []
    for number, name in enumerate(names):
        is_tested = fold_of_clip == number
        parts: NDArray[np.int64] = np.where(is_tested, TEST, TRAIN)
        refuse_untrained_classes(manifest, parts, f"Fold {name}: ")
        if val_split > 0:
            shares = (1 - val_split, val_split, 0.0)
            rest = table[~is_tested]
            parts[~is_tested], _ = divide(rest, manifest.num_classes, manifest.task, shares, seed)
            if not (parts == VAL).any():
                without_val.append(name)
        there = classes_in(manifest, is_tested)
        if manifest.num_classes > 1 and there.sum() == 1:
            of_one_class.append(f"{name} ({manifest.labels[int(there.argmax())]})")
        described = f"Fold {name} ({number + 1} of {len(names)}; {how})"
        rounds.append(FoldSplit(name, make_splits(manifest, parts, described)))
    if of_one_class:
        warnings.warn(
            f"{len(of_one_class)} of {len(names)} folds have clips of one class only, and cannot show whether "
            f"classes are told apart: {', '.join(of_one_class[:10])}.",
            stacklevel=3,
        )
    if without_val:
        warnings.warn(
            f"Validation is empty in {len(without_val)} of {len(names)} folds ({', '.join(without_val[:10])}): "
            f"there are too few clips or groups for a share of {val_split:g}. No epoch can be chosen there.",
            stacklevel=3,
        )
    return rounds
