"""Augmentation changes clips as its settings say, from the seed alone, and leaves its inputs as they are."""

import random

import numpy as np
import pytest
import soundfile
import torch

from beats_trainer.errors import AudioError, AudioNotFoundError
from beats_trainer.loading import BackgroundLibrary, WaveformAugmentation
from beats_trainer.loading.background import mix_at_snr
from sounds import tone, write_tone


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(lengths=(800, 500, 300, 650), num_classes=3):
    """Noise clips with zero padding, and one-hot targets."""
    lengths = torch.tensor(lengths)
    waveforms = torch.randn(len(lengths), int(lengths.max()), generator=seeded(7))
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = 0
    ids = torch.arange(len(lengths)) % num_classes
    return waveforms, lengths, torch.nn.functional.one_hot(ids, num_classes).float()


def shout(samples, sample_rate):
    return samples * (2 + random.random() + np.random.rand() + torch.rand(()).item())


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    write_tone(folder / "b" / "long.wav", seconds=3.0, frequency=1000)
    write_tone(folder / "a.flac", seconds=0.01, frequency=300, sample_rate=44_100)
    return BackgroundLibrary(folder)


def everything(library, **changes):
    settings = {
        "gain_db": 6.0,
        "roll": True,
        "polarity": True,
        "mixup_alpha": 0.8,
        "mixup_probability": 0.7,
        "background": library,
        "custom": shout,
    }
    return WaveformAugmentation(**(settings | changes))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(library):
    augment = everything(library)

    first, again, other = (augment(*batch(), seeded(seed)) for seed in (3, 3, 4))

    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[0], other[0])


def test_other_generators_are_neither_read_nor_moved(library):
    augment = everything(library)
    expected = augment(*batch(), seeded())[0]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)

    result = augment(*batch(), seeded())[0]

    assert torch.equal(result, expected)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == before


def test_inputs_stay_as_they_are_and_padding_stays_zero(library):
    inputs = batch()
    kept = [tensor.clone() for tensor in inputs]

    waveforms, lengths, _ = everything(library)(*inputs, seeded())

    for tensor, copy in zip(inputs, kept, strict=True):
        assert torch.equal(tensor, copy)
    for row, length in zip(waveforms, lengths, strict=True):
        assert not row[length:].any()
        assert row[:length].any()


@pytest.mark.parametrize("custom", [None, shout])
def test_what_follows_a_clips_end_never_gets_into_it(library, custom):
    waveforms, lengths, targets = batch()
    dirty = waveforms.clone()
    for row, length in zip(dirty, lengths, strict=True):
        row[length:] = torch.nan

    clean = everything(library, custom=custom)(waveforms, lengths, targets, seeded())
    result = everything(library, custom=custom)(dirty, lengths, targets, seeded())

    assert torch.equal(result[0], clean[0])


def test_turning_one_step_off_leaves_the_draws_of_the_others(library):
    inputs = batch()
    kwargs = {"custom": None, "background": None, "mixup_alpha": 0.0}

    both = everything(library, **kwargs)(*inputs, seeded())[0]
    without_gain = everything(library, **kwargs, gain_db=0.0)(*inputs, seeded())[0]

    ratios = (both / without_gain).nanmean(dim=1, keepdim=True)
    torch.testing.assert_close(both, without_gain * ratios)


def test_without_settings_nothing_is_changed():
    inputs = batch()
    augment = WaveformAugmentation()

    assert augment.is_identity
    assert all(one is two for one, two in zip(augment(*inputs, seeded()), inputs, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"gain_db": 1.0},
        {"roll": True},
        {"polarity": True},
        {"mixup_alpha": 0.1},
        {"custom": shout},
    ],
)
def test_each_setting_alone_changes_clips(settings):
    inputs = batch()
    augment = WaveformAugmentation(**settings)

    assert not augment.is_identity
    assert not torch.equal(augment(*inputs, seeded())[0], inputs[0])


@pytest.mark.parametrize("settings", [{"mixup_probability": 0.0}, {"background_probability": 0.0}])
def test_a_probability_of_zero_is_the_identity(library, settings):
    which = {"mixup_alpha": 0.8} if "mixup_probability" in settings else {"background": library}

    assert WaveformAugmentation(**which, **settings).is_identity


def test_gain_is_uniform_between_its_bounds():
    inputs = torch.ones(4000, 1), torch.ones(4000, dtype=torch.long), torch.ones(4000, 1)

    changed, _, _ = WaveformAugmentation(gain_db=6.0)(*inputs, seeded())

    gains_db = 20 * changed.log10()
    assert -6 <= gains_db.min() < -5.9
    assert 5.9 < gains_db.max() <= 6
    assert abs(gains_db.mean()) < 0.2
    assert abs(gains_db.std() - 12 / 12**0.5) < 0.1


