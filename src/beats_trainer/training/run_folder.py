"""The folder of one training run: what was asked for, what came out, and the trained model.

config, splits -> [LOG_DIR/EXPERIMENT/version_N] -> model/, history, metrics, report

```text
version_0/
|-- config.yaml      every setting of the run, none left open
|-- splits.csv       every clip: its classes and its split
|-- history.csv      one row per epoch
|-- predictions.csv  every validation and test clip: its scores
|-- metrics.json     of the validation and the test split, with intervals and the confusion matrix
|-- report.html      all of it to look at, and to hear
|-- report.json      the same numbers
|-- model/           the trained model: all that predicting needs
|-- tensorboard/     the course of training, for TensorBoard
|-- steps/           the same as CSV, where the network was trained
`-- checkpoints/     of such a run: last.ckpt to resume from, and the best
```

A cross-validation is such a folder too, with one folder ``fold_NAME`` per fold in it.
"""

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from beats_trainer.atomic import written_whole
from beats_trainer.config import Config
from beats_trainer.datasets import Splits, Task, read_clip_table, write_clip_table
from beats_trainer.errors import CheckpointNotFoundError, ConfigError, DatasetError

if TYPE_CHECKING:
    from beats_trainer.training.session import ScoredSplit

__all__ = ["SPLIT_NAMES", "RunFolder", "prediction_table"]

SPLIT_NAMES = ("train", "val", "test")
"""The parts of a data set, in this order everywhere."""

_PATHS = (
    ("data", "data_dir"),
    ("data", "metadata_file"),
    ("data", "annotations"),
    ("model", "model_path"),
    ("augmentation", "background_dir"),
)
"""Settings that may be paths."""

_DATA_SETTINGS = ("folds", "batch_size", "max_duration_s")
"""Of how clips are used. The others say how they are found and divided."""

_FREE_SETTINGS = (
    "device",
    "gpus",
    "gradient_checkpointing",
    "log_every_n_steps",
    "loggers",
    "num_classes",
    "save_top_k",
)
"""Settings that a resumed run may change: what it learns does not depend on them."""

