"""``beats-trainer detect``, and the options of ``predict`` and ``embed`` for many and long recordings."""

import io
import os
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

from beats_trainer import BEATsFeatureExtractor, BEATsPredictor
from beats_trainer.checkpoints.audioset_labels import audioset_names
from beats_trainer.cli import main
from beats_trainer.detection import read_detections
from beats_trainer.detection.tables import FORMATS, STANDARD_NAMES
from beats_trainer.embeddings import open_store
from beats_trainer.model import BEATs
from checkpoint_files import tiny_architecture, write_microsoft_checkpoint
from tones import PITCHES, tone

MODEL = "logs/beats_experiment/version_0/model"
CPU = ["--device", "cpu", "--precision", "float32"]
WINDOWS = ["--window", "0.4", "--hop", "0.2"]


@pytest.fixture
def nights(here, tmp_path):
    """Two recordings in which the classes are heard one after another."""
    folder = tmp_path / "nights"
    for number, name in enumerate(["site a/20240510_043000.WAV", "site_b/20240511_231500.WAV"]):
        pieces = [tone(pitch, 10 * number + n, 1.0) for n, pitch in enumerate(PITCHES.values())]
        (folder / name).parent.mkdir(parents=True)
        soundfile.write(folder / name, np.concatenate(pieces), 16_000)
    return folder


def detect(nights, out, *options):
    return main(["detect", str(nights), "-o", str(out), "--model", MODEL, *CPU, *WINDOWS, *options])


def test_detect_writes_what_the_python_call_finds(nights, tmp_path, capsys):
    out = tmp_path / "found"

    code = detect(
        *(nights, out, "--threshold", "0.4", "--threshold", "low=0.5", "--label", "low"),
        *("--label", "high", "--release", "0.8", "--min-duration", "0.3", "--merge-gap", "0.4"),
        *("--top-n", "1", "--timezone", "UTC", "--convert-to", "Europe/Oslo"),
    )

    expected = BEATsPredictor(MODEL, "cpu", precision="float32").detect(
        nights,
        window_s=0.4,
        hop_s=0.2,
        thresholds={"low": 0.5, "high": 0.4, "middle": 0.4},
        labels=["low", "high"],
        release=0.8,
        min_duration_s=0.3,
        merge_gap_s=0.4,
        top_n=1,
        timezone="UTC",
        convert_to="Europe/Oslo",
    )
    written = pd.read_csv(out / "detections.csv")
    assert code == 0
    assert set(written["label"]) == {"low", "high"}
    places = ["file", "start_time", "end_time", "label"]
    assert written[places].values.tolist() == expected.events[places].values.tolist()
    np.testing.assert_allclose(written["score"], expected.events["score"], atol=1e-5)
    assert written["datetime"].str.endswith("+02:00").all()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{len(written)} events in 2 recordings, 0.00 hours"
    assert shown[1].split() == ["label", "events", "seconds", "best", "score"]
    assert f"csv: {out}/detections.csv" in shown


def test_detect_writes_every_format_and_clips_and_says_where(nights, tmp_path, capsys):
    out = tmp_path / "found"

    code = detect(nights, out, "--formats", ",".join(FORMATS), "--export-clips", "1")

    shown = capsys.readouterr().out
    assert code == 0
    csv = read_detections(out / "detections.csv")
    assert len(csv) > 2
    for name in FORMATS:
        assert f"{name}: {out / STANDARD_NAMES[name]}" in shown
        assert len(read_detections(out / STANDARD_NAMES[name])) == len(csv)
    assert f"raven: {out}/raven, 2 tables" in shown
    assert f"summary: {out}/summary.csv, {out}/summary.svg" in shown
    assert len(list((out / "clips").rglob("*.wav"))) == csv["label"].nunique()


