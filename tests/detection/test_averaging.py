"""Every moment has the mean of the windows that cover it, or the lowest, however they overlap and arrive."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.detection import OverlapAverage

RATE = 16_000


@st.composite
def windows(draw):
    """Windows on a grid of 1000 samples, in the order of their starts; of any lengths, with gaps."""
    count = draw(st.integers(0, 25))
    numbers = st.lists(st.integers(0, 40), min_size=count, max_size=count)
    starts = np.array(sorted(draw(numbers)), dtype=float) * 1000 / RATE
    lengths = draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    ends = starts + np.array(lengths, dtype=float) * 1000 / RATE
    scores = np.random.default_rng(draw(st.integers(0, 99))).random((count, 3))
    return starts, ends, scores


def average_in_pieces(starts, ends, scores, cuts, combine="mean"):
    average = OverlapAverage(combine)
    bounds = [0, *sorted(cuts), len(starts)]
    parts = [average.add(starts[a:b], ends[a:b], scores[a:b]) for a, b in pairwise(bounds)]
    parts.append(average.finish())
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return np.empty(0), np.empty(0), np.empty((0, 3))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@given(windows(), st.data(), st.sampled_from(["mean", "lowest"]))
def test_every_moment_has_the_mean_or_the_lowest_of_the_windows_that_cover_it(
    windows, data, combine
):
    starts, ends, scores = windows
    cuts = data.draw(st.lists(st.integers(0, len(starts)), max_size=6))
    expected = np.mean if combine == "mean" else np.min

    cell_starts, cell_ends, combined = average_in_pieces(starts, ends, scores, cuts, combine)

    assert (cell_ends > cell_starts).all()
    assert (cell_starts[1:] >= cell_ends[:-1]).all()
    for moment in (np.arange(55) + 0.5) * 1000 / RATE:
        covering = (starts <= moment) & (moment < ends)
        in_cell = (cell_starts <= moment) & (moment < cell_ends)
        assert in_cell.sum() == (1 if covering.any() else 0)
        if covering.any():
            np.testing.assert_allclose(combined[in_cell][0], expected(scores[covering], axis=0))
    assert set(cell_starts) | set(cell_ends) == set(starts) | set(ends)  # cut there, and only there


@given(windows(), st.data())
def test_cells_are_the_same_to_the_bit_however_the_windows_are_divided_into_calls(windows, data):
    cuts = data.draw(st.lists(st.integers(0, len(windows[0])), max_size=6))

    whole = average_in_pieces(*windows, [])
    in_pieces = average_in_pieces(*windows, cuts)

    for one, other in zip(whole, in_pieces, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_cell_is_given_as_soon_as_no_later_window_can_change_it():
    average = OverlapAverage()

    first = average.add([0.0], [10.0], [[0.2]])
    second = average.add([5.0], [15.0], [[0.4]])
    third = average.add([10.0], [20.0], [[0.6]])

    assert len(first[0]) == 0
    assert (second[0].tolist(), second[1].tolist()) == ([0.0], [5.0])
    assert (third[0].tolist(), third[1].tolist()) == ([5.0], [10.0])


def test_only_windows_that_later_ones_may_overlap_are_kept():
    average = OverlapAverage()
    for number in range(50):
        starts = 2.5 * (100 * number + np.arange(100))
        average.add(starts, starts + 10.0, np.zeros((100, 2)))

        assert len(average._pending.starts) == 4


def test_windows_with_the_same_score_have_exactly_that_mean():
    starts = np.arange(60) * 0.1
    score = np.float32(0.3)

    _, _, means = average_in_pieces(starts, starts + 1.0, np.full((60, 1), score), [7, 30])

    assert set(means[:, 0]) == {float(score)}  # else a threshold would be met here and missed there


def test_times_that_differ_by_rounding_are_one_cut():
    average = OverlapAverage()
    average.add([0.0, 0.1 + 0.2], [0.3, 0.6], [[1.0], [0.0]])

    starts, ends, means = average_in_pieces(
        np.array([0.0, 0.1 + 0.2]), np.array([0.3, 0.6]), np.array([[1.0], [0.0]]), [1]
    )

    assert starts.tolist() == [0.0, 0.3]
    assert ends.tolist() == [0.3, 0.6]
    assert means.tolist() == [[1.0], [0.0]]


def test_a_missing_window_leaves_a_gap_and_the_next_recording_starts_anew():
    average = OverlapAverage()
    average.add([0.0], [1.0], [[0.1]])
    starts, ends, _ = average.add([3.0], [4.0], [[0.2]])
    assert (starts.tolist(), ends.tolist()) == ([0.0], [1.0])
    average.finish()

    average.add([0.0], [1.0], [[0.7]])
    starts, ends, means = average.finish()

    assert (starts.tolist(), ends.tolist(), means.tolist()) == ([0.0], [1.0], [[0.7]])


def test_a_window_shorter_than_a_sample_is_a_cell():
    average = OverlapAverage()
    average.add([0.0], [1 / 384_000], [[0.5]])

    starts, ends, _ = average.finish()

    assert (starts.tolist(), ends.tolist()) == ([0.0], [1 / 384_000])


def test_windows_out_of_order_and_scores_that_are_no_numbers_are_refused():
    average = OverlapAverage()
    average.add([5.0], [6.0], [[0.1]])

    with pytest.raises(ValueError, match="order of their starts"):
        average.add([4.0], [6.0], [[0.1]])
    with pytest.raises(ValueError, match="1 scores per window"):
        average.add([6.0], [7.0], [[0.1, 0.2]])
    with pytest.raises(ValueError, match="finite"):
        average.add([6.0], [7.0], [[np.nan]])
    with pytest.raises(ValueError, match="above its start"):
        average.add([6.0], [6.0], [[0.1]])
    with pytest.raises(ValueError, match="shape"):
        average.add([6.0, 7.0], [7.0, 8.0], [[0.1]])
