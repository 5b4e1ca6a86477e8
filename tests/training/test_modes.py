"""Each mode of training: what moves and how far, what is switched off, how often a clip is encoded."""

import importlib.util
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

import beats_trainer.trainer as trainer_module
from beats_trainer import BEATsForAudioClassification, BEATsModel, BEATsPredictor, BEATsTrainer
from beats_trainer.config import AugmentationConfig, Config, ModelConfig
from beats_trainer.datasets import scan_directory_dataset
from beats_trainer.model import Architecture, BEATs
from beats_trainer.presets import MODES, PRESETS
from beats_trainer.training import epochs, modules
from beats_trainer.training.losses import ClassificationLoss
from tones import TINY, tiny_config, write_tones

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason='needs peft: pip install "beats-trainer[lora]"'
)
ALL_MODES = [pytest.param(m, marks=needs_peft) if m == "lora" else m for m in MODES]
LIVE_MODES = ALL_MODES[2:]
MATRIX = r"beats\.encoder\.layers\.\d\.(self_attn\.(q|k|v|out)_proj|fc[12])\.weight"
# A key bias shifts all scores of a query alike, which softmax cancels: its gradient is rounding.
KEY_BIAS = r"beats\.encoder\.layers\.\d\.self_attn\.k_proj\.bias"


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny encoder that drops out as much as it can, as a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    architecture = Architecture(
        **TINY, encoder_layerdrop=0.5, dropout=0.5, attention_dropout=0.5, activation_dropout=0.5
    )
    BEATsModel(architecture).save_pretrained(folder)
    return folder


@pytest.fixture
def make(tones, base, tmp_path):
    """Make a trainer on the tones, of a mode, with settings of any section."""

    def make_trainer(mode, data=None, model=None, dataset=None, **training):
        config = tiny_config(**{"learning_rate": 1e-2, "calibrate": False} | training)
        dropout = {"dropout_rate": 0.5}
        if mode == "scratch":
            config.model = ModelConfig(mode=mode, encoder_layerdrop=0.5, **TINY, **dropout)
        else:
            config.model = ModelConfig(mode=mode, model_path=base, **dropout)
        for section, settings in (("data", data or {}), ("model", model or {})):
            for name, value in settings.items():
                setattr(getattr(config, section), name, value)
        table = scan_directory_dataset(tones) if dataset is None else dataset
        return BEATsTrainer(table, config=config, log_dir=tmp_path / "logs")

    return make_trainer


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def train_and_compare(trainer):
    """Train, and return the names of the weights that moved, of those that did not, and all changes."""
    before = weights_of(trainer.model)
    trainer.train(verbose=False)
    after = weights_of(trainer.model)
    assert before.keys() == after.keys()
    changes = {name: after[name] - before[name] for name in before}
    moved = {name for name, change in changes.items() if change.any()}
    return moved, set(changes) - moved, changes


ALL_EPOCHS = {"train_split": 0.8, "val_split": 0.0, "test_split": 0.2}
"""Without validation the last epoch is kept: in the first ones a dropped layer may not have been trained."""


# Which weights move.


@pytest.mark.parametrize(
    ("mode", "moving"),
    [
        ("head", r"head\..*"),
        ("attentive", r"(head|attentive_pooling)\..*"),
        pytest.param("lora", rf"head\..*|{MATRIX}", marks=needs_peft),
        ("full", r".*"),
        ("scratch", r".*"),
    ],
)
def test_a_mode_moves_its_weights_and_leaves_all_others_bit_equal(make, mode, moving):
    trainer = make(mode, data=ALL_EPOCHS, max_epochs=4)

    moved, still, _ = train_and_compare(trainer)

    assert {name for name in moved if not re.fullmatch(moving, name)} == set()
    left_behind = {name for name in still if re.fullmatch(moving, name)}
    assert {name for name in left_behind if not re.fullmatch(KEY_BIAS, name)} == set()


@needs_peft
def test_lora_adapts_the_matrices_that_it_is_told_to(make):
    model = {"lora_targets": ["q_proj", "fc1"], "lora_rank": 2}
    trainer = make("lora", data=ALL_EPOCHS, model=model, max_epochs=4)

    moved, _, changes = train_and_compare(trainer)

    adapted = {
        f"beats.encoder.layers.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("self_attn.q_proj", "fc1")
    }
    assert {name for name in moved if name.startswith("beats.")} == adapted
    assert {int(torch.linalg.matrix_rank(changes[name], rtol=1e-3)) for name in adapted} == {2}


