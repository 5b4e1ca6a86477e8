"""Bootstrap intervals equal those of a plain loop over resamples, and know recordings from clips."""

import time

import numpy as np
import pytest

from beats_trainer.reports import bootstrap_intervals, measure, summary_names
from beats_trainer.reports.intervals import (
    _draw,
    _number_groups,
    _resampled_multi,
    _resampled_single,
)
from beats_trainer.reports.ranking import sort_classes
from beats_trainer.reports.scores import check_probabilities

LABELS = ["ant", "bee", "cat", "dog"]


def random_split(task, seed=0, num_clips=50):
    rng = np.random.default_rng(seed)
    if task == "single":
        targets = rng.integers(4, size=num_clips)
        probabilities = 0.7 * rng.dirichlet(np.ones(4), num_clips) + 0.3 * np.eye(4)[targets]
        return targets, probabilities
    targets = (rng.random((num_clips, 4)) < [0.5, 0.3, 0.05, 0.0]).astype(float)
    probabilities = (0.5 * rng.random((num_clips, 4)) + 0.3 * targets).round(1)
    targets[rng.random((num_clips, 4)) < 0.2] = np.nan
    targets[7] = np.nan
    return targets, probabilities


@pytest.mark.parametrize("task", ["single", "multi"])
def test_every_resample_has_the_metrics_of_its_clips_copied_out(task):
    targets, probabilities = random_split(task)
    data = check_probabilities(task, targets, probabilities, 4)
    classes = sort_classes(data)
    cutoffs = {"ant": 0.3, "bee": 0.6}

    (weights,) = _draw(np.arange(50), 20, seed=3)
    resampled = (
        _resampled_single(data, classes, weights)
        if task == "single"
        else _resampled_multi(data, classes, np.array([0.3, 0.6, 0.5, 0.5]), weights)
    )

    assert set(resampled) == set(summary_names(task))
    for index in range(20):
        drawn = np.arange(50).repeat(weights[:, index].astype(int))
        one = measure(task, targets[drawn], probabilities[drawn], LABELS, cutoffs).summary("x")
        for name, values in resampled.items():
            assert values[index] == pytest.approx(one.get(f"x_{name}", np.nan), nan_ok=True)


def test_the_interval_is_that_of_a_plain_loop_with_other_random_numbers():
    targets, probabilities = random_split("single", num_clips=120)
    rng = np.random.default_rng(99)
    loop = []
    for _ in range(1500):
        drawn = rng.integers(120, size=120)
        loop.append(measure("single", targets[drawn], probabilities[drawn], LABELS).macro_f1)

    interval = bootstrap_intervals("single", targets, probabilities, LABELS, num_resamples=1500)

    low, high = np.percentile(loop, [2.5, 97.5])
    ours = interval["f1"]
    assert (ours.low, ours.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert ours.low < ours.value < ours.high


def test_the_interval_of_accuracy_has_the_width_of_a_binomial():
    is_right = np.arange(400) < 300
    probabilities = np.where(is_right[:, None], [0.9, 0.1], [0.1, 0.9])

    accuracy = bootstrap_intervals("single", np.zeros(400, int), probabilities, ["a", "b"])[
        "accuracy"
    ]

    deviation = np.sqrt(0.75 * 0.25 / 400)
    assert accuracy.value == 0.75
    assert accuracy.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.006)
    assert accuracy.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.006)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_values_are_those_of_the_summary(task):
    targets, probabilities = random_split(task)

    intervals = bootstrap_intervals(task, targets, probabilities, LABELS, num_resamples=20)

    summary = measure(task, targets, probabilities, LABELS).summary("all")
    assert {f"all_{name}": interval.value for name, interval in intervals.items()} == summary


def test_ten_copies_of_each_clip_tell_no_more_than_the_clips_if_they_are_grouped():
    targets, probabilities = random_split("single")
    copies = targets.repeat(10), probabilities.repeat(10, axis=0)
    recordings = np.arange(50).repeat(10).astype(str)

    once = bootstrap_intervals("single", targets, probabilities, LABELS)["accuracy"]
    by_clip = bootstrap_intervals("single", *copies, LABELS)["accuracy"]
    by_group = bootstrap_intervals("single", *copies, LABELS, groups=recordings)["accuracy"]

    assert by_group.high - by_group.low == pytest.approx(once.high - once.low, rel=0.15)
    assert by_clip.high - by_clip.low < 0.5 * (once.high - once.low)


def test_clips_of_one_group_are_drawn_together_and_clips_without_one_alone():
    groups = _number_groups(["b", "a", None, "b", float("nan")], 5)

    (weights,) = _draw(groups, 200, seed=0)

    np.testing.assert_array_equal(weights[0], weights[3])
    assert len(set(groups)) == 4
    assert (weights[2] != weights[4]).any()
    np.testing.assert_array_equal(weights[[0, 1, 2, 4]].sum(axis=0), np.full(200, 4))


def test_one_group_has_no_interval():
    targets, probabilities = random_split("single")

    assert bootstrap_intervals("single", targets, probabilities, LABELS, groups=["x"] * 50) == {}


def test_undefined_metrics_have_no_interval():
    intervals = bootstrap_intervals("multi", np.zeros((5, 2)), np.full((5, 2), 0.2), ["a", "b"])

    assert "loss" in intervals
    assert not {"map", "roc_auc"} & set(intervals)


def test_the_seed_alone_decides_and_more_confidence_is_wider():
    split = ("multi", *random_split("multi"), LABELS)

    first, again = bootstrap_intervals(*split, seed=5), bootstrap_intervals(*split, seed=5)
    other = bootstrap_intervals(*split, seed=6)
    narrow = bootstrap_intervals(*split, seed=5, confidence=0.5)

    assert first == again != other
    assert first["map"].low < narrow["map"].low <= narrow["map"].high < first["map"].high


def test_a_thousand_resamples_of_two_thousand_clips_and_fifty_classes_take_seconds():
    rng = np.random.default_rng(0)
    targets, probabilities = rng.integers(50, size=2000), rng.dirichlet(np.ones(50), 2000)
    start = time.process_time()

    bootstrap_intervals("single", targets, probabilities, [str(i) for i in range(50)])

    assert time.process_time() - start < 15  # half a second where nothing else runs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_resamples": 0}, "num_resamples=0"),
        ({"confidence": 95}, "confidence=95"),
        ({"groups": ["a"]}, "one group per clip"),
        ({"thresholds": {"yak": 0.5}}, "yak"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals("multi", *random_split("multi"), LABELS, **settings)
