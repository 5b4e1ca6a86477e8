import logging
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beats_trainer import (
    BEATsForAudioClassification,
    BEATsModel,
    load_tokenizer,
    validate_checkpoint,
)
from beats_trainer.checkpoints import read_checkpoint
from beats_trainer.checkpoints.content import Uninitialised
from beats_trainer.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    InvalidCheckpointError,
)
from beats_trainer.model import Architecture
from checkpoint_files import (
    microsoft_content,
    microsoft_tensors,
    openbeats_content,
    tiny_architecture,
    tokenizer_content,
    write_espnet_checkpoint,
    write_microsoft_checkpoint,
    write_old_lightning_checkpoint,
    write_openbeats_checkpoint,
    write_tokenizer_checkpoint,
)

LABELS = ["/m/01", "/m/02", "/m/03"]


def assert_same_tensors(actual, expected):
    assert set(actual) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
        assert actual[key].dtype == tensor.dtype


def encode(model):
    waveforms = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)) * 0.1
    with torch.inference_mode():
        return model(waveforms).tokens


# --- Microsoft ---------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "as released": {},
    "pre-norm": {"layer_norm_first": True, "deep_norm": False},
    "ungated": {"gru_rel_pos": False},
    "without relative positions": {"relative_position_embedding": False, "gru_rel_pos": False},
    "with a convolution bias": {"conv_bias": True},
    "without projection": {"embed_dim": 32},
    "with other statistics": {"fbank_mean": 15.0, "fbank_std": 6.0},
}


@pytest.mark.parametrize("variant", ARCHITECTURES)
def test_a_pretrained_file_comes_back_bit_identical(variant, tmp_path):
    architecture = tiny_architecture(**ARCHITECTURES[variant])
    content = microsoft_content(architecture)
    if "fbank_mean" in ARCHITECTURES[variant]:
        content["cfg"] |= ARCHITECTURES[variant]
    torch.save(content, tmp_path / "a.pt")

    model = BEATsModel.from_pretrained(tmp_path / "a.pt")
    exported = model.to_microsoft()

    assert model.architecture == architecture
    assert not model.training
    assert_same_tensors(exported["model"], content["model"])
    assert exported["cfg"] == content["cfg"]


def test_a_finetuned_file_gives_labels_sigmoid_and_the_same_file_again(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=LABELS)
    content = torch.load(path, weights_only=True)

    classifier = BEATsForAudioClassification.from_pretrained(path)
    exported = classifier.to_microsoft()

    assert classifier.labels == LABELS
    assert classifier.activation == "sigmoid"
    assert classifier.pooling == "mean"
    assert not classifier.training
    assert_same_tensors(exported["model"], content["model"])
    assert exported["cfg"] == content["cfg"]
    assert exported["label_dict"] == content["label_dict"]
    probabilities = classifier(torch.zeros(1, 8000)).probs
    tokens = classifier.beats(torch.zeros(1, 8000)).tokens
    linear = tokens @ content["model"]["predictor.weight"].T + content["model"]["predictor.bias"]
    torch.testing.assert_close(probabilities, linear.mean(dim=1).sigmoid())


def test_labels_keep_their_numbers_whatever_order_the_file_lists_them_in(tmp_path):
    content = microsoft_content(labels=LABELS)
    content["label_dict"] = {2: "c", 0: "a", 1: "b"}
    torch.save(content, tmp_path / "a.pt")

    assert BEATsForAudioClassification.from_pretrained(tmp_path / "a.pt").labels == ["a", "b", "c"]


def test_a_finetuned_file_loaded_as_encoder_gives_its_encoder_and_says_so(tmp_path, caplog):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=LABELS)

    with caplog.at_level(logging.INFO):
        model = BEATsModel.from_pretrained(path)

    assert "loading its encoder only" in caplog.text
    assert_same_tensors(model.to_microsoft()["model"], microsoft_tensors(tiny_architecture()))


