"""Feed Lightning from the splits: loaders of audio batches, the same order whenever an epoch is run.

splits -> Clip, target -> [loaders] -> (AudioBatch, targets) -> ClassifierModule

Shapes in this file: N clips, B clips of a batch, C classes.
"""

import os

import lightning as L
import numpy as np
import pandas as pd
from lightning.pytorch.loops.progress import _ProcessedTracker
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from beats_trainer.config import Config, settled
from beats_trainer.datasets import Splits, targets_of
from beats_trainer.embeddings.encode import DEFAULT_WINDOW_S
from beats_trainer.loading import Clip, ClipDataset, make_data_loader, read_into_memory
from beats_trainer.training.embedded import clips_of
from beats_trainer.training.losses import soft_targets
from beats_trainer.training.sampling import epoch_order, rank_batches

__all__ = ["SplitsDataModule"]


class SplitsDataModule(L.LightningDataModule):
    """Training and validation loaders of one run.

    The training loader is made anew for each epoch, seeded by the epoch, so that a run that is resumed
    in epoch ``n`` sees the clips in the order, and cut as, an unbroken run would have. Several processes
    share out each batch of the one order, so that together they see what one process would.

    Args:
        splits: Which clips are for what.
        config: Batch size, sampling, workers, longest clip, seed.
        pin_memory: For faster copies to a GPU.
    """

    def __init__(self, splits: Splits, config: Config, pin_memory: bool = False) -> None:
        super().__init__()
        self.splits = splits
        self.config = config
        self.pin_memory = pin_memory
        self._waveforms: dict[Clip, NDArray[np.float32]] = {}

    def setup(self, stage: str) -> None:
        """Decode all clips once, if they fit into memory: later epochs then only cut them."""
        tables = ((self.splits.train, None), (self.splits.val, DEFAULT_WINDOW_S))
        clips = list(
            dict.fromkeys(clip for table, most in tables for clip in clips_of(table, most))
        )
        threads = max(1, min(self.config.data.num_workers, os.cpu_count() or 1))
        budget = int(self.config.data.cache_audio_gb * 1e9)
        self._waveforms = read_into_memory(clips, budget, threads) or {}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Load the training clips in this epoch's order, with targets ``(B, C)``."""
        assert self.trainer is not None
        # `trainer.current_epoch` lags behind here when a run is resumed.
        progress = self.trainer.fit_loop.epoch_progress.current
        assert isinstance(progress, _ProcessedTracker)
        seed = (self.config.seed + progress.processed) % 2**32
        targets = self._targets(self.splits.train)
        # Ordered here and not by the loader: Lightning starts some epochs' loaders twice, which would
        # draw another order.
        order = epoch_order(targets, self.config.training.sampling, seed)
        table = self.splits.train.iloc[order]
        crop_s = self.config.data.max_duration_s
        return self._load(ClipDataset(self._sources(clips_of(table)), targets[order], crop_s, seed))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Load the validation clips; of recordings longer than a window, the first window.

        These scores only choose the best epoch. What is reported is measured on whole recordings.
        """
        table = self.splits.val
        clips = self._sources(clips_of(table, DEFAULT_WINDOW_S))
        return self._load(ClipDataset(clips, self._targets(table)))

    def _sources(self, clips: list[Clip]) -> list[Clip | NDArray[np.float32]]:
        return [self._waveforms.get(clip, clip) for clip in clips]

    def _targets(self, table: pd.DataFrame) -> NDArray[np.float32]:
        num_classes = len(self.splits.labels)
        return soft_targets(targets_of(table, num_classes, self.splits.task), num_classes)

    def _load(self, dataset: ClipDataset) -> DataLoader[tuple[Tensor, Tensor]]:
        assert self.trainer is not None
        batch_size = settled(self.config.data.batch_size)
        batches = rank_batches(
            len(dataset), batch_size, self.trainer.global_rank, self.trainer.world_size
        )
        return make_data_loader(
            dataset,
            batch_size,
            batches=[rows or [0] for rows in batches],  # a clip that will count for nothing
            # More processes than cores only wait for one another; what is in memory needs none.
            num_workers=0
            if self._waveforms
            else min(self.config.data.num_workers, os.cpu_count() or 1),
            seed=self.config.seed,
            pin_memory=self.pin_memory,
        )
