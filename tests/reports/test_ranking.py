"""Average precision, ROC AUC and precision-recall points equal scikit-learn's, with ties and weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from beats_trainer.reports import precision_recall_points
from beats_trainer.reports.ranking import ClassRanking

# Few distinct scores, so that most clips tie.
RANKED = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40
)


@given(RANKED)
def test_ranking_equals_scikit_learn_with_ties_and_weights(rows):
    present = np.array([row[0] for row in rows])
    scores = np.array([row[1] / 6 for row in rows])
    weights = np.array([row[2] for row in rows], float)
    of_positives, of_negatives = weights[present].sum(), weights[~present].sum()

    (average_precision,), (roc_auc,) = ClassRanking(present, scores)(weights[:, None])

    if of_positives == 0 or of_negatives == 0:
        assert np.isnan([average_precision, roc_auc]).all()
    else:
        assert average_precision == pytest.approx(
            sklearn_metrics.average_precision_score(present, scores, sample_weight=weights)
        )
        assert roc_auc == pytest.approx(
            sklearn_metrics.roc_auc_score(present, scores, sample_weight=weights)
        )


def test_each_weighting_is_the_ranking_of_the_clips_repeated_that_often():
    rng = np.random.default_rng(0)
    present, scores = rng.random(30) < 0.3, rng.random(30).round(1)
    weights = rng.integers(0, 4, (30, 5))

    together = ClassRanking(present, scores)(weights.astype(float))

    for index, times in enumerate(weights.T):
        alone = ClassRanking(present.repeat(times), scores.repeat(times))(np.ones((times.sum(), 1)))
        np.testing.assert_allclose([value[index] for value in together], np.ravel(alone))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=40))
def test_precision_recall_points_equal_scikit_learn(rows):
    targets = np.array([row[0] for row in rows])
    scores = np.array([row[1] / 5 for row in rows])
    probabilities = np.column_stack([(1 - scores) / 2, scores, (1 - scores) / 2])

    ours = precision_recall_points(targets, probabilities, 1, "single")

    if (targets == 1).any():
        theirs = sklearn_metrics.precision_recall_curve(targets == 1, scores)
        for mine, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, their)
    else:
        assert [len(values) for values in ours] == [0, 0, 0]


def test_precision_recall_points_leave_unknown_clips_out():
    targets = np.array([[1.0, 0], [np.nan, 1], [0, 1], [1, 0]])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.5], [0.7, 0.5], [0.6, 0.5]])

    ours = precision_recall_points(targets, probabilities, 0, "multi")

    theirs = sklearn_metrics.precision_recall_curve([1, 0, 1], [0.9, 0.7, 0.6])
    for mine, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, their)


def test_a_class_that_does_not_exist_has_no_points():
    with pytest.raises(ValueError, match=r"no class 2.*0\.\.1"):
        precision_recall_points([0], [[0.5, 0.5]], 2, "single")
