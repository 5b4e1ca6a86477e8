"""``beats-trainer pretrain``: the same run as in Python, taken up by the same command."""

import pandas as pd
import pytest

from beats_trainer import BEATsModel
from beats_trainer import pretraining_config as settings
from beats_trainer.cli import main
from beats_trainer.training import pretraining_module
from tones import write_tones

QUICK = (
    *("--architecture", "nano", "--window-s", "1", "--batch-s", "4", "--num-codes", "16"),
    *("--code-dim", "8", "--log-every", "2", "--validate-every", "2", "--checkpoint-every", "2"),
    *("--steps", "4", "--tokenizer-steps", "2", "--device", "cpu", "--precision", "float32"),
)
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


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.SIZES, "nano", TINY)
    return write_tones(tmp_path / "recordings", num_clips=8)


def test_it_ends_with_an_encoder_and_says_where(recordings, tmp_path, capsys):
    out = tmp_path / "out"

    code = main(["pretrain", str(recordings), "-o", str(out), *QUICK, "--exclude", "*/low/*"])

    shown = capsys.readouterr()
    assert code == 0
    assert f"Encoder: {out / 'model'}" in shown.out
    assert "15 recordings" in shown.err  # one of sixteen validates
    assert "iteration_2/encoder: 4 steps, loss" in shown.out
    assert not pd.read_csv(out / "recordings.csv")["file"].str.contains("/low/").any()
    assert BEATsModel.from_pretrained(out / "model").architecture.encoder_embed_dim == 32


def test_without_recordings_it_goes_on_with_the_settings_of_the_run(
    recordings, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    step_of = pretraining_module.PretrainingModule.training_step
    steps = []

    def stopping(self, batch, batch_idx):
        steps.append(batch.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step_of(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining_module.PretrainingModule, "training_step", stopping)
        assert main(["pretrain", str(recordings), "-o", str(out), *QUICK, "--seed", "7"]) == 130
    assert "The same command goes on" in capsys.readouterr().err
    assert main(["pretrain", "-o", str(out)]) == 0

    history = pd.read_csv(out / "iteration_1" / "encoder_history.csv")
    assert history["step"].tolist() == [2, 4]
    assert "seed: 7" in (out / "config.yaml").read_text()


def test_it_goes_on_from_a_checkpoint_at_another_rate(recordings, tmp_path, capsys):
    one = ["--iterations", "1"]
    assert main(["pretrain", str(recordings), "-o", str(tmp_path / "a"), *QUICK, *one]) == 0
    start = str(tmp_path / "a" / "model")

    second = ["pretrain", str(recordings), "-o", str(tmp_path / "b"), *QUICK, *one]
    code = main([*second, "--from", start, "--lr", "2e-5"])

    assert code == 0
    assert "learning_rate: 2.0e-05" in (tmp_path / "b" / "config.yaml").read_text()
    assert "iteration_1/tokenizer: 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--mask-ratio", "75"], 2, "mask_ratio must be above 0"),
        (["--from", "no/such/model.pt"], 1, "no/such/model.pt"),
        (["--batch-s", "4000"], 2, "batch_s"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    recordings, tmp_path, capsys, options, code, words
):
    out = tmp_path / "out"

    assert main(["pretrain", str(recordings), "-o", str(out), *QUICK, *options]) == code

    assert words in capsys.readouterr().err
    assert not (out / "config.yaml").exists()


def test_a_misspelt_option_is_refused_and_the_right_one_is_named(recordings, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", str(recordings), "-o", "out", "--mask-ration", "0.5"])

    assert stopped.value.code == 2
    assert "Did you mean --mask-ratio" in capsys.readouterr().err
