"""Detection finds the sounds that were planted in noise: every one, nothing else, and at the right time."""

import numpy as np
import pandas as pd
import pytest
import soundfile

from beats_trainer import BEATsPredictor, BEATsTrainer
from beats_trainer.datasets import write_annotation_csv
from tones import tiny_config

RATE = 16_000
PITCHES = {"high": 3000.0, "low": 300.0}
WINDOW_S, HOP_S = 1.0, 0.25


def plant(path, duration_s, seed, spacing_s):
    """Write noise with tones of both pitches, 0.4 to 1.5 s long; returns where they are.

    None is near an end of the file, where no window can tell how much of it is silent.
    """
    rng = np.random.default_rng(seed)
    scene = 0.02 * rng.standard_normal(round(duration_s * RATE))
    rows, start_s = [], WINDOW_S + rng.uniform(0.3, spacing_s)
    while (end_s := start_s + rng.uniform(0.4, 1.5)) < duration_s - WINDOW_S - 0.3:
        label = str(rng.choice(list(PITCHES)))
        first, stop = round(start_s * RATE), round(end_s * RATE)
        times = np.arange(stop - first) / RATE
        scene[first:stop] += rng.uniform(0.1, 0.3) * np.sin(2 * np.pi * PITCHES[label] * times)
        rows.append((str(path), first / RATE, stop / RATE, label))
        start_s = end_s + rng.uniform(1.5 * WINDOW_S, 2 * spacing_s)
    soundfile.write(path, scene, RATE)
    return pd.DataFrame(rows, columns=["file", "start_time", "end_time", "label"])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """Trained in seconds on annotated noise."""
    folder = tmp_path_factory.mktemp("annotated")
    tables = [plant(folder / f"site_{number}.wav", 40.0, number, 1.0) for number in range(6)]
    write_annotation_csv(pd.concat(tables), folder / "annotations.csv")
    config = tiny_config(max_epochs=6, learning_rate=2e-3)
    config.data.window_s, config.data.hop_s, config.data.min_overlap_s = WINDOW_S, 0.5, 0.1
    trainer = BEATsTrainer.from_annotations(
        folder / "annotations.csv", folder, config, log_dir=folder / "logs"
    )
    result = trainer.train(verbose=False, progress=False)
    return BEATsPredictor(result.best_checkpoint, device="cpu", precision="float32")


def assert_found(events, planted, within_s):
    columns = ["file", "label"]
    planted = planted.sort_values(["file", "start_time"], ignore_index=True)
    found = events.sort_values(["file", "start_time"], ignore_index=True)
    pd.testing.assert_frame_equal(found[columns], planted[columns], check_dtype=False)
    for time in ("start_time", "end_time"):
        assert (found[time] - planted[time]).abs().max() <= within_s


def test_all_planted_tones_of_a_long_file_are_found_with_their_times_within_a_hop(
    predictor, tmp_path
):
    planted = plant(tmp_path / "long.wav", 300.0, seed=100, spacing_s=4.0)

    found = predictor.detect(tmp_path / "long.wav", hop_s=HOP_S, combine="lowest", thresholds=0.5)

    assert len(planted) > 25
    assert_found(found.events, planted, within_s=HOP_S)


def test_all_planted_tones_of_several_files_are_found_as_if_each_were_alone(predictor, tmp_path):
    files = [tmp_path / f"night_{number}.wav" for number in range(4)]
    planted = pd.concat(
        [plant(file, 20.0 + 3.3 * number, number + 200, 3.0) for number, file in enumerate(files)]
    )

    found = predictor.detect(files, hop_s=HOP_S, combine="lowest", thresholds=0.5)
    alone = [
        predictor.detect(file, hop_s=HOP_S, combine="lowest", thresholds=0.5).events
        for file in files
    ]

    assert_found(found.events, planted, within_s=HOP_S)
    pd.testing.assert_frame_equal(found.events, pd.concat(alone, ignore_index=True), rtol=1e-5)


def test_the_default_settings_find_them_too_with_times_within_a_window(predictor, tmp_path):
    planted = plant(tmp_path / "long.wav", 120.0, seed=300, spacing_s=5.0)

    found = predictor.detect(tmp_path / "long.wav", thresholds=0.5)

    assert predictor.model.window_s == WINDOW_S
    assert_found(found.events, planted, within_s=WINDOW_S)
