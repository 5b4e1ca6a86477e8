"""Labels as they are in the field, from the files to the trained model; and what is wrong with them."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from beats_trainer import BEATsTrainer, Config
from beats_trainer.checkpoints import BEATsForAudioClassification, BEATsModel
from beats_trainer.cli.program import main
from beats_trainer.config import DataConfig, ModelConfig, TrainingConfig
from beats_trainer.errors import AudioError, AudioNotFoundError, ConfigError, DatasetError
from beats_trainer.model.architecture import Architecture
from tones import PITCHES, TINY, tone, write_tones

LABELS = sorted(PITCHES)
MIXTURES = [list(mix) for size in range(4) for mix in itertools.combinations(LABELS, size)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny encoder with random weights, as a checkpoint to start from."""
    torch.manual_seed(0)
    return BEATsModel(Architecture(**TINY)).save_pretrained(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    """Clips of none to all of the three tones: one row each, with the list of those that sound."""
    folder = tmp_path_factory.mktemp("mixtures")
    rows = []
    for number in range(80):
        names = MIXTURES[number % len(MIXTURES)]
        soundfile.write(folder / f"{number}.wav", sound(names, number), 16000)
        rows.append((str(folder / f"{number}.wav"), names))
    return pd.DataFrame(rows, columns=["filename", "category"])


def sound(names, seed, duration_s=0.4):
    noise = np.random.default_rng(seed).standard_normal(round(duration_s * 16000))
    tones = [tone(PITCHES[name], seed + n, duration_s) for n, name in enumerate(names)]
    return np.sum([*tones, 0.03 * noise], axis=0).astype(np.float32)


def head_on(base, *, max_epochs=60, learning_rate=0.02, monitor_metric=None, **data) -> Config:
    shares = {"train_split": 0.6, "val_split": 0.2, "test_split": 0.2}
    return Config(
        data=DataConfig(num_workers=1, **(shares | data)),
        model=ModelConfig(model_path=str(base), mode="head", dropout_rate=0.0),
        training=TrainingConfig(
            device="cpu",
            precision="float32",
            max_epochs=max_epochs,
            learning_rate=learning_rate,
            monitor_metric=monitor_metric,
            loggers=[],
        ),
    )


def as_folders(mixtures, place):
    for number, (file, names) in enumerate(mixtures.itertuples(index=False)):
        folder = place / "clips" / (",".join(names) or "background")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.wav").symlink_to(file)
    return None, {"data_dir": str(place / "clips"), "label_delimiter": ","}


def as_lists(mixtures, place):
    return mixtures, {}


def as_delimited_csv(mixtures, place):
    texts = ["; ".join(names) or "Background" for names in mixtures["category"]]
    mixtures.assign(category=texts).to_csv(place / "labels.csv", index=False)
    return None, {"metadata_file": str(place / "labels.csv"), "label_delimiter": ";"}


def as_columns(mixtures, place):
    table = mixtures[["filename"]].copy()
    for label in LABELS:
        table[label] = ["1" if label in names else "0" for names in mixtures["category"]]
    table.loc[::7, "low"] = ""  # nobody listened for it there
    table.to_csv(place / "labels.csv", index=False)
    return None, {"metadata_file": str(place / "labels.csv"), "label_columns": LABELS}


def as_named_only(mixtures, place):
    """Of each clip some classes are named, present or absent, and the others are unknown."""
    said = [
        [name if name in names else f"-{name}" for name in LABELS if (number + ord(name[0])) % 4]
        for number, names in enumerate(mixtures["category"])
    ]
    return mixtures.assign(category=said), {"multi_label": True, "unlisted_labels": "unknown"}


@pytest.mark.parametrize(
    "form", [as_folders, as_lists, as_delimited_csv, as_columns, as_named_only]
)
def test_training_learns_the_tones_from_every_form_of_labels(form, mixtures, base, tmp_path):
    table, data = form(mixtures, tmp_path)
    trainer = BEATsTrainer(table, config=head_on(base, **data), log_dir=tmp_path)

    result = trainer.train(verbose=False, progress=False)

    assert trainer.task == "multi"
    assert trainer.labels == LABELS
    assert result.monitor_metric == "val_map"
    assert result.test_results["test_map"] > 0.85  # half of the clips have each tone


def test_wrong_labels_do_not_hurt_where_they_are_marked_unknown(mixtures, base, tmp_path):
    truth = np.array([[label in names for label in LABELS] for names in mixtures["category"]])
    split = np.array(["train"] * 48 + ["val"] * 16 + ["test"] * 16)
    is_wrong = (split == "train") & (np.arange(80) // 8 % 3 > 0)  # of the class "high"

    def test_precision(high, name):
        columns = {"high": high, "low": truth[:, 1].astype(float), "middle": truth[:, 2] * 1.0}
        table = mixtures[["filename"]].assign(split=split, **columns)
        config = head_on(base, label_columns=LABELS)
        trainer = BEATsTrainer(table, config=config, log_dir=tmp_path / name)
        trainer.train(verbose=False, progress=False)
        return trainer.evaluate("test", progress=False).average_precision[0]

    flipped = np.where(is_wrong, 1.0 - truth[:, 0], truth[:, 0])

    assert test_precision(np.where(is_wrong, np.nan, flipped), "unknown") > 0.8
    assert test_precision(flipped, "wrong") < 0.6


def write_recordings(place, silent=(), num_recordings=6):
    """Recordings of 8 s with a tone in every other second, and a Raven selection table for each."""
    (place / "audio").mkdir()
    (place / "tables").mkdir()
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
    for number in range(num_recordings):
        rows, parts = [], []
        for second in range(8):
            label = (
                LABELS[(number + second // 2) % 3] if second % 2 and number not in silent else None
            )
            parts.append(sound([label] if label else [], 8 * number + second, 1.0))
            if label:
                rows.append(
                    f"{len(rows) + 1}\tSpectrogram 1\t1\t{second}\t{second + 1}\t0\t8000\t{label}\n"
                )
        soundfile.write(place / "audio" / f"site_{number}.wav", np.concatenate(parts), 16000)
        table = place / "tables" / f"site_{number}.Table.1.selections.txt"
        table.write_text(header + "".join(rows))
    return place / "tables", place / "audio"


def annotated(base, tmp_path, folds=None, silent=(), **settings):
    tables, audio = write_recordings(tmp_path, silent)
    config = head_on(base, window_s=1.0, folds=folds, **settings)
    return BEATsTrainer.from_annotations(tables, audio, config, log_dir=tmp_path / "logs")


def test_training_learns_from_selection_tables_and_windows_of_a_recording_stay_together(
    base, tmp_path
):
    trainer = annotated(base, tmp_path, hop_s=0.5)
    splits = trainer.splits

    result = trainer.train(verbose=False, progress=False)

    files = [set(part["path"]) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, files)) == 6
    assert len(set.union(*files)) == 6
    assert len(splits.train) == 15 * len(files[0])
    assert result.test_results["test_map"] > 0.8
    # Detection in recordings then takes windows of this length by itself.
    assert BEATsForAudioClassification.from_pretrained(result.best_checkpoint).window_s == 1.0


def test_recordings_in_which_nothing_is_heard_are_not_all_that_is_validated_on(base, tmp_path):
    splits = annotated(base, tmp_path, silent=(0, 1)).splits

    assert any(splits.val["present"])
    assert any(splits.test["present"])


def test_thresholds_of_the_validation_clips_travel_into_the_model_and_decide(
    mixtures, base, tmp_path
):
    trainer = BEATsTrainer(mixtures, config=head_on(base), log_dir=tmp_path)

    result = trainer.train(verbose=False, progress=False)

    model = BEATsForAudioClassification.from_pretrained(result.best_checkpoint)
    scores = pd.read_csv(f"{result.run_dir}/predictions.csv", keep_default_na=False)
    val = scores[scores["split"] == "val"]
    loaded = BEATsTrainer.load(result.run_dir, device="cpu").evaluate("val", progress=False)
    assert sorted(model.thresholds) == LABELS
    assert set(model.thresholds.values()) != {0.5}
    assert loaded.macro_f1 == pytest.approx(result.val_results["val_f1"])
    truth = pd.DataFrame({name: val["category"].str.contains(name) for name in LABELS})
    assert (val[LABELS].ge(model.thresholds) == truth).mean().min() > 0.8


def test_a_fold_in_which_nothing_is_heard_lacks_a_metric_and_ends_nothing(base, tmp_path):
    trainer = annotated(base, tmp_path, folds="groups", silent=(5,), max_epochs=3)

    result = trainer.cross_validate(verbose=False, progress=False)

    assert "test_map" not in result.folds[5]
    rows = [row["test_map"] for row in result.folds[:5]]
    assert result.summary["map"]["mean"] == pytest.approx(np.mean(rows))
    assert "site_5.wav" in str(result)
    assert "mAP " in str(result)
    assert "pooled, a class counts from a score of 0.5" in result.how  # the folds have their own


def test_a_fold_that_is_named_by_a_path_has_one_folder(base, tmp_path):
    trainer = annotated(base, tmp_path, folds="groups", max_epochs=1)

    result = trainer.cross_validate(verbose=False, progress=False)

    folders = sorted(path.parent.name for path in (tmp_path / "logs").glob("*/*/*/model"))
    assert folders == [f"fold_site_{number}.wav" for number in range(6)]
    assert [row["fold"] for row in result.folds] == [f"site_{number}.wav" for number in range(6)]


def test_two_groups_never_share_a_folder(base, tmp_path):
    clips = write_tones(tmp_path / "clips", 4)
    config = head_on(base, max_epochs=1, val_split=0.0, train_split=0.8, folds="groups")
    rows = [(str(path), path.parent.name) for path in sorted(clips.glob("*/*.wav"))]
    table = pd.DataFrame(rows, columns=["filename", "category"])
    table["group"] = ["a/b", "a:b", "a%2Fb", "a_b"] * 3

    result = BEATsTrainer(table, config=config, log_dir=tmp_path).cross_validate(
        verbose=False, progress=False
    )

    assert sorted(row["fold"] for row in result.folds) == ["a%2Fb", "a/b", "a:b", "a_b"]
    assert len(list(tmp_path.glob("*/version_0/fold_*/model"))) == 4


def single_table(folder, num_clips=6):
    clips = write_tones(folder / "clips", num_clips)
    rows = [(str(path), path.parent.name) for path in sorted(clips.glob("*/*.wav"))]
    table = pd.DataFrame(rows, columns=["filename", "category"])
    parts = ["train"] * (num_clips - 2) + ["val", "test"]
    return table.assign(split=parts * len(PITCHES))


def test_a_metric_that_validation_cannot_have_is_refused_before_anything_is_written(base, tmp_path):
    table = single_table(tmp_path)
    table.loc[(table["split"] == "val") & (table["category"] != "low"), "split"] = "train"
    config = head_on(base, monitor_metric="val_roc_auc")

    with pytest.warns(UserWarning, match="clips of one class only"):
        trainer = BEATsTrainer(table, config=config, log_dir=tmp_path / "logs")
    with pytest.raises(
        ConfigError, match=r"'val_roc_auc' is undefined on the 1 validation clips.*val_loss"
    ):
        trainer.train(verbose=False)

    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("mode", ["head", "attentive", "full"])
def test_every_damaged_recording_is_named_before_anything_is_written(mode, base, tmp_path):
    table = single_table(tmp_path)
    trainer = BEATsTrainer(table, config=head_on(base), mode=mode, log_dir=tmp_path / "logs")
    damaged = [table["filename"][1], table.loc[table["split"] == "test", "filename"].iloc[0]]
    for file in damaged:
        Path(file).write_bytes(Path(file).read_bytes()[:500])

    with pytest.raises(
        DatasetError, match=f"(?s)2 of 18 recordings.*{damaged[0]}.*{damaged[1]}"
    ) as caught:
        trainer.train(verbose=False)

    assert "the file is cut" in str(caught.value)
    assert not (tmp_path / "logs").exists()


def test_a_recording_that_disappears_is_named_before_anything_is_written(base, tmp_path):
    table = single_table(tmp_path)
    trainer = BEATsTrainer(table, config=head_on(base), log_dir=tmp_path / "logs")
    (tmp_path / "clips/low/clip_5.wav").unlink()

    with pytest.raises(AudioNotFoundError, match=r"low/clip_5\.wav"):
        trainer.train(verbose=False)

    assert not (tmp_path / "logs").exists()


def test_settings_that_need_validation_clips_are_named_where_there_are_none(base, tmp_path):
    table = single_table(tmp_path).replace({"split": {"val": "train"}})
    config = head_on(base, max_epochs=2)
    config.training.patience, config.training.target_precision = 3, 0.9
    trainer = BEATsTrainer(table, config=config, log_dir=tmp_path)

    with pytest.warns(UserWarning, match="no validation clips") as caught:
        result = trainer.train(verbose=False, progress=False)

    said = [str(warning.message) for warning in caught]
    for name in ("patience", "target_precision"):
        assert any(
            f"training.{name} has no effect: there are no validation" in text for text in said
        )
    assert "Kept the last of 2 epochs: there are no validation clips" in str(result)


@pytest.mark.parametrize("num_clips", [1, 2])
def test_very_few_clips_are_trained_on_with_any_batch_size(num_clips, base, tmp_path):
    clips = write_tones(tmp_path / "clips", num_clips)
    config = head_on(base, max_epochs=2, batch_size=128)

    with pytest.warns(UserWarning, match="part"):  # is empty, or has one class only
        trainer = BEATsTrainer.from_directory(clips, config, log_dir=tmp_path)
    result = trainer.train(verbose=False, progress=False)

    assert len(result.history) == 2
    assert len(trainer.splits.train) >= 3


def test_a_label_in_two_spellings_is_named_with_its_row(base, tmp_path):
    table = single_table(tmp_path)
    table.loc[2, "category"] = "High"

    with pytest.warns(UserWarning, match=r"different classes: High / high; row 3 \("):
        BEATsTrainer(table, config=head_on(base), log_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "head", "--finetune"], "--mode head and --finetune"),
        (["--mode", "lora", "--from-scratch"], "--mode lora and --from-scratch"),
        (["--group-column", "a", "--group-pattern", "b"], "both say what belongs together"),
        (["--annotations", "x", "--label-delimiter", ";"], "each say where labels come from"),
        (["--training.devices", "3", "--batch-size", "32"], "must be a multiple of"),
        (
            ["--label-delimiter", ",", "--training.loss_function", "cross_entropy"],
            "exactly one class",
        ),
        (["--training.monitor_metric", "val_mapp"], "must be one of val_loss"),
    ],
)
def test_contradictory_options_end_with_2_and_write_nothing(
    options, message, base, tmp_path, capsys
):
    clips = write_tones(tmp_path / "clips", 3)

    code = main(["train", str(clips), "--model", str(base), "-o", str(tmp_path / "logs"), *options])

    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_with_annotations_a_misspelt_folder_of_recordings_is_named(base, tmp_path, capsys):
    tables, audio = write_recordings(tmp_path, num_recordings=1)

    code = main(["train", f"{audio}s", "--annotations", str(tables), "--model", str(base)])

    assert code == 1
    assert f"audio_dir is no folder: {audio}s" in capsys.readouterr().err


