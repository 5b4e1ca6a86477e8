"""Which files the INPUT arguments of a command mean, and the options of commands that read them."""

import argparse
import glob
import os
from collections.abc import Iterator, Sequence

from beats_trainer.errors import AudioNotFoundError

__all__ = ["add_inference_options", "add_on_error_option", "find_recordings"]


def find_recordings(inputs: Sequence[str]) -> list[str]:
    """List the audio files that files, folders and patterns stand for.

    Args:
        inputs: Files, taken as they are; folders, searched with all folders in them for files with an
            audio ending; or patterns such as ``"site_*/**/*.wav"``, for shells that do not expand them.

    Returns:
        Paths, in the order of the inputs, sorted within each; a file that is meant twice stands there once.

    Raises:
        AudioNotFoundError: If a folder has no audio file, or a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for path in inputs:
        if os.path.isdir(path):
            files = list(_audio_below(path))
            if not files:
                raise AudioNotFoundError(path, "there is no audio file in this folder.")
        elif glob.has_magic(path) and not os.path.exists(path):
            files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
            if not files:
                raise AudioNotFoundError(path, "no file matches this pattern.")
        else:
            files = [path]
        found.update(dict.fromkeys(files))
    return list(found)


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


def _audio_below(folder: str) -> Iterator[str]:
    from beats_trainer.audio import AUDIO_EXTENSIONS  # the decoders; not for --help

    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(AUDIO_EXTENSIONS) and not name.startswith("."):
                yield os.path.join(here, name)
