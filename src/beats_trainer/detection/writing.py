"""Write events as tables that Raven, Audacity, R, Kaleidoscope and other programs open.

events -> [check -> one writer per format] -> files, each whole or not at all

Every format has the same times, to the microsecond. An empty table of events gives files with a header.
What text of other programs cannot hold, a tab or a line end, is an error in a label and an escape in a
file's name.
"""

import difflib
import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beats_trainer.atomic import written_whole
from beats_trainer.audio import AudioInfo, probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.detection.recording_tables import (
    absolute,
    table_names,
    write_recording_tables,
)
from beats_trainer.detection.tables import (
    BIRDNET_COLUMNS,
    EVENT_COLUMNS,  # noqa: F401  (for the examples)
    FORMATS,
    FRAME_COLUMNS,
    KALEIDOSCOPE_COLUMNS,
    RAVEN_COLUMNS,
    STANDARD_NAMES,
    TIME_DIGITS,
    check_events,
    on_one_line,
    split_label,
)
from beats_trainer.errors import AudioError, DatasetError
from beats_trainer.file_names import printable_name

__all__ = [
    "check_formats",
    "write_audacity_tables",
    "write_birdnet_csv",
    "write_detection_csv",
    "write_detection_parquet",
    "write_detections",
    "write_frames",
    "write_kaleidoscope_csv",
    "write_raven_combined",
    "write_raven_tables",
]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
"""A path."""

_HIGHEST_HZ = SAMPLE_RATE // 2
"""What the network hears."""

_WITHOUT_QUOTES = ("raven", "raven-combined", "audacity", "frames")
"""Formats whose text ends at a tab or a line end, whatever stands around it."""


def check_formats(formats: str | Collection[str]) -> list[str]:
    """Return the formats as a list.

    Raises:
        ValueError: If one is unknown.

    Example:
        >>> check_formats("raven")
        ['raven']
    """
    wanted = [formats] if isinstance(formats, str) else list(formats)
    for name in wanted:
        if name not in FORMATS:
            close = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown format {name!r}.{hint} Known: {', '.join(FORMATS)}.")
    return wanted


def write_detections(
    events: pd.DataFrame,
    folder: PathLike,
    formats: str | Collection[str],
    *,
    recordings: Iterable[PathLike] = (),
    durations: Mapping[str, float] | None = None,
    sample_rates: Mapping[str, float] | None = None,
    root: PathLike | None = None,
    audacity_scores: bool = False,
) -> dict[str, list[Path]]:
    """Write events in several formats, each under its standard name.

    ``detections.csv``, ``detections.parquet``, ``raven/`` (a selection table per recording),
    ``detections.selections.txt`` (one over all: ``raven-combined``), ``audacity/`` (labels per
    recording), ``birdnet.csv``, ``kaleidoscope.csv``, and ``detections.tsv`` (``frames``).

    Args:
        events: Columns ``file``, ``start_time``, ``end_time`` (seconds from the file's start),
            ``label``, ``score``; others go into the CSV and the Parquet.
        folder: Where; made if it is not there. Files with these names are replaced, and the tables
            per recording of an earlier run whose recording is no longer there are removed.
        formats: Names of `FORMATS`, or one name.
        recordings: All recordings that were searched, also those with no event: they have a table
            with no rows, and their time counts in the combined one.
        durations: Seconds of each recording, for the combined table; those not given are looked up.
        sample_rates: Hz of each recording, for Raven's High Freq; those not given are looked up.
        root: Folder that the tables per recording are named from; ``None``: the deepest one that has
            all recordings.
        audacity_scores: Whether the labels for Audacity end in the score, as ``robin [0.912]``.

    Returns:
        The files written, for each format.

    Raises:
        ValueError: If a format is unknown.
        DatasetError: If the events are not a table of events, or a label cannot be written in a format.
            Nothing is written then.
        AudioError: If the combined table needs the length of a recording that cannot be read.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.5, 2.0, "robin", 0.9)], columns=EVENT_COLUMNS)
        >>> written = write_detections(events, "found", ["csv", "raven"], recordings=["dawn.wav"])
        >>> [path.as_posix() for path in written["raven"]]
        ['found/raven/dawn.wav.selections.txt']
    """
    wanted = check_formats(formats)
    checked = check_events(events)
    for name in wanted:
        if name in _WITHOUT_QUOTES:
            _check_labels(checked)
    recordings = list(recordings)
    information = _Information(recordings, durations, sample_rates)
    folder = Path(folder)

    def write(name: str, path: Path) -> list[Path]:
        if name == "raven":
            return _write_raven_tables(checked, path, recordings, root, information)
        if name == "raven-combined":
            return [_write_raven_combined(checked, path, recordings, information)]
        if name == "audacity":
            return write_audacity_tables(
                checked, path, recordings=recordings, root=root, scores=audacity_scores
            )
        return [_ONE_FILE[name](checked, path)]

    return {name: write(name, folder / STANDARD_NAMES[name]) for name in FORMATS if name in wanted}


