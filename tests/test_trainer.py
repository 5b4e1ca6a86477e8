"""BEATsTrainer from data to a model that others use: every constructor, every promise, every refusal."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import beats_trainer.trainer as trainer_module
from beats_trainer.checkpoints import BEATsForAudioClassification, BEATsModel
from beats_trainer.config import Config, DataConfig, ModelConfig, TrainingConfig
from beats_trainer.datasets import (
    build_manifest,
    scan_directory_dataset,
    split_manifest,
)
from beats_trainer.errors import (
    AudioError,
    BEATsTrainerError,
    CheckpointNotFoundError,
    ConfigError,
    DatasetError,
    UnknownCheckpointError,
)
from beats_trainer.feature_extractor import BEATsFeatureExtractor
from beats_trainer.model import Architecture, BEATs
from beats_trainer.predictor import BEATsPredictor
from beats_trainer.trainer import BEATsTrainer
from beats_trainer.training import embedded
from tones import TINY, head_config, tiny_config, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny encoder, as a checkpoint to start from."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    BEATsModel(Architecture(**TINY, encoder_layerdrop=0.5, dropout=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture
def config(base):
    """A head on the frozen tiny encoder."""
    return head_config(base, max_epochs=30, patience=30, learning_rate=3e-2)


@pytest.fixture(scope="module")
def trained(tones, base, tmp_path_factory):
    """A trainer that has trained a head, with its result; not to be changed."""
    config = head_config(base, max_epochs=30, patience=30, learning_rate=3e-2)
    trainer = BEATsTrainer.from_directory(
        tones, config, log_dir=tmp_path_factory.mktemp("logs"), experiment_name="tones"
    )
    return trainer, trainer.train(verbose=False)


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    """Work in a folder without checkpoints, with no way to the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def files_of(folder, label="low"):
    return sorted(str(path) for path in Path(folder, label).glob("*.wav"))


# What a run gives back, and what it leaves on disk.


def test_the_result_reads_like_a_dict(trained):
    _, result = trained

    assert result["best_score"] == max(row["val_accuracy"] for row in result["history"])
    assert {"test_loss", "test_accuracy", "test_f1"} <= set(result["test_results"])
    assert result["dataset_stats"]["num_classes"] == 3
    assert result["dataset_stats"]["total_samples"] == 30
    assert result["dataset_stats"]["class_distribution"] == {"high": 10, "low": 10, "middle": 10}
    assert dict(result)["best_checkpoint"] == result.best_checkpoint
    assert {"epoch", "train_loss", "val_loss", "val_accuracy", "val_f1", "lr"} <= set(
        result.history[0]
    )
    with pytest.raises(KeyError):
        result["no_such_thing"]


def test_a_head_on_a_frozen_random_encoder_learns_the_tones(trained):
    _, result = trained

    assert result["test_results"]["test_accuracy"] >= 0.8


def test_the_run_folder_holds_all_of_the_run(trained):
    trainer, result = trained
    run = Path(result.run_dir)

    assert run == trainer.log_dir / "tones" / "version_0"
    assert Path(result["best_checkpoint"]) == run / "model"
    assert Config.from_yaml(run / "config.yaml") == trainer.config.resolved()
    clips = pd.read_csv(run / "splits.csv")
    assert clips["split"].value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}
    assert len(pd.read_csv(run / "history.csv")) == len(result.history)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] == result["test_results"]["test_accuracy"]


def test_each_run_has_a_folder_of_its_own(tones, config, tmp_path):
    config.training.max_epochs = 1
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)

    folders = [Path(trainer.train(verbose=False).run_dir).name for _ in range(2)]

    assert folders == ["version_0", "version_1"]


def test_the_summary_is_shown_unless_asked_not_to(tones, config, tmp_path, capsys):
    config.training.max_epochs = 1
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)

    trainer.train(verbose=False)
    silence = capsys.readouterr().out
    result = trainer.train()

    assert silence == ""
    shown = capsys.readouterr().out
    assert str(result) in shown
    assert "Test: accuracy" in shown
    assert result.best_checkpoint in shown


def test_training_twice_gives_the_same_model(tones, config, tmp_path):
    first = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)
    second = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)
    second.extract_features(files_of(tones))  # using a trainer changes nothing

    results = [trainer.train(verbose=False) for trainer in (first, second, first)]

    assert results[0].history == results[1].history == results[2].history


