import copy
import dataclasses
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from beats_trainer.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)
from beats_trainer.errors import ConfigError
from beats_trainer.presets import MODES, PRESETS


def test_the_defaults_are_valid_and_train_only_the_head(recwarn):
    config = Config()

    config.validate()

    assert not recwarn.list
    assert not config.model.trains_backbone
    assert config.model.resolved_mode == "head"
    assert config.resolved_learning_rate() == PRESETS["head"].learning_rate


def test_the_documents_fine_tuning_settings_are_valid(recwarn):
    config = Config()
    config.model.freeze_backbone = False
    config.model.fine_tune_backbone = True
    config.training.max_epochs = 50
    config.training.learning_rate = 5e-5

    config.validate()

    assert not recwarn.list
    assert config.model.trains_backbone
    assert config.resolved_learning_rate() == 5e-5


def test_the_documents_from_scratch_settings_are_valid(recwarn):
    config = Config(
        experiment_name="beats_from_scratch",
        data=DataConfig(data_dir="path/to/your/audio/data", batch_size=16, sample_rate=16000),
        model=ModelConfig(
            train_from_scratch=True,
            encoder_layers=12,
            encoder_embed_dim=768,
            encoder_attention_heads=12,
            input_patch_size=16,
            fine_tune_backbone=True,
            freeze_backbone=False,
        ),
        training=TrainingConfig(learning_rate=1e-3, max_epochs=100, patience=15, optimizer="adamw"),
    )

    config.validate()

    assert not recwarn.list
    assert config.model.trains_backbone
    assert config.model.model_path is None


def test_the_documents_data_settings_are_valid(recwarn):
    data = DataConfig(
        data_dir="path/to/audio/files",
        metadata_file="labels.csv",
        audio_column="file_path",
        label_column="class_name",
        train_split=0.7,
        val_split=0.2,
        test_split=0.1,
        batch_size=16,
        sample_rate=16000,
    )

    Config(data=data, training=TrainingConfig(1e-4, max_epochs=30, patience=5)).validate()

    assert not recwarn.list


def test_from_scratch_alone_trains_the_backbone():
    model = ModelConfig(train_from_scratch=True)

    assert (model.freeze_backbone, model.fine_tune_backbone) == (False, True)
    assert model.trains_backbone

    later = ModelConfig()
    later.train_from_scratch = True
    assert later.trains_backbone
    assert Config(model=later).resolved_learning_rate() == 5e-4


@pytest.mark.parametrize(
    ("freeze", "fine_tune", "trains"),
    [(True, False, False), (False, True, True), (False, False, True)],
)
def test_two_settings_give_one_answer_about_the_backbone(freeze, fine_tune, trains):
    model = ModelConfig(freeze_backbone=freeze, fine_tune_backbone=fine_tune)

    assert model.trains_backbone is trains


def test_a_backbone_both_frozen_and_fine_tuned_is_an_error():
    config = Config(model=ModelConfig(fine_tune_backbone=True))

    with pytest.raises(ConfigError, match="set freeze_backbone=False and fine_tune_backbone=True"):
        config.validate()
    with pytest.raises(ConfigError):
        config.resolved_learning_rate()


@pytest.mark.parametrize(
    ("section", "name", "hint"),
    [
        ("training", "learning_rat", "training.learning_rate"),
        ("training", "batch_size", "data.batch_size"),
        ("model", "max_epoch", "training.max_epochs"),
        (None, "sed", "seed"),
        (None, "learning_rate", "training.learning_rate"),
        (None, "trainig", "training"),
    ],
)
def test_a_setting_that_does_not_exist_is_an_error_with_the_likely_one(section, name, hint):
    settings = {section: {name: 1}} if section else {name: 1}
    with pytest.raises(ConfigError, match=f"Did you mean '{hint}'"):
        Config.from_dict(settings)

    config = Config()
    with pytest.raises(ConfigError, match=f"Did you mean '{hint}'"):
        setattr(getattr(config, section) if section else config, name, 1)


@pytest.mark.parametrize("text", ["5e-5", "5E-5", "0.00005", " 5e-5 "])
def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path, text):
    (tmp_path / "config.yaml").write_text(f"training:\n  learning_rate: '{text}'\n")

    assert Config.from_yaml(tmp_path / "config.yaml").training.learning_rate == 5e-5


