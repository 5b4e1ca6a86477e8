"""What a detection run leaves for people: tables, a summary with its picture, clips to listen to.

events -> [date-times -> writers | summary | export] -> the folder of the run
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from beats_trainer.atomic import written_whole
from beats_trainer.datasets.recording_times import event_times
from beats_trainer.detection.export import export_clips
from beats_trainer.detection.summary import recorded_hours, summarise
from beats_trainer.detection.summary_picture import draw_summary
from beats_trainer.detection.writing import check_formats, write_detections

__all__ = ["Detections", "add_times", "check_outputs", "write_outputs"]


@dataclass(frozen=True)
class Detections:
    """What was found in recordings.

    Attributes:
        events: One row per event: ``file``, ``start_time``, ``end_time`` (seconds from the file's start),
            ``label``, ``score``, and ``datetime`` where a file's name tells when it began.
        summary: Events per label, date and hour, with the seconds recorded in that hour.
        failures: What could not be read: ``file``, ``start_time``, ``end_time``, ``reason``.
        num_recordings: Recordings that were searched, as a whole or in part.
        recorded_s: Seconds of them.
        written: The files written, for each format.
    """

    events: pd.DataFrame
    summary: pd.DataFrame
    failures: pd.DataFrame
    num_recordings: int
    recorded_s: float
    written: Mapping[str, Sequence[Path]]


def check_outputs(
    formats: Sequence[str], timezone: str | None, convert_to: str | None, num_clips: int
) -> None:
    """Find before the work that what is asked for can be written.

    Raises:
        ValueError: If a format or a zone is unknown, or a number makes no sense.
    """
    check_formats(formats)
    event_times([], [], timezone, convert_to)
    if num_clips < 0:
        raise ValueError(f"num_clips must not be negative, not {num_clips}.")


def add_times(
    events: pd.DataFrame, timezone: str | None = None, convert_to: str | None = None
) -> pd.DataFrame:
    """Add the column ``datetime``, when each event began; see ``datasets.recording_times.event_times``.

    Args:
        events: With ``file`` and ``start_time``.
        timezone: Zone of the recorders' clocks.
        convert_to: Zone to tell the times in.

    Returns:
        A copy with the column; without it if no file's name tells a time.
    """
    times = event_times(events["file"], events["start_time"], timezone, convert_to)
    return events.assign(datetime=times.to_numpy() if times.dt.tz is None else times.array)


def write_outputs(
    events: pd.DataFrame,
    folder: str | os.PathLike[str],
    *,
    durations: Mapping[str, float],
    failures: pd.DataFrame,
    formats: Sequence[str] = ("csv",),
    timezone: str | None = None,
    convert_to: str | None = None,
    num_clips: int = 0,
    clips_by: str = "top",
    paths: Mapping[str, str] | None = None,
) -> Detections:
    """Write tables, ``summary.csv``, ``summary.svg``, ``errors.csv`` and clips for review.

    Args:
        events: From `find_stored_events`.
        folder: Where; made if it is not there.
        durations: Seconds of every recording that was searched.
        failures: What could not be read.
        formats: Names of ``detection.tables.FORMATS``.
        timezone: Zone of the recorders' clocks.
        convert_to: Zone to tell dates and hours in.
        num_clips: Events of each class to write as WAV into ``clips/``.
        clips_by: As for `export_clips`.
        paths: Where a recording is found whose name in ``events`` is not its path.

    Returns:
        All of it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    events = add_times(events, timezone, convert_to)
    written = dict(
        write_detections(
            events, folder, formats, recordings=list(durations), durations=dict(durations)
        )
    )
    summary = summarise(events, timezone=timezone, convert_to=convert_to, durations=durations)
    recorded = recorded_hours(durations, timezone=timezone, convert_to=convert_to)
    with written_whole(folder / "summary.csv") as partial:
        summary.to_csv(partial, index=False)
    with written_whole(folder / "summary.svg") as partial:
        partial.write_text(draw_summary(summary, recorded), encoding="utf-8")
    with written_whole(folder / "errors.csv") as partial:
        failures.to_csv(partial, index=False)
    written["summary"] = [folder / "summary.csv", folder / "summary.svg"]
    if num_clips:
        found = events if paths is None else events.replace({"file": dict(paths)})
        export_clips(found, folder / "clips", num_clips, by=clips_by, overwrite=True)  # type: ignore[arg-type]
        written["clips"] = [folder / "clips" / "clips.csv"]
    return Detections(
        events, summary, failures, len(durations), float(sum(durations.values())), written
    )
