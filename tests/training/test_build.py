"""From settings to a network: what is built is what the config says."""

import pytest
import torch

from beats_trainer.config import Config, ModelConfig
from beats_trainer.model import BEATs, pool_tokens
from beats_trainer.training.build import build_classifier
from checkpoint_files import tiny_architecture


def build(activation="softmax", **settings):
    torch.manual_seed(0)
    config = Config(model=ModelConfig(**settings))
    return build_classifier(
        BEATs(tiny_architecture()).eval(), config, ["a", "b"], activation
    ).eval()


def test_attentive_pooling_is_built_for_the_encoder_and_starts_as_a_mean():
    classifier = build(pooling="attentive")

    waveforms = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9000, 5000])
    embeddings = classifier(waveforms, lengths).embeddings

    assert classifier.attentive_pooling.num_heads == 4
    output = classifier.beats(waveforms, lengths, output_layers=True)
    normed = torch.nn.functional.layer_norm(output.layers, (32,)).mean(dim=0)
    torch.testing.assert_close(embeddings, pool_tokens(normed, output.token_lengths))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_activation_is_the_one_that_was_asked_for(activation):
    classifier = build(activation)

    assert classifier.activation == activation
    assert (classifier.pooling, classifier.attentive_pooling) == ("mean", None)
