import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from huggingface_hub import constants

from beats_trainer import (
    BEATsForAudioClassification,
    BEATsModel,
    load_tokenizer,
    validate_checkpoint,
)
from beats_trainer.checkpoints import folder as folder_module
from beats_trainer.checkpoints import sources
from beats_trainer.errors import (
    CheckpointNotFoundError,
    DownloadError,
    InvalidCheckpointError,
)
from beats_trainer.model import AttentivePooling, ClassifierHead, pooled_width
from checkpoint_files import (
    tiny_architecture,
    write_espnet_checkpoint,
    write_microsoft_checkpoint,
    write_tokenizer_checkpoint,
)

LABELS = ["wren", "Rødstrupe", "rain: heavy"]


def make_classifier(**options):
    torch.manual_seed(0)
    architecture = tiny_architecture(fbank_mean=15.3, dropout=0.1)
    head = ClassifierHead(32, 3, hidden_dims=[8], activation="gelu", dropout=0.2)
    return BEATsForAudioClassification(
        BEATsModel(architecture), head, LABELS, "softmax", "max", **options
    )


def make_attentive_classifier():
    torch.manual_seed(0)
    beats = BEATsModel(tiny_architecture())
    pooling = AttentivePooling.for_architecture(beats.architecture, num_heads=8)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    return BEATsForAudioClassification(
        beats, ClassifierHead(32, 3), LABELS, "sigmoid", "attentive", attentive_pooling=pooling
    )


def logits(classifier):
    waveforms = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1)) * 0.1
    with torch.inference_mode():
        return classifier.eval()(waveforms, torch.tensor([9000, 5000])).logits


def names_in(folder):
    return sorted(file.name for file in folder.iterdir() if file.name != "caches")


