"""What would end a training in the middle, found before it starts: nothing is written yet.

splits, config -> [the monitored metric exists; every recording is there and whole] -> train_once

Shapes in this file: N clips, C classes.
"""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from beats_trainer.audio import probe_audio
from beats_trainer.config import Config, settled
from beats_trainer.datasets import Splits, targets_of
from beats_trainer.errors import AudioError, ConfigError, DatasetError
from beats_trainer.loading import read_ahead
from beats_trainer.reports import measure

__all__ = ["check_before_training"]

_MOST_NAMED = 10


def check_before_training(rounds: Sequence[Splits], asked: Config, config: Config) -> None:
    """Refuse what a training could not end with.

    Args:
        rounds: The clips of each training: one, or one per fold.
        asked: The settings as the user gave them.
        config: The same, resolved.

    Raises:
        ConfigError: If the metric that chooses the epoch is undefined on validation clips.
        AudioError: If one recording is gone, damaged or cut off; it names the file and the reason.
        DatasetError: If several are; it names them.

    Warns:
        UserWarning: If settings that need validation clips were given, and there are none.

    Example:
        >>> check_before_training([trainer.splits], config, config.resolved())  # doctest: +SKIP
    """
    metric = settled(config.training.monitor_metric)
    for splits in rounds:
        _refuse_undefined(metric, splits)
    if not any(len(splits.val) for splits in rounds):
        for name in ("patience", "monitor_metric", "target_precision"):
            if getattr(asked.training, name) is not None:
                warnings.warn(
                    f"training.{name} has no effect: there are no validation clips. All "
                    f"{config.training.max_epochs} epochs run, the last one is kept, and no threshold is fitted.",
                    stacklevel=3,
                )
    tables = [
        table
        for splits in rounds
        for table in (splits.train, splits.val, splits.test)
        if len(table)
    ]
    _refuse_unreadable(tables, max(1, config.data.num_workers))


def _refuse_undefined(metric: str, splits: Splits) -> None:
    """Measure once with scores that say nothing: which metrics exist depends on the targets alone."""
    if splits.val.empty:
        return
    num_classes = len(splits.labels)
    targets = targets_of(splits.val, num_classes, splits.task)
    uniform = np.full((len(splits.val), num_classes), 1 / num_classes)
    defined = measure(splits.task, targets, uniform, splits.labels).summary("val")
    if metric not in defined:
        raise ConfigError(
            f"training.monitor_metric={metric!r} is undefined on the {len(splits.val)} validation clips: it "
            "takes a class that some of them are known to have and others to lack. Choose one of "
            f"{', '.join(defined)}, or other validation clips (another seed, a larger data.val_split, a "
            f"column of splits). {splits.how}"
        )


def _refuse_unreadable(tables: Iterable[pd.DataFrame], num_threads: int) -> None:
    """Look at every recording's header; what it promises must be there."""
    files = dict.fromkeys(str(path) for table in tables for path in table["path"])
    errors: list[AudioError] = []
    for _, outcome in read_ahead(files, probe_audio, num_threads, 4 * num_threads):
        if isinstance(outcome, AudioError):
            errors.append(outcome)
        elif isinstance(outcome, Exception):
            raise outcome
    if len(errors) == 1:
        raise errors[0]
    if errors:
        named = "\n".join(f"- {error.file}: {error.reason}" for error in errors[:_MOST_NAMED])
        more = f"\n- and {len(errors) - _MOST_NAMED} more" if len(errors) > _MOST_NAMED else ""
        raise DatasetError(
            f"{len(errors)} of {len(files)} recordings cannot be read. Replace them, or take them out of the "
            f"data:\n{named}{more}"
        )
