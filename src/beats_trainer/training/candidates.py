"""Which models shall be compared: find each, load it once, name it, and see whether it knows the clips already.

names, paths -> [find_candidates] -> Candidate -> [check_candidates] -> notes
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from beats_trainer.checkpoints import BEATsModel, list_available_models
from beats_trainer.checkpoints.sources import PathLike, locate
from beats_trainer.datasets import Manifest
from beats_trainer.errors import CheckpointError, ConfigError

__all__ = ["Candidate", "check_candidates", "find_candidates"]

# Names of folders that say nothing of what is in them.
_EMPTY_NAME = re.compile(r"model|version_\d+|fold_.*")


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Attributes:
        name: What it is called in tables: no other one is.
        source: What `BEATsModel.from_pretrained` loads.
    """

    name: str
    source: PathLike


def find_candidates(models: Sequence[PathLike]) -> list[Candidate]:
    """Give each model a short name that no other one has.

    Args:
        models: Names that `BEATsModel.from_pretrained` knows, paths of files or model folders, or the folders
            of runs.

    Returns:
        One candidate each. A path is called by its end: as much of it as tells it from the others.

    Raises:
        ConfigError: If there is no model, or one is named twice.

    Example:
        >>> [candidate.name for candidate in find_candidates(["openbeats", "beats/runs"])]
        ['openbeats', 'beats/runs']
    """
    given = [models] if isinstance(models, str | os.PathLike) else list(models)
    if not given:
        raise ConfigError("There is no model to compare: name at least one checkpoint.")
    known = list_available_models()
    sources: list[PathLike] = []
    for source in given:
        path = Path(source).expanduser()
        is_run = source not in known and (path / "model" / "config.json").is_file()
        sources.append(path / "model" if is_run else source)
    places = [_place(source, known) for source in sources]
    twice = [str(given[n]) for n, place in enumerate(places) if place in places[:n]]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice among the models: leave one out.")
    return [
        Candidate(_short_name(place, places), source)
        for place, source in zip(places, sources, strict=True)
    ]


def _place(source: PathLike, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of a path on this machine; a name as it is."""
    path = Path(source).expanduser()
    if source in known or not path.exists():
        return (str(source),)
    parts = path.resolve().parts
    return parts[:-1] if parts[-1] == "model" else parts  # every run's model folder has this name


def _short_name(own: tuple[str, ...], all_parts: Sequence[tuple[str, ...]]) -> str:
    """The end of a path that no other one shares, long enough to say something."""
    for length in range(1, len(own) + 1):
        end = own[-length:]
        if _EMPTY_NAME.fullmatch(end[0]) and length < len(own):
            continue
        if sum(other[-length:] == end for other in all_parts) == 1:
            return str(Path(*end))
    return str(Path(*own))


def check_candidates(candidates: Sequence[Candidate], manifest: Manifest) -> list[str]:
    """Find and load every model once, so that none fails after hours; downloads come last.

    Args:
        candidates: The models.
        manifest: The clips that they shall be compared on.

    Returns:
        Notes on models whose encoder was trained on some of the clips, or may have been.

    Raises:
        CheckpointError: If a model is unknown, out of reach, damaged, or no encoder; names it.
        DownloadError: If a transfer fails.

    Warns:
        UserWarning: The notes.
    """
    known = list_available_models()
    for candidate in sorted(candidates, key=lambda one: one.source in known):
        locate(candidate.source)
    notes = []
    for candidate in candidates:
        try:
            encoder = BEATsModel.from_pretrained(candidate.source)
        except CheckpointError as error:
            raise _naming(candidate, error) from error
        note = _note_of_training(candidate, encoder.provenance, manifest)
        if note is not None:
            warnings.warn(note, UserWarning, stacklevel=3)
            notes.append(note)
    return notes


def _naming(candidate: Candidate, error: CheckpointError) -> CheckpointError:
    """The error itself, if it names the model; else one that does."""
    if str(candidate.source) in str(error) or candidate.name in str(error):
        return error
    return CheckpointError(f"The model {candidate.source} cannot be compared: {error}")


def _note_of_training(
    candidate: Candidate, provenance: Mapping[str, Any], manifest: Manifest
) -> str | None:
    """Say so if a model's encoder was trained by this library, perhaps on the very clips of the comparison."""
    if provenance.get("mode") not in ("lora", "full", "scratch"):
        return None
    clips = Path(candidate.source).expanduser().parent / "splits.csv"
    if not clips.is_file():
        return (
            f"The encoder of {candidate.name} was trained on {provenance.get('clips', {}).get('train', '?')} "
            "labelled clips. If some of them are among these, its figures are too good."
        )
    table = pd.read_csv(clips, dtype=str, keep_default_na=False)
    heard = set(table.loc[table["split"].isin(["train", "val"]), "path"])
    num_heard = int(manifest.table["path"].isin(heard).sum())
    if not num_heard:
        return None
    return (
        f"The encoder of {candidate.name} was trained with {num_heard} of these {len(manifest)} clips and "
        "their labels: its figures are too good, and say nothing of new sound. Compare it on other clips."
    )
