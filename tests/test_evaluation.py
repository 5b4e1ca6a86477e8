"""Measuring a trained model on other clips: labels in every form they come in, and refusals that name the row."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from beats_trainer import BEATsForAudioClassification, BEATsPredictor, BEATsTrainer
from beats_trainer.checkpoints import BEATsModel
from beats_trainer.cli import main
from beats_trainer.datasets import build_manifest
from beats_trainer.errors import ConfigError, DatasetError
from beats_trainer.model import Architecture
from tones import PITCHES, TINY, head_config, tone, write_tones

NAMES = sorted(PITCHES)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny encoder, as a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    BEATsModel(Architecture(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chords(tmp_path_factory):
    """A folder of clips in which any of three tones sound, listed in ``labels.csv``."""
    folder = tmp_path_factory.mktemp("chords")
    rows = []
    for number in range(40):
        present = [name for bit, name in enumerate(NAMES) if number >> bit & 1]
        wave = sum((tone(PITCHES[name], number) for name in present), start=tone(1.0, number) / 30)
        soundfile.write(folder / f"{number}.wav", wave / 2, 16000)
        rows.append((f"{number}.wav", ",".join(present) or "silence", f"site_{number // 4}"))
    table = pd.DataFrame(rows, columns=["file", "sounds", "site"])
    table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def multi(chords, base, tmp_path_factory):
    """A run that was trained on them; not to be changed."""
    config = head_config(base, max_epochs=60, patience=60, learning_rate=3e-2)
    config.data.label_delimiter = ","
    config.data.background_labels = ["silence"]
    config.data.group_column = "site"
    trainer = BEATsTrainer.from_csv(
        chords / "labels.csv",
        config=config,
        audio_column="file",
        label_column="sounds",
        log_dir=tmp_path_factory.mktemp("logs"),
    )
    return trainer, trainer.train(verbose=False)


@pytest.fixture
def bare(multi, tmp_path):
    """The model's folder alone, with nothing of its run."""
    return shutil.copytree(multi[1].best_checkpoint, tmp_path / "bare")


def test_a_loaded_run_measures_the_same_on_its_own_test_clips(multi):
    trainer, result = multi

    loaded = BEATsTrainer.load(result.run_dir, device="cpu")

    assert loaded.task == "multi"
    assert loaded.test() == pytest.approx(result.test_results, abs=1e-5)
    assert trainer.test(result.best_checkpoint) == pytest.approx(result.test_results, abs=1e-5)
    assert result.test_results["test_map"] > 0.6  # it has learned something to measure


def test_the_data_of_a_run_are_read_as_it_was_trained(multi, chords):
    trainer, result = multi
    loaded = BEATsTrainer.load(result.run_dir, device="cpu")
    table = pd.read_csv(chords / "labels.csv")
    table["file"] = [str(chords / file) for file in table["file"]]

    by_csv = loaded.score_clips(chords / "labels.csv")
    by_table = loaded.score_clips(table)
    by_rows = loaded.score_clips(trainer.dataset)
    by_manifest = loaded.score_clips(trainer.manifest)

    assert by_csv.metrics.num_clips == 40
    assert by_csv.metrics.support.tolist() == [20, 20, 20]
    order = by_rows.table["path"].map({path: n for n, path in enumerate(by_csv.table["path"])})
    np.testing.assert_array_equal(by_table.targets, by_csv.targets)
    np.testing.assert_array_equal(by_manifest.targets, by_csv.targets)
    np.testing.assert_array_equal(by_rows.targets, by_csv.targets[order])
    assert "group" in by_csv.table.columns  # the intervals keep a site's clips together


def test_columns_that_were_named_once_are_those_of_other_clips_too(chords, base, tmp_path):
    table = pd.read_csv(chords / "labels.csv")
    table["file"] = [str(chords / file) for file in table["file"]]
    table["loudest"] = [label.split(",")[0] for label in table["sounds"]]
    table.to_csv(tmp_path / "train.csv", index=False)
    table[::2].to_csv(tmp_path / "val.csv", index=False)
    columns = {"audio_column": "file", "label_column": "loudest"}
    options = {"config": head_config(base, max_epochs=1), "log_dir": tmp_path / "logs", **columns}
    of_table = BEATsTrainer.from_dataframe(table, **options)
    of_table.train(verbose=False)

    assert of_table.evaluate(table).num_clips == 40
    run = tmp_path / "logs" / "beats_experiment" / "version_0"
    assert BEATsTrainer.load(run, device="cpu").evaluate(tmp_path / "val.csv").num_clips == 20
    assert options["config"].data.audio_column == "filename"  # the caller's is left as it is


