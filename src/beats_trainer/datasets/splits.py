"""Divide a manifest into training, validation and test clips without letting a recording into two of them.

Manifest -> [split column | official folds | whole groups | stratified] -> Splits

The first of these that the table allows is taken. A split depends on the table and the seed alone, not on
the order of the rows or on the machine.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.datasets.labels import Task
from beats_trainer.datasets.manifest import Manifest
from beats_trainer.datasets.stratify import TEST, TRAIN, VAL, class_pairs, divide, filled_column
from beats_trainer.errors import DatasetError

__all__ = [
    "Splits",
    "classes_in",
    "fold_order",
    "make_splits",
    "refuse_divided_files",
    "refuse_untrained_classes",
    "split_manifest",
    "warn_of_leaks",
]

_PARTS = ("train", "validation", "test")
_PART_OF_NAME = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}


@dataclass(frozen=True)
class Splits:
    """A manifest's rows in three parts, each row in one of them; indices are the manifest's."""

    train: pd.DataFrame
    """Rows to fit on; has every class."""
    val: pd.DataFrame
    """Rows to choose the best epoch on; may be empty."""
    test: pd.DataFrame
    """Rows to report the result on; may be empty."""
    labels: list[str]
    """Classes in the order of their ids, as in the manifest."""
    how: str
    """How the split was made, one sentence for the log and the report."""
    task: Task = "single"
    """Exactly one class per clip, or any number of them, as in the manifest."""


def split_manifest(
    manifest: Manifest,
    train_split: float = 0.8,
    val_split: float = 0.1,
    test_split: float = 0.1,
    seed: int = 42,
) -> Splits:
    """Divide a manifest by its ``split`` column, else its folds, else its groups, else by class.

    - ``split`` (train, val, valid, validation, dev or test, in any case): taken as it is; the shares do
      not apply.
    - ``fold``: the highest is the test part, the next the validation part, the others are for training. A
      part whose share is 0 is left out, and its fold goes to the next.
    - ``group`` (the recording a clip was cut from): whole groups, each put where it brings the parts
      closest to their shares of every class. Without it, parts of one file are a group.
    - otherwise: clips at random, the shares of every class.

    With the last two, every class keeps at least one training clip.

    Args:
        manifest: What to divide.
        train_split: Share of the clips to train on.
        val_split: Share to validate on; 0 for none.
        test_split: Share to test on; 0 for none.
        seed: Of the random choice, 0 to 2**32 - 1.

    Returns:
        The three parts.

    Raises:
        ValueError: If the shares are negative, do not sum to 1, or leave nothing to train on.
        DatasetError: If ``split`` has an unknown value, a column that decides has blanks, there are too
            few folds, parts of one file are in two parts, or a class is present in no training clip.

    Warns:
        UserWarning: If a class is absent from validation or test, one of them has clips of one class
            only, a part that was asked for is empty, or clips of one group are in two parts.

    Example:
        >>> splits = split_manifest(build_manifest(load_esc50("datasets")))  # doctest: +SKIP
        >>> len(splits.train), len(splits.val), len(splits.test)  # doctest: +SKIP
        (1200, 400, 400)
    """
    shares = (train_split, val_split, test_split)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or train_split == 0:
        raise ValueError(
            "train_split, val_split and test_split must be shares that sum to 1, the first above 0, "
            f"not {train_split}, {val_split} and {test_split}."
        )
    table = manifest.table
    columns = set(table.columns)
    if "split" in columns:
        parts, how = _by_column(table)
    elif "fold" in columns:
        parts, how = _by_fold(table, val_split > 0, test_split > 0)
    else:
        parts, how = divide(table, manifest.num_classes, manifest.task, shares, seed)
        for part in (VAL, TEST):
            if shares[part] > 0 and not (parts == part).any():
                what = "clips" if how.startswith("clips") else "clips or groups"
                warnings.warn(
                    f"The {_PARTS[part]} part is empty: there are too few {what} for a share of "
                    f"{shares[part]:g}.",
                    stacklevel=2,
                )
    refuse_divided_files(table, np.array(_PARTS)[parts])
    refuse_untrained_classes(manifest, parts)
    _warn_of_absent_classes(manifest, parts)
    warn_of_leaks(table, parts)
    return make_splits(manifest, parts, f"Split by {how}")


def make_splits(manifest: Manifest, parts: NDArray[np.int64], how: str) -> Splits:
    """Divide the manifest's rows as decided.

    Args:
        manifest: What to divide.
        parts: Part of each row, shape ``(N,)``: 0 to train on, 1 to validate, 2 to test.
        how: Beginning of the sentence that tells how; the numbers of clips are added.

    Returns:
        The three parts.
    """
    sizes = ", ".join(f"{int((parts == part).sum())} {_PARTS[part]}" for part in range(3))
    train, val, test = (manifest.table[parts == part] for part in range(3))
    return Splits(train, val, test, manifest.labels, f"{how}: {sizes} clips.", manifest.task)


def fold_order(fold: Any) -> tuple[str, float, str]:
    """Order ``2`` before ``10``, and ``fold2`` before ``fold10``.

    Example:
        >>> sorted(["fold10", "fold2"], key=fold_order)
        ['fold2', 'fold10']
    """
    text = str(fold)
    number = re.search(r"\d+(?:\.\d+)?$", text)
    if number is None:
        return text, 0.0, text
    return text[: number.start()], float(number.group()), text


def classes_in(manifest: Manifest, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say which classes are present in some of the clips.

    Args:
        manifest: The clips.
        mask: Which of its rows count, shape ``(N,)``.

    Returns:
        Shape ``(C,)``.
    """
    rows, classes = class_pairs(manifest.table, manifest.task)
    return np.bincount(classes[mask[rows]], minlength=manifest.num_classes) > 0


