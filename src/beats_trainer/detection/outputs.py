"""What a detection run leaves for people: tables, a summary with its picture, clips to listen to.

events -> [date-times -> writers | summary | export] -> the folder of the run
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from beats_trainer.atomic import written_whole
from beats_trainer.datasets.recording_times import event_times
from beats_trainer.detection.export import export_clips, is_clip_name
from beats_trainer.detection.summary import recorded_hours, summarise
from beats_trainer.detection.summary_picture import draw_summary
from beats_trainer.detection.tables import FORMATS, STANDARD_NAMES
from beats_trainer.detection.writing import check_formats, write_detections

__all__ = ["Detections", "OutputOptions", "add_times", "make_outputs"]

log = logging.getLogger(__name__)

_CLIPS = "clips"
_CLIP_TABLE = "clips.csv"


@dataclass(frozen=True)
class Detections:
    """What was found in recordings.

    Attributes:
        events: One row per event: ``file``, ``start_time``, ``end_time`` (seconds from the file's start),
            ``label``, ``score``, and ``datetime``, missing where a file's name does not tell when it began.
        summary: Events per label, date and hour, with the seconds recorded in that hour.
        failures: What could not be read: ``file``, ``start_time``, ``end_time``, ``reason``.
        num_recordings: Recordings that were searched, as a whole or in part.
        recorded_s: Seconds of them that were searched.
        written: The files written, for each format, for ``summary`` and for ``clips``.
    """

    events: pd.DataFrame
    summary: pd.DataFrame
    failures: pd.DataFrame
    num_recordings: int
    recorded_s: float
    written: Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class OutputOptions:
    """What is to be written, and in which time dates are told.

    Attributes:
        formats: Names of ``detection.tables.FORMATS``.
        timezone: Zone of the recorders' clocks.
        convert_to: Zone to tell dates and hours in.
        num_clips: Events of each class to write as WAV.
        clips_by: As for `export_clips`.

    Raises:
        ValueError: If a format, a zone or a choice is unknown, or a number makes no sense.
    """

    formats: str | Collection[str] = ("csv",)
    timezone: str | None = None
    convert_to: str | None = None
    num_clips: int = 0
    clips_by: Literal["top", "stratified"] = "top"

    def __post_init__(self) -> None:
        check_formats(self.formats)
        event_times([], [], self.timezone, self.convert_to)
        if self.num_clips < 0:
            raise ValueError(f"num_clips must not be negative, not {self.num_clips}.")
        if self.clips_by not in ("top", "stratified"):
            raise ValueError(f"clips_by must be 'top' or 'stratified', not {self.clips_by!r}.")

    def check_folder(self, folder: Path | None) -> None:
        """Find before the work that clips can be written.

        Raises:
            ValueError: If there is no folder for them.
            FileExistsError: If verdicts on earlier clips would be lost.
        """
        if not self.num_clips:
            return
        if folder is None:
            raise ValueError("Clips for review need an output folder: pass output= too.")
        table = folder / _CLIPS / _CLIP_TABLE
        if table.is_file() and _has_verdicts(table):
            raise FileExistsError(
                f"{table} holds verdicts, in the column 'correct', which new clips would replace. Rename the "
                f"folder {table.parent}, or ask for no clips."
            )


def _read_clip_table(table: Path) -> pd.DataFrame:
    """Read the table of clips, also where a program saved it in another form."""
    return pd.read_csv(table, sep=None, engine="python", dtype=str, encoding="utf-8-sig")


def _has_verdicts(table: Path) -> bool:
    """Whether somebody worked on the table of clips."""
    try:
        rows = _read_clip_table(table)
    except ValueError:  # it is no longer what was written
        return True
    return "correct" not in rows.columns or bool(rows["correct"].notna().any())


def add_times(
    events: pd.DataFrame, timezone: str | None = None, convert_to: str | None = None
) -> pd.DataFrame:
    """Add the column ``datetime``, when each event began; see ``datasets.recording_times.event_times``.

    Args:
        events: With ``file`` and ``start_time``.
        timezone: Zone of the recorders' clocks.
        convert_to: Zone to tell the times in.

    Returns:
        A copy with the column, missing where a file's name tells no time.
    """
    times = event_times(events["file"], events["start_time"], timezone, convert_to)
    return events.assign(datetime=times.to_numpy() if times.dt.tz is None else times.array)


def make_outputs(
    events: pd.DataFrame,
    folder: str | os.PathLike[str] | None,
    options: OutputOptions,
    *,
    parts: pd.DataFrame,
    failures: pd.DataFrame,
    paths: Mapping[str, str] | None = None,
) -> Detections:
    """Write tables, ``summary.csv``, ``summary.svg``, ``errors.csv`` and clips for review.

    Args:
        events: From `find_events_of_recordings`.
        folder: Where; made if it is not there. ``None`` writes nothing.
        options: What is written.
        parts: What was searched: ``file``, ``start_time``, ``end_time``, and ``is_whole`` for a whole file.
        failures: What could not be read.
        paths: Where a recording is found whose name in ``events`` is not its path.

    Returns:
        All of it.
    """
    zones = {"timezone": options.timezone, "convert_to": options.convert_to}
    events = add_times(events, **zones)
    summary = summarise(events, **zones, durations=parts)
    written: dict[str, Sequence[Path]] = {}
    if folder is not None:
        known = {} if paths is None else paths
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        whole = parts[parts["is_whole"]]
        written |= write_detections(
            events,
            place,
            options.formats,
            recordings=[known.get(name, name) for name in parts["file"].unique()],
            durations=dict(zip(whole["file"], whole["end_time"], strict=True)),
        )
        _warn_of_others(place, written, options.num_clips > 0)
        with written_whole(place / "summary.csv") as partial:
            summary.to_csv(partial, index=False)
        with written_whole(place / "summary.svg") as partial:
            picture = draw_summary(summary, recorded_hours(parts, **zones))
            partial.write_text(picture, encoding="utf-8")
        with written_whole(place / "errors.csv") as partial:
            failures.to_csv(partial, index=False)
        written["summary"] = [place / "summary.csv", place / "summary.svg"]
        if options.num_clips:
            names = [known.get(name, name) for name in events["file"]]
            # As objects: bytes that are no text are none to pandas' own type of text.
            on_disk = events.assign(file=pd.Series(names, events.index, dtype=object))
            clips = place / _CLIPS
            earlier = _listed_clips(clips)
            made = export_clips(
                on_disk, clips, options.num_clips, by=options.clips_by, overwrite=True
            )
            for name in earlier.difference(made["clip"]):
                (clips / name).unlink(missing_ok=True)
            written["clips"] = [clips / _CLIP_TABLE]
    seconds = parts["end_time"] - parts["start_time"]
    return Detections(
        events, summary, failures, parts["file"].nunique(), float(seconds.sum()), written
    )


def _listed_clips(folder: Path) -> set[str]:
    """Clips that an earlier run exported, of which nobody judged one: see `OutputOptions.check_folder`."""
    table = folder / _CLIP_TABLE
    if not table.is_file():
        return set()
    names = _read_clip_table(table)["clip"].dropna()
    paths = {name: PurePosixPath(name).parts for name in names}
    return {
        name
        for name, parts in paths.items()
        if len(parts) == 2 and parts[0] not in ("..", "/") and is_clip_name(parts[1])
    }


def _warn_of_others(folder: Path, written: Collection[str], has_clips: bool) -> None:
    """Say what stays of an earlier run, which may have had other thresholds."""
    others = [STANDARD_NAMES[name] for name in FORMATS if name not in written]
    others += [] if has_clips else [_CLIPS]
    stale = [name for name in others if (folder / name).exists()]
    if stale:
        log.warning(
            "In %s, %s of an earlier run %s as before: not asked for now.",
            folder,
            ", ".join(stale),
            "stays" if len(stale) == 1 else "stay",
        )
