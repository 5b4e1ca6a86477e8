"""``beats-trainer embed``: recordings in, a store of embeddings out, which goes on after any interruption.

Twin of ``BEATsFeatureExtractor(model).embed_to(inputs, out, window_s, hop_s)``.
"""

import argparse

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import check_place, number_of, tell_failures
from beats_trainer.cli.recordings import (
    add_inference_options,
    add_inputs_argument,
    add_store_options,
)
from beats_trainer.errors import ConfigError

__all__ = ["add_arguments", "run"]

SUMMARY = "Embed recordings of any number and length into Parquet; goes on where it stopped."
GOES_ON = True
USAGE = "INPUT... -o OUT [options]"
EPILOG = """\
examples:
  beats-trainer embed recordings/ -o embeddings --window 5 --hop 2.5
  beats-trainer embed night1.wav night2.flac -o nights.parquet
  beats-trainer embed clips.csv -o clips.parquet --model openbeats --layers 6,12
  find /archive -name '*.WAV' -print0 | beats-trainer embed - -o archive --per-step --dtype float16

OUT is a folder: OUT/shards/*.parquet with the columns file, start_time, end_time (seconds) and embedding, the
recipe in their metadata, and OUT/errors.csv with what could not be read. The same command again goes on
where the last one stopped, and adds what is new. Where OUT ends in .parquet it is one file, there when all is
done. Python reads both with beats_trainer.embeddings.open_store(OUT).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_inputs_argument(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="folder, or one file ending in .parquet",
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        help="checkpoint name, file, model folder or hub owner/name (default: BEATs_iter3_plus_AS2M); "
        "auto: a large one if it is here, else beats_nano, which comes with the package",
    )
    parser.add_argument(
        "--window", type=float, metavar="S", help="seconds per embedding (default: whole files)"
    )
    parser.add_argument(
        "--hop", type=float, metavar="S", help="seconds between windows (default: no overlap)"
    )
    parser.add_argument(
        "--per-step", action="store_true", help="an embedding for each time step of 160 ms"
    )
    parser.add_argument(
        "--pooling",
        default="mean",
        choices=("mean", "max", "first", "last", "bands"),
        help="how tokens become one embedding (default: mean)",
    )
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="which layer's output: 0 is the first layer's input, -1 the last (default)",
    )
    layers.add_argument(
        "--layers",
        type=_numbers,
        metavar="N,N",
        help="several layers, each in a column embedding_layer_N",
    )
    parser.add_argument("--normalize", action="store_true", help="scale embeddings to unit length")
    add_inference_options(parser)
    add_store_options(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    if arguments.hop is not None and arguments.window is None:
        raise ConfigError("--hop needs --window: without it each file is embedded as a whole.")
    check_place(arguments.output)

    from beats_trainer.loading import find_clips

    clips = find_clips(arguments.inputs)

    from beats_trainer.embeddings.windows import Windowing
    from beats_trainer.feature_extractor import BEATsFeatureExtractor

    Windowing(
        arguments.window, arguments.hop
    )  # a wrong one is found before a model is loaded in vain
    extractor = BEATsFeatureExtractor(
        arguments.model,
        arguments.device,
        arguments.layer,
        arguments.pooling,
        precision=arguments.precision,
        compile=arguments.compile,
        batch_size=arguments.batch_size,
    )
    store = extractor.embed_to(
        clips,
        arguments.output,
        arguments.window,
        arguments.hop,
        per_step=arguments.per_step,
        layers=arguments.layers,
        normalize=arguments.normalize,
        dtype=arguments.dtype,
        on_error=arguments.on_error,
        retry_failed=arguments.retry_failed,
        overwrite=arguments.overwrite,
    )
    failures = store.failures
    widths = ", ".join(f"{name} ({width})" for name, width in store.columns.items())
    print(
        f"{number_of(len(store), 'row')} of {number_of(len(store.files), 'file')}, {widths}, computed in "
        f"{store.recipe['precision']}: {store.path}"
    )
    if not len(failures):
        return ExitCode.OK
    errors = f"{store.path.stem}.errors.csv" if store.path.is_file() else "errors.csv"
    where = str(store.path.parent / errors if store.path.is_file() else store.path / errors)
    tell_failures(failures, where)
    return ExitCode.SOME_FAILED if len(store) else ExitCode.ERROR


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be layer numbers with commas, such as 6,12, not {text!r}."
        ) from None