def test_the_documents_learning_rate_can_be_written_in_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "training: {learning_rate: 5e-5, max_epochs: 1e1}\ndata: {batch_size: 8.0}\nmodel:\n"
    )

    config = Config.from_yaml(tmp_path / "config.yaml")

    assert config.training.learning_rate == 5e-5
    assert (config.training.max_epochs, config.data.batch_size) == (10, 8)
    assert isinstance(config.training.max_epochs, int)
    assert isinstance(config.data.batch_size, int)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"training": {"learning_rate": "fast"}},
            "training.learning_rate must be a number or null",
        ),
        ({"training": {"learning_rate": True}}, r"not True \(bool\)"),
        ({"training": {"learning_rate": "nan"}}, "must be a number"),
        (
            {"training": {"max_epochs": 1.5}},
            "training.max_epochs must be a whole number or null, not 1.5",
        ),
        ({"training": {"deterministic": "yes"}}, "must be true or false, not 'yes'"),
        ({"training": {"optimizer": "adagrad"}}, "must be one of adamw, adam, sgd"),
        ({"training": {"precision": "int8"}}, "auto, float32, bfloat16 or float16, not 'int8'"),
        ({"training": {"loss_function": "hinge"}}, "must be one of auto, cross_entropy"),
        ({"data": {"audio_extensions": ".wav"}}, "must be a list of texts or null"),
        ({"model": {"hidden_dims": [1, "x"]}}, "must be a list of whole numbers or null"),
        ({"model": {"pooling": "median"}}, "must be one of mean, max, first, last"),
        ({"data": {"data_dir": 3}}, "data.data_dir must be text or a path or null, not 3"),
        ({"data": ["data_dir"]}, "data must be a mapping"),
        ({"seed": None}, "seed must be a whole number"),
        ([1], "A configuration must be a mapping"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_says_what_was_expected(settings, told):
    with pytest.raises(ConfigError, match=told):
        Config.from_dict(settings)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("training", "learning_rate", "5e-5"),
        ("training", "max_epochs", "5"),
        ("data", "num_workers", None),
        ("model", "freeze_backbone", 0),
    ],
)
def test_a_wrong_type_that_was_assigned_is_found_when_it_is_used(section, name, value):
    config = Config()
    setattr(getattr(config, section), name, value)

    with pytest.raises(ConfigError, match=rf"{section}\.{name} must be"):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data": {"batch_size": 0}}, "data.batch_size must be at least 1, not 0"),
        ({"data": {"num_workers": -1}}, "data.num_workers must be at least 0"),
        ({"data": {"sample_rate": 44100}}, "data.sample_rate must be 16000, not 44100"),
        ({"data": {"train_split": 0.7}}, r"sum to 1.*0\.7, 0\.1 and 0\.1 \(sum 0\.9\)"),
        ({"data": {"train_split": 0, "val_split": 0.9}}, "the first above 0"),
        (
            {"data": {"train_split": 0.7}},
            r"set for example data.val_split=0\.15 and data.test_split=0\.15",
        ),
        (
            {"data": {"val_split": 0}},
            r"data.val_split=0 and data.test_split=0\.1 set data.train_split=0\.9\.",
        ),
        ({"data": {"folds": 3, "val_split": 1.0}}, "data.val_split must be a share"),
        ({"data": {"max_duration_s": 0}}, "data.max_duration_s must be above 0"),
        ({"model": {"num_classes": 1}}, "model.num_classes must be at least 2"),
        ({"model": {"dropout_rate": 1.0}}, "model.dropout_rate must be from 0"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate must be above 0"),
        ({"training": {"layer_decay": 1.5}}, "training.layer_decay must be above 0 and at most 1"),
        ({"training": {"warmup_ratio": 1}}, "training.warmup_ratio must be"),
        ({"training": {"monitor_metric": "accuracy"}}, "val_accuracy, val_f1 or val_loss"),
        ({"seed": 2**32}, "seed must be below"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"experiment_name": "a/b"}, "name of one folder"),
        (
            {"model": {"train_from_scratch": True, "encoder_embed_dim": 100}},
            r"encoder_embed_dim \(100\) must be a multiple of model.encoder_attention_heads \(12\)",
        ),
        (
            {"model": {"train_from_scratch": True, "input_patch_size": 10}},
            "input_patch_size must divide 128",
        ),
    ],
)
def test_a_value_out_of_range_is_an_error(settings, told):
    with pytest.raises(ConfigError, match=told):
        Config.from_dict(settings)


