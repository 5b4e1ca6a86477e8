"""Folders with one table per recording: where each stands, and which of an earlier run are taken away.

recordings -> [names in a folder that mirrors theirs] -> tables, and a list of what was written
"""

import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from beats_trainer.atomic import written_whole
from beats_trainer.detection.tables import on_one_line
from beats_trainer.file_names import printable_name

__all__ = ["absolute", "holds_recording_tables", "table_names", "write_recording_tables"]

logger = logging.getLogger(__name__)

_LIST = ".tables.json"
"""File that names the tables of a folder; what is not in it is not ours."""

_MAX_BYTES = 200
"""Of a file name: file systems take 255, and a file being written has a longer name."""


def absolute(file: str | os.PathLike[str]) -> str:
    """Give a file's absolute path; a URL is one already."""
    name = os.fspath(file)
    return name if "://" in name else os.path.abspath(name)


def table_names(
    recordings: Iterable[str], ending: str, root: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """Say where the table of each recording stands below a folder.

    The recording's own ending stays in the name: ``dawn.wav`` and ``dawn.flac`` have two tables. A
    name that two recordings would share, be it in other case or as another spelling of the same
    letters, gets a number: ``dawn.wav.table.1234.txt`` is still about ``dawn.wav`` for
    `beats_trainer.datasets.read_annotations`.

    Args:
        recordings: Absolute paths or URLs, each once.
        ending: Of the tables, such as ``.txt``.
        root: Folder that the names count from; ``None``: the deepest one that has all recordings.
            Recordings outside of it are under their whole path.

    Returns:
        The name of each recording's table, with ``/`` between folders.

    Example:
        >>> table_names(["/rec/a/dawn.wav", "/rec/b/dawn.wav"], ".txt")
        {'/rec/a/dawn.wav': 'a/dawn.wav.txt', '/rec/b/dawn.wav': 'b/dawn.wav.txt'}
    """
    places = {file: _place(file) for file in recordings}
    shared = _shared_folder(list(places.values())) if root is None else _place(absolute(root))
    short: dict[str, list[str]] = {}
    for file, parts in places.items():
        below = parts[: len(shared)] == shared and len(parts) > len(shared)
        short[file] = [_safe(part) for part in (parts[len(shared) :] if below else parts)]
    keys = {file: normalize("NFC", "/".join(parts)).casefold() for file, parts in short.items()}
    uses = Counter(keys.values())
    names = {}
    for file, parts in short.items():
        name = _cut(parts[-1], _MAX_BYTES - len(ending))
        if uses[keys[file]] > 1 or name != parts[-1]:
            name = f"{name}.table.{zlib.crc32(os.fsencode(file))}"
        names[file] = "/".join([*(_cut(part, _MAX_BYTES) for part in parts[:-1]), name + ending])
    return names


def write_recording_tables(
    folder: str | os.PathLike[str],
    names: Mapping[str, str],
    lines_of: Callable[[str], Iterable[str]],
) -> list[Path]:
    """Write a table for each recording, and remove those of an earlier run that are not among them.

    Args:
        folder: Where; made if it is not there. Only what the list in it names is removed.
        names: Recording to the name of its table in the folder.
        lines_of: Gives the lines of a recording's table, with their ends.

    Returns:
        The tables, in the order of ``names``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _read_list(folder)
    # First the list, then the tables: whatever a run leaves when it is stopped, the next one knows.
    _write_list(folder, earlier | set(names.values()))
    paths = []
    for recording, name in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            written_whole(path) as partial,
            partial.open("w", encoding="utf-8", newline="") as stream,
        ):
            stream.writelines(lines_of(recording))
        paths.append(path)
    for name in sorted(earlier - set(names.values())):
        stale = folder / name
        stale.unlink(missing_ok=True)
        for parent in list(stale.parents)[: len(PurePosixPath(name).parts) - 1]:
            try:
                parent.rmdir()
            except OSError:  # it is gone, or something else is in it
                break
    _write_list(folder, set(names.values()))
    return paths


def holds_recording_tables(folder: Path) -> bool:
    """Whether `write_recording_tables` wrote into this folder."""
    return (folder / _LIST).is_file()


def _place(file: str) -> list[str]:
    """The folders and name of a file, from the root of its drive or its URL's host on."""
    scheme, _, rest = file.rpartition("://")
    drive, path = ("", rest) if scheme else os.path.splitdrive(rest)
    parts = [part for part in re.split(r"[\\/]" if os.sep == "\\" else "/", path) if part]
    return [drive.strip(":\\/"), *parts] if drive else parts


def _shared_folder(places: list[list[str]]) -> list[str]:
    if not places:
        return []
    first, last = min(places), max(places)  # what these two share, all between them have
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return first[:shared]


def _safe(part: str) -> str:
    part = on_one_line(printable_name(part))
    return f"_{part[1:]}" if part.startswith(".") else part  # a hidden table is never found again


def _cut(name: str, max_bytes: int) -> str:
    return name.encode()[:max_bytes].decode(errors="ignore")


def _read_list(folder: Path) -> set[str]:
    path = folder / _LIST
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["tables"]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError) as error:
        logger.warning(
            "%s cannot be read (%s): tables of an earlier run, if there are any in %s, stay.",
            path,
            error,
            folder,
        )
        return set()
    inside = (PurePosixPath(name) for name in names)
    return {str(name) for name in inside if not name.is_absolute() and ".." not in name.parts}


def _write_list(folder: Path, names: set[str]) -> None:
    with written_whole(folder / _LIST) as partial:
        partial.write_text(
            json.dumps({"tables": sorted(names)}, ensure_ascii=False, indent=0), encoding="utf-8"
        )
