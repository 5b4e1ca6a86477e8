"""Train a network on Lightning, and give back its best weights.

classifier, splits, config -> [Lightning: warm-up, clipping, early stopping, checkpoints] -> best weights

What of the classifier requires a gradient is trained: all of it, its adapters, or a head that hears
clips anew in every epoch.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar

from beats_trainer.config import Config, settled
from beats_trainer.datasets import Splits, targets_of
from beats_trainer.errors import ConfigError
from beats_trainer.loading import ClipChange
from beats_trainer.model import BEATsClassifier
from beats_trainer.model.precision import resolve_precision
from beats_trainer.training.augmentation import augmentation_from
from beats_trainer.training.data_module import SplitsDataModule
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
        CheckpointError: If there is no checkpoint to resume from, or it does not fit.
        BEATsTrainerError: If the loss stops being finite.
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
    resumes = resume and run.last_checkpoint.is_file()
    with _quiet_lightning():
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=num_devices if num_devices > 1 or device.index is None else [device.index],
            strategy="ddp_spawn" if num_devices > 1 else "auto",
            use_distributed_sampler=False,  # batches are shared out clip by clip, none twice
            precision=_lightning_precision(dtype, device),
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
            plugins=[_AtomicCheckpointIO()],
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
                    ckpt_path=str(run.last_checkpoint) if resumes else None,
                    weights_only=True,
                )
            except SystemExit:
                if trainer.interrupted:  # Lightning turns Ctrl-C into an exit
                    raise KeyboardInterrupt from None
                raise
    # From the files, not from `module`: with several processes, others than this one have trained.
    last = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)
    saved = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    classifier.cpu().load_state_dict(_weights_of(saved))
    classifier.eval()
    history = list(last["history"])
    epoch = int(saved["epoch"])
    score = history[epoch].get(settled(config.training.monitor_metric)) if has_val else None
    return FittedNetwork(history, epoch, score, str(dtype).removeprefix("torch."))


def _callbacks(
    config: Config, run: RunFolder, has_val: bool, shows_bar: bool
) -> tuple[ModelCheckpoint, list[Callback]]:
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
    if has_val:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=settled(training.patience)))
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


class _AtomicCheckpointIO(TorchCheckpointIO):
    """A run that is killed while it saves keeps the checkpoint that it had."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        part = f"{path}.part"
        super().save_checkpoint(checkpoint, part, storage_options)
        os.replace(part, path)


def _weights_of(saved: dict[str, Any]) -> dict[str, torch.Tensor]:
    prefix = "classifier."
    return {name.removeprefix(prefix): value for name, value in saved["state_dict"].items()}


def _lightning_precision(dtype: torch.dtype, device: torch.device) -> Any:
    if dtype == torch.float16 and device.type != "cuda":
        raise ConfigError(
            f"training.precision='float16' needs a CUDA device to train, not {device.type}: gradients "
            "underflow without its loss scaling. Use 'auto', 'bfloat16' or 'float32'."
        )
    return {torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}.get(dtype, "32-true")


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's adverts and hints stay out; its errors come through, and so do our warnings."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
