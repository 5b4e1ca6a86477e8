"""Models that come with the package: found by name, offline, and small."""

import json

import pytest
import torch

from beats_trainer import (
    BEATsFeatureExtractor,
    BEATsModel,
    ensure_checkpoint,
    find_checkpoint,
    list_available_models,
)
from beats_trainer.checkpoints import registry
from beats_trainer.checkpoints.download import choose_model
from beats_trainer.checkpoints.folder import save_model
from beats_trainer.errors import CheckpointNotFoundError, InvalidCheckpointError
from beats_trainer.model import BEATs
from checkpoint_files import tiny_architecture

MOST_BYTES = 8_000_000


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A package with one small model in it."""
    torch.manual_seed(0)
    network = BEATs(tiny_architecture()).eval()
    provenance = {"description": "a small encoder", "licence": "MIT"}
    save_model(network, tmp_path / "beats_mini", provenance=provenance, dtype=torch.float16)
    monkeypatch.setattr(registry, "BUNDLED", tmp_path)
    monkeypatch.setattr(registry, "_RECORDS", registry._records() | registry._bundled(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return network


def test_a_bundled_model_is_found_by_name_without_network_or_download(bundled, tmp_path):
    record = list_available_models()["beats_mini"]

    assert record["description"] == "a small encoder"
    assert record["bundled"]
    assert find_checkpoint("beats_mini") == tmp_path / "beats_mini"
    assert ensure_checkpoint("beats_mini", cache_dir=tmp_path / "else") == tmp_path / "beats_mini"
    assert not (tmp_path / "else").exists()


def test_its_weights_are_stored_in_half_the_bytes_and_loaded_in_float32(bundled):
    model = BEATsModel.from_pretrained("beats_mini")

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    waveforms = torch.randn(1, 16_000)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(waveforms).tokens, bundled(waveforms).tokens, atol=2e-2, rtol=2e-2
        )


def test_a_bundled_model_whose_weights_were_changed_is_refused(bundled, tmp_path):
    weights = tmp_path / "beats_mini" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(InvalidCheckpointError, match="damaged"):
        BEATsModel.from_pretrained("beats_mini")


def test_auto_is_the_packages_own_model_where_no_large_one_is_here_and_says_so(caplog):
    assert choose_model("auto") == "beats_nano"

    (said,) = caplog.messages
    assert "beats_nano" in said
    assert "none of the large ones is on this machine" in said
    assert "models BEATs_iter3_plus_AS2M --download" in said


def test_auto_is_a_large_model_that_is_here_rather_an_encoder_than_a_classifier(own_caches):
    own_caches.mkdir()
    (own_caches / "Tokenizer_iter3.pt").write_text("no model")
    assert choose_model("auto") == "beats_nano"
    (own_caches / "BEATs_iter3_finetuned_on_AS2M_cpt1.pt").write_text("a classifier")
    assert choose_model("auto") == "BEATs_iter3_finetuned_on_AS2M_cpt1"
    (own_caches / "openbeats_i3.pt").write_text("a large one")
    assert choose_model("auto") == "openbeats"
    (own_caches / "BEATs_iter3_plus_AS2M.pt").write_text("the default")
    assert choose_model("auto") == "BEATs_iter3_plus_AS2M"


def test_what_auto_has_chosen_is_what_is_written_down(tmp_path):
    extractor = BEATsFeatureExtractor("auto", "cpu")

    assert extractor.model_path == "beats_nano"
    assert BEATsModel.from_pretrained("auto").provenance["source"] == "beats_nano"


def test_only_auto_means_auto():
    with pytest.raises(CheckpointNotFoundError):
        BEATsFeatureExtractor(device="cpu")  # the default model is that one, or an error


@pytest.mark.skipif(not registry._bundled(registry.BUNDLED), reason="no model is bundled yet")
def test_what_this_package_bundles_is_small_documented_and_loads():
    for name, record in registry._bundled(registry.BUNDLED).items():
        folder = registry.BUNDLED / name
        assert record["size_bytes"] <= MOST_BYTES
        assert "licence" in json.loads((folder / "config.json").read_text())["provenance"]
        assert (folder / "README.md").is_file()
        tokens = BEATsModel.from_pretrained(name)(torch.zeros(1, 16_000)).tokens
        assert torch.isfinite(tokens).all()
