"""A threshold is the best there is, stands clear of the scores, and says when it is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve, precision_score

from beats_trainer.reports import fit_thresholds, multilabel_metrics

SPLITS = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=30).filter(
    lambda rows: any(present for present, _ in rows)
)


def fit(present, scores, **settings):
    return fit_thresholds(
        np.array(present, float)[:, None], np.array(scores)[:, None], ["a"], "multi", **settings
    )["a"]


@given(SPLITS)
def test_no_threshold_has_a_better_f1_by_scikit_learn(rows):
    present, scores = np.array(rows, float).T
    scores /= 9

    threshold = fit(present, scores)

    found = f1_score(present, scores >= threshold, zero_division=0)
    best = max(f1_score(present, scores >= cutoff, zero_division=0) for cutoff in scores)
    assert found == pytest.approx(best)


@settings(max_examples=50)
@given(SPLITS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@pytest.mark.filterwarnings("ignore:No threshold reaches")
def test_the_target_precision_is_reached_by_the_lowest_threshold_that_can(rows, target):
    present, scores = np.array(rows, float).T
    scores /= 9

    threshold = fit(present, scores, target_precision=target)

    found = precision_score(present, scores >= threshold)
    precision = precision_recall_curve(present, scores)[0][:-1]
    if precision.max() >= target:
        assert found >= target
        lower = {cutoff for cutoff in scores if cutoff < threshold}
        assert all(precision_score(present, scores >= cutoff) < target for cutoff in lower)
    else:
        assert found == pytest.approx(precision.max())


def test_a_threshold_is_the_middle_between_the_scores_that_it_parts():
    assert fit([1, 1, 0, 0], [0.9, 0.8, 0.4, 0.1]) == pytest.approx(0.6)
    assert fit([1, 1], [0.9, 0.8]) == pytest.approx(
        0.4
    )  # every clip has it: between 0 and the last


def test_a_threshold_parts_scores_that_no_number_lies_between():
    below, above = 0.5, np.nextafter(0.5, 1)

    threshold = fit([0, 1], [below, above])

    assert below < threshold <= above


def test_a_threshold_is_one_class_against_the_others_where_clips_have_one():
    targets = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.3, 0.4, 0.3], [0.1, 0.5, 0.4]])

    single = fit_thresholds(targets, probabilities, ["a", "b", "c"], "single")

    assert single == fit_thresholds(np.eye(3)[targets], probabilities, ["a", "b", "c"], "multi")
    assert single["a"] == pytest.approx(0.4)


def test_unknown_clips_do_not_count():
    targets = np.array([1, np.nan, 0, 0])

    assert fit(targets, [0.9, 0.95, 0.3, 0.1]) == fit([1, 0, 0], [0.9, 0.3, 0.1])


def test_fitted_thresholds_are_what_the_metrics_take():
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 2)) < 0.3).astype(float)
    probabilities = 0.3 * rng.random((80, 2)) + 0.1 * targets

    thresholds = fit_thresholds(targets, probabilities, ["a", "b"], "multi")

    before = multilabel_metrics(targets, probabilities, ["a", "b"]).macro_f1
    after = multilabel_metrics(targets, probabilities, ["a", "b"], thresholds).macro_f1
    assert after > before == 0


def test_a_class_that_no_clip_has_keeps_one_half_and_is_named():
    with pytest.warns(UserWarning, match="No clip has 'b'"):
        thresholds = fit_thresholds([[1, 0], [0, 0]], [[0.9, 0.1], [0.2, 0.1]], ["a", "b"], "multi")

    assert thresholds["b"] == 0.5


def test_a_precision_that_no_threshold_reaches_names_the_class():
    with pytest.warns(UserWarning, match=r"precision of 0\.9 for 'a'"):
        threshold = fit([0, 1, 1, 0], [0.9, 0.8, 0.7, 0.2], target_precision=0.9)

    assert threshold == pytest.approx(0.45)  # two of three right, the most there is


@pytest.mark.parametrize("precision", [0, 1.5, 95, np.nan])
def test_a_target_precision_that_is_none_is_refused(precision):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        fit([1], [0.5], target_precision=precision)
