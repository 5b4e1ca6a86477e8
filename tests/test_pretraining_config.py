"""Settings of pre-training: complete, checked, and the same on disk."""

import pytest

from beats_trainer import PretrainingConfig
from beats_trainer.errors import ConfigError
from beats_trainer.model import Architecture
from beats_trainer.pretraining_config import SIZES


@pytest.mark.parametrize("size", SIZES)
def test_each_size_is_a_network_with_settings_that_pass(size):
    config = PretrainingConfig(architecture=size).resolved()

    config.validate()
    architecture = Architecture(**config.architecture_settings())
    assert config.predictor_width % architecture.head_dim == 0
    assert None not in (config.steps, config.batch_s, config.learning_rate, config.tokenizer_steps)


def test_base_and_large_are_the_released_architectures():
    assert Architecture(**PretrainingConfig().architecture_settings()) == Architecture()
    large = Architecture(**PretrainingConfig(architecture="large").architecture_settings())
    assert (large.encoder_layers, large.encoder_embed_dim, large.encoder_ffn_embed_dim) == (
        24,
        1024,
        4096,
    )


def test_settings_come_back_from_disk_as_they_were(tmp_path):
    config = PretrainingConfig(architecture="small", steps=7, from_checkpoint="openbeats")

    config.to_yaml(tmp_path / "config.yaml")

    assert PretrainingConfig.from_yaml(tmp_path / "config.yaml") == config


def test_what_labels_first_follows_from_where_it_starts():
    assert PretrainingConfig().resolved().tokenizer == "random"
    assert PretrainingConfig(from_checkpoint="openbeats").resolved().tokenizer == "distilled"
    assert PretrainingConfig(tokenizer="tokenizer.pt").resolved().tokenizer == "tokenizer.pt"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_ratio": 75}, "mask_ratio must be above 0 and below 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"window_s": 0.1}, "window_s must be at least 0.5"),
        ({"batch_s": 5.0}, "at least window_s"),
        ({"positions": "absolute"}, "positions must be one of true, packed"),
        ({"tokenizer": "distilled"}, "needs from_checkpoint"),
        ({"num_codes": 10**6}, "at most 65,536"),
        ({"checkpoint_every": 70}, "multiple of log_every"),
        ({"precision": "float16"}, "auto, float32 or bfloat16"),
        ({"architecture": "huge"}, "nano, small, base, large"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(settings, words):
    with pytest.raises(ConfigError, match=words):
        PretrainingConfig.from_dict(settings)


def test_a_misspelt_setting_is_refused_and_the_right_one_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'mask_ratio'"):
        PretrainingConfig.from_dict({"masking_ratio": 0.5})


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"from_checkpoint": "openbeats", "fbank_mean": 12.0}, "fbank_mean"),
        ({"tokenizer": "tokenizer.pt", "projection": "paper"}, "projection"),
    ],
)
def test_a_setting_without_effect_is_named(settings, idle):
    with pytest.warns(UserWarning, match=f"{idle} has no effect"):
        PretrainingConfig(**settings).validate()