def test_a_tokenizer_file_comes_back_bit_identical(tmp_path):
    path = write_tokenizer_checkpoint(tmp_path / "a.pt")

    tokenizer = load_tokenizer(path)
    exported = tokenizer.to_microsoft()

    assert (tokenizer.num_codes, tokenizer.code_dim) == (12, 6)
    assert_same_tensors(exported["model"], tokenizer_content()["model"])
    assert exported["cfg"] == tokenizer_content()["cfg"]
    codes = tokenizer.encode(torch.randn(1, 8000)).codes
    assert 0 <= int(codes.min()) <= int(codes.max()) < 12
    assert not any(p.requires_grad for p in tokenizer.quantize.parameters())
    assert all(p.requires_grad for p in tokenizer.encoder.parameters())


def test_each_kind_says_how_to_load_the_other(tmp_path):
    encoder = write_microsoft_checkpoint(tmp_path / "encoder.pt")
    tokenizer = write_tokenizer_checkpoint(tmp_path / "tokenizer.pt")

    with pytest.raises(InvalidCheckpointError, match="BEATsTrainer"):
        BEATsForAudioClassification.from_pretrained(encoder)
    with pytest.raises(InvalidCheckpointError, match="load_tokenizer"):
        BEATsForAudioClassification.from_pretrained(tokenizer)
    with pytest.raises(InvalidCheckpointError, match="load_tokenizer"):
        BEATsModel.from_pretrained(tokenizer)
    with pytest.raises(InvalidCheckpointError, match="BEATsModel"):
        load_tokenizer(encoder)


def test_half_precision_weights_are_loaded_in_float32(tmp_path):
    content = microsoft_content()
    content["model"] = {key: value.half() for key, value in content["model"].items()}
    torch.save(content, tmp_path / "a.pt")

    model = BEATsModel.from_pretrained(tmp_path / "a.pt")

    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_tensors(
        model.to_microsoft()["model"], {k: v.float() for k, v in content["model"].items()}
    )


