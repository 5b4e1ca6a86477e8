"""How much work it is, counted and not timed: forward passes, tokens, padding, copies, products, waits.

A change that costs speed shows here on any machine, busy or not.
"""

import contextlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from beats_trainer import BEATsFeatureExtractor, BEATsModel
from beats_trainer.audio import probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.embeddings import encode
from beats_trainer.embeddings.batch_size import BatchLimit, batch_limit, check_batch_size
from beats_trainer.embeddings.encode import encode_clips, encode_stream
from beats_trainer.embeddings.encoder import Encoder, _Launched
from beats_trainer.embeddings.pieces import Work
from beats_trainer.model import Architecture, AttentivePooling, BEATs, packed
from checkpoint_files import tiny_architecture

needs_onednn = pytest.mark.skipif(
    not packed._multiplies_packed(torch.float32), reason="needs torch's oneDNN products (x86)"
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return BEATs(tiny_architecture()).eval()


@pytest.fixture
def launched(monkeypatch):
    """Note how many tokens each clip of a batch has, and compute nothing."""
    batches = []

    def launch(encoder, waveforms):
        tokens = [encoder.count_tokens(len(waveform)) for waveform in waveforms]
        batches.append(tokens)
        return _Launched(torch.zeros(1, len(waveforms), encoder.width), tokens)

    monkeypatch.setattr(Encoder, "_launch", launch)
    return batches


def padding_share(batches):
    computed = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / computed


def encode_all(lengths, batch_size, windows_per_group=512):
    """Through the engine, in groups as a store's shards are."""
    encoder = Encoder(BEATs(tiny_architecture(encoder_embed_dim=768)))  # batches of the base model
    work = (
        Work(np.zeros(length, np.float32), index // windows_per_group)
        for index, length in enumerate(lengths)
    )
    for _ in encode_stream(encoder, work, batch_size, num_threads=1):
        pass


def spoken_digits(num_clips, random):
    """Lengths as those of FSDD: half of them below 0.42 s, the longest 2.3 s."""
    seconds = np.clip(random.lognormal(np.log(0.42), 0.3, num_clips), 0.14, 2.28)
    return (seconds * SAMPLE_RATE).astype(int)


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("num_long", [0, 120])
def test_a_ragged_set_wastes_less_than_a_tenth_on_padding_in_few_batches(
    num_long, batch_size, launched
):
    random = np.random.default_rng(0)
    lengths = np.concatenate([spoken_digits(900, random), np.full(num_long, 5 * SAMPLE_RATE)])

    encode_all(random.permutation(lengths), batch_size)

    assert sum(map(len, launched)) == len(lengths)
    assert padding_share(launched) < 0.06
    if batch_size is None:
        assert len(launched) < 15 + 1.3 * num_long / 8


@pytest.mark.parametrize("batch_size", [None, 16])
def test_spoken_digits_among_clips_of_5_s_waste_less_than_a_tenth_on_padding(
    shared_data, batch_size, launched
):
    files = [*(shared_data / "fsdd").rglob("*.wav"), *(shared_data / "esc10").rglob("*.ogg")]
    seconds = [probe_audio(str(file)).duration_s for file in sorted(files)]
    assert len(seconds) > 3_000
    lengths = np.random.default_rng(0).permutation(np.round(np.array(seconds) * SAMPLE_RATE))

    encode_all(lengths.astype(int), batch_size)

    assert padding_share(launched) < 0.1


def test_work_grows_linearly_with_the_length_of_a_recording(launched):
    passes, tokens = [], []
    minutes = [1, 10, 60]
    for minute in minutes:
        launched.clear()
        encode_all([minute * 60 * SAMPLE_RATE], None)
        passes.append(len(launched) / minute)
        tokens.append(sum(len(batch) * max(batch) for batch in launched) / minute)

    assert max(tokens) < 1.02 * min(tokens)
    assert max(passes) <= min(passes) + 1
    assert max(tokens) < 60 * 50 * 1.01  # 50 tokens per second of sound, and hardly one more


def test_a_clip_goes_through_the_network_once(network, monkeypatch):
    seen = []
    forward = BEATs.forward

    def counted(self, waveforms, *arguments, **options):
        seen.append(len(waveforms))
        return forward(self, waveforms, *arguments, **options)

    monkeypatch.setattr(BEATs, "forward", counted)

    encode_clips(network, [np.ones(8_000, np.float32)] * 100, precision="float32")

    assert sum(seen) == 100
    assert len(seen) == 1  # a batch is counted in tokens: short clips come in large ones


class Device(TorchDispatchMode):
    """Makes torch's meta device a GPU that computes nothing: looking at a value there is an error, and what
    is copied to it and back is counted."""

    def __init__(self):
        super().__init__()
        self.bytes_in = 0
        self.copies_back = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moves = (torch.ops.aten.to.dtype_layout, torch.ops.aten._to_copy.default)
        if operator in moves and kwargs.get("device") is not None:
            source, target = args[0].device.type, torch.device(kwargs["device"]).type
            if (source, target) == ("meta", "cpu"):
                self.copies_back.append(tuple(args[0].shape))
                return torch.ones(args[0].shape, dtype=args[0].dtype)
            if (source, target) == ("cpu", "meta"):
                self.bytes_in += args[0].numel() * args[0].element_size()
        return operator(*args, **kwargs)


@pytest.fixture
def on_device(monkeypatch):
    autocast = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, **options: (
            contextlib.nullcontext() if kind == "meta" else autocast(kind, **options)
        ),
    )
    return BEATs(tiny_architecture()).eval().to("meta")


POOLINGS = {
    "mean": {},
    "max": {"pooling": "max"},
    "last": {"pooling": "last"},
    "every token": {"pooling": "none"},
    "per step": {"per_step": True},
    "some layers": {"layer": (0, -1)},
    "learned": {"pooling": "attentive"},
    "learned, per step": {"pooling": "attentive", "per_step": True},
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_waits_for_the_device_once_to_bring_its_results_back(on_device, pooling):
    options = dict(POOLINGS[pooling])
    if options.get("pooling") == "attentive":
        options["pooling"] = AttentivePooling.for_architecture(on_device.architecture).to("meta")
    encoder = Encoder(on_device, precision="float32", **options)
    clips = [np.ones(length, np.float32) for length in (32_000, 31_000, 20_000, 500)]

    with Device() as device, encoder.evaluating():
        parts = encoder.encode_batch(clips).parts()

    assert len(device.copies_back) == 1
    assert [part.num_tokens for part in parts] == [96, 96, 56, 8]


def test_a_gpu_is_given_the_next_batch_before_the_last_ones_results_are_waited_for():
    events = []

    def encode_batch(waveforms):
        name = len(waveforms[0])
        events.append(f"launch {name}")
        return name

    def order_on(kind):
        events.clear()
        encoder = SimpleNamespace(device=torch.device(kind), encode_batch=encode_batch)
        batches = ([(index, np.zeros(index))] for index in range(3))
        for numbers, encoding in encode._one_ahead(encoder, batches):
            assert numbers == [encoding]
            events.append(f"wait {encoding}")
        return events.copy()

    assert order_on("cuda") == [
        *("launch 0", "launch 1", "wait 0", "launch 2", "wait 1", "wait 2"),
    ]
    assert order_on("cpu") == [
        *("launch 0", "wait 0", "launch 1", "wait 1", "launch 2", "wait 2"),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_a_gpu_gives_the_embeddings_of_the_cpu(network, pooling):
    random = np.random.default_rng(0)
    lengths = (*spoken_digits(50, random), 80_000, 700_000)
    clips = [random.standard_normal(length).astype(np.float32) for length in lengths]

    def embed(device):
        return encode_clips(
            network.to(device), clips, pooling=pooling, precision="float32", progress=False
        ).embeddings

    try:
        for found, expected in zip(embed("cuda"), embed("cpu"), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-3)
    finally:
        network.to("cpu")


def test_the_device_is_given_the_waveforms_and_nothing_else_of_size(on_device):
    clips = [np.ones(80_000, np.float32)] * 12
    encoder = Encoder(on_device, precision="float32")

    with Device() as device, encoder.evaluating():
        encoder.encode_batch(clips).parts()

    assert device.bytes_in < 1.01 * 12 * 80_000 * 4  # 64 kB per second of sound


def test_the_device_is_real_enough_to_refuse_a_look_at_a_value(on_device):
    lengths = torch.tensor([9_000], device="meta")

    with Device(), torch.inference_mode(), pytest.raises(RuntimeError, match="meta"):
        on_device(torch.zeros(1, 9_000, device="meta"), lengths)


class Operators(TorchDispatchMode):
    """Counts operators, and those that read one of some tensors."""

    def __init__(self, watched=()):
        super().__init__()
        self.count = Counter()
        self.reading = Counter()
        self._watched = {tensor.data_ptr() for tensor in watched}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().split("::")[-1].split(".")[0]
        self.count[name] += 1
        for value in args:
            if (
                isinstance(value, torch.Tensor)
                and not value.is_mkldnn
                and value.data_ptr() in self._watched
            ):
                self.reading[name] += 1
        return operator(*args, **(kwargs or {}))


PRODUCTS = ("linear", "addmm", "mm", "bmm", "baddbmm", "_linear_pointwise")


def operators_per_layer(build, watched=lambda network: ()):
    """What a layer adds: the operators of a network with three layers less those of one with two."""
    counts = []
    for num_layers in (2, 3):
        torch.manual_seed(0)
        network = BEATs(tiny_architecture(encoder_layers=num_layers)).eval()
        ready = build(network)
        with torch.inference_mode(), Operators(watched(network)) as operators:
            ready(torch.randn(2, 8_000), torch.tensor([8_000, 4_000]))
        counts.append(operators)
    per_layer = Counter(counts[1].count)
    per_layer.subtract(counts[0].count)
    return per_layer, counts[1]


def test_a_layer_is_seven_products_of_weights_and_two_of_attention_at_most():
    per_layer, _ = operators_per_layer(lambda network: network)

    assert 0 < sum(per_layer[name] for name in PRODUCTS) <= 9


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_four_products_of_weights_and_two_of_attention(dtype):
    def pack(network):
        return packed.pack_for_inference(network, dtype)

    def weights(network):
        return [
            parameter
            for name, parameter in network.encoder.named_parameters()
            if parameter.ndim == 2 and "relative_attention" not in name
        ]

    per_layer, operators = operators_per_layer(pack, weights)

    assert per_layer["_linear_pointwise"] == 4
    assert sum(per_layer[name] for name in PRODUCTS) == 6
    assert operators.reading == {}  # no weight is cast or looked at in a call: all is packed


@needs_onednn
def test_a_network_is_packed_once_for_all_calls_of_a_process(monkeypatch):
    calls = []
    pack = packed.pack_for_inference

    def counted(network, dtype):
        calls.append(dtype)
        return pack(network, dtype)

    monkeypatch.setattr(packed, "pack_for_inference", counted)
    model = BEATsModel(tiny_architecture())

    for pooling in ("mean", "max"):
        extractor = BEATsFeatureExtractor(model, "cpu", pooling=pooling, precision="float32")
        for _ in range(3):
            extractor.extract_from_array(np.ones(8_000, np.float32))

    assert calls == [torch.float32]


def test_the_chosen_batch_suits_the_device_and_the_network(monkeypatch):
    base, cpu, gpu = Architecture(), torch.device("cpu"), torch.device("cuda")
    free = [0, 2 * 2**30, 6 * 2**30, 70 * 2**30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)

    assert batch_limit(None, base, cpu).num_tokens == 2_048
    assert batch_limit("auto", tiny_architecture(), cpu).num_tokens == 8 * 2_048
    chosen = []
    while free:
        chosen.append(batch_limit(None, base, gpu).num_tokens)
        assert batch_limit(None, base, gpu, 14).num_tokens <= chosen[-1]
        free.pop(0)
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (2_048, 32_768)
    assert batch_limit(40, base, gpu) == BatchLimit(40)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "many"])
def test_a_senseless_batch_size_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1, or 'auto'"):
        check_batch_size(wrong)


def test_embeddings_do_not_depend_on_the_batch_size_that_is_chosen(network):
    random = np.random.default_rng(0)
    clips = [
        random.standard_normal(length).astype(np.float32)
        for length in (*spoken_digits(30, random), 40_000)
    ]

    chosen, one_by_one = (
        encode_clips(network, clips, batch_size=size, precision="float32", progress=False)
        for size in (None, 1)
    )

    np.testing.assert_allclose(chosen.embeddings, one_by_one.embeddings, atol=2e-5)