def write_detection_csv(events: pd.DataFrame, path: PathLike) -> Path:
    """Write all columns of events as CSV: UTF-8, commas, decimal points, quotes where needed.

    R's ``read.csv`` and pandas open it as it is. Scores have all the digits they have.

    Args:
        events: As in `write_detections`.
        path: Where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If it is not a table of events.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.5, 2.0, "robin", 0.9)], columns=EVENT_COLUMNS)
        >>> write_detection_csv(events, "detections.csv").read_text().splitlines()
        ['file,start_time,end_time,label,score', 'dawn.wav,0.5,2.0,robin,0.9']
    """
    return _write_csv(check_events(events), path)


def write_detection_parquet(events: pd.DataFrame, path: PathLike) -> Path:
    """Write all columns of events as Parquet: text, and float64; typed even where there are no rows.

    Args:
        events: As in `write_detections`.
        path: Where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If it is not a table of events.

    Example:
        >>> path = write_detection_parquet(pd.DataFrame(columns=EVENT_COLUMNS), "detections.parquet")
        >>> pq.read_schema(path).field("start_time").type
        DataType(double)
    """
    checked = check_events(events)
    table = pa.Table.from_pandas(checked, preserve_index=False)
    for place, field in enumerate(table.schema):
        # No text at all is of no type to pandas, and text of its own kind to newer ones.
        if field.name in ("file", "label") or pa.types.is_null(field.type):
            text = table.column(place).cast(pa.string())
            table = table.set_column(place, pa.field(field.name, pa.string()), text)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        pq.write_table(table, partial)
    return path


def write_raven_tables(
    events: pd.DataFrame,
    folder: PathLike,
    *,
    recordings: Iterable[PathLike] = (),
    sample_rates: Mapping[str, float] | None = None,
    root: PathLike | None = None,
) -> list[Path]:
    """Write a Raven selection table per recording, in folders that mirror those of the recordings.

    A box reaches from 0 Hz to the highest frequency there is: half the recording's sample rate, and at
    most the 8,000 Hz that the network hears. ``Begin Path`` is absolute. ``Species Code`` is the
    label; ``Scientific Name_Common Name`` stands split in those two columns, another label in both.

    Args:
        events: As in `write_detections`.
        folder: Where; ``site/dawn.wav`` has ``site/dawn.wav.selections.txt``.
        recordings: As in `write_detections`: those with no event have a table with a header only.
        sample_rates: Hz of each recording; those not given are looked up, and 8,000 Hz is written where
            a recording cannot be read.
        root: Folder of the recordings that names count from; ``None``: the deepest that has them all.

    Returns:
        The tables.

    Raises:
        DatasetError: If it is not a table of events, or a label has a tab or a line end in it.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.5, 2.0, "robin", 0.9)], columns=EVENT_COLUMNS)
        >>> [path.name for path in write_raven_tables(events, "raven", recordings=["noon.wav"])]
        ['dawn.wav.selections.txt', 'noon.wav.selections.txt']
    """
    checked = check_events(events)
    _check_labels(checked)
    recordings = list(recordings)
    information = _Information(recordings, None, sample_rates)
    return _write_raven_tables(checked, folder, recordings, root, information)


def write_raven_combined(
    events: pd.DataFrame,
    path: PathLike,
    *,
    recordings: Iterable[PathLike] = (),
    durations: Mapping[str, float] | None = None,
    sample_rates: Mapping[str, float] | None = None,
) -> Path:
    """Write one Raven selection table over all recordings.

    Raven counts the time of several files one after another: here in the order of their paths, as it
    opens a folder. The time in the file itself is in ``File Offset (s)``.

    Args:
        events: As in `write_detections`.
        path: Where; an existing file is replaced.
        recordings: As in `write_detections`: the time of those with no event counts too. One of them that
            cannot be read is left out, with a warning in the log.
        durations: Seconds of each recording; those not given are looked up.
        sample_rates: As in `write_raven_tables`.

    Returns:
        The path.

    Raises:
        DatasetError: If it is not a table of events, or a label has a tab or a line end in it.
        AudioError: If the length of a recording with an event is not known.

    Example:
        >>> rows = [("a.wav", 0.5, 2.0, "robin", 0.9), ("b.wav", 1.0, 3.0, "wren", 0.8)]
        >>> events = pd.DataFrame(rows, columns=EVENT_COLUMNS)
        >>> path = write_raven_combined(events, "all.txt", durations={"a.wav": 60, "b.wav": 60})
        >>> pd.read_csv(path, sep="\\t")["Begin Time (s)"].tolist()
        [0.5, 61.0]
    """
    checked = check_events(events)
    _check_labels(checked)
    recordings = list(recordings)
    information = _Information(recordings, durations, sample_rates)
    return _write_raven_combined(checked, path, recordings, information)


