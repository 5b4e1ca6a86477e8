"""The manifest: every clip once, its file found, its classes known, each class's id decided for good.

table of clips -> [checks] -> Manifest(table, labels, task) -> splits, folds

A label has one id, its place in ``Manifest.labels``: in every split, in the trained head and in the saved
model. Nothing else in the library numbers classes. A clip is a file or a part of one, from ``start_time`` to
``end_time`` in seconds. Its group is the recording, speaker or site whose clips must not be divided.
"""

import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.audio import probe_audio
from beats_trainer.datasets.labels import (
    LABEL_SEPARATOR,
    ClipLabels,
    Task,
    Unlisted,
    check_class_names,
    checked_categories,
    checked_labels,
    is_blank,
    is_list,
    labels_from_cells,
    labels_from_columns,
    name_rows,
    nearest_name,
    sorted_labels,
    warn_of_alike_labels,
)
from beats_trainer.datasets.locating import locate_files
from beats_trainer.datasets.sources import GROUP_COLUMNS
from beats_trainer.errors import ConfigError, DatasetError, DatasetNotFoundError

__all__ = ["Manifest", "build_manifest", "validate_dataset"]

logger = logging.getLogger(__name__)

_END_TOLERANCE_S = 0.05
"""How far a part may reach past its file's end: tables round their times."""


