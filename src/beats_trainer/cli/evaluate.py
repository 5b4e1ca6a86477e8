"""``beats-trainer evaluate``: a trained model and labelled recordings in, metrics out.

Twin of ``BEATsTrainer.load(model).score_clips(data)``.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.output import format_table
from beats_trainer.cli.recordings import add_inference_options
from beats_trainer.errors import ConfigError

if TYPE_CHECKING:
    from beats_trainer.trainer import ScoredSplit

__all__ = ["add_arguments", "run"]

SUMMARY = "Measure a trained model on labelled recordings."
USAGE = "MODEL [DATA] [options]"
EPILOG = """\
examples:
  beats-trainer evaluate logs/beats_experiment/version_0
  beats-trainer evaluate my_model labelled_recordings/ --report evaluation
  beats-trainer evaluate my_model esc50.csv --data-dir audio --split-column fold --split 5
  beats-trainer evaluate my_model labels.csv --label-delimiter ";"
  beats-trainer evaluate my_model soundscapes/ --annotations raven_tables/

Without DATA, the test clips of the run are used: MODEL is then the run's folder. DATA is read as the training
data of that run was; the options say what is different.
"""

_SETTINGS = (
    ("audio_column", "NAME", "CSV column of files"),
    ("label_column", "NAME", "CSV column of labels"),
    ("label_delimiter", "TEXT", "what separates several labels of one clip"),
    ("label_columns", "A,B,...", "CSV columns that are the classes: 1, 0 or blank"),
    ("background_labels", "A,B,...", "labels that mean none of the classes"),
    ("unlisted_labels", "absent|unknown", "what a clip says of classes that it does not name"),
    ("annotations", "PATH", "tables of annotations; DATA is then the folder of the recordings"),
    ("group_column", "NAME", "CSV column of what belongs together, for the intervals"),
    ("data_dir", "DIR", "where the CSV's file names start"),
)
"""Settings of ``config.data`` about the clips to measure on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="run or model folder that training wrote")
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="folder with one folder per class, or a CSV file"
    )
    for name, metavar, text in _SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    parser.add_argument(
        "--split-column", metavar="NAME", help="take only some rows of the CSV: column"
    )
    parser.add_argument("--split", metavar="VALUE", help="and its value (default: test)")
    parser.add_argument(
        "--report", metavar="DIR", help="write report.html and report.json to this folder"
    )
    parser.add_argument("--json", action="store_true", help="print all metrics as JSON")
    add_inference_options(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    settings = _given_settings(arguments)
    rows = None
    if arguments.split_column is not None:
        rows = {arguments.split_column: arguments.split or "test"}
    elif arguments.split is not None:
        raise ConfigError("--split needs --split-column, the column that has this value.")
    if arguments.data is None and (settings or rows):
        raise ConfigError(
            "Without DATA the run's own test clips are used, as they are: give DATA, or leave out "
            f"--{next(iter(settings), 'split-column').replace('_', '-')}."
        )

    from beats_trainer.trainer import BEATsTrainer

    trainer = BEATsTrainer.load(arguments.model, device=arguments.device)
    trainer.config.training.precision = arguments.precision
    if arguments.batch_size is not None:
        trainer.config.data.batch_size = arguments.batch_size
    data = "test" if arguments.data is None else Path(arguments.data)
    scored = trainer.score_clips(data, rows=rows, report=arguments.report, **settings)
    if arguments.json:
        intervals = {name: [i.low, i.high] for name, i in scored.intervals.items()}
        plain = scored.metrics.to_dict() | {"intervals": intervals}
        print(json.dumps(plain, indent=2, ensure_ascii=False))
        return ExitCode.OK
    print(scored.metrics)
    if scored.intervals:
        print(f"\n{_intervals(scored)}")
    if arguments.report is not None:
        print(f"Report: {Path(arguments.report) / 'report.html'}")
    return ExitCode.OK


def _given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given; those of several names as lists."""
    settings: dict[str, Any] = {}
    for name, metavar, _ in _SETTINGS:
        value = getattr(arguments, name)
        if value is not None:
            settings[name] = value.split(",") if metavar == "A,B,..." else value
    return settings


def _intervals(scored: "ScoredSplit") -> str:
    """The single numbers with their intervals, as a table."""
    rows = [
        (name.replace("_", " "), f"{i.value:.3f}", f"{i.low:.3f} to {i.high:.3f}")
        for name, i in scored.intervals.items()
    ]
    return format_table(["metric", "value", "95 % interval"], rows)
