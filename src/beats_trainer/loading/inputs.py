"""Which recordings the user means: files, folders, patterns, tables, lists, whatever the mixture.

files | folders | patterns | tables | DataFrames | standard input -> [find_clips] -> clips -> windows -> reader
"""

import glob
import os
from collections.abc import Iterable, Iterator

import pandas as pd

from beats_trainer.errors import AudioNotFoundError
from beats_trainer.file_names import is_url
from beats_trainer.loading.clips import Clip
from beats_trainer.loading.folders import find_audio, match_files
from beats_trainer.loading.tables import (
    LIST_ENDINGS,
    TABLE_ENDINGS,
    read_clip_list,
    read_clip_table,
    read_standard_input,
    table_to_clips,
)

__all__ = ["ClipInput", "find_clips"]

ClipInput = str | bytes | os.PathLike[str] | os.PathLike[bytes] | Clip | pd.DataFrame
"""What stands for one or more clips: see `find_clips`."""

_PATHS = (str, bytes, os.PathLike)


def find_clips(inputs: ClipInput | Iterable[ClipInput]) -> list[Clip]:
    """List the clips that the user's inputs stand for.

    Args:
        inputs: One or several of these:

            - a file, taken as it is, whether it is there or not: the reader says what is wrong;
            - a folder, searched with all folders in it for files with an audio ending;
            - a pattern such as ``"site_*/**/*.wav"``, for shells that do not expand them;
            - a table with one clip per row (``.csv``, ``.tsv``, ``.parquet``, ``.jsonl``), or a DataFrame:
              the columns are described at ``beats_trainer.loading.tables.table_to_clips``;
            - a list with one path per line (``.txt``);
            - ``"-"`` for such a list, or one with zero bytes between the paths, on standard input;
            - a URL (``protocol://...``), taken as it is;
            - a ``Clip``.

    Returns:
        Clips in the order of the inputs, of folders and patterns sorted by path. What is meant twice, the
        same part of the same file, stands there once, in its first place.

    Raises:
        AudioNotFoundError: If a folder has no audio file, or a pattern matches none.
        AudioError: If a folder cannot be listed.
        DatasetNotFoundError: If a table or list is not there.
        DatasetError: If one cannot be read, names nothing, or a row makes no sense; it names the row.
        TypeError: If an input is none of these.

    Example:
        >>> find_clips(["dawn.wav", Clip("dusk.wav", 60.0, 5.0), "./dawn.wav"])
        [Clip(file='dawn.wav', start_s=0.0, duration_s=None), Clip(file='dusk.wav', start_s=60.0, duration_s=5.0)]
    """
    several = [inputs] if isinstance(inputs, (*_PATHS, Clip, pd.DataFrame)) else inputs
    found: dict[str | tuple[str, float, float | None], Clip] = {}
    reads_standard_input = False
    for given in several:
        if isinstance(given, _PATHS) and os.fsdecode(given) == "-":
            if reads_standard_input:
                continue  # it can be read once
            reads_standard_input = True
        for clip in _clips_of(given):
            found.setdefault(_identity(clip), clip)
    return list(found.values())


def _clips_of(given: ClipInput) -> Iterable[Clip]:
    if isinstance(given, Clip):
        return [given]
    if isinstance(given, pd.DataFrame):
        return table_to_clips(given)
    if not isinstance(given, _PATHS):
        raise TypeError(
            "Expected a file, folder, pattern, table or Clip as input, got "
            f"{type(given).__name__}: {given!r:.100}."
        )
    path = str(os.fsdecode(given))
    if path == "-":
        return read_standard_input()
    if is_url(path):
        return [Clip(path)]
    if os.path.isdir(path):
        files = find_audio(path)
        if not files:
            raise AudioNotFoundError(path, "there is no audio file in this folder.")
        return map(Clip, files)
    if glob.has_magic(path) and not os.path.lexists(path):
        files = match_files(path)
        if not files:
            raise AudioNotFoundError(path, "no file matches this pattern.")
        return _clips_of_files(files)
    return _clips_of_files([path])


def _clips_of_files(files: Iterable[str]) -> Iterator[Clip]:
    for file in files:
        name = file.lower()
        if name.endswith(TABLE_ENDINGS):
            yield from read_clip_table(file)
        elif name.endswith(LIST_ENDINGS):
            yield from read_clip_list(file)
        else:
            yield Clip(file)


def _identity(clip: Clip) -> str | tuple[str, float, float | None]:
    """The same for the same part of the same file, however its path is written."""
    file = clip.file
    # What ".." leads to depends on links: it cannot be taken out of a path without looking.
    if not is_url(file) and ".." not in file:
        file = os.path.abspath(file)
    if clip.start_s == 0 and clip.duration_s is None:
        return file
    return (file, clip.start_s, clip.duration_s)
