"""From settings to a network: what is built is what the config says."""

import pytest
import torch

from beats_trainer.config import Config, ModelConfig, TrainingConfig
from beats_trainer.model import BEATs, pool_tokens
from beats_trainer.training.build import build_classifier
from checkpoint_files import tiny_architecture


def build(task="single", loss_function="auto", **settings):
    torch.manual_seed(0)
    config = Config(
        model=ModelConfig(**settings), training=TrainingConfig(loss_function=loss_function)
    )
    encoder = BEATs(tiny_architecture()).eval()
    return build_classifier(encoder, config.resolved(task), ["a", "b"], task).eval()


def test_attentive_pooling_is_built_for_the_encoder_and_starts_as_a_mean():
    classifier = build(mode="attentive")

    waveforms = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9000, 5000])
    embeddings = classifier(waveforms, lengths).embeddings

    assert classifier.attentive_pooling.num_heads == 4
    output = classifier.beats(waveforms, lengths, output_layers=True)
    normed = torch.nn.functional.layer_norm(output.layers, (32,)).mean(dim=0)
    torch.testing.assert_close(embeddings, pool_tokens(normed, output.token_lengths))


@pytest.mark.parametrize(
    ("task", "loss_function", "activation"),
    [
        ("single", "auto", "softmax"),
        ("single", "focal", "softmax"),
        ("single", "bce", "sigmoid"),
        ("single", "asymmetric", "sigmoid"),
        ("multi", "auto", "sigmoid"),
        ("multi", "focal", "sigmoid"),
    ],
)
def test_the_activation_follows_from_the_task_and_the_loss(task, loss_function, activation):
    classifier = build(task, loss_function)

    assert classifier.activation == activation
    assert (classifier.pooling, classifier.attentive_pooling) == ("mean", None)
