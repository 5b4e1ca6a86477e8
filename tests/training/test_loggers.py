"""What a run is logged with: CSV and TensorBoard by default, others where they are installed."""

import importlib.util
import struct

import pandas as pd
import pytest
import torch

from beats_trainer import BEATsModel, BEATsTrainer
from beats_trainer.config import ModelConfig
from beats_trainer.errors import ConfigError
from beats_trainer.model import Architecture
from tones import TINY, tiny_config, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), num_clips=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    BEATsModel(Architecture(**TINY)).save_pretrained(folder)
    return folder


def trainer_of(mode, tones, base, log_dir, **training):
    config = tiny_config(log_every_n_steps=1, learning_rate=5e-3, **training)
    if mode != "scratch":
        config.model = ModelConfig(model_path=str(base), mode=mode)
    return BEATsTrainer.from_directory(tones, config, log_dir=log_dir)


def trained(*arguments, **training):
    trainer_of(*arguments, **training).train(verbose=False)
    return arguments[-1] / "beats_experiment" / "version_0"


def scalars(folder):
    """How often each number was logged, read from TensorBoard's files: tag to count.

    A record is a length (8 bytes), its checksum (4), so many bytes, and their checksum (4). In its bytes,
    which are a protocol buffer, a tag is text.
    """
    counts = {}
    for file in folder.glob("events.out.tfevents.*"):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            record = content[place + 12 : place + 12 + length]
            assert len(record) == length, "the last record is cut off"
            for tag in (b"train_loss", b"val_accuracy", b"val_f1"):
                if bytes([0x0A, len(tag)]) + tag in record:  # field 1 of a value, with its length
                    counts[tag.decode()] = counts.get(tag.decode(), 0) + 1
            place += 16 + length
    return counts


def test_a_network_is_logged_by_step_and_by_epoch(tones, base, tmp_path):
    run = trained("scratch", tones, base, tmp_path)

    counts = scalars(run / "tensorboard")
    steps = pd.read_csv(run / "steps" / "version_0" / "metrics.csv")
    history = pd.read_csv(run / "history.csv")
    assert counts["val_accuracy"] == counts["val_f1"] == len(history) == 2
    assert counts["train_loss"] == steps["train_loss"].count() == 2 * 2
    assert steps["val_accuracy"].dropna().tolist() == history["val_accuracy"].tolist()


@pytest.mark.parametrize("mode", ["head", "attentive"])
def test_a_head_is_logged_by_epoch(tones, base, tmp_path, mode):
    run = trained(mode, tones, base, tmp_path)

    assert scalars(run / "tensorboard") == {"train_loss": 2, "val_accuracy": 2, "val_f1": 2}
    assert len(pd.read_csv(run / "history.csv")) == 2
    assert not (run / "steps").exists()


def test_a_head_that_is_fitted_again_is_not_logged_twice(tones, base, tmp_path):
    run = trained("head", tones, base, tmp_path)

    trainer_of("head", tones, base, tmp_path).train(run, verbose=False)

    assert scalars(run / "tensorboard")["val_f1"] == 2


@pytest.mark.parametrize("mode", ["head", "scratch"])
def test_without_loggers_the_history_is_there_all_the_same(tones, base, tmp_path, mode):
    run = trained(mode, tones, base, tmp_path, loggers=[])

    assert len(pd.read_csv(run / "history.csv")) == 2
    assert not (run / "tensorboard").exists()
    assert not (run / "steps").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_an_error_before_any_work(
    tones, base, tmp_path, monkeypatch, name
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n == name else find(n, *rest)
    )

    with pytest.raises(ConfigError, match=f"pip install {name}"):
        trainer_of("head", tones, base, tmp_path, loggers=["csv", name])
    trainer = trainer_of("head", tones, base, tmp_path)
    trainer.config.training.loggers = [name]
    for work in (trainer.train, trainer.cross_validate):
        with pytest.raises(ConfigError, match=f"pip install {name}"):
            work()
    assert list(tmp_path.iterdir()) == []