def test_a_run_of_several_processes_is_loaded_in_a_notebook(multi, tmp_path, monkeypatch):
    folder = multi[0].save(tmp_path / "model")
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(settings.replace("devices: 1", "devices: 2"))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    loaded = BEATsTrainer.load(folder, device="cpu")

    assert loaded.config.training.devices == 2
    assert loaded.evaluate("test").num_clips > 0
    with pytest.raises(ConfigError, match="notebook"):
        loaded.train()


def test_a_model_alone_is_told_how_labels_are_written(bare, multi, chords):
    loaded = BEATsTrainer.load(bare, device="cpu")
    loaded.config.training.precision = "float32"
    columns = {"audio_column": "file", "label_column": "sounds"}
    expected = multi[0].score_clips(chords / "labels.csv")

    told = loaded.score_clips(
        chords / "labels.csv", label_delimiter=",", background_labels=["silence"], **columns
    )

    np.testing.assert_array_equal(told.targets, expected.targets)
    np.testing.assert_allclose(told.probabilities, expected.probabilities, atol=1e-6)
    with pytest.raises(
        DatasetError, match=r"'high,low' is not among .*in rows 4, .*pass label_delimiter=','"
    ):
        loaded.evaluate(chords / "labels.csv", background_labels=["silence"], **columns)