def test_a_label_column_of_a_folder_has_no_effect_and_that_is_said(base, tmp_path):
    config = head_on(base, data_dir=str(write_tones(tmp_path, 5)), label_column="species")

    with pytest.warns(UserWarning, match=r"data\.label_column has no effect"):
        BEATsTrainer(config, log_dir=tmp_path)


def test_each_speaker_is_left_out_once(shared_data, base, tmp_path, caplog):
    recordings = shared_data / "fsdd" / "recordings"
    rows = [(str(path), path.name[0]) for path in sorted(recordings.glob("[01]_*_[0-2].wav"))]
    config = head_on(base, max_epochs=2, folds="groups", group_pattern=r"_([a-z]+)_\d+\.wav$")
    table = pd.DataFrame(rows, columns=["filename", "category"])

    with caplog.at_level(logging.INFO, "beats_trainer"):
        result = BEATsTrainer(table, config=config, log_dir=tmp_path).cross_validate(
            verbose=False, progress=False
        )

    speakers = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert [row["fold"] for row in result.folds] == speakers
    assert sum("Fold george" in record.message for record in caplog.records) == 1
    for fold, part in result.predictions.groupby("fold"):
        assert set(part["group"]) == {fold}
        assert len(part) == 6


def test_official_folds_of_real_sound_are_each_tested_once(shared_data, base, tmp_path):
    table = pd.read_csv(shared_data / "esc10" / "esc10.csv")
    table = table[table["category"].isin(["dog", "rain"])]
    table = table[table.groupby(["category", "fold"]).cumcount() < 2]
    config = head_on(base, max_epochs=2, folds="official", val_split=0.25, train_split=0.55)

    result = BEATsTrainer(
        table, shared_data / "esc10" / "audio", config, log_dir=tmp_path
    ).cross_validate(verbose=False, progress=False)

    assert [row["test_clips"] for row in result.folds] == [4] * 5
    assert not result.predictions["path"].duplicated().any()


def test_annotations_of_a_real_field_recording_are_cut_into_its_windows(
    shared_data, base, tmp_path
):
    labels = tmp_path / "great_plains_toad.txt"
    labels.write_text("3.0\t7.5\ttoad\n10.0\t17.5\ttoad\n21.0\t22.0\ttruck\n")

    config = head_on(base, max_epochs=2)
    trainer = BEATsTrainer.from_annotations(labels, shared_data / "field", config, log_dir=tmp_path)

    assert len(trainer.splits.train) == 9
    assert trainer.labels == ["toad", "truck"]
    assert trainer.splits.train["category"].tolist()[:5] == [
        "toad",
        "toad",
        "toad",
        "toad",
        "truck",
    ]


def test_an_unreadable_recording_among_real_ones_is_named(shared_data, base, tmp_path):
    rows = [
        (str(shared_data / "field" / "empty_2c.wav"), "a"),
        (str(shared_data / "field" / "aru_1.wav"), "b"),
    ]
    table = pd.DataFrame(rows, columns=["filename", "category"]).assign(split="train")

    with pytest.raises(AudioError, match=r"empty_2c\.wav"):
        BEATsTrainer(table, config=head_on(base), log_dir=tmp_path).train(verbose=False)
