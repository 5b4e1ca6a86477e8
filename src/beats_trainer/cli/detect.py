"""``beats-trainer detect``: recordings of any length in, events out, in the tables that the field opens.

Twin of ``BEATsPredictor(model).detect(recordings, out, ...)``.
"""

import argparse
import os
from pathlib import Path

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import check_place, format_table, number_of, tell_failures
from beats_trainer.cli.recordings import (
    add_inference_options,
    add_inputs_argument,
    add_store_options,
    add_threshold_option,
    load_predictor,
    read_thresholds,
    thresholds_for,
)
from beats_trainer.errors import ConfigError

__all__ = ["add_arguments", "run"]

SUMMARY = "Find when a trained model's classes are heard in recordings; goes on where it stopped."
GOES_ON = True
USAGE = "INPUT... -o OUT --model MODEL [options]"
EPILOG = """\
examples:
  beats-trainer detect recordings/ -o found --model logs/beats_experiment/version_0/model
  beats-trainer detect recordings/ -o found --model my_model --formats csv,raven,audacity --threshold 0.8
  beats-trainer detect /archive -o found --model my_model --timezone UTC --convert-to Europe/Oslo \\
      --release 0.8 --min-duration 0.5 --merge-gap 2 --export-clips 20

OUT holds detections.csv and the other formats asked for, summary.csv (events per class, date and hour),
summary.svg (the same as a picture), errors.csv, and scores/, the scores of all windows. The same command again
goes on where the last one stopped; with other thresholds or formats it takes seconds, since the scores are there.
"""

_FORMATS = (
    *("csv", "parquet", "raven", "raven-combined", "audacity", "birdnet", "kaleidoscope"),
    "frames",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_inputs_argument(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="model folder, fine-tuned checkpoint or hub owner/name",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="seconds of a window (default: what the model was trained on, else 10)",
    )
    parser.add_argument(
        "--hop", type=float, metavar="S", help="seconds between windows (default: half a window)"
    )
    parser.add_argument(
        "--per-step", action="store_true", help="score each time step of 160 ms, for onsets"
    )
    parser.add_argument(
        "--formats",
        type=_formats,
        default=["csv"],
        metavar="F,F",
        help=f"tables to write, of {', '.join(_FORMATS)} (default: csv)",
    )
    rules = parser.add_argument_group("what counts as an event")
    add_threshold_option(rules)
    rules.add_argument(
        "--label",
        action="append",
        metavar="LABEL",
        help="class to look for; may be repeated (default: all)",
    )
    rules.add_argument(
        "--combine",
        default="mean",
        choices=("mean", "lowest"),
        help="score of a moment that several windows cover: their mean (default), or the lowest, which gives "
        "sharper times",
    )
    rules.add_argument(
        "--release",
        type=float,
        default=1.0,
        metavar="R",
        help="part of the threshold that the score may fall to while an event lasts (default: 1)",
    )
    rules.add_argument(
        "--min-duration", type=float, default=0.0, metavar="S", help="drop events that are shorter"
    )
    rules.add_argument(
        "--merge-gap",
        type=float,
        default=0.0,
        metavar="S",
        help="join events of a class with no more than this between them",
    )
    rules.add_argument(
        "--top-n", type=int, metavar="N", help="only the N best classes can be heard at a time"
    )
    times = parser.add_argument_group("date and time, from names such as 20240510_043000.WAV")
    times.add_argument(
        "--timezone", metavar="ZONE", help="of the recorders' clocks, such as UTC or Europe/Oslo"
    )
    times.add_argument("--convert-to", metavar="ZONE", help="to tell dates and times in")
    review = parser.add_argument_group("clips to listen to")
    review.add_argument(
        "--export-clips",
        type=int,
        default=0,
        metavar="N",
        help="write N events of each class as WAV into OUT/clips",
    )
    review.add_argument(
        "--clips-by",
        default="top",
        choices=("top", "stratified"),
        help="those with the highest scores (default), or some of every score",
    )
    add_inference_options(parser)
    add_store_options(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    of_all, of_labels = read_thresholds(arguments.threshold)
    check_place(arguments.output)

    from beats_trainer.detection import EventRules
    from beats_trainer.detection.outputs import OutputOptions

    rules = {
        "combine": arguments.combine,
        "release": arguments.release,
        "min_duration_s": arguments.min_duration,
        "merge_gap_s": arguments.merge_gap,
        "top_n": arguments.top_n,
    }
    outputs = {
        "formats": arguments.formats,
        "timezone": arguments.timezone,
        "convert_to": arguments.convert_to,
        "num_clips": arguments.export_clips,
        "clips_by": arguments.clips_by,
    }
    try:  # at once, and not after the model was loaded
        EventRules(0.5, **rules)
        OutputOptions(**outputs).check_folder(Path(arguments.output))
    except ValueError as error:
        raise ConfigError(str(error)) from error

    from beats_trainer.loading import find_clips

    clips = find_clips(arguments.inputs)

    predictor = load_predictor(arguments)
    thresholds = thresholds_for(predictor, of_all, of_labels)
    found = predictor.detect(
        clips,
        arguments.output,
        window_s=arguments.window,
        hop_s=arguments.hop,
        per_step=arguments.per_step,
        labels=arguments.label,
        thresholds=thresholds,
        **rules,
        **outputs,
        dtype=arguments.dtype,
        on_error=arguments.on_error,
        retry_failed=arguments.retry_failed,
        overwrite=arguments.overwrite,
    )
    events = found.events
    print(
        f"{number_of(len(events), 'event')} in {number_of(found.num_recordings, 'recording')}, "
        f"{found.recorded_s / 3600:,.2f} hours"
    )
    if len(events):
        by_label = events.groupby("label").agg(
            events=("score", "size"), seconds=("end_time", "sum"), best=("score", "max")
        )
        by_label["seconds"] -= events.groupby("label")["start_time"].sum()
        rows = [
            (label, int(row["events"]), round(float(row["seconds"]), 1), f"{row['best']:.3f}")
            for label, row in by_label.sort_values("events", ascending=False).iterrows()
        ]
        print(format_table(["label", "events", "seconds", "best score"], rows))
    for name, paths in found.written.items():
        if name in ("raven", "audacity"):  # a table per recording
            print(
                f"{name}: {os.path.join(arguments.output, name)}, {number_of(len(paths), 'table')}"
            )
        else:
            print(f"{name}: {', '.join(str(path) for path in paths)}")
    failures = found.failures
    if not len(failures):
        return ExitCode.OK
    tell_failures(failures, f"{arguments.output}/errors.csv")
    return ExitCode.SOME_FAILED if found.num_recordings else ExitCode.ERROR


def _formats(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
