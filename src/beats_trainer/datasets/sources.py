"""Tables of clips from folders and CSV files.

folder with one folder per class | CSV -> table: filename (absolute), category [, split, fold, group, ...]
"""

import csv
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from beats_trainer.audio import AUDIO_EXTENSIONS
from beats_trainer.datasets.esc50 import CLIP_NAME, ESC50
from beats_trainer.datasets.labels import nearest_name
from beats_trainer.datasets.locating import locate_files
from beats_trainer.datasets.urbansound8k import URBANSOUND8K
from beats_trainer.errors import DatasetError, DatasetNotFoundError

__all__ = [
    "GROUP_COLUMNS",
    "load_csv_dataset",
    "load_dataset",
    "load_split_csvs",
    "load_split_directories",
    "scan_directory_dataset",
]

GROUP_COLUMNS = ("src_file", "fsID")
"""Columns of well-known tables that say which recording a clip was cut from: read as ``group``."""

_SPLIT_FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}


def scan_directory_dataset(
    data_dir: str | os.PathLike[str],
    audio_extensions: Iterable[str] | None = None,
    *,
    label_delimiter: str | None = None,
) -> pd.DataFrame:
    """List the clips of a folder that has one folder per class.

    A clip belongs to the class folder it is in, however deep below it. Hidden files and folders are
    skipped. The order is sorted, so it is the same on every machine. Where the clips are ESC-50's or
    UrbanSound8K's, as in their organized folders, the file names say which recording each was cut from
    (and ESC-50's which fold it is in): this is kept, so that a split does not leak.

    Args:
        data_dir: The folder.
        audio_extensions: Endings that count as audio, in any case, such as ``[".wav"]``; ``None``:
            everything that can be read (``beats_trainer.audio.AUDIO_EXTENSIONS``).
        label_delimiter: What separates several labels in a folder's name, as in ``frog,toad``. The names
            stay as they are: pass the same to :func:`build_manifest`, which takes them apart.

    Returns:
        One row per clip: ``filename`` (absolute path) and ``category`` (name of the class folder);
        ``group`` and ``fold`` for those data sets. ``attrs["data_dir"]`` is the folder,
        ``attrs["empty_classes"]`` names the class folders without audio.

    Raises:
        DatasetNotFoundError: If there is no such folder.
        DatasetError: If it has no class folders or no audio, or if its folders are splits or folds
            instead of classes.

    Warns:
        UserWarning: If class folders have no audio, audio lies outside the class folders, or folders
            look like several labels (``frog,toad``) or a negative (``-frog``) without ``label_delimiter``.

    Example:
        >>> table = scan_directory_dataset("path/to/your_dataset")  # doctest: +SKIP
        >>> table["category"].value_counts()  # doctest: +SKIP
    """
    root = Path(os.path.abspath(data_dir))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DatasetNotFoundError(
            f"Expected a folder with one folder per class, but {root} {what}."
        )
    endings = _endings(audio_extensions)
    classes = sorted(
        (entry for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name)),
        key=lambda entry: entry.name,
    )
    loose = [
        entry for entry in root.iterdir() if entry.is_file() and _is_audio(entry.name, endings)
    ]
    if not classes:
        found = f"holds {len(loose)} audio files but" if loose else "has"
        raise DatasetError(
            f"Expected one folder per class in {root}, which {found} no folders. Put the clips of each "
            "class into a folder named after it, or list them in a CSV (load_csv_dataset)."
        )
    _refuse_splits_as_classes(root, [entry.name for entry in classes])
    rows: list[tuple[str, str]] = []
    empty: list[str] = []
    for folder in classes:
        files = sorted(_audio_below(folder, endings))
        rows += [(file, folder.name) for file in files]
        if not files:
            empty.append(folder.name)
    if not rows:
        raise DatasetError(
            f"No audio files in the {len(classes)} class folders of {root}. Files that count as audio "
            f"end in {', '.join(endings)}, in any case."
        )
    if empty:
        warnings.warn(
            f"{len(empty)} folders of {root} have no audio files and give no class: "
            f"{', '.join(empty[:10])}.",
            stacklevel=2,
        )
    if loose:
        warnings.warn(
            f"{len(loose)} audio files lie in {root} itself, outside every class folder, and are left "
            f"out: {loose[0].name} is one.",
            stacklevel=2,
        )
    marked = [folder.name for folder in classes if "," in folder.name or folder.name[0] in "-?"]
    if marked and label_delimiter is None:
        warnings.warn(
            f"{len(marked)} folders of {root} are one class each, such as {marked[0]!r}. If their names "
            "hold several labels or negatives (frog,toad or -frog), set data.label_delimiter=',' "
            "(label_delimiter=',' in Python).",
            stacklevel=2,
        )
    table = pd.DataFrame(rows, columns=["filename", "category"])
    table = table.assign(**_columns_from_names(root, table))
    table.attrs["data_dir"] = str(root)
    table.attrs["empty_classes"] = empty  # training refuses them, looking does not
    return table