def test_rolling_turns_each_clip_over_its_real_length():
    lengths = torch.tensor([7, 4] * 200)
    waveforms = (torch.arange(1, 8.0) * (torch.arange(7) < lengths[:, None])).clone()

    rolled, _, _ = WaveformAugmentation(roll=True)(waveforms, lengths, torch.ones(400, 1), seeded())

    for row, length in zip(rolled.int().tolist(), lengths.tolist(), strict=True):
        start = row[0]
        expected = [(start - 1 + n) % length + 1 for n in range(length)]
        assert row == expected + [0] * (7 - length)
    assert set(rolled[::2, 0].int().tolist()) == set(range(1, 8))
    assert set(rolled[1::2, 0].int().tolist()) == set(range(1, 5))


def test_polarity_turns_half_of_the_clips():
    inputs = torch.ones(1000, 2), torch.full((1000,), 2), torch.ones(1000, 1)

    changed, _, _ = WaveformAugmentation(polarity=True)(*inputs, seeded())

    assert set(changed.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert 430 < (changed[:, 0] < 0).sum() < 570


@pytest.mark.parametrize("seed", range(5))
def test_mixup_mixes_waveforms_and_targets_by_the_same_shares(seed):
    # Clip i is the i-th unit vector as a sound too: the mixture shows who was mixed, and how much.
    num_clips = 6
    eye = torch.eye(num_clips)
    lengths = torch.full((num_clips,), num_clips)

    waveforms, _, targets = WaveformAugmentation(mixup_alpha=0.8)(eye, lengths, eye, seeded(seed))

    torch.testing.assert_close(waveforms, targets)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(num_clips))
    own = targets.diagonal()
    assert ((targets > 0).sum(dim=1) == 2).all()  # nobody is mixed with itself
    assert (((targets - torch.diag(own)) > 0).sum(dim=0) == 1).all()
    assert len(own.unique()) == num_clips  # each clip has a share of its own


def test_shares_follow_the_beta_distribution():
    num_clips = 20_000
    ids = torch.arange(num_clips) % 2
    targets = torch.stack([torch.ones(num_clips), ids.float()], dim=1)
    shares = []
    for alpha in (0.4, 2.0):
        augment = WaveformAugmentation(mixup_alpha=alpha)
        lam = augment(
            torch.arange(1.0, num_clips + 1)[:, None].double(),
            torch.ones(num_clips, dtype=torch.long),
            targets,
            seeded(),
        )[2][:, 1]
        shares.append(lam[(lam > 0) & (lam < 1)])

    for alpha, lam in zip((0.4, 2.0), shares, strict=True):
        assert abs(lam.mean() - 0.5) < 0.02
        assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_mixup_probability_is_the_share_of_mixed_clips():
    num_clips = 2000
    ids = torch.arange(num_clips)
    inputs = torch.ones(num_clips, 1), torch.ones(num_clips, dtype=torch.long)
    targets = torch.nn.functional.one_hot(ids, num_clips).float()

    _, _, mixed = WaveformAugmentation(mixup_alpha=1.0, mixup_probability=0.8)(
        *inputs, targets, seeded()
    )

    assert 1540 < ((mixed > 0).sum(dim=1) == 2).sum() < 1660


def test_a_clip_mixed_with_a_longer_one_has_its_length():
    waveforms, lengths, targets = batch((400, 100))

    mixed, new_lengths, _ = WaveformAugmentation(mixup_alpha=1.0)(
        waveforms, lengths, targets, seeded()
    )

    assert new_lengths.tolist() == [400, 400]
    assert mixed[1, 100:].any()


def test_an_unknown_target_makes_the_mixture_unknown_and_no_unmixed_clip():
    waveforms, lengths, targets = batch((50,) * 40)
    targets[0, 1] = torch.nan
    augment = WaveformAugmentation(mixup_alpha=1.0, mixup_probability=0.5)

    mixed_into, stayed = 0, 0
    for seed in range(30):
        result = augment(waveforms, lengths, targets, seeded(seed))[2]
        changed = ~(result == targets).all(dim=1) & ~result.isnan().any(dim=1)
        unknown = result.isnan()
        assert unknown[0, 1]
        assert unknown.sum() <= 2  # itself, and whoever is mixed with it
        assert not unknown[:, [0, 2]].any()
        mixed_into += int(unknown.sum() == 2)
        stayed += int(unknown.sum() == 1)
        assert changed.any()
    assert mixed_into > 5
    assert stayed > 5


