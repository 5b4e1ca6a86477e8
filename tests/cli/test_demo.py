"""``beats-trainer demo``, made short; ``.ci/run`` runs it whole, where it checks its own accuracy."""

import shlex

import numpy as np
import pytest

from beats_trainer.audio import load_audio
from beats_trainer.cli import demo, demo_sounds, main


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(demo, "_CLIPS_PER_CLASS", 5)
    whole = demo._config

    def config():
        settings = whole()
        settings.training.max_epochs = 1
        return settings

    monkeypatch.setattr(demo, "_config", config)


def test_it_leaves_a_model_and_commands_that_work(short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["demo"])  # one epoch is not enough to be any good: the exit code is another test's matter

    shown = capsys.readouterr().out
    commands = [
        shlex.split(line)[3:]
        for line in shown.splitlines()
        if line.startswith("  python -m beats_trainer")
    ]

    assert "guessing would give 20%" in shown
    assert [command[0] for command in commands] == [
        "predict",
        "detect",
        "evaluate",
        "embed",
        "train",
    ]
    for command in commands[:-1]:
        assert main(command) == 0
    assert {path.name for path in (tmp_path / "beats_demo").iterdir()} == {
        *("sounds", "new_sounds", "runs", "model", "embeddings.parquet", "windows.parquet"),
        *("recordings", "found"),
    }


def test_a_result_no_better_than_guessing_is_an_error(short, tmp_path, monkeypatch, capsys):
    same = demo_sounds.make_clip("tone", np.random.default_rng(0))
    monkeypatch.setattr(demo_sounds, "make_clip", lambda kind, random: same)

    assert main(["demo", "-o", str(tmp_path / "demo")]) == 1

    assert "something is wrong with this installation" in capsys.readouterr().err


def test_the_same_seed_makes_the_same_sounds(tmp_path):
    first = demo_sounds.make_clips(tmp_path / "a", 2, seed=3, folder_per_class=True)
    again = demo_sounds.make_clips(tmp_path / "b", 2, seed=3, folder_per_class=True)
    other = demo_sounds.make_clips(tmp_path / "c", 2, seed=4, folder_per_class=True)

    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    assert first[0].read_bytes() != other[0].read_bytes()
    assert {file.parent.name for file in first} == set(demo_sounds.SOUNDS)


@pytest.mark.parametrize("kind", demo_sounds.SOUNDS)
def test_every_sound_is_audible_finite_and_unclipped(kind, tmp_path):
    clips = [demo_sounds.make_clip(kind, np.random.default_rng(seed)) for seed in range(20)]

    assert all(np.isfinite(clip).all() for clip in clips)
    assert all(0.05 < np.abs(clip).max() < 0.95 for clip in clips)
    assert len({len(clip) for clip in clips}) > 10


def test_a_falling_chirp_is_a_rising_one_backwards():
    time_s = np.arange(16_000) / 16_000

    up = demo_sounds.SOUNDS["chirp_up"](time_s, np.random.default_rng(0))
    down = demo_sounds.SOUNDS["chirp_down"](time_s, np.random.default_rng(0))

    np.testing.assert_array_equal(down[::-1], up)


def test_a_recording_has_each_kind_for_the_time_asked_for(tmp_path):
    kinds = demo_sounds.make_recording(tmp_path / "new" / "night.wav", 3.0, seed=1)

    assert sorted(kinds) == sorted(demo_sounds.SOUNDS)
    assert len(load_audio(tmp_path / "new" / "night.wav")) == 5 * 48_000


def test_clips_are_written_as_they_are(tmp_path):
    (file, *_) = demo_sounds.make_clips(tmp_path, 1, seed=0, folder_per_class=False)

    kind = next(iter(demo_sounds.SOUNDS))
    expected = demo_sounds.make_clip(kind, np.random.default_rng(0))
    np.testing.assert_allclose(load_audio(file), expected, atol=1e-4)
