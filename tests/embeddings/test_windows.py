"""Which windows clips are cut into, and that a plan per time step has each token once."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.audio import load_audio
from beats_trainer.embeddings.pieces import TokenGrid
from beats_trainer.embeddings.windows import Windowing, plan_clip, plan_clips
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip, plan_windows
from beats_trainer.model import Architecture

GRID = TokenGrid.of(Architecture(), 30.0)


def write_silence(path, seconds, sample_rate=16_000):
    soundfile.write(path, np.zeros(round(seconds * sample_rate), np.float32), sample_rate)
    return str(path)


def test_a_part_of_a_file_is_cut_from_where_it_starts_to_where_it_ends(tmp_path):
    file = write_silence(tmp_path / "a.wav", 20)

    plan = plan_clip(Clip(file, 3.0, 12.0), Windowing(5.0, 2.5))

    windows = [plan[index] for index in range(len(plan))]
    assert [(w.start_s, w.start_s + w.duration_s) for w in windows] == [
        (3.0, 8.0),
        (5.5, 10.5),
        (8.0, 13.0),
        (10.5, 15.0),
    ]


def test_a_part_that_reaches_past_the_end_ends_with_the_file(tmp_path):
    file = write_silence(tmp_path / "a.wav", 4)

    plan = plan_clip(Clip(file, 3.0, 12.0), Windowing())

    assert (len(plan), plan[0]) == (1, Clip(file, 3.0, 1.0))


def test_a_part_that_starts_behind_the_end_is_an_error_that_says_so(tmp_path):
    file = write_silence(tmp_path / "a.wav", 4)

    with pytest.raises(AudioError, match=r"4\.000 s long, and the part starts at 5\.000 s"):
        plan_clip(Clip(file, 5.0), Windowing(1.0))


@given(st.integers(1, 500_000), st.integers(2_800, 170_000), st.integers(2_560, 170_000))
def test_windows_per_time_step_have_every_token_and_none_in_vain(num_samples, window, hop):
    windowing = Windowing(window / 16_000, min(hop, window) / 16_000, GRID)
    num_steps = max(1, (num_samples - 240) // 2_560)
    samples, advance = windowing.samples
    steps = (samples - 240) // 2_560

    assert samples <= window
    assert samples % 2_560 == 240
    assert advance % 2_560 == 0
    starts = plan_windows(num_steps, steps, advance // 2_560)
    seen = [step for start in starts for step in range(start, min(start + steps, num_steps))]
    assert set(seen) == set(range(num_steps))


def test_a_window_per_time_step_advances_by_whole_steps(tmp_path):
    file = write_silence(tmp_path / "a.wav", 10)

    plan = plan_clip(Clip(file), Windowing(1.0, 1.0, GRID))

    assert plan.window == 6 * 2_560 - 2_560 + 240 + 2_560  # the longest within a second
    assert set(np.diff(plan.starts)) == {6 * 2_560}
    assert plan.starts[-1] + plan.window >= (160_000 - 240) // 2_560 * 2_560


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 1.0), "hop_s needs window_s"),
        ((0.0, None), "must be positive"),
        ((1.0, -1.0), "must be positive"),
        ((float("nan"), None), "must be positive"),
        ((float("inf"), None), "finite"),
        ((1.0, 2.0), "would be lost"),
        ((1e-9, None), "at least one sample"),
        ((0.1, None, GRID), "at least one time step"),
        ((1.0, 0.1, GRID), "at least one time step"),
        ((None, None, GRID), "need window_s"),
    ],
)
def test_windows_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Windowing(*arguments)


@pytest.mark.parametrize(
    ("sample_rate", "num_samples", "start_s"), [(32_000, 64_001, 0.0), (44_100, 132_290, 3.37e-05)]
)
def test_no_window_is_planned_for_half_a_sample_that_the_reader_does_not_have(
    tmp_path, sample_rate, num_samples, start_s
):
    file = str(tmp_path / "a.wav")
    soundfile.write(file, np.zeros(num_samples), sample_rate)
    read = len(load_audio(file, start_s, 60.0))

    plan = plan_clip(Clip(file, start_s), Windowing(read / 16_000))

    assert len(plan) == 1
    assert len(load_audio(file, plan[0].start_s, plan[0].duration_s)) == read


def test_files_whose_length_cannot_be_found_are_listed_or_raised(tmp_path):
    good = write_silence(tmp_path / "good.wav", 2)
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")

    plan = plan_clips([bad, good], 1.0, on_error="skip")

    assert [clip.start_s for clip in plan.clips] == [0.0, 1.0]
    assert [failure.index for failure in plan.failures] == [0]
    with pytest.raises(AudioError, match=r"bad\.wav"):
        plan_clips([bad, good], 1.0)
