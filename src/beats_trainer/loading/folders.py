"""Find recordings in folders and by patterns such as ``site_*/**/*.wav``.

folder | pattern -> [walk, each folder once] -> sorted paths

One walk serves both: a folder is a pattern that is matched at its root. Python's own ``glob`` leaves out
folders that it cannot read without a word, and goes round in links that lead back up.
"""

import fnmatch
import glob
import heapq
import logging
import os

from beats_trainer.audio import AUDIO_EXTENSIONS
from beats_trainer.errors import AudioError

__all__ = ["find_audio", "match_files"]

logger = logging.getLogger(__name__)

Reached = frozenset[int]
"""Places in a pattern that the names so far lead to; the place past its last part is a match."""


def find_audio(folder: str) -> list[str]:
    """List the recordings in a folder and all folders in it.

    Hidden files and folders are skipped. Links are followed; a folder that can be reached in several ways
    is listed once, by its own path rather than by a link's. A folder below that cannot be listed is left
    out, with a warning that names it.

    Args:
        folder: An existing folder.

    Returns:
        Paths that start with ``folder``, of files with an audio ending, sorted.

    Raises:
        AudioError: If the folder itself cannot be listed.
    """
    return _walk(folder, (), takes_all=False)


def match_files(pattern: str) -> list[str]:
    """List the files that a pattern stands for; ``**`` is any number of folders.

    A pattern whose last part has an ending (``*.wav``) stands for whatever it matches, another one
    (``night_*``) for files with an audio ending. Folders that it matches stand for the recordings in them.
    What starts with a dot is matched only by what does, too. For the rest, see :func:`find_audio`.

    Returns:
        Paths, sorted; none if nothing matches.

    Raises:
        AudioError: If the folder that the pattern starts from cannot be listed.
    """
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root = os.sep.join([*parts[:first], ""]) if first else ""
    wanted = tuple(part for part in parts[first:] if part)
    if not os.path.isdir(root or os.curdir):
        return []
    ending = os.path.splitext(wanted[-1])[1]
    return _walk(root, wanted, takes_all=len(ending) > 1 and not glob.has_magic(ending))


def _walk(root: str, wanted: tuple[str, ...], *, takes_all: bool) -> list[str]:
    found: list[str] = []
    seen: set[tuple[int, int, Reached]] = set()
    folders = [(root, _skip_stars({0}, wanted))]
    links: list[tuple[str, list[int]]] = []  # after all that is there itself; a heap, for one order
    while folders or links:
        if folders:
            folder, reached = folders.pop()
        else:
            link, places = heapq.heappop(links)
            folder, reached = link, frozenset(places)
        try:
            status = os.stat(folder or os.curdir)
            identity = (status.st_dev, status.st_ino, reached)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder or os.curdir) as listing:
                entries = list(listing)
        except OSError as error:
            reason = error.strerror or str(error)
            if folder == root:
                raise AudioError(
                    folder or os.curdir, f"the folder cannot be listed: {reason}."
                ) from error
            logger.warning(
                "The folder %s cannot be listed (%s): what is in it is left out.", folder, reason
            )
            continue
        is_inside = len(wanted) in reached  # in a folder that is meant as a whole
        for entry in entries:
            name = entry.name
            matched = _step(name, reached, wanted)
            is_meant = len(wanted) in matched
            if is_inside and not name.startswith("."):
                matched |= {len(wanted)}
            if not matched:
                continue
            path = os.path.join(folder, name)
            if _is_folder(entry):
                if entry.is_symlink():
                    heapq.heappush(links, (path, sorted(matched)))
                else:
                    folders.append((path, matched))
            elif (is_meant and takes_all) or (
                len(wanted) in matched and name.lower().endswith(AUDIO_EXTENSIONS)
            ):
                if entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    found.append(path)
                else:
                    logger.warning("%s is not a file but a pipe or a device: it is left out.", path)
    found.sort()
    return found


def _step(name: str, reached: Reached, wanted: tuple[str, ...]) -> Reached:
    is_hidden = name.startswith(".")
    places = set()
    for place in reached:
        if place == len(wanted):
            continue
        part = wanted[place]
        if is_hidden and not part.startswith("."):
            continue
        if part == "**":
            places.add(place)
        elif fnmatch.fnmatch(name, part):
            places.add(place + 1)
    return _skip_stars(places, wanted) if places else frozenset()


def _skip_stars(places: set[int], wanted: tuple[str, ...]) -> Reached:
    """Add the places behind each ``**``, which may stand for no folder at all."""
    for place in sorted(places):
        while place < len(wanted) and wanted[place] == "**":
            place += 1
            places.add(place)
    return frozenset(places)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; the reader says what is wrong with it
        return False
