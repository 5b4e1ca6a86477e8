"""Adapters: only they learn, they start as nothing, and merged they leave a plain encoder behind."""

import importlib
import sys

import pytest
import torch

from beats_trainer import BEATsForAudioClassification, BEATsModel
from beats_trainer.errors import ConfigError
from beats_trainer.model import ClassifierHead
from beats_trainer.training.lora import LORA_TARGETS, add_lora, has_lora, merge_lora
from beats_trainer.training.optim import layer_depth, parameter_groups
from checkpoint_files import tiny_architecture

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason='needs peft: pip install "beats-trainer[lora]"'
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return BEATsModel(tiny_architecture(encoder_layerdrop=0.1)).eval()


def tokens(encoder):
    waveforms = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return encoder(waveforms, torch.tensor([9000, 5000])).tokens


def train_a_little(classifier, num_steps=3):
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    waveforms = torch.randn(4, 6000, generator=torch.Generator().manual_seed(2))
    classifier.train()
    for _ in range(num_steps):
        loss = torch.nn.functional.cross_entropy(
            classifier(waveforms).logits, torch.tensor([0, 1, 0, 1])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier.eval()


def with_head(encoder):
    return BEATsForAudioClassification(encoder, ClassifierHead(32, 2), ["a", "b"])


@needs_peft
def test_an_adapted_encoder_starts_as_the_encoder_itself(encoder):
    expected = tokens(encoder)
    before = torch.random.get_rng_state()

    adapted = add_lora(encoder, seed=0)

    assert adapted is encoder
    assert isinstance(adapted, BEATsModel)
    assert not adapted.training
    assert torch.equal(tokens(adapted), expected)
    assert torch.equal(torch.random.get_rng_state(), before)


@needs_peft
def test_only_adapters_and_head_learn(encoder):
    classifier = with_head(add_lora(encoder, rank=2, seed=0))
    before = {name: value.clone() for name, value in classifier.state_dict().items()}

    train_a_little(classifier)

    moved = {n for n, v in classifier.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n in before if ".lora_" in n or n.startswith("head.")}
    num_adapted = 2 * len(LORA_TARGETS) * 2  # A and B of every matrix in both layers
    assert sum(".lora_" in name for name in moved) == num_adapted


@needs_peft
def test_a_merged_encoder_is_a_plain_one_with_the_outputs_of_the_adapted_one(encoder):
    keys = list(encoder.state_dict())
    start = tokens(encoder)
    classifier = with_head(add_lora(encoder, seed=0))
    train_a_little(classifier)
    adapted = tokens(encoder)

    merged = merge_lora(encoder)

    assert (adapted - start).abs().max() > 1e-2  # there was something to merge
    torch.testing.assert_close(tokens(merged), adapted, atol=1e-5, rtol=1e-5)
    assert list(merged.state_dict()) == keys
    assert not has_lora(merged)
    assert not hasattr(merged, "peft_config")
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not any(type(module).__module__.startswith("peft") for module in merged.modules())


@needs_peft
def test_a_merged_model_is_saved_and_loaded_without_peft(encoder, tmp_path, monkeypatch):
    classifier = with_head(add_lora(encoder, seed=0))
    train_a_little(classifier)
    merge_lora(classifier.beats)

    folder = classifier.save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = BEATsForAudioClassification.from_pretrained(folder)

    assert torch.equal(tokens(loaded.beats), tokens(classifier.beats))


@needs_peft
def test_a_model_with_adapters_is_not_stored_in_any_form(encoder, tmp_path):
    classifier = with_head(add_lora(encoder, seed=0))

    for store in (lambda: classifier.save_pretrained(tmp_path / "m"), encoder.to_microsoft):
        with pytest.raises(ValueError, match="merge_lora"):
            store()
    assert not list(tmp_path.iterdir())


@needs_peft
def test_the_seed_decides_the_adapters(encoder):
    def first_adapter(seed):
        torch.manual_seed(0)
        adapted = add_lora(BEATsModel(tiny_architecture()), seed=seed)
        return next(v for n, v in adapted.named_parameters() if "lora_A" in n)

    assert torch.equal(first_adapter(1), first_adapter(1))
    assert not torch.equal(first_adapter(1), first_adapter(2))


@needs_peft
def test_adapters_learn_at_the_rate_of_their_layer(encoder):
    classifier = with_head(add_lora(encoder, targets=["v_proj"], seed=0))

    names = [name for name, p in classifier.named_parameters() if p.requires_grad]
    groups = parameter_groups(classifier, 1.0, 0.1, 0.5, num_layers=2)

    assert {layer_depth(name, 2) for name in names} == {1, 2, 3}
    assert sorted({group["lr"] for group in groups}) == [0.25, 0.5, 1.0]


@needs_peft
def test_adapters_are_put_on_once(encoder):
    add_lora(encoder, seed=0)

    with pytest.raises(ValueError, match="already"):
        add_lora(encoder, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank of at least 1"),
        ({"alpha": 0}, "positive alpha"),
        ({"dropout": 1.0}, "below 1"),
        ({"targets": ["q_proj", "query"]}, r"not \['query'\]"),
        ({"targets": []}, "none at all"),
    ],
)
def test_settings_out_of_range_are_refused(encoder, settings, message):
    with pytest.raises(ValueError, match=message):
        add_lora(encoder, seed=0, **settings)


def test_without_peft_the_error_says_what_to_install(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(ConfigError, match=r"pip install \"beats-trainer\[lora\]\""):
        add_lora(encoder, seed=0)
    assert merge_lora(encoder) is encoder  # nothing to merge needs nothing
