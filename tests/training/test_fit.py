"""Training the whole network on Lightning: what moves, what is kept, what a resumed run does."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from beats_trainer.datasets import build_manifest, scan_directory_dataset, split_manifest
from beats_trainer.errors import BEATsTrainerError, ConfigError
from beats_trainer.training.build import build_classifier, build_encoder
from beats_trainer.training.embedded import EmbeddingCache
from beats_trainer.training.fit import fit_network
from beats_trainer.training.modules import ClassifierModule
from beats_trainer.training.run_folder import RunFolder
from beats_trainer.training.session import score_split
from tones import tiny_config, write_tones

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = write_tones(tmp_path_factory.mktemp("tones"))
    return split_manifest(build_manifest(scan_directory_dataset(folder)), 0.6, 0.2, 0.2)


def fresh_classifier(config, splits):
    return build_classifier(build_encoder(config), config.resolved(), splits.labels)


def fit(config, splits, folder, resume=False):
    config = config.resolved()
    classifier = fresh_classifier(config, splits)
    fitted = fit_network(
        classifier, splits, config.resolved(), RunFolder(folder), CPU, resume=resume
    )
    return classifier, fitted


def test_a_network_from_scratch_learns_the_tones(splits, tmp_path):
    classifier, fitted = fit(tiny_config(max_epochs=12, learning_rate=5e-3), splits, tmp_path)

    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]
    assert fitted.best_score >= 0.8
    assert not classifier.training


def test_every_parameter_moves_and_those_without_a_gradient_do_not_exist(splits, tmp_path):
    config = tiny_config(max_epochs=1, learning_rate=1e-2)
    before = fresh_classifier(config.resolved(), splits).state_dict()

    classifier, _ = fit(config, splits, tmp_path)

    moved = {k: not torch.equal(v, before[k]) for k, v in classifier.state_dict().items()}
    parameters = [name for name, _ in classifier.named_parameters()]
    # A key bias shifts all scores of a query alike, which softmax cancels: its gradient is rounding.
    unmoved = [name for name in parameters if not moved[name] and not name.endswith("k_proj.bias")]
    assert unmoved == []


def test_the_weights_given_back_are_those_of_the_best_epoch(splits, tmp_path):
    config = tiny_config(max_epochs=8, learning_rate=2e-2, patience=8)

    classifier, fitted = fit(config, splits, tmp_path)

    scores = [row["val_accuracy"] for row in fitted.history]
    cache = EmbeddingCache(classifier, config.resolved(), "single")
    (val,) = cache.split(classifier, [splits.val], progress=False)
    measured = score_split(classifier, val, splits.val, with_intervals=False).metrics
    assert fitted.best_score == pytest.approx(max(scores))
    assert fitted.best_epoch == int(np.argmax(scores))
    assert measured.summary("val")["val_loss"] == pytest.approx(
        fitted.history[fitted.best_epoch]["val_loss"], abs=1e-4
    )


@pytest.mark.parametrize(("monitor", "choose"), [("val_f1", max), ("val_loss", min)])
def test_the_monitored_metric_is_improved_in_its_own_direction(splits, tmp_path, monitor, choose):
    config = tiny_config(max_epochs=5, learning_rate=2e-2, monitor_metric=monitor)

    _, fitted = fit(config, splits, tmp_path)

    assert fitted.best_score == pytest.approx(choose(row[monitor] for row in fitted.history))


def test_training_stops_when_patience_is_over(splits, tmp_path):
    config = tiny_config(max_epochs=30, learning_rate=1e-9, patience=2)

    _, fitted = fit(config, splits, tmp_path)

    assert len(fitted.history) == 3


def test_without_validation_the_last_epoch_is_kept(splits, tmp_path):
    no_val = dataclasses.replace(splits, val=splits.val[:0])

    _, fitted = fit(tiny_config(max_epochs=3), no_val, tmp_path)

    assert fitted.best_score is None
    assert fitted.best_epoch == 2
    assert set(fitted.history[0]) == {"epoch", "train_loss", "lr"}


def test_the_learning_rate_warms_up_by_step_and_ends_near_zero(splits, tmp_path):
    config = tiny_config(max_epochs=10, learning_rate=1e-3, warmup_ratio=0.3, patience=10)

    _, fitted = fit(config, splits, tmp_path)

    rates = [row["lr"] for row in fitted.history]
    assert rates[0] < rates[1] < rates[2] <= 1e-3
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}])
def test_a_resumed_run_ends_exactly_as_an_unbroken_one(splits, tmp_path, settings, monkeypatch):
    config = tiny_config(max_epochs=4, learning_rate=5e-3, patience=10, **settings)
    config.model.dropout_rate = 0.2
    config.model.encoder_layerdrop = 0.2
    whole, whole_fit = fit(config, splits, tmp_path / "whole")

    class PowerCutError(Exception):
        pass

    original = ClassifierModule.on_train_epoch_start

    def cut(module):
        if module.current_epoch == 2:
            raise PowerCutError
        original(module)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierModule, "on_train_epoch_start", cut)
        with pytest.raises(PowerCutError):
            fit(config, splits, tmp_path / "broken")
    shutil.move(tmp_path / "broken", tmp_path / "moved")  # a run may be resumed from elsewhere
    resumed, resumed_fit = fit(config, splits, tmp_path / "moved", resume=True)

    assert [row["epoch"] for row in resumed_fit.history] == [0, 1, 2, 3]
    assert resumed_fit == whole_fit
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_resuming_a_finished_run_gives_its_result_again(splits, tmp_path):
    config = tiny_config(max_epochs=2, learning_rate=5e-3)
    first, first_fit = fit(config, splits, tmp_path)

    again, again_fit = fit(config, splits, tmp_path, resume=True)

    assert again_fit == first_fit
    assert torch.equal(again.head.last_linear.weight, first.head.last_linear.weight)


def test_a_checkpoint_holds_plain_values_only(splits, tmp_path):
    fit(tiny_config(max_epochs=1), splits, tmp_path)

    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)

    assert saved["hyper_parameters"]["labels"] == splits.labels
    assert saved["hyper_parameters"]["config"]["training"]["max_epochs"] == 1


def test_the_same_seed_gives_the_same_network(splits, tmp_path):
    config = tiny_config(max_epochs=2, learning_rate=5e-3)

    (first, first_fit), (second, second_fit) = (
        fit(config, splits, tmp_path / name) for name in "ab"
    )

    assert first_fit == second_fit
    assert torch.equal(first.head.last_linear.weight, second.head.last_linear.weight)


def test_torchs_own_generator_is_left_as_it_was(splits, tmp_path):
    config = tiny_config(max_epochs=1)
    before = torch.random.get_rng_state()

    fit(config, splits, tmp_path)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_do(splits, tmp_path):
    config = tiny_config(max_epochs=2, learning_rate=1e30, gradient_clip=None, optimizer="sgd")

    with pytest.raises(BEATsTrainerError, match="learning_rate"):
        fit(config, splits, tmp_path)


def test_float16_is_refused_where_it_cannot_train(splits, tmp_path):
    with pytest.raises(ConfigError, match="float16"):
        fit(tiny_config(precision="float16"), splits, tmp_path)


def test_bfloat16_trains_and_keeps_float32_weights(splits, tmp_path):
    classifier, fitted = fit(tiny_config(max_epochs=1, precision="bfloat16"), splits, tmp_path)

    assert fitted.precision == "bfloat16"
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


def test_lightning_says_nothing(splits, tmp_path, capfd, recwarn):
    fit(tiny_config(max_epochs=1), splits, tmp_path)

    output = capfd.readouterr()
    assert output.out == output.err == ""
    assert [str(w.message) for w in recwarn if "lightning" in str(w.filename)] == []


def test_reading_in_processes_and_cutting_at_random_change_nothing_between_runs(splits, tmp_path):
    config = tiny_config(max_epochs=2, learning_rate=5e-3)
    config.data.max_duration_s = 0.2
    _, in_this_process = fit(config, splits, tmp_path / "one")
    config.data.num_workers = 2

    _, in_others = fit(config, splits, tmp_path / "two")

    assert in_others.history == in_this_process.history


def test_ctrl_c_stays_a_keyboard_interrupt(splits, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassifierModule, "training_step", stop)

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_config(max_epochs=1), splits, tmp_path)


def test_checkpointing_changes_memory_and_not_the_result(splits, tmp_path):
    runs = []
    for asked in (False, True):
        config = tiny_config(max_epochs=2, learning_rate=5e-3, gradient_checkpointing=asked)
        config.model.encoder_layerdrop = 0.3
        runs.append(fit(config, splits, tmp_path / str(asked)))

    (kept, kept_run), (recomputed, recomputed_run) = runs
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(recomputed.state_dict()[name], value, msg=name)
    for row, other in zip(kept_run.history, recomputed_run.history, strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], abs=1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_training_sets_the_network_and_the_process_and_leaves_them_as_they_were(
    splits, tmp_path, monkeypatch, fails
):
    config = tiny_config(max_epochs=1, gradient_checkpointing=True, precision="float32").resolved()
    classifier = fresh_classifier(config, splits)
    seen = []
    step = ClassifierModule.training_step

    def look(self, *arguments):
        seen.append(self.classifier.beats.encoder.recomputes_layers)
        if fails:
            raise BEATsTrainerError("an error on purpose")
        return step(self, *arguments)

    monkeypatch.setattr(ClassifierModule, "training_step", look)
    try:
        fit_network(classifier, splits, config, RunFolder(tmp_path), CPU)
    except BEATsTrainerError:
        assert fails

    assert seen[0] is True
    assert classifier.beats.encoder.recomputes_layers is False
    assert torch.get_float32_matmul_precision() == "highest"
