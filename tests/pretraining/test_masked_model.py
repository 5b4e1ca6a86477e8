"""Masked audio modelling: nothing of a hidden patch gets in, codes belong to their patches, and it learns."""

import pytest
import torch
from torch import nn

from beats_trainer.model import BEATs, RandomProjectionTokenizer
from beats_trainer.pretraining import (
    LabelPredictor,
    MaskedAudioModel,
    choose_kept,
    mask_noise,
)
from checkpoint_files import tiny_architecture

CODES = 16


def build(positions="true", **changes):
    torch.manual_seed(0)
    a = tiny_architecture(**changes)
    beats = BEATs(a)
    for name, parameter in beats.named_parameters():
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            nn.init.normal_(parameter, std=0.3)
    return MaskedAudioModel(beats, LabelPredictor(a, CODES, 1), positions=positions).eval()


def batch(num_clips=2, steps=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fbank = torch.randn(num_clips, 16 * steps, 128, generator=generator)
    codes = torch.randint(CODES, (num_clips, 8 * steps), generator=generator)
    return fbank, codes, mask_noise(0, seed, range(num_clips), 8 * steps)


@pytest.mark.parametrize("positions", ["true", "packed"])
@pytest.mark.parametrize("variant", [{}, {"layer_norm_first": True, "deep_norm": False}])
def test_the_encoder_knows_nothing_of_hidden_patches(positions, variant):
    model = build(positions, **variant)
    fbank, codes, noise = batch()
    hidden = choose_kept(noise).hidden
    changed = fbank.clone().view(2, 6, 16, 8, 16)
    for clip, token in hidden.nonzero().tolist():
        changed[clip, token // 8, :, token % 8] = 99.0

    with torch.no_grad():
        before = model(fbank, codes, noise)
        after = model(changed.view_as(fbank), codes, noise)

    assert torch.equal(before.loss_sum, after.loss_sum)


def test_visible_patches_and_their_neighbours_do_matter():
    model = build()
    fbank, codes, noise = batch()
    visible = choose_kept(noise).positions[0, 0]
    changed = fbank.clone().view(2, 6, 16, 8, 16)
    changed[0, visible // 8, :, visible % 8] += 1.0

    with torch.no_grad():
        before = model(fbank, codes, noise)
        after = model(changed.view_as(fbank), codes, noise)

    assert not torch.equal(before.loss_sum, after.loss_sum)


def test_codes_of_visible_patches_do_not_count():
    model = build()
    fbank, codes, noise = batch()
    visible = ~choose_kept(noise).hidden

    with torch.no_grad():
        before = model(fbank, codes, noise)
        after = model(fbank, codes.masked_fill(visible, 3), noise)

    assert torch.equal(before.loss_sum, after.loss_sum)
    assert torch.equal(before.target_counts, after.target_counts)


@pytest.mark.parametrize(
    "variant", [{}, {"gru_rel_pos": False}, {"relative_position_embedding": False}]
)
def test_with_all_tokens_kept_the_encoder_is_what_it_always_is(variant):
    encoder = build(**variant).beats.encoder.eval()
    tokens = torch.randn(2, 24, encoder.layer_norm.weight.shape[0])
    everywhere = torch.arange(24).expand(2, 24)

    with torch.no_grad():
        kept = encoder.encode_kept(tokens, everywhere, 24)
        whole = encoder(tokens, None, False)[0]

    torch.testing.assert_close(kept, whole, atol=1e-5, rtol=1e-5)


def test_true_positions_differ_from_packed_ones_only_where_something_is_left_out():
    encoder = build().beats.encoder.eval()
    tokens = torch.randn(1, 6, encoder.layer_norm.weight.shape[0])
    gaps = torch.tensor([[0, 3, 4, 9, 10, 23]])

    with torch.no_grad():
        packed = encoder(tokens, None, False)[0]
        first_places = encoder.encode_kept(tokens, torch.arange(6)[None], 24)
        apart = encoder.encode_kept(tokens, gaps, 24)

    torch.testing.assert_close(first_places, packed, atol=1e-5, rtol=1e-5)
    assert (apart - packed).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["true", "packed"])
def test_padding_changes_nothing(positions):
    model = build(positions)
    fbank, codes, noise = batch(num_clips=1, steps=3)
    padded = torch.cat([fbank, torch.full((1, 64, 128), 7.0)], dim=1)
    long_codes = torch.cat([codes, torch.full((1, 32), 5)], dim=1)
    long_noise = torch.cat([noise, torch.zeros(1, 32)], dim=1)
    other, other_codes, other_noise = batch(num_clips=1, steps=7, seed=1)

    with torch.no_grad():
        alone = model(fbank, codes, noise)
        beside = model(other, other_codes, other_noise)
        together = model(
            torch.cat([padded, other]),
            torch.cat([long_codes, other_codes]),
            torch.cat([long_noise, other_noise]),
            torch.tensor([48, 112]),
        )

    torch.testing.assert_close(
        together.loss_sum, alone.loss_sum + beside.loss_sum, atol=1e-4, rtol=1e-5
    )
    assert int(together.num_hidden) == int(alone.num_hidden) + int(beside.num_hidden)


@pytest.mark.parametrize("positions", ["true", "packed"])
def test_every_weight_gets_a_gradient(positions):
    model = build(positions).train()

    model(*batch()).loss.backward()

    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # A bias of all keys changes no softmax.
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


def test_what_each_layer_recomputes_changes_no_gradient():
    gradients = []
    for recomputes in (False, True):
        model = build().train()
        model.beats.encoder.recomputes_layers = recomputes
        model(*batch()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])

    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_a_predictor_of_another_grid_and_codes_of_one_are_refused():
    model = build()
    fbank, codes, noise = batch()

    with pytest.raises(ValueError, match="one code for each"):
        model(fbank, codes[:, :-8], noise)
    with pytest.raises(ValueError, match="multiple of 8"):
        LabelPredictor(tiny_architecture(), CODES, width=17)


@pytest.mark.slow
def test_it_learns_codes_from_their_context_and_only_where_they_are_aligned():
    """Sweeps: what is hidden follows from what is heard. Codes shifted by a time step are harder."""
    tokenizer = RandomProjectionTokenizer(num_codes=32, code_dim=16)
    generator = torch.Generator().manual_seed(0)
    band = torch.linspace(0, 1, 128)

    def sweeps(num_clips):
        start, slope = torch.rand(2, num_clips, 1, generator=generator)
        centre = (start + (slope - 0.5) * torch.linspace(0, 1, 160)) % 1
        return torch.exp(-(((band - centre[..., None]) * 12) ** 2)) * 2 - 1

    def train(shift):
        torch.manual_seed(0)
        a = tiny_architecture()
        model = MaskedAudioModel(BEATs(a), LabelPredictor(a, 32, 1), mask_ratio=0.5)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        outputs = []
        for step in range(250):
            fbank = sweeps(16)
            codes = tokenizer.encode_fbank(fbank).codes.roll(shift, dims=1)
            output = model(fbank, codes, mask_noise(0, step, range(16), 80))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            outputs.append(output)
        last = outputs[-20:]
        counts = sum(output.target_counts for output in last).double()
        share = counts / counts.sum()
        unigram = float(-torch.special.xlogy(share, share).sum())
        loss = sum(float(output.loss.detach()) for output in last) / len(last)
        right = sum(int(o.num_right) for o in last) / sum(int(o.num_hidden) for o in last)
        return loss, unigram, right, float(share.max())

    loss, unigram, accuracy, majority = train(0)

    assert loss < unigram - 0.2
    assert accuracy > 1.2 * majority
    assert train(37)[0] > loss
