"""Pooling counts real tokens only; a head can take its standardisation with it."""

import pytest
import torch

from beats_trainer.model import (
    POOLING_MODES,
    BEATs,
    BEATsClassifier,
    ClassifierHead,
    pool_tokens,
    pooled_width,
)
from checkpoint_files import tiny_architecture


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_embedding_is_the_same_alone_and_padded_in_a_batch(mode):
    clip = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([clip, torch.full((1, 8, 8), 1e4)], dim=1)  # padding that would show

    alone = pool_tokens(clip, mode=mode)
    in_batch = pool_tokens(padded, token_lengths=torch.tensor([16]), mode=mode)

    torch.testing.assert_close(in_batch, alone)


def test_padding_that_is_not_a_number_does_not_reach_the_embedding():
    padded = torch.cat([torch.ones(1, 2, 4), torch.full((1, 2, 4), float("nan"))], dim=1)

    assert torch.equal(pool_tokens(padded, torch.tensor([2])), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("mode", "expected"), [("mean", 2.0), ("max", 4.0), ("first", 4.0), ("last", -1.0)]
)
def test_each_mode_reduces_as_it_says(mode, expected):
    tokens = torch.tensor([[[4.0], [3.0], [-1.0], [9.0]]])

    assert pool_tokens(tokens, torch.tensor([3]), mode).item() == expected


def test_bands_are_averaged_over_time_each_by_itself_the_lowest_first():
    steps = torch.tensor([[1.0, 10.0], [3.0, 30.0], [7e9, 7e9]])  # the last is padding
    tokens = steps.reshape(1, 6, 1)

    pooled = pool_tokens(tokens, torch.tensor([4]), "bands", patches_per_step=2)

    assert pooled.tolist() == [[2.0, 20.0]]


def test_bands_of_a_broken_time_step_are_refused():
    with pytest.raises(ValueError, match="whole time steps of 8 tokens"):
        pool_tokens(torch.zeros(1, 16, 4), torch.tensor([9]), "bands")
    with pytest.raises(ValueError, match="whole time steps of 8 tokens"):
        pool_tokens(torch.zeros(1, 12, 4), mode="bands")


def test_a_classifier_reads_embeddings_as_wide_as_its_pooling_makes_them():
    torch.manual_seed(0)
    network = BEATs(tiny_architecture()).eval()
    width = pooled_width(network.architecture, "bands")
    classifier = BEATsClassifier(network, ClassifierHead(width, 2), ["a", "b"], pooling="bands")

    embeddings = classifier.eval()(torch.randn(3, 16_000)).embeddings

    assert embeddings.shape == (3, 8 * network.architecture.encoder_embed_dim)
    with pytest.raises(ValueError, match=f"gives {width} with pooling='bands'"):
        BEATsClassifier(network, ClassifierHead(width // 8, 2), ["a", "b"], pooling="bands")


def test_an_unknown_mode_and_an_empty_clip_are_refused():
    with pytest.raises(ValueError, match="Unknown pooling 'median'"):
        pool_tokens(torch.zeros(1, 2, 3), mode="median")
    with pytest.raises(ValueError, match=r"1\.\.2"):
        pool_tokens(torch.zeros(1, 2, 3), torch.tensor([0]))


@pytest.mark.parametrize("hidden_dims", [(), (6,)])
def test_a_head_that_absorbed_its_standardisation_gives_the_same_logits_on_raw_embeddings(
    hidden_dims,
):
    torch.manual_seed(0)
    head = ClassifierHead(4, 3, hidden_dims)
    embeddings = 5 + 3 * torch.randn(10, 4)
    mean, std = embeddings.mean(dim=0), embeddings.std(dim=0)
    expected = head((embeddings - mean) / std)

    head.absorb_standardisation(mean, std)

    torch.testing.assert_close(head(embeddings), expected, atol=1e-5, rtol=1e-5)


def test_a_head_is_rebuilt_from_what_it_says_of_itself():
    head = ClassifierHead(4, 3, hidden_dims=[5, 2], activation="gelu", dropout=0.3)

    assert ClassifierHead(**head.to_dict()).state_dict().keys() == head.state_dict().keys()


@pytest.mark.parametrize("hidden_dims", [(), (6,)])
def test_a_head_that_absorbed_a_temperature_gives_logits_divided_by_it(hidden_dims):
    torch.manual_seed(0)
    head, embeddings = ClassifierHead(4, 3, hidden_dims), torch.randn(10, 4)
    expected = head(embeddings) / 2.5

    head.absorb_temperature(2.5)

    torch.testing.assert_close(head(embeddings), expected)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            head.absorb_temperature(value)
