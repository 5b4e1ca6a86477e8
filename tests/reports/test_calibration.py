"""The temperature is the best one, and the calibration error is the one of the paper."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from beats_trainer.reports import fit_temperature, reliability


def random_clips(task, seed=0, factor=5.0, num_clips=300):
    """Logits that are `factor` times too sure of themselves."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (num_clips, 4))
    if task == "single":
        targets = np.array([rng.choice(4, p=row) for row in softmax(honest, axis=1)])
    else:
        targets = (rng.random(honest.shape) < expit(honest)).astype(float)
        targets[rng.random(honest.shape) < 0.2] = np.nan
    return factor * honest, targets


def loss_by_scipy(logits, targets, task, temperature):
    scaled = logits / temperature
    if task == "single":
        return -log_softmax(scaled, axis=1)[np.arange(len(targets)), targets].mean()
    known = ~np.isnan(targets)
    return np.logaddexp(0, np.where(targets == 1, -scaled, scaled))[known].mean()


@pytest.mark.parametrize("task", ["single", "multi"])
@pytest.mark.parametrize("factor", [0.3, 1.0, 8.0])
def test_the_temperature_equals_that_of_a_general_optimiser(task, factor):
    logits, targets = random_clips(task, factor=factor)

    fitted = fit_temperature(logits, targets, task)

    best = minimize_scalar(
        lambda t: loss_by_scipy(logits, targets, task, t),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fitted.value == pytest.approx(best.x, rel=1e-4)
    assert fitted.value == pytest.approx(factor, rel=0.25)  # it undoes what was done
    assert fitted.loss_after == pytest.approx(best.fun)
    assert fitted.loss_before == pytest.approx(loss_by_scipy(logits, targets, task, 1.0))
    assert not fitted.is_at_bound


@pytest.mark.parametrize("task", ["single", "multi"])
def test_scores_that_are_too_sure_are_calibrated_after(task):
    logits, targets = random_clips(task, num_clips=2000)

    fitted = fit_temperature(logits, targets, task)

    activate = expit if task == "multi" else lambda values: softmax(values, axis=1)
    after = reliability(activate(logits / fitted.value), targets, task)
    assert fitted.ece_after == pytest.approx(after.ece)
    assert fitted.ece_before == pytest.approx(reliability(activate(logits), targets, task).ece)
    assert fitted.ece_after < 0.03 < 0.1 < fitted.ece_before
    assert fitted.num_clips == 2000
    json.dumps(dataclasses.asdict(fitted), allow_nan=False)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_perfectly_separated_clips_stay_within_bounds_and_say_so(size):
    fitted = fit_temperature(size * np.eye(3), [0, 1, 2], "single")

    assert fitted.is_at_bound
    assert fitted.value == pytest.approx(0.05)
    assert np.isfinite([fitted.loss_before, fitted.loss_after, fitted.ece_after]).all()


def test_scores_that_are_worse_than_none_stay_within_bounds_and_say_so():
    fitted = fit_temperature(10 * np.eye(2), [1, 0], "single")

    assert fitted.is_at_bound
    assert fitted.value == pytest.approx(20)


@pytest.mark.parametrize(("task", "targets"), [("single", [0, 1]), ("multi", [[1, 0], [0, 0]])])
def test_equal_logits_need_no_temperature(task, targets):
    fitted = fit_temperature(np.zeros((2, 2)), targets, task)

    assert fitted.value == 1.0
    assert not fitted.is_at_bound


@pytest.mark.parametrize("task", ["single", "multi"])
def test_one_far_outlier_does_not_throw_the_fit_off(task):
    logits, targets = random_clips(task, num_clips=100)
    logits[0] = [1e4, -1e4, 0, 0]
    targets[0] = 1 if task == "single" else [0, 1, 0, 0]

    fitted = fit_temperature(logits, targets, task)

    assert fitted.loss_after <= min(
        loss_by_scipy(logits, targets, task, t) for t in np.geomspace(0.05, 20, 50)
    )


def test_unknown_labels_do_not_count_in_the_temperature():
    logits, targets = random_clips("multi")
    changed = np.where(np.isnan(targets), -7.0, logits)

    assert fit_temperature(logits, targets, "multi") == fit_temperature(changed, targets, "multi")


@pytest.mark.parametrize("task", ["single", "multi"])
def test_the_curve_equals_a_plain_loop_over_bins(task):
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), 200).round(2)  # some on the border of a bin
    probabilities[0] = [0, 0, 1]
    targets = rng.integers(3, size=200)
    if task == "single":
        confidence = probabilities.max(axis=1)
        is_right = probabilities.argmax(axis=1) == targets
    else:
        targets = np.eye(3)[targets]
        targets[:50, 0] = np.nan
        known = ~np.isnan(targets)
        confidence, is_right = probabilities[known], targets[known] == 1

    curve = reliability(probabilities, targets, task, num_bins=10)

    error = 0.0
    for index in range(10):
        low, high = curve.edges[index], curve.edges[index + 1]
        inside = (confidence > low) & (confidence <= high)
        if index == 0:
            inside |= confidence == 0
        assert curve.counts[index] == inside.sum()
        if inside.any():
            assert curve.confidence[index] == pytest.approx(confidence[inside].mean())
            assert curve.accuracy[index] == pytest.approx(is_right[inside].mean())
            error += inside.mean() * abs(confidence[inside].mean() - is_right[inside].mean())
        else:
            assert np.isnan(curve.confidence[index])
    assert curve.ece == pytest.approx(error)
    json.dumps(curve.to_dict(), allow_nan=False)


def test_no_bin_is_refused():
    with pytest.raises(ValueError, match="num_bins"):
        reliability([[0.5, 0.5]], [0], "single", num_bins=0)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="Logits must be finite"):
        fit_temperature([[np.inf, 0]], [0], "single")
