"""Masking: the right number of tokens, none of them padding, the same wherever a clip is drawn."""

import pytest
import torch

from beats_trainer.pretraining import choose_kept, mask_noise


@pytest.mark.parametrize(("length", "kept"), [(8, 2), (16, 4), (248, 62), (496, 124)])
def test_a_quarter_of_the_tokens_is_kept_in_the_order_of_time(length, kept):
    chosen = choose_kept(torch.rand(3, length))

    assert chosen.positions.shape == (3, kept)
    assert chosen.padded is None
    assert (chosen.positions.diff(dim=1) > 0).all()
    assert chosen.hidden.sum(dim=1).tolist() == [length - kept] * 3


def test_kept_and_hidden_tokens_together_are_all_real_ones():
    lengths = torch.tensor([40, 8, 24])
    chosen = choose_kept(torch.rand(3, 40), lengths)

    for row, length in enumerate(lengths.tolist()):
        real = ~chosen.padded[row]
        kept = set(chosen.positions[row][real].tolist())
        hidden = set(chosen.hidden[row].nonzero()[:, 0].tolist())
        assert len(kept) == round(0.25 * length)
        assert not kept & hidden
        assert kept | hidden == set(range(length))


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99])
def test_something_is_kept_and_something_hidden_whatever_the_ratio(ratio):
    chosen = choose_kept(torch.rand(2, 8), mask_ratio=ratio)

    assert chosen.positions.shape[1] >= 1
    assert (chosen.hidden.sum(dim=1) >= 1).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0, 75])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose_kept(torch.rand(1, 8), mask_ratio=ratio)


def test_each_token_is_as_likely_to_be_kept_as_any_other():
    noise = mask_noise(0, 0, range(2_000), 16)

    kept = (~choose_kept(noise).hidden).float().mean(dim=0)

    assert ((kept - 0.25).abs() < 0.05).all()


def test_a_clips_noise_depends_on_seed_step_and_its_number_alone():
    together = mask_noise(3, 5, [0, 1, 2], 24)

    assert torch.equal(together[1:2, :16], mask_noise(3, 5, [1], 16))
    assert not torch.equal(together[1], together[2])
    assert not torch.equal(together, mask_noise(3, 6, [0, 1, 2], 24))
    assert not torch.equal(together, mask_noise(4, 5, [0, 1, 2], 24))