def load_csv_dataset(
    csv_path: str | os.PathLike[str],
    audio_column: str = "filename",
    label_column: str = "category",
    *,
    audio_col: str | None = None,
    label_col: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    label_columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Read a CSV with one row per clip, and find its files.

    A file is looked for from the CSV's own folder, then from ``data_dir``, then from the folder ``audio``
    beside the CSV, then from the current directory; absolute paths are taken as they are. Commas, semicolons and
    tabs are recognised as separators. Labels are read as text, so ``007`` and ``NA`` stay what they are.

    Args:
        csv_path: The CSV, in UTF-8, with a header.
        audio_column: Column that names the audio files.
        label_column: Column that holds the class labels: one, or several as text such as ``frog;toad``.
        audio_col: The same as ``audio_column``.
        label_col: The same as ``label_column``.
        data_dir: Another folder that the files may be in.
        label_columns: Columns that are the classes, of 1, 0 and blank cells; ``label_column`` need not be
            there then. :func:`build_manifest` takes the same.

    Returns:
        The CSV's rows and columns, with those two renamed to ``filename`` (absolute path; as given where
        there is no such file) and ``category``. ``start_time`` and ``end_time``, if there, say which part
        of the file a row is. A column ``src_file`` or ``fsID`` is also given as
        ``group``. ``attrs["data_dir"]`` is the CSV's folder, ``attrs["searched"]`` where files were
        looked for.

    Raises:
        DatasetNotFoundError: If there is no such CSV.
        DatasetError: If it cannot be read, has no rows, or lacks one of these columns.

    Warns:
        UserWarning: If files are not there; it names them and the folders.

    Example:
        >>> load_csv_dataset("labels.csv", audio_col="file", label_col="species")  # doctest: +SKIP
    """
    audio_column = _one_name("audio_column", audio_column, "filename", "audio_col", audio_col)
    label_column = _one_name("label_column", label_column, "category", "label_col", label_col)
    file = Path(os.path.abspath(csv_path))
    if not file.is_file():
        raise DatasetNotFoundError(
            f"There is no CSV file {file}"
            + (": that is a folder (scan_directory_dataset reads those)." if file.is_dir() else ".")
        )
    label_columns = [label_columns] if isinstance(label_columns, str) else label_columns
    needed = {audio_column: "audio_column"}
    needed |= dict.fromkeys(label_columns or (), "label_columns")
    needed |= {} if label_columns else {label_column: "label_column"}
    table = _read_csv(file, set(needed), {*needed, label_column, "unknown"})
    for column, parameter in needed.items():
        if column not in table.columns:
            raise DatasetError(
                f"{file} has no column {column!r}.{nearest_name(column, map(str, table.columns))} Its columns: "
                f"{', '.join(str(name) for name in table.columns)}. Name the right one with "
                f"{parameter}=."
            )
    if table.empty:
        raise DatasetError(f"{file} has a header but no rows.")
    wanted = {audio_column: "filename"}
    if label_column in table.columns:
        wanted[label_column] = "category"
    shadowed = {name: f"{name}_original" for name in wanted.values() if name not in wanted}
    table = table.rename(columns=shadowed).rename(columns=wanted)
    if "group" not in table.columns:
        source = next((name for name in GROUP_COLUMNS if name in table.columns), None)
        if source is not None:
            table["group"] = table[source]

    folders = [file.parent, file.parent / "audio", Path.cwd()]
    if data_dir is not None:
        folders.insert(1, Path(data_dir))
    named = table["filename"].notna()
    located = locate_files([str(name) for name in table.loc[named, "filename"]], folders)
    table.loc[named, "filename"] = [
        path or name for name, path in zip(located.names, located.paths, strict=True)
    ]
    if located.missing:
        warnings.warn(f"{file}: {located.describe_missing()}", stacklevel=2)
    table.attrs["data_dir"] = str(file.parent)
    table.attrs["searched"] = [str(folder) for folder in located.folders]
    return table


def load_dataset(
    data_source: str | os.PathLike[str],
    dataset_type: Literal["auto", "directory", "csv"] = "auto",
    **options: object,
) -> pd.DataFrame:
    """Read a folder or a CSV, whichever ``data_source`` is.

    Args:
        data_source: Folder with one folder per class, or CSV file.
        dataset_type: ``"directory"``, ``"csv"``, or ``"auto"`` to see for itself.
        options: Passed on to :func:`scan_directory_dataset` or :func:`load_csv_dataset`.

    Returns:
        One row per clip, as that function says.

    Raises:
        ValueError: If ``dataset_type`` is unknown.
        DatasetError: As that function says.
    """
    readers: dict[str, Callable[..., pd.DataFrame]] = {
        "directory": scan_directory_dataset,
        "csv": load_csv_dataset,
    }
    if dataset_type == "auto":
        dataset_type = "directory" if os.path.isdir(data_source) else "csv"
    if dataset_type not in readers:
        raise ValueError(f"Unknown dataset_type {dataset_type!r}: expected auto, directory or csv.")
    return readers[dataset_type](data_source, **options)


def load_split_directories(
    data_dir: str | os.PathLike[str] = ".",
    train_dir: str | os.PathLike[str] = "train",
    val_dir: str | os.PathLike[str] | None = "val",
    test_dir: str | os.PathLike[str] | None = "test",
    audio_extensions: Iterable[str] | None = None,
    *,
    label_delimiter: str | None = None,
) -> dict[str, pd.DataFrame]:
    """List the clips of folders that are split already, each with one folder per class.

    Args:
        data_dir: The folder that the other three start from; absolute ones are taken as they are.
        train_dir: Folder with the clips to train on.
        val_dir: The same for validation; ``None`` for none. The default ``"val"`` also finds ``valid``,
            ``validation`` and ``dev``, and may be absent.
        test_dir: The same for testing; the default also finds ``testing`` and ``eval``.
        audio_extensions: As in :func:`scan_directory_dataset`.
        label_delimiter: As in :func:`scan_directory_dataset`.

    Returns:
        ``"train"`` and, where there, ``"val"`` and ``"test"``: each a table of
        :func:`scan_directory_dataset` with a column ``split``. ``pandas.concat`` of the values is one
        table that ``build_manifest`` takes.

    Raises:
        DatasetNotFoundError: If a folder that was named is not there.
        DatasetError: As :func:`scan_directory_dataset`.

    Example:
        >>> tables = load_split_directories("path/to/dataset")  # doctest: +SKIP
        >>> list(tables)  # doctest: +SKIP
        ['train', 'val', 'test']
    """
    tables = {}
    for split, wanted in (("train", train_dir), ("val", val_dir), ("test", test_dir)):
        if wanted is None:
            continue
        names = _SPLIT_FOLDERS[split] if wanted == split else (wanted,)
        found = [Path(data_dir, name) for name in names if Path(data_dir, name).is_dir()]
        if found:
            table = scan_directory_dataset(
                found[0], audio_extensions, label_delimiter=label_delimiter
            )
            tables[split] = table.assign(split=split)
        elif split == "train" or wanted != split:
            raise DatasetNotFoundError(
                f"There is no folder {os.path.abspath(Path(data_dir, wanted))} with {split} clips."
            )
    return tables


def load_split_csvs(
    data_dir: str | os.PathLike[str] | None,
    train_csv: str | os.PathLike[str],
    val_csv: str | os.PathLike[str] | None = None,
    test_csv: str | os.PathLike[str] | None = None,
    audio_column: str = "filename",
    label_column: str = "category",
    *,
    label_columns: Sequence[str] | None = None,
) -> dict[str, pd.DataFrame]:
    """Read CSV files that are split already.

    Args:
        data_dir: Folder that the CSV files, and the audio files they name, may start from; ``None``
            for none.
        train_csv: CSV of the clips to train on.
        val_csv: The same for validation; ``None`` for none.
        test_csv: The same for testing.
        audio_column: Column that names the audio files.
        label_column: Column that holds the class labels.
        label_columns: As in :func:`load_csv_dataset`.

    Returns:
        ``"train"`` and, where given, ``"val"`` and ``"test"``: each a table of
        :func:`load_csv_dataset` with a column ``split``.

    Raises:
        DatasetError: As :func:`load_csv_dataset`.

    Example:
        >>> load_split_csvs(None, "train.csv", test_csv="test.csv")  # doctest: +SKIP
    """
    tables = {}
    for split, given in (("train", train_csv), ("val", val_csv), ("test", test_csv)):
        if given is None:
            continue
        file = Path(given)
        if not file.is_file() and data_dir is not None and Path(data_dir, file).is_file():
            file = Path(data_dir, file)
        table = load_csv_dataset(
            file, audio_column, label_column, data_dir=data_dir, label_columns=label_columns
        )
        tables[split] = table.assign(split=split)
    return tables


def _endings(audio_extensions: Iterable[str] | None) -> tuple[str, ...]:
    if audio_extensions is None:
        return tuple(AUDIO_EXTENSIONS)
    if isinstance(audio_extensions, str):
        audio_extensions = [audio_extensions]
    return tuple(f".{ending.lower().removeprefix('.')}" for ending in audio_extensions)


def _is_audio(name: str, endings: tuple[str, ...]) -> bool:
    return not _is_hidden(name) and name.lower().endswith(endings)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _audio_below(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    seen: set[str] = set()  # a link to a folder above would otherwise never end
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        folders[:] = [] if here in seen else [name for name in folders if not _is_hidden(name)]
        if here not in seen:
            yield from (os.path.join(parent, name) for name in files if _is_audio(name, endings))
        seen.add(here)


def _columns_from_names(root: Path, table: pd.DataFrame) -> dict[str, list[Any]]:
    """What the names of well-known data sets' clips tell: without it, a random split would leak."""
    names = [os.path.basename(file) for file in table["filename"]]
    matches = [CLIP_NAME.fullmatch(name) for name in names]
    if any(matches):  # clips of one's own beside them are each for itself
        columns: dict[str, list[Any]] = {
            "group": [
                match["src_file"] if match else file
                for match, file in zip(matches, table["filename"], strict=True)
            ]
        }
        folds = {int(match["fold"]) for match in matches if match}
        if all(matches) and len(folds) == ESC50.num_folds:  # a part may have too few to split by
            columns["fold"] = [int(match["fold"]) for match in matches if match]
        return columns
    if root.name == URBANSOUND8K.organized:
        return {"group": [name.split("-")[0] for name in names]}
    return {}


