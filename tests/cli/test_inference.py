"""``beats-trainer embed``, ``predict`` and ``evaluate`` with a model that ``train`` made."""

import io
import json
import sys

import numpy as np
import pandas as pd
import pytest

from beats_trainer import BEATsFeatureExtractor, BEATsPredictor, BEATsTrainer
from beats_trainer.cli import main
from beats_trainer.embeddings.table import read_embeddings
from beats_trainer.loading import find_clips

RUN = "logs/beats_experiment/version_0"
MODEL = f"{RUN}/model"
CPU = ["--device", "cpu", "--precision", "float32"]


@pytest.fixture
def half_broken(here, tmp_path):
    """A folder with two tones and a text file that is called ``b.wav``."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, source in (("a.wav", "high/clip_0.wav"), ("c.wav", "low/clip_0.wav")):
        (folder / name).write_bytes((here / "recordings" / source).read_bytes())
    (folder / "b.wav").write_text("not a recording")
    return folder


@pytest.mark.parametrize(("empty", "said"), [(".", "no audio file"), ("*.wav", "no file matches")])
def test_inputs_that_mean_no_file_are_errors(empty, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["embed", empty, "-o", "out.parquet"]) == 1

    assert said in capsys.readouterr().err


def test_embed_writes_what_the_python_call_gives(here, tmp_path, capsys):
    out = tmp_path / "new" / "embeddings.parquet"
    code = main(
        [
            *("embed", "recordings/high", "-o", str(out), "--model", MODEL, *CPU),
            *("--window", "0.2", "--hop", "0.1", "--pooling", "max", "--layer", "1"),
        ]
    )

    table = read_embeddings(out)
    extractor = BEATsFeatureExtractor(MODEL, "cpu", 1, "max", precision="float32")
    expected = extractor.embed([clip.file for clip in find_clips("recordings/high")], 0.2, 0.1)
    assert code == 0
    assert table.file == expected.file
    np.testing.assert_array_equal(table.start_time, expected.start_time)
    np.testing.assert_allclose(table.embeddings, expected.embeddings, atol=1e-6)
    assert table.recipe == expected.recipe
    assert f"{len(table)} rows of 10 files" in capsys.readouterr().out


def test_embed_reads_which_files_from_standard_input(here, tmp_path, monkeypatch):
    out = tmp_path / "embeddings.parquet"
    listed = io.BytesIO(b"recordings/low/clip_1.wav\0recordings/high/clip_0.wav\0")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))

    assert main(["embed", "-", "-o", str(out), "--model", MODEL, *CPU]) == 0

    files = ["recordings/low/clip_1.wav", "recordings/high/clip_0.wav"]
    assert read_embeddings(out).file == files


def test_embed_stops_at_an_unreadable_file_if_asked_to(half_broken, tmp_path, capsys):
    out = tmp_path / "out" / "embeddings.parquet"
    arguments = ["embed", str(half_broken), "-o", str(out), "--on-error", "raise"]

    assert main([*arguments, "--model", MODEL, *CPU]) == 1

    assert "b.wav" in capsys.readouterr().err
    assert not out.exists()


def test_embed_skips_an_unreadable_file_and_says_why_in_errors_csv(half_broken, tmp_path, capsys):
    out = tmp_path / "embeddings.parquet"
    arguments = ["embed", str(half_broken), "-o", str(out), "--model", MODEL]

    assert main([*arguments, *CPU]) == 3

    errors = pd.read_csv(tmp_path / "embeddings.errors.csv")
    assert [file.rsplit("/")[-1] for file in read_embeddings(out).file] == ["a.wav", "c.wav"]
    assert errors["file"].tolist() == [str(half_broken / "b.wav")]
    assert errors["reason"].str.len().min() > 0
    assert "1 file could not be read" in capsys.readouterr().err

    (half_broken / "b.wav").unlink()
    assert main([*arguments, *CPU]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.parquet", "mixed"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--hop", "1"], 2, "--hop needs --window"),
        (["--window", "0"], 1, "window"),
        (["--window", "inf", "--model", "no_model.pt"], 1, "finite"),  # before a model is loaded
        (["--layer", "99"], 1, "There is no layer 99"),
        (["--device", "gpu"], 1, "Unknown device 'gpu'"),
    ],
)
def test_embed_refuses_options_that_make_no_sense(here, tmp_path, arguments, code, said, capsys):
    out = tmp_path / "x.parquet"

    assert main(["embed", "recordings", "-o", str(out), "--model", MODEL, *arguments]) == code

    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["evaluate", "x"], ["predict", "x", "y.wav"]])
def test_a_batch_without_clips_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--batch-size", "0"])

    assert "must be a whole number of at least 1, not '0'" in capsys.readouterr().err


def test_an_output_below_a_file_is_refused_before_the_work(here, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "out")

    assert main(["embed", "recordings", "-o", out, "--model", "not/there.pt"]) == 1

    assert "is a file, not a folder" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_no_output(here, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("")

    assert main(["embed", "recordings", "-o", str(tmp_path), "--model", MODEL, *CPU]) == 1

    assert "holds no store" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_predict_shows_the_best_labels_and_writes_all_scores(here, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    files = ["recordings/high/clip_0.wav", "recordings/low/clip_0.wav"]

    code = main(["predict", MODEL, *files, "-o", str(out), "--top", "2", *CPU])

    lines = capsys.readouterr().out.splitlines()
    expected = BEATsPredictor(MODEL, "cpu", precision="float32").predict(files)
    written = pd.read_csv(out)
    assert code == 0
    assert lines[0].split() == ["file", "label", "score", "detected"]
    first = expected.loc[0]
    mark = "yes" if first["detected"] == first["label"] else "no"
    assert lines[1].split() == [files[0], first["label"], f"{first['score']:.3f}", mark]
    assert len(lines) == 1 + 2 * 2 + 1
    assert list(written.columns) == ["file", "label", "score", "detected", "high", "low", "middle"]
    np.testing.assert_allclose(written["score"], expected["score"], atol=1e-6)


def test_predict_detects_by_thresholds_for_all_labels_and_for_one(here, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    command = ["predict", MODEL, "recordings/high/clip_0.wav", "-o", str(out), *CPU]
    best = BEATsPredictor(MODEL, "cpu").predict("recordings/high/clip_0.wav")["label"][0]

    main([*command, "--threshold", "0"])
    assert pd.read_csv(out)["detected"].tolist() == [best]
    assert capsys.readouterr().out.splitlines()[1].endswith("yes")

    main([*command, "--threshold", "0", "--threshold", f"{best}=1"])
    assert pd.read_csv(out, keep_default_na=False)["detected"].tolist() == [""]
    assert capsys.readouterr().out.splitlines()[1].endswith("no")


@pytest.mark.parametrize(
    ("threshold", "code", "said"),
    [
        ("much", 2, "must be a score such as 0.7"),
        ("1.5", 2, "from 0 to 1"),
        ("hihg=0.5", 1, "Did you mean 'high'?"),
    ],
)
def test_predict_refuses_a_threshold_that_makes_no_sense(here, threshold, code, said, capsys):
    command = ["predict", MODEL, "recordings", "--threshold", threshold, *CPU]

    assert main(command) == code

    assert said in capsys.readouterr().err


def test_predict_skips_an_unreadable_file(half_broken, capsys):
    assert main(["predict", MODEL, str(half_broken), "--on-error", "skip", *CPU]) == 3

    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3
    assert "b.wav" in shown.err


def test_predict_of_a_model_that_is_not_there_is_an_error(here, capsys):
    assert main(["predict", "not/there", "recordings"]) == 1

    assert "not/there" in capsys.readouterr().err


def test_evaluate_measures_the_runs_own_test_clips(here, capsys):
    assert main(["evaluate", RUN, "--json", *CPU]) == 0

    shown = json.loads(capsys.readouterr().out)
    stored = json.loads((here / RUN / "metrics.json").read_text())["test"]
    assert shown["confusion"] == stored["confusion"]
    assert shown["num_clips"] == 6
    assert shown["intervals"].keys() == stored["intervals"].keys()


def test_evaluate_a_folder_prints_a_table(here, capsys):
    assert main(["evaluate", MODEL, "recordings", *CPU]) == 0

    scored = BEATsTrainer.load(MODEL, device="cpu").score_clips("recordings")
    shown = capsys.readouterr().out
    assert shown.startswith(f"{scored.metrics}\n")
    accuracy = scored.intervals["accuracy"]
    *_, line = (line for line in shown.splitlines() if line.startswith("accuracy  "))
    value = f"{accuracy.value:.3f}"
    assert line.split()[1:] == [value, f"{accuracy.low:.3f}", "to", f"{accuracy.high:.3f}"]


def test_evaluate_writes_a_report(here, tmp_path, capsys):
    out = tmp_path / "evaluation"

    assert main(["evaluate", MODEL, "recordings", "--report", str(out), *CPU]) == 0

    assert str(out / "report.html") in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "30 clips of recordings" in page
    numbers = json.loads((out / "report.json").read_text())
    assert len(numbers["per_class"]) == 3


def test_evaluate_of_the_runs_own_clips_takes_no_options_for_others(here, capsys):
    assert main(["evaluate", RUN, "--label-delimiter", ",", *CPU]) == 2
    assert "leave out --label-delimiter" in capsys.readouterr().err
    assert main(["evaluate", MODEL, "recordings", "--split", "test", *CPU]) == 2
    assert "--split needs --split-column" in capsys.readouterr().err


def test_evaluate_takes_the_rows_of_one_split(here, tmp_path, capsys):
    rows = [(f"high/clip_{n}.wav", "high", "test" if n < 3 else "train") for n in range(10)]
    table = tmp_path / "labels.csv"
    pd.DataFrame(rows, columns=["filename", "category", "part"]).to_csv(table, index=False)
    arguments = ["evaluate", MODEL, str(table), "--data-dir", "recordings", "--json", *CPU]

    assert main([*arguments, "--split-column", "part"]) == 0
    assert json.loads(capsys.readouterr().out)["num_clips"] == 3

    assert main([*arguments, "--split-column", "part", "--split", "dev"]) == 1
    assert "Its values: test, train" in capsys.readouterr().err

    assert main([*arguments, "--split-column", "set"]) == 1
    assert "Its columns: filename, category, part" in capsys.readouterr().err
