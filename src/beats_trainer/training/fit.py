"""Train a network on Lightning, and give back its best weights.

classifier, splits, config -> [Lightning: warm-up, clipping, early stopping, checkpoints] -> best weights

What of the classifier requires a gradient is trained: all of it, its adapters, or a head that hears
clips anew in every epoch.
"""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from beats_trainer.config import Config, settled
from beats_trainer.datasets import Splits, targets_of
from beats_trainer.errors import (
    BEATsTrainerError,
)
from beats_trainer.loading import ClipChange
from beats_trainer.model import BEATsClassifier
from beats_trainer.model.precision import resolve_precision
from beats_trainer.training.augmentation import augmentation_from
from beats_trainer.training.data_module import SplitsDataModule
from beats_trainer.training.lightning_run import (
    AtomicCheckpointIO,
    QuietProcess,
    ctrl_c_kept,
    end_processes,
    lightning_precision,
    quiet_lightning,
    raise_own,
    read_checkpoint,
)
from beats_trainer.training.loggers import make_loggers
from beats_trainer.training.losses import ClassificationLoss, soft_targets
from beats_trainer.training.modules import ClassifierModule
from beats_trainer.training.run_folder import RunFolder

__all__ = ["FittedNetwork", "fit_network"]


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedNetwork:
    """How the weights that a classifier now has came to be.

    Attributes:
        history: One row per epoch: ``epoch``, ``train_loss``, ``lr``, and the ``val_`` metrics if there
            is a validation split. Epochs before a resumption are included.
        best_epoch: The row, counted from 0, whose weights were kept.
        best_score: Its monitored metric; ``None`` without a validation split.
        precision: The number format that ran.
    """

    history: list[dict[str, float]]
    best_epoch: int
    best_score: float | None
    precision: str


def fit_network(
    classifier: BEATsClassifier,
    splits: Splits,
    config: Config,
    run: RunFolder,
    device: torch.device,
    *,
    resume: bool = False,
    progress: bool | None = None,
    augment: ClipChange | None = None,
) -> FittedNetwork:
    """Train what of a classifier requires a gradient, and load the best epoch's weights back into it.

    Without a validation split all epochs run and the last one's weights are kept. With
    ``training.devices`` above 1, as many processes are started, which share out each batch.

    Args:
        classifier: Is trained in place; on the CPU and in eval mode afterwards.
        splits: The clips to train on and to choose the best epoch on.
        config: Every setting of the run, resolved.
        run: Takes the checkpoints (``last.ckpt`` after every epoch, and the best) and the log of steps.
        device: Where to train.
        resume: Go on from the run's ``last.ckpt``; from the start where there is none yet.
        progress: Show a progress bar; ``None`` shows one on a terminal.
        augment: Changes the waveform of each training clip besides ``config.augmentation``.

    Raises:
        ConfigError: If the device cannot train in the precision.
        AudioError: If a recording cannot be read; names the file and the reason.
        CheckpointError: If a checkpoint of the run that is resumed is damaged or gone.
        BEATsTrainerError: If the loss stops being finite, or a process of training is lost.
    """
    dtype = resolve_precision(config.training.precision_name, device)
    has_val = len(splits.val) > 0
    shows_bar = sys.stderr.isatty() if progress is None else progress
    best, callbacks = _callbacks(config, run, has_val, shows_bar)
    num_devices = config.training.devices
    num_classes = len(splits.labels)
    targets = soft_targets(targets_of(splits.train, num_classes, splits.task), num_classes)
    module = ClassifierModule(
        classifier,
        config,
        ClassificationLoss.from_config(config.training, classifier.activation, targets),
        (len(splits.train), len(splits.val)),
        splits.task,
        *augmentation_from(config, augment),
    )
    last = _read_last(run) if resume else None
    _remove_unreferenced(run, best, last)
    if last is not None and last.get("is_complete"):  # broken off while it was measured
        return _take_best(classifier, config, run, best, last, has_val, dtype)
    with quiet_lightning(), ctrl_c_kept():
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=num_devices if num_devices > 1 or device.index is None else [device.index],
            strategy=_strategy(classifier, num_devices),
            use_distributed_sampler=False,  # batches are shared out clip by clip, none twice
            precision=lightning_precision(dtype, device),
            max_epochs=settled(config.training.max_epochs),
            accumulate_grad_batches=config.training.accumulate_grad_batches,
            gradient_clip_val=config.training.gradient_clip,
            deterministic=config.training.deterministic,
            log_every_n_steps=config.training.log_every_n_steps,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            limit_val_batches=None if has_val else 0,
            callbacks=callbacks,
            logger=make_loggers(config, run) or False,
            plugins=[AtomicCheckpointIO(run.last_checkpoint)],
            enable_progress_bar=shows_bar,
            enable_model_summary=False,
        )
        data = SplitsDataModule(splits, config, pin_memory=device.type == "cuda")
        module.train()
        fork = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=fork):
            try:
                trainer.fit(
                    module,
                    datamodule=data,
                    ckpt_path=None if last is None else str(run.last_checkpoint),
                    weights_only=True,
                )
            except SystemExit:
                if trainer.interrupted:  # Lightning turns Ctrl-C into an exit
                    raise KeyboardInterrupt from None
                raise
            except ProcessRaisedException as error:
                raise_own(error)
            except ProcessExitedException as error:
                raise BEATsTrainerError(
                    f"A process of training is gone ({error}). What it said stands above; if it said nothing, "
                    "it may have run out of memory. A script that trains with training.devices above 1 does "
                    'what it does under the line: if __name__ == "__main__":'
                ) from error
            finally:
                module.restore_settings()
                end_processes(trainer)
    # From the files, not from `module`: with several processes, others than this one have trained.
    last = _read_last(run)
    assert last is not None
    return _take_best(classifier, config, run, best, last, has_val, dtype)


