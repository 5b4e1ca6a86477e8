"""``beats-trainer augment-preview``: labelled recordings in, a page of what augmentation makes of them out.

Twin of ``preview_augmentation(BEATsTrainer(config).splits, config, folder)``.
"""

import argparse
import copy

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.settings import (
    add_data,
    add_settings,
    print_settings,
    read_data_settings,
    read_settings,
)
from beats_trainer.errors import ConfigError

__all__ = ["add_arguments", "run"]

SUMMARY = "Show and play training clips before and after augmentation."
USAGE = "[DATA] -o FOLDER [options]"
EPILOG = """\
examples:
  beats-trainer augment-preview recordings/ -o preview --augmentation.mixup_alpha 0.8 --finetune
  beats-trainer augment-preview recordings/ -o preview --augmentation.background_dir noise --count 4
  beats-trainer augment-preview --config run.yaml -o preview

Nothing is trained, and no checkpoint is needed. Open FOLDER/preview.html in a browser.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where page, WAV and PNG are put"
    )
    parser.add_argument(
        "--count", type=int, default=8, metavar="N", help="clips to show (default: 8)"
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    config = read_settings(arguments, **read_data_settings(arguments))
    if arguments.print_config:
        print_settings(config)
        return ExitCode.OK
    if arguments.count < 1:
        raise ConfigError(f"--count must be at least 1, not {arguments.count}.")
    config.validate()  # warns of settings without effect, as training does

    from beats_trainer.config import Config, ModelConfig
    from beats_trainer.trainer import BEATsTrainer
    from beats_trainer.training.preview import preview_augmentation

    # The same clips as training takes, without asking for the checkpoint that it starts from.
    data = copy.copy(config.data)
    if data.folds is not None:  # of the shares, only validation's has been set
        data.folds, data.train_split, data.test_split = None, 1.0 - data.val_split, 0.0
    only_data = Config(data, ModelConfig(train_from_scratch=True), seed=config.seed)
    trainer = BEATsTrainer(only_data)
    assert trainer.splits is not None
    page = preview_augmentation(trainer.splits, config, arguments.output, arguments.count)
    print(f"Open in a browser: {page}")
    return ExitCode.OK