def read_config(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


# --- round trips -------------------------------------------------------------------------------------------


def test_a_classifier_comes_back_with_everything_it_needs(tmp_path):
    classifier = make_classifier(thresholds={"wren": 0.25}, window_s=5)

    folder = classifier.save_pretrained(tmp_path / "model", provenance={"data": "my recordings"})
    loaded = BEATsForAudioClassification.from_pretrained(folder)

    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert not loaded.training
    assert loaded.labels == LABELS
    assert (loaded.activation, loaded.pooling) == ("softmax", "max")
    assert loaded.thresholds == {"wren": 0.25}
    assert loaded.window_s == 5
    assert loaded.beats.architecture == classifier.beats.architecture
    assert loaded.beats.fbank.mean == 15.3
    assert loaded.head.to_dict() == classifier.head.to_dict()
    assert loaded.provenance["data"] == "my recordings"
    torch.testing.assert_close(logits(loaded), logits(classifier), rtol=0, atol=0)


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")

    modes = {file.name: file.stat().st_mode for file in folder.iterdir()}

    assert modes["model.safetensors"] == modes["config.json"] == modes["README.md"]


def test_a_classifier_that_reads_bands_comes_back_with_its_wider_head(tmp_path):
    torch.manual_seed(0)
    beats = BEATsModel(tiny_architecture())
    head = ClassifierHead(pooled_width(beats.architecture, "bands"), 3)
    classifier = BEATsForAudioClassification(beats, head, LABELS, pooling="bands")

    folder = classifier.save_pretrained(tmp_path / "model")
    loaded = BEATsForAudioClassification.from_pretrained(folder)

    assert loaded.pooling == "bands"
    assert loaded.head.embedding_dim == 8 * 32
    torch.testing.assert_close(logits(loaded), logits(classifier), rtol=0, atol=0)
    with pytest.raises(ValueError, match="pooling 'bands'"):
        loaded.to_microsoft()


def test_a_classifier_with_learned_pooling_comes_back_with_it(tmp_path):
    classifier = make_attentive_classifier()

    folder = classifier.save_pretrained(tmp_path / "model")
    loaded = BEATsForAudioClassification.from_pretrained(folder)

    assert read_config(folder)["attentive_pooling"] == {"num_heads": 8}
    assert loaded.pooling == "attentive"
    assert loaded.attentive_pooling.num_heads == 8
    assert not loaded.is_backbone_frozen
    torch.testing.assert_close(logits(loaded), logits(classifier), rtol=0, atol=0)
    BEATsModel.from_pretrained(folder)  # the encoder alone
    assert "attention over the tokens (8 heads)" in (folder / "README.md").read_text()


def test_how_a_model_was_calibrated_comes_back_and_is_on_the_card(tmp_path):
    calibration = {"temperature": 1.75, "fitted_on": "val"}

    folder = make_classifier(calibration=calibration).save_pretrained(tmp_path / "model")

    loaded = BEATsForAudioClassification.from_pretrained(folder)
    assert loaded.calibration == calibration
    assert "temperature: 1.75" in (folder / "README.md").read_text()
    torch.testing.assert_close(logits(loaded), logits(make_classifier()), rtol=0, atol=0)


def test_what_a_clip_has_is_told_by_the_folder_and_not_by_the_activation(tmp_path):
    classifier = make_classifier(thresholds={"wren": 0.25})
    folder = classifier.save_pretrained(tmp_path / "model")
    rewrite(folder, activation="sigmoid")

    loaded = BEATsForAudioClassification.from_pretrained(folder)

    assert (loaded.activation, loaded.task) == ("sigmoid", "single")
    card = (folder / "README.md").read_text()
    assert "of which one applies" in card
    assert "| wren | 0.25 |" in card
    assert "| rain: heavy | 0.5 (not fitted) |" in card


@pytest.mark.parametrize(("activation", "task"), [("softmax", "single"), ("sigmoid", "multi")])
def test_a_folder_that_does_not_tell_the_task_is_for_what_its_activation_is_for(
    tmp_path, activation, task
):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    config = read_config(folder) | {"activation": activation}
    del config["task"]
    (folder / "config.json").write_text(json.dumps(config))

    assert BEATsForAudioClassification.from_pretrained(folder).task == task


@pytest.mark.parametrize("task", ["multi", "many"])
def test_a_task_that_cannot_be_is_an_error(tmp_path, task):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    rewrite(folder, task=task)

    with pytest.raises(InvalidCheckpointError, match="task"):
        BEATsForAudioClassification.from_pretrained(folder)


def test_a_folder_from_before_learned_pooling_and_calibration_loads(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    config = read_config(folder)
    del config["attentive_pooling"], config["calibration"]
    (folder / "config.json").write_text(json.dumps(config))

    loaded = BEATsForAudioClassification.from_pretrained(folder)

    assert (loaded.pooling, loaded.calibration) == ("max", None)


BAD_ATTENTIVE_CONFIGS = {
    "without the pooling's size": ({"attentive_pooling": None}, "'attentive' without"),
    "with heads that do not fit": ({"attentive_pooling": {"num_heads": 5}}, "must divide"),
    "with other heads than the weights": ({"attentive_pooling": {"num_heads": 4}}, "another shape"),
    "with an unknown setting": ({"attentive_pooling": {"depth": 2}}, "depth"),
    "that says mean instead": ({"pooling": "mean"}, "'mean' with"),
    "that says mean without a module": (
        {"pooling": "mean", "attentive_pooling": None},
        r"unknown: attentive_pooling\.",
    ),
    "with a calibration that is text": ({"calibration": "good"}, "not as expected"),
}


@pytest.mark.parametrize("fault", BAD_ATTENTIVE_CONFIGS)
def test_a_config_of_learned_pooling_is_an_error(fault, tmp_path):
    changes, message = BAD_ATTENTIVE_CONFIGS[fault]
    folder = make_attentive_classifier().save_pretrained(tmp_path / "model")
    rewrite(folder, **changes)

    with pytest.raises(InvalidCheckpointError, match=message):
        BEATsForAudioClassification.from_pretrained(folder)


def test_a_classifiers_folder_loads_as_encoder_too(tmp_path):
    classifier = make_classifier()
    folder = classifier.save_pretrained(tmp_path / "model")

    encoder = BEATsModel.from_pretrained(folder)

    for key, value in classifier.beats.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value)


@pytest.mark.parametrize("kind", ["encoder", "tokenizer"])
def test_encoders_and_tokenizers_come_back(tmp_path, kind):
    if kind == "encoder":
        model = BEATsModel.from_pretrained(write_microsoft_checkpoint(tmp_path / "a.pt"))
        load = BEATsModel.from_pretrained
    else:
        model = load_tokenizer(write_tokenizer_checkpoint(tmp_path / "a.pt"))
        load = load_tokenizer

    loaded = load(model.save_pretrained(tmp_path / "model"))

    assert type(loaded) is type(model)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
    exported, expected = loaded.to_microsoft(), model.to_microsoft()
    assert exported["cfg"] == expected["cfg"]
    assert exported["model"].keys() == expected["model"].keys()
    assert loaded.provenance["file"] == "a.pt"
    assert len(loaded.provenance["sha256"]) == 64


def test_a_saved_model_gives_the_same_scores_in_a_new_process(tmp_path):
    classifier = make_classifier()
    folder = classifier.save_pretrained(tmp_path / "model")
    code = (
        "import sys, torch; from beats_trainer import BEATsForAudioClassification as C;"
        "x = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1)) * 0.1;"
        "m = C.from_pretrained(sys.argv[1]);"
        "torch.save(m(x, torch.tensor([9000, 5000])).logits.detach(), sys.argv[2]);"
        "assert 'torch._dynamo' not in sys.modules"  # seconds of imports, for nothing
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "logits.pt")],
        check=True,
        timeout=120,
    )

    torch.testing.assert_close(
        torch.load(tmp_path / "logits.pt", weights_only=True), logits(classifier)
    )