_CHECKPOINT_FOLDER = "checkpoints"
_LAST_CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, log_dir: Path, experiment_name: str) -> "RunFolder":
        """Make the next ``version_N`` of an experiment; never one that exists."""
        parent = log_dir / experiment_name
        parent.mkdir(parents=True, exist_ok=True)
        number = max((n for n, _ in _versions(parent)), default=-1) + 1
        while True:
            try:
                (parent / f"version_{number}").mkdir()
            except FileExistsError:  # another run was faster
                number += 1
            else:
                return cls(parent / f"version_{number}")

    @classmethod
    def to_resume(
        cls, checkpoint: str | os.PathLike[str] | Literal[True], log_dir: Path, experiment_name: str
    ) -> "RunFolder":
        """Find the run to go on with.

        Args:
            checkpoint: Its ``last.ckpt``, its folder, or ``True`` for the experiment's latest run.
            log_dir: Where experiments lie.
            experiment_name: Which experiment; for ``True``.

        Raises:
            CheckpointNotFoundError: If there is no such run.
        """
        if checkpoint is True:
            versions = sorted(_versions(log_dir / experiment_name), reverse=True)
            found = next((cls(path) for _, path in versions if cls(path).is_begun), None)
            if found is None:
                raise CheckpointNotFoundError(
                    f"There is no run to resume under {log_dir / experiment_name}: no version_N with a "
                    "config.yaml. Train without resume_from_checkpoint, or pass a run's folder."
                )
            return found
        path = Path(os.fspath(checkpoint))
        folder = path if path.is_dir() else path.parent.parent
        if not cls(folder).is_begun or (path.is_file() and path.name != _LAST_CHECKPOINT):
            raise CheckpointNotFoundError(
                f"Cannot resume from {path}: expected a run's folder (with the config.yaml that it was begun "
                f"with), or the file {_CHECKPOINT_FOLDER}/{_LAST_CHECKPOINT} in one. (The other files there "
                "hold weights only, not the state of the optimiser.)"
            )
        return cls(folder)

    @property
    def model(self) -> Path:
        """The trained model's folder."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of a Lightning run go."""
        return self.path / _CHECKPOINT_FOLDER

    @property
    def last_checkpoint(self) -> Path:
        """What a run that was broken off is resumed from."""
        return self.checkpoints / _LAST_CHECKPOINT

    @property
    def is_begun(self) -> bool:
        """Whether there is a run here to go on with."""
        return (self.path / "config.yaml").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run has measured its model and written its report."""
        names = ("metrics.json", "report.json")
        return all((self.path / name).is_file() for name in names)

    def fold(self, name: str) -> "RunFolder":
        """The folder of one fold of a cross-validation."""
        # A group may be called anything, such as a path: what no file name may hold is written %2F.
        usable = name.translate({ord(sign): f"%{ord(sign):02X}" for sign in '%/\\:*?"<>|'})
        return RunFolder(self.path / f"fold_{usable}")

    def write_plan(self, config: Config, splits: Splits | None) -> None:
        """Write what will be done, before it is."""
        self.path.mkdir(parents=True, exist_ok=True)
        if splits is not None:  # a model that was loaded without its clips has none
            tables = [
                table.assign(split=name)
                for name, table in zip(
                    SPLIT_NAMES, (splits.train, splits.val, splits.test), strict=True
                )
            ]
            table = pd.concat(tables, ignore_index=True)
            write_clip_table(table, splits.labels, splits.task, self.path / "splits.csv")
        with written_whole(self.path / "config.yaml") as partial:  # last: with it a run is begun
            _anchored(config).to_yaml(partial)

    def remove_leftovers(self) -> None:
        """Remove what a run that was killed had half-written."""
        for pattern in (".*.part", f".{self.model.name}.*-*", f"{_CHECKPOINT_FOLDER}/*.part"):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write one row per epoch."""
        with written_whole(self.path / "history.csv") as partial:
            pd.DataFrame(history).to_csv(partial, index=False)

    def write_predictions(self, scored: "Mapping[str, ScoredSplit]", splits: Splits) -> None:
        """Write one row per measured clip: file, split, true and predicted class, and every score."""
        tables = [
            prediction_table(part, splits, name).assign(split=name) for name, part in scored.items()
        ]
        if tables:
            with written_whole(self.path / "predictions.csv") as partial:
                pd.concat(tables, ignore_index=True).to_csv(partial, index=False)

    def write_metrics(self, scored: "Mapping[str, ScoredSplit]", **more: Any) -> None:
        """Write the metrics of each split with their intervals; and what else there is to say."""
        plain: dict[str, Any] = {
            name: part.metrics.to_dict()
            | {"intervals": {key: [i.low, i.high] for key, i in part.intervals.items()}}
            for name, part in scored.items()
        }
        self.write_json("metrics.json", plain | more)

    def write_json(self, name: str, content: Any) -> None:
        """Write plain values, whole or not at all; numbers that are not finite become ``null``."""
        text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        with written_whole(self.path / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def read_config(self) -> Config | None:
        """The run's settings; ``None`` for a model folder that came without them."""
        path = self.path / "config.yaml"
        return Config.from_yaml(path) if path.is_file() else None

    def read_splits(self, labels: list[str], task: Task) -> Splits | None:
        """The run's clips; ``None`` for a model folder that came without them.

        Args:
            labels: Class names in the order of the ids, from the model.
            task: What the clips' targets are.
        """
        path = self.path / "splits.csv"
        if not path.is_file():
            return None
        table = read_clip_table(path, labels, task)
        parts = {
            name: table[table["split"] == name].drop(columns="split").reset_index(drop=True)
            for name in SPLIT_NAMES
        }
        how = f"Split as in {path}."
        return Splits(parts["train"], parts["val"], parts["test"], labels, how, task)

    def check_same_plan(self, config: Config, splits: Splits | None) -> None:
        """Make sure that a resumed run goes on with the settings and the clips that it began with.

        Every setting that changes the result must be the same: one that changes in the middle, such as
        ``max_epochs``, from which the whole schedule follows, would give what neither setting gives. Free
        are where the run computes, how it reads, what it logs and keeps, and how the clips are found: it is
        the clips themselves that are compared.

        Args:
            config: Resolved.
            splits: ``None`` for the folder of a cross-validation, whose folds have the clips.

        Raises:
            ConfigError: If a setting has changed.
            DatasetError: If a clip is new, gone, or in another split or class.
        """
        before = self.read_config()
        if before is not None:
            old, new = _settings_of_result(before), _settings_of_result(config)
            changes = [
                f"{name} was {old[name]!r} and is {new[name]!r}"
                for name in old
                if old[name] != new[name]
            ]
            if changes:
                raise ConfigError(
                    f"Cannot resume {self.path} with other settings: {'; '.join(changes)}. "
                    "Use those of its config.yaml, or start a new run."
                )
        if splits is not None:
            self.check_same_clips(splits)
        elif (self.path / "splits.csv").is_file():
            raise ConfigError(
                f"Cannot resume {self.path} as a cross-validation: it is a single training. If it is a fold of "
                "one, pass the folder above it, and the fold is taken up with the others."
            )

    def check_same_clips(self, splits: Splits) -> None:
        """Make sure that the run's splits were these.

        Raises:
            DatasetError: If a clip is new, gone, or in another split or class.
        """
        clips = self.read_splits(splits.labels, splits.task)
        if clips is None:
            return
        for name in SPLIT_NAMES:
            old_rows, new_rows = (_clip_keys(getattr(part, name)) for part in (clips, splits))
            if old_rows != new_rows:
                raise DatasetError(
                    f"Cannot resume {self.path}: its {name} split had {len(old_rows)} clips, and now has "
                    f"{len(new_rows)}, not the same ones. A model that has seen test clips cannot be "
                    "tested: use the same data, splits and seed, or start a new run."
                )


def prediction_table(scored: "ScoredSplit", splits: Splits, split: str) -> pd.DataFrame:
    """The scores of a split as a table to read in R or a spreadsheet.

    Args:
        scored: The clips and their scores.
        splits: Their class names and task.
        split: Its name, for the message of an error.

    Returns:
        One row per clip: ``filename``, ``path``, ``start_time`` and ``end_time`` where clips are parts of
        files, ``group`` where known, ``category`` (true), ``predicted`` (most likely), ``score``, and one
        column per class.
    """
    probabilities = scored.probabilities
    assert len(scored.table) == len(probabilities), split
    own = ("filename", "path", "start_time", "end_time", "group", "category")
    table = scored.table[[name for name in own if name in scored.table.columns]].reset_index(
        drop=True
    )
    best = probabilities.argmax(axis=1)
    table["predicted"] = [splits.labels[index] for index in best]
    table["score"] = probabilities[np.arange(len(best)), best]
    taken = {*own, "predicted", "score", "split", "fold"}
    columns = [f"{label}_score" if label in taken else label for label in splits.labels]
    return pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _clip_keys(table: pd.DataFrame) -> list[str]:
    """What makes a clip and its classes, as text, sorted."""
    known = ("path", "start_time", "end_time", "target", "present", "unknown")
    columns = [name for name in known if name in table]
    return sorted("\t".join(map(str, row)) for row in table[columns].to_numpy().tolist())


def _anchored(config: Config) -> Config:
    """The settings with paths that mean the same from any working directory."""
    anchored = copy.deepcopy(config)
    for section, name in _PATHS:
        settings = getattr(anchored, section)
        path = getattr(settings, name)
        is_path = path is not None and os.path.exists(path)
        # A checkpoint's name stays a name, whatever lies in the working directory.
        if is_path and (name != "model_path" or os.path.dirname(path)):
            setattr(settings, name, os.path.abspath(path))
    return anchored


def _settings_of_result(config: Config) -> dict[str, Any]:
    """Every setting that the result depends on, under its dotted name."""
    settings: dict[str, Any] = {"seed": config.seed}
    for section, values in _anchored(config).to_dict().items():
        if section == "data":
            names = _DATA_SETTINGS
        elif isinstance(values, dict):
            names = tuple(name for name in values if name not in _FREE_SETTINGS)
        else:
            continue
        settings |= {f"{section}.{name}": values[name] for name in names}
    return settings


def _versions(parent: Path) -> list[tuple[int, Path]]:
    return [
        (int(path.name.removeprefix("version_")), path)
        for path in parent.glob("version_*")
        if path.name.removeprefix("version_").isdecimal()
    ]
