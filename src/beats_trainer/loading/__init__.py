"""Inputs -> clips -> batches of waveforms: windows, reading ahead, batches of like length, loaders, augmentation."""

from beats_trainer.loading.augment import ClipChange, WaveformAugmentation
from beats_trainer.loading.background import BackgroundLibrary
from beats_trainer.loading.batches import (
    MOST_POOLED,
    POOL_BATCHES,
    AudioBatch,
    collate_waveforms,
    length_sorted_batches,
)
from beats_trainer.loading.clips import Clip, plan_windows
from beats_trainer.loading.inputs import find_clips
from beats_trainer.loading.reader import read_ahead, read_into_memory
from beats_trainer.loading.training import ClipDataset, make_data_loader

__all__ = [
    "MOST_POOLED",
    "POOL_BATCHES",
    "AudioBatch",
    "BackgroundLibrary",
    "Clip",
    "ClipChange",
    "ClipDataset",
    "WaveformAugmentation",
    "collate_waveforms",
    "find_clips",
    "length_sorted_batches",
    "make_data_loader",
    "plan_windows",
    "read_ahead",
    "read_into_memory",
]
