"""The INPUT argument and the options of commands that read recordings."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beats_trainer.errors import ConfigError

if TYPE_CHECKING:
    from beats_trainer.predictor import BEATsPredictor

__all__ = [
    "add_inference_options",
    "add_inputs_argument",
    "add_on_error_option",
    "add_store_options",
    "add_threshold_option",
    "load_predictor",
    "read_thresholds",
    "thresholds_for",
]


def add_inputs_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``INPUT...``, which ``beats_trainer.loading.find_clips`` understands."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders, patterns, tables or - for a list on standard input",
    )


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that run a network over recordings."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="number format; auto takes bfloat16 where the hardware multiplies it fast",
    )
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default="auto",
        metavar="N",
        help="most clips in a batch (default: auto, as many as suit the device and fit its memory)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="on a CUDA device, compile the network for the shapes that come (a minute each)",
    )


def add_on_error_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--on-error``."""
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=("raise", "skip"),
        help="stop at the first unreadable file (default), or skip it, say so, and exit with 3",
    )


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that write to a store, which goes on after an interruption."""
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16"),
        help="how numbers are stored (default: float32)",
    )
    parser.add_argument(
        "--on-error",
        default="skip",
        choices=("skip", "raise"),
        help="list unreadable files in errors.csv and exit with 3 (default), or stop at the first",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="do files anew of which a part could not be read; those of which nothing could are anyway",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew, whatever OUT holds of an earlier run"
    )


def add_threshold_option(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add ``--threshold``, for `read_thresholds`."""
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[LABEL=]X",
        help="score from which on a label is detected: for all, or for one; may be repeated (default: "
        "the model's own, or 0.5)",
    )


def read_thresholds(given: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """Return the threshold of all labels, if there is one, and those of single labels.

    Raises:
        ConfigError: If one is no score from 0 to 1.
    """
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


def load_predictor(arguments: argparse.Namespace) -> "BEATsPredictor":
    """Load the model of a command that has `add_inference_options`."""
    from beats_trainer.predictor import BEATsPredictor

    return BEATsPredictor.from_pretrained(
        arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
        batch_size=arguments.batch_size,
    )


def thresholds_for(
    predictor: "BEATsPredictor", of_all: float | None, of_labels: dict[str, float]
) -> dict[str, float] | None:
    """What `read_thresholds` gave, by label; ``None`` leaves the model's own."""
    base = {} if of_all is None else dict.fromkeys(predictor.labels, of_all)
    return base | of_labels or None


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else _at_least_one(text)


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}.")
    return number
