"""The section ``augmentation`` of the config: checked, written and read, and made into what it describes."""

import pytest
import torch

from beats_trainer.config import AugmentationConfig, Config, ModelConfig
from beats_trainer.errors import AudioNotFoundError, ConfigError
from beats_trainer.training.augmentation import augmentation_from
from sounds import write_tone


def config_with(**settings):
    model = ModelConfig(freeze_backbone=False, fine_tune_backbone=True)
    return Config(model=model, augmentation=AugmentationConfig(**settings))


def test_the_defaults_change_nothing():
    assert augmentation_from(Config()) == (None, None)


def test_every_setting_reaches_what_it_is_for(tmp_path):
    write_tone(tmp_path / "noise.wav", seconds=0.2)
    config = config_with(
        gain_db=3,
        roll=True,
        polarity=True,
        mixup_alpha=0.8,
        mixup_probability=0.7,
        background_dir=tmp_path,
        background_snr_db=[0, 10],
        background_probability=0.4,
        num_time_masks=1,
        max_time_mask=0.5,
        num_freq_masks=1,
        max_freq_mask=128,
    )
    config.validate()

    waveforms, fbank = augmentation_from(config)

    assert (waveforms.gain_db, waveforms.roll, waveforms.polarity) == (3, True, True)
    assert (waveforms.mixup_alpha, waveforms.mixup_probability) == (0.8, 0.7)
    assert waveforms.background.files == [str(tmp_path / "noise.wav")]
    assert (waveforms.background_snr_db, waveforms.background_probability) == ((0, 10), 0.4)
    generator = torch.Generator().manual_seed(0)
    masked = fbank(torch.ones(500, 10, 128), torch.full((500,), 10), generator=generator) == 0
    assert masked.all(dim=1).any(dim=0).all()


def test_only_masks_leave_the_waveforms_alone():
    waveforms, fbank = augmentation_from(config_with(num_time_masks=1))

    assert waveforms is None
    assert fbank is not None


def test_the_section_survives_yaml(tmp_path):
    config = config_with(mixup_alpha=0.8, background_snr_db=[1, 2.5], num_freq_masks=2)
    config.augmentation.background_dir = tmp_path

    config.to_yaml(tmp_path / "run.yaml")

    assert Config.from_yaml(tmp_path / "run.yaml") == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gain_db": -1}, "augmentation.gain_db must be at least 0, not -1"),
        ({"mixup_probability": 1.5}, "augmentation.mixup_probability must be from 0 to 1"),
        ({"max_time_mask": -0.1}, "augmentation.max_time_mask must be from 0 to 1"),
        ({"max_freq_mask": 129}, "augmentation.max_freq_mask must be from 0 to 128"),
        ({"num_time_masks": -1}, "augmentation.num_time_masks"),
        ({"background_snr_db": [20, 5]}, "the least and the greatest"),
        ({"background_snr_db": [5]}, "the least and the greatest"),
        ({"background_snr_db": ["a", "b"]}, "a list of numbers"),
        ({"roll": 1}, "augmentation.roll must be true or false"),
    ],
)
def test_values_out_of_range_are_config_errors(settings, said):
    with pytest.raises(ConfigError, match=said):
        config_with(**settings).validate()


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ConfigError, match=r"Did you mean 'augmentation\.mixup_alpha'"):
        AugmentationConfig().mixup_alfa = 1


def test_a_missing_folder_of_background_is_an_error_where_training_starts(tmp_path):
    config = config_with(background_dir=str(tmp_path / "nowhere"))
    config.validate()  # a trained model is loaded where its training's folders are not

    with pytest.raises(ConfigError, match=r"background_dir is no folder: .*nowhere"):
        augmentation_from(config)
    with pytest.raises(AudioNotFoundError, match="no audio file"):
        augmentation_from(config_with(background_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config(augmentation=AugmentationConfig(roll=True)), "frozen backbone"),
        (config_with(mixup_probability=0.5), "without augmentation.mixup_alpha"),
        (config_with(background_snr_db=[1, 2]), "without augmentation.background_dir"),
        (config_with(max_time_mask=0.2), "without augmentation.num_time_masks"),
        (config_with(max_freq_mask=8), "without augmentation.num_freq_masks"),
    ],
)
def test_settings_without_effect_are_named(config, said):
    with pytest.warns(UserWarning, match=said):
        config.validate()
