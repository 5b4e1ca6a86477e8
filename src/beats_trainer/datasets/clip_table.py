"""A manifest's rows as a CSV that reads back the same, and that people can read and edit.

manifest rows -> [text] -> CSV -> [class ids by name] -> manifest rows

Labels are written by name, never by number, so that the file means the same beside any model. Where clips
have any number of labels, ``category`` holds the classes that are present and ``unknown`` those that may be,
with ``;`` between the names; ``*`` in ``unknown`` stands for every class that is not present.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from beats_trainer.datasets.labels import ALL_OTHERS, LABEL_SEPARATOR, Task
from beats_trainer.errors import DatasetError, DatasetNotFoundError

__all__ = ["read_clip_table", "write_clip_table"]

_TIMES = ("start_time", "end_time")


def write_clip_table(
    table: pd.DataFrame, labels: Sequence[str], task: Task, path: str | os.PathLike[str]
) -> None:
    """Write rows of a manifest, or of its splits, as a CSV in UTF-8.

    Args:
        table: Rows of a manifest, with whatever other columns they have.
        labels: Classes in the order of their ids.
        task: The manifest's.
        path: The file; one that is there is replaced only once the new one is whole.

    Example:
        >>> write_clip_table(manifest.table, manifest.labels, manifest.task, "clips.csv")  # doctest: +SKIP
    """
    text = table
    if task == "multi":
        unknown = [
            ALL_OTHERS
            if len(unknown) and len(unknown) + len(present) == len(labels)
            else LABEL_SEPARATOR.join(labels[n] for n in unknown)
            for present, unknown in zip(table["present"], table["unknown"], strict=True)
        ]
        text = table.drop(columns="present").assign(unknown=unknown)
    file = Path(path)
    part = file.with_name(file.name + ".part")
    text.to_csv(part, index=False, encoding="utf-8")
    os.replace(part, file)


def read_clip_table(
    path: str | os.PathLike[str], labels: Sequence[str], task: Task
) -> pd.DataFrame:
    """Read what :func:`write_clip_table` wrote; class ids are those of ``labels``.

    Args:
        path: The CSV.
        labels: Classes in the order of their ids, from the model.
        task: The model's.

    Returns:
        The rows, with the columns of ``Manifest.table``. ``group`` is text, ``fold`` whole numbers where
        it is nothing else.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DatasetError: If it lacks a column, or names a class that is not among ``labels``.

    Example:
        >>> read_clip_table("clips.csv", model.labels, "multi")  # doctest: +SKIP
    """
    if not os.path.isfile(path):
        raise DatasetNotFoundError(f"There is no table of clips {os.path.abspath(path)}.")
    # All as text: "007" and "NA" are labels and groups like any other.
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    needed = ["path", "filename", "category", *(["unknown"] if task == "multi" else [])]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise DatasetError(
            f"{path} has no column {missing[0]!r}, which the clips of a {task}-label model have. Its "
            f"columns: {', '.join(table.columns)}."
        )
    ids = {label: number for number, label in enumerate(labels)}
    if task == "multi":
        present = [_ids(cell, ids, path, row) for row, cell in enumerate(table["category"])]
        table["present"] = pd.Series(present, dtype=object)
        table["unknown"] = pd.Series(
            [
                tuple(n for n in range(len(labels)) if n not in present[row])
                if cell == ALL_OTHERS
                else _ids(cell, ids, path, row)
                for row, cell in enumerate(table["unknown"])
            ],
            dtype=object,
        )
    else:
        targets = [_id(cell, ids, path, row) for row, cell in enumerate(table["category"])]
        table["target"] = np.array(targets, dtype=np.int64)
    for name in _TIMES:
        if name in table.columns:
            table[name] = [_seconds(cell, name, path, row) for row, cell in enumerate(table[name])]
    for name in ("split", "group", "fold"):
        if name in table.columns:
            table[name] = _filled(table[name], numbers=name == "fold")
    return table


def _id(label: str, ids: dict[str, int], path: Any, row: int) -> int:
    if label not in ids:
        raise DatasetError(
            f"{path} names the class {label!r} in row {row + 1}, which is not among the {len(ids)} of "
            f"the model: {', '.join(list(ids)[:10])}{', ...' if len(ids) > 10 else ''}."
        )
    return ids[label]


def _ids(cell: str, ids: dict[str, int], path: Any, row: int) -> tuple[int, ...]:
    names = cell.split(LABEL_SEPARATOR) if cell else []
    return tuple(sorted(_id(name, ids, path, row) for name in names))


def _seconds(cell: str, name: str, path: Any, row: int) -> float:
    try:
        return float(cell) if cell else float("nan")
    except ValueError as error:
        raise DatasetError(
            f"{path} holds {cell!r} as {name} in row {row + 1}: expected seconds."
        ) from error


def _filled(column: "pd.Series[str]", numbers: bool) -> "pd.Series[Any]":
    """Blank cells as missing values; whole numbers as numbers if all cells are such."""
    cells = column.tolist()
    if numbers and all(cell.isdecimal() and str(int(cell)) == cell for cell in cells):
        return column.astype(np.int64)
    return column.where(column != "", None)