def _refuse_splits_as_classes(root: Path, names: list[str]) -> None:
    """Folders named train and test, or fold1 to fold10, would silently become the classes."""
    splits = {name for names_of_split in _SPLIT_FOLDERS.values() for name in names_of_split}
    if len(names) > 1 and {name.lower() for name in names} <= splits:
        raise DatasetError(
            f"The folders of {root} are splits ({', '.join(names)}), not classes. Read them with "
            "load_split_directories or BEATsTrainer.from_split_directories."
        )
    if len(names) > 1 and all(
        re.fullmatch(r"fold[ _-]?\d+", name, re.IGNORECASE) for name in names
    ):
        raise DatasetError(
            f"The folders of {root} are folds ({', '.join(names[:3])}, ...), not classes. List the "
            "clips in a CSV with a column 'fold' (load_csv_dataset); load_urbansound8k reads that set."
        )


def _one_name(name: str, value: str, default: str, alias: str, alias_value: str | None) -> str:
    if alias_value is None:
        return value
    if value not in (default, alias_value):
        raise ValueError(f"{name}={value!r} and {alias}={alias_value!r} are the same: pass one.")
    return alias_value


def _read_csv(file: Path, needed: set[str], texts: set[str]) -> pd.DataFrame:
    try:
        separator, header = _separator(file, needed)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                file,
                sep=separator,
                # As text: "007" and "NA" (a species code) are labels like any other.
                dtype={name: str for name in header if name.strip() in texts},
                keep_default_na=False,
                na_values=[""],
                skipinitialspace=True,
                index_col=False,  # else a separator at each line's end would shift the columns
                encoding="utf-8-sig",
            )
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file} is not in UTF-8: {error}. Save it again as 'CSV UTF-8'."
        ) from error
    except pd.errors.ParserWarning as error:
        raise DatasetError(
            f"{file} has rows with more cells than its header, which has {len(header)}. Put text with "
            "a separator in it into quotes."
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise DatasetError(f"{file} cannot be read as a CSV: {error}") from error
    return table.rename(columns=str.strip)


def _separator(file: Path, wanted: set[str]) -> tuple[str, list[str]]:
    """The separator under which the header has most of the wanted columns, else the comma; and the header."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        first = next((line for line in stream if line.strip()), "")

    def split(separator: str) -> list[str]:
        return next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])

    def num_found(separator: str) -> int:
        return len(wanted & {name.strip() for name in split(separator)})

    best = max((",", ";", "\t"), key=num_found)
    return best, split(best)
