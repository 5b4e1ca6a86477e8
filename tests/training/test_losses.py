"""Losses: equal to torch's own and to the papers' formulas, for soft, several and unknown labels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from beats_trainer.config import TrainingConfig
from beats_trainer.training.losses import (
    ClassificationLoss,
    activation_of,
    class_weights,
    soft_targets,
)


@pytest.fixture
def logits():
    return 2 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def several():
    """Any number of labels per clip."""
    return torch.randint(2, (7, 4), generator=torch.Generator().manual_seed(1)).float()


def one_hot(ids=(0, 1, 2, 3, 1, 1, 2)):
    return torch.from_numpy(soft_targets(np.array(ids), 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_own_with_and_without_smoothing(logits, smoothing):
    loss = ClassificationLoss("cross_entropy", "softmax", label_smoothing=smoothing)

    expected = F.cross_entropy(logits, one_hot().argmax(1), label_smoothing=smoothing)

    torch.testing.assert_close(loss(logits, one_hot()), expected)


def test_cross_entropy_takes_mixed_targets(logits):
    mixed = 0.3 * one_hot() + 0.7 * one_hot().flip(0)

    loss = ClassificationLoss("cross_entropy", "softmax")(logits, mixed)

    torch.testing.assert_close(loss, F.cross_entropy(logits, mixed))


def test_bce_is_torchs_own(logits, several):
    loss = ClassificationLoss("bce", "sigmoid")(logits, several)

    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, several))


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric"])
def test_an_unknown_label_changes_no_loss_and_gives_no_gradient(logits, several, name):
    unknown = several.clone()
    unknown[:, 2] = torch.nan
    logits.requires_grad_()

    loss = ClassificationLoss(name, "sigmoid")(logits, unknown)
    loss.backward()

    known = [0, 1, 3]
    without = ClassificationLoss(name, "sigmoid")(logits[:, known], several[:, known])
    torch.testing.assert_close(loss, without)
    assert (logits.grad[:, 2] == 0).all()
    assert (logits.grad[:, known] != 0).any()


def test_a_clip_of_which_nothing_is_known_counts_for_nothing(logits, several):
    several[3] = torch.nan

    per_clip = ClassificationLoss("bce", "sigmoid").per_clip(logits, several)

    assert per_clip[3] == 0
    assert torch.isfinite(per_clip).all()


def test_the_focal_loss_is_the_papers_over_softmax_and_over_sigmoid(logits, several):
    gamma = 1.5
    probs = logits.softmax(1)[range(7), one_hot().argmax(1)]
    of_one = (-((1 - probs) ** gamma) * probs.log()).mean()
    p_t = torch.where(several == 1, logits.sigmoid(), 1 - logits.sigmoid())
    of_any = (-((1 - p_t) ** gamma) * p_t.log()).mean()

    softmax = ClassificationLoss("focal", "softmax", focal_gamma=gamma)(logits, one_hot())
    sigmoid = ClassificationLoss("focal", "sigmoid", focal_gamma=gamma)(logits, several)

    torch.testing.assert_close(softmax, of_one)
    torch.testing.assert_close(sigmoid, of_any)


def test_the_asymmetric_loss_is_the_papers_and_ignores_absent_classes_that_are_easy(
    logits, several
):
    probs = logits.sigmoid()
    shifted = (probs - 0.05).clamp(min=0)
    formula = torch.where(several == 1, -probs.log(), -(shifted**4) * (1 - shifted).log())

    loss = ClassificationLoss("asymmetric", "sigmoid")
    easy = loss(torch.full((1, 1), -4.0), torch.zeros(1, 1))

    torch.testing.assert_close(loss(logits, several), formula.mean())
    assert easy == 0


def test_weights_turn_the_loss_to_rare_classes(logits):
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])

    loss = ClassificationLoss("cross_entropy", "softmax", weights=weights)
    per_clip = loss.per_clip(logits, one_hot())

    plain = ClassificationLoss("cross_entropy", "softmax").per_clip(logits, one_hot())
    torch.testing.assert_close(per_clip, plain * weights[one_hot().argmax(1)])


def test_class_weights_are_the_papers_and_leave_the_mean_of_a_label_at_one():
    counts = np.array([1000.0, 100.0, 10.0])
    beta = 0.999
    effective = (1 - beta) / (1 - beta**counts)

    weights = class_weights(counts, "effective")

    np.testing.assert_allclose(weights / weights[0], effective / effective[0])
    for how in ("effective", "inverse"):
        assert (class_weights(counts, how) * counts).sum() / counts.sum() == pytest.approx(1)
    inverse = class_weights(counts, "inverse")
    np.testing.assert_allclose(inverse / inverse[0], [1, 10, 100])


def test_the_loss_of_a_batch_is_the_mean_over_its_parts(logits, several):
    several[0, 1] = several[5, 3] = torch.nan
    loss = ClassificationLoss("bce", "sigmoid", weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))

    parts = (3 * loss(logits[:3], several[:3]) + 4 * loss(logits[3:], several[3:])) / 7

    torch.testing.assert_close(loss(logits, several), parts)


@pytest.mark.parametrize(
    ("loss", "task", "activation"),
    [
        ("cross_entropy", "single", "softmax"),
        ("focal", "single", "softmax"),
        ("bce", "single", "sigmoid"),
        ("focal", "multi", "sigmoid"),
        ("asymmetric", "multi", "sigmoid"),
    ],
)
def test_each_loss_has_the_activation_that_its_scores_need(loss, task, activation):
    assert activation_of(loss, task) == activation
    ClassificationLoss(loss, activation)


@pytest.mark.parametrize(
    ("name", "activation"), [("cross_entropy", "sigmoid"), ("bce", "softmax"), ("l2", "softmax")]
)
def test_a_loss_that_does_not_fit_is_refused(name, activation):
    with pytest.raises(ValueError, match=name):
        ClassificationLoss(name, activation)


def test_the_weights_come_from_the_training_clips():
    settings = TrainingConfig(loss_function="bce", class_weights="inverse")
    targets = np.array([[1, 0], [1, 0], [1, np.nan], [0, 1]], np.float32)

    loss = ClassificationLoss.from_config(settings, "sigmoid", targets)

    assert float(loss.weights[1] / loss.weights[0]) == pytest.approx(3)
