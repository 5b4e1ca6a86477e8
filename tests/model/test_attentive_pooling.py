"""Attentive pooling: the plain mean at the start, real tokens only, pieces that merge to the whole."""

import math

import pytest
import torch

from beats_trainer.model import (
    BEATs,
    BEATsClassifier,
    ClassifierHead,
    pool_tokens,
)
from beats_trainer.model.pooling import AttentivePooling
from checkpoint_files import tiny_architecture


def trained_pooling(num_layers=2, width=8, num_heads=2, seed=0):
    """A pooling whose weights all act."""
    pooling = AttentivePooling(width, num_layers, num_heads)
    generator = torch.Generator().manual_seed(seed)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=2.0, generator=generator)
    return pooling


def random_layers(num_clips=1, num_tokens=5, num_layers=2, width=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    layers = torch.randn(num_layers + 1, num_clips, num_tokens, width, generator=generator)
    return layers * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None] + 3  # scales unlike


def by_hand(pooling, tokens_LTD):
    """One clip, one value after the other, as the docstring says."""
    tokens_LTD = tokens_LTD.double()
    normed = (tokens_LTD - tokens_LTD.mean(-1, keepdim=True)) / (
        tokens_LTD.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    weights = pooling.layer_weights.detach().double().exp()
    mixed = sum(w / weights.sum() * layer for w, layer in zip(weights, normed, strict=True))
    width = mixed.shape[1] // pooling.num_heads
    embedding = []
    for head in range(pooling.num_heads):
        query = pooling.scores.weight[head].detach().double()
        scores = [math.exp(float(query @ token) / math.sqrt(mixed.shape[1])) for token in mixed]
        values = mixed[:, head * width : (head + 1) * width]
        embedding.append(
            sum(s * v for s, v in zip(scores, values, strict=True)) / math.fsum(scores)
        )
    return torch.cat(embedding).float()


def test_it_computes_what_its_docstring_says():
    pooling, layers = trained_pooling(), random_layers(num_clips=3)

    pooled = pooling(layers)

    expected = torch.stack([by_hand(pooling, layers[:, clip]) for clip in range(3)])
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


def test_untrained_it_is_the_mean_over_normed_layers_and_real_tokens():
    layers = random_layers(num_clips=2)
    lengths = torch.tensor([5, 3])

    pooled = AttentivePooling(8, 2, 4)(layers, lengths)

    normed = torch.nn.functional.layer_norm(layers, (8,)).mean(dim=0)
    torch.testing.assert_close(pooled, pool_tokens(normed, lengths))


@pytest.mark.parametrize("padding", [1e4, math.nan])
def test_embedding_is_the_same_alone_and_padded_in_a_batch(padding):
    pooling, clip = trained_pooling(), random_layers()
    padded = torch.cat([clip, torch.full((3, 1, 4, 8), padding)], dim=2)
    batch = torch.cat([padded, random_layers(num_tokens=9, seed=2)], dim=1)

    in_batch = pooling(batch, torch.tensor([5, 9]))[:1]

    torch.testing.assert_close(in_batch, pooling(clip))


@pytest.mark.parametrize("cuts", [[11], [1], [3, 4, 9]])
def test_pieces_of_a_clip_merge_to_the_whole(cuts):
    pooling, layers = trained_pooling(), random_layers(num_tokens=12)
    pooling.scores.weight.data *= 20  # scores so far apart that exp of them alone would not do
    pieces = [
        pooling.partial(piece).to(torch.float64)
        for piece in torch.tensor_split(layers, cuts, dim=2)
    ]

    merged = pieces[-1]
    for piece in pieces[:-1]:  # in another order than they came
        merged = merged.merge(piece)

    torch.testing.assert_close(merged.result().float(), pooling(layers), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_softmax_attention_written_out():
    pooling, layers = trained_pooling(), random_layers(num_clips=2, num_tokens=4)
    real_BT = torch.tensor([[True] * 4, [True, True, False, False]])
    parameters = list(pooling.parameters())
    target = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))

    found = torch.autograd.grad((pooling(layers, real_BT.sum(dim=1)) * target).sum(), parameters)

    normed = torch.nn.functional.layer_norm(layers, (8,))
    mixed = torch.einsum("l,lbtd->btd", pooling.layer_weights.softmax(dim=0), normed)
    scores = (pooling.scores(mixed) / 8**0.5).masked_fill(~real_BT[..., None], -math.inf)
    values = mixed.reshape(2, 4, 2, 4)
    written_out = torch.einsum("bth,bthd->bhd", scores.softmax(dim=1), values).flatten(1)
    expected = torch.autograd.grad((written_out * target).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_it_stays_in_float32_under_autocast():
    pooling, layers = trained_pooling(), random_layers()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooling(layers)

    assert torch.equal(pooled, pooling(layers))


def test_layers_of_another_network_are_refused():
    pooling = AttentivePooling(8, 2, 2)

    with pytest.raises(ValueError, match=r"\(3, clips, tokens, 8\), got \(4, 1, 5, 8\)"):
        pooling(torch.zeros(4, 1, 5, 8))
    with pytest.raises(ValueError, match=r"1\.\.5"):
        pooling(torch.zeros(3, 1, 5, 8), torch.tensor([6]))
    with pytest.raises(ValueError, match="must divide"):
        AttentivePooling(8, 2, 3)


# --- in a classifier ---------------------------------------------------------------------------------------


def attentive_classifier(**changes):
    torch.manual_seed(0)
    beats = BEATs(tiny_architecture(encoder_layerdrop=0.5, dropout=0.5, **changes))
    pooling = AttentivePooling.for_architecture(beats.architecture)
    torch.nn.init.normal_(pooling.scores.weight, std=3.0)
    torch.nn.init.normal_(pooling.layer_weights)
    return BEATsClassifier(
        beats, ClassifierHead(32, 2), ["a", "b"], pooling="attentive", attentive_pooling=pooling
    )


def test_a_classifier_reads_all_layers_of_real_tokens_through_it():
    classifier = attentive_classifier().eval()
    waveforms = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9000, 5000])

    output = classifier(waveforms, lengths)

    tokens = classifier.beats(waveforms, lengths, output_layers=True)
    expected = classifier.attentive_pooling(tokens.layers, tokens.token_lengths)
    assert torch.equal(output.embeddings, expected)
    alone = classifier(waveforms[1:, :5000]).embeddings
    torch.testing.assert_close(output.embeddings[1:], alone, atol=1e-5, rtol=1e-5)
    assert classifier.clip_pooling is classifier.attentive_pooling


