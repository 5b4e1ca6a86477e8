"""The INPUT argument and the options of commands that read recordings."""

import argparse

__all__ = ["add_inference_options", "add_inputs_argument", "add_on_error_option"]


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
        type=_at_least_one,
        default=16,
        metavar="N",
        help="most clips in a batch (default: 16)",
    )


def add_on_error_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--on-error``."""
    parser.add_argument(
        "--on-error",
        default="raise",
        choices=("raise", "skip"),
        help="stop at the first unreadable file (default), or skip it, say so, and exit with 3",
    )


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}.")
    return number
