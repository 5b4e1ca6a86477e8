"""Train a network on Lightning, and give back its best weights.

classifier, splits, config -> [Lightning: warm-up, clipping, early stopping, checkpoints] -> best weights

What of the classifier requires a gradient is trained: all of it, its adapters, or a head that hears
clips anew in every epoch.
"""

import contextlib
import logging
import os
import pickle
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from beats_trainer import errors
from beats_trainer.config import Config, settled
from beats_trainer.datasets import Splits, targets_of
from beats_trainer.errors import (
    AudioError,
    BEATsTrainerError,
    CheckpointNotFoundError,
    ConfigError,
    InvalidCheckpointError,
)
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

_DAMAGE = (RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError)
"""What reading half a checkpoint raises."""
_LOGGERS = ("lightning.pytorch", "lightning.fabric")


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
    with _quiet_lightning(), _ctrl_c_kept():
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=num_devices if num_devices > 1 or device.index is None else [device.index],
            strategy=_strategy(classifier, num_devices),
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
            plugins=[_AtomicCheckpointIO(run.last_checkpoint)],
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
                _raise_own(error)
            except ProcessExitedException as error:
                raise BEATsTrainerError(
                    f"A process of training is gone ({error}). What it said stands above; if it said nothing, "
                    "it may have run out of memory. A script that trains with training.devices above 1 does "
                    'what it does under the line: if __name__ == "__main__":'
                ) from error
            finally:
                module.restore_settings()
                _end_processes(trainer)
    # From the files, not from `module`: with several processes, others than this one have trained.
    last = _read_last(run)
    assert last is not None
    return _take_best(classifier, config, run, best, last, has_val, dtype)


def _read_last(run: RunFolder) -> dict[str, Any] | None:
    """The run's last checkpoint; ``None`` where it was broken off before there was one."""
    path = run.last_checkpoint
    return _read(path) if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"The run's best checkpoint, {path}, is gone. Put it back; or remove its folder, and the run "
            "starts anew when it is resumed."
        ) from error
    except _DAMAGE as error:
        raise InvalidCheckpointError(
            f"{path} is damaged ({type(error).__name__}). Remove its folder, and the run starts anew when it is resumed."
        ) from error
    return saved


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
    saved = _read(Path(best.best_model_path))
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
        callbacks.append(_QuietProcess())
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


class _AtomicCheckpointIO(TorchCheckpointIO):
    """A run that is killed while it saves keeps the checkpoint that it had, and the best one that this names.

    Args:
        last: The checkpoint that runs are resumed from.
    """

    def __init__(self, last: Path) -> None:
        super().__init__()
        self.last = last
        self._outdated: list[Any] = []

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        part = f"{path}.part"
        super().save_checkpoint(checkpoint, part, storage_options)
        os.replace(part, path)
        if Path(path) == self.last:
            for outdated in self._outdated:
                super().remove_checkpoint(outdated)
            self._outdated.clear()

    def remove_checkpoint(self, path: Any) -> None:
        if Path(path).parent == self.last.parent:
            self._outdated.append(path)  # until the last checkpoint names another
        else:
            super().remove_checkpoint(path)


class _QuietProcess(Callback):
    """Quiets Lightning in a process that it starts, which unpickles this before all else."""

    def __reduce__(self) -> "tuple[Callable[[], _QuietProcess], tuple[()]]":
        return _quiet_process, ()


def _quiet_process() -> _QuietProcess:
    _silence()
    shown = threading.excepthook

    def hide_closed_queues(failure: Any) -> None:
        # After Ctrl-C, the thread of a logger finds its queue closed.
        if not issubclass(failure.exc_type, OSError | EOFError):
            shown(failure)

    threading.excepthook = hide_closed_queues
    return _QuietProcess()


def _raise_own(error: ProcessRaisedException) -> NoReturn:
    """Raise what was raised in a process, where it is ours: torch hands over its text only."""
    found = list(re.finditer(r"^beats_trainer\.errors\.(\w+): ", error.msg, re.MULTILINE))
    if not found:
        raise error
    kind: type[BEATsTrainerError] = getattr(errors, found[-1][1])
    message = error.msg[found[-1].end() :].strip()
    if issubclass(kind, AudioError):
        file, _, reason = message.removeprefix("Cannot read audio from ").partition(": ")
        raise kind(file, reason) from error
    raise kind(message) from error


def _end_processes(trainer: L.Trainer) -> None:
    """After Ctrl-C, or an error in one of several processes, none of the others goes on."""
    processes = [p for p in getattr(trainer.strategy.launcher, "procs", ()) if p.is_alive()]
    # A terminal has sent Ctrl-C to them too; who has not heard of it is told, and then made to.
    for wait_s, number in ((1, signal.SIGINT), (5, getattr(signal, "SIGKILL", signal.SIGTERM))):
        for process in processes:
            process.join(wait_s)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)


@contextlib.contextmanager
def _ctrl_c_kept() -> Iterator[None]:
    """Lightning makes the process deaf to Ctrl-C once it was pressed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


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
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            _silence()
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _silence() -> None:
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
