"""From labelled clips that a model was not trained on to rows with its class ids, for measuring it.

folder | CSV | annotations | table | Manifest -> [read as the training's clips were] -> rows of a manifest

A run's settings say how its labels were written, so that other clips of the same form need no more words.
What they say of the training's own files, names and splits says nothing of these.
"""

import copy
import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from beats_trainer.config import Config, DataConfig
from beats_trainer.datasets import Manifest, Task, build_manifest
from beats_trainer.datasets.labels import nearest_name
from beats_trainer.datasets.renumber import renumber_clips
from beats_trainer.errors import ConfigError, DatasetError
from beats_trainer.training.manifest import label_settings, read_table

__all__ = ["choose_rows", "read_new_clips"]

_OF_THE_TRAINING = ("data_dir", "metadata_file", "annotations", "group_pattern", "max_empty_ratio")
_SAID_OTHERWISE = (
    ("label_delimiter", "label_columns"),
    ("label_columns", "label_delimiter"),
    ("group_pattern", "group_column"),
)
_SPLIT_COLUMNS = ("group_column", "fold_column", "split_column")


def read_new_clips(
    data: str | os.PathLike[str] | pd.DataFrame | Manifest,
    config: Config,
    labels: Sequence[str],
    task: Task,
    settings: Mapping[str, Any] | None = None,
    rows: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Read labelled clips for a trained model.

    Args:
        data: A folder with one folder per class, or of recordings where ``settings`` has ``annotations``; a
            CSV; a table; or a checked manifest, or rows of one with this model's ids.
        config: The training's; ``config.data`` says how labels are written.
        labels: The model's classes in the order of their ids.
        task: The model's.
        settings: Fields of ``config.data`` that are different for these clips.
        rows: As for `choose_rows`.

    Returns:
        Rows of a manifest, with the model's class ids.

    Raises:
        ConfigError: If there is no such setting, or it contradicts another or ``data``.
        DatasetError: If the clips cannot be used, or a label is none of the model's; it names the row.

    Example:
        >>> read_new_clips("labels.csv", config, ["cat", "dog"], "single")  # doctest: +SKIP
    """
    if isinstance(data, pd.DataFrame) and _is_checked(data, task):
        data = Manifest(data, list(labels), task)
    if isinstance(data, Manifest):
        if settings:
            raise ConfigError(
                f"{next(iter(settings))}= is for reading clips; these are checked already."
            )
        table = renumber_clips(data, labels, task, config.data.unlisted_labels)
        return choose_rows(table, rows)
    reading = _settings_for(data, config, task, settings or {})
    columns: dict[str, Any] = {}
    if isinstance(data, pd.DataFrame):
        table = data
        if {reading.audio_column, *(reading.label_columns or [reading.label_column])} <= set(table):
            columns = {"audio_column": reading.audio_column, "label_column": reading.label_column}
        else:  # then in the columns that the library's own tables have
            reading.label_columns = None
    else:
        table = read_table(reading, config.seed)
    table = choose_rows(table, rows)
    for name in _SPLIT_COLUMNS:  # what the training's table had for its splits, this need not have
        if getattr(reading, name) not in table.columns:
            setattr(reading, name, getattr(DataConfig(), name))
    manifest = build_manifest(
        table,
        reading.data_dir,
        **columns,
        labels=labels,
        min_classes=1,
        **label_settings(reading),
    )
    return renumber_clips(manifest, labels, task)


def choose_rows(table: pd.DataFrame, rows: Mapping[str, Any] | None) -> pd.DataFrame:
    """Take the rows that have the given values, compared as text, in the given columns.

    Args:
        table: One row per clip.
        rows: Value by column; ``None`` takes all rows.

    Raises:
        DatasetError: If there is no such column, or no row with this value.

    Example:
        >>> table = pd.DataFrame({"filename": ["a.wav", "b.wav"], "fold": [1, 2]})
        >>> choose_rows(table, {"fold": "2"})["filename"].tolist()
        ['b.wav']
    """
    if not rows:
        return table
    for column, value in rows.items():
        if column not in table.columns:
            raise DatasetError(
                f"The table has no column {column!r}.{nearest_name(column, map(str, table.columns))} "
                f"Its columns: {', '.join(map(str, table.columns))}."
            )
        texts = table[column].astype(str)
        if not (texts == str(value)).any():
            raise DatasetError(
                f"No row has {str(value)!r} in the column {column!r}. Its values: "
                f"{', '.join(sorted(texts.unique())[:10])}."
            )
        table = table[texts == str(value)]
    return table.reset_index(drop=True)


def _settings_for(
    data: str | os.PathLike[str] | pd.DataFrame,
    config: Config,
    task: Task,
    settings: Mapping[str, Any],
) -> DataConfig:
    own = config.data
    strange = [name for name in settings if name not in vars(own)]
    if strange:
        hint = nearest_name(strange[0], vars(own))
        raise ConfigError(f"There is no setting data.{strange[0]}.{hint}")
    changes: dict[str, Any] = dict.fromkeys(_OF_THE_TRAINING)
    changes["multi_label"] = task == "multi"
    if own.annotations is not None and "annotations" not in settings:
        changes["label_column"] = "category"  # it was in the table of annotations
    if isinstance(data, str | os.PathLike):
        place = "data_dir" if os.path.isdir(data) else "metadata_file"
        if place in settings:
            raise ConfigError(f"{data} says what data.{place} is: leave the setting out.")
        changes[place] = data
    for name, other in _SAID_OTHERWISE:
        if settings.get(name) is not None:
            changes[other] = None
    reading = dataclasses.replace(copy.deepcopy(own), **(changes | dict(settings)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings of the training that have no effect here
        Config(data=reading).validate()
    return reading


def _is_checked(table: pd.DataFrame, task: Task) -> bool:
    """Whether a table is rows of a manifest, as ``BEATsTrainer.dataset`` gives them."""
    ids = {"target"} if task == "single" else {"present", "unknown"}
    return {"path", "filename", "category", *ids} <= set(table.columns)
