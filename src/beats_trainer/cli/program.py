"""The program around the commands: parse, run, and turn errors into messages and exit codes.

argv -> [parser -> command.run -> exit code]

Nothing heavy is imported here; see the package's docstring.
"""

import argparse
import contextlib
import difflib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NoReturn

from beats_trainer._version import __version__
from beats_trainer.cli import (
    augment_preview,
    compare,
    demo,
    detect,
    embed,
    evaluate,
    models,
    predict,
    pretrain,
    train,
)
from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.errors import BEATsTrainerError, ConfigError

__all__ = ["build_parser", "main"]

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "embed": embed,
    "predict": predict,
    "detect": detect,
    "pretrain": pretrain,
    "augment-preview": augment_preview,
    "models": models,
    "demo": demo,
}
"""Each has ``SUMMARY``, ``USAGE``, ``EPILOG``, ``add_arguments(parser)`` and ``run(arguments)``; ``GOES_ON`` if it
takes up a run that was interrupted."""

_EPILOG = """\
exit codes:
  0 done   1 error   2 wrong arguments or settings   3 done, but some files failed   130 Ctrl-C

beats-trainer COMMAND --help describes a command. To see it all at work: beats-trainer demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``beats-trainer`` and return its exit code.

    Args:
        argv: The arguments; ``None`` takes those of the process.

    Returns:
        One of `ExitCode`; wrong arguments end in ``SystemExit``, as everywhere with `argparse`.

    Example:
        >>> main(["models", "openbeats_i1", "--json"])  # doctest: +ELLIPSIS
        {
        ...
        0
    """
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    with _messages_on_stderr(arguments.debug):
        try:
            return int(COMMANDS[arguments.command].run(arguments))
        except KeyboardInterrupt:
            goes_on = getattr(COMMANDS[arguments.command], "GOES_ON", False)
            hint = " The same command goes on where this one stopped." if goes_on else ""
            print(f"Interrupted.{hint}", file=sys.stderr)
            return ExitCode.INTERRUPTED
        except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.OK
        except (BEATsTrainerError, ValueError, OSError) as error:
            if arguments.debug:
                traceback.print_exc()
            else:
                print(f"beats-trainer {arguments.command}: {error}", file=sys.stderr)
            return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.ERROR


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole program."""
    return _build_parsers()[0]


class _Parser(argparse.ArgumentParser):
    """`argparse` with short errors: the usage of a command with many options would bury the message."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\nSee: {self.prog} --help\n")


def _build_parsers() -> tuple[_Parser, dict[str, _Parser]]:
    program = _Parser(
        prog="beats-trainer",
        usage="beats-trainer COMMAND ...",
        description="Load, embed, train, evaluate and use BEATs audio transformers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    program.add_argument("--version", action="version", version=__version__)
    commands = program.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    parsers = {}
    for name, command in COMMANDS.items():
        parser: _Parser = commands.add_parser(
            name,
            prog=f"beats-trainer {name}",
            usage=f"beats-trainer {name} {command.USAGE}",
            help=command.SUMMARY,
            description=command.SUMMARY,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parsers[name] = parser
    return program, parsers


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    program, parsers = _build_parsers()
    arguments, unknown = program.parse_known_args(argv)
    if unknown:
        parser = parsers[arguments.command]
        option = unknown[0].split("=")[0]
        if not option.startswith("-"):
            parser.error(f"there is one argument too many: {unknown[0]!r}.")
        known = [name for action in parser._actions for name in action.option_strings]
        close = difflib.get_close_matches(option.replace("-", "_"), known, n=1)
        close = difflib.get_close_matches(option, known, n=1) or close
        hint = f" Did you mean {close[0]}?" if close else ""
        parser.error(f"there is no option {option}.{hint}")
    return arguments


@contextlib.contextmanager
def _messages_on_stderr(debug: bool) -> Iterator[None]:
    """Show the library's log and warnings as plain lines, each warning once; standard output is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("beats_trainer")
    level_before, show_before = logger.level, warnings.showwarning
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:  # settings are checked more than once on their way
            shown.add(str(message))
            print(f"Warning: {message}", file=sys.stderr)

    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = show_before
        logger.setLevel(level_before)
        logger.removeHandler(handler)
