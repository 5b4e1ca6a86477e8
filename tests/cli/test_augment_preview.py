"""``beats-trainer augment-preview``: a page, sounds and pictures of what augmentation makes of clips."""

import importlib.util
import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
import soundfile

from beats_trainer.cli import main
from beats_trainer.config import AugmentationConfig, Config
from beats_trainer.datasets import Splits
from beats_trainer.training.preview import preview_augmentation
from tones import tone, write_tones

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """Stand in for ``reports.pictures`` in a checkout that lacks it."""
    if importlib.util.find_spec("beats_trainer.reports.pictures") is None:
        stand_in = types.ModuleType("beats_trainer.reports.pictures")
        stand_in.spectrogram_png = lambda fbank: PNG + str(fbank.shape).encode() + fbank.tobytes()
        stand_in.audio_data_url = lambda waveform, rate: f"data:audio/flac;base64,{len(waveform)}"
        monkeypatch.setitem(sys.modules, "beats_trainer.reports.pictures", stand_in)


@pytest.fixture
def recordings(tmp_path):
    return write_tones(tmp_path / "recordings", num_clips=10)


def test_the_command_writes_a_page_that_needs_nothing_else(recordings, tmp_path, capsys):
    output = tmp_path / "new" / "preview"
    options = {"mixup_alpha": 0.8, "gain_db": 6, "num_time_masks": 1, "num_freq_masks": 2}

    code = main(
        [
            *("augment-preview", str(recordings), "-o", str(output), "--count", "3", "--finetune"),
            *(f"--augmentation.{name}={value}" for name, value in options.items()),
        ]
    )

    captured = capsys.readouterr()
    assert code == 0
    assert captured.err == ""
    assert str(output / "preview.html") in captured.out
    names = [f"clip_{n:02d}_{stage}" for n in (1, 2, 3) for stage in ("before", "after")]
    pictures = [f"{name}.png" for name in names] + [f"clip_{n:02d}_masked.png" for n in (1, 2, 3)]
    assert {path.name for path in output.iterdir()} == {
        *(f"{name}.wav" for name in names),
        *pictures,
        "preview.html",
    }
    assert all((output / name).read_bytes().startswith(PNG) for name in pictures)
    page = (output / "preview.html").read_text()
    assert page.count("<audio") == 6
    assert page.count("<img") == 9
    links = re.findall(r"""(?:src|href)=["']?([^"'>\s]{5})|url\(""", page)
    assert set(links) == {"data:"}
    assert "mixup_alpha=0.8" in page
    assert re.search(r"(high|low|middle) 0\.\d\d, (high|low|middle) 0\.\d\d", page)


def test_the_files_are_the_clips_before_and_after(recordings, tmp_path):
    main(
        [
            *("augment-preview", str(recordings), "-o", str(tmp_path / "out"), "--count", "2"),
            *("--finetune", "--augmentation.polarity", "true", "--augmentation.gain_db", "3"),
        ]
    )

    originals = [soundfile.read(path)[0] for path in sorted(recordings.rglob("*.wav"))]
    for number in (1, 2):
        before, rate = soundfile.read(tmp_path / "out" / f"clip_{number:02d}_before.wav")
        after, _ = soundfile.read(tmp_path / "out" / f"clip_{number:02d}_after.wav")
        assert rate == 16_000
        assert any(len(o) == len(before) and np.allclose(o, before, atol=1e-4) for o in originals)
        gain = np.dot(before, after) / np.dot(before, before)
        np.testing.assert_allclose(after, gain * before, atol=1e-5)
        assert 10 ** (-3 / 20) <= abs(gain) <= 10 ** (3 / 20)
        assert abs(gain) != 1


def test_the_same_seed_gives_the_same_sounds_and_pictures_and_another_seed_others(
    recordings, tmp_path
):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(
            [
                *("augment-preview", str(recordings), "-o", str(tmp_path / name), "--count", "3"),
                *("--seed", str(seed), "--finetune", "--augmentation.mixup_alpha", "0.8"),
                *("--augmentation.roll", "true", "--augmentation.num_time_masks", "1"),
            ]
        )

    def content(name):
        return {
            # libsndfile writes the time into a float WAV: its samples count.
            path.name: soundfile.read(path)[0].tobytes()
            if path.suffix == ".wav"
            else path.read_bytes()
            for path in (tmp_path / name).iterdir()
        }

    assert content("a") == content("b")
    assert content("a") != content("c")