def test_everything_that_is_wrong_is_said_at_once():
    config = Config(data=DataConfig(batch_size=0), training=TrainingConfig(max_epochs=0))

    with pytest.raises(
        ConfigError, match=r"2 settings are wrong:\n- data\.batch_size.*\n- training\.max"
    ):
        config.validate()


@pytest.mark.parametrize(
    ("model", "training", "idle"),
    [
        ({"encoder_layers": 6}, {}, "model.encoder_layers have no effect: the checkpoint decides"),
        (
            {"train_from_scratch": True, "model_path": "x.pt"},
            {},
            "model.model_path .* has no effect",
        ),
        ({"hidden_dims": [8]}, {}, "model.hidden_dims has no effect"),
        ({"use_custom_head": True}, {}, "model.use_custom_head has no effect"),
        ({}, {"layer_decay": 0.7}, "training.layer_decay has no effect: the backbone is frozen"),
        ({}, {"gpus": 1}, "training.gpus has no effect: set training.device"),
        (
            {},
            {"gradient_checkpointing": True},
            "gradient_checkpointing has no effect: the backbone",
        ),
    ],
)
def test_a_setting_without_effect_is_a_warning(model, training, idle):
    config = Config(model=ModelConfig(**model), training=TrainingConfig(**training))

    with pytest.warns(UserWarning, match=idle):
        config.validate()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (32, "float32"),
        ("32", "float32"),
        (16, "float16"),
        ("bf16-mixed", "bfloat16"),
        ("auto", "auto"),
    ],
)
def test_precision_is_understood_in_the_old_spellings(given, name):
    config = Config(training=TrainingConfig(precision=given))

    config.validate()

    assert config.training.precision_name == name


@pytest.mark.parametrize(
    ("metric", "mode"), [("val_accuracy", "max"), ("val_f1", "max"), ("val_loss", "min")]
)
def test_a_loss_is_minimised_and_anything_else_maximised(metric, mode):
    assert TrainingConfig(monitor_metric=metric).monitor_mode == mode


CHANGED = Config(
    data=DataConfig(
        data_dir=Path("a/b"), audio_extensions=[".wav"], max_duration_s=np.float32(2.5)
    ),
    model=ModelConfig(use_custom_head=True, hidden_dims=(np.int64(8), 4), activation="gelu"),
    training=TrainingConfig(learning_rate=np.float64(5e-5), scheduler=None, precision=16),
    experiment_name="größer",
    seed=np.int64(7),
)


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_a_config_comes_back_from_a_dict_and_from_yaml(config, tmp_path):
    config.to_yaml(tmp_path / "config.yaml")
    from_yaml = Config.from_yaml(tmp_path / "config.yaml")
    from_dict = Config.from_dict(config.to_dict())

    assert from_yaml == from_dict
    assert from_yaml.to_dict() == config.to_dict()
    assert (
        yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == config.to_dict()
    )


def test_a_dict_holds_plain_types_only():
    plain = CHANGED.to_dict()

    assert plain["data"]["data_dir"] == str(Path("a/b"))
    assert plain["model"]["hidden_dims"] == [8, 4]
    for section in ("data", "model", "training"):
        for value in plain[section].values():
            assert type(value) in (bool, int, float, str, list, type(None))


def test_a_yaml_file_of_the_old_library_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text(
        """
        data: {audio_column: filename, audio_extensions: [.wav, .mp3, .flac], batch_size: 32,
          data_dir: null, label_column: category, metadata_file: null, num_workers: 4,
          sample_rate: 16000, test_split: 0.1, train_split: 0.8, val_split: 0.1}
        experiment_name: beats_experiment
        model: {activation: relu, dropout_rate: 0.1, embed_dim: 512, encoder_attention_heads: 12,
          encoder_embed_dim: 768, encoder_ffn_embed_dim: 3072, encoder_layers: 12,
          fine_tune_backbone: false, freeze_backbone: true, hidden_dims: null, input_patch_size: 16,
          model_path: checkpoints/BEATs_iter3_plus_AS2M.pt, num_classes: null,
          train_from_scratch: false, use_custom_head: false}
        seed: 42
        training: {deterministic: false, gpus: 1, learning_rate: 0.0001, log_every_n_steps: 50,
          loss_function: cross_entropy, max_epochs: 50, monitor_metric: val_accuracy,
          optimizer: adamw, patience: 10, precision: 32, save_top_k: 3, scheduler: cosine,
          weight_decay: 0.01}
        """
    )

    with pytest.warns(UserWarning, match="training.gpus has no effect"):
        config = Config.from_yaml(tmp_path / "config.yaml")

    assert config.training.save_top_k == 3
    assert config.model.model_path == "checkpoints/BEATs_iter3_plus_AS2M.pt"


