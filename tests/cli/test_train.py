"""``beats-trainer train``: its options are the config's fields, its result a model folder."""

import dataclasses
import json

import pandas as pd
import pytest
import yaml

from beats_trainer.cli import main
from beats_trainer.cli.settings import read_settings
from beats_trainer.config import Config, DataConfig, ModelConfig, TrainingConfig
from beats_trainer.presets import PRESETS
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
        (["--data.background_labels", "no,1"], "data", "background_labels", ["no", "1"]),
        (["--folds", "official", "--data.val_split", "0"], "data", "val_split", 0.0),
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
        (["--data.val_split", "0"], "set data.train_split=0.9"),
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


def test_text_that_is_no_list_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data.label_columns", "*owl"])

    assert "--data.label_columns: '*owl' cannot be read as A,B,..." in capsys.readouterr().err


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


# Modes, folds, and runs that are broken off.


@pytest.fixture
def tiny_run(here):
    """Arguments of a short run on ``recordings``, from the model that the workplace has trained."""
    model = here / "logs" / "beats_experiment" / "version_0" / "model"
    return [
        *(
            "train",
            "recordings",
            "--model",
            str(model),
            "--device",
            "cpu",
            "--precision",
            "float32",
        ),
        *("--batch-size", "8", "--data.num_workers", "0", "--data.train_split", "0.6"),
        *("--data.val_split", "0.2", "--data.test_split", "0.2"),
    ]


@pytest.mark.parametrize("mode", ["head", "attentive", "lora", "full"])
def test_a_mode_is_one_word(tiny_run, tmp_path, mode):
    if mode == "lora":
        pytest.importorskip("peft")

    code = main([*tiny_run, "--mode", mode, "--epochs", "1", "-o", str(tmp_path)])

    run = tmp_path / "beats_experiment" / "version_0"
    written = yaml.safe_load((run / "config.yaml").read_text())
    model = json.loads((run / "model" / "config.json").read_text())
    assert code == 0
    assert written["model"]["mode"] == model["provenance"]["mode"] == mode
    assert model["pooling"] == ("attentive" if mode == "attentive" else "mean")
    assert (run / "report.html").is_file()


def test_folds_are_made_of_whole_groups_and_their_mean_is_shown(tiny_run, tmp_path, capsys):
    pattern = r"clip_(?P<group>\d)"  # the clips of a number, one of each class, belong together

    code = main(
        [
            *(*tiny_run, "--mode", "head", "--folds", "5", "--group-pattern", pattern),
            *("--epochs", "3", "-o", str(tmp_path), "--name", "cv"),
        ]
    )

    run = tmp_path / "cv" / "version_0"
    table = pd.read_csv(run / "predictions.csv")
    assert code == 0
    assert "accuracy" in capsys.readouterr().out
    assert len(table) == 30
    assert table["filename"].is_unique
    assert table["fold"].nunique() == 5
    assert (
        table.groupby(table["filename"].str.extract(pattern)["group"])["fold"].nunique().max() == 1
    )
    assert len(list(run.glob("fold_*/model/config.json"))) == 5
    assert (run / "report.html").is_file()


def test_a_run_that_ctrl_c_broke_off_is_resumed_with_its_own_settings(
    tiny_run, tmp_path, monkeypatch, capsys
):
    from beats_trainer.training.modules import ClassifierModule

    settings = ["--mode", "full", "--epochs", "3", "--lr", "1e-3", "--training.patience", "9"]
    assert main([*tiny_run, *settings, "-o", str(tmp_path / "whole")]) == 0
    original = ClassifierModule.on_train_epoch_start

    def stop(module):
        if module.current_epoch == 1:
            raise KeyboardInterrupt
        original(module)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "on_train_epoch_start", stop)
        assert main([*tiny_run, *settings, "-o", str(tmp_path / "broken")]) == 130
    run = tmp_path / "broken" / "beats_experiment" / "version_0"
    assert not (run / "metrics.json").exists()

    assert main(["train", "--resume", str(run)]) == 0

    whole = tmp_path / "whole" / "beats_experiment" / "version_0"
    for name in ("history.csv", "metrics.json", "predictions.csv", "config.yaml"):
        assert (run / name).read_text() == (whole / name).read_text()
    assert f"beats-trainer predict {run / 'model'}" in capsys.readouterr().out


def test_broken_folds_are_resumed_and_finished_ones_kept(tiny_run, tmp_path, monkeypatch):
    import beats_trainer.trainer as trainer_module

    settings = ["--mode", "head", "--folds", "3", "--epochs", "3"]
    assert main([*tiny_run, *settings, "-o", str(tmp_path / "whole")]) == 0
    original, trained = trainer_module.train_once, []

    def stop(classifier, splits, config, run, *rest, **options):
        if run.path.name.endswith("2") and not trained.count("again"):
            raise KeyboardInterrupt
        trained.append(run.path.name)
        return original(classifier, splits, config, run, *rest, **options)

    monkeypatch.setattr(trainer_module, "train_once", stop)
    assert main([*tiny_run, *settings, "-o", str(tmp_path / "broken")]) == 130
    trained[:] = ["again"]
    run = tmp_path / "broken" / "beats_experiment" / "version_0"

    assert main(["train", "--resume", str(run)]) == 0

    assert trained == ["again", "fold_2", "fold_3"]
    whole = tmp_path / "whole" / "beats_experiment" / "version_0"
    assert (run / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
    resumed, unbroken = (json.loads((f / "metrics.json").read_text()) for f in (run, whole))
    for row in resumed["folds"] + unbroken["folds"]:
        assert row.pop("duration_s") > 0
    assert resumed == unbroken


@pytest.mark.parametrize("mode", ["head", "full"])
def test_printed_settings_tell_what_the_preset_of_the_mode_is(tmp_path, capsys, mode):
    assert main(["train", str(tmp_path), "--mode", mode, "--lr", "3e-5", "--print_config"]) == 0

    printed = capsys.readouterr().out

    preset = PRESETS[mode]
    assert f"# Mode {mode} sets, where null stands:" in printed
    assert f"#   data.batch_size: {preset.batch_size}\n" in printed
    assert f"#   training.layer_decay: {preset.layer_decay:g}\n" in printed
    assert "#   training.learning_rate" not in printed  # not left to the preset
    settings = yaml.safe_load(printed)
    assert settings["training"]["learning_rate"] == 3e-5
    assert settings["training"]["max_epochs"] is None  # so that it follows the mode
