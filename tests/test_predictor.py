"""The predictor: scores in order, of the classifier itself, and failures that are seen."""

import numpy as np
import pytest
import torch

from beats_trainer import BEATsForAudioClassification, BEATsPredictor
from beats_trainer.audio import load_audio
from beats_trainer.errors import AudioError, CheckpointError
from beats_trainer.model import AttentivePooling, BEATs, ClassifierHead
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
    assert list(empty.columns) == ["file", "label", "score", "wren", "score_score", "robin"]
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
