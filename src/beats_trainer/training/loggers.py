"""Where the course of training is logged besides ``history.csv``: TensorBoard, CSV of steps, W&B, MLflow.

run folder, names -> [Lightning's own loggers] -> fit | log_history
"""

import dataclasses
import importlib.util
import shutil
from typing import Any

from beats_trainer.config import Config
from beats_trainer.errors import ConfigError
from beats_trainer.training.run_folder import RunFolder

__all__ = ["log_history", "make_loggers", "require_loggers"]

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def require_loggers(config: Config) -> None:
    """Make sure, before hours are spent, that what the run will be logged with is installed.

    Raises:
        ConfigError: If the package of a logger is missing.
    """
    for name in config.training.loggers:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"training.loggers has {name!r}, whose package is not installed: pip install {package}, or "
                f"leave {name!r} out."
            )


def make_loggers(config: Config, run: RunFolder) -> list[Any]:
    """Build Lightning's loggers for a run.

    ``csv`` writes ``steps/version_0/metrics.csv``, ``tensorboard`` writes ``tensorboard/`` (read it with
    ``tensorboard --logdir LOGS``), ``wandb`` and ``mlflow`` log to where those are set up to.
    Call `require_loggers` first.
    """
    from lightning.pytorch import loggers  # takes seconds: only those who log with it pay

    made: list[Any] = []
    for name in config.training.loggers:
        if name == "csv":
            made.append(loggers.CSVLogger(run.path, name="steps"))
        elif name == "tensorboard":
            made.append(loggers.TensorBoardLogger(run.path, name="", version="tensorboard"))
        elif name == "wandb":
            made.append(loggers.WandbLogger(project=config.experiment_name, save_dir=run.path))
        elif name == "mlflow":
            made.append(loggers.MLFlowLogger(experiment_name=config.experiment_name))
    return made


def log_history(history: list[dict[str, float]], config: Config, run: RunFolder) -> None:
    """Log a finished fit, one point per epoch: for heads, whose training does not go through Lightning.

    Args:
        history: Rows with ``epoch`` and numbers.
        config: ``training.loggers``; ``csv`` is left out, for ``history.csv`` is the same.
        run: Takes the TensorBoard files.
    """
    names = set(config.training.loggers) - {"csv"}
    if "tensorboard" in names:
        from tensorboardX import SummaryWriter  # without Lightning, which takes seconds to import

        # Of a run that was broken off: all of it is written anew.
        shutil.rmtree(run.path / "tensorboard", ignore_errors=True)
        with SummaryWriter(str(run.path / "tensorboard"), write_to_disk=True) as writer:
            for row in history:
                for name, value in row.items():
                    if name != "epoch":
                        writer.add_scalar(name, value, int(row["epoch"]))
    others = sorted(names - {"tensorboard"})
    if others:
        training = dataclasses.replace(config.training, loggers=others)
        for logger in make_loggers(dataclasses.replace(config, training=training), run):
            for row in history:
                logger.log_metrics(
                    {k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"])
                )
            logger.finalize("success")
