"""A manifest's rows under the class ids of a model that was not trained on it.

Manifest, the model's labels -> [ids by name] -> manifest rows

A class is the same where its name is: the ids of two data sets have nothing to do with each other.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from beats_trainer.datasets.labels import (
    LABEL_SEPARATOR,
    Task,
    Unlisted,
    name_rows,
    nearest_name,
)
from beats_trainer.datasets.manifest import Manifest
from beats_trainer.errors import DatasetError

__all__ = ["renumber_clips"]


def renumber_clips(
    manifest: Manifest, labels: Sequence[str], task: Task, unlisted: Unlisted = "absent"
) -> pd.DataFrame:
    """Give each clip the class ids that a model uses.

    Args:
        manifest: The clips.
        labels: The model's classes in the order of their ids.
        task: The model's.
        unlisted: Where clips may have any number of classes: what is taken of the model's classes that the
            manifest does not have.

    Returns:
        The rows of ``manifest.table``, with the columns of a manifest with these labels.

    Raises:
        DatasetError: If a class is not among ``labels``, or clips of the one kind meet a model of the other.

    Example:
        >>> table = pd.DataFrame({"path": ["/a.wav"], "category": ["dog"], "target": [0]})
        >>> renumber_clips(Manifest(table, ["dog"]), ["cat", "dog"], "single")["target"].tolist()
        [1]
    """
    if manifest.task != task:
        kinds = {"single": "exactly one class", "multi": "any number of classes"}
        hint = (
            "Give each clip one label."
            if task == "single"
            else "Say how the labels are written: with label_delimiter, label_columns or multi_label."
        )
        raise DatasetError(
            f"This model is for clips with {kinds[task]}, but these have {kinds[manifest.task]}. {hint}"
        )
    ids = {label: number for number, label in enumerate(labels)}
    table = manifest.table.reset_index(drop=True)
    texts = [str(text) for text in table["category"]]
    if task == "single":
        named = [[text] for text in texts]
    else:
        named = [text.split(LABEL_SEPARATOR) if text else [] for text in texts]
    _require_known(named, table, ids)
    if task == "single":
        return table.assign(target=np.array([ids[text] for text in texts], np.int64))
    maybe = [[manifest.labels[n] for n in unknown] for unknown in table["unknown"]]
    # Of a class that the model does not have, it need not be known whether it is there.
    maybe = [[name for name in names if name in ids] for names in maybe]
    missing = [label for label in labels if label not in manifest.labels]
    present = [tuple(sorted(ids[name] for name in names)) for names in named]
    unknown = [
        tuple(sorted(ids[name] for name in [*names, *(missing if unlisted == "unknown" else [])]))
        for names in maybe
    ]
    return table.assign(
        present=pd.Series(present, dtype=object), unknown=pd.Series(unknown, dtype=object)
    )


def _require_known(named: list[list[str]], table: pd.DataFrame, ids: dict[str, int]) -> None:
    unknown = {label for names in named for label in names} - ids.keys()
    if not unknown:
        return
    label = min(unknown)
    rows = [label in names for names in named]
    raise DatasetError(
        f"{label!r} is none of the model's {len(ids)} classes ({', '.join(list(ids)[:10])}"
        f"{', ...' if len(ids) > 10 else ''}), in {name_rows(rows)}: {table['path'][rows.index(True)]}."
        f"{nearest_name(label, ids)}"
    )
