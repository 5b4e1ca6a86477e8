"""Metrics of clips with any number of classes equal scikit-learn's, and never count what is unknown."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from beats_trainer.reports import measure, multilabel_metrics, summary_names

LABELS = ["ant", "bee", "cat", "dog"]


def random_split(seed, num_clips=60, share_present=0.3):
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_clips, 4)) < share_present).astype(np.float32)
    return targets, (0.6 * rng.random((num_clips, 4)) + 0.4 * targets).round(2)


def summary_by_scikit_learn(targets, probabilities, cutoffs):
    decided = (probabilities >= cutoffs).astype(int)
    occurs = np.flatnonzero((targets + decided).any(axis=0))
    rankable = targets.any(axis=0) & ~targets.all(axis=0)
    rates = sklearn_metrics.precision_recall_fscore_support(
        targets, decided, labels=occurs, average="macro", zero_division=0
    )
    return {
        "loss": sklearn_metrics.log_loss(targets.ravel(), probabilities.ravel(), labels=[0, 1]),
        "map": sklearn_metrics.average_precision_score(
            targets[:, rankable], probabilities[:, rankable], average="macro"
        ),
        "roc_auc": sklearn_metrics.roc_auc_score(targets[:, rankable], probabilities[:, rankable]),
        "precision": rates[0],
        "recall": rates[1],
        "f1": rates[2],
        "micro_f1": sklearn_metrics.f1_score(targets, decided, average="micro", zero_division=0),
        "accuracy": sklearn_metrics.accuracy_score(targets, decided),
    }


@pytest.mark.parametrize("absent", [[], [2], [0, 3]])
@pytest.mark.parametrize("thresholds", [None, {"bee": 0.7, "dog": 0.35}])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn_with_classes_that_no_clip_has(seed, thresholds, absent):
    targets, probabilities = random_split(seed)
    targets[:, absent] = 0
    probabilities[:, absent[:1]] = 0.01  # neither present nor predicted
    cutoffs = np.array([(thresholds or {}).get(label, 0.5) for label in LABELS])

    ours = multilabel_metrics(targets, probabilities, LABELS, thresholds)

    expected = summary_by_scikit_learn(targets, probabilities, cutoffs)
    assert set(expected) == set(summary_names("multi"))
    assert ours.summary("test") == {
        f"test_{name}": pytest.approx(value) for name, value in expected.items()
    }
    decided = probabilities >= cutoffs
    np.testing.assert_array_equal(
        ours.confusion, sklearn_metrics.multilabel_confusion_matrix(targets, decided)
    )
    per_class = sklearn_metrics.precision_recall_fscore_support(targets, decided, zero_division=0)
    for mine, theirs in zip(
        (ours.precision, ours.recall, ours.f1, ours.support), per_class, strict=True
    ):
        np.testing.assert_allclose(mine, theirs)


@settings(max_examples=50)
@given(st.data())
def test_each_class_equals_scikit_learn_over_its_known_clips(data):
    value = st.sampled_from([0.0, 1.0, np.nan])
    rows = data.draw(st.lists(st.tuples(value, value), min_size=1, max_size=25))
    targets = np.array(rows)
    score = st.integers(0, 8).map(lambda step: step / 8)
    scores = np.array([[data.draw(score), data.draw(score)] for _ in rows])
    if np.isnan(targets).all():
        with pytest.raises(ValueError, match="nothing to measure"):
            multilabel_metrics(targets, scores, ["a", "b"])
        return

    ours = multilabel_metrics(targets, scores, ["a", "b"])

    for index in range(2):
        known = ~np.isnan(targets[:, index])
        truth, score_of_class = targets[known, index], scores[known, index]
        assert ours.unknown[index] == (~known).sum()
        assert ours.support[index] == truth.sum()
        assert ours.absent[index] == (truth == 0).sum()
        np.testing.assert_array_equal(
            ours.confusion[index],
            sklearn_metrics.confusion_matrix(truth, score_of_class >= 0.5, labels=[0, 1])
            if known.any()
            else np.zeros((2, 2)),
        )
        if 0 < truth.sum() < len(truth):
            assert ours.average_precision[index] == pytest.approx(
                sklearn_metrics.average_precision_score(truth, score_of_class)
            )
            assert ours.roc_auc[index] == pytest.approx(
                sklearn_metrics.roc_auc_score(truth, score_of_class)
            )
        else:
            assert np.isnan([ours.average_precision[index], ours.roc_auc[index]]).all()


def test_the_score_of_an_unknown_entry_changes_no_number():
    targets, probabilities = random_split(3)
    targets[::3, 1] = np.nan
    targets[5] = np.nan
    other = np.where(np.isnan(targets), 1 - probabilities, probabilities)

    before = multilabel_metrics(targets, probabilities, LABELS)
    after = multilabel_metrics(targets, other, LABELS)

    assert before.to_dict() == after.to_dict()


def test_a_clip_counts_as_right_if_all_that_is_known_of_it_is():
    targets = [[1, np.nan], [1, 0], [np.nan, np.nan], [0, 1]]
    probabilities = [[0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.1, 0.9]]

    ours = multilabel_metrics(targets, probabilities, ["a", "b"])

    assert ours.accuracy == pytest.approx(2 / 3)  # the clip of which nothing is known is left out
    assert ours.num_clips == 4


def test_metrics_turn_into_plain_json_and_into_a_table():
    targets, probabilities = random_split(1)
    targets[:, 2] = 0
    ours = multilabel_metrics(targets, probabilities, LABELS, {"bee": 0.25})

    plain = json.loads(json.dumps(ours.to_dict(), allow_nan=False))

    assert plain["per_class"]["cat"]["average_precision"] is None
    assert plain["per_class"]["bee"]["threshold"] == 0.25
    assert np.sum(plain["confusion"]) == plain["num_clips"] * 4 == 240
    assert all(label in str(ours) for label in LABELS)
    assert "nan" not in str(ours)


def test_a_split_without_any_positive_has_a_finite_summary():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = multilabel_metrics(np.zeros((3, 2)), np.full((3, 2), 0.2), ["a", "b"]).summary(
            "v"
        )

    assert summary["v_f1"] == summary["v_micro_f1"] == 0
    assert "v_map" not in summary


@pytest.mark.parametrize(
    ("targets", "probabilities", "thresholds", "message"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), None, "at least one"),
        ([1, 0], [[0.5, 0.5], [0.5, 0.5]], None, r"\(clips, 2\)"),
        ([[0.5, 0]], [[0.5, 0.5]], None, "one is 0.5"),
        ([[np.nan, np.nan]], [[0.5, 0.5]], None, "nothing to measure"),
        ([[1, 0]], [[2.0, -1.0]], None, "sigmoid"),
        ([[1, 0]], [[0.5, np.nan]], None, "finite"),
        ([[1, 0]], [[0.5, 0.5]], {"c": 0.5}, "'c'"),
        ([[1, 0]], [[0.5, 0.5]], {"a": np.nan}, "finite numbers"),
    ],
)
def test_input_that_means_nothing_is_refused(targets, probabilities, thresholds, message):
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(targets, probabilities, ["a", "b"], thresholds)


def test_measure_goes_by_the_task():
    one_class = measure("single", [0, 1], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"])
    any_classes = measure("multi", [[1, 0], [1, 1]], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"])

    assert set(one_class.summary("val")) == {f"val_{name}" for name in summary_names("single")}
    assert any_classes.accuracy == 0.5
    for unknown in (measure, lambda task, *_: summary_names(task)):
        with pytest.raises(ValueError, match="'both'"):
            unknown("both", [0], [[1.0]], ["a"])