def test_sections_may_be_given_as_dataclasses():
    config = Config.from_dict({"training": TrainingConfig(max_epochs=3), "seed": 1})

    assert config.training.max_epochs == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("training: {max_epochs: 0}", "In .*config.yaml: training.max_epochs must be at least 1"),
        ("training: [", "config.yaml is not a YAML file"),
        ("just text", "must be a mapping"),
        ("a: !!python/object/apply:os.system ['true']", "is not a YAML file"),
    ],
)
def test_a_yaml_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path, content, told):
    (tmp_path / "config.yaml").write_text(content)

    with pytest.raises(ConfigError, match=told):
        Config.from_yaml(tmp_path / "config.yaml")


def test_a_yaml_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read .*nothing.yaml: No such file"):
        Config.from_yaml(tmp_path / "nothing.yaml")


def test_an_empty_yaml_file_is_the_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text("# nothing set\n")

    assert Config.from_yaml(tmp_path / "config.yaml") == Config()


def test_a_config_can_be_copied_and_sent_to_another_process():
    assert copy.deepcopy(CHANGED).to_dict() == CHANGED.to_dict()
    assert pickle.loads(pickle.dumps(CHANGED)).to_dict() == CHANGED.to_dict()
    assert dataclasses.replace(CHANGED, seed=1).seed == 1


def test_every_setting_has_a_line_of_documentation():
    source = Path(sys.modules[Config.__module__].__file__).read_text(encoding="utf-8").splitlines()
    for section in (DataConfig, ModelConfig, TrainingConfig, AugmentationConfig, Config):
        for field in dataclasses.fields(section):
            line = next(
                n for n, text in enumerate(source) if text.startswith(f"    {field.name}: ")
            )
            if source[line].endswith("("):  # the default takes more lines than one
                line = source.index("    )", line)
            assert source[line + 1].startswith('    """'), field.name


def test_from_scratch_settings_are_what_the_architecture_takes():
    architecture = pytest.importorskip("beats_trainer.model.architecture")
    model = ModelConfig(encoder_layers=2, encoder_embed_dim=64, encoder_attention_heads=4)

    built = architecture.Architecture(**model.architecture_settings())
    usual = architecture.Architecture(**ModelConfig(dropout_rate=0.0).architecture_settings())

    assert built.encoder_layers == 2
    assert built.dropout == 0.1
    assert usual == architecture.Architecture()


def test_settings_are_read_without_loading_torch_or_pandas():
    code = (
        "import sys; from beats_trainer.config import Config; Config.from_dict({}).to_dict(); "
        "print([name for name in ('torch', 'pandas', 'lightning', 'numpy') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_validation_does_not_change_the_config():
    config = copy.deepcopy(CHANGED)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.validate()

    assert config.to_dict() == CHANGED.to_dict()
    assert config.model.hidden_dims == (8, 4)


@pytest.mark.parametrize("mode", MODES)
def test_the_preset_of_a_mode_fills_in_what_was_left_open_and_nothing_else(mode):
    config = Config(
        data=DataConfig(batch_size=7), model=ModelConfig(mode=mode), training=TrainingConfig()
    )
    config.training.max_epochs = 3

    resolved = config.resolved()

    preset = PRESETS[mode]
    assert resolved.training.learning_rate == preset.learning_rate
    assert resolved.training.layer_decay == preset.layer_decay
    assert resolved.training.weight_decay == preset.weight_decay
    assert (resolved.data.batch_size, resolved.training.max_epochs) == (7, 3)
    assert config.training.learning_rate is None  # the user's own stays as it is
    assert preset.source


@pytest.mark.parametrize("mode", MODES)
def test_a_resolved_config_is_complete_valid_and_comes_back_from_yaml(mode, tmp_path, recwarn):
    resolved = Config(model=ModelConfig(mode=mode)).resolved()
    resolved.to_yaml(tmp_path / "config.yaml")

    again = Config.from_yaml(tmp_path / "config.yaml")

    assert not recwarn.list
    assert again == resolved == again.resolved()
    assert again.model.resolved_mode == mode
    assert again.model.trains_backbone == (mode in ("full", "scratch"))


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        (ModelConfig(), "head"),
        (ModelConfig(freeze_backbone=False), "full"),
        (ModelConfig(freeze_backbone=False, fine_tune_backbone=True), "full"),
        (ModelConfig(train_from_scratch=True), "scratch"),
        (ModelConfig(mode="full"), "full"),
    ],
)
def test_the_old_settings_and_the_new_word_say_the_same(model, mode):
    assert model.resolved_mode == mode


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(mode="head", fine_tune_backbone=True, freeze_backbone=False),
        ModelConfig(mode="lora", train_from_scratch=True),
        ModelConfig(mode="full", train_from_scratch=True),
    ],
)
def test_a_mode_that_the_old_settings_contradict_is_an_error(model):
    with pytest.raises(ConfigError, match=r"model\.mode is"):
        Config(model=model).validate()


