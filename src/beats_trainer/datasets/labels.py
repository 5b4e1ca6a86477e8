"""What each clip is known to contain: label cells -> classes present, absent or unknown -> targets.

label cells -> [ClipLabels, one per clip] -> class ids -> targets (N,) or (N, C)

A clip of a "single" data set has exactly one class. A clip of a "multi" data set has any number of them, and
what is not known about it stays unknown: it is neither a positive nor a negative, in training and in metrics.

Shapes in this file: N clips, C classes.
"""

import difflib
import numbers
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.config import Task
from beats_trainer.errors import DatasetError

__all__ = [
    "ALL_OTHERS",
    "LABEL_SEPARATOR",
    "ClipLabels",
    "Task",
    "Unlisted",
    "check_class_names",
    "checked_categories",
    "checked_labels",
    "is_blank",
    "is_list",
    "labels_from_cells",
    "labels_from_columns",
    "name_rows",
    "nearest_name",
    "sorted_labels",
    "targets_of",
    "warn_of_alike_labels",
]


Unlisted = Literal["absent", "unknown"]
"""What is taken of the classes that a clip does not name."""

LABEL_SEPARATOR = ";"
"""Between the names in the text of a multi-label clip; so no class name may hold it."""

ALL_OTHERS = "*"
"""Written for "every class that the clip does not have"; so no class may be called so."""

_FLAGS = {1: True, 0: False, "1": True, "0": False, "1.0": True, "0.0": False}
"""What a cell of a class column may hold; ``True`` and ``1.0`` equal ``1``."""


