"""``beats-trainer augment-preview``: labelled recordings in, a page of what augmentation makes of them out.

Twin of ``preview_augmentation(BEATsTrainer(config).splits, config, folder)``.
"""

import argparse
import os

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.settings import add_settings, print_settings, read_settings

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
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="folder with one folder of recordings per class, or a CSV file with one row per clip",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where page, WAV and PNG are put"
    )
    parser.add_argument(
        "--count", type=int, default=8, metavar="N", help="clips to show (default: 8)"
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    given: dict[str, str] = {}
    if arguments.data is not None:
        is_folder = os.path.isdir(arguments.data)
        given["data.data_dir" if is_folder else "data.metadata_file"] = arguments.data
    config = read_settings(arguments, **given)
    if arguments.print_config:
        print_settings(config)
        return ExitCode.OK
    config.validate()  # warns of settings without effect, as training does

    from beats_trainer.config import Config, ModelConfig
    from beats_trainer.trainer import BEATsTrainer
    from beats_trainer.training.preview import preview_augmentation

    # The same clips as training takes, without asking for the checkpoint that it starts from.
    only_data = Config(config.data, ModelConfig(train_from_scratch=True), seed=config.seed)
    trainer = BEATsTrainer(only_data)
    assert trainer.splits is not None
    page = preview_augmentation(trainer.splits, config, arguments.output, arguments.count)
    print(f"Open in a browser: {page}")
    return ExitCode.OK
