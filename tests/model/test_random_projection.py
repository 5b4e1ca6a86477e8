"""The random projection: the same codes for the same seed, wherever, and a codebook that is used."""

import subprocess
import sys

import pytest
import torch

from beats_trainer import load_tokenizer
from beats_trainer.audio import load_audio
from beats_trainer.checkpoints.folder import save_model
from beats_trainer.model import Architecture, RandomProjectionTokenizer
from beats_trainer.pretraining import CodeUsage

PROJECTIONS = ["normalized", "best-rq", "espnet", "paper"]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_codes_follow_from_the_seed_alone(projection):
    waveforms = noise(2, 16_000)
    torch.manual_seed(1)
    before = torch.get_rng_state()

    one, same, other = (
        RandomProjectionTokenizer(num_codes=64, projection=projection, seed=seed).encode(waveforms)
        for seed in (3, 3, 4)
    )

    assert torch.equal(one.codes, same.codes)
    assert not torch.equal(one.codes, other.codes)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_gives_the_same_codes():
    program = (
        "import torch; from beats_trainer.model import RandomProjectionTokenizer as T;"
        "w = torch.sin(torch.arange(16_000) / 7.0)[None];"
        "print(T(num_codes=64, seed=5).encode(w).codes.tolist())"
    )
    waveform = torch.sin(torch.arange(16_000) / 7.0)[None]

    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    ours = RandomProjectionTokenizer(num_codes=64, seed=5).encode(waveform).codes
    assert found.stdout.strip() == str(ours.tolist())


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_clips_codes_are_the_same_alone_and_padded_in_a_batch(projection):
    tokenizer = RandomProjectionTokenizer(num_codes=64, projection=projection)
    clip = noise(1, 20_000)
    padded = torch.cat(
        [torch.cat([clip, torch.full((1, 12_000), 9.0)], dim=1), noise(1, 32_000, seed=1)]
    )

    alone = tokenizer.encode(clip)
    together = tokenizer.encode(padded, torch.tensor([20_000, 32_000]))

    length = int(alone.token_lengths[0])
    assert together.token_lengths.tolist() == [
        length,
        int(tokenizer.encode(padded).token_lengths[1]),
    ]
    assert torch.equal(together.codes[0, :length], alone.codes[0])


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_it_is_stored_and_loaded_like_any_tokenizer(projection, tmp_path):
    architecture = Architecture(fbank_mean=12.0, fbank_std=5.0)
    tokenizer = RandomProjectionTokenizer(architecture, 32, 8, projection, seed=9)

    save_model(tokenizer, tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")

    assert isinstance(loaded, RandomProjectionTokenizer)
    assert loaded.settings() == tokenizer.settings()
    assert loaded.architecture == architecture
    waveforms = noise(2, 16_000)
    assert torch.equal(loaded.encode(waveforms).codes, tokenizer.encode(waveforms).codes)
    assert "Nothing of it was trained" in (tmp_path / "tokenizer" / "README.md").read_text()


def test_a_tokenizer_is_never_rounded_on_disk(tmp_path):
    with pytest.raises(ValueError, match="gives other codes"):
        save_model(RandomProjectionTokenizer(), tmp_path / "tokenizer", dtype=torch.float16)

    assert not (tmp_path / "tokenizer").exists()


def test_mixed_precision_changes_no_code():
    tokenizer = RandomProjectionTokenizer()
    waveforms = noise(2, 32_000)
    expected = tokenizer.encode(waveforms).codes

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(waveforms).codes, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_cast_to_another_number_format_changes_no_code(projection, dtype):
    tokenizer = RandomProjectionTokenizer(num_codes=64, projection=projection)
    waveforms = noise(2, 16_000)
    expected = tokenizer.encode(waveforms).codes

    torch.nn.ModuleList([tokenizer]).to(dtype)  # as part of a trainer's module

    assert torch.equal(tokenizer.encode(waveforms).codes, expected)
    assert {buffer.dtype for buffer in tokenizer.buffers()} == {torch.float32}
    assert tokenizer.to("meta").codes.is_meta  # devices are followed


def test_the_level_of_a_sound_changes_no_code_of_the_default():
    tokenizer = RandomProjectionTokenizer()
    waveform = noise(1, 32_000)

    quiet, loud = tokenizer.encode(waveform * 0.1), tokenizer.encode(waveform)

    assert (
        quiet.codes == loud.codes
    ).float().mean() > 0.98  # but for the floor of the empty mel band


def test_a_projection_that_is_none_is_refused():
    with pytest.raises(ValueError, match="normalized, best-rq, espnet, paper"):
        RandomProjectionTokenizer(projection="whitened")


def test_the_default_uses_its_codes_on_real_sound_and_the_papers_formula_does_not(shared_data):
    files = sorted((shared_data / "esc10" / "audio").rglob("*.ogg"))[::5]
    waveforms = [torch.from_numpy(load_audio(file))[None] for file in files]

    perplexity = {}
    for projection in ("normalized", "paper"):
        tokenizer = RandomProjectionTokenizer(projection=projection)
        codes = torch.cat([tokenizer.encode(waveform).codes[0] for waveform in waveforms])
        perplexity[projection] = CodeUsage.of(codes.bincount(minlength=1024)).perplexity

    assert perplexity["normalized"] > 100
    assert perplexity["paper"] < 20
