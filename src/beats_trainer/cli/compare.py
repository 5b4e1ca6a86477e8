"""``beats-trainer compare``: labelled recordings and checkpoints in, which one is best for them out.

Twin of ``compare_models(data, models, config=config, output=folder)``.
"""

import argparse

from beats_trainer.cli.exit_code import ExitCode
from beats_trainer.cli.settings import add_data, add_settings, read_data_settings, read_settings
from beats_trainer.errors import ConfigError

__all__ = ["add_arguments", "run"]

SUMMARY = "Find out which checkpoint is best for labelled recordings."
USAGE = "DATA --models A,B,... [-o FOLDER] [options]"
EPILOG = """\
examples:
  beats-trainer compare recordings/ --models BEATs_iter3_plus_AS2M,openbeats -o comparison
  beats-trainer compare labels.csv --models openbeats,my_encoder.pt --group-column site --folds 10
  beats-trainer compare esc50.csv --data-dir audio --models BEATs_iter3_plus_AS2M,openbeats --folds official
  beats-trainer compare soundscapes/ --annotations raven_tables/ --models openbeats --methods knn,linear

The encoders stay as they are. On each, methods are fitted and tested by cross-validation, the same folds for
all: knn (the nearest training clips vote), linear (a head on embeddings), attentive (learned pooling over the
tokens of all layers). What is printed says which models the clips cannot tell apart from the best.

FOLDER takes comparison.html (open it in a browser), .svg, .csv and .json, and predictions.csv.
"""

_MODEL_SETTINGS = (
    "pooling",
    "dropout_rate",
    "use_custom_head",
    "hidden_dims",
    "activation",
    "attention_pooling_heads",
    "cache_gb",
)
_IDLE = (
    "experiment_name",
    "data.train_split",
    "data.val_split",
    "data.test_split",
    "data.max_duration_s",
    "training.calibrate",
    "training.target_precision",
    "training.gpus",
    "training.deterministic",
    "training.log_every_n_steps",
    "training.save_top_k",
    "training.loggers",
    "training.layer_decay",
    "training.accumulate_grad_batches",
    "training.gradient_checkpointing",
    "training.devices",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data(parser)
    parser.add_argument(
        "--models",
        metavar="A,B,...",
        action="append",
        default=[],
        help="checkpoint names, files, model folders, runs or hub owner/name, with commas between them, or "
        "--models several times",
    )
    parser.add_argument(
        "--methods",
        metavar="A,B,...",
        default="knn,linear,attentive",
        help="what is fitted on each model (default: knn,linear,attentive)",
    )
    parser.add_argument(
        "--val-split",
        type=float,
        metavar="SHARE",
        help="share of the clips outside the tested fold to choose the epoch on; 0 keeps the last epoch "
        "(default: 0.1)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="where page, picture and tables go"
    )
    add_settings(parser, _is_of_use)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command."""
    config = read_settings(arguments, **read_data_settings(arguments))
    if arguments.val_split is not None:
        config.data.val_split = arguments.val_split
        if config.data.folds is None:
            config.data.train_split, config.data.test_split = 1.0 - arguments.val_split, 0.0
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
        return ExitCode.OK
    models = [name for text in arguments.models for name in _split(text)]
    if not models:
        raise ConfigError(
            "There is no model to compare: name some, as --models BEATs_iter3_plus_AS2M,openbeats. "
            "beats-trainer models lists those that have a name."
        )

    from beats_trainer.comparison import compare_models

    comparison = compare_models(
        None,
        models,
        config=config,
        methods=_split(arguments.methods),
        output=arguments.output,
    )
    print(comparison)
    return ExitCode.OK


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _is_of_use(name: str) -> bool:
    """Whether a setting does anything here."""
    section, _, field = name.rpartition(".")
    if section == "model":
        return field in _MODEL_SETTINGS
    return section != "augmentation" and name not in _IDLE