def test_pooling_and_its_module_go_together():
    beats, head = BEATs(tiny_architecture()), ClassifierHead(32, 2)
    pooling = AttentivePooling.for_architecture(beats.architecture)

    with pytest.raises(ValueError, match="'attentive' without"):
        BEATsClassifier(beats, head, ["a", "b"], pooling="attentive")
    with pytest.raises(ValueError, match="'mean' with"):
        BEATsClassifier(beats, head, ["a", "b"], attentive_pooling=pooling)
    with pytest.raises(ValueError, match="made for 3 layers of width 32"):
        BEATsClassifier(
            beats,
            head,
            ["a", "b"],
            pooling="attentive",
            attentive_pooling=AttentivePooling(32, 3, 4),
        )


def test_a_frozen_backbone_stays_as_it_is_while_the_rest_trains():
    classifier = attentive_classifier().freeze_backbone().train()
    waveforms = torch.randn(2, 6000, generator=torch.Generator().manual_seed(1))

    outputs = [classifier(waveforms) for _ in range(2)]
    outputs[0].logits.sum().backward()

    assert classifier.training
    assert classifier.head.training
    assert not any(module.training for module in classifier.beats.modules())
    assert torch.equal(outputs[0].embeddings, outputs[1].embeddings)  # no dropout, no layer drop
    with_gradient = {name for name, p in classifier.named_parameters() if p.grad is not None}
    assert with_gradient == {
        "attentive_pooling.layer_weights",
        "attentive_pooling.scores.weight",
        "head.layers.1.weight",
        "head.layers.1.bias",
    }


def test_a_backbone_can_be_thawed():
    classifier = attentive_classifier().freeze_backbone().train().unfreeze_backbone()

    assert all(module.training for module in classifier.modules())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
