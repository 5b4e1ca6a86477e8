"""Readable names of AudioSet's classes, which released checkpoints know by code (``/m/09x0r``).

label_dict of a file -> [codes -> names] -> Checkpoint: labels, label_codes

The table ``audioset_labels.csv`` beside this file is AudioSet's ``class_labels_indices.csv`` (Google, CC BY
4.0); its codes and names are those of AudioSet's ontology. A checkpoint has an order of its own: names are
found by code, never by place.
"""

import csv
import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from types import MappingProxyType

__all__ = ["audioset_names", "name_labels"]


@functools.cache
def audioset_names() -> Mapping[str, str]:
    """Give the display name of each of the 527 evaluated classes, by code.

    Returns:
        Codes to names, in the order of AudioSet's class indices; it cannot be changed.

    Example:
        >>> audioset_names()["/m/09x0r"]
        'Speech'
        >>> len(audioset_names())
        527
    """
    table = importlib.resources.files(__package__) / "audioset_labels.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return MappingProxyType({row["mid"]: row["display_name"] for row in rows})


def name_labels(labels: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Put AudioSet's names in the place of its codes.

    Args:
        labels: A classifier's labels, in the order of its outputs.

    Returns:
        The labels in the same order, with a name for each code that AudioSet has; other labels, and a code
        whose name is a label of its own already, stay. Then the labels as they came, or ``None`` if none
        was a code of AudioSet.

    Example:
        >>> name_labels(["/m/04rlf", "/m/09x0r", "wren"])
        (['Music', 'Speech', 'wren'], ['/m/04rlf', '/m/09x0r', 'wren'])
        >>> name_labels(["frog", "toad"])
        (['frog', 'toad'], None)
    """
    names, taken = audioset_names(), set(labels)
    named = [names[label] if names.get(label, label) not in taken else label for label in labels]
    return named, (list(labels) if named != list(labels) else None)