def test_a_batch_of_one_clip_is_not_mixed():
    inputs = batch((100,))

    result = WaveformAugmentation(mixup_alpha=1.0)(*inputs, seeded())

    assert torch.equal(result[0], inputs[0])
    assert torch.equal(result[2], inputs[2])


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
def test_the_measured_snr_is_the_one_that_was_asked_for(library, snr_db):
    waveforms, lengths, targets = batch((8000, 3000))
    augment = WaveformAugmentation(
        background=library, background_snr_db=(snr_db, snr_db), background_probability=1.0
    )

    noisy, _, same = augment(waveforms, lengths, targets, seeded())

    assert torch.equal(same, targets)
    for clip, mixed, length in zip(waveforms, noisy, lengths, strict=True):
        added = (mixed - clip)[:length].double()
        measured = 10 * torch.log10(clip[:length].double().square().mean() / added.square().mean())
        assert abs(measured - snr_db) < 0.1


def test_snr_lies_between_its_bounds_and_background_has_its_probability(library):
    waveforms = torch.randn(400, 200, generator=seeded(1))
    lengths = torch.full((400,), 200)
    augment = WaveformAugmentation(
        background=library, background_snr_db=(3.0, 9.0), background_probability=0.25
    )

    added = augment(waveforms, lengths, torch.ones(400, 1), seeded())[0] - waveforms

    has_noise = added.abs().amax(dim=1) > 0
    assert 70 < has_noise.sum() < 130
    power = waveforms[has_noise].square().mean(dim=1) / added[has_noise].square().mean(dim=1)
    ratios = 10 * power.log10()
    assert 2.9 < ratios.min() < 4
    assert 8 < ratios.max() < 9.1


def test_silence_on_either_side_is_left_as_it_is():
    faint = torch.full((100,), 1e-9)  # far below the last bit of any recording
    clips = torch.stack([torch.zeros(100), torch.ones(100), faint, torch.ones(100)])
    noise = torch.stack([torch.ones(100), torch.zeros(100), torch.ones(100), faint])

    mixed = mix_at_snr(clips, noise, torch.full((4,), 100), torch.full((4,), 10.0))

    assert torch.equal(mixed, clips)


def test_custom_gets_the_real_samples_and_may_change_their_number():
    seen = []

    def stretch(samples, sample_rate):
        seen.append((samples.dtype, len(samples), sample_rate))
        samples[:] = 0  # a library that works in place harms nothing
        return np.ones(len(samples) * 2)

    inputs = batch((30, 10))
    kept = inputs[0].clone()

    waveforms, lengths, _ = WaveformAugmentation(custom=stretch)(*inputs, seeded())

    assert seen == [(np.float32, 30, 16_000), (np.float32, 10, 16_000)]
    assert lengths.tolist() == [60, 20]
    assert waveforms.dtype == torch.float32
    assert waveforms.sum(dim=1).tolist() == [60, 20]
    assert torch.equal(inputs[0], kept)