def test_nothing_to_preview_is_a_usage_error(recordings, tmp_path, capsys):
    code = main(["augment-preview", str(recordings), "-o", str(tmp_path / "out"), "--finetune"])

    assert code == 2
    assert "There is no augmentation to preview" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_frozen_backbone_is_said_to_ignore_it(recordings, tmp_path, capsys):
    code = main(
        [
            *("augment-preview", str(recordings), "-o", str(tmp_path / "out"), "--count", "1"),
            *("--augmentation.roll", "true"),
        ]
    )

    assert code == 0
    assert capsys.readouterr().err.count("augmentation has no effect") == 1


def test_a_missing_background_folder_is_a_usage_error(recordings, tmp_path, capsys):
    code = main(
        [
            *("augment-preview", str(recordings), "-o", str(tmp_path / "out"), "--finetune"),
            *("--augmentation.background_dir", str(tmp_path / "nowhere")),
        ]
    )

    assert code == 2
    assert "background_dir is no folder" in capsys.readouterr().err


def splits_of(tmp_path, targets, labels, **columns):
    paths = []
    for number in range(len(targets)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, tone(500.0, number, duration_s=0.1), 16_000)
        paths.append(str(path))
    names = columns.pop("filename", [f"{number}.wav" for number in range(len(paths))])
    table = pd.DataFrame({"path": paths, "filename": names, "target": targets, **columns})
    task = "multi" if "present" in table else "single"
    return Splits(table, table.iloc[:0], table.iloc[:0], labels, "as given", task)


def test_names_and_labels_are_text_and_never_markup(tmp_path):
    evil = ["<script>alert(1)</script>.wav", 'a" onerror="alert(2).wav', "ümlaut 🐦.wav"]
    splits = splits_of(tmp_path, [0, 1, 1], ["<b>bold</b>", "{settings} & more"], filename=evil)
    config = Config(augmentation=AugmentationConfig(roll=True))

    page = preview_augmentation(splits, config, tmp_path / "out").read_text(encoding="utf-8")

    assert "<script" not in page
    assert "<b>bold" not in page
    assert ' onerror="' not in page
    assert "ümlaut 🐦.wav" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "{settings} &amp; more" in page


def test_several_labels_none_and_unknown_ones_stand_in_the_page(tmp_path):
    splits = splits_of(
        tmp_path,
        [0, 0, 0],
        ["bird", "frog", "rain"],
        present=[(0, 2), (), (1,)],
        unknown=[(), (), (0,)],
    )
    config = Config(augmentation=AugmentationConfig(roll=True))

    page = preview_augmentation(splits, config, tmp_path / "out").read_text()

    assert page.count("<br>bird, rain<") == 2
    assert page.count("<br>none of the classes<") == 2
    assert page.count("<br>frog, bird unknown<") == 2


def test_clips_are_cut_as_training_cuts_them(tmp_path):
    splits = splits_of(tmp_path, [0, 1], ["a", "b"])
    config = Config(augmentation=AugmentationConfig(roll=True))
    config.data.max_duration_s = 0.05

    preview_augmentation(splits, config, tmp_path / "out", count=1)

    assert len(soundfile.read(tmp_path / "out" / "clip_01_before.wav")[0]) == 800


def test_a_count_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1"):
        preview_augmentation(splits_of(tmp_path, [0], ["a"]), Config(), tmp_path, count=0)


def test_settings_of_a_cross_validation_are_previewed_too(recordings, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {folds: 3, val_split: 0}\nmodel: {mode: full}\naugmentation: {roll: true}\n"
    )

    output = str(tmp_path / "preview")
    code = main(["augment-preview", str(recordings), "--config", str(file), "-o", output])

    assert code == 0
    assert (tmp_path / "preview" / "preview.html").is_file()


def test_a_count_of_none_is_a_usage_error(recordings, tmp_path):
    output = str(tmp_path / "preview")

    assert main(["augment-preview", str(recordings), "-o", output, "--count", "0"]) == 2
