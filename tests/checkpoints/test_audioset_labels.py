"""AudioSet's classes have readable names, whatever order a checkpoint has them in."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from beats_trainer import BEATsForAudioClassification
from beats_trainer.checkpoints.audioset_labels import audioset_names, name_labels
from beats_trainer.datasets.labels import LABEL_SEPARATOR
from beats_trainer.errors import InvalidCheckpointError
from checkpoint_files import write_espnet_checkpoint, write_microsoft_checkpoint

CODES = ["/m/04rlf", "/t/dd00004", "/m/09x0r"]
NAMES = ["Music", "Female singing", "Speech"]


def test_the_table_has_527_codes_with_a_name_of_its_own_each():
    table = audioset_names()

    assert len(table) == 527
    assert len({name.casefold() for name in table.values()}) == 527
    assert all(re.fullmatch(r"/[gmt]/[a-z0-9_]+", code) for code in table)
    # Facts of the published table: its first, its last, and one with a comma.
    assert next(iter(table.items())) == ("/m/09x0r", "Speech")
    assert list(table.items())[-1] == ("/m/07hvw1", "Field recording")
    assert table["/m/05zppz"] == "Male speech, man speaking"


def test_no_name_can_be_taken_apart_by_our_own_signs():
    for name in audioset_names().values():
        assert LABEL_SEPARATOR.strip() not in name
        assert name == name.strip()
        assert not name.startswith(("-", "?"))


def test_the_table_says_where_it_comes_from_and_under_which_licence():
    import beats_trainer.checkpoints as package

    text = Path(package.__file__).with_name("audioset_labels.csv").read_text(encoding="utf-8")

    assert "class_labels_indices.csv" in text.splitlines()[1]
    assert "CC BY 4.0" in text[:500]


def test_names_are_found_by_code_and_not_by_place():
    table = audioset_names()
    shuffled = random.Random(0).sample(list(table), 527)

    named, codes = name_labels(shuffled)

    assert codes == shuffled
    assert named == [table[code] for code in shuffled]
    assert named != list(table.values())


def test_a_code_whose_name_is_a_label_already_stays_a_code():
    assert name_labels(["Speech", "/m/09x0r"]) == (["Speech", "/m/09x0r"], None)
    assert name_labels(["Speech", "/m/09x0r", "/m/04rlf"]) == (
        ["Speech", "/m/09x0r", "Music"],
        ["Speech", "/m/09x0r", "/m/04rlf"],
    )


def test_a_released_checkpoint_has_readable_labels_in_its_own_order_and_keeps_its_codes(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=[*CODES, "/m/0unknown"])

    classifier = BEATsForAudioClassification.from_pretrained(path)

    assert classifier.labels == [*NAMES, "/m/0unknown"]
    assert classifier.label_codes == [*CODES, "/m/0unknown"]
    content = torch.load(path, weights_only=True)
    assert classifier.to_microsoft()["label_dict"] == content["label_dict"]


def test_a_model_folder_keeps_names_and_codes(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=CODES)

    BEATsForAudioClassification.from_pretrained(path).save_pretrained(tmp_path / "model")
    again = BEATsForAudioClassification.from_pretrained(tmp_path / "model")

    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert (config["labels"], config["label_codes"]) == (NAMES, CODES)
    assert (again.labels, again.label_codes) == (NAMES, CODES)
    assert again.to_microsoft()["label_dict"] == dict(enumerate(CODES))


def test_a_model_folder_that_was_saved_with_codes_as_labels_keeps_them(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=CODES)
    BEATsForAudioClassification.from_pretrained(path).save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["labels"] = config.pop("label_codes")  # as it was before there were names
    file.write_text(json.dumps(config), encoding="utf-8")

    old = BEATsForAudioClassification.from_pretrained(tmp_path / "old")

    assert (old.labels, old.label_codes) == (CODES, None)


def test_a_model_folder_with_too_few_codes_is_refused(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=CODES)
    classifier = BEATsForAudioClassification.from_pretrained(path)
    classifier.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["label_codes"] = CODES[:2]
    file.write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(InvalidCheckpointError, match="2 label_codes for 3 labels"):
        BEATsForAudioClassification.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="2 label_codes for 3 labels"):
        BEATsForAudioClassification(
            classifier.beats, classifier.head, NAMES, "sigmoid", label_codes=CODES[:2]
        )


def test_one_code_for_two_classes_is_still_an_error(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=["/m/09x0r", "/m/09x0r"])

    with pytest.raises(InvalidCheckpointError, match="label appears twice"):
        BEATsForAudioClassification.from_pretrained(path)


def test_espnets_codes_become_names_too(tmp_path):
    path = write_espnet_checkpoint(tmp_path / "espnet", labels=CODES)

    classifier = BEATsForAudioClassification.from_pretrained(path)

    assert (classifier.labels, classifier.label_codes) == (NAMES, CODES)


def test_other_labels_have_no_codes(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=["frog", "toad"])

    classifier = BEATsForAudioClassification.from_pretrained(path)

    assert (classifier.labels, classifier.label_codes) == (["frog", "toad"], None)
