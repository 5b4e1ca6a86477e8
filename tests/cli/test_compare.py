"""``beats-trainer compare``: what it prints and writes is what the Python call gives."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from beats_trainer.cli import main

QUICK = ["--device", "cpu", "--precision", "float32", "--epochs", "2", "--data.num_workers", "0"]
RUN = "logs/beats_experiment/version_0"


@pytest.fixture(scope="module")
def copies(workplace):
    """Two model folders beside the recordings, without the run that made them."""
    for name in ("first", "second"):
        shutil.copytree(workplace / RUN / "model", workplace / "models" / name)
    return workplace


@pytest.mark.filterwarnings("ignore")
def test_models_are_compared_and_what_cannot_be_told_is_printed(copies, here, capsys):
    options = ["--models", "models/first,models/second", "--methods", "knn,linear", "--folds", "2"]
    code = main(["compare", "recordings", *options, "-o", "compared", *QUICK])
    printed = capsys.readouterr()

    table = pd.read_csv(here / "compared" / "comparison.csv")
    content = json.loads((here / "compared" / "comparison.json").read_text())
    assert code == 0
    assert sorted(zip(table["model"], table["method"], strict=True)) == [
        ("first", "knn"),
        ("first", "linear"),
        ("second", "knn"),
        ("second", "linear"),
    ]
    assert content["verdict"] in printed.out
    assert "cannot tell it apart from" in printed.out
    assert f"{table['accuracy'][0]:.3f}" in printed.out
    assert "compared/comparison.html" in printed.out
    assert "trained on 18 labelled clips" in printed.out  # the folders say so themselves


@pytest.mark.filterwarnings("ignore")
def test_a_table_its_columns_and_the_share_for_validation_are_taken(copies, here, capsys):
    files = sorted((here / "recordings").glob("*/*.wav"))
    pd.DataFrame(
        {
            "clip": [str(file.relative_to(here / "recordings")) for file in files],
            "kind": [file.parent.name for file in files],
            "site": [file.stem for file in files],
        }
    ).to_csv(here / "clips.csv", index=False)
    columns = ["--audio-column", "clip", "--label-column", "kind", "--group-column", "site"]
    options = ["--models", RUN, "--methods", "knn", "--folds", "2", "--val-split", "0.5"]

    code = main(
        [
            "compare",
            "clips.csv",
            "--data-dir",
            "recordings",
            *columns,
            *options,
            "-o",
            "by_site",
            *QUICK,
        ]
    )

    (first, *_) = json.loads((here / "by_site" / "comparison.json").read_text())["folds"]
    predictions = pd.read_csv(here / "by_site" / "predictions.csv")
    assert code == 0
    assert first == {"fold": "1", "train": 9, "val": 6, "test": 15}
    assert set(predictions.groupby("group")["fold"].nunique()) == {1}
    assert "trained with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recordings"], "--models"),
        (["recordings", "--models", ","], "--models"),
        (["recordings", "--models", "models/first", "--methods", "svm"], "'svm'"),
        (["--models", "models/first"], "no data"),
        (["recordings", "--models", "models/first", "--mode", "full"], "no option --mode"),
    ],
)
def test_wrong_arguments_are_named(copies, here, capsys, arguments, says):
    try:
        code = main(["compare", *arguments])
    except SystemExit as stop:
        code = stop.code

    assert code == 2
    assert says in capsys.readouterr().err


def test_a_misspelt_folder_of_annotated_recordings_is_named(copies, here, capsys):
    arguments = ["recodings", "--models", "models/first", "--annotations", "x.txt"]

    assert main(["compare", *arguments]) == 1
    assert "recodings" in capsys.readouterr().err


def test_unknown_model_is_named(copies, here, capsys):
    assert main(["compare", "recordings", "--models", "openbeat", *QUICK]) == 1
    assert "Did you mean 'openbeats'?" in capsys.readouterr().err


def test_help_offers_what_has_an_effect_and_nothing_else(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = capsys.readouterr().out

    for option in (
        "--models",
        "--methods",
        "--folds",
        "--group-pattern",
        "--epochs",
        "--val-split",
    ):
        assert f"{option} " in shown
    for option in (
        "--model ",
        "--mode ",
        "--from-scratch",
        "--finetune",
        "--augmentation.",
        "lora",
    ):
        assert option not in shown


def test_settings_of_a_file_are_taken_and_printed(here, capsys):
    (here / "run.yaml").write_text("training: {max_epochs: 7}\nmodel: {mode: full}\n")

    code = main(["compare", "recordings", "--config", "run.yaml", "--seed", "3", "--print_config"])

    settings = yaml.safe_load(capsys.readouterr().out)
    assert code == 0
    assert (settings["training"]["max_epochs"], settings["seed"]) == (7, 3)