def test_the_weights_file_inside_a_folder_names_the_folder(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")

    assert (
        BEATsForAudioClassification.from_pretrained(folder / "model.safetensors").labels == LABELS
    )


def test_a_model_can_be_moved(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    shutil.move(folder, tmp_path / "elsewhere")

    assert validate_checkpoint(tmp_path / "elsewhere")


# --- what is written ---------------------------------------------------------------------------------------


def test_the_config_is_plain_and_names_no_folder_of_this_machine(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=["a", "b"])
    classifier = BEATsForAudioClassification.from_pretrained(path)

    folder = classifier.save_pretrained(tmp_path / "model")
    config = read_config(folder)

    assert config["format_version"] == 1
    assert config["kind"] == "classifier"
    assert config["architecture"]["fbank_mean"] == 15.41663
    assert config["provenance"]["saved_with"].startswith("beats_trainer ")
    for file in ("config.json", "README.md"):
        assert str(tmp_path) not in (folder / file).read_text(encoding="utf-8")


def test_the_card_has_the_hubs_front_matter(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model", metrics={"accuracy": 0.875})
    card = (folder / "README.md").read_text(encoding="utf-8")

    _, front, text = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "beats_trainer"
    assert front["pipeline_tag"] == "audio-classification"
    assert "audio" in front["tags"]
    assert "Rødstrupe" in text
    assert "| accuracy | 0.8750 |" in text


def test_an_encoder_that_is_passed_on_keeps_its_licence_on_the_card(tmp_path):
    model = BEATsModel(tiny_architecture())
    model.provenance = {"source": "BEATs_iter3", "licence": "MIT"}

    card = (model.save_pretrained(tmp_path / "model") / "README.md").read_text()

    assert "license: mit" in card
    assert "pipeline_tag: feature-extraction" in card


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}, {"x": Path("a")}])
def test_a_description_that_is_not_plain_is_an_error_and_leaves_nothing(tmp_path, bad):
    with pytest.raises(ValueError, match="plain values"):
        make_classifier().save_pretrained(tmp_path / "model", provenance=bad)
    assert names_in(tmp_path) == []


def test_thresholds_for_unknown_classes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="robin"):
        make_classifier(thresholds={"robin": 0.5}).save_pretrained(tmp_path / "model")


# --- whole or not at all -----------------------------------------------------------------------------------


def test_saving_over_a_model_replaces_it_and_keeps_other_files(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    (folder / "notes.txt").write_text("mine")
    other = make_classifier()
    torch.nn.init.ones_(other.head.last_linear.bias)

    other.save_pretrained(folder)

    loaded = BEATsForAudioClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(other), rtol=0, atol=0)
    assert (folder / "notes.txt").read_text() == "mine"
    assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("step", ["save_file", "write_card", "_put_in_place"])
def test_a_failed_save_leaves_the_old_model_and_no_debris(tmp_path, monkeypatch, step):
    classifier = make_classifier()
    folder = classifier.save_pretrained(tmp_path / "model")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(folder_module, step, fail)
    with pytest.raises(OSError, match="disk full"):
        make_classifier().save_pretrained(folder)

    assert names_in(tmp_path) == ["model"]
    loaded = BEATsForAudioClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(classifier), rtol=0, atol=0)


def test_a_failed_exchange_puts_the_old_model_back(tmp_path, monkeypatch):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    replace, calls = os.replace, []

    def fail_on_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(folder_module.os, "replace", fail_on_second)
    with pytest.raises(OSError, match="disk full"):
        make_classifier().save_pretrained(folder)

    assert names_in(tmp_path) == ["model"]
    assert validate_checkpoint(folder)


