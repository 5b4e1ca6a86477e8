"""Learning rates by layer, weight decay by kind, and the schedule by step."""

import pytest
import torch
from torch import nn

from beats_trainer.config import TrainingConfig
from beats_trainer.errors import ConfigError
from beats_trainer.model import Architecture, BEATs, BEATsClassifier, ClassifierHead
from beats_trainer.training.optim import make_optimizer, make_scheduler, parameter_groups
from tones import resolved_training

TINY = Architecture(
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=2,
    embed_dim=16,
    conv_pos=8,
    conv_pos_groups=4,
    num_buckets=16,
    max_distance=20,
)


def classifier(architecture=TINY):
    return BEATsClassifier(BEATs(architecture), ClassifierHead(32, 3), ["a", "b", "c"])


def settings_by_name(network, **options):
    groups = parameter_groups(network, 1.0, 0.1, options.pop("layer_decay", 0.5), 2, **options)
    found = {id(p): group for group in groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in network.named_parameters()}


def test_each_layer_learns_slower_than_the_one_above_it():
    by_name = settings_by_name(classifier())

    rates = {name: group["lr"] for name, group in by_name.items()}
    assert rates["head.layers.1.weight"] == 1.0
    assert rates["beats.encoder.layers.1.fc1.weight"] == 0.5
    assert rates["beats.encoder.layers.0.fc1.weight"] == 0.25
    for name in (
        "beats.patch_embedding.weight",
        "beats.layer_norm.weight",
        "beats.post_extract_proj.weight",
        "beats.encoder.pos_conv.0.bias",
        "beats.encoder.relative_attention_bias.weight",
        "beats.encoder.layer_norm.weight",
    ):
        assert rates[name] == 0.125


def test_the_norm_after_the_layers_learns_as_the_last_of_them():
    network = classifier(TINY.replace(layer_norm_first=True, deep_norm=False))

    by_name = settings_by_name(network, norm_first=True)

    assert by_name["beats.encoder.layer_norm.weight"]["lr"] == 0.5


def test_biases_norms_gates_and_gains_have_no_weight_decay():
    by_name = settings_by_name(classifier())

    decayed = {name for name, group in by_name.items() if group["weight_decay"]}
    spared = set(by_name) - decayed
    assert all(name.endswith(("weight", "original1")) for name in decayed)
    assert "beats.encoder.layers.0.self_attn.q_proj.weight" in decayed
    for name in (
        "beats.encoder.layers.0.self_attn.grep_a",
        "beats.encoder.layers.0.final_layer_norm.weight",
        "beats.encoder.pos_conv.0.parametrizations.weight.original0",
        "beats.encoder.relative_attention_bias.weight",
        "head.layers.1.bias",
    ):
        assert name in spared


def test_every_trainable_parameter_is_in_exactly_one_group():
    network = classifier()
    network.beats.layer_norm.requires_grad_(False)

    groups = parameter_groups(network, 1.0, 0.1, 0.5, 2)

    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def rates_of(training, num_steps=100, steps_per_epoch=1):
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5},
        ]
    )
    schedule = make_scheduler(optimizer, training, num_steps, steps_per_epoch)
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


def test_the_rate_warms_up_linearly_and_falls_to_zero_along_a_cosine():
    rates = [first for first, _ in rates_of(TrainingConfig(warmup_ratio=0.1))]

    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_groups_keep_their_ratio_through_the_schedule():
    assert all(
        second == pytest.approx(first / 2) for first, second in rates_of(resolved_training())
    )


def test_the_step_schedule_counts_epochs_and_none_stays_constant():
    stepped = rates_of(TrainingConfig(scheduler="step", warmup_ratio=0.0), 160, steps_per_epoch=2)
    constant = rates_of(TrainingConfig(scheduler=None, warmup_ratio=0.0), 10)

    assert [stepped[i][0] for i in (0, 59, 60, 119, 120)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert {rate for rate, _ in constant} == {1.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_each_optimizer_is_the_one_asked_for(name, kind):
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}]

    assert type(make_optimizer(groups, TrainingConfig(optimizer=name), 1e-3)) is kind


def test_an_unknown_optimizer_or_scheduler_is_an_error_and_never_a_default():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}]
    with pytest.raises(ConfigError, match="adamw, adam or sgd"):
        make_optimizer(groups, TrainingConfig(optimizer="lion"), 1e-3)
    with pytest.raises(ConfigError, match="cosine, step"):
        rates_of(TrainingConfig(scheduler="plateau", warmup_ratio=0.0))
