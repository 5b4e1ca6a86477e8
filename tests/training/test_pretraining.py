"""Pre-training as a whole: it ends, goes on where it was stopped, and is the same however it is divided."""

import dataclasses
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from beats_trainer import BEATsFeatureExtractor, BEATsModel, BEATsPretrainer, load_tokenizer
from beats_trainer import pretraining_config as settings
from beats_trainer.errors import CodebookCollapseError, ConfigError, DatasetError
from beats_trainer.loading.archive import Archive, ArchiveBatches
from beats_trainer.training import pretraining_module, pretraining_stages

TINY = settings.Size(
    {
        "encoder_layers": 1,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 64,
        "encoder_attention_heads": 2,
        "embed_dim": 16,
        "conv_pos": 16,
    },
    1,
    32,
    6,
    8.0,
    1e-3,
    1e-3,
)
QUICK = {
    "architecture": "nano",
    "window_s": 2.0,
    "num_codes": 16,
    "code_dim": 8,
    "log_every": 2,
    "validate_every": 2,
    "checkpoint_every": 2,
    "tokenizer_steps": 4,
    "validation_share": 0.2,
    "device": "cpu",
    "precision": "float32",
}


@pytest.fixture(autouse=True)
def tiny_nano(monkeypatch):
    monkeypatch.setitem(settings.SIZES, "nano", TINY)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Ten recordings of noise in bands that come and go, 2 to 5 s each."""
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    for number in range(10):
        size = int(16_000 * random.uniform(2, 5))
        time = np.arange(size) / 16_000
        pitch = 300 * 2 ** random.uniform(0, 4)
        tone = np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * 2 * time) > 0)
        soundfile.write(
            folder / f"{number}.wav", 0.3 * tone + 0.02 * random.standard_normal(size), 16_000
        )
    return folder


def pretrain(recordings, output, **changes):
    return BEATsPretrainer(recordings, output, **(QUICK | changes)).run()


def weights(run):
    return {
        f"{path.parent.parent.name}/{path.parent.name}": load_file(path)
        for path in sorted(run.glob("iteration_*/*/model.safetensors"))
    }


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for stage, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[stage][name]), (stage, name)
    for path in sorted(one.glob("iteration_*/*_history.csv")):
        rows, others = (
            pd.read_csv(run / path.relative_to(one)).drop(columns="heard_s_per_s")
            for run in (one, other)
        )
        pd.testing.assert_frame_equal(rows, others)


def test_a_run_leaves_an_encoder_that_everything_loads(recordings, tmp_path):
    result = pretrain(recordings, tmp_path / "run")

    model = BEATsModel.from_pretrained(result.model)
    assert model.architecture.dropout == 0.0
    embedding = BEATsFeatureExtractor(result.model, "cpu").extract_from_file(recordings / "0.wav")
    assert embedding.shape == (32,)
    assert load_tokenizer(tmp_path / "run/iteration_1/tokenizer").num_codes == 16
    assert load_tokenizer(tmp_path / "run/iteration_2/tokenizer").code_dim == 8
    assert set(result.histories) == {
        f"iteration_{n}/{kind}" for n in (1, 2) for kind in ("tokenizer", "encoder")
    }
    rows = result.histories["iteration_2/encoder"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"loss", "val_loss", "accuracy", "unigram", "majority", "perplexity"} <= rows[-1].keys()
    assert "<svg" in (tmp_path / "run/curves.html").read_text()
    provenance = json.loads((result.model / "config.json").read_text())["provenance"]
    assert provenance["recordings"] == 8
    assert provenance["settings"]["window_s"] == 2.0


def test_the_same_call_again_computes_nothing_and_gives_the_same(recordings, tmp_path, monkeypatch):
    first = pretrain(recordings, tmp_path / "run")
    monkeypatch.setattr(pretraining_module.PretrainingModule, "training_step", None)

    again = BEATsPretrainer(None, tmp_path / "run", **QUICK).run()

    assert again.model == first.model
    assert again.histories == first.histories


@pytest.mark.parametrize("stops_at", [3, 5, 9, 13])
def test_a_run_that_was_stopped_ends_as_an_unbroken_one(
    recordings, tmp_path, monkeypatch, stops_at
):
    dropout = {"dropout": 0.1, "layerdrop": 0.1}
    pretrain(recordings, tmp_path / "whole", **dropout)
    steps = []
    step_of = pretraining_module.PretrainingModule.training_step

    def stopping(self, batch, batch_idx):
        steps.append(batch.step)
        if len(steps) == stops_at:
            raise RuntimeError("the power is gone")
        return step_of(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining_module.PretrainingModule, "training_step", stopping)
        with pytest.raises(RuntimeError, match="power"):
            pretrain(recordings, tmp_path / "broken", **dropout)
    BEATsPretrainer(None, tmp_path / "broken", **(QUICK | dropout)).run()

    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_that_was_killed_twice_ends_as_an_unbroken_one(recordings, tmp_path):
    pretrain(recordings, tmp_path / "whole", dropout=0.1)
    given = json.dumps(QUICK | {"dropout": 0.1, "size": dataclasses.astuple(TINY)})
    script = str(Path(__file__).with_name("killed_pretraining.py"))

    for stops_at, code in ((4, -signal.SIGKILL), (7, -signal.SIGKILL), (0, 0)):
        arguments = [str(recordings), str(tmp_path / "broken"), given, str(stops_at)]
        done = subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr

    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_stored_labels_give_what_labels_on_the_fly_give_in_the_first_pass(recordings, tmp_path):
    plain = pretrain(recordings, tmp_path / "plain", iterations=1, steps=2)
    stored = pretrain(recordings, tmp_path / "stored", iterations=1, steps=2, store_labels=True)

    assert (tmp_path / "stored/iteration_1/labels/labels.npy").is_file()
    for one, other in zip(
        *(r.histories["iteration_1/encoder"] for r in (plain, stored)), strict=True
    ):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)


def test_a_step_in_parts_is_the_step(recordings, tmp_path):
    whole = pretrain(recordings, tmp_path / "whole", iterations=1, gradient_clip=None)
    parts = pretrain(
        recordings, tmp_path / "parts", iterations=1, gradient_clip=None, accumulate_grad_batches=2
    )

    for one, other in zip(
        *(r.histories["iteration_1/encoder"] for r in (whole, parts)), strict=True
    ):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.02)
        assert one["heard_s"] == other["heard_s"]


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [2])
def test_two_processes_do_what_one_does(recordings, tmp_path, iterations):
    one = pretrain(recordings, tmp_path / "one", iterations=iterations)
    two = pretrain(recordings, tmp_path / "two", iterations=iterations, devices=2)

    for stage, rows in one.histories.items():
        for row, other in zip(rows, two.histories[stage], strict=True):
            assert row["loss"] == pytest.approx(other["loss"], abs=1e-5), stage
    codebooks = [
        weights(tmp_path / name)["iteration_2/tokenizer"]["quantize.embedding.weight"]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(*codebooks, atol=1e-6, rtol=0)
    first, second = (weights(tmp_path / name) for name in ("one", "two"))
    for stage, tensors in first.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(second[stage][name], tensor, atol=2e-4, rtol=0)


def test_continued_training_starts_from_the_checkpoint(recordings, tmp_path):
    first = pretrain(recordings, tmp_path / "first", iterations=1)

    second = pretrain(
        recordings,
        tmp_path / "second",
        from_checkpoint=str(first.model),
        iterations=1,
        steps=2,
        learning_rate=1e-9,
    )

    before, after = BEATsModel.from_pretrained(first.model), second.load()
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-6, rtol=1e-5)
    assert "cosine" in second.histories["iteration_1/tokenizer"][-1]


def test_a_probe_looks_at_labelled_clips(recordings, tmp_path):
    for number, file in enumerate(sorted(recordings.glob("*.wav"))):
        folder = tmp_path / "labelled" / ("low" if number % 2 else "high")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())

    result = pretrain(
        recordings, tmp_path / "run", iterations=1, probe=str(tmp_path / "labelled"), probe_every=4
    )

    found = [row.get("probe_accuracy") for row in result.histories["iteration_1/encoder"]]
    assert found[0] is None
    assert 0 <= found[1] <= 1
    assert 0 <= found[2] <= 1


# -- bad input ------------------------------------------------------------------------------------------------


def test_other_settings_than_those_of_the_run_are_refused_and_named(recordings, tmp_path):
    pretrain(recordings, tmp_path / "run", iterations=1)

    with pytest.raises(ConfigError, match=r"mask_ratio was 0\.75 and is 0\.5"):
        pretrain(recordings, tmp_path / "run", iterations=1, mask_ratio=0.5)
    pretrain(recordings, tmp_path / "run", iterations=1, num_workers=1)  # changes no result


def test_other_recordings_than_those_of_the_run_are_refused_and_new_ones_are_not_heard(
    recordings, tmp_path
):
    own = tmp_path / "own"
    own.mkdir()
    for file in recordings.glob("*.wav"):
        (own / file.name).write_bytes(file.read_bytes())
    first = pretrain(own, tmp_path / "run", iterations=1)

    with pytest.raises(ConfigError, match="begun with other recordings: 10 of them"):
        pretrain(recordings, tmp_path / "run", iterations=1)
    (own / "new.wav").write_bytes((own / "1.wav").read_bytes())
    assert pretrain(own, tmp_path / "run", iterations=1).histories == first.histories


def test_recordings_that_changed_since_are_named(recordings, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for file in recordings.glob("*.wav"):
        (own / file.name).write_bytes(file.read_bytes())
    pretrain(own, tmp_path / "run", iterations=1)
    (own / "3.wav").unlink()

    with pytest.raises(DatasetError, match=r"3\.wav is gone"):
        pretrain(own, tmp_path / "run", iterations=1)


def test_too_little_sound_is_found_before_anything_is_trained(recordings, tmp_path):
    with pytest.raises(ConfigError, match=r"a step takes 600 s \(batch_s\)"):
        pretrain(recordings, tmp_path / "run", batch_s=600.0)

    assert not (tmp_path / "run" / "config.yaml").exists()


def test_many_passes_over_little_sound_are_said_before_anything_is_trained(
    recordings, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretraining_stages.Stages, "run", lambda *_: pytest.fail("it trains"))
    archive, _ = Archive.scan(recordings).split(0.2, 42)
    steps_of_a_pass = len(ArchiveBatches(archive, 2.0, 8.0, 42).plan(0))
    said = {}
    for passes in (300, 301):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(pytest.fail.Exception, match="it trains"):
                pretrain(recordings, tmp_path / str(passes), steps=passes * steps_of_a_pass)
        said[passes] = [str(warning.message) for warning in caught]

    assert not [words for words in said[300] if "times over" in words]
    (words,) = [words for words in said[301] if "times over" in words]
    assert "hear 0.01 hours about 301 times over" in words
    assert f"Take fewer steps ({300 * steps_of_a_pass:,} are 300 times)" in words


def test_silence_is_no_sound(tmp_path):
    for number in range(5):
        (tmp_path / "quiet").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "quiet" / f"{number}.wav", np.zeros(48_000), 16_000)

    with pytest.raises(DatasetError, match="digital silence"):
        pretrain(tmp_path / "quiet", tmp_path / "run")


def test_a_steady_noise_whose_codes_are_all_alike_stops_the_run(tmp_path):
    (tmp_path / "hum").mkdir()
    time = np.arange(16_000 * 4) / 16_000
    for number in range(5):
        hum = 0.1 * np.sign(np.sin(2 * np.pi * 100 * time))
        soundfile.write(tmp_path / "hum" / f"{number}.wav", hum, 16_000)

    with pytest.raises(CodebookCollapseError, match="have collapsed"):
        pretrain(tmp_path / "hum", tmp_path / "run", projection="paper")


def test_a_checkpoint_of_another_size_is_refused_and_decides_where_none_is_asked_for(
    recordings, tmp_path
):
    first = pretrain(recordings, tmp_path / "first", iterations=1)
    start = {"from_checkpoint": str(first.model), "batch_s": 8.0, "steps": 2, "iterations": 1}

    for size in ("small", "base"):
        with pytest.raises(ConfigError, match=f"which is not architecture='{size}'"):
            pretrain(recordings, tmp_path / "run", architecture=size, **start)
    result = pretrain(recordings, tmp_path / "run", architecture=None, **start)

    assert result.load().architecture.encoder_embed_dim == 32


def test_a_folder_that_holds_something_else_is_left_alone(recordings, tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")

    with pytest.raises(ConfigError, match=r"holds something else \(thesis\.txt\)"):
        pretrain(recordings, tmp_path)
    with pytest.raises(ConfigError, match="There is no run"):
        BEATsPretrainer(None, tmp_path / "new", **QUICK).run()
