"""``beats-trainer predict``: recordings in, class scores and detected classes out.

Twin of ``BEATsPredictor.from_pretrained(model).predict(files, thresholds=...)``.
"""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from beats_trainer.atomic import written_whole
from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import check_output, format_table
from beats_trainer.cli.recordings import (
    add_inference_options,
    add_inputs_argument,
    add_on_error_option,
    add_threshold_option,
    load_predictor,
    read_thresholds,
    thresholds_for,
)
from beats_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from beats_trainer.predictor import BEATsPredictor

__all__ = ["add_arguments", "run"]

_MOST_SHOWN = 100
"""Rows that are shown where a file has all of them."""

SUMMARY = "Score recordings with a trained model."
USAGE = "MODEL INPUT... [options]"
EPILOG = """\
examples:
  beats-trainer predict logs/beats_experiment/version_0/model new_recordings/
  beats-trainer predict my_model dawn.wav dusk.wav -o scores.csv --top 3
  beats-trainer predict my_model recordings/ -o scores.csv --threshold 0.7 --threshold "wren=0.9"
  beats-trainer predict my_model night.wav -o scores.csv --window 5 --top 3 --only-top

The terminal shows the best labels of each file, and which of them reach their thresholds; the CSV file the
detected labels and the score of every class.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, fine-tuned checkpoint or hub owner/name"
    )
    add_inputs_argument(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help="CSV file to write all scores to")
    parser.add_argument(
        "--top", type=int, default=1, metavar="N", help="labels to show per file (default: 1)"
    )
    parser.add_argument(
        "--only-top",
        action="store_true",
        help="write only the best N labels, not every class's score",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="a row for each S seconds (default: for each file)",
    )
    parser.add_argument(
        "--hop", type=float, metavar="S", help="seconds between windows (default: no overlap)"
    )
    add_threshold_option(parser)
    add_inference_options(parser)
    add_on_error_option(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, not {arguments.top}.")
    if arguments.hop is not None and arguments.window is None:
        raise ConfigError("--hop needs --window: without it each file has one row.")
    of_all, of_labels = read_thresholds(arguments.threshold)
    output = check_output(arguments.output) if arguments.output else None

    from beats_trainer.loading import find_clips

    clips = find_clips(arguments.inputs)

    predictor = load_predictor(arguments)
    thresholds = thresholds_for(predictor, of_all, of_labels)
    pieces = predictor.predict_stream(
        clips,
        window_s=arguments.window,
        hop_s=arguments.hop,
        top_k=arguments.top if arguments.only_top else None,
        thresholds=thresholds,
        on_error=arguments.on_error,
    )
    num_rows, failed = 0, []
    with contextlib.ExitStack() as stack:
        partial = None if output is None else stack.enter_context(written_whole(output))
        for piece in pieces:
            readable = piece["label"].notna()
            shown = piece[readable]
            if output is not None:  # the file has all of them
                shown = shown.head(max(0, _MOST_SHOWN - num_rows))
            if len(shown):
                print(_shown(shown, predictor, arguments.top, arguments.only_top))
            if partial is not None:
                is_first = not partial.exists()
                piece.to_csv(partial, mode="a", index=False, header=is_first)
            num_rows += int(readable.sum())
            if not readable.all():
                failed += (
                    piece.loc[~readable, ["file", "error"]].drop_duplicates().to_numpy().tolist()
                )
    if output is not None:
        of_what = (
            f"the best {arguments.top}" if arguments.only_top else f"all {len(predictor.labels)}"
        )
        print(f"Detected labels, and scores of {of_what} classes, in {num_rows:,} rows: {output}")
    for file, reason in failed:
        print(f"Cannot read audio from {file}: {reason}", file=sys.stderr)
    if not failed:
        return ExitCode.OK
    return ExitCode.SOME_FAILED if num_rows else ExitCode.ERROR


def _shown(table: "pd.DataFrame", predictor: "BEATsPredictor", top: int, has_only_top: bool) -> str:
    """The best labels of each row, a line each, aligned."""
    from beats_trainer.datasets.labels import LABEL_SEPARATOR

    places = [name for name in ("file", "start_time", "end_time") if name in table.columns]
    rows: list[tuple[object, ...]] = []
    for record in table.to_dict("records"):
        detected = record["detected"]
        heard = {detected, *detected.split(LABEL_SEPARATOR)}  # a single label may hold the sign
        if not has_only_top:
            scores = [(record[c], n) for n, c in enumerate(predictor.score_columns)]
            best = [(predictor.labels[n], score) for score, n in sorted(scores, key=_by_score)][
                :top
            ]
        else:
            suffixes = ["", *(f"_{rank}" for rank in range(2, top + 1))]
            best = [
                (record[f"label{suffix}"], record[f"score{suffix}"])
                for suffix in suffixes
                if f"label{suffix}" in record
            ]
        for rank, (label, score) in enumerate(best):
            place = [_place(record[name]) if rank == 0 else "" for name in places]
            rows.append((*place, label, f"{score:.3f}", "yes" if label in heard else "no"))
    return format_table([*places, "label", "score", "detected"], rows)


def _place(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _by_score(item: tuple[float, int]) -> tuple[float, int]:
    return -item[0], item[1]
