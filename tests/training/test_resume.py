"""A run that is broken off at any moment, and resumed, ends as one that was never broken."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from beats_trainer import BEATsModel, BEATsTrainer
from beats_trainer.config import AugmentationConfig, Config
from beats_trainer.datasets import build_manifest, scan_directory_dataset, split_manifest
from beats_trainer.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DatasetError,
    InvalidCheckpointError,
)
from beats_trainer.model import Architecture
from beats_trainer.training import cross_validation, lightning_run, session
from beats_trainer.training.build import build_classifier, build_encoder
from beats_trainer.training.fit import fit_network
from beats_trainer.training.modules import ClassifierModule
from beats_trainer.training.run_folder import RunFolder
from tones import TINY, tiny_config, write_tones

CPU = torch.device("cpu")


class PowerCutError(Exception):
    """Breaks a run off."""


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), num_clips=6)


@pytest.fixture(scope="module")
def splits(tones):
    return split_manifest(build_manifest(scan_directory_dataset(tones)), 0.5, 0.25, 0.25)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    BEATsModel(Architecture(**TINY)).save_pretrained(folder)
    return folder


def run_fit(config, splits, folder, resume=False):
    config = config.resolved()
    classifier = build_classifier(build_encoder(config), config, splits.labels)
    fitted = fit_network(classifier, splits, config, RunFolder(folder), CPU, resume=resume)
    return classifier.state_dict(), fitted


def assert_equal(one, other):
    weights, fitted = one
    assert fitted == other[1]
    assert all(torch.equal(value, other[0][name]) for name, value in weights.items())


@contextlib.contextmanager
def cut_at(monkeypatch, owner, name, is_it=lambda *_: True, *, after=False):
    """Break off in a function or method, before it does its work or after, where ``is_it(*arguments)``."""
    original = getattr(owner, name)

    def cut(*arguments, **options):
        is_now = is_it(*arguments)
        if is_now and not after:
            raise PowerCutError
        result = original(*arguments, **options)
        if is_now:
            raise PowerCutError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut)
        with pytest.raises(PowerCutError):
            yield


# The network's own training.


@pytest.mark.parametrize("settings", [{"max_epochs": 2}, {"max_epochs": 9, "patience": 1}])
def test_a_run_that_had_trained_to_its_end_trains_no_more(splits, tmp_path, monkeypatch, settings):
    # A vanishing rate: no epoch is better than the first, so that patience ends after the second.
    config = tiny_config(learning_rate=1e-9, **settings)
    expected = run_fit(config, splits, tmp_path)
    assert len(expected[1].history) == 2

    def no_more(*_):
        raise AssertionError("trains on")

    monkeypatch.setattr(ClassifierModule, "training_step", no_more)
    resumed = run_fit(config, splits, tmp_path, resume=True)

    assert_equal(resumed, expected)


def test_a_run_without_any_checkpoint_starts_anew_and_leaves_no_stranger(splits, tmp_path):
    config = tiny_config(learning_rate=5e-3)
    expected = run_fit(config, splits, tmp_path / "whole")
    stranger = tmp_path / "broken" / "checkpoints" / "epoch=000-val_accuracy=0.9999.ckpt"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"of the first epoch, saved before last.ckpt")

    resumed = run_fit(config, splits, tmp_path / "broken", resume=True)

    assert_equal(resumed, expected)
    assert not stranger.exists()


@pytest.mark.parametrize("with_validation", [True, False])
@pytest.mark.parametrize("which", ["before", "after"])
def test_a_cut_between_the_best_and_the_last_checkpoint_loses_nothing(
    splits, tmp_path, monkeypatch, which, with_validation
):
    if not with_validation:
        splits = type(splits)(splits.train, splits.val[:0], splits.test, splits.labels, splits.how)
    # The validation loss falls in every epoch, so that each one's checkpoint replaces the last one's.
    config = tiny_config(max_epochs=4, learning_rate=3e-3, monitor_metric="val_loss")
    expected = run_fit(config, splits, tmp_path / "whole")
    saved = []

    def is_second_last(_io, _checkpoint, path, *_):
        saved.append(str(path))
        return str(path).endswith("last.ckpt") and sum(p.endswith("last.ckpt") for p in saved) >= 2

    saver = lightning_run.AtomicCheckpointIO
    with cut_at(monkeypatch, saver, "save_checkpoint", is_second_last, after=which == "after"):
        run_fit(config, splits, tmp_path / "broken")
    shutil.move(tmp_path / "broken", tmp_path / "moved")
    last = torch.load(tmp_path / "moved" / "checkpoints" / "last.ckpt", weights_only=True)
    (named,) = [s["best_model_path"] for k, s in last["callbacks"].items() if "Movable" in k]
    assert (tmp_path / "moved" / "checkpoints" / Path(named).name).is_file()  # for slower machines

    resumed = run_fit(config, splits, tmp_path / "moved", resume=True)

    assert_equal(resumed, expected)
    assert len(list((tmp_path / "moved" / "checkpoints").iterdir())) == 2


def test_a_damaged_or_missing_checkpoint_is_an_error_that_names_it(splits, tmp_path):
    config = tiny_config(max_epochs=1)
    run_fit(config, splits, tmp_path)
    (best,) = (tmp_path / "checkpoints").glob("epoch*")
    best.unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"epoch=000.*is gone"):
        run_fit(config, splits, tmp_path, resume=True)

    last = tmp_path / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for damaged in (b"", b"half", whole[: len(whole) // 2]):
        last.write_bytes(damaged)
        with pytest.raises(InvalidCheckpointError, match=r"last\.ckpt is damaged"):
            run_fit(config, splits, tmp_path, resume=True)


# Whole trainings.


def config_of(mode, base, **training):
    config = tiny_config(**({"max_epochs": 3, "learning_rate": 5e-3} | training))
    if mode != "scratch":
        config.model = type(config.model)(model_path=str(base), mode=mode)
    return config


def trained(mode, tones, base, log_dir, resume=None, **training):
    trainer = BEATsTrainer.from_directory(tones, config_of(mode, base, **training), log_dir=log_dir)
    trainer.train(resume, verbose=False, progress=False)
    return log_dir / "beats_experiment" / "version_0"


def files_of(run):
    metrics = json.loads((run / "metrics.json").read_text())
    names = ("history.csv", "predictions.csv", "splits.csv", "config.yaml")
    weights = (run / "model" / "model.safetensors").read_bytes()
    return metrics, [(run / name).read_text() for name in names], weights


@pytest.mark.parametrize("mode", ["head", "attentive", "scratch"])
@pytest.mark.parametrize(
    "moment", ["_calibrate", "write_history", "write_predictions", "write_metrics"]
)
def test_a_cut_after_the_fit_changes_nothing(tones, base, tmp_path, monkeypatch, mode, moment):
    expected = trained(mode, tones, base, tmp_path / "whole")
    owner = session if moment.startswith("_") else RunFolder
    with cut_at(monkeypatch, owner, moment):
        trained(mode, tones, base, tmp_path / "broken")
    run = tmp_path / "broken" / "beats_experiment" / "version_0"
    (run / ".history.csv.123.part").write_text("half")
    (run / ".model.unfinished-1a2b").mkdir()
    (run / ".model.unfinished-1a2b" / "model.safetensors").write_text("half")

    resumed = trained(mode, tones, base, tmp_path / "broken", resume=True)

    assert resumed == run
    assert files_of(run) == files_of(expected)
    assert [path for path in run.rglob("*") if path.name.startswith(".")] == []
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: setattr(c.training, "max_epochs", 7), "training.max_epochs was 3 and is 7"),
        (lambda c: setattr(c.training, "learning_rate", 1e-4), "training.learning_rate was 0.005"),
        (lambda c: setattr(c.data, "batch_size", 4), "data.batch_size was 8 and is 4"),
        (lambda c: setattr(c, "seed", 7), "seed was 42 and is 7"),
        (lambda c: setattr(c, "augmentation", AugmentationConfig(roll=True)), "augmentation.roll"),
    ],
)
def test_other_settings_are_refused(tones, tmp_path, monkeypatch, change, says):
    with cut_at(monkeypatch, session, "score_split"):
        trained("scratch", tones, None, tmp_path)
    config = config_of("scratch", None)
    change(config)

    with pytest.raises(ConfigError, match=f"Cannot resume .*{says}"):
        BEATsTrainer.from_directory(tones, config, log_dir=tmp_path).train(True)


def test_settings_that_change_no_result_may_be_others(tones, tmp_path, monkeypatch):
    with cut_at(monkeypatch, session, "score_split"):
        trained("scratch", tones, None, tmp_path)
    config = config_of("scratch", None, loggers=[], log_every_n_steps=1, save_top_k=2)
    config.data.num_workers = 2
    config.experiment_name = "another_name"
    monkeypatch.chdir(tones.parent)  # the same folder under another name
    run = tmp_path / "beats_experiment" / "version_0"

    result = BEATsTrainer.from_directory(tones.name, config).train(run, verbose=False)

    assert result.run_dir == str(run)


def test_other_clips_are_refused(tones, tmp_path, monkeypatch):
    copy = shutil.copytree(tones, tmp_path / "copy")
    with cut_at(monkeypatch, session, "score_split"):
        trained("scratch", copy, None, tmp_path)
    os.remove(copy / "low" / "clip_0.wav")

    with pytest.raises(DatasetError, match=r"Cannot resume .* not the same ones"):
        trained("scratch", copy, None, tmp_path, resume=True)


# Cross-validation.


def cross_validated(mode, tones, base, log_dir, resume=None, folds=3, **settings):
    config = config_of(mode, base, **settings)
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=log_dir)
    trainer.cross_validate(folds, resume, verbose=False, progress=False)
    return log_dir / "beats_experiment" / "version_0"


def results_of(run):
    """All that a cross-validation leaves, but for how long it took."""
    metrics = json.loads((run / "metrics.json").read_text())
    for row in metrics["folds"]:
        del row["duration_s"]
    folds = pd.read_csv(run / "folds.csv").drop(columns="duration_s").to_csv()
    return metrics, folds, (run / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("mode", "moment"),
    [
        ("head", "metrics"),
        ("head", "report"),
        ("attentive", "report"),
        ("scratch", "fit"),
        ("scratch", "report"),
    ],
)
def test_a_broken_cross_validation_keeps_its_finished_folds(
    tones, base, tmp_path, monkeypatch, mode, moment
):
    expected = cross_validated(mode, tones, base, tmp_path / "whole")
    owner, name = {
        "fit": (session, "_embed"),
        "metrics": (RunFolder, "write_metrics"),
        "report": (cross_validation, "write_report"),
    }[moment]
    calls = []

    def is_second(*_):
        calls.append(1)
        return len(calls) >= 2

    with cut_at(monkeypatch, owner, name, is_second):
        cross_validated(mode, tones, base, tmp_path / "broken")
    run = tmp_path / "broken" / "beats_experiment" / "version_0"
    first = run / "fold_1" / "model" / "model.safetensors"
    before = first.stat().st_mtime_ns

    cross_validated(mode, tones, base, tmp_path / "broken", resume=True)

    assert first.stat().st_mtime_ns == before
    assert results_of(run) == results_of(expected)


def test_a_cross_validation_is_not_resumed_with_other_folds_or_settings(
    tones, base, tmp_path, monkeypatch
):
    with cut_at(monkeypatch, cross_validation, "write_report"):
        cross_validated("head", tones, base, tmp_path)

    with pytest.raises(ConfigError, match=r"data\.folds was 3 and is 2"):
        cross_validated("head", tones, base, tmp_path, resume=True, folds=2)
    with pytest.raises(ConfigError, match=r"training\.label_smoothing was 0\.0 and is 0\.1"):
        cross_validated("head", tones, base, tmp_path, resume=True, label_smoothing=0.1)


def test_a_run_says_by_its_folds_whether_it_is_a_cross_validation(tones, base, tmp_path):
    def folds_of(run):
        return Config.from_yaml(run / "config.yaml").data.folds

    whole = cross_validated("head", tones, base, tmp_path / "cv", folds=None, max_epochs=1)
    config = config_of("head", base, max_epochs=1)
    config.data.folds = 3
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path / "single")
    single = Path(trainer.train(verbose=False).run_dir)

    assert (folds_of(whole), folds_of(single)) == (5, None)
    with pytest.raises(ConfigError, match=r"data\.folds was None and is 3"):
        trainer.cross_validate(resume_from_checkpoint=single, verbose=False)
    with pytest.raises(ConfigError, match="pass the folder above it"):
        cross_validated("head", tones, base, tmp_path, whole / "fold_1", 5, max_epochs=1)


# A real kill.


def command(tones, log_dir, *more):
    sizes = [part for name, value in TINY.items() for part in (f"--model.{name}", str(value))]
    return [
        *(sys.executable, "-m", "beats_trainer", "train", str(tones), "-o", str(log_dir)),
        *("--mode", "scratch", "--epochs", "6", "--lr", "5e-3", "--device", "cpu"),
        *(
            "--training.precision",
            "float32",
            "--data.num_workers",
            "0",
            "--model.dropout_rate",
            "0.2",
        ),
        *("--data.batch_size", "4", *sizes, *more),
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(tones, tmp_path):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command(tones, tmp_path / "whole"), check=True, **quiet)
    run = tmp_path / "broken" / "beats_experiment" / "version_0"
    # Each moment is a file that appears, or is written again: kills come at other ones on each machine.
    moments = ["config.yaml", "checkpoints/last.ckpt", "predictions.csv"]
    for number, moment in enumerate(moments):
        more = ["--resume", str(run)] if (run / "config.yaml").exists() else []
        seen = stamp(run / moment) if number else None
        process = subprocess.Popen(command(tones, tmp_path / "broken", *more), **quiet)
        while stamp(run / moment) == seen and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()

    subprocess.run(
        command(tones, tmp_path / "broken", "--resume", str(run)), check=True, capture_output=True
    )

    whole = tmp_path / "whole" / "beats_experiment" / "version_0"
    assert files_of(run) == files_of(whole)


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else None


def test_the_settings_on_disk_are_those_that_a_resumed_run_uses(tones, tmp_path, monkeypatch):
    with cut_at(monkeypatch, session, "score_split"):
        trained("scratch", tones, None, tmp_path)
    settings = tmp_path / "beats_experiment" / "version_0" / "config.yaml"

    trainer = BEATsTrainer(Config.from_yaml(settings), log_dir=tmp_path)

    assert trainer.train(True, verbose=False).run_dir == str(settings.parent)