@dataclass(frozen=True)
class Manifest:
    """The checked table of clips of one data set."""

    table: pd.DataFrame
    """One row per clip: ``path`` (absolute), ``filename`` (as given), ``category`` (text; several names
    with ``;`` between them, empty for none). Single: ``target`` (int64, place of the category in ``labels``).
    Multi: ``present`` and ``unknown`` (tuples of class ids, ascending; every other class is absent). Where
    given: ``start_time``, ``end_time`` (seconds, NaN for a whole file), ``split``, ``fold``, ``group``."""
    labels: list[str]
    """Classes in the order of their ids."""
    task: Task = "single"
    """Exactly one class per clip, or any number of them."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.table)

    def class_counts(self) -> dict[str, int]:
        """Clips in which each class is present, in the order of the class ids."""
        if self.task == "multi":
            counts = _count(self.table["present"], self.num_classes)
        else:
            counts = np.bincount(self.table["target"], minlength=self.num_classes)
        return {label: int(n) for label, n in zip(self.labels, counts, strict=True)}


def build_manifest(
    df: pd.DataFrame,
    data_dir: str | os.PathLike[str] | None = None,
    audio_column: str = "filename",
    label_column: str = "category",
    labels: Sequence[str] | None = None,
    min_classes: int = 2,
    *,
    multi_label: bool = False,
    label_delimiter: str | None = None,
    label_columns: Sequence[str] | None = None,
    background_labels: Sequence[str] = ("background",),
    unlisted: Unlisted = "absent",
    group_column: str | None = None,
    group_pattern: str | None = None,
    split_column: str = "split",
    fold_column: str = "fold",
) -> Manifest:
    r"""Check a table of clips and number its classes.

    Files are looked for from ``data_dir``, then from the folders that the table's source noted in
    ``df.attrs`` (``"searched"``, ``"data_dir"``), then from the current directory; absolute paths are taken as they are.
    Links to one file are that file. Groups and folds are equal if they read the same: ``1``, ``1.0`` and ``"1"``.

    A clip has exactly one class, unless ``multi_label``, ``label_delimiter`` or ``label_columns`` is given, or
    the label cells are lists: then it has any number of them, and its labels are written in one of these ways:

    - a list of names; an empty list says that none of the classes is there;
    - text: one name, or several with ``label_delimiter`` between them;
    - one column per class (``label_columns``): 1 or true, 0 or false, blank for unknown.

    In lists and text ``-dog`` says that there is no dog (and, alone, nothing about the other classes),
    ``?dog`` that there may be one. A column ``unknown`` may name further classes that are unknown in the
    clip. Several rows of one clip are put together.

    Args:
        df: One row per clip, or, with several labels, per clip and label. Columns ``start_time`` and
            ``end_time`` make a row a part of its file, in seconds from its start; blank in both for a
            whole file. Columns ``split``, ``fold`` and ``group`` are kept for the split; ``src_file`` and
            ``fsID`` are read as ``group`` where there is none, and parts of a file are one group.
        data_dir: Folder that relative file names start from.
        audio_column: Column that names the audio files.
        label_column: Column that holds the labels: text, whole numbers, true/false, or lists of them. Not
            read where ``label_columns`` is given.
        labels: Classes in the order of their ids, such as those of a trained model, which need not all be
            in the table; ``None`` sorts what the table has (whole numbers by value).
        min_classes: Fewer are an error; 1 to evaluate on clips of one class. Where clips have any number
            of labels, one class is always enough.
        multi_label: Clips may have several labels.
        label_delimiter: What separates the labels in a text, such as ``";"``.
        label_columns: Columns that are the classes.
        background_labels: Names, in any case, that say "none of the classes" where clips may have several
            labels. Where clips have one label, they are classes like any other.
        unlisted: Where clips may have several labels, what is taken of the classes that a clip does not
            name: ``"absent"``, or ``"unknown"`` where only some of what is heard was labelled.
        group_column: Column that says which clips belong together (one recording, speaker, site).
        group_pattern: The same as a regular expression, searched in each path, written with ``/``: the
            part named ``group``, else the first part in parentheses, else all that matches. Speakers of
            ``3_jackson_7.wav``: ``r"_(\w+)_\d+\.wav$"``.
        split_column: Column with the official split, if it has another name.
        fold_column: Column with the official folds, if it has another name.

    Returns:
        The manifest, its rows in the order of ``df``, numbered from 0.

    Raises:
        ConfigError: If two settings contradict each other, or ``group_pattern`` is no regular expression.
        DatasetNotFoundError: If ``data_dir`` is not a folder.
        DatasetError: If a column or file is missing, a file or label is blank, a clip is listed twice,
            labels are of mixed types, contradict each other or are not among ``labels``, a class has no
            clip, times are impossible or beyond the file's end, parts of one file are in different
            groups, or there are too few rows or classes.
        AudioError: If a file of which a part is wanted cannot be read.

    Warns:
        UserWarning: If labels or groups differ only in case, labels had spaces around them, which are
            removed, or if there is no clip in which a class is known to be absent.

    Example:
        >>> table = pd.DataFrame({"filename": ["a.wav", "b.wav"], "category": ["dog", "cat"]})
        >>> build_manifest(table, "clips").labels  # doctest: +SKIP
        ['cat', 'dog']
    """
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"Expected a pandas DataFrame of clips, not {type(df).__name__}.")
    label_columns = [label_columns] if isinstance(label_columns, str) else label_columns
    _check_options(label_delimiter, label_columns, unlisted, group_column, group_pattern)
    wanted = {audio_column: "audio_column"}
    wanted |= dict.fromkeys(label_columns or (), "label_columns")
    wanted |= {} if label_columns else {label_column: "label_column"}
    wanted |= {group_column: "group_column"} if group_column is not None else {}
    wanted |= {split_column: "split_column"} if split_column != "split" else {}
    wanted |= {fold_column: "fold_column"} if fold_column != "fold" else {}
    _require_columns(df, wanted)
    if df.empty:
        raise DatasetError("The table has no rows: there is no clip to use.")
    is_multi = (
        multi_label
        or label_delimiter is not None
        or label_columns is not None
        or _holds_lists(df[label_column])
    )
    names = _checked_names(df[audio_column], audio_column)
    said: list[ClipLabels] = []
    categories: list[str] = []
    unknown = df["unknown"] if "unknown" in df.columns else None
    if label_columns is not None:
        said = labels_from_columns(
            df, label_columns, background_labels, None if "unknown" in label_columns else unknown
        )
    elif is_multi:
        said = labels_from_cells(
            df[label_column], label_column, label_delimiter, background_labels, unknown
        )
    else:
        categories = checked_categories(df[label_column], label_column)
    located = locate_files(names, _folders(df, data_dir))
    if located.missing:
        raise DatasetError(
            f"{located.describe_missing()} Correct the table, or say with data_dir= which folder its "
            "file names start from."
        )
    paths = _one_spelling([path for path in located.paths if path is not None])
    times = _times_of_parts(df, paths)
    kept: dict[str, list[Any]] = {
        name: df[source].tolist() if name == "split" else _written_alike(df[source].tolist())
        for name, source in (("split", split_column), ("fold", fold_column))
        if source in df.columns
    }
    groups = _groups(df, paths, times, group_column, group_pattern)
    kept |= {"group": groups} if groups is not None else {}
    clips = _rows_of_clips(paths, times)
    rows = [first for first, *_ in clips]
    named = [clip.named for clip in said] if is_multi else [{label} for label in categories]
    if is_multi:
        _merge_rows(clips, said, kept, paths)
    else:
        _refuse_duplicates(clips, paths, names, categories, times)

    if is_multi:
        found = {label for clip in said for label in clip.named}
        found |= {name.strip() for name in label_columns or ()}
        found -= {name for name in found if _is_background(name, background_labels)}
        check_class_names({*found, *(str(label) for label in labels or ())})
        warn_of_alike_labels(found, stacklevel=3)
    else:
        found = set(categories)
    if labels is not None:
        order = checked_labels(labels, found, named, paths)
    else:
        order = sorted_labels(found)
    _check_labels(order, is_multi, background_labels, min_classes, label_column, label_columns)
    ids = {label: number for number, label in enumerate(order)}
    table = pd.DataFrame(
        {"path": [paths[row] for row in rows], "filename": [names[row] for row in rows]}
    )
    if is_multi:
        pairs = [said[row].ids(ids, unlisted) for row in rows]
        table["category"] = [LABEL_SEPARATOR.join(order[n] for n in pair[0]) for pair in pairs]
        table["present"] = pd.Series([pair[0] for pair in pairs], dtype=object)
        table["unknown"] = pd.Series([pair[1] for pair in pairs], dtype=object)
        if labels is None:
            _check_presence(table, order)
    else:
        table["category"] = categories
        table["target"] = np.array([ids[label] for label in categories], dtype=np.int64)
    if times is not None:
        table["start_time"], table["end_time"] = times[rows, 0], times[rows, 1]
    for name, values in kept.items():
        table[name] = pd.Series([values[row] for row in rows])
    if times is not None:
        _refuse_files_in_two_groups(table)
    return Manifest(table, order, "multi" if is_multi else "single")


def validate_dataset(
    df: pd.DataFrame,
    data_dir: str | os.PathLike[str] | None = None,
    audio_column: str = "filename",
    label_column: str = "category",
) -> dict[str, Any]:
    """Describe a table of clips without requiring it to be usable.

    Args:
        df: One row per clip.
        data_dir: Folder that relative file names start from, see :func:`build_manifest`.
        audio_column: Column that names the audio files.
        label_column: Column that holds the labels.

    Returns:
        ``total_samples``, ``num_classes``, ``class_names`` (sorted), ``class_distribution`` (clips of
        each), ``existing_files``, ``missing_files`` (how many), ``missing_file_list`` (the first ten),
        ``imbalance_ratio`` (clips of the largest class over those of the smallest; 0 with no clip).

    Raises:
        DatasetError: If one of the columns is missing.

    Warns:
        UserWarning: If files are missing, or one class has over ten times the clips of another.

    Example:
        >>> validate_dataset(scan_directory_dataset("clips"))["num_classes"]  # doctest: +SKIP
        10
    """
    if not isinstance(df, pd.DataFrame):
        raise TypeError(f"Expected a pandas DataFrame of clips, not {type(df).__name__}.")
    _require_columns(df, {audio_column: "audio_column", label_column: "label_column"})
    named = df[df[audio_column].notna() & df[label_column].notna()]
    located = locate_files([str(name) for name in named[audio_column]], _folders(df, data_dir))
    counts = named[label_column].astype(str).value_counts()
    missing = located.missing
    ratio = float(counts.iloc[0] / counts.iloc[-1]) if len(counts) else 0.0
    if missing:
        warnings.warn(located.describe_missing(), stacklevel=2)
    if ratio > 10:
        warnings.warn(
            f"Class {counts.index[0]!r} has {ratio:.0f} times the clips of {counts.index[-1]!r}.",
            stacklevel=2,
        )
    return {
        "total_samples": len(df),
        "num_classes": len(counts),
        "class_names": sorted(counts.index),
        "class_distribution": {str(name): int(n) for name, n in counts.items()},
        "existing_files": len(named) - len(missing),
        "missing_files": len(missing),
        "missing_file_list": missing[:10],
        "imbalance_ratio": ratio,
    }


def _check_options(
    label_delimiter: str | None,
    label_columns: Sequence[str] | None,
    unlisted: str,
    group_column: str | None,
    group_pattern: str | None,
) -> None:
    if label_delimiter == "":
        raise ConfigError("label_delimiter must be text such as ';' or ',', not empty.")
    if label_columns is not None and label_delimiter is not None:
        raise ConfigError(
            "label_columns and label_delimiter are two ways to write labels: pass one of them."
        )
    if label_columns is not None and len(label_columns) == 0:
        raise ConfigError("label_columns names no column: expected one column per class.")
    if unlisted not in ("absent", "unknown"):
        raise ConfigError(f"unlisted must be 'absent' or 'unknown', not {unlisted!r}.")
    if group_column is not None and group_pattern is not None:
        raise ConfigError(
            f"group_column={group_column!r} and group_pattern={group_pattern!r} both say which clips "
            "belong together: pass one of them."
        )


def _require_columns(df: pd.DataFrame, wanted: Mapping[str, str]) -> None:
    """Check that columns are there, once each; ``wanted`` has the parameter that named each."""
    existing = [str(name) for name in df.columns]
    for column, parameter in wanted.items():
        if column not in existing:
            raise DatasetError(
                f"The table has no column {column!r}.{nearest_name(column, existing)} Its columns: "
                f"{', '.join(existing)}. Name the right one with {parameter}=."
            )
        if existing.count(column) > 1:
            raise DatasetError(f"The table has more than one column {column!r}.")


def _folders(df: pd.DataFrame, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DatasetNotFoundError(f"data_dir is no folder: {os.path.abspath(data_dir)}.")
    noted = df.attrs.get("searched") or [df.attrs.get("data_dir")]
    return [Path(folder) for folder in (data_dir, *noted, Path.cwd()) if folder is not None]


def _checked_names(column: "pd.Series[Any]", name: str) -> list[str]:
    values = column.tolist()
    blank = [is_blank(value) for value in values]
    if any(blank):
        raise DatasetError(f"The column {name!r} names no file in {name_rows(blank)}.")
    wrong = [not isinstance(value, str | os.PathLike) for value in values]
    if any(wrong):
        kind = type(values[wrong.index(True)]).__name__
        raise DatasetError(
            f"The column {name!r} must name audio files, but holds a {kind} in {name_rows(wrong)}."
        )
    return [os.fspath(value) for value in values]


def _holds_lists(column: "pd.Series[Any]") -> bool:
    """Whether every cell that holds something holds a list."""
    filled = [value for value in column.tolist() if is_list(value) or not is_blank(value)]
    return bool(filled) and all(is_list(value) for value in filled)


def _is_background(name: str, background_labels: Sequence[str]) -> bool:
    return name.casefold() in {label.casefold() for label in background_labels}


def _times_of_parts(df: pd.DataFrame, paths: list[str]) -> NDArray[np.float64] | None:
    """Start and end of each row's part, shape ``(N, 2)``, seconds; ``None`` if all are whole files."""
    there = [name for name in ("start_time", "end_time") if name in df.columns]
    if len(there) == 1:
        missing = "end_time" if there == ["start_time"] else "start_time"
        raise DatasetError(
            f"The table has a column {there[0]!r} but no column {missing!r}: a part of a file needs both, "
            "in seconds. Add it, or remove the column to use whole files."
        )
    if not there:
        return None
    times = np.full((len(df), 2), np.nan)
    for number, name in enumerate(there):
        for row, value in enumerate(df[name].tolist()):
            if not is_list(value) and is_blank(value):
                continue
            try:
                seconds = np.nan if isinstance(value, bool | np.bool_) else float(value)
            except (TypeError, ValueError):
                seconds = np.nan
            if not np.isfinite(seconds):
                raise DatasetError(
                    f"The column {name!r} must hold seconds, but is {value!r} in row {row + 1} "
                    f"({paths[row]}; the first clip is row 1)."
                )
            times[row, number] = seconds
    durations: dict[str, float] = {}
    for row, (start, end) in enumerate(times.tolist()):
        if np.isnan(start) and np.isnan(end):
            continue
        where = f"row {row + 1}, {paths[row]} (the first clip is row 1)"
        if np.isnan(start) or np.isnan(end):
            blank = "start_time" if np.isnan(start) else "end_time"
            raise DatasetError(
                f"{blank} is blank in {where}: give both times, or neither for the whole file."
            )
        if not 0 <= start < end:
            raise DatasetError(
                f"start_time {start:g} s and end_time {end:g} s are not a part of a file, in {where}: "
                "expected 0 <= start_time < end_time."
            )
        if paths[row] not in durations:
            durations[paths[row]] = probe_audio(paths[row]).duration_s
        duration = durations[paths[row]]
        if end > duration + _END_TOLERANCE_S or start >= duration:
            raise DatasetError(
                f"The part from {start:g} to {end:g} s reaches past the end of its file, which has "
                f"{duration:.3f} s: {where}. Times are seconds from the start of the file."
            )
    return None if np.isnan(times).all() else times


