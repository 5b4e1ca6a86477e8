"""Cached tokens: what they hold, what is fitted on them, and that it is what the live network would learn."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from beats_trainer.errors import AudioError, ConfigError
from beats_trainer.loading import Clip
from beats_trainer.model import AttentivePooling, BEATs, BEATsClassifier, ClassifierHead
from beats_trainer.reports import classification_metrics
from beats_trainer.training import attentive as module
from beats_trainer.training.attentive import (
    TokenFeatures,
    cache_tokens,
    estimate_token_bytes,
    fit_cached_attentive,
)
from beats_trainer.training.cached_head import embedding_logits, fit_cached_head
from beats_trainer.training.epochs import FitTask
from checkpoint_files import tiny_architecture
from sounds import tone, write_tone
from tones import resolved_training

LABELS = ["a", "b", "c"]
WIDTH = 32


def make_classifier(num_classes=3, activation="softmax"):
    torch.manual_seed(0)
    beats = BEATs(tiny_architecture(encoder_layerdrop=0.5)).train()
    return BEATsClassifier(
        beats,
        ClassifierHead(WIDTH, num_classes),
        LABELS[:num_classes],
        activation,
        pooling="attentive",
        attentive_pooling=AttentivePooling.for_architecture(beats.architecture),
    )


def needles(seed, num_clips=96):
    """Clips of noise in which two tokens of one layer tell the class: a mean over all drowns them."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, num_clips)
    tells = np.random.default_rng(0).normal(size=(3, WIDTH))
    mark = 3.0 * np.random.default_rng(1).normal(size=WIDTH)
    tokens = []
    for target in targets:
        num_tokens = rng.integers(20, 30)
        clip = rng.normal(size=(3, num_tokens, WIDTH))
        clip[1, rng.choice(num_tokens, 2, replace=False)] += mark + 2.0 * tells[target]
        tokens.append(AttentivePooling.norm_layers(torch.from_numpy(clip)).to(torch.float16))
    return TokenFeatures(tokens, targets)


def fit(train, val, classifier=None, seed=0, task=None, rate=3e-2, **training):
    settings = {"max_epochs": 25, "patience": 25} | training
    return fit_cached_attentive(
        classifier or make_classifier(),
        train,
        val,
        resolved_training(**settings),
        learning_rate=rate,
        batch_size=8,
        seed=seed,
        task=task,
        progress=False,
    )


# --- the cache ---------------------------------------------------------------------------------------------


def mixed_clips(tmp_path):
    path = write_tone(tmp_path / "a.wav", seconds=3.0, sample_rate=22_050)
    return [tone(0.05), str(path), Clip(str(path), 0.5, 1.2), Clip(str(path), 2.5, 9.0), tone(2.0)]


def test_the_estimate_is_what_the_cache_takes(tmp_path):
    classifier, clips = make_classifier(), mixed_clips(tmp_path)

    (cached,) = cache_tokens(
        classifier.beats, [clips], [np.zeros(5, np.int64)], budget_bytes=10**9, progress=False
    )

    assert cached.num_bytes == estimate_token_bytes(clips, classifier.beats.architecture)
    assert [tokens.dtype for tokens in cached.tokens] == [torch.float16] * 5


def test_more_than_the_budget_is_not_cached_and_nothing_is_encoded(tmp_path, monkeypatch):
    classifier, clips = make_classifier(), mixed_clips(tmp_path)
    needed = 2 * estimate_token_bytes(clips, classifier.beats.architecture)
    monkeypatch.setattr(module, "encode_clips", None)
    splits, targets = [clips, clips], [np.zeros(5, np.int64)] * 2

    assert cache_tokens(classifier.beats, splits, targets, budget_bytes=needed - 1) is None


