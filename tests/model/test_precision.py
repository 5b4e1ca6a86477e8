"""Fast products in float32: only where they are exact, and the process's setting is as before."""

import pytest
import torch

from beats_trainer.model import precision
from beats_trainer.model.precision import fast_float32_products


def test_products_inside_are_exact_to_float32():
    generator = torch.Generator().manual_seed(0)
    values, weight = (torch.randn(300, 700, generator=generator) for _ in range(2))

    with fast_float32_products():
        product = values @ weight.T

    expected = values.double() @ weight.double().T
    assert float((product.double() - expected).norm() / expected.norm()) < 3e-6


def test_the_setting_is_as_before_also_after_an_error():
    with pytest.raises(KeyError), fast_float32_products():
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_where_products_are_rounded_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(precision, "_FLOAT32_ERROR", 0.0)  # as where they are rounded to bfloat16

    with fast_float32_products() as is_fast:
        assert not is_fast
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_setting_of_the_user_is_left_alone():
    torch.set_float32_matmul_precision("high")
    try:
        with fast_float32_products() as is_fast:
            assert not is_fast
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_it_does_nothing_where_it_is_not_wanted():
    with fast_float32_products(enabled=False) as is_fast:
        assert not is_fast
        assert torch.get_float32_matmul_precision() == "highest"
