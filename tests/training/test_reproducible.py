"""One seed decides everything: two runs give equal numbers, another seed gives others."""

import copy
import json

import pytest
import torch

from beats_trainer import BEATsModel, BEATsTrainer
from beats_trainer.config import AugmentationConfig, Config, ModelConfig
from beats_trainer.model import Architecture
from tones import TINY, tiny_config, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), num_clips=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An encoder with dropout and layer drop of its own."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    architecture = Architecture(**TINY, encoder_layerdrop=0.3, dropout=0.2)
    BEATsModel(architecture).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("noises"), num_clips=2, pitches={"hum": 100.0})


def config_of(mode, base, noises):
    """Settings in which everything that is drawn at random is on."""
    config = tiny_config(
        max_epochs=2, learning_rate=5e-3, sampling="class_balanced", label_smoothing=0.1
    )
    config.data.train_split, config.data.val_split, config.data.test_split = 0.5, 0.25, 0.25
    if mode == "scratch":
        config.model.dropout_rate, config.model.encoder_layerdrop = 0.2, 0.3
    else:
        config.model = ModelConfig(
            model_path=str(base), mode=mode, dropout_rate=0.2, lora_dropout=0.1
        )
    if mode != "head":
        config.data.max_duration_s = 0.3
        config.augmentation = AugmentationConfig(
            gain_db=6.0,
            roll=True,
            polarity=True,
            mixup_alpha=0.4,
            background_dir=str(noises),
            num_time_masks=1,
            num_freq_masks=1,
        )
    return config


def run(trainer):
    """Weights, history, and every score."""
    result = trainer.train(verbose=False, progress=False)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights, result.history, result.val_results, result.test_results


def assert_equal(one, other):
    assert other[1:] == one[1:]
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.mark.parametrize("mode", ["head", "attentive", "lora", "full", "scratch"])
def test_two_runs_are_equal_to_the_bit_and_another_seed_is_not(tones, base, noises, tmp_path, mode):
    if mode == "lora":
        pytest.importorskip("peft")
    config = config_of(mode, base, noises)
    first = run(BEATsTrainer.from_directory(tones, config, log_dir=tmp_path))
    torch.manual_seed(99)  # what a user does to torch's generator beside us is of no account
    torch.rand(7)

    second = run(BEATsTrainer.from_directory(tones, config, log_dir=tmp_path))
    config.seed = 7
    other = run(BEATsTrainer.from_directory(tones, config, log_dir=tmp_path))

    assert_equal(second, first)
    assert other[1] != first[1]


def test_attentive_heads_on_cached_tokens_are_equal_too(tones, base, noises, tmp_path):
    config = config_of("attentive", base, noises)
    config.augmentation, config.data.max_duration_s = AugmentationConfig(), None

    first, second = (
        run(BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)) for _ in range(2)
    )

    assert_equal(second, first)


@pytest.mark.parametrize("mode", ["head", "scratch"])
def test_the_number_of_readers_changes_nothing(tones, base, noises, tmp_path, mode):
    alone = config_of(mode, base, noises)
    helped = copy.deepcopy(alone)
    helped.data.num_workers = 2

    first, second = (
        run(BEATsTrainer.from_directory(tones, config, log_dir=tmp_path))
        for config in (alone, helped)
    )

    assert_equal(second, first)


@pytest.mark.parametrize("source", ["folder", "csv"])
def test_the_settings_that_a_run_leaves_reproduce_it_from_any_folder(
    tones, base, noises, tmp_path, monkeypatch, source
):
    monkeypatch.chdir(tones.parent)  # data that is named relative to it
    config = config_of("scratch", base, noises)
    if source == "folder":
        trainer = BEATsTrainer.from_directory(tones.name, config, log_dir=tmp_path)
    else:
        rows = [f"{path},{path.parent.name}\n" for path in sorted(tones.rglob("*.wav"))]
        table = tones.parent / "clips.csv"
        table.write_text("filename,category\n" + "".join(rows))
        config.data.metadata_file = table.name
        trainer = BEATsTrainer(config, log_dir=tmp_path)
    trainer.train(verbose=False)
    first = tmp_path / "beats_experiment" / "version_0"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    again = BEATsTrainer(Config.from_yaml(first / "config.yaml"), log_dir=tmp_path)
    again.train(verbose=False)

    second = tmp_path / "beats_experiment" / "version_1"
    metrics, same = (json.loads((path / "metrics.json").read_text()) for path in (first, second))
    assert same == metrics
    for name in ("predictions.csv", "history.csv", "splits.csv", "config.yaml"):
        assert (second / name).read_text() == (first / name).read_text()
