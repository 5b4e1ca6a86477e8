"""``beats-trainer predict``: recordings in, class scores out.

Twin of ``BEATsPredictor.from_pretrained(model).predict(files)``.
"""

import argparse
import sys

from beats_trainer.atomic import written_whole
from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import check_output, format_table
from beats_trainer.cli.recordings import (
    add_inference_options,
    add_on_error_option,
    find_recordings,
)

__all__ = ["add_arguments", "run"]

SUMMARY = "Score recordings with a trained model."
USAGE = "MODEL INPUT... [options]"
EPILOG = """\
examples:
  beats-trainer predict logs/beats_experiment/version_0/model new_recordings/
  beats-trainer predict my_model dawn.wav dusk.wav -o scores.csv --top 3

The terminal shows the best labels of each file, the CSV file the score of every class.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, fine-tuned checkpoint or hub owner/name"
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders or patterns")
    parser.add_argument("-o", "--output", metavar="OUT", help="CSV file to write all scores to")
    parser.add_argument(
        "--top", type=int, default=1, metavar="N", help="labels to show per file (default: 1)"
    )
    add_inference_options(parser)
    add_on_error_option(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    if arguments.top < 1:
        raise ValueError(f"--top must be at least 1, not {arguments.top}.")
    output = check_output(arguments.output) if arguments.output else None
    files = find_recordings(arguments.inputs)

    from beats_trainer.predictor import BEATsPredictor

    predictor = BEATsPredictor.from_pretrained(
        arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    )
    table = predictor.predict(files, on_error=arguments.on_error)
    scores = table.iloc[:, 3 : 3 + len(predictor.labels)].to_numpy()  # after file, label, score
    readable = table["label"].notna().to_numpy()

    rows = []
    for file, of_file in zip(table["file"][readable], scores[readable], strict=True):
        for rank, index in enumerate((-of_file).argsort(kind="stable")[: arguments.top]):
            rows.append(
                (file if rank == 0 else "", predictor.labels[index], f"{of_file[index]:.3f}")
            )
    print(format_table(["file", "label", "score"], rows))
    if output is not None:
        with written_whole(output) as partial:
            table.to_csv(partial, index=False)
        print(f"Scores of all {len(predictor.labels)} classes: {output}")
    if readable.all():
        return ExitCode.OK
    for failed in table[~readable].itertuples():
        print(f"Cannot read audio from {failed.file}: {failed.error}", file=sys.stderr)
    return ExitCode.SOME_FAILED if readable.any() else ExitCode.ERROR