# A frozen backbone.


def test_a_frozen_backbone_encodes_each_clip_exactly_once(tones, config, tmp_path, monkeypatch):
    lengths = []
    original = BEATs.forward

    def counting(self, waveforms, lengths_of_batch=None, output_layers=False):
        lengths.extend([len(waveforms)])
        return original(self, waveforms, lengths_of_batch, output_layers)

    monkeypatch.setattr(BEATs, "forward", counting)
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)

    trainer.train(verbose=False)

    assert sum(lengths) == 30


def test_a_frozen_backbone_stays_bit_equal_and_in_eval_mode(trained, base):
    trainer, _ = trained
    original = BEATsModel.from_pretrained(base)

    for name, value in trainer.model.beats.state_dict().items():
        assert torch.equal(value, original.state_dict()[name])
    assert not any(module.training for module in trainer.model.modules())


def test_head_only_training_does_not_import_lightning(tones, base, tmp_path):
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from tones import head_config
        from beats_trainer import BEATsTrainer
        config = head_config({str(base)!r}, max_epochs=1)
        BEATsTrainer.from_directory({str(tones)!r}, config, log_dir={str(tmp_path)!r}).train()
        assert not [name for name in sys.modules if name.startswith("lightning")]
    """
    run_python(code)


def test_a_custom_head_has_its_hidden_layers_and_survives_the_disk(tones, config, tmp_path):
    config.model.use_custom_head = True
    config.model.hidden_dims = [16, 8]
    config.model.activation = "gelu"
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)

    result = trainer.train(verbose=False)

    head = BEATsForAudioClassification.from_pretrained(result.best_checkpoint).head
    assert head.hidden_dims == (16, 8)
    assert head.activation == "gelu"
    for name, value in trainer.model.head.state_dict().items():
        assert torch.equal(value.cpu(), head.state_dict()[name])


def test_a_head_on_bands_is_trained_saved_and_used(tones, config, tmp_path):
    config.model.pooling = "bands"
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)

    result = trainer.train(verbose=False)

    saved = BEATsForAudioClassification.from_pretrained(result.best_checkpoint)
    assert (saved.pooling, saved.head.embedding_dim) == ("bands", 8 * 32)
    scores = trainer.predict(files_of(tones))
    assert set(scores["label"]) <= {"high", "low", "middle"}
    assert trainer.evaluate("val").accuracy == pytest.approx(result["best_score"])


# A trained backbone.


@pytest.fixture
def fine_tuning(config):
    config.model.freeze_backbone = False
    config.model.fine_tune_backbone = True
    config.training = TrainingConfig(
        max_epochs=2, learning_rate=1e-2, device="cpu", precision="float32"
    )
    return config


def test_fine_tuning_moves_the_backbone_and_saves_the_best_of_it(
    tones, fine_tuning, base, tmp_path
):
    trainer = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path)

    result = trainer.train(verbose=False)

    original = BEATsModel.from_pretrained(base).state_dict()
    saved = BEATsForAudioClassification.from_pretrained(result.best_checkpoint)
    moved = [
        name
        for name, value in saved.beats.named_parameters()
        if not torch.equal(value, original[name])
    ]
    still = set(dict(saved.beats.named_parameters())) - set(moved)
    assert all(name.endswith("k_proj.bias") for name in still)
    assert trainer.evaluate("val").accuracy == pytest.approx(result["best_score"])


def test_the_head_learns_faster_than_the_layers_below_when_told_to(tones, fine_tuning, tmp_path):
    fine_tuning.training.layer_decay = 1e-6
    fine_tuning.training.max_epochs = 1
    trainer = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())

    trainer.train(verbose=False)

    after = trainer.model.state_dict()
    change = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert change["head.layers.1.weight"] > 1e-3
    assert change["beats.encoder.layers.0.fc1.weight"] < 1e-6


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_is_fine_tuned_starts_from_a_head_that_was_fitted_on_the_frozen_network(
    tones, base, tmp_path, mode
):
    scores = {}
    for name, chosen, is_first in (
        ("head", "head", True),
        ("first", mode, True),
        ("fresh", mode, False),
    ):
        config = head_config(base)
        config.model.mode = chosen
        config.model.fit_head_first = is_first
        config.data.batch_size = None
        config.training = TrainingConfig(device="cpu", precision="float32", calibrate=False)
        if chosen != "head":
            config.training.learning_rate, config.training.max_epochs = 1e-12, 1
        trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path / name)
        trainer.train(verbose=False)
        scores[name] = trainer.predict(files_of(tones))["score"].to_numpy()

    np.testing.assert_allclose(scores["first"], scores["head"], atol=1e-4)
    assert np.abs(scores["fresh"] - scores["head"]).max() > 0.05


def test_the_head_is_fitted_on_as_much_of_a_recording_as_training_hears(
    tones, base, tmp_path, monkeypatch
):
    config = head_config(base, max_epochs=1)
    config.model.mode = "full"
    config.data.max_duration_s = 0.25
    heard = []
    encode = embedded.encode_clips

    def watch(network, clips, **options):
        heard.append({clip.duration_s for clip in clips})
        return encode(network, clips, **options)

    monkeypatch.setattr(embedded, "encode_clips", watch)

    BEATsTrainer.from_directory(tones, config, log_dir=tmp_path).train(verbose=False)

    assert heard[0] == {0.25}  # training and validation clips, for the head
    assert heard[1] == {None}  # what is measured is measured whole


def test_old_style_freeze_backbone_false_alone_trains_the_backbone(tones, config, tmp_path):
    config.model.freeze_backbone = False
    config.training.max_epochs = 1
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)
    before = trainer.model.beats.patch_embedding.weight.clone()

    trainer.train(verbose=False)

    assert not torch.equal(trainer.model.beats.patch_embedding.weight, before)


def test_from_scratch_needs_no_checkpoint(tones, in_empty_folder):
    trainer = BEATsTrainer.from_directory(tones, tiny_config())

    result = trainer.train(verbose=False)

    assert Path(result.best_checkpoint).is_dir()
    assert Path(result.run_dir).is_relative_to("logs")


@pytest.mark.parametrize("how", ["path", "folder", "latest"])
def test_a_broken_run_is_resumed_in_its_own_folder(tones, fine_tuning, tmp_path, monkeypatch, how):
    fine_tuning.training.max_epochs = 3
    whole = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path / "whole")
    expected = whole.train(verbose=False)
    broken = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path / "broken")
    break_in_epoch(1, monkeypatch, lambda: broken.train(verbose=False))
    run = tmp_path / "broken" / "beats_experiment" / "version_0"
    resume = {"path": str(run / "checkpoints" / "last.ckpt"), "folder": run, "latest": True}[how]

    again = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path / "broken")
    result = again.train(resume_from_checkpoint=resume, verbose=False)

    assert result.run_dir == str(run)
    assert result.history == expected.history
    assert result["test_results"] == expected["test_results"]


def test_resuming_with_other_clips_or_another_model_is_refused(
    tones, fine_tuning, tmp_path, monkeypatch
):
    trainer = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path)
    break_in_epoch(1, monkeypatch, lambda: trainer.train(verbose=False))
    other_seed = copy.deepcopy(fine_tuning)
    other_seed.seed = 7
    other_head = copy.deepcopy(fine_tuning)
    other_head.model.use_custom_head, other_head.model.hidden_dims = True, [4]

    with pytest.raises(ConfigError, match="seed was 42 and is 7"):
        BEATsTrainer.from_directory(tones, other_seed, log_dir=tmp_path).train(True)
    with pytest.raises(ConfigError, match="hidden_dims was None and is"):
        BEATsTrainer.from_directory(tones, other_head, log_dir=tmp_path).train(True)


def test_there_must_be_something_to_resume(tones, fine_tuning, tmp_path):
    trainer = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path)

    with pytest.raises(CheckpointNotFoundError, match="no run to resume"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointNotFoundError, match=r"last\.ckpt"):
        trainer.train(resume_from_checkpoint=tmp_path / "epoch=3.ckpt")


def break_in_epoch(epoch, monkeypatch, work):
    from beats_trainer.training.modules import ClassifierModule

    class PowerCutError(Exception):
        pass

    original = ClassifierModule.on_train_epoch_start

    def cut(module):
        if module.current_epoch == epoch:
            raise PowerCutError
        original(module)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "on_train_epoch_start", cut)
        with pytest.raises(PowerCutError):
            work()


# Using what was trained.


def test_predict_names_the_right_class_with_a_score_for_each(trained, tones):
    trainer, _ = trained

    table = trainer.predict(files_of(tones, "high"))

    assert list(table.columns) == ["file", "label", "score", "detected", "high", "low", "middle"]
    assert (table["label"] == "high").mean() >= 0.8
    np.testing.assert_allclose(table[["high", "low", "middle"]].sum(axis=1), 1.0, rtol=1e-5)
    assert trainer.predict(files_of(tones)[0])["file"].tolist() == files_of(tones)[:1]


def test_the_saved_folder_works_alone_everywhere(trained, tones):
    trainer, result = trained
    files = files_of(tones)

    predicted = BEATsPredictor(result["best_checkpoint"], "cpu", precision="float32").predict(files)
    extractor = BEATsFeatureExtractor(result["best_checkpoint"], "cpu", precision="float32")
    classifier = BEATsForAudioClassification.from_pretrained(result["best_checkpoint"])

    pd.testing.assert_frame_equal(predicted, trainer.predict(files))
    np.testing.assert_array_equal(
        extractor.extract_from_files(files), trainer.extract_features(files)
    )
    assert classifier.labels == ["high", "low", "middle"]
    assert classifier.activation == "softmax"
    assert classifier.provenance["metrics"]["test_accuracy"] == pytest.approx(
        result["test_results"]["test_accuracy"]
    )


def test_a_new_process_predicts_the_same_scores(trained, tones, tmp_path):
    trainer, result = trained
    moved = shutil.copytree(result["best_checkpoint"], tmp_path / "elsewhere")
    code = f"""
        from beats_trainer import BEATsPredictor
        predictor = BEATsPredictor.from_pretrained({str(moved)!r}, device="cpu", precision="float32")
        predictor.predict({files_of(tones)!r}).to_pickle({str(tmp_path / "scores.pkl")!r})
    """
    run_python(code)

    pd.testing.assert_frame_equal(
        pd.read_pickle(tmp_path / "scores.pkl"), trainer.predict(files_of(tones))
    )


def run_python(code):
    source = str(Path(trainer_module.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": source, "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_features_are_of_the_model_in_hand_and_shaped_as_the_document_says(
    trained, tones, base, config
):
    trainer, _ = trained
    files = files_of(tones)[:2]

    features = trainer.extract_features(files)
    before_training = BEATsTrainer.from_directory(tones, config).extract_features(files)

    assert features.shape == (2, 32)
    assert features.dtype == np.float32
    assert trainer.extract_features(files[0]).shape == (32,)
    np.testing.assert_array_equal(before_training, features)  # the backbone is frozen
    unit = trainer.extract_features(files, pooling="max", layer=0, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, rtol=1e-5)
    other = trainer.get_feature_extractor(base).extract_from_files(files)
    np.testing.assert_array_equal(other, features)


def test_features_of_a_fine_tuned_model_are_not_those_it_started_from(tones, fine_tuning, tmp_path):
    trainer = BEATsTrainer.from_directory(tones, fine_tuning, log_dir=tmp_path)
    before = trainer.extract_features(files_of(tones))

    trainer.train(verbose=False)

    assert not np.allclose(trainer.extract_features(files_of(tones)), before, atol=1e-3)


def test_evaluate_takes_a_split_a_table_a_folder_and_a_csv(trained, tones, tmp_path):
    trainer, result = trained
    test_clips = trainer.dataset.query("split == 'test'")[["path", "category"]]
    named = test_clips.rename(columns={"path": "filename"})
    named.to_csv(tmp_path / "test.csv", index=False)

    by_split = trainer.evaluate("test")

    assert by_split.summary("test") == pytest.approx(result["test_results"], abs=1e-5)
    assert trainer.evaluate(named).confusion.tolist() == by_split.confusion.tolist()
    by_csv = trainer.evaluate(tmp_path / "test.csv")
    assert by_csv.confusion.tolist() == by_split.confusion.tolist()
    assert trainer.evaluate(tones).num_clips == 30
    assert trainer.test() == pytest.approx(result["test_results"], abs=1e-5)
    assert trainer.test(result["best_checkpoint"]) == pytest.approx(
        result["test_results"], abs=1e-5
    )


def test_evaluating_one_class_alone_keeps_its_id(trained, tones):
    trainer, _ = trained
    table = pd.DataFrame({"filename": files_of(tones, "middle"), "category": "middle"})

    metrics = trainer.evaluate(table)

    assert metrics.support.tolist() == [0, 0, 10]


def test_a_class_that_the_model_does_not_know_is_an_error(trained, tones):
    trainer, _ = trained
    table = pd.DataFrame({"filename": files_of(tones), "category": "violin"})

    with pytest.raises(DatasetError, match="violin"):
        trainer.evaluate(table)


def test_a_model_that_was_not_trained_refuses_to_guess(tones, config):
    trainer = BEATsTrainer.from_directory(tones, config)

    for use in (trainer.evaluate, trainer.test, lambda: trainer.save("x")):
        with pytest.raises(BEATsTrainerError, match="train\\(\\) first"):
            use()
    with pytest.raises(BEATsTrainerError, match="train\\(\\) first"):
        trainer.predict(files_of(tones))


def test_save_and_load_bring_back_model_settings_and_clips(trained, tones, tmp_path):
    trainer, result = trained
    folder = trainer.save(tmp_path / "mine")

    for source in (folder, result.run_dir, result.best_checkpoint):
        loaded = BEATsTrainer.load(source, device="cpu")

        assert loaded.labels == trainer.labels
        assert loaded.config == trainer.config.resolved()
        assert loaded.test() == pytest.approx(result["test_results"], abs=1e-5)
        pd.testing.assert_frame_equal(
            loaded.predict(files_of(tones)), trainer.predict(files_of(tones))
        )
    assert BEATsPredictor(folder, "cpu").labels == trainer.labels


def test_a_model_folder_alone_loads_but_has_no_clips(trained, tones, tmp_path):
    trainer, result = trained
    alone = shutil.copytree(result.best_checkpoint, tmp_path / "alone")

    loaded = BEATsTrainer.load(alone, device="cpu")

    assert loaded.dataset is None
    assert loaded.evaluate(tones).num_clips == 30
    assert loaded.save(tmp_path / "again").is_dir()
    for use in (loaded.train, loaded.test):
        with pytest.raises(DatasetError, match="without the clips"):
            use()
    del trainer


# Labels and splits.


def test_a_label_has_one_id_in_every_split_and_in_the_model(tones, config, tmp_path):
    table = scan_directory_dataset(tones)
    # `val` lacks "high", `test` lacks "low": encoders fitted per split would number them anew.
    number = table.groupby("category").cumcount()
    table["split"] = "train"
    table.loc[(number >= 7) & (table["category"] != "high"), "split"] = "val"
    table.loc[(number >= 9) & (table["category"] != "low"), "split"] = "test"
    with pytest.warns(UserWarning, match="no clip in the"):
        trainer = BEATsTrainer.from_dataframe(table, config=config, log_dir=tmp_path)

    result = trainer.train(verbose=False)

    ids = trainer.dataset.groupby("category")["target"].unique().map(list).to_dict()
    assert ids == {"high": [0], "low": [1], "middle": [2]}
    saved = BEATsForAudioClassification.from_pretrained(result.best_checkpoint)
    assert saved.labels == trainer.labels == ["high", "low", "middle"]
    assert trainer.evaluate("val").support.tolist() == [0, 3, 2]


def test_without_validation_and_test_clips_there_is_still_a_model(tones, config, tmp_path):
    config.data.train_split, config.data.val_split, config.data.test_split = 1.0, 0.0, 0.0
    config.training.max_epochs = 2
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)

    result = trainer.train(verbose=False)

    assert result["best_score"] is None
    assert result["test_results"] is None
    assert result.best_epoch == 1
    assert "not measured" in str(result)
    with pytest.raises(DatasetError, match="no test clips"):
        trainer.evaluate("test")


# Constructors.


def test_a_csv_without_data_dir_starts_from_its_own_folder(tones, config):
    table = scan_directory_dataset(tones)
    table["filename"] = [str(Path(name).relative_to(tones)) for name in table["filename"]]
    table.rename(columns={"filename": "sound", "category": "species"}).to_csv(
        tones / "labels.csv", index=False
    )

    by_argument = BEATsTrainer.from_csv(
        csv_path=tones / "labels.csv",
        audio_column="sound",
        label_column="species",
        config=config,
    )
    config.data.audio_column, config.data.label_column = "sound", "species"
    by_config = BEATsTrainer.from_csv(tones / "labels.csv", config=config)

    assert by_argument.labels == by_config.labels == ["high", "low", "middle"]
    pd.testing.assert_frame_equal(by_argument.dataset, by_config.dataset)


def test_the_documents_custom_configuration_reads_its_metadata_file(tones, base):
    table = scan_directory_dataset(tones)
    table["filename"] = [str(Path(name).relative_to(tones)) for name in table["filename"]]
    table.columns = ["file_path", "class_name"]
    table.to_csv(tones / "custom.csv", index=False)
    data_config = DataConfig(
        data_dir=str(tones),
        metadata_file="custom.csv",
        audio_column="file_path",
        label_column="class_name",
        train_split=0.7,
        val_split=0.2,
        test_split=0.1,
        batch_size=16,
        sample_rate=16000,
    )
    training_config = TrainingConfig(learning_rate=1e-4, max_epochs=30, patience=5)

    trainer = BEATsTrainer(
        data_config=data_config,
        training_config=training_config,
        model_config=ModelConfig(model_path=str(base)),
    )

    assert trainer.dataset_stats["train_samples"] == 21
    assert trainer.config.training.patience == 5
    assert trainer.config.data == data_config


def test_a_config_alone_names_its_data(tones, config):
    config.data.data_dir = str(tones)

    trainer = BEATsTrainer(config)

    assert trainer.labels == ["high", "low", "middle"]
    assert trainer.data_dir == str(tones)


def test_the_old_call_with_a_table_and_a_folder_works(tones, config, tmp_path):
    table = scan_directory_dataset(tones)
    table["filename"] = [str(Path(name).relative_to(tones)) for name in table["filename"]]
    table.attrs.clear()

    trainer = BEATsTrainer(table, tones, config, experiment_name="old", log_dir=tmp_path)

    assert len(trainer.dataset) == 30
    assert trainer.log_dir == tmp_path
    assert trainer.config.experiment_name == "old"
    assert trainer.dataset_stats["num_classes"] == 3


def test_a_manifest_or_ready_splits_are_taken_as_they_are(tones, config):
    manifest = build_manifest(scan_directory_dataset(tones))
    splits = split_manifest(manifest, 0.4, 0.3, 0.3)

    from_manifest = BEATsTrainer(manifest, config=config)
    from_splits = BEATsTrainer(splits, config=config)

    assert from_manifest.dataset_stats["train_samples"] == 18
    assert from_splits.dataset_stats["train_samples"] == 12


def test_split_directories_and_split_csvs_keep_their_splits(tones, config, tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        write_tones(tmp_path / split, count)
        scan_directory_dataset(tmp_path / split).to_csv(tmp_path / f"{split}.csv", index=False)
    folders = [tmp_path / name for name in ("train", "val", "test")]
    tables = [tmp_path / f"{name}.csv" for name in ("train", "val", "test")]

    by_folder = BEATsTrainer.from_split_directories(*folders, config=config)
    by_csv = BEATsTrainer.from_split_csvs(*tables, config=config)
    without_test = BEATsTrainer.from_split_directories(*folders[:2], config=config)

    for trainer in (by_folder, by_csv):
        stats = trainer.dataset_stats
        sizes = [stats[f"{name}_samples"] for name in ("train", "val", "test")]
        assert sizes == [12, 6, 3]
    assert without_test.dataset_stats["test_samples"] == 0


@pytest.mark.parametrize("preset", ["esc50", "urbansound8k"])
def test_published_data_sets_keep_their_official_folds(tones, config, monkeypatch, preset):
    table = scan_directory_dataset(tones)
    table["fold"] = table.groupby("category").cumcount() // 2 + 1
    table["target"] = 49  # ESC-50's own numbering, which is not ours
    monkeypatch.setattr(
        trainer_module, f"load_{preset}", lambda data_dir, auto_download=True: table
    )

    trainer = BEATsTrainer.from_preset(preset, "./datasets", config)

    folds = trainer.dataset.groupby("split")["fold"].unique().map(list).to_dict()
    assert folds == {"train": [1, 2, 3], "val": [4], "test": [5]}
    assert sorted(trainer.dataset["target"].unique()) == [0, 1, 2]


def test_from_esc50_passes_its_download_options_on(tones, config, monkeypatch):
    calls = []
    monkeypatch.setattr(
        trainer_module, "download_esc50", lambda where, force_download: calls.append(where)
    )

    def load(data_dir, auto_download):
        calls.append(auto_download)
        return scan_directory_dataset(tones)

    monkeypatch.setattr(trainer_module, "load_esc50", load)

    BEATsTrainer.from_esc50(data_dir="d", config=config, auto_download=False, force_download=True)

    assert calls == ["d", False]


def test_the_callers_config_is_never_changed(tones, config, tmp_path):
    config.training.max_epochs = 1
    before = copy.deepcopy(config)

    trainer = BEATsTrainer.from_directory(tones, config, experiment_name="other", log_dir=tmp_path)
    trainer.train(verbose=False)

    assert config == before


# What is wrong is said before any work.


def misuse(name):
    """A change to the tones' table that makes it unusable, and what the error says."""
    return {
        "one class": (lambda t: t[t["category"] == "low"], "at least 2 classes"),
        "missing file": (lambda t: t.replace(t["filename"][3], "/nowhere/gone.wav"), "gone.wav"),
        "duplicate": (lambda t: pd.concat([t, t.iloc[[2]]]), "twice|more than once|duplicate"),
        "blank label": (lambda t: t.assign(category=t["category"].where(t.index != 4)), "row 5"),
        "empty": (lambda t: t.iloc[:0], "no rows"),
        "unknown split": (lambda t: t.assign(split="somewhere"), "somewhere"),
        "class without training clips": (
            lambda t: t.assign(split=np.where(t["category"] == "low", "test", "train")),
            "no clip to train on: low",
        ),
        "missing column": (lambda t: t.drop(columns="category"), "no column 'category'"),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "one class",
        "missing file",
        "duplicate",
        "blank label",
        "empty",
        "unknown split",
        "class without training clips",
        "missing column",
    ],
)
def test_a_table_that_cannot_be_trained_on_is_an_error_at_once(
    tones, config, in_empty_folder, name
):
    spoil, message = misuse(name)
    table = spoil(scan_directory_dataset(tones))

    with pytest.raises(DatasetError, match=message):
        BEATsTrainer.from_dataframe(table, config=config)

    assert list(in_empty_folder.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*have no audio files")
def test_an_empty_class_folder_is_an_error(tmp_path, config):
    write_tones(tmp_path, 3)
    (tmp_path / "silence").mkdir()

    with pytest.raises(DatasetError, match="silence"):
        BEATsTrainer.from_directory(tmp_path, config)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(DatasetError, match="silence"):
        BEATsTrainer(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"optimizer": "lion"}}, "optimizer"),
        ({"training": {"monitor_metric": "val_acuracy"}}, "val_accuracy"),
        ({"training": {"device": "abacus"}}, "abacus"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate"),
        ({"training": {"max_epochs": 0}}, "max_epochs"),
        ({"model": {"num_classes": 7}}, "7"),
        ({"model": {"fine_tune_backbone": True}}, "contradict"),
        ({"data": {"sample_rate": 44100}}, "16000"),
        ({"data": {"train_split": 0.9}}, "sum to 1"),
    ],
)
def test_a_setting_that_cannot_be_met_is_an_error_at_once(tones, config, change, message):
    for section, values in change.items():
        for name, value in values.items():
            setattr(getattr(config, section), name, value)

    with pytest.raises(ConfigError, match=message):
        BEATsTrainer.from_directory(tones, config)


