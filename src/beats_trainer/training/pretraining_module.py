"""The Lightning view of pre-training: steps, not epochs; each a function of the seed and its number alone.

(step, AudioBatch) -> objective -> [loss over all processes, optimiser, schedule] -> history

A step draws nothing from what came before it, so that a run which is resumed at a step goes on as an unbroken one.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import BEATsTrainerError
from beats_trainer.loading import AudioBatch
from beats_trainer.loading.archive import ArchiveStep
from beats_trainer.model.precision import fast_float32_products
from beats_trainer.training.objectives import Objective, StepOutput
from beats_trainer.training.optim import decays

__all__ = ["PretrainingModule", "StepPlan"]

_BETAS = (0.9, 0.98)  # as BEATs and OpenBEATs are pre-trained


@dataclass(frozen=True)
class StepPlan:
    """How steps are taken.

    Attributes:
        num_steps: Of the whole run.
        learning_rate: Its peak.
        warmup_ratio: Share of the steps over which it rises; it then falls to zero in a line.
        weight_decay: Of matrices and kernels.
        seed: Of dropout.
        log_every: Steps between two rows of the history.
        recomputes_layers: Whether layers keep their input only.
    """

    num_steps: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    seed: int
    log_every: int
    recomputes_layers: bool = False

    def rate_factor(self, step: int) -> float:
        """The learning rate of a step, as a share of its peak.

        Example:
            >>> plan = StepPlan(10, 1e-3, 0.2, 0.0, 0, 1)
            >>> [round(plan.rate_factor(step), 2) for step in (0, 1, 2, 6, 9)]
            [0.5, 1.0, 1.0, 0.5, 0.12]
        """
        num_warmup = round(self.warmup_ratio * self.num_steps)
        if step < num_warmup:
            return (step + 1) / num_warmup
        return max(0.0, (self.num_steps - step) / max(1, self.num_steps - num_warmup))


class PretrainingModule(L.LightningModule):
    """Train an objective for a number of steps.

    Args:
        objective: A module that is trained in place.
        plan: How.
        validate: Called with the step on every process, each ``plan.log_every`` steps at most; gives what is
            added to a row, or nothing.
        on_row: Called on the first process with all rows when there is a new one.

    Attributes:
        history: One row per ``log_every`` steps; travels in the checkpoint.
    """

    objective: Objective

    def __init__(
        self,
        objective: nn.Module,
        plan: StepPlan,
        validate: Callable[["PretrainingModule", int], dict[str, float]] | None = None,
        on_row: Callable[[list[dict[str, float]]], None] | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective  # type: ignore[assignment]
        self.plan = plan
        self.validate = validate
        self.on_row = on_row
        self.history: list[dict[str, float]] = []
        self._settings_of_process = contextlib.ExitStack()
        self._sums: dict[str, Tensor] = {}
        self._since = time.monotonic()

    def on_fit_start(self) -> None:
        """Say how layers are computed, and how float32 is multiplied, in this process."""
        for module in self.modules():
            if hasattr(module, "recomputes_layers"):
                module.recomputes_layers = self.plan.recomputes_layers  # type: ignore[assignment]
        is_float32 = self.trainer.precision == "32-true" and self.device.type == "cpu"
        self._settings_of_process.enter_context(fast_float32_products(is_float32))
        self._since = time.monotonic()

    def restore_settings(self) -> None:
        """Undo what training has set for the process, however it has ended."""
        self._settings_of_process.close()

    def training_step(self, batch: ArchiveStep, batch_idx: int) -> Tensor:
        """Return the loss of this process's share of a step, as a part of the mean over all of it."""
        place = (self.plan.seed, batch.step, min(batch.rows), self.trainer.global_rank)
        torch.manual_seed(
            int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]) % 2**63
        )
        output = self.objective(batch)
        num_items = output.num_items.float()
        if self.trainer.world_size > 1:  # so that every item counts the same, wherever it is
            num_items = self._summed(num_items) / self.trainer.world_size
        loss = output.loss_sum / num_items.clamp(min=1)
        self._add(output, batch.audio)
        return loss

    def _add(self, output: StepOutput, audio: AudioBatch) -> None:
        new = {
            "loss": output.loss_sum.detach().double(),
            "items": output.num_items.double(),
            "samples": audio.lengths.sum().double(),
            **output.sums,
        }
        for name, value in new.items():
            value = value.detach().to(self.device)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def write_row(self, step: int) -> None:
        """Add a row of the steps since the last one; every process must call this."""
        sums = {name: self._summed(value) for name, value in sorted(self._sums.items())}
        self._sums = {}
        num_items, now = float(sums["items"]), time.monotonic()
        loss = float(sums["loss"]) / max(1.0, num_items)
        if not math.isfinite(loss):
            raise BEATsTrainerError(
                f"The loss is {loss} at step {step}. Lower the learning rate ({self.plan.learning_rate:g}), or use "
                "precision='float32'. The run goes on from its last checkpoint."
            )
        heard_s = float(sums["samples"]) / SAMPLE_RATE
        row = {
            "step": float(step),
            "loss": loss,
            "lr": self.plan.learning_rate * self.plan.rate_factor(step - 1),
            **self.objective.summarize(sums, num_items),
            "heard_s": heard_s,
            "heard_s_per_s": heard_s / max(1e-9, now - self._since),
        }
        if self.validate is not None:
            row |= self.validate(self, step)
        self.objective.check(sums)
        self._since = time.monotonic()
        self.history.append(row)
        if self.on_row is not None and self.trainer.is_global_zero:
            self.on_row(self.history)

    def _summed(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.trainer.world_size == 1:
            return value
        summed = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser, and the schedule by step."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[decays(name, parameter)].append(parameter)
        optimizer = AdamW(
            [
                {"params": groups[True], "weight_decay": self.plan.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=self.plan.learning_rate,
            betas=_BETAS,
        )
        schedule = LambdaLR(optimizer, self.plan.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(
        self, batch: ArchiveStep, device: torch.device, dataloader_idx: int
    ) -> ArchiveStep:
        """Move a batch, which is a class of ours, to the device."""
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the history. Checkpoints are made where it has a new row: nothing is summed but not written."""
        assert not self._sums
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = list(checkpoint["history"])