def write_audacity_tables(
    events: pd.DataFrame,
    folder: PathLike,
    *,
    recordings: Iterable[PathLike] = (),
    root: PathLike | None = None,
    scores: bool = False,
) -> list[Path]:
    """Write Audacity's labels of each recording: start, end and label with tabs between, no header.

    The format has no place for a score: BirdNET-Analyzer's fourth column is lost on import.

    Args:
        events: As in `write_detections`.
        folder: Where; ``site/dawn.wav`` has ``site/dawn.wav.txt``.
        recordings: As in `write_detections`: those with no event have an empty file.
        root: Folder of the recordings that names count from; ``None``: the deepest that has them all.
        scores: Whether each label ends in its score, as ``robin [0.912]``.

    Returns:
        The files.

    Raises:
        DatasetError: If it is not a table of events, or a label has a tab or a line end in it.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.5, 2.0, "robin", 0.9)], columns=EVENT_COLUMNS)
        >>> write_audacity_tables(events, "audacity", scores=True)[0].read_text().split("\\t")
        ['0.5', '2.0', 'robin [0.900]\\n']
    """
    checked = check_events(events)
    _check_labels(checked)
    grouped = _ByRecording(checked, recordings)

    def lines_of(recording: str) -> Iterator[str]:
        start, end, labels, score = grouped.events_of(recording)
        if scores:
            labels = [
                label if math.isnan(value) else f"{label} [{value:.3f}]"
                for label, value in zip(labels, score.tolist(), strict=True)
            ]
        return _lines(_decimals(start), _decimals(end), labels)

    return write_recording_tables(folder, table_names(grouped.recordings, ".txt", root), lines_of)


def write_birdnet_csv(events: pd.DataFrame, path: PathLike) -> Path:
    """Write events as BirdNET-Analyzer's CSV.

    Args:
        events: As in `write_detections`; `split_label` says how a label becomes two names.
        path: Where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If it is not a table of events.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.5, 2.0, "robin", 0.9)], columns=EVENT_COLUMNS)
        >>> write_birdnet_csv(events, "birdnet.csv").read_text().splitlines()[1]
        '0.5,2.0,robin,robin,0.9,dawn.wav'
    """
    checked = check_events(events)
    names = {label: split_label(label) for label in checked["label"].unique()}
    columns = [
        checked["start_time"],
        checked["end_time"],
        checked["label"].map({label: scientific for label, (scientific, _) in names.items()}),
        checked["label"].map({label: common for label, (_, common) in names.items()}),
        checked["score"],
        checked["file"],
    ]
    return _write_csv(pd.DataFrame(dict(zip(BIRDNET_COLUMNS, columns, strict=True))), path)


def write_kaleidoscope_csv(events: pd.DataFrame, path: PathLike) -> Path:
    """Write events as a table of Kaleidoscope.

    The absolute path of a recording is split into its name (``IN FILE``), the name of its folder
    (``FOLDER``) and what is above (``INDIR``), as BirdNET-Analyzer does. ``TOP1DIST`` is a distance
    in Kaleidoscope, and the closest match has the smallest: it is ``1 - score``.

    Args:
        events: As in `write_detections`.
        path: Where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If it is not a table of events.

    Example:
        >>> rows = [("/rec/site/dawn.wav", 0.5, 2.0, "robin", 0.75)]
        >>> table = pd.DataFrame(rows, columns=EVENT_COLUMNS)
        >>> write_kaleidoscope_csv(table, "kaleidoscope.csv").read_text().splitlines()[1]
        '/rec,site,dawn.wav,0.5,1.5,robin,0.25'
    """
    checked = check_events(events)
    files = checked["file"]
    paths = {file: absolute(file) for file in files.unique()}
    folders = {file: os.path.dirname(path) for file, path in paths.items()}
    columns = [
        files.map({file: os.path.dirname(folder) for file, folder in folders.items()}),
        files.map({file: os.path.basename(folder) for file, folder in folders.items()}),
        files.map({file: os.path.basename(path) for file, path in paths.items()}),
        checked["start_time"],
        np.round(checked["end_time"] - checked["start_time"], TIME_DIGITS),
        checked["label"],
        np.round(1 - checked["score"], 15),  # 0.1 rather than 0.09999999999999998
    ]
    return _write_csv(pd.DataFrame(dict(zip(KALEIDOSCOPE_COLUMNS, columns, strict=True))), path)