def test_the_loss_and_the_metric_follow_the_task():
    single, multi = Config().resolved("single").training, Config().resolved("multi").training

    assert (single.loss_function, single.monitor_metric) == ("cross_entropy", "val_accuracy")
    assert (multi.loss_function, multi.monitor_metric) == ("bce", "val_map")
    with pytest.raises(ConfigError, match="exactly one class"):
        Config(training=TrainingConfig(loss_function="cross_entropy")).resolved("multi")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"label_delimiter": ";", "label_columns": ["a"]}}, "each say where labels"),
        ({"data": {"group_column": "site", "group_pattern": "x"}}, "both say what belongs"),
        ({"data": {"group_pattern": "("}}, "not a regular expression"),
        ({"data": {"folds": "some"}}, "official, groups or a number"),
        ({"data": {"folds": 1}}, "at least 2"),
        ({"data": {"hop_s": 9, "window_s": 3}}, "would be lost"),
        ({"data": {"batch_size": 3}, "training": {"devices": 2}}, "multiple of training.devices"),
        ({"training": {"loggers": ["tensorbored"]}}, "training.loggers must be among"),
        ({"training": {"target_precision": 1.2}}, "target_precision"),
        ({"training": {"label_smoothing": 1}}, "label_smoothing"),
        ({"model": {"lora_targets": ["q"]}}, "lora_targets"),
        ({"augmentation": {"background_snr_db": [9, 3]}}, "the least and the greatest"),
        ({"augmentation": {"mixup_probability": 2}}, "from 0 to 1"),
        ({"augmentation": {"mix_up": 2}}, "Did you mean 'augmentation.mixup_alpha'|There is no"),
    ],
)
def test_contradictory_and_senseless_settings_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": {"roll": True}},
        {"training": {"devices": 2}, "data": {"batch_size": 4}},
        {"data": {"unlisted_labels": "unknown"}},
    ],
)
def test_a_setting_that_does_nothing_beside_the_others_is_pointed_out(settings):
    with pytest.warns(UserWarning, match="has no effect"):
        Config.from_dict(settings)


def test_augmentation_that_is_on_is_seen_to_be():
    assert not AugmentationConfig().is_on
    assert AugmentationConfig(num_freq_masks=1).masks_fbank
    assert AugmentationConfig(gain_db=3).changes_waveforms


def test_with_folds_only_the_share_of_validation_counts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.from_dict({"data": {"folds": "official", "val_split": 0}})
    with pytest.warns(UserWarning, match=r"data\.train_split has no effect: with data\.folds"):
        Config.from_dict({"data": {"folds": 3, "train_split": 0.5}})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": {"lora_rank": 4}}, "model.lora_rank has no effect: there are no adapters"),
        ({"model": {"mode": "attentive", "pooling": "max"}}, "model.pooling has no effect"),
        ({"data": {"window_s": 3.0}}, "data.window_s has no effect"),
        ({"training": {"focal_gamma": 1.0}}, "training.focal_gamma has no effect"),
        (
            {"training": {"calibrate": False, "target_precision": 0.9}},
            "training.target_precision has no effect",
        ),
    ],
)
def test_a_detail_of_what_is_not_done_is_named_in_a_warning(settings, told):
    with pytest.warns(UserWarning, match=told):
        Config.from_dict(settings)
