"""``beats-trainer predict``: recordings in, class scores and detected classes out.

Twin of ``BEATsPredictor.from_pretrained(model).predict(files, thresholds=...)``.
"""

import argparse
import sys
from collections.abc import Sequence

from beats_trainer.atomic import written_whole
from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import check_output, format_table
from beats_trainer.cli.recordings import (
    add_inference_options,
    add_inputs_argument,
    add_on_error_option,
)
from beats_trainer.errors import ConfigError

__all__ = ["add_arguments", "run"]

SUMMARY = "Score recordings with a trained model."
USAGE = "MODEL INPUT... [options]"
EPILOG = """\
examples:
  beats-trainer predict logs/beats_experiment/version_0/model new_recordings/
  beats-trainer predict my_model dawn.wav dusk.wav -o scores.csv --top 3
  beats-trainer predict my_model recordings/ -o scores.csv --threshold 0.7 --threshold "wren=0.9"

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
        "--threshold",
        action="append",
        default=[],
        metavar="[LABEL=]X",
        help="score from which on a label is detected: for all, or for one; may be repeated (default: "
        "the model's own, or 0.5)",
    )
    add_inference_options(parser)
    add_on_error_option(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, not {arguments.top}.")
    of_all, of_labels = _read_thresholds(arguments.threshold)
    output = check_output(arguments.output) if arguments.output else None

    from beats_trainer.datasets.labels import LABEL_SEPARATOR
    from beats_trainer.loading import find_clips
    from beats_trainer.predictor import BEATsPredictor

    files = [clip.file for clip in find_clips(arguments.inputs)]
    predictor = BEATsPredictor.from_pretrained(
        arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    )
    base = {} if of_all is None else dict.fromkeys(predictor.labels, of_all)
    table = predictor.predict(
        files, thresholds=base | of_labels or None, on_error=arguments.on_error
    )
    readable = table["label"].notna().to_numpy()
    scored = table[readable]
    rows = []
    for file, detected, of_file in zip(
        scored["file"], scored["detected"], scored[predictor.score_columns].to_numpy(), strict=True
    ):
        heard = {detected, *detected.split(LABEL_SEPARATOR)}  # a single label may hold the sign
        for rank, index in enumerate((-of_file).argsort(kind="stable")[: arguments.top]):
            label = predictor.labels[index]
            mark = "yes" if label in heard else "no"
            rows.append((file if rank == 0 else "", label, f"{of_file[index]:.3f}", mark))
    print(format_table(["file", "label", "score", "detected"], rows))
    if output is not None:
        with written_whole(output) as partial:
            table.to_csv(partial, index=False)
        print(f"Detected labels, and scores of all {len(predictor.labels)} classes: {output}")
    if readable.all():
        return ExitCode.OK
    for failed in table[~readable].itertuples():
        print(f"Cannot read audio from {failed.file}: {failed.error}", file=sys.stderr)
    return ExitCode.SOME_FAILED if readable.any() else ExitCode.ERROR


def _read_thresholds(given: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """The threshold of all labels, if there is one, and those of single labels."""
    of_all, of_labels = None, {}
    for text in given:
        label, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(
                f"--threshold must be a score such as 0.7, or LABEL=0.7, not {text!r}."
            ) from None
        if not 0 <= value <= 1:
            raise ConfigError(f"--threshold {text}: a score is from 0 to 1.")
        if equals:
            of_labels[label] = value
        else:
            of_all = value
    return of_all, of_labels
