"""A head fitted on cached embeddings: what it learns, which epoch is kept, what is saved."""

import numpy as np
import pytest
import torch

from beats_trainer.errors import BEATsTrainerError
from beats_trainer.model import ClassifierHead
from beats_trainer.reports import classification_metrics
from beats_trainer.training.cached_head import embedding_logits, fit_cached_head
from beats_trainer.training.embedded import EmbeddedSplit
from beats_trainer.training.epochs import FitTask
from tones import resolved_training

LABELS = ["a", "b", "c"]


def blobs(seed, num_clips=60, width=12, spread=1.0, centre_seed=0):
    """Three clouds of points, far from the origin and of very different widths per dimension."""
    centres = np.random.default_rng(centre_seed).normal(size=(3, width))
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, num_clips)
    points = centres[targets] + spread * rng.normal(size=(num_clips, width))
    scales = 10.0 ** np.linspace(-3, 3, width)
    return EmbeddedSplit((points * scales + 50 * scales).astype(np.float32), targets)


def fit(train, val, head=None, **options):
    training = {"max_epochs": 30, "patience": 30} | options
    rate = training.pop("rate", 1e-2)
    seed = training.pop("seed", 0)
    task = training.pop("task", None)
    torch.manual_seed(0)
    head = head or ClassifierHead(train.embeddings.shape[1], 3)
    return fit_cached_head(
        head,
        train,
        val,
        LABELS,
        resolved_training(**training),
        learning_rate=rate,
        batch_size=16,
        seed=seed,
        task=task,
        progress=False,
    )


def measure(head, split):
    probabilities = torch.from_numpy(embedding_logits(head, split)).softmax(dim=-1)
    return classification_metrics(split.targets, probabilities.numpy(), LABELS)


@pytest.mark.parametrize("hidden_dims", [(), (16,)])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_fitted_head_reads_raw_embeddings_of_any_scale(hidden_dims, optimizer):
    head = ClassifierHead(12, 3, hidden_dims=hidden_dims)

    fitted = fit(blobs(1, spread=0.3), blobs(2, spread=0.3), head, optimizer=optimizer)

    unseen = measure(fitted.head, blobs(3, spread=0.3))
    assert unseen.accuracy > 0.95


def test_the_kept_weights_are_those_of_the_epoch_that_is_reported():
    val = blobs(2, num_clips=30)

    fitted = fit(blobs(1), val, rate=0.3)

    kept = fitted.history[fitted.best_epoch]
    measured = measure(fitted.head, val)
    assert measured.accuracy == kept["val_accuracy"] == fitted.best_score
    assert measured.loss == pytest.approx(kept["val_loss"], rel=1e-3)
    assert fitted.best_score == max(row["val_accuracy"] for row in fitted.history)


@pytest.mark.parametrize(("monitor", "choose"), [("val_f1", max), ("val_loss", min)])
def test_the_monitored_metric_is_improved_in_its_own_direction(monitor, choose):
    fitted = fit(blobs(1), blobs(2, num_clips=30), rate=0.3, monitor_metric=monitor)

    assert fitted.best_score == choose(row[monitor] for row in fitted.history)


def test_among_epochs_with_the_same_accuracy_the_one_with_the_least_loss_is_kept():
    fitted = fit(blobs(1, spread=0.1), blobs(2, spread=0.1), rate=1e-2)

    perfect = [row for row in fitted.history if row["val_accuracy"] == 1.0]
    assert len(perfect) > 1
    assert fitted.history[fitted.best_epoch]["val_loss"] == min(r["val_loss"] for r in perfect)


def test_training_stops_when_patience_is_over():
    noise = EmbeddedSplit(blobs(5).embeddings, np.random.default_rng(9).integers(0, 3, 60))

    fitted = fit(blobs(1), noise, max_epochs=200, patience=4, monitor_metric="val_loss")

    assert len(fitted.history) == fitted.best_epoch + 1 + 4


def test_without_validation_every_epoch_runs_and_the_last_is_kept():
    fitted = fit(blobs(1), None, max_epochs=7, patience=1)

    assert fitted.best_epoch == 6
    assert fitted.best_score is None
    assert set(fitted.history[0]) == {"epoch", "train_loss", "lr"}


def test_the_same_seed_gives_the_same_head_and_another_seed_another():
    first, again, other = (fit(blobs(1), blobs(2), seed=seed) for seed in (3, 3, 4))

    weights = [fitted.head.first_linear.weight for fitted in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.history == again.history


def test_torchs_own_generator_is_left_as_it_was():
    head = ClassifierHead(12, 3, dropout=0.5)
    before = torch.random.get_rng_state()
    fit_cached_head(
        head,
        blobs(1),
        None,
        LABELS,
        resolved_training(max_epochs=1),
        learning_rate=1e-3,
        batch_size=16,
        seed=0,
        progress=False,
    )

    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_dimension_that_is_constant_does_no_harm():
    train, val = blobs(1, spread=0.3), blobs(2, spread=0.3)
    for split in (train, val):
        split.embeddings[:, 0] = 0.1
        split.embeddings[:, 1] = 0.0

    fitted = fit(train, val)

    assert fitted.best_score > 0.95
    assert all(torch.isfinite(p).all() for p in fitted.head.parameters())


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_learning_rate():
    train = blobs(1)
    train.embeddings[0, 0] = np.nan

    with pytest.raises(BEATsTrainerError, match="learning_rate"):
        fit(train, None)


def test_any_number_of_classes_per_clip_is_learned_with_a_task_of_its_own():
    train, val = blobs(1, spread=0.3), blobs(2, spread=0.3)
    hot = [
        EmbeddedSplit(s.embeddings, np.eye(3, dtype=np.float32)[s.targets]) for s in (train, val)
    ]
    hot[0].targets[::4, 1] = np.nan

    def loss(logits, targets):
        known = ~targets.isnan()
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known])

    def hits(logits):
        return {"val_hits": float((logits.argmax(axis=1) == val.targets).mean())}

    fitted = fit(*hot, task=FitTask(loss, hits), monitor_metric="val_hits")

    assert fitted.best_score > 0.95
    logits = embedding_logits(fitted.head, hot[1])
    assert hits(logits)["val_hits"] == fitted.best_score
    with pytest.raises(ValueError, match="need a FitTask"):
        fit(*hot)
    with pytest.raises(ValueError, match=r"FitTask\.measure is None"):
        fit(*hot, task=FitTask(loss))


def test_targets_of_another_number_of_classes_are_refused():
    train = blobs(1)
    hot = EmbeddedSplit(train.embeddings, np.eye(5, dtype=np.float32)[train.targets])

    with pytest.raises(ValueError, match=r"\(clips, 3\), got float32 of shape \(60, 5\)"):
        fit(hot, None, task=FitTask())