@pytest.mark.parametrize(
    ("returned", "said"),
    [(np.ones((1, 5)), r"shape \(1, 5\)"), (np.ones(0), r"shape \(0,\)"), ([np.inf], "NaN")],
)
def test_custom_that_returns_no_sound_is_an_error(returned, said):
    with pytest.raises(ValueError, match=rf"clip 0 of the batch it returned an array with {said}"):
        WaveformAugmentation(custom=lambda samples, rate: returned)(*batch(), seeded())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gain_db": -1.0}, "gain_db must be a number of at least 0"),
        ({"mixup_alpha": float("nan")}, "mixup_alpha"),
        ({"mixup_probability": 1.5}, "mixup_probability must be from 0 to 1"),
        ({"background_probability": -0.1}, "background_probability"),
        ({"background_snr_db": (20.0, 5.0)}, "lowest and the highest ratio"),
        ({"background_snr_db": (5.0,)}, "lowest and the highest ratio"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        WaveformAugmentation(**settings)


def test_batches_that_do_not_fit_are_refused():
    waveforms, lengths, targets = batch()
    augment = WaveformAugmentation(roll=True)

    for wrong, said in (
        ((waveforms[0], lengths, targets), "waveforms of shape"),
        ((waveforms, lengths[:2], targets), r"lengths of shape \(4,\)"),
        ((waveforms, lengths * 0, targets), r"must lie in 1..800"),
        ((waveforms, lengths, torch.arange(4)), "one_hot"),
        ((waveforms, lengths, targets.long()), "one_hot"),
    ):
        with pytest.raises(ValueError, match=said):
            augment(*wrong, seeded())


def test_a_part_of_a_long_recording_is_what_the_recording_has_there(tmp_path, monkeypatch):
    ramp = np.linspace(-0.5, 0.5, 20_000, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 16_000, subtype="FLOAT")
    kept = BackgroundLibrary(tmp_path)
    monkeypatch.setattr("beats_trainer.loading.background._KEPT_FILE_S", 0.5)
    read = BackgroundLibrary(tmp_path)

    for seed in range(5):
        part = read.draw(1000, seeded(seed))
        start = int(np.argmin(np.abs(ramp - part[0].item())))
        np.testing.assert_array_equal(part, ramp[start : start + 1000])
    monkeypatch.setattr("beats_trainer.loading.background._KEPT_FILE_S", 60.0)

    assert torch.equal(kept.draw(1000, seeded(4)), part)  # kept in memory or not: the same


@pytest.mark.parametrize("kept_s", [60.0, 0.0])
def test_a_recording_that_is_too_short_is_repeated_in_a_circle(tmp_path, monkeypatch, kept_s):
    monkeypatch.setattr("beats_trainer.loading.background._KEPT_FILE_S", kept_s)
    soundfile.write(tmp_path / "r.wav", np.arange(5, dtype=np.float32) / 8, 16_000, subtype="FLOAT")

    part = (BackgroundLibrary(tmp_path).draw(13, seeded()) * 8).int().tolist()

    assert part == [(part[0] + n) % 5 for n in range(13)]


def test_every_recording_and_every_place_is_drawn(tmp_path):
    for number in range(3):
        sound = (np.arange(4) + 4 * number).astype(np.float32) / 16
        soundfile.write(tmp_path / f"{number}.wav", sound, 16_000, subtype="FLOAT")
    library, generator = BackgroundLibrary(tmp_path, cache_s=5 / 16_000), seeded()

    drawn = {int(library.draw(2, generator)[0] * 16) for _ in range(300)}

    assert drawn == {0, 1, 2, 4, 5, 6, 8, 9, 10}
    assert sum(map(len, library._kept.values())) <= 5


def test_recordings_are_found_in_folders_below_sorted_and_without_hidden_ones(tmp_path):
    for name in ("z.wav", "b/a.flac", ".hidden/x.wav", "b/.x.wav"):
        write_tone(tmp_path / name, seconds=0.1)
    (tmp_path / "notes.txt").write_text("no sound")

    library = BackgroundLibrary(tmp_path)

    assert library.files == [str(tmp_path / "b" / "a.flac"), str(tmp_path / "z.wav")]
    assert len(library) == 2


def test_folders_without_sound_and_unreadable_recordings_are_named(tmp_path):
    with pytest.raises(AudioNotFoundError, match="no such folder"):
        BackgroundLibrary(tmp_path / "nowhere")
    with pytest.raises(AudioNotFoundError, match="no audio file"):
        BackgroundLibrary(tmp_path)
    write_tone(tmp_path / "good.wav", seconds=0.1)
    (tmp_path / "bad.wav").write_text("this is not sound")
    with pytest.raises(AudioError, match=r"bad\.wav.*remove it"):
        BackgroundLibrary(tmp_path)
    (tmp_path / "worse.wav").write_text("nor is this")
    with pytest.raises(AudioError, match=r"bad\.wav.*3 background recordings, 1 more"):
        BackgroundLibrary(tmp_path)


def test_tones_of_real_noise_are_mixed_from_real_recordings(shared_data):
    library = BackgroundLibrary(shared_data / "esc10" / "audio" / "rain")
    waveform = torch.from_numpy(tone(2.0))[None]
    augment = WaveformAugmentation(
        background=library, background_snr_db=(10.0, 10.0), background_probability=1.0
    )

    noisy = augment(waveform, torch.tensor([32_000]), torch.ones(1, 1), seeded())[0]

    ratio = waveform.square().mean() / (noisy - waveform).square().mean()
    assert abs(10 * ratio.log10() - 10) < 0.1


def test_a_faint_background_is_finite_in_half_precision():
    clip = torch.ones(1, 4, dtype=torch.float16)
    noise = torch.tensor([[2e-7, 0.0, 2e-7, 2e-7]])

    mixed = mix_at_snr(clip, noise, torch.tensor([4]), torch.tensor([0.0]))

    assert mixed.dtype == torch.float16
    assert mixed[0, 1] == 1
    assert mixed.isfinite().all()