@pytest.mark.parametrize("chunk_bytes", [1, 40_000, 2**30])
def test_cached_tokens_pool_as_the_live_network_in_any_chunks(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
    classifier, clips = make_classifier(), [tone(s, 300 * (i + 1)) for i, s in enumerate([1, 3, 2])]
    for parameter in classifier.attentive_pooling.parameters():
        torch.nn.init.normal_(parameter, std=2.0)

    train, val = cache_tokens(
        classifier.beats,
        [clips[:2], clips[2:]],
        [np.array([0, 1]), np.array([2])],
        budget_bytes=10**9,
        batch_size=2,
        precision="float32",
        progress=False,
    )

    assert classifier.beats.training  # as it was
    classifier.eval()
    embeddings = [*train.embed(classifier.attentive_pooling).embeddings]
    embeddings += [*val.embed(classifier.attentive_pooling).embeddings]
    for clip, embedding in zip(clips, embeddings, strict=True):
        with torch.no_grad():
            live = classifier(torch.from_numpy(clip)[None]).embeddings[0]
        np.testing.assert_allclose(embedding, live.numpy(), atol=5e-3)  # float16 between
    assert [*train.targets, *val.targets] == [0, 1, 2]


def test_a_recording_that_cannot_be_read_is_named_before_anything_is_encoded(tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")

    with pytest.raises(AudioError, match=r"bad\.wav"):
        cache_tokens(make_classifier().beats, [[tone(1.0), bad]], [np.zeros(2)], budget_bytes=10**9)
    with pytest.raises(ValueError, match="got 1 for 2 clips"):
        cache_tokens(make_classifier().beats, [[bad, bad]], [np.zeros(1)], budget_bytes=10**9)


def test_gradients_through_the_cache_are_those_of_the_pooling_itself():
    pooling, features = make_classifier().attentive_pooling, needles(0, num_clips=3)
    torch.nn.init.normal_(pooling.layer_weights)
    torch.nn.init.normal_(pooling.scores.weight)
    parameters = list(pooling.parameters())

    cached = features.pool(pooling, [2, 0])
    found = torch.autograd.grad(cached.square().sum(), parameters)

    live = torch.cat([pooling(features.tokens[row][:, None]) for row in (2, 0)])
    expected = torch.autograd.grad(live.square().sum(), parameters)
    torch.testing.assert_close(cached, live, atol=1e-3, rtol=1e-3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


# --- fitting -----------------------------------------------------------------------------------------------


def measure(fitted, features):
    split = features.embed(fitted.pooling)
    probabilities = torch.from_numpy(embedding_logits(fitted.head, split)).softmax(dim=-1)
    return classification_metrics(split.targets, probabilities.numpy(), LABELS)


def test_it_learns_which_layer_and_which_tokens_matter():
    train, val, unseen = needles(1), needles(2), needles(3)

    fitted = fit(train, val)

    measured = measure(fitted, unseen)
    assert measured.accuracy > 0.9
    assert fitted.pooling.mix_weights()[1] > 0.6
    fresh = make_classifier()
    on_the_mean = fit_cached_head(
        fresh.head,
        *(split.embed(fresh.attentive_pooling) for split in (train, val)),
        LABELS,
        resolved_training(max_epochs=25),
        learning_rate=3e-2,
        batch_size=8,
        seed=0,
        progress=False,
    )
    assert on_the_mean.best_score < 0.7


def test_the_kept_weights_are_those_of_the_epoch_that_is_reported():
    val = needles(2, num_clips=30)

    fitted = fit(needles(1), val, max_epochs=8)

    kept = fitted.history[fitted.best_epoch]
    measured = measure(fitted, val)
    assert measured.accuracy == kept["val_accuracy"] == fitted.best_score
    assert measured.loss == pytest.approx(kept["val_loss"], rel=1e-3)


def test_the_same_seed_gives_the_same_weights_and_leaves_classifier_and_generator_alone():
    classifier = make_classifier()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    state = torch.random.get_rng_state()

    first, again, other = (
        fit(needles(1, 16), None, classifier, seed=seed, max_epochs=2) for seed in (3, 3, 4)
    )

    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in classifier.state_dict().items())
    weights = [fitted.pooling.scores.weight for fitted in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (first.best_epoch, first.best_score) == (1, None)


def masked_bce(logits, targets):
    known = ~targets.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return losses[known].mean()


def test_any_number_of_classes_per_clip_is_learned_with_a_task_of_its_own():
    train, val = needles(1), needles(2)
    features = []
    for split in (train, val):
        targets = np.eye(3, dtype=np.float32)[split.targets]
        targets[::5, 0] = np.nan
        features.append(TokenFeatures(split.tokens, targets))
    seen = []

    def measure(logits):
        seen.append(logits)
        return {"val_hits": float((logits.argmax(axis=1) == val.targets).mean())}

    fitted = fit(
        *features,
        make_classifier(activation="sigmoid"),
        task=FitTask(masked_bce, measure),
        monitor_metric="val_hits",
    )

    assert fitted.best_score > 0.9
    assert seen[0].shape == (96, 3)
    assert seen[0].dtype == np.float64
    assert set(fitted.history[0]) == {"epoch", "train_loss", "lr", "val_hits"}
    with pytest.raises(ValueError, match="need a FitTask"):
        fit(*features)


def test_a_classifier_without_attentive_pooling_is_refused():
    beats = BEATs(tiny_architecture())
    classifier = BEATsClassifier(beats, ClassifierHead(WIDTH, 3), LABELS)

    with pytest.raises(ValueError, match="fit_cached_head"):
        fit(needles(1), None, classifier)


def test_a_metric_that_nobody_measures_cannot_choose_an_epoch():
    with pytest.raises(ConfigError, match=r"'val_map' is not measured here.*val_accuracy"):
        fit(
            needles(1, 8),
            needles(2, 8),
            task=FitTask(measure=lambda logits: {"val_accuracy": 0.0}),
            monitor_metric="val_map",
        )


def test_a_metric_that_is_nan_is_worse_than_any_number():
    scores = iter([np.nan, 0.2, np.nan, 0.1])

    fitted = fit(
        needles(1, 8),
        needles(2, 8),
        task=FitTask(measure=lambda logits: {"val_accuracy": next(scores)}),
        max_epochs=4,
    )

    assert (fitted.best_epoch, fitted.best_score) == (1, 0.2)
