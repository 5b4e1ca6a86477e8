"""``beats-trainer embed``: recordings in, one Parquet file of embeddings out.

Twin of ``BEATsFeatureExtractor(...).embed(files, window_s, hop_s).to_parquet(out)``.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from beats_trainer.atomic import written_whole
from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import check_output
from beats_trainer.cli.recordings import (
    add_inference_options,
    add_inputs_argument,
    add_on_error_option,
)
from beats_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from beats_trainer.embeddings.encode import Failure

__all__ = ["add_arguments", "run"]

SUMMARY = "Embed recordings into a Parquet file."
USAGE = "INPUT... -o OUT.parquet [options]"
EPILOG = """\
examples:
  beats-trainer embed recordings/ -o embeddings.parquet
  beats-trainer embed night1.wav night2.flac -o nights.parquet --window 5 --hop 2.5
  beats-trainer embed 'site_*/*.wav' -o sites.parquet --model openbeats --on-error skip

The columns are file, start_time, end_time (seconds) and embedding; the recipe stands in the file's
metadata. With --on-error skip, what could not be read stands in errors.csv beside OUT.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_inputs_argument(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="Parquet file to write"
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        help="checkpoint name, file, model folder or hub owner/name (default: BEATs_iter3_plus_AS2M)",
    )
    parser.add_argument(
        "--window", type=float, metavar="S", help="seconds per embedding (default: whole files)"
    )
    parser.add_argument(
        "--hop", type=float, metavar="S", help="seconds between windows (default: no overlap)"
    )
    parser.add_argument(
        "--pooling",
        default="mean",
        choices=("mean", "max", "first", "last"),
        help="how tokens become one embedding (default: mean)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="which layer's output: 0 is the first layer's input, -1 the last (default)",
    )
    add_inference_options(parser)
    add_on_error_option(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    if arguments.hop is not None and arguments.window is None:
        raise ConfigError("--hop needs --window: without it each file is embedded as a whole.")
    output = check_output(arguments.output)

    from beats_trainer.feature_extractor import BEATsFeatureExtractor
    from beats_trainer.loading import find_clips

    files = [clip.file for clip in find_clips(arguments.inputs)]
    extractor = BEATsFeatureExtractor(
        arguments.model,
        arguments.device,
        arguments.layer,
        arguments.pooling,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    )
    table = extractor.embed(files, arguments.window, arguments.hop, on_error=arguments.on_error)
    if arguments.on_error == "skip":
        _write_failures(output.with_name("errors.csv"), table.failures)
    if table.failures and not len(table):
        raise ValueError(
            f"None of the {len(files)} files could be read, and nothing was written but errors.csv. "
            f"The first: {table.failures[0].reason}"
        )
    table.to_parquet(output)
    print(
        f"{len(table)} embeddings of {len(set(table.file))} files, {table.embeddings.shape[1]} numbers "
        f"each, in {table.recipe['precision']}: {output}"
    )
    if not table.failures:
        return ExitCode.OK
    print(
        f"{len(table.failures)} of {len(files)} files could not be read: "
        f"{output.with_name('errors.csv')} says why.",
        file=sys.stderr,
    )
    return ExitCode.SOME_FAILED


def _write_failures(path: Path, failures: "Sequence[Failure]") -> None:
    """Write the table of failures, without rows if there are none: an older one would mislead."""
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "reason"])
        writer.writerows([failure.file, failure.reason] for failure in failures)
