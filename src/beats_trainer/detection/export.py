"""Cut events out of their recordings, for somebody to listen to.

events -> [choose of each class: the best | some of every score] -> WAV per event, clips.csv
"""

import contextlib
import hashlib
import itertools
import logging
import math
import os
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray

from beats_trainer.atomic import written_whole
from beats_trainer.audio.decode import Source, find_source, open_decoder
from beats_trainer.audio.remote import LocalCopy, is_url
from beats_trainer.errors import AudioError
from beats_trainer.file_names import printable_name

__all__ = ["CLIP_COLUMNS", "export_clips", "is_clip_name"]

log = logging.getLogger(__name__)

CLIP_COLUMNS = ("clip", "file", "start_time", "end_time", "label", "score", "correct")
"""Columns of ``clips.csv``."""

_NUM_BINS = 10
_MAX_LABEL_BYTES, _MAX_STEM_BYTES = 60, 80
"""Together with score and times below 200, of the 255 bytes and 260 letters that systems allow."""

_CLIP_NAME = re.compile(r"[01]\.\d{3}_.+_\d+\.\d{3}-\d+\.\d{3}(~[0-9a-f]{8})?\.wav", re.DOTALL)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)


def export_clips(
    events: pd.DataFrame,
    folder: str | os.PathLike[str],
    num_clips: int,
    by: Literal["top", "stratified"] = "top",
    *,
    context_s: float = 1.0,
    max_duration_s: float = 60.0,
    seed: int = 0,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Write some events of each class as WAV files, and a table to note which are right.

    A clip has its recording's sample rate and channels, and its sound unchanged: 16 bits, or 24 or floating
    point where the recording is a file of such. It is called ``LABEL/SCORE_RECORDING_START-END.wav``, where
    what a file system may refuse is replaced.

    Args:
        events: Columns ``file``, ``start_time``, ``end_time``, ``label``, ``score``; seconds from the
            file's start.
        folder: Is made if it is not there. Takes the clips, ``clips.csv``, and ``clip_errors.csv``
            (``file``, ``reason``) with a row for each recording that could not be read.
        num_clips: Clips of each class, at most.
        by: ``"top"`` takes the events with the highest scores: is the class there at all? ``"stratified"``
            divides the class's range of scores into ten equal parts and takes as many from each as it can,
            at random: which score is right how often?
        context_s: Seconds to add before and after an event, as far as the recording goes.
        max_duration_s: Seconds after which a longer event is cut off.
        seed: Of the random choice, which depends on the events and not on their order.
        overwrite: Whether the folder may hold something already; files of the same names are replaced, and
            others stay. A ``clips.csv`` with verdicts is replaced too.

    Returns:
        What ``clips.csv`` holds, a row per clip, by class and then in the order of choice: ``clip`` (below
        the folder), ``file``, ``start_time``, ``end_time`` (the event's, without context), ``label``,
        ``score``, and ``correct``, empty, for the verdict. An event whose recording cannot be read is
        replaced by the next one; a warning in the log and ``clip_errors.csv`` name the recording.

    Raises:
        FileExistsError: If the folder is not empty, and ``overwrite`` is not set.
        ValueError: If a column is missing or an argument is out of range.

    Example:
        >>> soundfile.write("20240510_043000.wav", np.zeros(48_000), 16_000)
        >>> events = pd.DataFrame(
        ...     {"file": ["20240510_043000.wav"], "start_time": [1.0], "end_time": [2.0], "label": ["owl"],
        ...      "score": [0.93]}
        ... )
        >>> export_clips(events, "review", num_clips=20)["clip"].tolist()
        ['owl/0.930_20240510_043000_1.000-2.000.wav']
    """
    missing = set(CLIP_COLUMNS[1:-1]) - set(events.columns)
    if missing:
        raise ValueError(f"The table of events has no column {', '.join(sorted(missing))}.")
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, not {num_clips}.")
    if by not in ("top", "stratified"):
        raise ValueError(f"by must be 'top' or 'stratified', not {by!r}.")
    if not 0 <= context_s < math.inf or not max_duration_s > 0:
        raise ValueError(
            "context_s must be seconds from 0 on and max_duration_s above 0, not "
            f"{context_s} and {max_duration_s}."
        )
    root = Path(folder)
    if not overwrite and root.is_dir() and any(root.iterdir()):
        raise FileExistsError(
            f"The folder {root} is not empty. Name another one for the clips, or pass overwrite=True to "
            "replace those of the same names."
        )
    root.mkdir(parents=True, exist_ok=True)

    order = _by_score if by == "top" else _by_strata
    folder_of = _Names(_MAX_LABEL_BYTES)
    clips: list[tuple[str, str, float, float, str, float, str]] = []
    failures: dict[str, str] = {}
    columns = ["file", "start_time", "end_time", "score"]
    for label, group in events.groupby("label", sort=True)[columns]:
        subfolder = folder_of(str(label))
        names = _Names(_MAX_STEM_BYTES + 50)
        num_wanted = min(num_clips, len(group))
        num_before = len(clips)
        candidates = order(_in_time_order(group), str(label), seed)
        for file, start_s, end_s, score in candidates.itertuples(index=False, name=None):
            if len(clips) - num_before == num_wanted:
                break
            if file in failures:
                continue
            stem = _safe(os.path.splitext(os.path.basename(file))[0], _MAX_STEM_BYTES)
            name = f"{score:.3f}_{stem}_{start_s:.3f}-{end_s:.3f}"
            stop_s = min(end_s, start_s + max_duration_s)
            try:
                with _opened(file) as source:
                    samples = _read(source, start_s, stop_s, context_s)
                    subtype = _subtype_of(source)
            except AudioError as error:
                failures[file] = error.reason
                log.warning("No clips of %s: %s", printable_name(file), error.reason)
                continue
            name = names(name, also=f"{file} {start_s} {end_s}")
            clip = f"{subfolder}/{name}.wav"
            (root / subfolder).mkdir(exist_ok=True)
            _write_wav(root / clip, samples, source.sample_rate, subtype)
            clips.append((clip, printable_name(file), start_s, end_s, str(label), score, ""))
        num_written = len(clips) - num_before
        if num_written < num_wanted:
            reason = "the other recordings could not be read."
            log.warning("%d instead of %d clips of %r: %s", num_written, num_wanted, label, reason)
    _write_csv(root / "clip_errors.csv", _errors_of(failures))
    return _write_csv(root / "clips.csv", pd.DataFrame(clips, columns=list(CLIP_COLUMNS)))


def is_clip_name(name: str) -> bool:
    """Whether a file is called as `export_clips` calls clips, ``SCORE_RECORDING_START-END.wav``.

    Example:
        >>> is_clip_name("0.930_20240510_043000_1.000-2.000.wav"), is_clip_name("20240510_043000.wav")
        (True, False)
    """
    return _CLIP_NAME.fullmatch(name) is not None


def _errors_of(failures: dict[str, str]) -> pd.DataFrame:
    rows = [(printable_name(file), reason) for file, reason in failures.items()]
    return pd.DataFrame(rows, columns=["file", "reason"])


def _write_csv(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    with written_whole(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    return table


def _in_time_order(events: pd.DataFrame) -> pd.DataFrame:
    """The same order however the events came."""
    files = events["file"].tolist()
    rank = {file: number for number, file in enumerate(sorted(set(files)))}
    keys = [events[column].to_numpy() for column in ("score", "end_time", "start_time")]
    return events.iloc[np.lexsort([*keys, np.array([rank[file] for file in files])])]


def _by_score(events: pd.DataFrame, label: str, seed: int) -> pd.DataFrame:
    return events.iloc[np.argsort(-events["score"].to_numpy(np.float64), kind="stable")]


def _by_strata(events: pd.DataFrame, label: str, seed: int) -> pd.DataFrame:
    """One of each part of the range of scores, then the second one of each, and so on."""
    scores = events["score"].to_numpy(np.float64)
    span = float(np.ptp(scores)) or 1.0
    bins = ((scores - scores.min()) / span * _NUM_BINS).astype(np.int64).clip(0, _NUM_BINS - 1)
    of_label = zlib.crc32(label.encode())  # each class is shuffled in its own way
    shuffled = np.random.default_rng([seed, of_label]).permutation(len(events))
    rounds = pd.Series(bins[shuffled]).groupby(bins[shuffled]).cumcount().to_numpy()
    return events.iloc[shuffled[np.lexsort((-bins[shuffled], rounds))]]


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Source]:
    """What is known of a recording, which can be read meanwhile; one behind a URL is fetched."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(LocalCopy(file)) if is_url(file) else None
        yield find_source(file, path)


def _read(source: Source, start_s: float, end_s: float, context_s: float) -> NDArray[np.float32]:
    rate = source.sample_rate
    first = max(0, math.floor((start_s - context_s) * rate + 1e-6))
    stop = min(source.num_samples, math.ceil((end_s + context_s) * rate - 1e-6))
    if first >= stop or start_s * rate >= source.num_samples:
        raise AudioError(
            source.file,
            f"it is {source.num_samples / rate:.3f} s long, and an event starts at {start_s:.3f} s. Is it "
            "the recording in which the events were found?",
        )
    with contextlib.closing(open_decoder(source.file, source.path)) as decoder:
        pieces = list(decoder.pieces(first, stop))
    if sum(len(piece) for piece in pieces) < stop - first - source.slack:
        raise AudioError(source.file, f"its sound ends before {stop / rate:.3f} s: it is cut off.")
    samples: NDArray[np.float32] = np.concatenate(pieces)
    return samples


def _write_wav(path: Path, samples: NDArray[np.float32], sample_rate: int, subtype: str) -> None:
    values: NDArray[Any] = samples
    if subtype != "FLOAT":
        # Scaled here: libsndfile multiplies by 32,767, and what was decoded from integers would change.
        bits = 16 if subtype == "PCM_16" else 24
        scale = 2.0 ** (bits - 1)
        steps = np.rint(samples.astype(np.float64) * scale).clip(-scale, scale - 1)
        values = steps.astype(np.int16) if bits == 16 else steps.astype(np.int32) << 8
    with written_whole(path) as partial:
        soundfile.write(partial, values, sample_rate, subtype=subtype, format="WAV")


def _subtype_of(source: Source) -> str:
    if source.decoder == "soundfile":
        name = source.path if sys.platform == "win32" else os.fsencode(source.path)
        subtype = soundfile.info(name).subtype
        if subtype in ("FLOAT", "DOUBLE"):
            return "FLOAT"
        if subtype in ("PCM_24", "PCM_32", "ALAC_20", "ALAC_24", "ALAC_32"):
            return "PCM_24"
    return "PCM_16"


class _Names:
    """Gives each text its own name, also where upper and lower case are the same."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken: set[str] = set()

    def __call__(self, text: str, also: str | None = None) -> str:
        """A safe name; if another text has it, with a number that depends on text and ``also``."""
        name = _safe(text, self._max_bytes)
        if _folded(name) in self._taken:
            short = _safe(text, self._max_bytes - 10)
            for number in itertools.count():
                content = f"{text} {also} {number}".encode("utf-8", "surrogatepass")
                name = f"{short}~{hashlib.sha256(content).hexdigest()[:8]}"
                if _folded(name) not in self._taken:
                    break
        self._taken.add(_folded(name))
        return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFD", name).casefold()


def _safe(text: str, max_bytes: int) -> str:
    """A text as a name that every file system takes."""
    text = unicodedata.normalize("NFC", text)
    # Control characters, surrogates, unassigned and private ones, spaces that do not look it; then what
    # Windows refuses.
    text = "".join(
        letter if letter == " " or unicodedata.category(letter)[0] not in "CZ" else "_"
        for letter in text
    )
    text = _FORBIDDEN.sub("_", text)
    text = text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore").strip(" .")
    if not text or _RESERVED.fullmatch(text):
        text = f"_{text}"
    return text
