"""The order of an epoch: all clips, or as many of each class; the same on one process and on several."""

import numpy as np
import pytest

from beats_trainer.training.sampling import epoch_order, rank_batches

RARE = np.eye(3, dtype=np.float32)[[0] * 80 + [1] * 15 + [2] * 5]


def test_each_clip_is_heard_once_in_an_order_of_the_seed():
    order = epoch_order(RARE, "all", seed=3)

    assert sorted(order) == list(range(100))
    assert (epoch_order(RARE, "all", seed=3) == order).all()
    assert (epoch_order(RARE, "all", seed=4) != order).any()


def test_balanced_sampling_hears_every_class_equally_often():
    order = epoch_order(RARE, "class_balanced", seed=0)

    heard = RARE[order].sum(axis=0)
    assert len(order) == 100
    assert heard.max() - heard.min() <= 1
    assert len(set(order[order < 80])) > 20  # not the same few clips


def test_clips_without_any_class_are_a_class_of_their_own_and_unknown_is_not_present():
    targets = np.array([[1, 0]] * 8 + [[np.nan, 0]] * 2, np.float32)

    order = epoch_order(targets, "class_balanced", seed=0)

    assert (order >= 8).sum() == 5


@pytest.mark.parametrize("num_clips", [8, 9, 13])
def test_processes_together_hear_each_batch_whole_and_no_clip_twice(num_clips):
    whole = rank_batches(num_clips, 4)
    shares = [rank_batches(num_clips, 4, rank, 2) for rank in range(2)]

    together = [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert together == whole
    assert [row for batch in whole for row in batch] == list(range(num_clips))


def test_an_unknown_way_of_sampling_is_refused():
    with pytest.raises(ValueError, match="Unknown sampling 'some'"):
        epoch_order(RARE, "some", 0)