@needs_peft
def test_a_model_trained_with_adapters_is_a_plain_folder_that_loads_without_peft(
    make, tones, monkeypatch
):
    trainer = make("lora")
    result = trainer.train(verbose=False)
    files = trainer.splits.test["path"].tolist()
    expected = trainer.predict(files)
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed

    saved = load_file(f"{result.best_checkpoint}/model.safetensors")
    loaded = BEATsForAudioClassification.from_pretrained(result.best_checkpoint)
    predicted = BEATsPredictor(result.best_checkpoint, "cpu", precision="float32").predict(files)

    assert [name for name in saved if "lora" in name or "base_layer" in name] == []
    plain = BEATs(loaded.beats.architecture).state_dict()
    assert set(loaded.beats.state_dict()) == set(plain)
    assert predicted.equals(expected)


# How far: layer-wise rates under AdamW.


@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_the_first_adamw_step_moves_each_layer_by_its_own_rate(make, mode):
    trainer = make(
        mode,
        model={"fit_head_first": False},
        data={"batch_size": 64},  # all clips: one step
        max_epochs=1,
        layer_decay=0.5,
        weight_decay=0.0,
        warmup_ratio=0.0,
        scheduler="constant",
    )
    if mode == "scratch":
        trainer.config.model.encoder_layerdrop = 0.0
    else:
        trainer.model.beats.encoder.layer_drop = 0.0  # a dropped layer has no gradient to follow

    _, _, changes = train_and_compare(trainer)

    # AdamW's first step is the rate times the gradient's sign, whatever the gradient's size.
    rates = {
        "head.layers.1.weight": 1e-2,
        "beats.encoder.layers.1.fc1.weight": 1e-2 * 0.5,
        "beats.encoder.layers.1.self_attn.v_proj.weight": 1e-2 * 0.5,
        "beats.encoder.layers.0.fc1.weight": 1e-2 * 0.25,
        "beats.encoder.layers.0.self_attn.v_proj.weight": 1e-2 * 0.25,
        "beats.post_extract_proj.weight": 1e-2 * 0.125,
        "beats.patch_embedding.weight": 1e-2 * 0.125,
    }
    measured = {name: float(changes[name].abs().median()) for name in rates}
    assert measured == pytest.approx(rates, rel=1e-3)


# Presets.


class EnoughError(Exception):
    pass


