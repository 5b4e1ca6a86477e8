"""Run an objective of pre-training on Lightning, and take it up where it was broken off.

objective, batches by step -> [Lightning: DDP, precision, clipping, checkpoints] -> trained objective, history
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from beats_trainer.errors import BEATsTrainerError
from beats_trainer.loading.archive import ArchiveStep
from beats_trainer.model.precision import resolve_precision
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
from beats_trainer.training.pretraining_module import PretrainingModule, StepPlan

__all__ = ["StageRun", "StepSource", "fit_objective"]

StepSource = Callable[[int, int, int], Iterator[ArchiveStep]]
"""Gives the batches from a step on: (first step, rank, number of processes) -> batches without end."""


@dataclass(frozen=True)
class StageRun:
    """How, where and how visibly a stage runs.

    Attributes:
        folder: Takes ``last.ckpt``.
        device: Where to train.
        devices: Processes that share out each step.
        precision: As `resolve_precision` takes it.
        gradient_clip: Largest norm of all gradients; ``None`` does not clip.
        accumulate: Batches of a step.
        checkpoint_every: Steps between two checkpoints.
        name: Of the stage, for the progress line.
        progress: Whether it is shown.
    """

    folder: Path
    device: torch.device
    devices: int
    precision: str
    gradient_clip: float | None
    accumulate: int
    checkpoint_every: int
    name: str
    progress: bool


def fit_objective(
    objective: nn.Module,
    source: StepSource,
    plan: StepPlan,
    stage: StageRun,
    *,
    validate: Callable[[PretrainingModule, int], dict[str, float]] | None = None,
    on_row: Callable[[list[dict[str, float]]], None] | None = None,
) -> list[dict[str, float]]:
    """Train an objective; from its last checkpoint on, if its folder has one.

    Args:
        objective: Is trained in place; on the CPU and in eval mode afterwards.
        source: Its batches.
        plan: How steps are taken.
        stage: Where.
        validate: See `PretrainingModule`.
        on_row: See `PretrainingModule`.

    Returns:
        The history, one row per ``plan.log_every`` steps.

    Raises:
        BEATsTrainerError: If the loss stops being finite, or a process of training is lost.
        CheckpointError: If the last checkpoint is damaged.
        CodebookCollapseError: If the codes have become all alike.
    """
    last = stage.folder / "last.ckpt"
    dtype = resolve_precision(stage.precision, stage.device)
    is_begun = last.is_file()
    saved = read_checkpoint(last) if is_begun else None
    if saved is None or int(saved["global_step"]) < plan.num_steps:
        module = PretrainingModule(objective, plan, validate, on_row)
        callbacks: list[Callback] = [
            _Rows(plan),
            ModelCheckpoint(
                dirpath=stage.folder,
                filename=last.stem,
                every_n_train_steps=stage.checkpoint_every,
                save_top_k=1,
                enable_version_counter=False,
            ),
            _LastStep(last),
        ]
        if stage.progress:
            callbacks.append(_ProgressLine(stage.name, plan.num_steps))
        if stage.devices > 1:
            callbacks.append(QuietProcess())
        several = stage.devices > 1 or stage.device.index is None
        with quiet_lightning(), ctrl_c_kept():
            trainer = L.Trainer(
                accelerator={"cuda": "gpu"}.get(stage.device.type, stage.device.type),
                devices=stage.devices if several else [int(stage.device.index)],
                strategy="ddp_spawn" if stage.devices > 1 else "auto",
                use_distributed_sampler=False,
                precision=lightning_precision(dtype, stage.device),
                max_steps=plan.num_steps,
                accumulate_grad_batches=stage.accumulate,
                gradient_clip_val=stage.gradient_clip,
                num_sanity_val_steps=0,
                limit_val_batches=0,
                callbacks=callbacks,
                logger=False,
                plugins=[AtomicCheckpointIO(last)],
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            module.train()
            fork = [stage.device] if stage.device.type == "cuda" else []
            with torch.random.fork_rng(devices=fork):
                try:
                    trainer.fit(
                        module,
                        datamodule=_Steps(source, stage.accumulate, stage.device.type == "cuda"),
                        ckpt_path=str(last) if is_begun else None,
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
                        f"A process of training is gone ({error}). What it said stands above; if it said "
                        "nothing, it may have run out of memory. The run goes on from its last checkpoint."
                    ) from error
                finally:
                    module.restore_settings()
                    end_processes(trainer)
        saved = read_checkpoint(last)
    # From the file, not from `module`: with several processes, others than this one have trained.
    prefix = "objective."
    objective.cpu().load_state_dict(
        {name.removeprefix(prefix): value for name, value in saved["state_dict"].items()}
    )
    objective.eval()
    history: list[dict[str, float]] = list(saved["history"])
    if on_row is not None:
        on_row(history)
    return history


class _Steps(L.LightningDataModule):
    """Batches from the step on that the trainer has reached."""

    def __init__(self, source: StepSource, accumulate: int, pin_memory: bool) -> None:
        super().__init__()
        self.source = source
        self.accumulate = accumulate
        self.pin_memory = pin_memory

    def train_dataloader(self) -> DataLoader[ArchiveStep]:
        assert self.trainer is not None
        stream = _Stream(
            self.source,
            self.trainer.global_step,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(stream, batch_size=None, pin_memory=self.pin_memory)


class _Stream(IterableDataset[ArchiveStep]):
    def __init__(self, source: StepSource, first: int, rank: int, num_ranks: int) -> None:
        self.source, self.first, self.rank, self.num_ranks = source, first, rank, num_ranks

    def __iter__(self) -> Iterator[ArchiveStep]:
        return self.source(self.first, self.rank, self.num_ranks)


class _Rows(Callback):
    """Write the history before a checkpoint is made of it."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self._written = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        step = trainer.global_step
        is_due = step % self.plan.log_every == 0 or step == self.plan.num_steps
        if is_due and step > 0 and step != self._written:
            self._written = step
            assert isinstance(pl_module, PretrainingModule)
            pl_module.write_row(step)


class _LastStep(Callback):
    """Save the end of the run, whatever its number."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step >= (trainer.max_steps or 0):
            trainer.save_checkpoint(self.path)


class _ProgressLine(Callback):
    """One line that tells how far the run is, how well it goes, and how long it will take."""

    def __init__(self, name: str, num_steps: int) -> None:
        self.name = name
        self.num_steps = num_steps
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=self.num_steps,
                initial=trainer.global_step,
                desc=self.name,
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        if self._bar is None:
            return
        self._bar.update(trainer.global_step - self._bar.n)
        assert isinstance(pl_module, PretrainingModule)
        if pl_module.history:
            self._bar.set_postfix_str(pl_module.objective.describe(pl_module.history[-1]))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
