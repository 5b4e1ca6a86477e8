"""The predictor: scores in order, of the classifier itself, and failures that are seen."""

import os

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from beats_trainer import BEATsForAudioClassification, BEATsPredictor
from beats_trainer.audio import load_audio
from beats_trainer.cli import main
from beats_trainer.errors import AudioError, CheckpointError
from beats_trainer.model import AttentivePooling, BEATs, ClassifierHead
from beats_trainer.reports import fit_thresholds
from checkpoint_files import tiny_architecture, write_microsoft_checkpoint
from sounds import tone, write_tone

LABELS = ["wren", "score", "robin"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_microsoft_checkpoint(folder / "tuned.pt", tiny_architecture(), labels=LABELS)


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return BEATsPredictor.from_pretrained(checkpoint, device="cpu", precision="float32")


@pytest.fixture
def files(tmp_path):
    return [write_tone(tmp_path / f"{i}.wav", 0.4 + 0.6 * i, 300 * (i + 1)) for i in range(4)]


def test_scores_are_the_classifiers_own(predictor, checkpoint, files):
    table = predictor.predict(files)

    classifier = BEATsForAudioClassification.from_pretrained(checkpoint)
    for row, file in enumerate(files):
        with torch.no_grad():
            probs = classifier(torch.from_numpy(load_audio(file))[None]).probs[0].numpy()
        scores = table.loc[row, ["wren", "score_score", "robin"]].to_numpy(np.float32)
        np.testing.assert_allclose(scores, probs, atol=1e-4)
        assert table.loc[row, "label"] == LABELS[probs.argmax()]
        assert table.loc[row, "score"] == pytest.approx(probs.max(), abs=1e-4)
    assert list(table["file"]) == [str(file) for file in files]


def test_a_model_with_learned_pooling_scores_recordings_of_any_length():
    torch.manual_seed(0)
    beats = BEATs(tiny_architecture())
    pooling = AttentivePooling.for_architecture(beats.architecture)
    torch.nn.init.normal_(pooling.scores.weight, std=3.0)
    classifier = BEATsForAudioClassification(
        beats, ClassifierHead(32, 3), LABELS, pooling="attentive", attentive_pooling=pooling
    )
    predictor = BEATsPredictor(classifier, device="cpu", precision="float32", window_s=2.0)

    scores = predictor.predict_proba([tone(1.0), tone(5.0)])

    with torch.no_grad():
        expected = classifier(torch.from_numpy(tone(1.0))[None]).probs
    np.testing.assert_allclose(scores[:1], expected, atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)


def test_one_file_makes_one_row_and_none_make_a_table_without_rows(predictor, files):
    assert len(predictor.predict(files[0])) == 1
    empty = predictor.predict([])
    assert list(empty.columns) == [
        "file",
        "label",
        "score",
        "detected",
        "wren",
        "score_score",
        "robin",
    ]
    assert len(empty) == 0


def test_a_bad_file_is_raised_or_has_a_row_that_says_why(predictor, files, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")

    with pytest.raises(AudioError, match=r"bad\.wav"):
        predictor.predict([files[0], bad])
    table = predictor.predict([bad, files[0]], on_error="skip")

    assert table["label"].isna().tolist() == [True, False]
    assert table.loc[0, ["score", "wren", "robin"]].isna().all()
    assert "not audio" in table.loc[0, "error"]
    assert table.loc[1, "error"] is None or np.isnan(table.loc[1, "error"])


def test_arrays_can_be_scored_too(predictor, files):
    scores = predictor.predict_proba([tone(0.4, 300), tone(1.0, 600)])

    table = predictor.predict(files[:2])
    np.testing.assert_allclose(scores, table[["wren", "score_score", "robin"]], atol=1e-3)


def test_an_encoder_without_a_head_is_no_classifier(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "encoder.pt", tiny_architecture())

    with pytest.raises(CheckpointError, match="head"):
        BEATsPredictor(path)


def fixed_predictor(scores, labels=("wren", "robin", "crow"), activation="sigmoid", **options):
    """A predictor that gives these scores for every sound: its head is only a bias."""
    scores = torch.tensor(scores, dtype=torch.float64)
    head = ClassifierHead(32, len(labels))
    (linear,) = [layer for layer in head.modules() if isinstance(layer, torch.nn.Linear)]
    torch.nn.init.zeros_(linear.weight)
    bias = scores.log() if activation == "softmax" else scores.logit()
    linear.bias.data = bias.float()
    classifier = BEATsForAudioClassification(
        BEATs(tiny_architecture()), head, labels, activation, **options
    )
    return BEATsPredictor(classifier, device="cpu", precision="float32")


def test_detected_are_the_labels_that_reach_the_thresholds_of_the_model(files):
    thresholds = {"wren": 0.75, "robin": 0.2, "crow": 0.01}
    predictor = fixed_predictor([0.7, 0.3, 0.02], thresholds=thresholds)

    table = predictor.predict(files[0])

    assert table["detected"].tolist() == ["robin;crow"]
    assert table["label"].tolist() == ["wren"]  # the highest score, threshold or not
    assert list(table.columns) == ["file", "label", "score", "detected", *thresholds]
    assert predictor.thresholds == thresholds


@pytest.mark.parametrize(
    ("given", "detected"),
    [
        (None, "wren"),  # 0.5 for a class that the model has no threshold for
        (0.25, "wren;robin"),
        (0.9, ""),
        ({"robin": 0.3}, "wren;robin"),
        ({"wren": 1.0}, ""),
        ({"crow": 0}, "wren;crow"),
    ],
)
def test_thresholds_are_the_models_or_those_given_by_number_or_by_name(files, given, detected):
    predictor = fixed_predictor([0.7, 0.3001, 0.02], thresholds={"crow": 0.6})

    assert predictor.predict(files[0], thresholds=given)["detected"].tolist() == [detected]


def test_a_score_that_equals_its_threshold_is_detected(files):
    predictor = fixed_predictor([0.5, 0.3, 0.02])
    score = float(predictor.predict(files[0])["wren"][0])

    at, above = score, np.nextafter(score, 1)

    assert predictor.predict(files[0], thresholds=at)["detected"].tolist() == ["wren"]
    assert predictor.predict(files[0], thresholds=above)["detected"].tolist() == [""]


@pytest.mark.parametrize(("limit", "detected"), [(0.55, "wren"), (0.65, "")])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_of_exactly_one_class_only_the_most_likely_is_detected_or_none(
    files, activation, limit, detected
):
    predictor = fixed_predictor(
        [0.6, 0.3, 0.1],
        activation=activation,
        task="single",
        thresholds={"wren": limit, "robin": 0.2, "crow": 0.05},
    )

    table = predictor.predict(files[0])

    assert table["detected"].tolist() == [detected]
    assert table["label"].tolist() == ["wren"]


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ({"wrem": 0.5}, r"threshold for 'wrem'.*3 classes: wren, robin, crow.*mean 'wren'"),
        (1.5, r"from 0 to 1, not 1\.5"),
        (float("nan"), "from 0 to 1, not nan"),
        ({"robin": "0.5"}, "not '0.5' \\(of the class 'robin'\\)"),
    ],
)
def test_a_threshold_that_makes_no_sense_is_an_error_before_the_work(thresholds, said):
    with pytest.raises(ValueError, match=said):
        fixed_predictor([0.7, 0.3, 0.02]).predict("not/there.wav", thresholds=thresholds)