def test_a_folder_of_something_else_is_never_written_into(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("text")

    with pytest.raises(FileExistsError, match="not a model folder"):
        make_classifier().save_pretrained(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "text"


def test_a_file_in_the_way_is_not_replaced(tmp_path):
    (tmp_path / "model").write_text("a file")

    with pytest.raises(FileExistsError, match="not a model folder"):
        make_classifier().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "a file"


def test_saving_through_a_link_replaces_the_model_it_leads_to(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    (tmp_path / "best").symlink_to(folder)

    make_classifier(window_s=3.0).save_pretrained(tmp_path / "best")

    assert (tmp_path / "best").is_symlink()
    assert BEATsForAudioClassification.from_pretrained(folder).window_s == 3.0
    assert names_in(tmp_path) == ["best", "model"]


def test_labels_that_do_not_fit_the_head_any_more_are_an_error(tmp_path):
    classifier = make_classifier()
    classifier.labels = ["a", "b"]

    with pytest.raises(ValueError, match="2 different labels"):
        classifier.save_pretrained(tmp_path / "model")


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "model").mkdir()

    assert validate_checkpoint(make_classifier().save_pretrained(tmp_path / "model"))


# --- bad folders -------------------------------------------------------------------------------------------


def rewrite(folder, **changes):
    config = {**read_config(folder), **changes}
    (folder / "config.json").write_text(json.dumps(config))


BAD_CONFIGS = {
    "of a newer format": ({"format_version": 2}, "format_version 2.*Upgrade"),
    "without a format": ({"format_version": None}, "another library's"),
    "of an unknown kind": ({"kind": "decoder"}, "decoder"),
    "with an unknown architecture field": ({"architecture": {"depth": 3}}, "depth"),
    "with another architecture": ({"architecture": {"encoder_layers": 3}}, "missing"),
    "with too few labels": ({"labels": ["a"]}, "1 labels"),
    "with a label twice": ({"labels": ["a", "a", "b"]}, "appears twice"),
    "with an unknown activation": ({"activation": "tanh"}, "tanh"),
    "with an unknown pooling": ({"pooling": "median"}, "median"),
    "with thresholds that are text": ({"thresholds": {"wren": "high"}}, "high"),
    "without labels": ({"labels": None}, "not as expected"),
}


@pytest.mark.parametrize("fault", BAD_CONFIGS)
def test_a_config_is_an_error(fault, tmp_path):
    changes, message = BAD_CONFIGS[fault]
    folder = make_classifier().save_pretrained(tmp_path / "model")
    if "encoder_layers" in changes.get("architecture", {}):
        changes = {"architecture": read_config(folder)["architecture"] | changes["architecture"]}
    rewrite(folder, **changes)

    assert validate_checkpoint(folder) is False
    with pytest.raises(InvalidCheckpointError, match=message):
        BEATsForAudioClassification.from_pretrained(folder)


def test_a_config_that_is_not_json_is_an_error(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    (folder / "config.json").write_text("{")

    with pytest.raises(InvalidCheckpointError, match="damaged"):
        BEATsModel.from_pretrained(folder)


def test_a_flipped_byte_in_the_weights_is_an_error(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)

    with pytest.raises(InvalidCheckpointError, match="sha256"):
        BEATsModel.from_pretrained(folder)


def test_a_folder_without_weights_is_an_error_that_says_what_belongs_there(tmp_path):
    folder = make_classifier().save_pretrained(tmp_path / "model")
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointNotFoundError, match=r"config\.json and model\.safetensors"):
        BEATsModel.from_pretrained(folder)


# --- export ------------------------------------------------------------------------------------------------


def test_what_the_original_has_no_classifier_for_is_not_exported():
    with pytest.raises(ValueError, match="one linear layer on mean-pooled"):
        make_classifier().to_microsoft()
    with pytest.raises(ValueError, match=r"pooling 'learned \(attentive\)'"):
        make_attentive_classifier().to_microsoft()


def test_a_softmax_classifier_is_exported_with_a_warning(caplog):
    beats = BEATsModel(tiny_architecture())
    classifier = BEATsForAudioClassification(beats, ClassifierHead(32, 2), ["a", "b"])

    exported = classifier.to_microsoft()

    assert exported["label_dict"] == {0: "a", 1: "b"}
    assert exported["cfg"]["predictor_class"] == 2
    assert "applies a sigmoid" in caplog.text


def test_an_export_is_a_copy():
    model = BEATsModel(tiny_architecture())
    exported = model.to_microsoft()["model"]
    with torch.no_grad():
        model.layer_norm.weight.zero_()

    assert bool((exported["layer_norm.weight"] == 1).all())


# --- the hub -----------------------------------------------------------------------------------------------


def publish(hub, folder, repo):
    for file in folder.iterdir():
        hub.put(repo, file.name, file.read_bytes())


def test_a_hub_repository_of_ours_is_loaded_and_then_kept(hub, tmp_path, monkeypatch):
    publish(hub, make_classifier().save_pretrained(tmp_path / "model"), "me/birds")

    online = BEATsForAudioClassification.from_pretrained("me/birds")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = BEATsForAudioClassification.from_pretrained("me/birds")

    assert online.labels == offline.labels == LABELS
    assert online.provenance["source"] == "me/birds"
    torch.testing.assert_close(logits(online), logits(offline), rtol=0, atol=0)


def test_a_hub_repository_with_one_foreign_checkpoint_is_loaded_with_its_settings(hub, tmp_path):
    write_espnet_checkpoint(tmp_path / "exp", labels=["a", "b"])
    for file in (tmp_path / "exp").iterdir():
        hub.put("espnet/classifier", f"exp/cls/{file.name}", file.read_bytes())

    classifier = BEATsForAudioClassification.from_pretrained("espnet/classifier")

    assert classifier.labels == ["a", "b"]


def test_a_hub_repository_with_several_checkpoints_is_an_error_that_names_them(hub):
    hub.put("me/many", "a.pt", b"a")
    hub.put("me/many", "b.pt", b"b")

    with pytest.raises(DownloadError, match=r"found 2 checkpoints: a\.pt, b\.pt"):
        BEATsModel.from_pretrained("me/many")


def test_a_hub_repository_that_does_not_exist_is_an_error(hub):
    with pytest.raises(DownloadError, match="does not hand out me/nothing"):
        BEATsModel.from_pretrained("me/nothing")


def test_a_hub_repository_offline_and_absent_is_an_error():
    with pytest.raises(CheckpointNotFoundError, match="HF_HUB_OFFLINE is set"):
        BEATsModel.from_pretrained("me/nothing")


def test_a_folder_of_two_parts_comes_before_the_hub(tmp_path, monkeypatch):
    make_classifier().save_pretrained(tmp_path / "runs" / "birds")
    monkeypatch.chdir(tmp_path)

    assert BEATsForAudioClassification.from_pretrained("runs/birds").labels == LABELS


def test_a_registry_name_comes_before_a_folder_of_the_same_name(tmp_path, monkeypatch, own_caches):
    make_classifier().save_pretrained(tmp_path / "openbeats")
    own_caches.mkdir()
    write_microsoft_checkpoint(own_caches / "openbeats_i3.pt", seed=7)
    monkeypatch.chdir(tmp_path)

    by_name = BEATsModel.from_pretrained("openbeats")
    by_path = BEATsModel.from_pretrained("./openbeats")

    assert by_name.provenance["source"] == "openbeats"
    assert by_name.architecture != by_path.architecture


def test_local_files_only_asks_no_hub(hub):
    for source in ("openbeats", "me/birds"):
        with pytest.raises(CheckpointNotFoundError, match="local_files_only"):
            BEATsModel.from_pretrained(source, local_files_only=True)
    assert not hub.requests


class RecordingApi:
    """Takes the place of the hub's client and notes what it is told."""

    calls: ClassVar[list[tuple]] = []
    has_card = False

    def __init__(self, token=None, library_name=None):
        RecordingApi.calls.append(("login", token))

    def create_repo(self, repo_id, private=None, exist_ok=False):
        RecordingApi.calls.append(("create", repo_id, private, exist_ok))

    def file_exists(self, repo_id, filename):
        return RecordingApi.has_card

    def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
        names = sorted(file.name for file in Path(folder_path).iterdir())
        assert validate_checkpoint(folder_path)
        RecordingApi.calls.append(("upload", repo_id, names, commit_message, ignore_patterns))
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})()


@pytest.mark.parametrize("has_card", [False, True])
def test_push_to_hub_uploads_the_model_folder_and_spares_a_card(monkeypatch, has_card):
    RecordingApi.calls, RecordingApi.has_card = [], has_card
    monkeypatch.setattr("huggingface_hub.HfApi", RecordingApi)

    address = make_classifier().push_to_hub(
        "me/birds", private=True, token="t", commit_message="new"
    )

    assert address == "https://hub/me/birds/commit/1"
    assert RecordingApi.calls == [
        ("login", "t"),
        ("create", "me/birds", True, True),
        (
            "upload",
            "me/birds",
            ["README.md", "config.json", "model.safetensors"],
            "new",
            ["README.md"] if has_card else None,
        ),
    ]


def test_what_looks_like_a_path_is_never_asked_of_the_hub():
    for source in ("a/b/c", "./a", "/a/b", "~/a", "a/b.pt", "a\\b", "a/"):
        assert sources._looks_like_path(source)
    for source in ("me/birds", "openbeats"):
        assert not sources._looks_like_path(source)