def write_frames(events: pd.DataFrame, path: PathLike) -> Path:
    """Write events as DCASE's tables have them: ``filename, onset, offset, event_label``, tabs between.

    Args:
        events: As in `write_detections`; the format has no place for a score.
        path: Where; an existing file is replaced.

    Returns:
        The path.

    Raises:
        DatasetError: If it is not a table of events, or a label has a tab or a line end in it.

    Example:
        >>> events = pd.DataFrame([("dawn.wav", 0.5, 2.0, "robin", 0.9)], columns=EVENT_COLUMNS)
        >>> write_frames(events, "detections.tsv").read_text().split()[4:]
        ['dawn.wav', '0.5', '2.0', 'robin']
    """
    checked = check_events(events)
    _check_labels(checked)
    files = checked["file"].map({file: on_one_line(file) for file in checked["file"].unique()})
    lines = _lines(
        files.tolist(),
        _decimals(checked["start_time"].to_numpy()),
        _decimals(checked["end_time"].to_numpy()),
        checked["label"].tolist(),
    )
    return _write_lines(FRAME_COLUMNS, lines, path)


_ONE_FILE: dict[str, Callable[[pd.DataFrame, PathLike], Path]] = {
    "csv": write_detection_csv,
    "parquet": write_detection_parquet,
    "birdnet": write_birdnet_csv,
    "kaleidoscope": write_kaleidoscope_csv,
    "frames": write_frames,
}


class _ByRecording:
    """Events in the order of their recordings, and all recordings: absolute paths, printable."""

    def __init__(self, checked: pd.DataFrame, recordings: Iterable[PathLike]) -> None:
        codes, files = pd.factorize(checked["file"])
        paths = [absolute(file) for file in files]
        everything = [*paths, *(printable_name(absolute(file)) for file in recordings)]
        self.recordings = sorted(set(everything))
        number = {recording: place for place, recording in enumerate(self.recordings)}
        of_event = np.array([number[path] for path in paths], np.int64)[codes]
        order = np.argsort(of_event, kind="stable")
        self._start = checked["start_time"].to_numpy()[order]
        self._end = checked["end_time"].to_numpy()[order]
        self._score = checked["score"].to_numpy()[order]
        self._label = checked["label"].to_numpy(dtype=object)[order]
        self._bounds = np.searchsorted(of_event[order], np.arange(len(self.recordings) + 1))
        self._number = number

    def events_of(
        self, recording: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str], NDArray[np.float64]]:
        """Start, end, label and score of a recording's events, in the table's order."""
        number = self._number[recording]
        part = slice(*self._bounds[number : number + 2].tolist())
        return self._start[part], self._end[part], self._label[part].tolist(), self._score[part]

    def num_events(self, recording: str) -> int:
        """How many events a recording has."""
        number = self._number[recording]
        return int(self._bounds[number + 1] - self._bounds[number])


class _Information:
    """Length and sample rate of recordings: as given, else as the recording's header has them."""

    def __init__(
        self,
        recordings: Iterable[PathLike],
        durations: Mapping[str, float] | None,
        sample_rates: Mapping[str, float] | None,
    ) -> None:
        # What is printed of a name that is no Unicode opens no file.
        self._on_disk = {printable_name(absolute(file)): absolute(file) for file in recordings}
        self._durations = _by_path(durations)
        self._rates = _by_path(sample_rates)
        self._probed: dict[str, AudioInfo | AudioError] = {}

    def duration_s(self, recording: str) -> float:
        """Seconds; raises the AudioError of a recording that cannot be read."""
        if recording in self._durations:
            return self._durations[recording]
        return self._probe(recording).duration_s

    def highest_hz(self, recording: str) -> float:
        """Half the sample rate, at most what the network hears."""
        try:
            rate = self._rates.get(recording) or self._probe(recording).sample_rate
        except AudioError:
            return _HIGHEST_HZ
        return min(_HIGHEST_HZ, rate / 2)

    def _probe(self, recording: str) -> AudioInfo:
        if recording not in self._probed:
            try:
                self._probed[recording] = probe_audio(self._on_disk.get(recording, recording))
            except AudioError as error:
                self._probed[recording] = error
        found = self._probed[recording]
        if isinstance(found, AudioError):
            raise found
        return found


