"""From settings to the changes that training clips go through.

config.augmentation -> [WaveformAugmentation, spec_augment] -> batches of the training loader
"""

import functools
import os
from typing import Protocol

import torch
from torch import Tensor

from beats_trainer.config import Config
from beats_trainer.errors import ConfigError
from beats_trainer.loading import BackgroundLibrary, ClipChange, WaveformAugmentation
from beats_trainer.model import spec_augment

__all__ = ["FbankAugmentation", "augmentation_from"]


class FbankAugmentation(Protocol):
    """A change of the normalised filterbank: `spec_augment` with its settings filled in."""

    def __call__(
        self, fbank: Tensor, frame_lengths: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Return a changed ``(B, F, 128)``."""
        ...


def augmentation_from(
    config: Config, custom: ClipChange | None = None
) -> tuple[WaveformAugmentation | None, FbankAugmentation | None]:
    """Make what ``config.augmentation`` describes.

    Call it before training starts: it finds a missing folder or an unreadable file of background sound.

    Args:
        config: A valid config.
        custom: Changes the samples of each clip before all else; ``None`` for nothing.

    Returns:
        What changes a batch of waveforms, or ``None`` if nothing does; what changes their filterbank, or
        ``None``.

    Raises:
        ConfigError: If ``background_dir`` is no folder, or a setting is out of its range.
        AudioError: If it holds no audio, or files that cannot be read.

    Example:
        >>> augmentation_from(Config())
        (None, None)
    """
    settings = config.augmentation
    mask_fbank: FbankAugmentation | None = None
    if settings.masks_fbank:
        mask_fbank = functools.partial(
            spec_augment,
            num_time_masks=settings.num_time_masks,
            max_time_fraction=settings.max_time_mask,
            num_freq_masks=settings.num_freq_masks,
            max_freq_bins=settings.max_freq_mask,
        )
    if not settings.changes_waveforms and custom is None:
        return None, mask_fbank
    background = None
    if settings.background_dir is not None and settings.background_probability > 0:
        if not os.path.isdir(settings.background_dir):
            raise ConfigError(
                f"augmentation.background_dir is no folder: {os.path.abspath(settings.background_dir)}."
            )
        background = BackgroundLibrary(settings.background_dir)
    try:
        low, high = settings.background_snr_db
        change_waveforms = WaveformAugmentation(
            gain_db=settings.gain_db,
            roll=settings.roll,
            polarity=settings.polarity,
            mixup_alpha=settings.mixup_alpha,
            mixup_probability=settings.mixup_probability,
            background=background,
            background_snr_db=(low, high),
            background_probability=settings.background_probability,
            custom=custom,
        )
    except ValueError as error:
        raise ConfigError(f"augmentation: {error}") from error
    return change_waveforms, mask_fbank
