"""A folder of labelled tones, and a model that the command line trained on it."""

import os

import pytest

from beats_trainer.cli import main
from tones import TINY, write_tones

TINY_OPTIONS = [f"--model.{name}={value}" for name, value in TINY.items()]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """``recordings/`` with three classes of ten clips, and ``logs/beats_experiment/version_0``."""
    folder = tmp_path_factory.mktemp("workplace")
    write_tones(folder / "recordings", num_clips=10)
    before = os.getcwd()
    os.chdir(folder)
    try:
        code = main(
            [
                *("train", "recordings", "--from-scratch", "--epochs", "20", "--lr", "3e-3"),
                *("--batch-size", "8", "--device", "cpu", "--precision", "float32"),
                *(
                    "--data.num_workers",
                    "0",
                    "--data.train_split",
                    "0.6",
                    "--data.val_split",
                    "0.2",
                ),
                *("--data.test_split", "0.2", *TINY_OPTIONS),
            ]
        )
    finally:
        os.chdir(before)
    assert code == 0
    return folder


@pytest.fixture
def here(workplace, monkeypatch):
    """The same, as the working directory."""
    monkeypatch.chdir(workplace)
    return workplace