def _by_path(values: Mapping[str, float] | None) -> dict[str, float]:
    return {printable_name(absolute(file)): float(value) for file, value in (values or {}).items()}


def _write_raven_tables(
    checked: pd.DataFrame,
    folder: PathLike,
    recordings: Iterable[PathLike],
    root: PathLike | None,
    information: _Information,
) -> list[Path]:
    grouped = _ByRecording(checked, recordings)
    header = "\t".join(RAVEN_COLUMNS) + "\n"
    names = table_names(grouped.recordings, ".selections.txt", root)
    return write_recording_tables(
        folder,
        names,
        lambda recording: [header, *_raven_lines(grouped, recording, 0.0, 1, information)],
    )


def _write_raven_combined(
    checked: pd.DataFrame,
    path: PathLike,
    recordings: Iterable[PathLike],
    information: _Information,
) -> Path:
    grouped = _ByRecording(checked, recordings)
    last = max((file for file in grouped.recordings if grouped.num_events(file)), default=None)

    def lines() -> Iterator[str]:
        now, selection = 0.0, 1
        for recording in grouped.recordings:
            # Whole microseconds, so that the time in the file is exactly what is left of the time.
            before = round(now, TIME_DIGITS)
            yield from _raven_lines(grouped, recording, before, selection, information)
            if recording == last:
                return
            selection += grouped.num_events(recording)
            try:
                now += information.duration_s(recording)
            except AudioError as error:
                if grouped.num_events(recording):
                    raise
                logger.warning("%s Its time is left out of %s.", error, path)

    return _write_lines(RAVEN_COLUMNS, lines() if last is not None else iter(()), path)


def _raven_lines(
    grouped: _ByRecording,
    recording: str,
    before_s: float,
    selection: int,
    information: _Information,
) -> Iterator[str]:
    start, end, labels, score = grouped.events_of(recording)
    if not labels:
        return iter(())
    names = {label: split_label(label) for label in set(labels)}
    rows = len(labels)
    high = _decimals(np.array([information.highest_hz(recording)]))[0].removesuffix(".0")
    return _lines(
        [str(number) for number in range(selection, selection + rows)],
        _decimals(np.round(start + before_s, TIME_DIGITS)),
        _decimals(np.round(end + before_s, TIME_DIGITS)),
        [names[label][1] for label in labels],
        [names[label][0] for label in labels],
        labels,
        _decimals(score),
        ["Spectrogram 1"] * rows,
        ["1"] * rows,
        _decimals(start),
        ["0"] * rows,
        [high] * rows,
        [on_one_line(recording)] * rows,
    )


def _check_labels(checked: pd.DataFrame) -> None:
    for label in checked["label"].unique():
        if label != on_one_line(label):
            raise DatasetError(
                f"The label {label!r} has a tab or a line end in it, which this format cannot hold. "
                "Rename the class, or write CSV or Parquet only."
            )


def _decimals(numbers: NDArray[np.float64]) -> list[str]:
    """The shortest decimal number, without an exponent, that each is; blank where it is none."""
    texts = list(map(repr, numbers.tolist()))
    size = np.abs(numbers)
    for place in np.flatnonzero(((size < 1e-4) & (size > 0)) | ~(size < 1e16)).tolist():
        number = numbers[place]
        is_none = np.isnan(number)
        texts[place] = "" if is_none else np.format_float_positional(number, trim="0")
    return texts


def _lines(*columns: list[str]) -> Iterator[str]:
    return (f"{line}\n" for line in map("\t".join, zip(*columns, strict=True)))


def _write_lines(header: Iterable[str], lines: Iterator[str], path: PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_whole(path) as partial,
        partial.open("w", encoding="utf-8", newline="") as stream,
    ):
        stream.write("\t".join(header) + "\n")
        stream.writelines(lines)
    return path


def _write_csv(table: pd.DataFrame, path: PathLike) -> Path:
    # Only signs of the line end itself get quotes: a lone carriage return would end the row.
    texts = (table[name].dropna().unique() for name in table.select_dtypes(exclude="number"))
    has_return = any("\r" in str(text) for column in texts for text in column)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        table.to_csv(
            partial,
            index=False,
            lineterminator="\r\n" if has_return else "\n",
            encoding="utf-8",
        )
    return path
