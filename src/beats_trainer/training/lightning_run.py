"""How Lightning is run here: quietly, with checkpoints that are whole, and errors that are ours.

[Lightning's Trainer] -> what `fit.py` and `pretraining_fit.py` share
"""

import contextlib
import logging
import os
import pickle
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch.multiprocessing.spawn import ProcessRaisedException

from beats_trainer import errors
from beats_trainer.errors import (
    AudioError,
    BEATsTrainerError,
    CheckpointNotFoundError,
    ConfigError,
    InvalidCheckpointError,
)

__all__ = [
    "AtomicCheckpointIO",
    "QuietProcess",
    "ctrl_c_kept",
    "end_processes",
    "lightning_precision",
    "quiet_lightning",
    "raise_own",
    "read_checkpoint",
]

_DAMAGE = (RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError)
"""What reading half a checkpoint raises."""
_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run, and say so if it is gone or damaged."""
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


class AtomicCheckpointIO(TorchCheckpointIO):
    """A run that is killed while it saves keeps the checkpoint that it had, and the best one that this names.

    Args:
        last: The checkpoint that runs are resumed from.
    """

    def __init__(self, last: Path) -> None:
        super().__init__()
        self.last = last
        self._outdated: list[Any] = []

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Write beside it, and rename."""
        part = f"{path}.part"
        super().save_checkpoint(checkpoint, part, storage_options)
        os.replace(part, path)
        if Path(path) == self.last:
            for outdated in self._outdated:
                super().remove_checkpoint(outdated)
            self._outdated.clear()

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, now or when the last one names another."""
        if Path(path).parent == self.last.parent:
            self._outdated.append(path)  # until the last checkpoint names another
        else:
            super().remove_checkpoint(path)


class QuietProcess(Callback):
    """Quiets Lightning in a process that it starts, which unpickles this before all else."""

    def __reduce__(self) -> "tuple[Callable[[], QuietProcess], tuple[()]]":
        return _quiet_process, ()


def _quiet_process() -> QuietProcess:
    _silence()
    shown = threading.excepthook

    def hide_closed_queues(failure: Any) -> None:
        # After Ctrl-C, the thread of a logger finds its queue closed.
        if not issubclass(failure.exc_type, OSError | EOFError):
            shown(failure)

    threading.excepthook = hide_closed_queues
    return QuietProcess()


def raise_own(error: ProcessRaisedException) -> NoReturn:
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


def end_processes(trainer: L.Trainer) -> None:
    """After Ctrl-C, or an error in one of several processes, none of the others goes on."""
    processes = [p for p in getattr(trainer.strategy.launcher, "procs", ()) if p.is_alive()]
    # A terminal has sent Ctrl-C to them too; who has not heard of it is told, and then made to.
    for wait_s, number in ((1, signal.SIGINT), (5, getattr(signal, "SIGKILL", signal.SIGTERM))):
        for process in processes:
            process.join(wait_s)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)


@contextlib.contextmanager
def ctrl_c_kept() -> Iterator[None]:
    """Lightning makes the process deaf to Ctrl-C once it was pressed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def lightning_precision(dtype: torch.dtype, device: torch.device) -> Any:
    """The name that Lightning has for a number format."""
    if dtype == torch.float16 and device.type != "cuda":
        raise ConfigError(
            f"training.precision='float16' needs a CUDA device to train, not {device.type}: gradients "
            "underflow without its loss scaling. Use 'auto', 'bfloat16' or 'float32'."
        )
    return {torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}.get(dtype, "32-true")


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
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