def test_an_unknown_option_is_an_error_that_names_the_nearest(tones):
    with pytest.raises(ConfigError, match="learning_rate"):
        Config().training.learning_rat = 1e-3
    with pytest.raises(TypeError, match="experiment"):
        BEATsTrainer.from_directory(tones, experiment="y")


def test_a_yaml_learning_rate_of_5e_5_is_a_number(tones, config, tmp_path):
    (tmp_path / "config.yaml").write_text("training:\n  learning_rate: 5e-5\n  max_epochs: 1\n")
    from_yaml = Config.from_yaml(tmp_path / "config.yaml")
    config.training = from_yaml.training

    result = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path).train(verbose=False)

    assert result.history[0]["lr"] <= 5e-5


def test_settings_that_are_spoilt_later_are_found_when_training_starts(tones, config, tmp_path):
    trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path / "logs")
    trainer.config.training.optimizer = "lion"

    with pytest.raises(ConfigError, match="optimizer"):
        trainer.train()

    assert not (tmp_path / "logs").exists()


def test_a_checkpoint_that_is_not_there_is_an_error_before_training(tones, in_empty_folder):
    unknown, offline, no_file = (tiny_config() for _ in range(3))
    unknown.model = ModelConfig(model_path="openbeat")
    offline.model = ModelConfig()
    no_file.model = ModelConfig(model_path="models/mine.pt")

    with pytest.raises(UnknownCheckpointError, match="openbeats"):
        BEATsTrainer.from_directory(tones, unknown)
    with pytest.raises(CheckpointNotFoundError, match="BEATs_iter3_plus_AS2M"):
        BEATsTrainer.from_directory(tones, offline)
    with pytest.raises(CheckpointNotFoundError, match=r"mine\.pt"):
        BEATsTrainer.from_directory(tones, no_file)


