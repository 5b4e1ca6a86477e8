"""Two processes that train together do what one does with the same batches, and fail as one."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from beats_trainer import BEATsTrainer
from beats_trainer.datasets import build_manifest, scan_directory_dataset, split_manifest
from beats_trainer.errors import AudioError, BEATsTrainerError, ConfigError
from beats_trainer.training.build import build_classifier, build_encoder
from beats_trainer.training.fit import fit_network
from beats_trainer.training.run_folder import RunFolder
from tones import tiny_config, write_tones

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """17 clips to train on and 7 to validate on: with batches of 8, each ends in a share of nothing."""
    folder = write_tones(tmp_path_factory.mktemp("tones"), num_clips=10)
    splits = split_manifest(build_manifest(scan_directory_dataset(folder)), 0.6, 0.3, 0.1)
    parts = (splits.train[:17], splits.val[:7], splits.test)
    return type(splits)(*parts, splits.labels, splits.how)


def run_fit(config, splits, folder, resume=False):
    config = config.resolved()
    classifier = build_classifier(build_encoder(config), config, splits.labels)
    fitted = fit_network(classifier, splits, config, RunFolder(folder), CPU, resume=resume)
    return classifier.state_dict(), fitted


def both(config, splits, folder):
    """The results of one process and of two."""
    together = copy.deepcopy(config)
    together.training.devices = 2
    return run_fit(config, splits, folder / "one"), run_fit(together, splits, folder / "two")


def assert_alike(one, two):
    assert two[1].best_epoch == one[1].best_epoch
    for row, other in zip(one[1].history, two[1].history, strict=True):
        assert other == pytest.approx(row, abs=1e-5)
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_and_metrics_of_one_and_say_nothing(
    splits, tmp_path, capfd
):
    config = tiny_config(max_epochs=3, learning_rate=2e-3, class_weights="inverse")

    one, two = both(config, splits, tmp_path)

    assert_alike(one, two)
    said = capfd.readouterr()
    assert said.out == said.err == ""


@pytest.mark.slow
def test_two_processes_drop_layers_without_waiting_for_one_another_and_resume(splits, tmp_path):
    config = tiny_config(max_epochs=2, learning_rate=2e-3, devices=2)
    config.model.encoder_layerdrop = 0.5

    weights, fitted = run_fit(config, splits, tmp_path)
    again, again_fitted = run_fit(config, splits, tmp_path, resume=True)

    assert len(fitted.history) == 2
    assert again_fitted == fitted
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@pytest.mark.slow
def test_a_damaged_recording_is_named_from_whichever_process_reads_it(splits, tmp_path):
    damaged = tmp_path / "a: b.wav"
    damaged.write_bytes(b"no sound")
    broken = copy.deepcopy(splits)
    broken.train.loc[broken.train.index[3], "path"] = str(damaged)

    with pytest.raises(AudioError, match=r"Cannot read audio from .*a: b\.wav: "):
        run_fit(tiny_config(max_epochs=1, devices=2), broken, tmp_path)


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
from beats_trainer import BEATsTrainer
from tones import tiny_config

def main():
    config = tiny_config(max_epochs={epochs}, devices=2)
    BEATsTrainer.from_directory({tones!r}, config, log_dir={logs!r}).train(verbose=False)

{start}
"""


def write_script(folder, start, epochs=2000):
    tones = write_tones(folder / "tones", num_clips=5)
    script = folder / "train.py"
    logs = str(folder / "logs")
    tests = str(Path(__file__).parents[1])
    script.write_text(
        SCRIPT.format(tests=tests, epochs=epochs, tones=str(tones), logs=logs, start=start)
    )
    return script


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so_and_starts_no_second_run(tmp_path):
    script = write_script(tmp_path, "main()")

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=200
    )

    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "logs").glob("*/*")] == ["version_0"]


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(tmp_path):
    script = write_script(tmp_path, 'if __name__ == "__main__":\n    main()')
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What was started in the background is deaf to Ctrl-C, and so would this be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "logs" / "beats_experiment" / "version_0" / "checkpoints" / "last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.05)
    children = children_of(process.pid)
    assert len(children) >= 2

    process.send_signal(signal.SIGINT)  # to the parent alone: its children must not be left behind
    _, errors = process.communicate(timeout=60)

    assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{child}/cmdline") for child in children):
            return
        time.sleep(0.1)
    raise AssertionError(f"{children} still run")


def children_of(pid):
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_process_that_is_being_started_refuses_to_start_others(splits, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)

    with pytest.raises(BEATsTrainerError, match='if __name__ == "__main__":'):
        BEATsTrainer(splits, config=tiny_config(devices=2))


def test_a_notebook_is_told_that_it_cannot_start_processes(splits, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    with pytest.raises(ConfigError, match=r"devices=2 .* notebook"):
        BEATsTrainer(splits, config=tiny_config(devices=2))
