"""From the settings to the table of clips: the one way in which training and comparing find their data.

config | table | Manifest -> [folder, CSV or annotations read and checked] -> Manifest
"""

import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from beats_trainer.config import Config, DataConfig
from beats_trainer.datasets import (
    Manifest,
    build_manifest,
    load_csv_dataset,
    read_annotations,
    scan_directory_dataset,
    window_clips,
)
from beats_trainer.errors import ConfigError, DatasetError

__all__ = ["label_settings", "read_manifest", "read_table", "scan_classes"]


def read_manifest(config: Config, dataset: pd.DataFrame | Manifest | None = None) -> Manifest:
    """Build the table of clips that a config and, perhaps, a table describe.

    Args:
        config: ``data`` says where the clips are and how their labels are written.
        dataset: A table with the columns that ``config.data`` names, or a checked `Manifest`, which is
            returned as it is; ``None`` reads ``data.annotations``, ``data.metadata_file`` or
            ``data.data_dir``.

    Returns:
        The checked table.

    Raises:
        ConfigError: If neither a table nor a setting says where the clips are, or two settings do.
        DatasetError: If the clips cannot be used.
        TypeError: If ``dataset`` is something else.

    Example:
        >>> read_manifest(Config(data=DataConfig(data_dir="clips"))).labels  # doctest: +SKIP
        ['cat', 'dog']
    """
    data = config.data
    table = _read(config) if dataset is None else dataset
    if isinstance(table, pd.DataFrame):
        columns: dict[str, Any] = {
            "audio_column": data.audio_column,
            "label_column": data.label_column,
        }
        if dataset is None or data.annotations is not None:
            columns = {}  # what was read here has the library's own
        table = build_manifest(table, data.data_dir, **columns, **label_settings(data))
    if not isinstance(table, Manifest):
        raise TypeError(
            "Expected a DataFrame, a Manifest, or nothing where a Config says where the clips are, not "
            f"{type(table).__name__}. BEATsTrainer.from_directory reads a folder, from_csv a CSV."
        )
    return table


def label_settings(data: DataConfig) -> dict[str, Any]:
    """What ``build_manifest`` is told of labels, groups, splits and folds."""
    return {
        "multi_label": data.multi_label,
        "label_delimiter": data.label_delimiter,
        "label_columns": data.label_columns,
        "background_labels": data.background_labels,
        "unlisted": data.unlisted_labels,
        "group_column": data.group_column,
        "group_pattern": data.group_pattern,
        "split_column": data.split_column,
        "fold_column": data.fold_column,
    }


def scan_classes(data_dir: str | os.PathLike[str], data: DataConfig) -> pd.DataFrame:
    """List the clips of a folder with one folder per class.

    Raises:
        DatasetError: If a class has no clip.
    """
    table = scan_directory_dataset(
        data_dir, data.audio_extensions, label_delimiter=data.label_delimiter
    )
    empty = table.attrs.get("empty_classes")
    if empty:
        raise DatasetError(
            f"{len(empty)} class folders of {data_dir} have no audio files: {', '.join(empty[:10])}. "
            "Put clips into them, or remove them: a class cannot be learned from nothing."
        )
    return table


def read_table(data: DataConfig, seed: int = 0) -> pd.DataFrame:
    """Read the clips that ``data`` names: annotated recordings, a CSV, or a folder of class folders.

    Args:
        data: One of ``annotations``, ``metadata_file`` and ``data_dir`` says where they are.
        seed: Of the choice among empty windows of annotated recordings.

    Raises:
        DatasetError: If they cannot be read.
    """
    if data.annotations is not None:
        return window_clips(
            read_annotations(
                data.annotations,
                audio_dir=data.data_dir,
                label_column=None if data.label_column == "category" else data.label_column,
            ),
            window_s=data.window_s,
            hop_s=data.hop_s,
            min_overlap_s=data.min_overlap_s,
            max_empty_ratio=data.max_empty_ratio,
            seed=seed,
        )
    if data.metadata_file is None:
        assert data.data_dir is not None
        return scan_directory_dataset(
            data.data_dir, data.audio_extensions, label_delimiter=data.label_delimiter
        )
    csv_path = Path(data.metadata_file)
    if not csv_path.is_file() and data.data_dir is not None:
        csv_path = Path(data.data_dir) / csv_path
    return load_csv_dataset(
        csv_path,
        audio_column=data.audio_column,
        label_column=data.label_column,
        label_columns=data.label_columns,
        data_dir=data.data_dir,
    )


def _read(config: Config) -> pd.DataFrame:
    """Read what ``config.data`` names, to train on."""
    data = config.data
    if data.annotations is None and data.metadata_file is None:
        if data.data_dir is None:
            raise ConfigError(
                "There is no data to train on: set data.data_dir (a folder with one folder per class) or "
                "data.metadata_file (a CSV), pass a DataFrame, or use BEATsTrainer.from_directory."
            )
        for name, usual in (("audio_column", "filename"), ("label_column", "category")):
            if getattr(data, name) != usual:
                warnings.warn(
                    f"data.{name} has no effect: the clips of a folder are labelled by the folders that they "
                    "are in, and there is no table.",
                    stacklevel=4,
                )
        return scan_classes(data.data_dir, data)
    if data.annotations is not None and data.metadata_file is not None:
        raise ConfigError(
            f"data.annotations ({data.annotations}) and data.metadata_file ({data.metadata_file}) each say "
            "what the clips are: set one of them. data.data_dir is the folder of the recordings."
        )
    return read_table(data, config.seed)
