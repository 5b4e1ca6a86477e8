"""Hide random stretches of time and bands of mel from the network while it is trained.

waveforms -> fbank -> [spec_augment] -> encoder -> tokens

SpecAugment (Park et al. 2019, arXiv 1904.08779, section 2) without its time warp, by that paper not a major
factor. What is hidden becomes 0, the mean of the normalised filterbank.

Shapes in this file: B clips, F frames of 10 ms, N mel bands (128), M masks of one kind.
"""

import torch
from torch import Tensor

__all__ = ["spec_augment"]


def spec_augment(
    fbank: Tensor,
    frame_lengths: Tensor | None = None,
    *,
    num_time_masks: int = 0,
    max_time_fraction: float = 0.0,
    num_freq_masks: int = 0,
    max_freq_bins: int = 0,
    generator: torch.Generator,
) -> Tensor:
    """Set random stretches and bands of each clip to 0.

    Widths are uniform from 0 to the largest, each mask's place is uniform among those where it fits whole;
    masks may overlap. A stretch lies inside the clip's real frames, a band spans them all.

    Args:
        fbank: Normalised log-mel, shape ``(B, F, N)``.
        frame_lengths: Real frames per clip, shape ``(B,)``, each in ``1..F``; ``None`` means all.
        num_time_masks: Stretches per clip.
        max_time_fraction: Widest stretch, as a share of the clip's real frames, rounded down.
        num_freq_masks: Bands per clip.
        max_freq_bins: Widest band, in mel bands.
        generator: On the CPU. The same seed hides the same parts, on every device.

    Returns:
        Shape ``(B, F, N)``, a new tensor with the dtype and device of ``fbank``; padding is as it was.

    Raises:
        ValueError: If a setting is out of its range, or lengths do not fit.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> hidden = spec_augment(torch.ones(1, 100, 128), num_freq_masks=1, max_freq_bins=8,
        ...                       generator=generator)
        >>> int((hidden == 0).all(dim=1).sum()) <= 8
        True
    """
    if fbank.ndim != 3 or fbank.numel() == 0:
        raise ValueError(f"Expected fbank (batch, frames, bands), got {tuple(fbank.shape)}.")
    num_clips, num_frames, num_bins = fbank.shape
    if num_time_masks < 0 or num_freq_masks < 0:
        raise ValueError(
            f"The numbers of masks must be at least 0, not {num_time_masks} and {num_freq_masks}."
        )
    if not 0 <= max_time_fraction <= 1:
        raise ValueError(f"max_time_fraction must be from 0 to 1, not {max_time_fraction}.")
    if not 0 <= max_freq_bins <= num_bins:
        raise ValueError(f"max_freq_bins must be from 0 to {num_bins}, not {max_freq_bins}.")
    if frame_lengths is None:
        frames_B = torch.full((num_clips,), num_frames)
    else:
        frames_B = frame_lengths.to("cpu", torch.int64)
        if frames_B.shape != (num_clips,) or not bool(
            ((frames_B >= 1) & (frames_B <= num_frames)).all()
        ):
            raise ValueError(
                f"Expected {num_clips} frame lengths in 1..{num_frames}, got {frames_B.tolist()}."
            )
    widest_B = (frames_B.double() * max_time_fraction + 1e-9).long()  # 0.29 of 100 frames is 29
    bins_B = torch.full((num_clips,), num_bins)
    hidden_BF = _masks(num_frames, frames_B, widest_B, num_time_masks, generator)
    hidden_BN = _masks(
        num_bins, bins_B, bins_B.new_full((num_clips,), max_freq_bins), num_freq_masks, generator
    )
    real_BF = torch.arange(num_frames) < frames_B[:, None]
    hidden_BF, hidden_BN, real_BF = (m.to(fbank.device) for m in (hidden_BF, hidden_BN, real_BF))
    return fbank.masked_fill(
        hidden_BF[:, :, None] | (hidden_BN[:, None] & real_BF[:, :, None]), 0.0
    )


def _masks(
    size: int, lengths_B: Tensor, widest_B: Tensor, num_masks: int, generator: torch.Generator
) -> Tensor:
    """Where any of ``num_masks`` random intervals lies, shape ``(B, size)``, bool."""
    draws_2BM = torch.rand(2, len(lengths_B), num_masks, generator=generator, dtype=torch.float64)
    widths_BM = _up_to(widest_B[:, None], draws_2BM[0])
    starts_BM = _up_to(lengths_B[:, None] - widths_BM, draws_2BM[1])
    places = torch.arange(size)
    after_start = places >= starts_BM[..., None]
    return (after_start & (places < (starts_BM + widths_BM)[..., None])).any(dim=1)


def _up_to(largest: Tensor, draws: Tensor) -> Tensor:
    """Whole numbers from 0 to ``largest``, of draws that are uniform in 0..1."""
    return torch.minimum(((largest + 1) * draws).long(), largest)
