"""The store of labels: whole, taken up where it was broken off, and only for what it was made of."""

import dataclasses

import numpy as np
import pytest
import torch

from beats_trainer.errors import StoreError, StoreMismatchError, StoreNotFoundError
from beats_trainer.model import RandomProjectionTokenizer
from beats_trainer.pretraining import LabelOrigin, LabelStore, crop_labels

ORIGIN = LabelOrigin("abc", 100, 16, 15.4, 6.5, 160_000, "def", 0)


def codes(*lengths):
    random = np.random.default_rng(0)
    return [random.integers(100, size=length) for length in lengths]


def test_codes_come_back_as_they_were(tmp_path):
    windows = codes(24, 8, 16)
    store = LabelStore.create(tmp_path / "labels", ORIGIN, 3, 24)
    store.add(windows[:2])
    store.add(windows[2:])

    read = LabelStore.open(tmp_path / "labels", ORIGIN)

    assert read.is_complete
    assert read.codes([2, 0], 16)[0].tolist() == windows[2].tolist()
    assert read.codes([2, 0], 16)[1].tolist() == windows[0][:16].tolist()
    assert read.codes([1], 8)[0].tolist() == windows[1].tolist()


def test_a_labelling_that_was_broken_off_goes_on_and_what_is_missing_is_an_error(tmp_path):
    windows = codes(8, 8, 8)
    LabelStore.create(tmp_path, ORIGIN, 3, 8).add(windows[:2])

    again = LabelStore.create(tmp_path, ORIGIN, 3, 8)
    with pytest.raises(StoreError, match="window 2 is wanted"):
        again.codes([0, 2], 8)
    assert again.num_done == 2
    again.add(windows[again.num_done :])

    assert again.is_complete
    np.testing.assert_array_equal(again.codes([0, 1, 2], 8), windows)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_sha256", "another"),
        ("input_patch_size", 32),
        ("fbank_mean", 15.3),
        ("window_samples", 80_000),
        ("archive_sha256", "another"),
        ("seed", 1),
    ],
)
def test_a_store_of_something_else_is_refused_and_the_difference_is_named(tmp_path, name, value):
    LabelStore.create(tmp_path, ORIGIN, 3, 8)

    with pytest.raises(StoreMismatchError, match=name) as raised:
        LabelStore.create(tmp_path, dataclasses.replace(ORIGIN, **{name: value}), 3, 8)

    assert [difference[0] for difference in raised.value.differences] == [name]


def test_what_is_no_store_or_a_damaged_one_says_so(tmp_path):
    with pytest.raises(StoreNotFoundError):
        LabelStore.open(tmp_path, ORIGIN)
    LabelStore.create(tmp_path, ORIGIN, 3, 8)
    (tmp_path / "labels.json").write_text("{")

    with pytest.raises(StoreError, match="damaged"):
        LabelStore.open(tmp_path, ORIGIN)


def test_codes_that_cannot_be_stored_are_refused(tmp_path):
    store = LabelStore.create(tmp_path / "a", ORIGIN, 1, 8)
    with pytest.raises(ValueError, match="codes up to 100"):
        store.add([np.full(8, 100)])
    with pytest.raises(ValueError, match="1 windows"):
        store.add(codes(8, 8))
    with pytest.raises(StoreError, match="65,536"):
        LabelStore.create(tmp_path / "b", dataclasses.replace(ORIGIN, num_codes=70_000), 1, 8)


def test_labels_of_a_part_are_those_that_the_part_itself_has(tmp_path):
    tokenizer = RandomProjectionTokenizer(num_codes=64, code_dim=16)
    waveform = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = tokenizer.encode(waveform).codes[0].numpy()

    for first, length in ((0, 16_000), (5 * 2_560, 16_000), (2_560, 2_800)):
        part = tokenizer.encode(waveform[:, first : first + length]).codes[0].numpy()
        np.testing.assert_array_equal(crop_labels(whole, first, length), part)


def test_a_part_that_starts_between_patches_or_ends_beyond_is_refused():
    with pytest.raises(ValueError, match="multiple of 2560"):
        crop_labels(np.arange(80), 1_000, 16_000)
    with pytest.raises(ValueError, match="the window has 10"):
        crop_labels(np.arange(80), 9 * 2_560, 16_000)