def _read_last(run: RunFolder) -> dict[str, Any] | None:
    """The run's last checkpoint; ``None`` where it was broken off before there was one."""
    path = run.last_checkpoint
    return read_checkpoint(path) if path.is_file() else None


def _take_best(
    classifier: BEATsClassifier,
    config: Config,
    run: RunFolder,
    best: "_MovableCheckpoint",
    last: dict[str, Any],
    has_val: bool,
    dtype: torch.dtype,
) -> FittedNetwork:
    """Load the weights of the best epoch, which the last checkpoint names."""
    best.load_state_dict(last["callbacks"][best.state_key])
    saved = read_checkpoint(Path(best.best_model_path))
    classifier.cpu().load_state_dict(_weights_of(saved))
    classifier.eval()
    history = list(last["history"])
    epoch = int(saved["epoch"])
    score = history[epoch].get(settled(config.training.monitor_metric)) if has_val else None
    return FittedNetwork(history, epoch, score, str(dtype).removeprefix("torch."))


def _remove_unreferenced(
    run: RunFolder, best: "_MovableCheckpoint", last: dict[str, Any] | None
) -> None:
    """Remove the checkpoints of epochs that the last checkpoint does not know of: they will be run again."""
    kept: set[str] = set()
    if last is not None:
        best.load_state_dict(last["callbacks"][best.state_key])
        kept = {run.last_checkpoint.name}
        kept |= {Path(path).name for path in (*best.best_k_models, best.best_model_path) if path}
    for path in run.checkpoints.glob("*.ckpt"):
        if path.name not in kept:
            path.unlink()


def _strategy(classifier: BEATsClassifier, num_devices: int) -> str:
    if num_devices == 1:
        return "auto"
    # A dropped layer has no gradient, for which the processes would wait for ever.
    drops_layers = classifier.beats.architecture.encoder_layerdrop > 0
    return "ddp_spawn_find_unused_parameters_true" if drops_layers else "ddp_spawn"


def _callbacks(
    config: Config, run: RunFolder, has_val: bool, shows_bar: bool
) -> "tuple[_MovableCheckpoint, list[Callback]]":
    training = config.training
    monitor, mode = settled(training.monitor_metric), training.monitor_mode
    best = _MovableCheckpoint(
        dirpath=run.checkpoints,
        filename=f"epoch={{epoch:03d}}-{monitor}={{{monitor}:.4f}}" if has_val else "best",
        auto_insert_metric_name=False,
        monitor=monitor if has_val else None,
        mode=mode,
        save_top_k=training.save_top_k if has_val else 1,
        save_weights_only=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    # After `best`, so that what it says about the best epoch is this epoch's.
    last = ModelCheckpoint(
        dirpath=run.checkpoints,
        filename=run.last_checkpoint.stem,
        save_top_k=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [best, last]
    if config.training.devices > 1:
        callbacks.append(QuietProcess())
    if has_val:
        # A metric that is NaN is worse than any number, but no reason to stop at once.
        patience = settled(training.patience)
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=patience, check_finite=False))
    if shows_bar:
        callbacks.append(TQDMProgressBar(leave=False))
    return best, callbacks


class _MovableCheckpoint(ModelCheckpoint):
    """Remembers the best epoch also when the run's folder was moved before it was resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        moved = dict(state_dict, dirpath=self.dirpath)
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            moved[name] = here(moved[name])
        moved["best_k_models"] = {here(p): v for p, v in moved["best_k_models"].items()}
        super().load_state_dict(moved)


def _weights_of(saved: dict[str, Any]) -> dict[str, torch.Tensor]:
    prefix = "classifier."
    return {name.removeprefix(prefix): value for name, value in saved["state_dict"].items()}