def refuse_divided_files(table: pd.DataFrame, part_of_row: Sequence[str] | NDArray[Any]) -> None:
    """Refuse parts of one file in two parts of a split: neighbouring seconds are alike.

    Args:
        table: Rows of a manifest.
        part_of_row: What each row's part is called.

    Raises:
        DatasetError: If there are some; it names a file.
    """
    parts, paths = pd.Series(np.asarray(part_of_row)), table["path"].to_numpy()
    num_parts = parts.groupby(paths).nunique()
    divided = num_parts.index[(num_parts > 1).to_numpy()]
    if len(divided):
        found = sorted({str(part) for part in parts[paths == divided[0]]}, key=fold_order)
        raise DatasetError(
            f"Parts of one file are in {' and '.join(found)}, of {len(divided)} files: {divided[0]}. What "
            "is cut from one recording is alike, and would make the result look better than it is. Give "
            "all parts of a file the same place, or remove the column that divides them."
        )


def refuse_untrained_classes(manifest: Manifest, parts: NDArray[np.int64], where: str = "") -> None:
    """Refuse to train without a class.

    Args:
        manifest: The clips.
        parts: Part of each row, shape ``(N,)``.
        where: Words to put before the message.

    Raises:
        DatasetError: If a class is present in no training clip; it names the class, and where it is.
    """
    trained = classes_in(manifest, parts == TRAIN)
    absent = [label for label, known in zip(manifest.labels, trained, strict=True) if not known]
    if not absent:
        return
    rows, classes = class_pairs(manifest.table, manifest.task)
    elsewhere = rows[classes == manifest.labels.index(absent[0])]
    example = ""
    if len(elsewhere):
        file = manifest.table["path"].iloc[elsewhere[0]]
        example = f" {absent[0]!r} is in the {_PARTS[parts[elsewhere[0]]]} part, in {file}."
    listed = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
    raise DatasetError(
        f"{where}{len(absent)} of {manifest.num_classes} classes have no clip to train on: {listed}."
        f"{example} Give each class a training clip, or remove it from the table."
    )


def _by_column(table: pd.DataFrame) -> tuple[NDArray[np.int64], str]:
    names = filled_column(table, "split").astype(str)
    parts = names.str.strip().str.lower().map(_PART_OF_NAME)
    unknown = sorted(set(names[parts.isna()]))
    if unknown:
        raise DatasetError(
            f"The column 'split' must say train, val (or valid, validation, dev) or test, not "
            f"{', '.join(repr(name) for name in unknown[:5])}."
        )
    return np.asarray(parts, dtype=np.int64), "the column 'split'"


def _by_fold(
    table: pd.DataFrame, wants_val: bool, wants_test: bool
) -> tuple[NDArray[np.int64], str]:
    column = filled_column(table, "fold")
    folds = sorted(column.unique(), key=fold_order)
    roles = [part for part, wanted in ((TEST, wants_test), (VAL, wants_val)) if wanted]
    if len(folds) < len(roles) + 1:
        raise DatasetError(
            f"The column 'fold' has {len(folds)} folds, but {len(roles) + 1} are needed for training"
            f"{''.join(f', {_PARTS[part]}' for part in roles)}. Set val_split or test_split to 0, or "
            "give the table a column 'split'."
        )
    part_of_fold = dict.fromkeys(folds, TRAIN)
    part_of_fold.update(zip(reversed(folds), roles, strict=False))
    described = "; ".join(
        f"{name} on {', '.join(str(fold) for fold in folds if part_of_fold[fold] == part)}"
        for part, name in enumerate(_PARTS)
        if part in part_of_fold.values()
    )
    parts: NDArray[np.int64] = column.map(part_of_fold).to_numpy(dtype=np.int64)
    return parts, f"folds ({described})"


def _warn_of_absent_classes(manifest: Manifest, parts: NDArray[np.int64]) -> None:
    for part in (VAL, TEST):
        mask, name = parts == part, _PARTS[part]
        if not mask.any():
            continue
        there = classes_in(manifest, mask)
        absent = [label for label, known in zip(manifest.labels, there, strict=True) if not known]
        if absent:
            listed = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            warnings.warn(
                f"{len(absent)} of {manifest.num_classes} classes have no clip in the {name} part, which "
                f"says nothing about them: {listed}.",
                stacklevel=3,
            )
        if manifest.num_classes > 1 and there.sum() == 1:
            warnings.warn(
                f"The {name} part has clips of one class only, "
                f"{manifest.labels[int(there.argmax())]!r}: it cannot show whether classes are told apart.",
                stacklevel=3,
            )


def warn_of_leaks(table: pd.DataFrame, parts: NDArray[Any]) -> None:
    """Warn of groups in more than one part.

    Args:
        table: Rows of a manifest.
        parts: Part or fold of each row, shape ``(N,)``.

    Warns:
        UserWarning: If there are some.
    """
    if "group" not in table.columns:
        return
    known = table["group"].notna().to_numpy()
    num_parts = pd.Series(parts[known]).groupby(table["group"].to_numpy()[known]).nunique()
    leaking = num_parts.index[(num_parts > 1).to_numpy()]
    if len(leaking):
        warnings.warn(
            f"{len(leaking)} of {len(num_parts)} groups, such as {leaking[0]!r}, have clips in more than "
            "one part: clips of one recording are alike, so the result will look better than it is.",
            stacklevel=3,
        )
