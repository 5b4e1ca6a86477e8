"""The self-distilled tokenizer: it learns what the teacher hears, and touches nothing else."""

import copy

import pytest
import torch

from beats_trainer.model import AcousticTokenizer, BEATs
from beats_trainer.pretraining import TokenizerDistiller
from checkpoint_files import tiny_architecture


def build(commitment=1.0, **changes):
    torch.manual_seed(0)
    teacher = BEATs(tiny_architecture(**changes))
    tokenizer = AcousticTokenizer(tiny_architecture(), num_codes=12, code_dim=8)
    return TokenizerDistiller(tokenizer, teacher, commitment)


def fbank(num_clips=3, steps=5, seed=0):
    return torch.randn(num_clips, 16 * steps, 128, generator=torch.Generator().manual_seed(seed))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module, before):
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_learns_to_tell_what_the_teacher_hears():
    distiller = build().train()
    batches = [(fbank(seed=seed), None) for seed in range(4)]
    distiller.start(batches, seed=0)
    optimizer = torch.optim.AdamW(distiller.parameters(), 3e-3)

    cosines = []
    for step in range(80):
        output = distiller(*batches[step % 4])
        optimizer.zero_grad()
        (output.loss_sum / output.num_tokens).backward()
        optimizer.step()
        cosines.append(float(output.cosine_sum / output.num_tokens))

    assert sum(cosines[-4:]) / 4 > max(cosines[:4]) + 0.2
    assert int((output.code_counts > 0).sum()) >= 4


def test_the_teacher_is_left_alone():
    distiller = build()
    teacher = distiller._teacher[0]
    before = state(teacher)

    distiller.train()
    output = distiller(fbank())
    output.loss_sum.backward()

    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name in distiller.state_dict())
    assert_same_state(teacher, before)


@pytest.mark.parametrize("commitment", [1.0, 0.0])
def test_every_weight_gets_a_gradient_through_the_code(commitment):
    distiller = build(commitment).train()

    distiller(fbank()).loss_sum.backward()

    idle = [
        name
        for name, parameter in distiller.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


def test_evaluation_and_encoding_change_no_state():
    distiller = build()
    distiller(fbank())  # training: codes move
    before = state(distiller)

    distiller.eval()
    with torch.no_grad():
        distiller(fbank(seed=1))
    distiller.tokenizer.encode(torch.randn(2, 16_000))

    assert_same_state(distiller, before)


def test_padding_touches_neither_loss_nor_codes():
    short, long = fbank(1, steps=3), fbank(1, steps=6, seed=1)
    padded = torch.cat([short, torch.full((1, 48, 128), 5.0)], dim=1)
    apart, together = build().train(), build().train()
    together.load_state_dict(copy.deepcopy(apart.state_dict()))
    apart.eval()
    with torch.no_grad():
        expected = apart(short).loss_sum + apart(long).loss_sum

    output = together(torch.cat([padded, long]), torch.tensor([48, 96]))
    garbage = build().train()
    garbage.load_state_dict(copy.deepcopy(apart.state_dict()))
    other = torch.cat([short, torch.full((1, 48, 128), -9.0)], dim=1)
    garbage(torch.cat([other, long]), torch.tensor([48, 96]))

    torch.testing.assert_close(output.loss_sum, expected, atol=1e-4, rtol=1e-5)
    assert int(output.num_tokens) == 24 + 48
    torch.testing.assert_close(
        together.tokenizer.quantize.embedding.weight, garbage.tokenizer.quantize.embedding.weight
    )


def test_the_codebook_stays_in_float32_and_does_not_collapse_in_bfloat16():
    distiller = build().train()
    batches = [(fbank(seed=seed), None) for seed in range(4)]
    distiller.start(batches, seed=0)
    optimizer = torch.optim.AdamW(distiller.parameters(), 1e-3)

    counts = torch.zeros(12)
    for step in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            output = distiller(*batches[step % 4])
        optimizer.zero_grad()
        (output.loss_sum / output.num_tokens).backward()
        optimizer.step()
        counts += output.code_counts

    weight = distiller.tokenizer.quantize.embedding.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(12))
    assert int((counts > 0).sum()) >= 6


def test_a_teacher_of_another_width_is_imitated_through_a_map():
    distiller = build(encoder_embed_dim=24, encoder_attention_heads=3, conv_pos_groups=4)

    output = distiller(fbank())

    assert torch.isfinite(output.loss_sum)


def test_a_teacher_with_another_front_end_is_refused():
    with pytest.raises(ValueError, match="same fbank_mean"):
        build(fbank_mean=12.0)