def test_the_command_line_measures_a_multi_label_model_alone(bare, multi, chords, tmp_path, capsys):
    table = pd.read_csv(chords / "labels.csv")
    flags = table["sounds"].str.get_dummies(",")[NAMES].assign(file=table["file"])
    flags["fold"] = [number % 4 for number in range(40)]
    flags.to_csv(chords / "flags.csv", index=False)
    arguments = ["evaluate", str(bare), str(chords / "flags.csv"), "--label-columns"]
    arguments += [",".join(NAMES), "--audio-column", "file"]
    arguments += ["--device", "cpu", "--precision", "float32"]

    assert main([*arguments, "--json", "--report", str(tmp_path / "report")]) == 0

    shown = json.loads(capsys.readouterr().out)
    expected = multi[0].score_clips(chords / "labels.csv", group_column=None)
    assert shown["mean_average_precision"] == pytest.approx(expected.metrics.mean_average_precision)
    assert shown["num_clips"] == 40
    low, high = shown["intervals"]["map"]
    assert low <= shown["mean_average_precision"] <= high
    assert "40 clips" in (tmp_path / "report" / "report.html").read_text()

    assert main([*arguments, "--json", "--split-column", "fold", "--split", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["num_clips"] == 10


def test_predict_detects_every_tone_that_reaches_the_fitted_threshold(multi, chords):
    trainer, result = multi
    files = [str(chords / f"{number}.wav") for number in range(8)]

    table = trainer.predict(files)

    scored = table[NAMES].to_numpy() >= [trainer.model.thresholds[name] for name in NAMES]
    assert table["detected"].tolist() == [
        ";".join(name for name, is_heard in zip(NAMES, row, strict=True) if is_heard)
        for row in scored
    ]
    assert trainer.predict(files, thresholds=0)["detected"].tolist() == [";".join(NAMES)] * 8
    again = BEATsPredictor(result.best_checkpoint, "cpu", precision="float32").predict(files)
    pd.testing.assert_frame_equal(again, table)


def test_a_wrong_label_is_an_error_that_names_row_file_and_label(multi, chords, tmp_path):
    trainer, _ = multi
    table = pd.read_csv(chords / "labels.csv")
    table["file"] = [str(chords / file) for file in table["file"]]
    table.loc[5, "sounds"] = "low,hihg"
    table.to_csv(tmp_path / "wrong.csv", index=False)

    with pytest.raises(DatasetError, match=r"'hihg' .*in row 6 .*5\.wav.*mean 'high'\?"):
        trainer.evaluate(tmp_path / "wrong.csv")


def test_settings_and_rows_that_are_not_there_are_errors(multi, chords):
    trainer, _ = multi
    csv = chords / "labels.csv"

    with pytest.raises(
        ConfigError, match=r"data\.label_delimeter\. Did you mean 'label_delimiter'"
    ):
        trainer.evaluate(csv, label_delimeter=",")
    for clips in ("test", trainer.manifest):
        with pytest.raises(ConfigError, match="label_delimiter= is for reading"):
            trainer.evaluate(clips, label_delimiter=",")
    with pytest.raises(ConfigError, match=r"says what data\.metadata_file is"):
        trainer.evaluate(csv, metadata_file="other.csv")
    with pytest.raises(DatasetError, match=r"no column 'sit'\. Did you mean 'site'\?"):
        trainer.evaluate(csv, rows={"sit": "site_1"})
    with pytest.raises(
        DatasetError, match=r"has 'site_99' in the column 'site'\. Its values: site_0, "
    ):
        trainer.evaluate(csv, rows={"site": "site_99"})
    assert trainer.evaluate(csv, rows={"site": "site_1"}).num_clips == 4


def test_clips_of_one_class_and_of_any_number_are_not_mixed_up(multi, base, chords, tmp_path):
    folder = write_tones(tmp_path / "tones", num_clips=6)
    one_class = BEATsTrainer.from_directory(folder, head_config(base), log_dir=tmp_path)
    one_class.train(verbose=False)
    table = pd.DataFrame({"filename": [str(chords / "3.wav")], "category": [["high", "low"]]})

    with pytest.raises(DatasetError, match="exactly one class, but these have any number"):
        one_class.evaluate(table)
    with pytest.raises(DatasetError, match="any number of classes, but these have exactly one"):
        multi[0].evaluate(one_class.manifest)
    assert multi[0].evaluate(folder).num_clips == 18  # a folder says one of any number


def test_a_manifest_is_read_by_the_names_of_its_classes(multi, chords):
    trainer, _ = multi
    files = [str(chords / f"{number}.wav") for number in (1, 2, 4)]
    table = pd.DataFrame({"filename": files, "category": [["low"], ["high", "low"], []]})
    manifest = build_manifest(table, labels=["low", "high"])  # the other way round, and one fewer

    scored = trainer.score_clips(manifest)

    assert scored.targets.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_annotated_recordings_are_measured_in_windows(bare, tmp_path):
    wave = np.concatenate([tone(PITCHES["high"], 1, 2.0), tone(PITCHES["low"], 2, 2.0)])
    soundfile.write(tmp_path / "dawn.wav", wave, 16000)
    (tmp_path / "dawn.txt").write_text("0.0\t2.0\thigh\n2.0\t4.0\tlow\n")
    loaded = BEATsTrainer.load(bare, device="cpu")

    scored = loaded.score_clips(tmp_path, annotations=tmp_path / "dawn.txt", window_s=2.0)

    assert scored.table["start_time"].tolist() == [0.0, 2.0]
    assert scored.targets.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_a_model_of_one_class_per_clip_stays_one_whatever_its_loss(base, tmp_path, loss):
    config = head_config(base, max_epochs=2, loss_function=loss)
    folder = write_tones(tmp_path / "tones", num_clips=6)
    result = BEATsTrainer.from_directory(folder, config, log_dir=tmp_path).train(verbose=False)
    bare = shutil.copytree(result.best_checkpoint, tmp_path / "bare")

    loaded = BEATsTrainer.load(bare, device="cpu")

    activation = BEATsForAudioClassification.from_pretrained(bare).activation
    assert activation == ("sigmoid" if loss == "bce" else "softmax")
    assert loaded.task == "single"
    assert loaded.evaluate(folder).confusion.sum() == 18
    detected = loaded.predict(str(folder / "low" / "clip_0.wav"), thresholds=0)["detected"][0]
    assert detected in NAMES


def test_a_report_of_a_measurement_has_its_numbers_and_mistakes(multi, chords, tmp_path):
    trainer, _ = multi

    metrics = trainer.evaluate(chords / "labels.csv", report=tmp_path / "report")

    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    figures = {figure["name"]: figure for figure in numbers["headline"]}
    mean = figures["Mean average precision"]
    assert mean["value"] == pytest.approx(metrics.mean_average_precision)
    assert mean["low"] <= mean["value"] <= mean["high"]
    assert numbers["thresholds"] == pytest.approx(trainer.model.thresholds)
    assert "the 10 groups that the 40 clips" in numbers["interval_note"]


def test_what_is_decided_by_a_threshold_is_a_mistake_by_it(bare, chords, tmp_path):
    loaded = BEATsTrainer.load(bare, device="cpu")
    loaded.model.thresholds = dict.fromkeys(NAMES, 0.0)  # everything counts as detected

    loaded.evaluate(
        chords / "labels.csv",
        report=tmp_path,
        label_delimiter=",",
        background_labels=["silence"],
        audio_column="file",
        label_column="sounds",
    )

    mistakes = json.loads((tmp_path / "report.json").read_text())["mistakes"]
    assert len(mistakes) == 12
    assert all(mistake["truth"] == f"no {mistake['predicted']}" for mistake in mistakes)
