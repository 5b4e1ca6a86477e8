"""What users rely on of the network: padding, lengths, precision, gradients, counts."""

import copy

import pytest
import torch

from beats_trainer.model import (
    AcousticTokenizer,
    Architecture,
    BEATs,
    BEATsClassifier,
    ClassifierHead,
)

TINY = Architecture(
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=2,
    embed_dim=16,
)
LENGTHS = [
    *[1, 2, 159, 160, 399, 400, 401, 559, 560, 561, 2799, 2800, 2801, 3199, 3200],
    *[5359, 5360, 5361, 8000, 11_025, 12_345, 15_999, 16_000, 16_001, 20_000, 24_000],
    *[26_317, 31_999, 32_000, 40_000, 47_999, 48_001, 64_000, 80_000, 96_000, 100_001],
    *[127_999, 160_000, 176_400, 191_999, 192_000],
]


def tiny_model(**changes):
    torch.manual_seed(0)
    model = BEATs(TINY.replace(**changes)).eval()
    for name, parameter in model.named_parameters():  # no gate or bias may be neutral
        if name.endswith(("bias", "grep_a")) or "relative_attention" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def noise(num_clips, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_clips, num_samples, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    "variant", [{}, {"gru_rel_pos": False, "relative_position_embedding": False}]
)
def test_a_clip_of_any_length_is_the_same_alone_and_beside_longer_mates(variant):
    assert len(LENGTHS) >= 40
    model = tiny_model(**variant)
    clips = [noise(1, length, seed=length)[0] for length in LENGTHS]
    for start in range(0, len(clips), 5):
        group = [*clips[start : start + 5], noise(1, max(LENGTHS) + 3000)[0]]
        lengths = torch.tensor([len(clip) for clip in group])
        padded = torch.full((len(group), int(lengths.max())), 0.7)  # padding that would show
        for row, clip in zip(padded, group, strict=True):
            row[: len(clip)] = clip
        with torch.no_grad():
            batch = model(padded, lengths)
            for index, clip in enumerate(group):
                alone = model(clip[None])
                num_tokens = int(batch.token_lengths[index])
                assert num_tokens == alone.tokens.shape[1] == alone.token_lengths[0]
                torch.testing.assert_close(
                    batch.tokens[index, :num_tokens], alone.tokens[0], atol=2e-5, rtol=0
                )
                assert torch.isfinite(batch.tokens).all()


def test_silence_gives_finite_tokens_and_the_known_floor():
    model = tiny_model()

    output = model(torch.zeros(2, 16_000), torch.tensor([16_000, 1]))

    assert torch.isfinite(output.tokens).all()
    floor = torch.full((1, 98, 128), -2.3917)
    torch.testing.assert_close(model.fbank(torch.zeros(1, 16_000)), floor, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_leaves_the_filterbank_alone(dtype):
    model = tiny_model()
    loud = noise(2, 32_000).sign()  # full scale: overflows a float16 power spectrum

    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        fbank = model.fbank(loud)
        tokens = model(loud, torch.tensor([32_000, 9_000])).tokens

    assert torch.equal(fbank, model.fbank(loud))
    assert fbank.dtype == torch.float32
    assert torch.isfinite(tokens).all()
    torch.testing.assert_close(tokens[:1].float(), model(loud[:1]).tokens, atol=0.15, rtol=0)


@pytest.mark.parametrize("layer_drop", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_gets_a_gradient(layer_drop, dtype):
    model = tiny_model(encoder_layerdrop=layer_drop, encoder_layers=4).train()

    for seed in range(3):  # a layer that is dropped has a gradient of zero, not none
        torch.manual_seed(seed)
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            tokens = model(noise(2, 16_000), torch.tensor([16_000, 8_000])).tokens
        tokens.float().pow(2).mean().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert missing == []


def test_without_layer_drop_no_gradient_is_zero():
    model = tiny_model().train()
    weights = noise(1, 48 * 32).view(1, 48, 32)  # a loss that a layer norm cannot flatten

    (model(noise(1, 16_000)).tokens * weights).sum().backward()

    zero = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias that all keys share moves every score of a query alike: softmax cannot see it.
    assert [name for name in zero if not name.endswith("k_proj.bias")] == []


def test_layer_drop_and_dropout_are_off_in_evaluation():
    model = tiny_model(encoder_layerdrop=0.5, dropout=0.5, dropout_input=0.5, attention_dropout=0.5)

    first, second = (model(noise(1, 8_000)).tokens for _ in range(2))

    assert torch.equal(first, second)


def test_a_model_can_be_deep_copied():
    model = tiny_model()

    twin = copy.deepcopy(model)

    assert torch.equal(twin(noise(1, 8_000)).tokens, model(noise(1, 8_000)).tokens)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (BEATs, 90_311_792),
        (AcousticTokenizer, 91_624_560),
        (
            lambda: BEATs(
                Architecture(
                    encoder_layers=24,
                    encoder_embed_dim=1024,
                    encoder_ffn_embed_dim=4096,
                    encoder_attention_heads=16,
                )
            ),
            311_376_576,
        ),
        (
            lambda: BEATsClassifier(
                BEATs(), ClassifierHead(768, 527), [str(index) for index in range(527)], "sigmoid"
            ),
            90_717_055,
        ),
    ],
    ids=["base", "tokenizer", "large", "fine-tuned"],
)
def test_parameter_counts_are_those_of_the_released_models(build, count):
    with torch.device("meta"):
        model = build()

    # The original's codebook is made of parameters without gradient; here they are buffers.
    codebook = [b for name, b in model.named_buffers() if name.startswith("quantize.embedding.")]
    counted = [*model.parameters(), *(b for b in codebook if b.numel() > 1)]
    assert sum(tensor.numel() for tensor in counted) == count


def test_initial_weights_follow_deepnorm():
    torch.manual_seed(0)
    layer = BEATs(Architecture(encoder_layers=2)).encoder.layers[0]
    beta = (8 * 2) ** -0.25

    for name, gain in [("q_proj", 1), ("k_proj", 1), ("v_proj", beta), ("out_proj", beta)]:
        linear = getattr(layer.self_attn, name)
        assert linear.weight.std().item() == pytest.approx(
            gain * (2 / (768 + 768)) ** 0.5, rel=0.02
        )
        assert not linear.bias.any()
    assert layer.fc1.weight.std().item() == pytest.approx(
        beta * (2 / (768 + 3072)) ** 0.5, rel=0.02
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(16_000),), "batch dimension"),
        ((torch.zeros(1, 0),), "expected waveforms"),
        ((torch.zeros(2, 4000), torch.tensor([4000])), "one length per clip"),
        ((torch.zeros(1, 4000), torch.tensor([4001])), "1..4000 samples"),
        ((torch.zeros(1, 4000), torch.tensor([0])), "1..4000 samples"),
    ],
)
def test_wrong_shapes_and_lengths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        tiny_model()(*arguments)


def test_a_mask_that_leaves_a_clip_no_token_is_refused():
    model = tiny_model()

    with pytest.raises(ValueError, match="needs a real token"):
        model.encode_fbank(torch.zeros(1, 32, 128), token_padding_mask=torch.ones(1, 16) > 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder_embed_dim": 100, "encoder_attention_heads": 3},
        {"encoder_embed_dim": 24, "encoder_attention_heads": 2},
        {"input_patch_size": 15},
        {"layer_norm_first": True},
        {"activation_fn": "glu"},
        {"num_buckets": 2},
    ],
)
def test_an_impossible_architecture_is_refused_at_once(fields):
    with pytest.raises(ValueError, match="not a BEATs architecture"):
        Architecture(**fields)
