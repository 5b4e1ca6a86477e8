"""``beats-trainer train``: its options are the config's fields, its result a model folder."""

import dataclasses

import pandas as pd
import pytest
import yaml

from beats_trainer.cli import main
from beats_trainer.cli.settings import read_settings
from beats_trainer.config import Config, DataConfig, ModelConfig, TrainingConfig
from tones import PITCHES


def parse(*arguments):
    from beats_trainer.cli.program import build_parser

    return build_parser().parse_args(["train", *arguments])


def test_a_run_leaves_a_model_folder_and_says_how_to_use_it(here):
    model = here / "logs" / "beats_experiment" / "version_0" / "model"

    assert {"config.json", "model.safetensors", "README.md"} <= {
        path.name for path in model.iterdir()
    }


def test_every_field_of_the_config_is_an_option_with_its_docstring_as_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out

    sections = {"data.": DataConfig, "model.": ModelConfig, "training.": TrainingConfig}
    for prefix, owner in sections.items():
        for field in dataclasses.fields(owner):
            assert f"--{prefix}{field.name} " in shown
    assert "``" not in shown
    assert "Learning-rate factor per encoder layer" in shown


@pytest.mark.parametrize(
    ("arguments", "section", "field", "value"),
    [
        (["--epochs", "3"], "training", "max_epochs", 3),
        (["--training.max_epochs=3"], "training", "max_epochs", 3),
        (["--lr", "5e-5"], "training", "learning_rate", 5e-5),
        (["--training.scheduler", "null"], "training", "scheduler", None),
        (["--precision", "32"], "training", "precision_name", "float32"),
        (["--model", "openbeats"], "model", "model_path", "openbeats"),
        (["--model.freeze_backbone", "false"], "model", "trains_backbone", True),
        (["--finetune"], "model", "resolved_mode", "full"),
        (["--from-scratch"], "model", "resolved_mode", "scratch"),
        (["--model.hidden_dims", "256,128"], "model", "hidden_dims", [256, 128]),
        (["--model.hidden_dims", "[64]"], "model", "hidden_dims", [64]),
        (["--data.audio_extensions", ".wav,.ogg"], "data", "audio_extensions", [".wav", ".ogg"]),
        (["--label-column", "7"], "data", "label_column", "7"),
        (["--seed", "3"], None, "seed", 3),
        (["--name", "night"], None, "experiment_name", "night"),
    ],
)
def test_options_set_fields(arguments, section, field, value):
    config = read_settings(parse(*arguments))

    assert getattr(getattr(config, section) if section else config, field) == value


def test_options_go_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training: {max_epochs: 7, learning_rate: 5e-5}\nseed: 3\n")

    config = read_settings(parse("--config", str(file), "--epochs", "9"))

    assert (config.training.max_epochs, config.training.learning_rate, config.seed) == (9, 5e-5, 3)
    assert config.data == Config().data


def test_printed_settings_are_read_back(tmp_path, capsys):
    arguments = ["--from-scratch", "--model.encoder_layers", "3", "--lr", "1e-4"]
    assert main(["train", str(tmp_path), *arguments, "--print_config"]) == 0

    printed = yaml.safe_load(capsys.readouterr().out)

    assert printed["model"]["encoder_layers"] == 3
    assert Config.from_dict(printed) == read_settings(
        parse(str(tmp_path), *arguments), **{"data.data_dir": str(tmp_path)}
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "many"], "training.max_epochs must be a whole number"),
        (["--training.optimizer", "sdg"], "training.optimizer must be one of adamw, adam, sgd"),
        (["--data.sample_rate", "44100"], "data.sample_rate must be 16000"),
        (["--model.fine_tune_backbone", "true"], "contradict each other"),
        (["--config", "missing.yaml"], "missing.yaml"),
        ([], "There is no data to train on"),
    ],
)
def test_wrong_settings_are_usage_errors_before_any_work(
    arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    assert main(["train", *arguments]) == 2

    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_data_and_an_option_that_contradicts_it_are_refused(tmp_path, capsys):
    assert main(["train", str(tmp_path), "--data-dir", "elsewhere"]) == 2

    assert "data.data_dir" in capsys.readouterr().err


def test_a_table_with_folds_and_columns_of_other_names(here, tmp_path, capsys, monkeypatch):
    rows = [(f"{label}/clip_{n}.wav", label, n % 5 + 1) for label in PITCHES for n in range(10)]
    table = pd.DataFrame(rows, columns=["path", "species", "fold"])
    table.to_csv(tmp_path / "labels.csv", index=False)

    code = main(
        [
            *("train", str(tmp_path / "labels.csv"), "--data-dir", "recordings"),
            *(
                "--audio-column",
                "path",
                "--label-column",
                "species",
                "--model",
                str(here / "logs/beats_experiment/version_0/model"),
            ),
            *("--epochs", "20", "-o", str(tmp_path / "runs"), "--name", "folds", "--device", "cpu"),
        ]
    )

    shown = capsys.readouterr().out
    assert code == 0
    assert "fold" in shown
    assert (tmp_path / "runs/folds/version_0/model/config.json").is_file()
    assert f"beats-trainer predict {tmp_path / 'runs/folds/version_0/model'}" in shown


def test_a_data_set_that_is_not_there_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["train", "nowhere"]) == 1

    assert "nowhere" in capsys.readouterr().err
