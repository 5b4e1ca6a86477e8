"""SpecAugment hides what its settings say, where there is sound, from the seed alone."""

import pytest
import torch

from beats_trainer.model import spec_augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def runs(hidden):
    """Lengths of the runs of True in a 1-D mask."""
    text = "".join("x" if value else " " for value in hidden.tolist())
    return [len(run) for run in text.split()]


def test_time_masks_lie_in_the_real_frames_and_have_every_width():
    fbank = torch.ones(600, 50, 4)
    frame_lengths = torch.tensor([50, 20] * 300)

    masked = spec_augment(
        fbank, frame_lengths, num_time_masks=1, max_time_fraction=0.2, generator=seeded()
    )

    hidden = (masked == 0).all(dim=2)
    assert torch.equal(hidden, (masked == 0).any(dim=2))
    for rows, num_frames, widest in ((hidden[::2], 50, 10), (hidden[1::2], 20, 4)):
        assert set(rows.sum(dim=1).tolist()) == set(range(widest + 1))
        assert all(len(runs(row)) <= 1 for row in rows)
        assert rows[:, :num_frames].any(dim=0).all()  # any frame may be hidden
        assert not rows[:, num_frames:].any()


def test_frequency_masks_span_all_real_frames_and_have_every_width():
    fbank = torch.ones(600, 9, 128)
    frame_lengths = torch.full((600,), 6)

    masked = spec_augment(
        fbank, frame_lengths, num_freq_masks=1, max_freq_bins=8, generator=seeded()
    )

    hidden = masked == 0
    assert torch.equal(hidden[:, :6].any(dim=1), hidden[:, :6].all(dim=1))
    assert not hidden[:, 6:].any()
    widths = hidden[:, 0].sum(dim=1)
    assert set(widths.tolist()) == set(range(9))
    counts = torch.bincount(widths).double()
    assert (counts - 600 / 9).abs().max() < 35  # uniform
    assert hidden[:, 0].any(dim=0).all()


def test_several_masks_are_independent():
    masked = spec_augment(
        torch.ones(200, 100, 128),
        num_time_masks=2,
        max_time_fraction=0.1,
        num_freq_masks=3,
        max_freq_bins=10,
        generator=seeded(),
    )

    hidden = masked == 0
    times, bands = hidden.all(dim=2), hidden.all(dim=1)
    assert torch.equal(hidden, times[:, :, None] | bands[:, None, :])
    assert max(len(runs(row)) for row in times) == 2
    assert max(len(runs(row)) for row in bands) == 3
    assert times.sum(dim=1).max() <= 20
    assert bands.sum(dim=1).max() <= 30
    assert len({tuple(row.tolist()) for row in times}) > 150  # clips differ


def test_the_result_is_new_seeded_and_of_the_same_kind():
    fbank = torch.randn(3, 40, 128, generator=seeded(9)).bfloat16()
    kept = fbank.clone()
    settings = {"num_time_masks": 1, "max_time_fraction": 0.5}

    first, again, other = (
        spec_augment(fbank, **settings, generator=seeded(seed)) for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(fbank, kept)
    assert first.dtype == torch.bfloat16
    unchanged = first != 0
    assert torch.equal(first[unchanged], fbank[unchanged])


def test_without_masks_the_values_stay():
    fbank = torch.randn(2, 16, 128, generator=seeded())

    result = spec_augment(fbank, generator=seeded())

    assert torch.equal(result, fbank)
    assert result is not fbank


def test_a_share_of_frames_is_rounded_down_and_not_by_its_last_bit():
    masked = spec_augment(
        torch.ones(2000, 100, 1), num_time_masks=1, max_time_fraction=0.29, generator=seeded()
    )

    assert (masked == 0).sum(dim=1).max() == 29  # 0.29 * 100 is 28.999... in floating point


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_time_masks": -1}, "numbers of masks"),
        ({"max_time_fraction": 1.5}, "from 0 to 1"),
        ({"max_freq_bins": 129}, "from 0 to 128"),
        ({"frame_lengths": torch.tensor([3, 11])}, r"in 1..10, got \[3, 11\]"),
        ({"frame_lengths": torch.tensor([3])}, "2 frame lengths"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        spec_augment(torch.ones(2, 10, 128), **settings, generator=seeded())


def test_a_filterbank_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="Expected fbank"):
        spec_augment(torch.ones(10, 128), generator=seeded())