@dataclass
class ClipLabels:
    """What the rows of one clip say about it, by class name."""

    present: set[str] = field(default_factory=set)
    """Classes that are there."""
    absent: set[str] = field(default_factory=set)
    """Classes that are known not to be there."""
    unknown: set[str] = field(default_factory=set)
    """Classes that may or may not be there."""
    is_background: bool = False
    """Whether it is said that none of the classes is there."""
    is_open: bool = False
    """Whether nothing is known of the classes that are not named, whatever ``unlisted`` says."""

    @property
    def named(self) -> set[str]:
        """Every class that is spoken of."""
        return self.present | self.absent | self.unknown

    def add(self, other: "ClipLabels") -> None:
        """Take up what another row says of the same clip."""
        self.present |= other.present
        self.absent |= other.absent
        self.unknown |= other.unknown
        self.is_background |= other.is_background
        self.is_open |= other.is_open

    def contradiction(self) -> str | None:
        """Say what cannot be true at once; ``None`` if all can.

        Example:
            >>> ClipLabels(present={"dog"}, absent={"dog"}).contradiction()
            "'dog' is both present and absent"
        """
        for first, second in (("present", "absent"), ("present", "unknown"), ("absent", "unknown")):
            both = getattr(self, first) & getattr(self, second)
            if both:
                return f"{min(both)!r} is both {first} and {second}"
        if self.is_background and self.present:
            return f"{min(self.present)!r} is present in a clip that is background"
        return None

    def ids(
        self, id_of: Mapping[str, int], unlisted: Unlisted
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Class ids that are present, and class ids that are unknown; all others are absent.

        A clip of which only absences are told (``-dog``) is open: of the other classes nothing is known.

        Args:
            id_of: Id of every class.
            unlisted: What is taken of the classes that the clip does not name.

        Example:
            >>> ClipLabels(absent={"dog"}).ids({"cat": 0, "dog": 1, "owl": 2}, "absent")
            ((), (0, 2))
        """
        is_open = not self.is_background and (
            self.is_open or unlisted == "unknown" or bool(self.absent and not self.present)
        )
        known = self.present | self.absent
        unknown = (id_of.keys() - known) if is_open else self.unknown
        return (
            tuple(sorted(id_of[name] for name in self.present)),
            tuple(sorted(id_of[name] for name in unknown)),
        )


def targets_of(table: pd.DataFrame, num_classes: int, task: Task) -> NDArray[Any]:
    """Give the labels of a manifest's rows as one array.

    Args:
        table: Rows of a manifest: with ``target``, or with ``present`` and ``unknown``.
        num_classes: Number of classes, C.
        task: The manifest's.

    Returns:
        ``"single"``: class ids, shape ``(N,)``, int64. ``"multi"``: shape ``(N, C)``, float32, 1.0 where
        the class is present, 0.0 where it is absent, NaN where that is unknown.

    Raises:
        ValueError: If ``task`` is neither.

    Example:
        >>> table = pd.DataFrame({"present": [(0, 1), ()], "unknown": [(), (1,)]})
        >>> targets_of(table, 2, "multi")
        array([[ 1.,  1.],
               [ 0., nan]], dtype=float32)
    """
    if task == "single":
        return table["target"].to_numpy(dtype=np.int64)
    if task != "multi":
        raise ValueError(f"Unknown task {task!r}: expected 'single' or 'multi'.")
    targets = np.zeros((len(table), num_classes), dtype=np.float32)
    for column, value in (("unknown", np.nan), ("present", 1.0)):
        for row, classes in enumerate(table[column]):
            if len(classes):
                targets[row, list(classes)] = value
    return targets


def labels_from_cells(
    column: "pd.Series[Any]",
    name: str,
    delimiter: str | None,
    background: Sequence[str],
    unknown: "pd.Series[Any] | None" = None,
) -> list[ClipLabels]:
    """Read cells that each hold any number of labels.

    Args:
        column: Lists of names, or text: one name, or several with ``delimiter`` between them. ``-name``
            says that the class is absent, ``?name`` that it is unknown.
        name: What the column is called, for messages.
        delimiter: Between the names of a text; ``None`` if a text is one name.
        background: Names that stand for "none of the classes", in any case.
        unknown: Names of the classes that are unknown in each row, lists or text; blank for none.

    Returns:
        One per row.

    Raises:
        DatasetError: If a cell is blank or holds something else, names are of mixed types, or a
            background label is said to be absent or unknown.
    """
    values = column.tolist()
    blank = [not is_list(value) and is_blank(value, delimiter) for value in values]
    if any(blank):
        nothing = f"{background[0]!r} (a background label)" if background else "an empty list"
        raise DatasetError(
            f"The column {name!r} is blank in {name_rows(blank)}, which does not tell whether nothing is "
            f"there or nobody looked. Write {nothing} where none of the classes is heard, ?NAME where "
            "a class may be there, or remove the row."
        )
    background_names = {label.casefold() for label in background}
    kinds: dict[str, int] = {}
    said = []
    for row, value in enumerate(values):
        clip = ClipLabels(is_background=is_list(value) and len(value) == 0)
        for text in _names_in(value, delimiter, name, row, kinds):
            mark, bare = (text[0], text[1:].strip()) if text[0] in "-?" else ("", text)
            if bare.casefold() in background_names:
                if mark:
                    raise DatasetError(
                        f"The column {name!r} holds {text!r} in row {row + 1}: {bare!r} stands for none "
                        "of the classes, and cannot itself be absent or unknown. Name the classes."
                    )
                clip.is_background = True
            else:
                {"": clip.present, "-": clip.absent, "?": clip.unknown}[mark].add(bare)
        said.append(clip)
    _add_unknown(said, unknown, delimiter, kinds)
    if len(kinds) > 1:
        first = ", ".join(f"{kind} in row {row + 1}" for kind, row in sorted(kinds.items()))
        raise DatasetError(
            f"The column {name!r} mixes labels of different types: {first}. Make them all text."
        )
    return said


def labels_from_columns(
    df: pd.DataFrame,
    columns: Sequence[str],
    background: Sequence[str],
    unknown: "pd.Series[Any] | None" = None,
) -> list[ClipLabels]:
    """Read a table that has one column per class.

    Args:
        df: One row per clip; the cells of ``columns`` are 1 or true (present), 0 or false (absent), or
            blank (unknown).
        columns: The class columns, which name the classes.
        background: Columns of these names, in any case, are no classes: 1 says that none is there.
        unknown: As in :func:`labels_from_cells`.

    Returns:
        One per row. Classes without a column, as with blank cells, are unknown.

    Raises:
        DatasetError: If a cell holds anything else; it names row and column.
    """
    background_names = {label.casefold() for label in background}
    said = [ClipLabels(is_open=True) for _ in range(len(df))]
    for column in columns:
        is_background = column.strip().casefold() in background_names
        label = column.strip()
        for row, value in enumerate(df[column].tolist()):
            flag: bool | None
            try:
                flag = _FLAGS[value]
            except (KeyError, TypeError):
                flag = _uncommon_flag(value, column, row)
            if is_background:
                said[row].is_background |= flag is True
            elif flag is not None:
                (said[row].present if flag else said[row].absent).add(label)
    _add_unknown(said, unknown, None, {})
    return said


def check_class_names(names: Iterable[str]) -> None:
    """Refuse names that could not be told from the signs used to write multi-label clips.

    Raises:
        DatasetError: If a name is empty, holds ``;``, begins with ``-`` or ``?``, or is ``*``.

    Example:
        >>> check_class_names(["dog", "cat"])
    """
    for name in sorted(names):
        if not name or name == ALL_OTHERS or name[0] in "-?" or LABEL_SEPARATOR in name:
            separated = LABEL_SEPARATOR in name
            hint = " If these are several labels, pass label_delimiter=';'." if separated else ""
            raise DatasetError(
                f"{name!r} cannot be the name of a class where clips have several labels: a name is not "
                f"empty, holds no ';', does not begin with '-' or '?', and is not '*'.{hint}"
            )


def checked_categories(column: "pd.Series[Any]", name: str) -> list[str]:
    """Read cells that each hold exactly one label.

    Raises:
        DatasetError: If a label is blank, is no label, or labels are of mixed types.

    Warns:
        UserWarning: If labels differ only in case, or had spaces around them, which are removed.
    """
    values = column.tolist()
    blank = [is_blank(value) for value in values]
    if any(blank):
        raise DatasetError(
            f"The column {name!r} has no label in {name_rows(blank)}. Give each clip one, or remove the row."
        )
    kinds = [_label_kind(value) for value in values]
    other = [kind == "other" for kind in kinds]
    if any(other):
        example = values[other.index(True)]
        raise DatasetError(
            f"Expected one label per clip in the column {name!r} (text, a whole number or true/false), "
            f"but {name_rows(other)} holds {example!r} ({type(example).__name__})."
        )
    if len(set(kinds)) > 1:
        minority = min(sorted(set(kinds)), key=kinds.count)
        raise DatasetError(
            f"The column {name!r} mixes labels of different types ({', '.join(sorted(set(kinds)))}): "
            f"{minority} in {name_rows([kind == minority for kind in kinds])}. Make them all text, for "
            "example with df[column].astype(str)."
        )
    if kinds[0] == "whole number":
        return [str(int(value)) for value in values]
    texts = [str(value) for value in values]
    stripped = [text.strip() for text in texts]
    if stripped != texts:
        changed = [text != bare for text, bare in zip(texts, stripped, strict=True)]
        warnings.warn(
            f"Spaces around labels of the column {name!r} are removed, in {name_rows(changed)}.",
            stacklevel=3,
        )
    warn_of_alike_labels(stripped, stacklevel=4)
    return stripped


def warn_of_alike_labels(labels: Iterable[str], stacklevel: int) -> None:
    """Warn of labels that look the same but for case; a list of one label per row gives the rows of the rarer."""
    by_folded: dict[str, set[str]] = {}
    for label in set(labels):
        folded = unicodedata.normalize(
            "NFC", label
        ).casefold()  # an accent may be a sign of its own
        by_folded.setdefault(folded, set()).add(label)
    alike = sorted(sorted(group) for group in by_folded.values() if len(group) > 1)
    if alike:
        listed = ", ".join(" / ".join(group) for group in alike)
        accents = any(len({label.casefold() for label in group}) > 1 for group in alike)
        how = "case or in how accents are encoded" if accents else "case"
        where = ""
        if isinstance(labels, list):
            rarer = {label for group in alike for label in group}
            rarer -= {max(group, key=labels.count) for group in alike}
            where = f"; {name_rows([label in rarer for label in labels])}"
        warnings.warn(
            f"Labels that differ only in {how} are different classes: {listed}{where}.",
            stacklevel=stacklevel,
        )


def sorted_labels(categories: Iterable[str]) -> list[str]:
    """Order classes for their ids: by name, whole numbers by value.

    Example:
        >>> sorted_labels(["10", "2", "2"])
        ['2', '10']
    """
    labels = set(categories)
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def checked_labels(
    labels: Sequence[str],
    found: Iterable[str],
    named: Sequence[Collection[str]] = (),
    files: Sequence[str] = (),
) -> list[str]:
    """Take the given order of classes.

    Args:
        labels: The classes in the order of their ids.
        found: Every class of the table.
        named: The classes that each row names, for messages; a column of a class may be named by none.
        files: The file of each row.

    Raises:
        DatasetError: If ``labels`` names a class twice, or lacks one of the table.

    Example:
        >>> checked_labels(["dog", "cat"], {"cat"})
        ['dog', 'cat']
    """
    order = [str(label) for label in labels]
    if len(set(order)) < len(order):
        twice = sorted({label for label in order if order.count(label) > 1})
        raise DatasetError(f"labels names a class twice: {', '.join(twice)}.")
    unknown = sorted(set(found) - set(order))
    if unknown:
        rows = [unknown[0] in names for names in named]
        where = f", in {name_rows(rows)}, {files[rows.index(True)]}" if any(rows) else ""
        others = f" The same holds for {', '.join(unknown[1:6])}." if len(unknown) > 1 else ""
        raise DatasetError(
            f"The label {unknown[0]!r} is not among the {len(order)} given classes: "
            f"{', '.join(order[:10])}{', ...' if len(order) > 10 else ''}{where}."
            f"{_several_names(unknown[0], order) or nearest_name(unknown[0], order)}{others}"
        )
    return order


def _several_names(text: str, labels: Collection[str]) -> str:
    """Say how to read a text that is names of classes with something between them; else nothing."""
    for delimiter in ",;|/ ":
        pieces = [piece.strip() for piece in text.split(delimiter)]
        if len(pieces) > 1 and all(piece.lstrip("-?") in labels for piece in pieces):
            return f" If these are several labels, pass label_delimiter={delimiter!r}."
    return ""


def name_rows(mask: Any) -> str:
    """Name the rows where ``mask`` is true, counted from 1 as a reader of the table does.

    Example:
        >>> name_rows([False, True])
        'row 2 (the first clip is row 1)'
    """
    numbers_of_rows = [str(int(n) + 1) for n in np.flatnonzero(np.asarray(mask, dtype=bool))]
    more = f" and {len(numbers_of_rows) - 10} more" if len(numbers_of_rows) > 10 else ""
    plural = "s" if len(numbers_of_rows) > 1 else ""
    return f"row{plural} {', '.join(numbers_of_rows[:10])}{more} (the first clip is row 1)"


def nearest_name(name: str, existing: Iterable[str]) -> str:
    """Ask whether the closest of the existing names was meant; empty if none is close.

    Example:
        >>> nearest_name("speeker", ["file", "speaker"])
        " Did you mean 'speaker'?"
    """
    close = difflib.get_close_matches(name, list(existing), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_blank(value: Any, delimiter: str | None = None) -> bool:
    """Whether a cell holds nothing, or nothing but delimiters."""
    if isinstance(value, str):
        return not (value.replace(delimiter, "") if delimiter else value).strip()
    return bool(np.any(pd.isna(value)))


def is_list(value: Any) -> bool:
    """Whether a cell holds several values; an array is what a list becomes in a Parquet file."""
    return isinstance(value, list | tuple | set | frozenset | np.ndarray)


def _add_unknown(
    said: list[ClipLabels],
    unknown: "pd.Series[Any] | None",
    delimiter: str | None,
    kinds: dict[str, int],
) -> None:
    for row, value in enumerate([] if unknown is None else unknown.tolist()):
        if is_list(value) or not is_blank(value):
            names = _names_in(value, delimiter or LABEL_SEPARATOR, "unknown", row, kinds)
            said[row].unknown |= set(names)


def _names_in(
    value: Any, delimiter: str | None, column: str, row: int, kinds: dict[str, int]
) -> list[str]:
    """The names in a cell; notes in ``kinds`` the first row of each type."""
    if isinstance(value, str):
        kinds.setdefault("text", row)
        pieces = value.split(delimiter) if delimiter else [value]
        return [piece.strip() for piece in pieces if piece.strip()]
    items = list(value) if is_list(value) else [value]
    names = []
    for item in items:
        kind = "other" if is_list(item) or is_blank(item) else _label_kind(item)
        is_negative = kind == "whole number" and item < 0  # would read as "not this class"
        if kind == "other" or is_negative:
            raise DatasetError(
                f"Expected labels in the column {column!r} (a list of names, or text), but row {row + 1} "
                f"holds {value!r} (the first clip is row 1)."
            )
        kinds.setdefault(kind, row)
        names.append(str(int(item)) if kind == "whole number" else str(item).strip())
    return names


def _uncommon_flag(value: Any, column: str, row: int) -> bool | None:
    if not is_list(value) and is_blank(value):
        return None
    text = value.strip().casefold() if isinstance(value, str) else ""
    flag = {"true": True, "false": False}.get(text, _FLAGS.get(text))
    if flag is None:
        raise DatasetError(
            f"The class column {column!r} holds {value!r} in row {row + 1} (the first clip is row 1): "
            "expected 1 or true (present), 0 or false (absent), or blank (unknown)."
        )
    return flag


def _label_kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "true/false"
    if isinstance(value, numbers.Integral):
        return "whole number"
    # A column of whole numbers that once had a gap is a column of floats in pandas.
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return "whole number"
    return "other"