@pytest.mark.parametrize("mode", ALL_MODES)
def test_the_preset_of_a_mode_is_what_the_optimiser_gets(make, mode, monkeypatch):
    trainer = make(
        mode,
        learning_rate=None,
        max_epochs=None,
        data={"batch_size": None},
        model={"fit_head_first": False},
    )
    seen = {}

    def see(optimizer, training, num_steps, steps_per_epoch):
        seen.update(groups=optimizer.param_groups, num_steps=num_steps, training=training)
        raise EnoughError

    monkeypatch.setattr(modules, "make_scheduler", see)
    monkeypatch.setattr(epochs, "make_scheduler", see)
    with pytest.raises(EnoughError):
        trainer.train(verbose=False)

    preset = PRESETS[mode]
    rates = {group["lr"] for group in seen["groups"]}
    num_layers = 2
    lowest = preset.layer_decay ** (num_layers + 1) if mode in ("full", "scratch") else 1.0
    assert max(rates) == preset.learning_rate
    assert min(rates) == pytest.approx(preset.learning_rate * lowest)
    assert {group["weight_decay"] for group in seen["groups"]} == {0.0, preset.weight_decay}
    steps_per_epoch = -(-len(trainer.splits.train) // preset.batch_size)
    assert seen["num_steps"] == preset.max_epochs * steps_per_epoch
    assert seen["training"].warmup_ratio == preset.warmup_ratio
    assert seen["training"].patience == preset.patience


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_run_writes_down_what_its_preset_was(make, mode):
    trainer = make(mode, learning_rate=None, max_epochs=1)

    result = trainer.train(verbose=False)

    written = Config.from_yaml(f"{result.run_dir}/config.yaml")
    assert written.model.mode == mode
    assert written.training.learning_rate == PRESETS[mode].learning_rate
    assert written.training.weight_decay == PRESETS[mode].weight_decay
    assert written == trainer.config.resolved()
    provenance = BEATsForAudioClassification.from_pretrained(result.best_checkpoint).provenance
    assert provenance["mode"] == mode
    assert provenance["learning_rate"] == PRESETS[mode].learning_rate


# What is switched off.


def watch_encoder(monkeypatch):
    """Record, of each run of an encoder, the clips, and whether gradients and dropout were on."""
    runs = []
    original = BEATs.encode_fbank

    def watched(self, fbank, *arguments, **options):
        trains = any(module.training for module in self.modules())
        runs.append((len(fbank), torch.is_grad_enabled(), trains))
        return original(self, fbank, *arguments, **options)

    monkeypatch.setattr(BEATs, "encode_fbank", watched)
    return runs


def watch_training(monkeypatch):
    """Record, of each training step, whether head and encoder were in training mode."""
    steps = []
    original = modules.ClassifierModule.training_step

    def watched(self, batch, batch_idx):
        beats = self.classifier.beats
        steps.append((self.classifier.head.training, any(m.training for m in beats.modules())))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(modules.ClassifierModule, "training_step", watched)
    return steps


@pytest.mark.parametrize("mode", ["head", "attentive"])
def test_a_frozen_encoder_is_never_run_with_dropout_or_gradients(make, mode, monkeypatch):
    runs = watch_encoder(monkeypatch)

    make(mode).train(verbose=False)

    assert runs
    assert {(grad, trains) for _, grad, trains in runs} == {(False, False)}


def test_a_frozen_encoder_that_hears_clips_anew_stays_in_eval_mode_while_its_head_trains(
    make, monkeypatch
):
    runs, steps = watch_encoder(monkeypatch), watch_training(monkeypatch)

    make("attentive", model={"cache_gb": 0.0}).train(verbose=False)

    assert set(steps) == {(True, False)}
    assert {(grad, trains) for _, grad, trains in runs} == {(False, False)}


@pytest.mark.parametrize("mode", LIVE_MODES)
def test_a_trained_encoder_drops_out_while_it_trains_and_only_then(make, mode, monkeypatch):
    runs, steps = watch_encoder(monkeypatch), watch_training(monkeypatch)
    trainer = make(mode)

    trainer.train(verbose=False)
    trainer.evaluate("test")

    assert set(steps) == {(True, True)}
    assert {trains == grad for _, grad, trains in runs} == {True}


@pytest.mark.parametrize("mode", ALL_MODES)
def test_two_evaluations_are_equal_and_are_what_was_validated_while_training(make, mode):
    trainer = make(mode)

    result = trainer.train(verbose=False)

    first, second = (trainer.evaluate("val").summary("val") for _ in range(2))
    assert first == second
    kept = result.history[result.best_epoch]
    # Cached tokens are kept in float16, and scores of training in float32.
    assert first["val_loss"] == pytest.approx(kept["val_loss"], rel=2e-3)
    assert first["val_accuracy"] == kept["val_accuracy"]
    assert result.val_results["val_loss"] == pytest.approx(first["val_loss"], rel=2e-3)


# How often a clip is encoded.


@pytest.mark.parametrize("mode", ["head", "attentive"])
def test_a_frozen_mode_encodes_each_clip_once(make, mode, monkeypatch):
    runs = watch_encoder(monkeypatch)
    trainer = make(mode, max_epochs=5, patience=5)

    trainer.train(verbose=False)

    assert sum(clips for clips, _, _ in runs) == 30


@pytest.mark.parametrize("mode", ["head", "attentive"])
def test_cross_validation_of_a_frozen_mode_encodes_each_clip_once_over_all_folds(
    make, mode, monkeypatch
):
    runs = watch_encoder(monkeypatch)
    trainer = make(mode, data={"folds": 3}, max_epochs=3)

    result = trainer.cross_validate(verbose=False)

    assert len(result.predictions) == 30
    assert sum(clips for clips, _, _ in runs) == 30


@pytest.mark.parametrize("mode", LIVE_MODES)
def test_each_fold_of_a_trained_mode_starts_from_the_same_weights(make, mode, monkeypatch):
    starts = []
    original = trainer_module.train_once

    def watched(classifier, *arguments, **options):
        starts.append(weights_of(classifier))
        return original(classifier, *arguments, **options)

    monkeypatch.setattr(trainer_module, "train_once", watched)

    make(mode, data={"folds": 2}, max_epochs=1).cross_validate(verbose=False)

    first, second = starts
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_tokens_that_do_not_fit_are_encoded_in_every_epoch_and_teach_the_same(make, monkeypatch):
    settings = {"max_epochs": 15, "patience": 15, "learning_rate": 3e-2}
    cached = make("attentive", model={"dropout_rate": 0.0}, **settings).train(verbose=False)
    runs = watch_encoder(monkeypatch)

    live = make("attentive", model={"dropout_rate": 0.0, "cache_gb": 0.0}, **settings)
    result = live.train(verbose=False)

    # Training and validation clips in each epoch, and then those that are measured.
    assert sum(clips for clips, _, _ in runs) == len(result.history) * (18 + 6) + (6 + 6)
    assert cached["test_results"]["test_accuracy"] >= 0.8
    assert result["test_results"]["test_accuracy"] >= 0.8


def test_augmentation_makes_the_attentive_mode_hear_its_clips_anew(make, monkeypatch):
    steps = watch_training(monkeypatch)
    trainer = make("attentive")
    trainer.config.augmentation = AugmentationConfig(gain_db=6)

    trainer.train(verbose=False)

    assert set(steps) == {(True, False)}


# Imbalance and losses reach what is minimised.


@pytest.fixture
def few_high(tones):
    """A table with a rare class: 10 clips of two classes, 5 of the third."""
    table = scan_directory_dataset(tones)
    number = table.groupby("category").cumcount()
    return table[(table["category"] != "high") | (number < 5)].reset_index(drop=True)


def watch_loss(monkeypatch):
    """Record each call of the loss: the loss itself, and how many clips of each class it was of."""
    calls = []
    original = ClassificationLoss.__call__

    def watched(self, logits, targets):
        calls.append((self, targets.sum(dim=0)))
        return original(self, logits, targets)

    monkeypatch.setattr(ClassificationLoss, "__call__", watched)
    return calls


@pytest.mark.parametrize("mode", ["head", "attentive", "full"])
def test_class_balanced_sampling_hears_a_rare_class_as_often_as_the_others(
    make, mode, few_high, monkeypatch
):
    calls = watch_loss(monkeypatch)
    trainer = make(
        mode,
        dataset=few_high,
        sampling="class_balanced",
        max_epochs=1,
        model={"fit_head_first": False},
    )

    trainer.train(verbose=False)

    heard = sum(counts for _, counts in calls)
    assert trainer.splits.train["category"].value_counts().to_dict() == {
        "low": 6,
        "middle": 6,
        "high": 3,
    }
    assert heard.tolist() == [5, 5, 5]


@pytest.mark.parametrize("mode", ["head", "attentive", "full"])
def test_class_weights_reach_the_loss(make, mode, few_high, monkeypatch):
    calls = watch_loss(monkeypatch)

    make(mode, dataset=few_high, class_weights="inverse", max_epochs=1).train(verbose=False)

    (high, low, middle) = calls[0][0].weights.tolist()
    assert high == pytest.approx(2 * low)
    assert low == pytest.approx(middle)


@pytest.mark.parametrize("mode", ["head", "attentive", "full"])
@pytest.mark.parametrize(
    ("loss_function", "activation"),
    [
        ("cross_entropy", "softmax"),
        ("focal", "softmax"),
        ("bce", "sigmoid"),
        ("asymmetric", "sigmoid"),
    ],
)
def test_the_loss_that_is_asked_for_is_minimised_and_decides_the_saved_activation(
    make, mode, loss_function, activation, monkeypatch
):
    calls = watch_loss(monkeypatch)
    trainer = make(mode, loss_function=loss_function, focal_gamma=1.5, label_smoothing=0.1)

    result = trainer.train(verbose=False)

    assert {(loss.name, loss.activation) for loss, _ in calls} == {(loss_function, activation)}
    assert {(loss.focal_gamma, loss.label_smoothing) for loss, _ in calls} == {(1.5, 0.1)}
    saved = BEATsForAudioClassification.from_pretrained(result.best_checkpoint)
    assert saved.activation == activation
    assert saved.provenance["loss"] == loss_function
    sums = trainer.predict(trainer.splits.test["path"].tolist())[trainer.labels].sum(axis=1)
    assert ((sums - 1).abs() < 1e-4).all() == (activation == "softmax")