def test_no_data_and_two_configs_are_errors_that_say_what_to_pass(config):
    with pytest.raises(ConfigError, match="data_dir"):
        BEATsTrainer(config)
    with pytest.raises(ConfigError, match="one"):
        BEATsTrainer(config, config=config)
    with pytest.raises(TypeError, match="from_directory"):
        BEATsTrainer("path/to/dataset", config=config)
    with pytest.raises(ConfigError, match="esc50"):
        BEATsTrainer.from_preset("esc5", ".", config)


def test_a_damaged_recording_is_named(tones, config, tmp_path):
    copied = shutil.copytree(tones, tmp_path / "tones")
    (copied / "low" / "clip_3.wav").write_text("not a sound")
    trainer = BEATsTrainer.from_directory(copied, config, log_dir=tmp_path / "logs")

    with pytest.raises(AudioError, match=r"clip_3\.wav"):
        trainer.train()


def test_training_hears_random_parts_of_clips_and_measuring_hears_them_whole(tones, tmp_path):
    config = tiny_config()
    config.data.max_duration_s = 0.2
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, max_duration_s=None))
    cut, uncut = (BEATsTrainer.from_directory(tones, c, log_dir=tmp_path) for c in (config, whole))

    results = [trainer.train(verbose=False) for trainer in (cut, uncut)]

    assert results[0].history != results[1].history
    saved = BEATsForAudioClassification.from_pretrained(results[0].best_checkpoint)
    assert saved.window_s == 0.2
    test = cut.splits.test
    table = cut.predict(test["path"].tolist())
    accuracy = (table["label"].to_numpy() == test["category"].to_numpy()).mean()
    assert results[0]["test_results"]["test_accuracy"] == pytest.approx(accuracy)
    assert cut.evaluate("test").accuracy == pytest.approx(accuracy)


def test_a_folder_is_read_as_one_whatever_the_settings_say_of_tables(tones, tmp_path):
    config = tiny_config(max_epochs=1)
    config.data.metadata_file = "labels.csv"
    config.data.label_column = "species"

    with pytest.warns(UserWarning, match=r"data\.label_column has no effect"):
        trainer = BEATsTrainer.from_directory(tones, config, log_dir=tmp_path)
    run = trainer.train(verbose=False).run_dir

    assert trainer.labels == ["high", "low", "middle"]
    again = Config.from_yaml(Path(run) / "config.yaml")  # names the data that it was trained on
    assert (again.data.metadata_file, again.data.data_dir) == (None, str(tones))


def test_training_once_where_folds_were_asked_for_says_which_shares_it_needs(tones, config):
    config.data.folds, config.data.val_split = 3, 0.0
    trainer = BEATsTrainer.from_directory(tones, config)

    with pytest.raises(ConfigError, match=r"sum to 0\.8, not 1"):
        trainer.train(verbose=False)
