"""``beats-trainer pretrain``: recordings without labels in, an encoder out.

Twin of ``BEATsPretrainer(recordings, output, config).run()``.
"""

import argparse
import dataclasses
import functools
from pathlib import Path

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.settings import metavar_of, parse_setting, setting_help
from beats_trainer.pretraining_config import PretrainingConfig
from beats_trainer.settings import hints_of

__all__ = ["add_arguments", "run"]

SUMMARY = "Pre-train an encoder on recordings without labels."
USAGE = "RECORDINGS... -o OUT [options]"
GOES_ON = True
EPILOG = """\
examples:
  beats-trainer pretrain archive/ -o frogs --architecture small       from random weights, two iterations
  beats-trainer pretrain archive/ -o frogs --from BEATs_iter3_plus_AS2M --steps 20000
                                                                      go on from a released encoder
  beats-trainer pretrain "site_*/**/*.wav" -o frogs --exclude "*/test/*" --probe labelled/
  beats-trainer pretrain -o frogs                                     go on with a run that was broken off

RECORDINGS are files, folders, patterns, or tables. The run is OUT: open its curves.html in a browser; embed, train
and compare take the folder OUT/model. How much data, which size, how long: docs/pretraining.md.
"""

_SHORT = {
    "from_checkpoint": "--from",
    "learning_rate": "--lr",
}
_PREFIX = "pretraining:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "recordings",
        nargs="*",
        metavar="RECORDINGS",
        help="files, folders, patterns, tables; none to go on with the run in OUT",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder of the run")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files that fit it, such as '*/test/*'; may be repeated",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; options go over it"
    )
    group = parser.add_argument_group("settings")
    hints = hints_of(PretrainingConfig)
    for item in dataclasses.fields(PretrainingConfig):
        names = [_SHORT[item.name]] if item.name in _SHORT else []
        spelled = f"--{item.name.replace('_', '-')}"
        names += [spelled, *({f"--{item.name}"} - {spelled})]
        group.add_argument(
            *names,
            dest=_PREFIX + item.name,
            default=argparse.SUPPRESS,
            type=functools.partial(parse_setting, hint=hints[item.name]),
            metavar=metavar_of(hints[item.name]),
            help=setting_help(PretrainingConfig, item),
        )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    from beats_trainer.pretrainer import BEATsPretrainer

    given = {
        name.removeprefix(_PREFIX): value
        for name, value in vars(arguments).items()
        if name.startswith(_PREFIX)
    }
    base = arguments.config
    begun = Path(arguments.output) / "config.yaml"
    if base is None and not arguments.recordings and begun.is_file():
        base = begun  # whoever goes on with a run need not repeat its settings
    config = PretrainingConfig() if base is None else PretrainingConfig.from_yaml(base)
    pretrainer = BEATsPretrainer(
        arguments.recordings or None,
        arguments.output,
        config,
        exclude=arguments.exclude,
        **given,
    )
    result = pretrainer.run()
    print(result)
    print(f"Use it: beats-trainer embed RECORDINGS --model {result.model} -o embeddings.parquet")
    return ExitCode.OK