def _groups(
    df: pd.DataFrame,
    paths: list[str],
    times: NDArray[np.float64] | None,
    group_column: str | None,
    group_pattern: str | None,
) -> list[Any] | None:
    """What keeps clips together, one per row; ``None`` if every clip is for itself."""
    candidates = ("group", *GROUP_COLUMNS) if group_column is None else (group_column,)
    source = next((name for name in candidates if name in df.columns), None)
    if group_pattern is not None:
        groups = _written_alike(_groups_by_pattern(paths, group_pattern))
    elif source is not None:
        groups = _written_alike(df[source].tolist())
    else:
        return [_slashed(path) for path in paths] if times is not None else None
    _warn_of_alike_groups(groups)
    return groups


def _groups_by_pattern(paths: list[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"group_pattern={pattern!r} is not a regular expression: {error}."
        ) from error
    part: str | int = "group" if "group" in compiled.groupindex else min(compiled.groups, 1)
    matches = [compiled.search(_slashed(path)) for path in paths]
    groups = [match[part] if match else None for match in matches]
    unmatched = [not group for group in groups]
    if any(unmatched):
        named = [path for path, is_unmatched in zip(paths, unmatched, strict=True) if is_unmatched]
        raise DatasetError(
            f"group_pattern={pattern!r} finds no group in {len(named)} of {len(paths)} files, such as "
            f"{', '.join(named[:3])}. Correct it so that it matches every path, written with /."
        )
    return [str(group) for group in groups]


def _slashed(path: str) -> str:
    return path.replace("\\", "/")


def _one_spelling(paths: list[str]) -> list[str]:
    """Name each file by one path, however many links lead to it: under two it would look like two recordings."""
    folders: dict[str, str] = {}
    spellings: dict[str, set[str]] = {}
    alike: dict[str, list[str]] = {}
    targets = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        target = os.path.join(folders[folder], name)
        target = os.path.realpath(target) if os.path.islink(target) else target
        # Some disks have one file under names that differ in case, or in how an accent is encoded.
        near = alike.setdefault(unicodedata.normalize("NFC", target).casefold(), [])
        target = next((n for n in near if n == target or os.path.samefile(n, target)), target)
        if target not in near:
            near.append(target)
        spellings.setdefault(target, set()).add(path)
        targets.append(target)
    one = {target: min(names) for target, names in spellings.items()}
    return [one[target] for target in targets]


def _written_alike(values: list[Any]) -> list[Any]:
    """Write what is the same in one way: 1, 1.0 and "1"; "a" and "a "; an accent as one sign or as two."""
    alike = [None if not is_list(value) and is_blank(value) else _plain(value) for value in values]
    if len({type(value) for value in alike if value is not None}) > 1:
        texts = [None if value is None else str(value) for value in alike]
        return [None if text is None else re.sub(r"^(\d+)\.0+$", r"\1", text) for text in texts]
    return alike


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else float(value)
    return value


def _warn_of_alike_groups(groups: list[Any]) -> None:
    by_folded: dict[str, set[str]] = {}
    for group in {group for group in groups if isinstance(group, str)}:
        by_folded.setdefault(group.casefold(), set()).add(group)
    alike = sorted(" / ".join(sorted(names)) for names in by_folded.values() if len(names) > 1)
    if alike:
        warnings.warn(
            f"Groups that differ only in case are different groups, which a split may divide: "
            f"{', '.join(alike[:5])}{', ...' if len(alike) > 5 else ''}. Write them alike if they are one.",
            stacklevel=4,
        )


def _rows_of_clips(paths: list[str], times: NDArray[np.float64] | None) -> list[list[int]]:
    """Rows of each clip, clips in the order of their first rows."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for row, path in enumerate(paths):
        # NaN, a whole file, equals nothing, not even itself: -1 does.
        part = () if times is None else tuple(np.nan_to_num(times[row], nan=-1.0).tolist())
        rows.setdefault((os.path.normcase(path), *part), []).append(row)
    return list(rows.values())


def _merge_rows(
    clips: list[list[int]],
    said: list[ClipLabels],
    kept: dict[str, list[Any]],
    paths: list[str],
) -> None:
    """Put together in its first row what the rows of each clip say; refuse what contradicts itself."""
    for first, *others in clips:
        for row in (first, *others):
            if row != first:
                said[first].add(said[row])
            contradiction = said[first].contradiction()
            if contradiction:
                raise DatasetError(
                    f"Labels contradict each other in row {row + 1} ({paths[row]}; the first clip is row "
                    f"1){f', together with row {first + 1} of the same clip' if row != first else ''}: "
                    f"{contradiction}. Correct the table."
                )
            for name, values in kept.items():
                if is_blank(values[first]):
                    values[first] = values[row]
                elif not is_blank(values[row]) and values[row] != values[first]:
                    raise DatasetError(
                        f"Rows {first + 1} and {row + 1} are the same clip, {paths[row]}, but its {name} is "
                        f"{values[first]!r} in one and {values[row]!r} in the other. Correct the table."
                    )
    num_rows = sum(len(rows) for rows in clips)
    if num_rows > len(clips):
        logger.info("Put %d rows together to %d clips with their labels.", num_rows, len(clips))


def _refuse_duplicates(
    clips: list[list[int]],
    paths: list[str],
    names: list[str],
    categories: list[str],
    times: NDArray[np.float64] | None,
) -> None:
    twice = [(again, rows[0]) for rows in clips for again in rows[1:]]
    if not twice:
        return
    row, earlier = min(twice)
    labels = (
        f"as {categories[earlier]!r} and as {categories[row]!r}"
        if categories[earlier] != categories[row]
        else f"as {categories[row]!r} both times"
    )
    part = ""
    if times is not None and not np.isnan(times[row, 0]):
        part = f" from {times[row, 0]:g} to {times[row, 1]:g} s"
    under = f" (named {names[earlier]} and {names[row]})" if names[row] != names[earlier] else ""
    raise DatasetError(
        f"{len(twice)} audio files are listed more than once; the first is {paths[row]}{part}, in rows "
        f"{earlier + 1} and {row + 1}, {labels}{under}. A clip has one row and one label: in two splits it "
        "would make the result look better than it is. Remove the others, for example with "
        "df.drop_duplicates(column); if a clip may have several labels, pass multi_label=True."
    )


def _check_labels(
    order: list[str],
    is_multi: bool,
    background_labels: Sequence[str],
    min_classes: int,
    label_column: str,
    label_columns: Sequence[str] | None,
) -> None:
    least = min(min_classes, 1) if is_multi else min_classes
    if len(order) < least:
        where = (
            f"the columns {', '.join(label_columns)}"
            if label_columns
            else f"the column {label_column!r}"
        )
        raise DatasetError(
            f"Expected at least {least} class{'es' if least != 1 else ''}, found {len(order)} "
            f"({', '.join(order)}). Check {where}, or the folder names that the labels come from."
        )
    reserved = [label for label in order if is_multi and _is_background(label, background_labels)]
    if reserved:
        raise ConfigError(
            f"{reserved[0]!r} is among labels and among background_labels, which stand for none of the "
            "classes. Take it out of one of them."
        )


def _count(column: "pd.Series[Any]", num_classes: int) -> NDArray[np.int64]:
    """How many of the tuples of class ids hold each class."""
    ids = np.fromiter((n for classes in column for n in classes), dtype=np.int64)
    return np.bincount(ids, minlength=num_classes)


def _check_presence(table: pd.DataFrame, labels: list[str]) -> None:
    present = _count(table["present"], len(labels))
    absent = len(table) - present - _count(table["unknown"], len(labels))
    never = [label for label, n in zip(labels, present, strict=True) if n == 0]
    if never:
        raise DatasetError(
            f"{len(never)} of {len(labels)} classes are present in no clip, only said to be absent or "
            f"unknown: {', '.join(never[:10])}. Add clips that have them, or remove these labels."
        )
    always = [label for label, n in zip(labels, absent, strict=True) if n == 0]
    if always:
        warnings.warn(
            f"{len(always)} of {len(labels)} classes are known to be absent from no clip, so that nothing "
            f"tells what they do not sound like: {', '.join(always[:10])}. Add clips without them: of "
            "other classes, or background.",
            stacklevel=3,
        )


def _refuse_files_in_two_groups(table: pd.DataFrame) -> None:
    known = table[table["group"].notna()]
    num_groups = known["group"].astype(str).groupby(known["path"]).nunique()
    divided = num_groups.index[(num_groups > 1).to_numpy()]
    if len(divided):
        groups = sorted(known.loc[known["path"] == divided[0], "group"].astype(str).unique())
        raise DatasetError(
            f"Parts of one file are in different groups, of {len(divided)} files: {divided[0]} has "
            f"{', '.join(repr(group) for group in groups[:5])}. What is cut from one recording must stay "
            "together: give all its parts one group."
        )