def test_detect_again_with_another_threshold_runs_no_network_and_needs_the_same_windows(
    nights, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "found"
    assert detect(nights, out) == 0
    first = pd.read_csv(out / "detections.csv")

    with monkeypatch.context() as patch:
        patch.setattr(BEATs, "forward", None)  # the network must not be asked
        assert detect(nights, out, "--threshold", "0") == 0
    again = pd.read_csv(out / "detections.csv")
    assert len(again) == 6  # each class in each recording, from its start to its end
    assert (again["end_time"] - again["start_time"]).min() > 2.9
    assert (first["end_time"] - first["start_time"]).max() < 2.9

    capsys.readouterr()
    assert detect(nights, out, "--hop", "0.1") == 1
    message = capsys.readouterr().err
    assert "hop_s: 0.2 -> 0.1" in message
    assert "--overwrite" in message
    assert detect(nights, out, "--hop", "0.1", "--overwrite") == 0


def test_detect_lists_unreadable_recordings_and_exits_with_3(nights, tmp_path, capsys):
    (nights / "site_b" / "broken.wav").write_text("no sound")
    out = tmp_path / "found"

    assert detect(nights, out) == 3

    shown = capsys.readouterr()
    assert "in 2 recordings" in shown.out
    assert f"1 file could not be read, or not all of it; {out}/errors.csv says why" in shown.err
    assert pd.read_csv(out / "errors.csv")["file"].tolist() == [str(nights / "site_b/broken.wav")]
    assert detect(nights, tmp_path / "other", "--on-error", "raise") == 1


def test_detect_of_nothing_but_unreadable_recordings_is_an_error(here, tmp_path, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")

    assert detect(bad, tmp_path / "found") == 1

    assert "0 events in 0 recordings" in capsys.readouterr().out


def test_detect_that_is_interrupted_says_how_to_go_on_and_does(
    nights, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "found"
    with monkeypatch.context() as patch:
        patch.setattr("beats_trainer.predictor.find_stored_events", _interrupt)
        assert detect(nights, out) == 130

    assert "Interrupted. The same command goes on" in capsys.readouterr().err
    assert not (out / "detections.csv").exists()
    monkeypatch.setattr(BEATs, "forward", None)  # all scores are there
    assert detect(nights, out) == 0
    assert (out / "detections.csv").exists()


def _interrupt(*_):
    raise KeyboardInterrupt


def test_detect_takes_lists_tables_and_standard_input(nights, tmp_path, monkeypatch):
    files = sorted(str(file) for file in nights.rglob("*.WAV"))
    table = tmp_path / "parts.csv"
    table.write_text(f"file,start_time,end_time\n{files[0]},1.0,2.0\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(files[1]) + b"\0")))
    options = ["--model", MODEL, *CPU, *WINDOWS, "--threshold", "0"]

    assert main(["detect", "-", str(table), "-o", str(tmp_path / "out"), *options]) == 0

    events = pd.read_csv(tmp_path / "out" / "detections.csv")
    of_part = events[events["file"] == files[0]]
    assert set(events["file"]) == set(files)
    assert of_part[["start_time", "end_time"]].drop_duplicates().values.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--formats", "csv,ravn"], 2, "Did you mean 'raven'"),
        (["--timezone", "Oslo"], 2, "Did you mean 'Europe/Oslo'"),
        (["--convert-to", "UTC"], 2, "zone of the recorder's clock"),
        (["--release", "2"], 2, "release must be above 0"),
        (["--top-n", "0"], 2, "top_n"),
        (["--export-clips", "-1"], 2, "num_clips"),
        (["--threshold", "much"], 2, "--threshold must be a score"),
        (["--threshold", "hihg=0.5"], 1, "Did you mean 'high'"),
        (["--label", "hihg"], 1, "Did you mean 'high'"),
        (["--window", "0"], 1, "window_s"),
        (["--hop", "3"], 1, "longer than window_s"),
    ],
)
def test_detect_refuses_what_makes_no_sense_and_writes_nothing(
    nights, tmp_path, capsys, monkeypatch, options, code, said
):
    if code == 2:  # found before the model is loaded
        monkeypatch.setattr(BEATsPredictor, "from_pretrained", None)

    assert detect(nights, tmp_path / "found", *options) == code

    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "found").exists()


def test_detect_finds_missing_recordings_before_it_loads_the_model(here, tmp_path, capsys):
    arguments = ["-o", str(tmp_path / "out"), "--model", "not/there.pt"]

    assert main(["detect", str(tmp_path / "*.wav"), *arguments]) == 1

    assert "no file matches" in capsys.readouterr().err


def test_detect_help_names_all_formats_and_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main(["detect", "--help"])

    text = capsys.readouterr().out
    words = " ".join(text.replace("-\n", "-").split()).replace("- ", "-")
    assert ", ".join(FORMATS) in words
    assert max(map(len, text.splitlines())) <= 115
    for group in ("what counts as an event", "date and time", "clips to listen to"):
        assert group in text


def test_detect_per_step_writes_onsets(nights, tmp_path):
    out = tmp_path / "out"
    options = ["--model", MODEL, *CPU, "--per-step", "--window", "1", "--formats", "frames"]

    assert main(["detect", str(nights), "-o", str(out), *options, "--threshold", "0.34"]) == 0

    rows = pd.read_csv(out / "detections.tsv", sep="\t")
    assert list(rows.columns) == ["filename", "onset", "offset", "event_label"]
    assert len(rows) > 2
    assert np.allclose(rows["onset"] / 0.16, (rows["onset"] / 0.16).round())


def test_predict_gives_a_row_for_each_window_with_its_best_labels(nights, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    options = ["--window", "0.5", "--hop", "0.25", "--top", "2", "--only-top", "-o", str(out)]

    assert main(["predict", MODEL, str(nights), *options, *CPU]) == 0

    table = pd.read_csv(out)
    columns = ["file", "start_time", "end_time", "label", "score", "detected", "label_2", "score_2"]
    assert list(table.columns) == columns
    assert len(table) == 2 * 11
    assert table["start_time"][:3].tolist() == [0.0, 0.25, 0.5]
    assert (table["score"] >= table["score_2"]).all()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["file", "start_time", "end_time", "label", "score", "detected"]
    assert shown[-1] == f"Detected labels, and scores of the best 2 classes, in 22 rows: {out}"


def test_predict_writes_all_rows_of_a_table_that_is_made_in_pieces(nights, tmp_path, monkeypatch):
    predictor = BEATsPredictor(MODEL, "cpu", precision="float32")
    whole = predictor.predict(nights, window_s=0.5, hop_s=0.1)
    monkeypatch.setattr("beats_trainer.predictions._ROWS_OF_A_PIECE", 7)
    out = tmp_path / "scores.csv"

    pieces = list(predictor.predict_stream(nights, window_s=0.5, hop_s=0.1))
    options = ["--window", "0.5", "--hop", "0.1", "-o", str(out)]
    assert main(["predict", MODEL, str(nights), *options, *CPU]) == 0

    assert [len(piece) for piece in pieces[:-1]] == [7] * (len(whole) // 7)
    joined = pd.concat(pieces, ignore_index=True)
    pd.testing.assert_frame_equal(joined, whole, atol=1e-5)
    written = pd.read_csv(out, keep_default_na=False)
    places = ["file", "start_time", "label", "detected"]
    assert written[places].values.tolist() == whole[places].values.tolist()


def test_predict_of_a_hop_without_windows_is_a_usage_error(here, capsys):
    assert main(["predict", MODEL, "recordings", "--hop", "1"]) == 2
    assert "--hop needs --window" in capsys.readouterr().err


def test_predict_with_a_checkpoint_of_audioset_tells_names_and_not_codes(nights, tmp_path, capsys):
    codes = ["/m/09x0r", "/m/015p6", "/m/not_there"]  # speech, bird
    checkpoint = write_microsoft_checkpoint(
        tmp_path / "tuned.pt", tiny_architecture(), labels=codes
    )
    files = [str(file) for file in nights.rglob("*.WAV")]

    assert main(["predict", str(checkpoint), *files, "--top", "3", *CPU]) == 0

    shown = capsys.readouterr().out
    assert "Speech" in shown
    assert "Bird" in shown
    assert "/m/not_there" in shown
    assert "/m/09x0r" not in shown
    predictor = BEATsPredictor(checkpoint, "cpu")
    assert predictor.labels == ["Speech", "Bird", "/m/not_there"]
    assert predictor.model.label_codes == codes
    assert audioset_names()[codes[1]] == "Bird"


def test_embed_per_step_of_several_layers_at_half_the_size(nights, tmp_path, capsys):
    out = tmp_path / "store"
    options = [
        "--per-step",
        "--window",
        "1",
        "--layers",
        "0,2",
        "--dtype",
        "float16",
        "--normalize",
    ]

    assert main(["embed", str(nights), "-o", str(out), "--model", MODEL, *options, *CPU]) == 0

    store = open_store(out)
    assert store.columns == {"embedding_layer_0": 32, "embedding_layer_2": 32}
    assert store.dtype == "float16"
    rows = store.read(store.files[0])
    np.testing.assert_allclose(np.diff(rows.start_time), 0.16, atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(rows.values["embedding_layer_2"].astype(float), axis=1), 1, atol=1e-2
    )
    expected = BEATsFeatureExtractor(MODEL, "cpu", precision="float32").embed_to(
        nights, tmp_path / "python", 1.0, per_step=True, layers=[0, 2], normalize=True
    )
    np.testing.assert_allclose(
        store.to_numpy("embedding_layer_2"), expected.to_numpy("embedding_layer_2"), atol=1e-3
    )
    assert "embedding_layer_0 (32), embedding_layer_2 (32)" in capsys.readouterr().out


def test_embed_again_adds_what_is_new_and_other_settings_need_overwrite(nights, tmp_path, capsys):
    out = tmp_path / "store"
    command = ["embed", str(nights), "-o", str(out), "--model", MODEL, *CPU]
    assert main([*command, "--window", "1"]) == 0
    shards = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    soundfile.write(nights / "new.wav", tone(900.0, 0, 1.5), 16_000)

    assert main([*command, "--window", "1"]) == 0
    assert len(open_store(out)) == 3 + 3 + 2
    assert shards.items() <= {p: p.stat().st_mtime_ns for p in (out / "shards").iterdir()}.items()

    capsys.readouterr()
    assert main([*command, "--window", "2"]) == 1
    assert "window_s: 1.0 -> 2.0" in capsys.readouterr().err
    assert main([*command, "--window", "2", "--overwrite"]) == 0
    assert len(open_store(out)) == 2 + 2 + 1


def test_embed_of_two_ways_to_name_layers_is_a_usage_error(here, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "recordings", "-o", "x", "--layer", "1", "--layers", "1,2"])
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "recordings", "-o", "x", "--layers", "one"])
    assert "must be layer numbers with commas" in capsys.readouterr().err
