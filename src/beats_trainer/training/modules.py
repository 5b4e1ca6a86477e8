"""The Lightning view of a classifier: augmentation, loss, whole-split metrics, optimiser, history.

AudioBatch, targets -> [augment -> front end -> augment] -> classifier -> logits -> [loss, metrics] -> history

Shapes in this file: B clips, N clips of a split, C classes.
"""

import contextlib
import math
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from beats_trainer.config import Config, settled
from beats_trainer.datasets import Task
from beats_trainer.errors import BEATsTrainerError
from beats_trainer.loading import AudioBatch, WaveformAugmentation
from beats_trainer.model import BEATsClassifier
from beats_trainer.model.classifier import apply_activation
from beats_trainer.model.precision import fast_float32_products
from beats_trainer.reports import measure
from beats_trainer.training.augmentation import FbankAugmentation
from beats_trainer.training.losses import ClassificationLoss
from beats_trainer.training.optim import make_optimizer, make_scheduler, parameter_groups
from beats_trainer.training.sampling import rank_batches

__all__ = ["ClassifierModule"]


class ClassifierModule(L.LightningModule):
    """Train what of a classifier requires a gradient.

    Hyper-parameters are saved as plain YAML types only: a checkpoint that holds an object of ours could
    not be resumed with ``weights_only=True``.

    Args:
        classifier: Is trained in place.
        config: Learning rate, optimiser, schedule, seed, what is recomputed; resolved.
        loss: What is minimised.
        num_clips: Training and validation clips; several processes share them out.
        task: ``"single"`` or ``"multi"``.
        augment_waveforms: Changes a training batch before the front end.
        augment_fbank: Changes it after.

    Attributes:
        history: One row per finished epoch; travels in the checkpoint, so that a resumed run has all.
    """

    def __init__(
        self,
        classifier: BEATsClassifier,
        config: Config,
        loss: ClassificationLoss,
        num_clips: tuple[int, int],
        task: Task = "single",
        augment_waveforms: WaveformAugmentation | None = None,
        augment_fbank: FbankAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.config = config
        self.loss = loss
        self.num_train_clips, self.num_val_clips = num_clips
        self.task: Task = task
        self.augment_waveforms = augment_waveforms
        self.augment_fbank = augment_fbank
        self.history: list[dict[str, float]] = []
        self._settings_of_process = contextlib.ExitStack()
        self._loss_sum = torch.zeros(())
        self._val_outputs: list[tuple[Tensor, Tensor]] = []
        self._val_row: dict[str, float] = {}
        self.save_hyperparameters({"config": config.to_dict(), "labels": list(classifier.labels)})

    def on_fit_start(self) -> None:
        """Say how layers are computed, and how float32 is multiplied, in this process."""
        self.classifier.beats.encoder.recomputes_layers = (
            self.config.training.gradient_checkpointing
        )
        is_float32 = self.trainer.precision == "32-true" and self.device.type == "cpu"
        self._settings_of_process.enter_context(fast_float32_products(is_float32))

    def restore_settings(self) -> None:
        """Undo what training has set for the network and the process, however it has ended."""
        self.classifier.beats.encoder.recomputes_layers = False
        self._settings_of_process.close()

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, and forget the last one's loss."""
        # Dropout and layer drop depend on the epoch alone: a resumed run goes on as an unbroken one.
        torch.manual_seed(self.config.seed + 1 + self.current_epoch)
        self._loss_sum = torch.zeros((), device=self.device)

    def training_step(self, batch: tuple[AudioBatch, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch, or of this process's share of it."""
        audio, targets = batch
        generator = self._generator(batch_idx)
        waveforms, lengths = audio.waveforms, audio.lengths
        if self.augment_waveforms is not None:
            waveforms, lengths, targets = self.augment_waveforms(
                waveforms, lengths, targets, generator
            )
        beats = self.classifier.beats
        fbank, frame_lengths = beats.front_end(waveforms, lengths)
        if self.augment_fbank is not None:
            fbank = self.augment_fbank(fbank, frame_lengths, generator=generator)
        with torch.set_grad_enabled(not self.classifier.is_backbone_frozen):
            output = beats.encode_fbank(
                fbank,
                frame_lengths=frame_lengths,
                output_layers=self.classifier.attentive_pooling is not None,
            )
        logits = self.classifier.head(self.classifier.pool(output))
        loss = self.loss(logits, targets) * self._share(batch_idx, self.num_train_clips)
        whole = min(self._batch_size, self.num_train_clips - batch_idx * self._batch_size)
        self._loss_sum += loss.detach() * whole / self.trainer.world_size
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: tuple[AudioBatch, Tensor], batch_idx: int) -> None:
        """Keep a batch's logits until the whole split has been seen."""
        audio, targets = batch
        logits = self.classifier(audio.waveforms, audio.lengths).logits
        if self._share(batch_idx, self.num_val_clips) > 0:
            self._val_outputs.append((logits.float(), targets))

    def on_validation_epoch_end(self) -> None:
        """Measure the whole split."""
        num_classes = self.classifier.head.num_classes
        nothing = torch.zeros(0, num_classes, device=self.device)
        logits = torch.cat([nothing, *(logits for logits, _ in self._val_outputs)])
        targets = torch.cat([nothing, *(targets for _, targets in self._val_outputs)])
        self._val_outputs.clear()
        if self.trainer.world_size > 1:
            logits, targets = self._gather(logits), self._gather(targets)
        if not bool(torch.isfinite(logits).all()):
            raise BEATsTrainerError(
                f"The network gives values that are not finite after epoch {self.current_epoch}. "
                "Lower training.learning_rate, or use training.precision='float32'."
            )
        scores = apply_activation(logits.cpu().double(), self.classifier.activation)
        truth = targets.cpu().numpy()
        metrics = measure(
            self.task,
            truth.argmax(axis=1).astype(np.int64) if self.task == "single" else truth,
            scores.numpy(),
            self.classifier.labels,
        )
        self._val_row = metrics.summary("val")
        self.log_dict(self._val_row, prog_bar=False, rank_zero_only=False)

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row of the history."""
        total = self._loss_sum
        if self.trainer.world_size > 1:
            gathered = self.all_gather(total)
            assert isinstance(gathered, Tensor)
            total = gathered.sum()
        train_loss = float(total) / max(1, self.num_train_clips)
        if not math.isfinite(train_loss):
            raise BEATsTrainerError(
                f"The training loss is {train_loss} in epoch {self.current_epoch}. Lower "
                f"training.learning_rate ({self.config.resolved_learning_rate():g}), or use "
                "training.precision='float32'."
            )
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        row = {"epoch": self.current_epoch, "train_loss": train_loss, "lr": float(rate)}
        self.history.append(row | self._val_row)
        self._val_row = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser with its layer-wise rates, and the schedule by step."""
        architecture = self.classifier.beats.architecture
        training = self.config.training
        learning_rate = self.config.resolved_learning_rate()
        groups = parameter_groups(
            self.classifier,
            learning_rate,
            settled(training.weight_decay),
            settled(training.layer_decay),
            architecture.encoder_layers,
            architecture.layer_norm_first,
        )
        optimizer = make_optimizer(groups, training, learning_rate)
        num_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = max(1, num_steps // settled(training.max_epochs))
        schedule = make_scheduler(optimizer, training, num_steps, steps_per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def transfer_batch_to_device(
        self, batch: tuple[AudioBatch, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[AudioBatch, Tensor]:
        """Move a batch, which is a class of ours, to the device."""
        audio, targets = batch
        return audio.to(device), targets.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the history, and whether it ends here: Lightning does not, and would go on."""
        checkpoint["history"] = self.history
        last_epoch = settled(self.config.training.max_epochs) - 1
        # Early stopping has decided by now: Lightning saves checkpoints after all other callbacks.
        checkpoint["is_complete"] = self.trainer.should_stop or self.current_epoch >= last_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = list(checkpoint["history"])

    @property
    def _batch_size(self) -> int:
        return settled(self.config.data.batch_size)

    def _generator(self, batch_idx: int) -> torch.Generator:
        """Of the random changes to a batch: by seed, epoch, batch and process alone."""
        place = (self.config.seed, self.current_epoch, batch_idx, self.trainer.global_rank)
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
        return torch.Generator().manual_seed(seed % 2**63)

    def _share(self, batch_idx: int, num_clips: int) -> float:
        """How much this process's mean counts, such that the mean over processes is the batch's."""
        world_size = self.trainer.world_size
        if world_size == 1:
            return 1.0
        whole = min(self._batch_size, num_clips - batch_idx * self._batch_size)
        rows = rank_batches(whole, self._batch_size, self.trainer.global_rank, world_size)
        return len(rows[0]) * world_size / whole

    def _gather(self, rows: Tensor) -> Tensor:
        """Every process's rows, in the order of the clips; processes hold equally many, or one less."""
        world_size = self.trainer.world_size
        most = -(-self.num_val_clips // world_size)
        # Batches are dealt out clip by clip: short shares of a last batch are at the end.
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
        gathered = self.all_gather(padded)
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).reshape(-1, rows.shape[1])[: self.num_val_clips]
