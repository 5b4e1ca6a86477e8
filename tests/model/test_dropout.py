"""Dropout: as many values as asked for, the mean kept, the same draws again, gradients where values are."""

import pytest
import torch

from beats_trainer.model.dropout import Dropout, drop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_that_is_asked_for_is_lost_and_the_others_make_up_for_it(dtype, probability):
    torch.manual_seed(0)
    values = torch.ones(300, 1001, dtype=dtype)

    dropped = drop(values, probability)

    assert dropped.dtype == dtype
    lost = float((dropped == 0).double().mean())
    assert lost == pytest.approx(probability, abs=5 * (0.25 / values.numel()) ** 0.5)
    assert float(dropped.max()) == pytest.approx(1 / (1 - probability), rel=1e-2)
    assert float(dropped.double().mean()) == pytest.approx(1, abs=0.02)


def test_neighbouring_values_are_lost_independently():
    torch.manual_seed(0)
    lost = (drop(torch.ones(4 * 50_000), 0.3) == 0).view(-1, 4).double()  # one draw each

    assert torch.corrcoef(lost.T).fill_diagonal_(0).abs().max() < 0.02
    assert (lost.mean(dim=0) - 0.3).abs().max() < 0.01


def test_a_seed_decides_what_is_lost():
    torch.manual_seed(3)
    first = drop(torch.ones(2, 99), 0.4)
    other = drop(torch.ones(2, 99), 0.4)
    torch.manual_seed(3)
    again = drop(torch.ones(2, 99), 0.4)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_gradients_pass_where_values_do():
    torch.manual_seed(0)
    values = torch.randn(5, 7).transpose(0, 1).requires_grad_()

    dropped = drop(values, 0.4)
    dropped.sum().backward()

    torch.testing.assert_close(values.grad * values, dropped)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 1.0), (1.0, 0.0), (1e-9, 1.0)])
def test_nothing_and_everything_can_be_lost(probability, expected):
    assert torch.equal(drop(torch.ones(9), probability), torch.full((9,), expected))


def test_the_module_drops_while_training_only():
    torch.manual_seed(0)
    dropout = Dropout(0.5)

    assert bool((dropout(torch.ones(100)) == 0).any())
    assert torch.equal(dropout.eval()(torch.ones(100)), torch.ones(100))