def test_classes_that_are_called_like_columns_have_columns_of_their_own(files, tmp_path):
    labels = ["score", "score_score", "error", "detected", "wren"]
    predictor = fixed_predictor([0.1, 0.2, 0.3, 0.4, 0.9], labels)
    (tmp_path / "bad.wav").write_text("no sound")

    table = predictor.predict([files[0], tmp_path / "bad.wav"], on_error="skip")

    assert table.columns.is_unique
    scores = table.loc[0, predictor.score_columns].to_numpy(float)
    np.testing.assert_allclose(scores, [0.1, 0.2, 0.3, 0.4, 0.9], atol=1e-6)
    assert "not audio" in table.loc[1, "error"]
    assert table["detected"][0] == "wren"
    assert pd.isna(table["detected"][1])
    assert predictor.score_columns[-1] == "wren"


def test_classes_that_are_called_like_columns_are_shown_with_their_own_scores(
    files, tmp_path, capsys
):
    predictor = fixed_predictor([0.9, 0.2, 0.6], ["wren", "label_2", "robin"])
    model = predictor.model.save_pretrained(tmp_path / "model")

    code = main(["predict", str(model), str(files[0]), "--top", "3", "--device", "cpu"])

    assert code == 0
    rows = [line.split()[-3:-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["wren", "0.900"], ["robin", "0.600"], ["label_2", "0.200"]]


def test_thresholds_fitted_on_scores_detect_what_they_were_fitted_to(predictor, files):
    scores = predictor.predict(files)[predictor.score_columns].to_numpy(float)
    targets = (scores >= np.median(scores, axis=0)).astype(float)

    fitted = fit_thresholds(targets, scores, LABELS, "multi")

    detected = predictor.predict(files, thresholds=fitted)["detected"]
    for row, text in enumerate(detected):
        assert text.split(";") == [
            label for label, is_there in zip(LABELS, targets[row], strict=True) if is_there
        ] or (text == "" and not targets[row].any())


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_with_bytes_that_are_no_text_has_a_row_that_can_be_written(predictor, tmp_path):
    file = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    try:
        with open(file, "wb") as stream:
            soundfile.write(stream, tone(1.0), 16_000, format="WAV")
    except OSError:
        pytest.skip("this file system takes text only")

    table = predictor.predict([file])

    assert table["file"].tolist() == [f"{tmp_path}/caf\\xe9.wav"]
    table.to_csv(tmp_path / "scores.csv")
