"""Metrics of a whole split equal scikit-learn's, also for classes that are absent."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from beats_trainer.reports import classification_metrics

LABELS = ["ant", "bee", "cat", "dog", "eel"]


def random_split(seed, num_clips=40, classes=range(5)):
    rng = np.random.default_rng(seed)
    targets = rng.choice(np.array(classes), num_clips)
    return targets, rng.dirichlet(np.full(len(LABELS), 0.4), num_clips)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("classes", [range(5), (0, 3), (4,)])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_scikit_learn_with_classes_absent_from_the_targets(seed, classes):
    targets, probabilities = random_split(seed, classes=classes)
    predicted = probabilities.argmax(axis=1)

    ours = classification_metrics(targets, probabilities, LABELS)

    per_class = sklearn_metrics.precision_recall_fscore_support(
        targets, predicted, labels=range(5), zero_division=0
    )
    for mine, theirs in zip(
        (ours.precision, ours.recall, ours.f1, ours.support), per_class, strict=True
    ):
        np.testing.assert_allclose(mine, theirs)
    macro = sklearn_metrics.precision_recall_fscore_support(
        targets, predicted, average="macro", zero_division=0
    )
    np.testing.assert_allclose((ours.macro_precision, ours.macro_recall, ours.macro_f1), macro[:3])
    assert ours.accuracy == pytest.approx(sklearn_metrics.accuracy_score(targets, predicted))
    assert ours.balanced_accuracy == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(targets, predicted)
    )
    assert ours.loss == pytest.approx(
        sklearn_metrics.log_loss(targets, probabilities, labels=range(5))
    )
    np.testing.assert_array_equal(
        ours.confusion, sklearn_metrics.confusion_matrix(targets, predicted, labels=range(5))
    )


def test_classes_absent_from_the_predictions_count_as_never_found():
    ours = classification_metrics([0, 1, 1], np.eye(5)[[0, 0, 0]], LABELS)

    assert ours.recall.tolist() == [1, 0, 0, 0, 0]
    assert ours.macro_f1 == pytest.approx(0.25)  # of the two classes that occur: 0.5 and 0


def test_the_f1_of_a_split_is_not_the_mean_of_its_batches():
    targets, probabilities = random_split(7)
    whole = classification_metrics(targets, probabilities, LABELS).macro_f1

    batches = [
        classification_metrics(targets[i : i + 8], probabilities[i : i + 8], LABELS).macro_f1
        for i in range(0, 40, 8)
    ]

    assert np.mean(batches) != pytest.approx(whole, abs=1e-3)


def test_a_mistake_made_with_certainty_has_a_finite_loss():
    assert np.isfinite(classification_metrics([0], [[0.0, 1.0]], ["a", "b"]).loss)


def test_metrics_turn_into_plain_json_and_into_a_table():
    targets, probabilities = random_split(1)
    ours = classification_metrics(targets, probabilities, LABELS)

    plain = json.loads(json.dumps(ours.to_dict()))

    assert plain["per_class"]["ant"]["support"] == int((targets == 0).sum())
    assert np.sum(plain["confusion"]) == plain["num_clips"] == 40
    assert all(label in str(ours) for label in LABELS)
    assert ours.summary("test")["test_f1"] == ours.macro_f1


@pytest.mark.parametrize(
    ("targets", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "at least one"),
        ([0], np.zeros((1, 3)), "shape"),
        ([2], [[0.5, 0.5]], "0..1"),
        ([0.5], [[0.5, 0.5]], "whole numbers"),
        ([0], [[np.nan, 0.5]], "finite"),
    ],
)
def test_input_that_means_nothing_is_refused(targets, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(targets, probabilities, ["a", "b"])


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_and_roc_auc_equal_scikit_learn_one_class_against_the_rest(seed):
    targets, probabilities = random_split(seed)
    probabilities = probabilities.round(1)  # many clips have the same score
    one_hot = np.eye(5)[targets]

    ours = classification_metrics(targets, probabilities, LABELS)

    precisions = sklearn_metrics.average_precision_score(one_hot, probabilities, average=None)
    areas = sklearn_metrics.roc_auc_score(one_hot, probabilities, average=None)
    np.testing.assert_allclose(ours.average_precision, precisions)
    np.testing.assert_allclose(ours.roc_auc, areas)
    assert ours.mean_average_precision == pytest.approx(precisions.mean())
    assert ours.macro_roc_auc == pytest.approx(areas.mean())


def test_a_class_that_no_clip_has_does_not_count_in_map():
    ours = classification_metrics([0, 1, 1], np.eye(5)[[0, 1, 1]], LABELS)

    assert np.isnan(ours.average_precision[2:]).all()
    assert ours.mean_average_precision == ours.macro_roc_auc == 1.0


def test_what_is_undefined_is_left_out_of_the_log_and_null_in_json():
    ours = classification_metrics([0, 0], np.eye(5)[[0, 1]], LABELS)  # one class: nothing to rank

    plain = json.loads(json.dumps(ours.to_dict(), allow_nan=False))

    assert plain["mean_average_precision"] is None
    assert plain["per_class"]["ant"]["roc_auc"] is None
    summary = ours.summary("val")
    assert "val_map" not in summary
    assert "val_roc_auc" not in summary
    assert np.isfinite(list(summary.values())).all()
    assert "nan" not in str(ours)


def test_logits_in_place_of_probabilities_are_refused():
    with pytest.raises(ValueError, match="softmax"):
        classification_metrics([0], [[3.0, -1.0]], ["a", "b"])