def test_the_file_may_go_once_the_model_is_loaded(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt")
    model = BEATsModel.from_pretrained(path)
    before = encode(model)
    path.write_bytes(b"")
    path.unlink()

    torch.testing.assert_close(encode(model), before, rtol=0, atol=0)


# --- OpenBEATs ---------------------------------------------------------------------------------------------


def test_an_openbeats_file_loads_without_its_pad_kernels(tmp_path):
    path = write_openbeats_checkpoint(tmp_path / "a.pt")

    model = BEATsModel.from_pretrained(path)

    assert model.architecture == tiny_architecture(dropout=0.1, attention_dropout=0.1)
    assert_same_tensors(model.to_microsoft()["model"], microsoft_tensors(tiny_architecture()))
    same = BEATsModel.from_pretrained(write_microsoft_checkpoint(tmp_path / "b.pt"))
    torch.testing.assert_close(encode(model), encode(same), rtol=0, atol=0)


def test_openbeats_statistics_in_the_cfg_are_honoured(tmp_path):
    content = openbeats_content()
    content["cfg"] |= {"fbank_mean": 15.2913, "fbank_std": 5.90532}
    torch.save(content, tmp_path / "a.pt")

    model = BEATsModel.from_pretrained(tmp_path / "a.pt")

    assert (model.fbank.mean, model.fbank.std) == (15.2913, 5.90532)
    assert model.to_microsoft()["cfg"]["fbank_mean"] == 15.2913


def test_what_espnets_override_list_omits_is_espnets_default(tmp_path, caplog):
    architecture = tiny_architecture(deep_norm=False, max_distance=1280)
    content = openbeats_content(architecture)
    del content["cfg"]["deep_norm"], content["cfg"]["max_distance"]
    torch.save(content, tmp_path / "a.pt")

    model = BEATsModel.from_pretrained(tmp_path / "a.pt")

    assert not model.architecture.deep_norm
    assert model.architecture.max_distance == 1280
    assert "does not say deep_norm, max_distance" in caplog.text
    assert model.provenance["assumed"]["max_distance"] == 1280


def test_a_cfg_that_cannot_be_an_override_list_gets_the_released_values(tmp_path, caplog):
    path = write_openbeats_checkpoint(tmp_path / "a.pt", cfg={"mask_ratio": 0.75})

    model = BEATsModel.from_pretrained(path)

    assert model.architecture.deep_norm
    assert model.architecture.max_distance == 800
    assert model.architecture.encoder_layers == 2
    assert model.architecture.encoder_attention_heads == 4
    assert "the released models' values" in caplog.text


def test_a_pad_kernel_that_is_not_ones_is_an_error(tmp_path):
    content = openbeats_content()
    content["model"]["raw2fbank_pad.weight"][0, 0, 7] = 0.5
    torch.save(content, tmp_path / "a.pt")

    with pytest.raises(InvalidCheckpointError, match="raw2fbank_pad"):
        BEATsModel.from_pretrained(tmp_path / "a.pt")


# --- ESPnet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deepspeed", [False, True])
def test_an_espnet_classifier_takes_labels_and_activation_from_its_config(tmp_path, deepspeed):
    path = write_espnet_checkpoint(tmp_path, labels=LABELS, deepspeed=deepspeed)

    classifier = BEATsForAudioClassification.from_pretrained(path)

    assert classifier.labels == LABELS
    assert classifier.activation == "sigmoid"
    assert_same_tensors(
        BEATsModel.from_pretrained(path).to_microsoft()["model"],
        microsoft_tensors(tiny_architecture()),
    )


@pytest.mark.parametrize(
    ("settings", "activation", "pooling"),
    [
        ({"model_conf": {"classification_type": "multi-class"}}, "softmax", "mean"),
        ({"model_conf": {}, "decoder_conf": {"pooling": "max"}}, "softmax", "max"),
        ({"decoder_conf": {"pooling": "CLS"}}, "sigmoid", "first"),
    ],
)
def test_espnet_settings_choose_activation_and_pooling(tmp_path, settings, activation, pooling):
    path = write_espnet_checkpoint(tmp_path, labels=LABELS, settings=settings)

    classifier = BEATsForAudioClassification.from_pretrained(path)

    assert classifier.activation == activation
    assert classifier.pooling == pooling


def test_an_espnet_classifier_without_its_config_is_an_error_that_names_the_folder(tmp_path):
    path = write_espnet_checkpoint(tmp_path / "exp", labels=LABELS)
    (tmp_path / "exp" / "config.yaml").unlink()

    with pytest.raises(CheckpointNotFoundError, match=r"config\.yaml"):
        BEATsForAudioClassification.from_pretrained(path)


def test_an_espnet_classifier_with_too_few_names_is_an_error(tmp_path):
    path = write_espnet_checkpoint(
        tmp_path, labels=LABELS, settings={"token_list": ["<blank>", "a", "b", "c"]}
    )

    with pytest.raises(InvalidCheckpointError, match="names 4 classes, the head has 3"):
        BEATsForAudioClassification.from_pretrained(path)


def test_an_espnet_encoder_loads_and_leaves_the_label_predictor_out(tmp_path, caplog):
    path = write_espnet_checkpoint(tmp_path)
    tensors = torch.load(path, weights_only=True)
    tensors["decoder.mask_token"] = torch.zeros(3)
    torch.save(tensors, path)

    with caplog.at_level(logging.INFO):
        model = BEATsModel.from_pretrained(path)

    assert "label predictor" in caplog.text
    assert model.architecture.max_distance == 80
    assert_same_tensors(model.to_microsoft()["model"], microsoft_tensors(tiny_architecture()))


def test_an_espnet_finetune_of_a_released_model_gets_the_released_values(tmp_path, caplog):
    path = write_espnet_checkpoint(
        tmp_path,
        labels=LABELS,
        settings={"encoder_conf": {"beats_ckpt_path": "x/epoch_latest.pt", "fbank_mean": 11.7}},
    )

    model = BEATsModel.from_pretrained(path)

    assert model.architecture.deep_norm
    assert model.architecture.max_distance == 800
    assert model.architecture.fbank_mean == 11.7
    assert "does not say" in caplog.text


def test_espnet_tensors_that_nothing_here_uses_are_an_error(tmp_path):
    path = write_espnet_checkpoint(tmp_path, labels=LABELS)
    tensors = torch.load(path, weights_only=True)
    tensors["normalize.mean"] = torch.zeros(3)
    torch.save(tensors, path)

    with pytest.raises(InvalidCheckpointError, match=r"normalize\.mean"):
        BEATsModel.from_pretrained(path)


def test_a_config_that_would_run_code_is_refused(tmp_path):
    path = write_espnet_checkpoint(tmp_path / "exp", labels=LABELS)
    trap = tmp_path / "trap"
    (tmp_path / "exp" / "config.yaml").write_text(
        f"encoder_conf: !!python/object/apply:os.system ['touch {trap}']"
    )

    with pytest.raises(InvalidCheckpointError, match="plain YAML"):
        BEATsForAudioClassification.from_pretrained(path)
    assert not trap.exists()


# --- the old library's Lightning checkpoints ---------------------------------------------------------------


@pytest.mark.parametrize("hidden_dims", [(), (8,), (8, 6)])
def test_an_old_lightning_checkpoint_loads_with_numbered_classes(tmp_path, caplog, hidden_dims):
    path = write_old_lightning_checkpoint(tmp_path / "last.ckpt", hidden_dims=hidden_dims)

    classifier = BEATsForAudioClassification.from_pretrained(path)

    assert classifier.labels == ["0", "1", "2"]
    assert classifier.activation == "softmax"
    assert classifier.head.hidden_dims == hidden_dims
    assert classifier.head.activation == "gelu"
    assert classifier.head.dropout == 0.2
    assert "does not name its classes" in caplog.text
    assert "max_distance=800" in caplog.text
    assert_same_tensors(
        classifier.beats.to_microsoft()["model"], microsoft_tensors(tiny_architecture())
    )


def test_an_old_lightning_head_computes_what_it_did(tmp_path):
    path = write_old_lightning_checkpoint(tmp_path / "last.ckpt", hidden_dims=(8,))
    classifier = BEATsForAudioClassification.from_pretrained(path)
    generator = torch.Generator().manual_seed(
        1
    )  # as the helper drew them: pad kernels, then the head
    torch.randn(1, 1, 16, 16, generator=generator)
    torch.randn(1, 1, 400, generator=generator)
    w0, b0 = torch.randn(8, 32, generator=generator), torch.randn(8, generator=generator)
    w1, b1 = torch.randn(3, 8, generator=generator), torch.randn(3, generator=generator)
    embedding = torch.randn(2, 32)

    expected = torch.nn.functional.gelu(embedding @ w0.T + b0) @ w1.T + b1

    torch.testing.assert_close(classifier.head(embedding), expected)


def test_another_programs_lightning_checkpoint_is_an_error(tmp_path):
    torch.save(
        {"pytorch-lightning_version": "2", "state_dict": {"net.weight": torch.zeros(1)}},
        tmp_path / "a.ckpt",
    )

    with pytest.raises(InvalidCheckpointError, match=r"backbone\."):
        BEATsModel.from_pretrained(tmp_path / "a.ckpt")


# --- bare tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.beats."])
@pytest.mark.parametrize("newer_names", [False, True])
def test_a_bare_safetensors_file_loads_under_any_prefix(tmp_path, prefix, newer_names, caplog):
    tensors = {
        f"{prefix}{key}": value.clone()
        for key, value in microsoft_tensors(tiny_architecture()).items()
    }
    if newer_names:
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            key = f"{prefix}encoder.pos_conv.0.{old}"
            tensors[key.replace(old, f"parametrizations.weight.{new}")] = tensors.pop(key)
    save_file(tensors, tmp_path / "a.safetensors")

    model = BEATsModel.from_pretrained(tmp_path / "a.safetensors")

    assert_same_tensors(model.to_microsoft()["model"], microsoft_tensors(tiny_architecture()))
    assert "does not say deep_norm, max_distance" in caplog.text


def test_safetensors_are_told_by_content_not_by_file_name(tmp_path):
    tensors = {k: v.clone() for k, v in microsoft_tensors(tiny_architecture()).items()}
    save_file(tensors, tmp_path / "a.pt")
    write_microsoft_checkpoint(tmp_path / "b.safetensors")

    assert validate_checkpoint(str(tmp_path / "a.pt"))
    with pytest.raises(InvalidCheckpointError, match=r"b\.safetensors"):
        BEATsModel.from_pretrained(tmp_path / "b.safetensors")


# --- bad input ---------------------------------------------------------------------------------------------


def spoil(content, fault):
    """Change a Microsoft file's content in one way."""
    model, cfg = content["model"], content["cfg"]
    if fault == "a missing tensor":
        del model["encoder.layers.1.fc2.bias"]
    elif fault == "a missing essential tensor":
        del model["patch_embedding.weight"]
    elif fault == "an unknown tensor":
        model["encoder.layers.0.adapter.weight"] = torch.zeros(2)
    elif fault == "a wrong shape":
        model["encoder.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 31)
    elif fault == "no shared key":
        content["model"] = {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    elif fault == "a prefix beside a cfg":
        content["model"] = {f"encoder.{key}": value for key, value in model.items()}
    elif fault == "different position tables":
        key = "encoder.layers.1.self_attn.relative_attention_bias.weight"
        model[key] = model[key] + 1
    elif fault == "a cfg of another model":
        cfg["encoder_layers"] = 12
    elif fault == "a cfg with text for a number":
        cfg["max_distance"] = "800"
    elif fault == "an impossible cfg":
        cfg["layer_norm_first"] = True
    elif fault == "an unknown activation":
        cfg["activation_fn"] = "swish"
    elif fault == "no cfg settings":
        content["cfg"] = "base"
    elif fault == "no tensors":
        content["model"] = {}
    elif fault == "a number among tensors":
        model["layer_norm.bias"] = 3.0
    elif fault == "integer weights":
        model["layer_norm.bias"] = torch.zeros(24, dtype=torch.int64)
    elif fault == "a missing predictor":
        cfg["finetuned_model"] = True
    elif fault == "half a predictor":
        model["predictor.weight"] = torch.zeros(3, 32)
    elif fault == "too few labels":
        model |= {"predictor.weight": torch.zeros(3, 32), "predictor.bias": torch.zeros(3)}
        content["label_dict"] = {0: "a", 1: "b"}
    elif fault == "one label twice":
        model |= {"predictor.weight": torch.zeros(2, 32), "predictor.bias": torch.zeros(2)}
        content["label_dict"] = {0: "a", 1: "a"}
    else:
        raise AssertionError(fault)


FAULTS = {
    "a missing tensor": r"1 missing: encoder\.layers\.1\.fc2\.bias",
    "a missing essential tensor": r"patch_embedding\.weight missing",
    "an unknown tensor": r"1 unknown: encoder\.layers\.0\.adapter\.weight",
    "a wrong shape": r"q_proj\.weight is \(32, 31\) instead of \(32, 32\)",
    "no shared key": r"shares no tensor.*conv1\.weight",
    "a prefix beside a cfg": r"begin with 'encoder\.'",
    "different position tables": r"encoder\.layers\.1\..*differs",
    "a cfg of another model": r"encoder_layers: cfg 12, weights 2",
    "a cfg with text for a number": r"max_distance='800', expected int",
    "an impossible cfg": "deep_norm",
    "an unknown activation": "swish",
    "no cfg settings": "cfg is a str",
    "no tensors": "holds no weights",
    "a number among tensors": "holds a float, expected a tensor",
    "integer weights": "torch.int64",
    "a missing predictor": r"predictor\.weight is missing",
    "half a predictor": r"predictor\.bias",
    "too few labels": "names 2 classes, the predictor has 3",
    "one label twice": "label appears twice",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_an_error_that_says_what_is_wrong(fault, tmp_path):
    content = microsoft_content()
    spoil(content, fault)
    path = tmp_path / "faulty.pt"
    torch.save(content, path)

    assert validate_checkpoint(path) is False
    with pytest.raises(InvalidCheckpointError, match=FAULTS[fault]) as caught:
        BEATsModel.from_pretrained(path)
    assert "faulty.pt" in str(caught.value)


def test_weights_that_are_not_finite_are_an_error(tmp_path):
    content = microsoft_content()
    content["model"]["layer_norm.bias"][3] = float("nan")
    torch.save(content, tmp_path / "a.pt")

    with pytest.raises(InvalidCheckpointError, match=r"layer_norm\.bias holds NaN"):
        BEATsModel.from_pretrained(tmp_path / "a.pt")


def test_many_missing_tensors_are_counted_and_only_the_first_named(tmp_path):
    content = microsoft_content()
    for key in [key for key in content["model"] if ".0.self_attn." in key]:
        del content["model"][key]
    torch.save(content, tmp_path / "a.pt")

    with pytest.raises(InvalidCheckpointError, match=r"1\d missing: .*, \.\.\."):
        BEATsModel.from_pretrained(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_an_error(tmp_path, share, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        write_microsoft_checkpoint(path)
    else:
        save_file({k: v.clone() for k, v in microsoft_tensors(tiny_architecture()).items()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    assert validate_checkpoint(path) is False
    with pytest.raises(InvalidCheckpointError, match=f"a{suffix}"):
        BEATsModel.from_pretrained(path)


def test_a_flipped_byte_in_the_weights_is_an_error(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    # 30 bytes of local header, the name, and padding come before the data.
    content[largest.header_offset + 600] ^= 1
    path.write_bytes(content)

    with pytest.raises(InvalidCheckpointError, match="do not match their checksums"):
        BEATsModel.from_pretrained(path)


def test_a_file_written_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = write_microsoft_checkpoint(tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)

    assert_same_tensors(
        BEATsModel.from_pretrained(path).to_microsoft()["model"],
        microsoft_tensors(tiny_architecture()),
    )


@pytest.mark.parametrize(
    "content",
    [
        b"not a torch file",
        b"\x00" * 5000,
        b"PK\x03\x04 a zip that is none",
        b"RIFF....WAVEfmt ",
        b"{}",
    ],
)
def test_a_file_of_something_else_is_an_error(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)

    assert validate_checkpoint(path) is False
    with pytest.raises(InvalidCheckpointError, match=r"a\.pt"):
        BEATsModel.from_pretrained(path)


def test_a_zip_of_something_else_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")

    with pytest.raises(InvalidCheckpointError, match="not a checkpoint of torch"):
        BEATsModel.from_pretrained(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [{}, [], torch.zeros(3), {"a": 1}, "text", {"model": 3, "cfg": {}}]
)
def test_a_torch_file_of_something_else_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")

    assert validate_checkpoint(tmp_path / "a.pt") is False
    with pytest.raises(InvalidCheckpointError):
        BEATsModel.from_pretrained(tmp_path / "a.pt")


class Trap:
    """Unpickling this the careless way creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


class SystemTrap(Trap):
    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.file}",))


@pytest.mark.parametrize("trap", [Trap, SystemTrap])
@pytest.mark.parametrize("form", ["torch archive", "old torch file", "plain pickle", "lightning"])
def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path, trap, form):
    victim, path = tmp_path / "victim", tmp_path / "a.pt"
    content = {**microsoft_content(), "extra": trap(victim)}
    if form == "torch archive":
        torch.save(content, path)
    elif form == "old torch file":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        content = {
            "pytorch-lightning_version": "2.5",
            "state_dict": OrderedDict(
                {f"backbone.{k}": v for k, v in microsoft_tensors(tiny_architecture()).items()}
            ),
            "hyper_parameters": {"config": trap(victim)},
        }
        torch.save(content, path)

    assert validate_checkpoint(path) is False
    with pytest.raises(InvalidCheckpointError):
        BEATsModel.from_pretrained(path)
    assert not victim.exists()


def test_a_refused_file_says_which_objects_it_holds(tmp_path):
    torch.save({**microsoft_content(), "extra": Trap(tmp_path / "victim")}, tmp_path / "a.pt")

    with pytest.raises(InvalidCheckpointError, match="could execute code"):
        BEATsModel.from_pretrained(tmp_path / "a.pt")


@pytest.mark.parametrize("source", ["no/such/file.pt", "./nothing", Path("nothing.ckpt")])
def test_a_path_that_is_not_there_is_an_error(source):
    with pytest.raises(CheckpointNotFoundError, match="no file or folder"):
        BEATsModel.from_pretrained(source)
    assert validate_checkpoint(source) is False


def test_a_missing_path_that_is_called_like_a_checkpoint_names_it():
    with pytest.raises(CheckpointNotFoundError, match="pass its name: 'BEATs_iter3_plus_AS2M'"):
        BEATsModel.from_pretrained("checkpoints/BEATs_iter3_plus_AS2M.pt")


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(CheckpointError, match="Did you mean 'openbeats'"):
        BEATsModel.from_pretrained("openbeat")


def test_validation_reads_no_weights(tmp_path, monkeypatch):
    path = write_microsoft_checkpoint(tmp_path / "a.pt")
    monkeypatch.setattr("beats_trainer.checkpoints.read.file_sha256", None)
    monkeypatch.setattr("beats_trainer.checkpoints.read.check_archive", None)

    assert validate_checkpoint(path)


# --- size --------------------------------------------------------------------------------------------------


def test_loading_draws_no_random_numbers(tmp_path):
    path = write_microsoft_checkpoint(tmp_path / "a.pt", labels=LABELS)
    torch.manual_seed(3)
    expected = torch.rand(4)

    torch.manual_seed(3)
    BEATsForAudioClassification.from_pretrained(path)

    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_parameters", "num_keys"),
    [("encoder", 90_311_792, 250), ("classifier", 90_717_055, 252), ("tokenizer", 91_624_560, 259)],
)
def test_base_size_files_have_the_published_counts_and_come_back(
    tmp_path, kind, num_parameters, num_keys
):
    base = Architecture(encoder_layerdrop=0.05)
    path = tmp_path / "base.pt"
    if kind == "tokenizer":
        content = tokenizer_content(base, num_codes=1024, code_dim=256)
        torch.save(content, path)
        network = load_tokenizer(path)
    else:
        labels = [f"/m/{index:03d}" for index in range(527)] if kind == "classifier" else None
        content = microsoft_content(base, labels=labels)
        torch.save(content, path)
        loader = BEATsForAudioClassification if labels else BEATsModel
        network = loader.from_pretrained(path)
    exported = network.to_microsoft()["model"]

    assert len(exported) == num_keys
    counted = dict(network.named_parameters())
    # The original's codebook is made of parameters that have no gradient.
    counted |= {n: b for n, b in network.named_buffers() if n.startswith("quantize.embedding.")}
    counted.pop("quantize.embedding.initted", None)
    assert sum(tensor.numel() for tensor in counted.values()) == num_parameters
    assert_same_tensors(exported, content["model"])


@pytest.mark.slow
def test_a_base_size_openbeats_file_loads(tmp_path):
    cfg = {
        "deep_norm": True,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "max_distance": 800,
        "encoder_layerdrop": 0.0,
        "codebook_vocab_size": 1024,
    }
    path = write_openbeats_checkpoint(tmp_path / "openbeats_i3.pt", Architecture(), cfg=cfg)

    checkpoint = read_checkpoint(path)

    assert checkpoint.architecture == Architecture(dropout=0.1, attention_dropout=0.1)
    assert set(checkpoint.provenance["assumed"]) == {
        "layer_norm_first",
        "activation_fn",
        "fbank_mean",
        "fbank_std",
    }


def test_the_large_network_has_the_published_counts():
    large = Architecture(
        encoder_layers=24,
        encoder_embed_dim=1024,
        encoder_ffn_embed_dim=4096,
        encoder_attention_heads=16,
    )
    with Uninitialised():
        model = BEATsModel(large)

    assert sum(parameter.numel() for parameter in model.parameters()) == 311_376_576
    layer_tables = (
        large.encoder_layers - 1
    )  # the table that is stored once here is in every layer there
    assert len(model.state_dict()) + layer_tables == 490


# --- golden files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretrained", "prenorm", "ungated", "finetuned", "tokenizer"])
def test_a_golden_file_comes_back_bit_identical(name):
    golden = Path(__file__).resolve().parents[3] / "shared" / "golden" / f"{name}.pt"
    if not golden.is_file():
        pytest.skip(f"the golden file {golden.name} is not beside this checkout")
    content = torch.load(golden, weights_only=True)

    if name == "tokenizer":
        network = load_tokenizer(golden)
    elif name == "finetuned":
        network = BEATsForAudioClassification.from_pretrained(golden)
    else:
        network = BEATsModel.from_pretrained(golden)
    exported = network.to_microsoft()

    assert_same_tensors(exported["model"], content["model"])
    assert exported["cfg"] == content["cfg"]
    assert exported.get("label_dict") == content.get("label_dict")
