"""``beats-trainer train``: labelled recordings in, a trained model folder and a report out.

Twin of ``BEATsTrainer(config, log_dir=...).train()``, and with ``--folds`` of ``.cross_validate()``.
"""

import argparse
import os
from pathlib import Path

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.settings import (
    add_data,
    add_settings,
    print_settings,
    read_data_settings,
    read_settings,
)

__all__ = ["add_arguments", "run"]

SUMMARY = "Train a classifier on labelled recordings."
USAGE = "[DATA] [options]"
EPILOG = """\
examples:
  beats-trainer train recordings/                            a head on frozen features
  beats-trainer train recordings/ --mode full --epochs 20    the whole network
  beats-trainer train labels.csv --data-dir audio --label-column species --group-column site
  beats-trainer train esc50.csv --folds official             the data set's own folds, each tested once
  beats-trainer train clips/ --folds 5 --group-pattern "(site\\d+)"
  beats-trainer train soundscapes/ --annotations raven_tables/ --mode attentive
  beats-trainer train recordings/ --mode scratch --model.encoder_layers 4 --model.encoder_embed_dim 192
  beats-trainer train --config run.yaml --lr 1e-4

modes: head (a head on frozen embeddings), attentive (learned pooling over the tokens of all layers),
lora (low-rank adapters), full (every weight), scratch (every weight, from random ones).

The run is saved as OUTPUT/NAME/version_N: open its report.html in a browser; predict, embed and evaluate take
the folder model in it. With --folds, that folder holds one run per fold, and a report over all.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser)
    parser.add_argument(
        "-o", "--output", default="logs", metavar="DIR", help="where runs are saved (default: logs)"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run that was broken off: its folder or last.ckpt. Its settings are used",
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    if arguments.resume is not None and arguments.config is None:
        arguments.config = _settings_of(arguments.resume)
    config = read_settings(arguments, **read_data_settings(arguments))
    if arguments.print_config:
        print_settings(config)
        return ExitCode.OK

    from beats_trainer.trainer import BEATsTrainer

    trainer = BEATsTrainer(config, log_dir=arguments.output)
    if config.data.folds is not None:
        print(trainer.cross_validate(resume_from_checkpoint=arguments.resume, verbose=False))
        return ExitCode.OK
    result = trainer.train(arguments.resume, verbose=False)
    print(result)
    print(f"Use it: beats-trainer predict {result.best_checkpoint} RECORDINGS")
    return ExitCode.OK


def _settings_of(run: str) -> str | None:
    """The settings that a run was begun with: whoever resumes it need not repeat them."""
    folder = Path(run) if os.path.isdir(run) else Path(run).parent.parent
    settings = folder / "config.yaml"
    return str(settings) if settings.is_file() else None
