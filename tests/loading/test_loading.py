"""Windows lose nothing, reading ahead keeps order and bounds, batches hold every clip once."""

import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.audio import load_audio
from beats_trainer.errors import AudioError
from beats_trainer.loading import (
    Clip,
    ClipDataset,
    collate_waveforms,
    length_sorted_batches,
    make_data_loader,
    plan_windows,
    read_ahead,
    read_into_memory,
)
from sounds import write_tone


@given(st.integers(1, 5000), st.integers(1, 800), st.integers(1, 800))
def test_every_sample_is_in_a_window_and_no_window_holds_nothing_new(num_samples, window, hop):
    hop = min(hop, window)

    starts = plan_windows(num_samples, window, hop)
    windows = [(start, min(start + window, num_samples)) for start in starts]

    covered = np.zeros(num_samples, bool)
    for start, stop in windows:
        assert 0 <= start < stop <= num_samples
        assert stop - start == window or stop == num_samples
        assert not covered[start:stop].all()
        covered[start:stop] = True
    assert covered.all()
    assert [start for start, _ in windows] == [index * hop for index in range(len(windows))]


@pytest.mark.parametrize("arguments", [(0, 1, 1), (5, 0, 1), (5, 2, 3), (5, 2, 0)])
def test_windows_that_leave_gaps_or_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match="Expected a recording and a window"):
        plan_windows(*arguments)


@pytest.mark.parametrize(
    ("start_s", "duration_s"),
    [(-1.0, None), (np.nan, None), (np.inf, None), (0.0, 0.0), (0.0, -2.0), (0.0, np.nan)],
)
def test_a_clip_that_cannot_be_is_refused_by_its_name(start_s, duration_s):
    with pytest.raises(ValueError, match=r"both finite; got .* for dawn\.wav"):
        Clip("dawn.wav", start_s, duration_s)


def test_results_come_in_order_though_reads_end_in_another():
    def read(item):
        time.sleep(0.02 if item % 3 == 0 else 0)
        return -item

    pairs = list(read_ahead(range(20), read, num_threads=4, max_ahead=8))

    assert pairs == [(item, -item) for item in range(20)]


def test_an_error_is_given_in_its_place_and_the_rest_goes_on():
    def read(item):
        if item == 2:
            raise AudioError("bad.wav", "it is damaged.")
        return item

    results = [result for _, result in read_ahead(range(4), read, 2, 4)]

    assert results[:2] == [0, 1]
    assert isinstance(results[2], AudioError)
    assert results[3] == 3


def test_reading_stays_at_most_max_ahead_of_the_consumer():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    stream = read_ahead(items(), lambda item: item, num_threads=2, max_ahead=5)
    for consumed in range(10):
        next(stream)
        assert len(taken) <= consumed + 5
    stream.close()


def test_results_are_weighed_where_they_differ_in_size():
    taken = []

    def items():
        for weight in (0.5, 0.25, 0.25, 3.0, 0.1, 0.1):
            taken.append(weight)
            yield weight

    stream = read_ahead(items(), str, num_threads=2, max_ahead=1, weigh=float)
    taken_at = [(result, len(taken)) for _, result in stream]

    assert taken_at == [("0.5", 3), ("0.25", 4), ("0.25", 4), ("3.0", 4), ("0.1", 6), ("0.1", 6)]


def test_what_is_known_already_takes_no_thread_and_keeps_its_place():
    threads = {}

    def read(item):
        threads[item] = threading.current_thread()
        if item == 2:
            raise AudioError("bad.wav", "it is damaged.")
        return item

    results = list(read_ahead(range(4), read, 2, 4, is_known=lambda item: item % 2 == 0))

    assert [item for item, _ in results] == [0, 1, 2, 3]
    assert isinstance(results[2][1], AudioError)
    assert [threads[item] is threading.current_thread() for item in range(4)] == [
        *(True, False, True, False)
    ]


def test_results_that_wait_for_the_consumer_are_bounded():
    alive = []

    def read(item):
        result = np.zeros(10)
        weakref.finalize(result, alive.remove, item)
        alive.append(item)
        return result

    for item, result in read_ahead(range(50), read, num_threads=3, max_ahead=4):
        assert item in alive
        assert len(alive) <= 6  # four ahead, this one, and the last that the loop still holds
        del result


def test_an_interrupt_in_a_read_is_not_taken_for_its_result():
    def read(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(read_ahead(range(3), read, 1, 2))


@pytest.mark.parametrize(("num_threads", "max_ahead"), [(0, 1), (1, 0)])
def test_reading_with_no_thread_or_no_room_is_refused(num_threads, max_ahead):
    with pytest.raises(ValueError, match="at least 1"):
        next(read_ahead([1], int, num_threads, max_ahead))


def test_closing_the_stream_ends_its_threads_and_reads_no_more():
    started = []
    before = threading.active_count()
    stream = read_ahead(range(1000), started.append, num_threads=3, max_ahead=6)
    next(stream)

    stream.close()

    assert threading.active_count() == before
    assert len(started) <= 7


def test_batches_hold_every_clip_once_beside_mates_of_like_length():
    random = np.random.default_rng(0)
    clips = [np.zeros(length, np.float32) for length in random.integers(1, 500, 50)]

    batches = list(
        length_sorted_batches(enumerate(clips), batch_size=8, pool_batches=3, most_padding=1.0)
    )

    indices = [index for batch in batches for index, _ in batch]
    assert sorted(indices) == list(range(50))
    assert max(len(batch) for batch in batches) == 8
    pools = [indices[:24], indices[24:48], indices[48:]]
    for pool in pools:
        lengths = [len(clips[index]) for index in pool]
        assert lengths == sorted(lengths, reverse=True)
    assert set(pools[0]) == set(range(24))  # memory is bounded: a pool ends before the next begins


def test_long_clips_end_a_pool_early():
    long = np.zeros(16_000 * 60 * 25, np.float32)  # 25 minutes: three are more than an hour
    taken = []

    def clips():
        for index in range(9):
            taken.append(index)
            yield index, long

    next(iter(length_sorted_batches(clips(), batch_size=8)))

    assert len(taken) == 3


def test_a_pool_that_is_long_enough_ends_with_a_full_batch():
    minute = np.zeros(16_000 * 60, np.float32)

    batches = list(length_sorted_batches(((index, minute) for index in range(60)), 8))

    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 8, 8, 4]
    assert [index for batch in batches[:3] for index, _ in batch] == list(range(24))


def test_one_long_clip_does_not_make_a_batch_of_long_padding():
    lengths = [16_000 * 60 * 25, *[16_000] * 15]
    clips = [np.zeros(length, np.float32) for length in lengths]

    batches = list(length_sorted_batches(enumerate(clips), 16))
    whatever_padding = list(length_sorted_batches(enumerate(clips), 16, most_padding=1.0))

    assert [len(batch) for batch in batches] == [1, 15]
    assert [len(batch) for batch in whatever_padding] == [2, 14]  # of an hour at most
    assert sorted(index for batch in batches for index, _ in batch) == list(range(16))


@pytest.mark.parametrize("most_padding", [0.0, 0.05, 0.3])
def test_no_batch_is_padded_more_than_it_may_be(most_padding):
    lengths = np.random.default_rng(0).integers(1, 500, 200)
    clips = [np.zeros(length, np.float32) for length in lengths]

    batches = list(length_sorted_batches(enumerate(clips), 16, most_padding=most_padding))

    assert sorted(index for batch in batches for index, _ in batch) == list(range(200))
    shares = []
    for batch in batches:
        sizes = [len(clip) for _, clip in batch]
        shares.append(1 - sum(sizes) / (max(sizes) * len(sizes)))
    assert max(shares) <= most_padding + 1e-9
    assert len(batches) < 200
    assert most_padding == 0.0 or max(shares) > most_padding / 2  # and it is made use of


def test_batches_that_are_counted_by_their_cost_are_large_where_clips_are_short():
    clips = [np.zeros(length, np.float32) for length in [10] * 40 + [200] * 3 + [900]]

    batches = list(
        length_sorted_batches(
            enumerate(clips), 30, cost_of=lambda samples: 2 * samples, most_cost=1_000
        )
    )

    assert [[len(clip) for _, clip in batch] for batch in batches] == [
        [900],  # costs more than a batch may: alone
        [200, 200],
        [200],  # and not the short ones, with which it would be padding
        [10] * 30,  # the number of clips is bounded too
        [10] * 10,
    ]


def test_a_batch_is_zero_padded_and_knows_its_lengths():
    batch = collate_waveforms([np.full(3, 2, np.float32), torch.full((1,), 5.0)])

    assert batch.waveforms.tolist() == [[2, 2, 2], [5, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert len(batch.to("cpu")) == 2


@pytest.mark.parametrize("waveforms", [[], [np.zeros(0)], [np.zeros((2, 3))]])
def test_what_is_no_waveform_is_not_collated(waveforms):
    with pytest.raises(ValueError, match="Expected waveforms"):
        collate_waveforms(waveforms)


@pytest.fixture
def dataset_of(tmp_path):
    clips = [
        Clip(str(write_tone(tmp_path / f"{i}.wav", seconds=0.2 + 0.1 * i, seed=i)))
        for i in range(6)
    ]

    def build(**options):
        return ClipDataset(clips, range(6), **options)

    return build


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_every_clip_with_its_target(dataset_of, num_workers):
    dataset = dataset_of()
    loader = make_data_loader(dataset, batch_size=4, shuffle=True, num_workers=num_workers, seed=1)

    seen = {}
    for audio, targets in loader:
        for length, target in zip(audio.lengths.tolist(), targets.tolist(), strict=True):
            seen[target] = length

    assert seen == {i: round((0.2 + 0.1 * i) * 16_000) for i in range(6)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_clip_is_named_also_from_a_worker_process(tmp_path, num_workers):
    good = write_tone(tmp_path / "good.wav")
    (tmp_path / "bad.wav").write_text("no sound")
    clips = [Clip(str(good)), Clip(str(tmp_path / "bad.wav"))]
    loader = make_data_loader(ClipDataset(clips, [0, 1]), batch_size=1, num_workers=num_workers)

    batches = iter(loader)
    next(batches)
    with pytest.raises(AudioError, match=r"bad\.wav") as error:
        next(batches)

    assert error.value.file == str(tmp_path / "bad.wav")
    assert "not audio" in error.value.reason


def test_a_loader_with_workers_serves_epoch_after_epoch(dataset_of):
    loader = make_data_loader(dataset_of(), batch_size=2, num_workers=2)

    epochs = [[targets.tolist() for _, targets in loader] for _ in range(3)]

    assert epochs == [[[0, 1], [2, 3], [4, 5]]] * 3


@pytest.mark.parametrize(("batch_size", "num_workers"), [(0, 0), (2, -1)])
def test_a_senseless_loader_is_refused(dataset_of, batch_size, num_workers):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_data_loader(dataset_of(), batch_size, num_workers=num_workers)


def test_the_order_depends_on_the_seed_alone(dataset_of):
    def order(seed):
        loader = make_data_loader(dataset_of(), batch_size=2, shuffle=True, seed=seed)
        return [target for _, targets in loader for target in targets.tolist()]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_a_crop_is_a_part_of_the_clip_that_depends_on_the_seed(dataset_of):
    whole = dataset_of()[5][0]

    crops = {seed: dataset_of(crop_s=0.3, seed=seed)[5][0] for seed in range(8)}

    starts = set()
    for crop in crops.values():
        assert len(crop) == 4800
        matches = [
            s for s in range(len(whole) - 4800 + 1) if torch.equal(whole[s : s + 4800], crop)
        ]
        assert matches
        starts.add(matches[0])
    assert len(starts) > 4
    assert torch.equal(crops[3], dataset_of(crop_s=0.3, seed=3)[5][0])
    assert len(dataset_of(crop_s=0.3)[0][0]) == 3200  # a shorter clip stays whole


def test_clips_and_targets_must_be_as_many():
    with pytest.raises(ValueError, match="1 clips and 2 targets"):
        ClipDataset([Clip("a.wav")], [0, 1])


def test_clips_that_fit_are_decoded_once_and_others_not_at_all(tmp_path):
    files = [write_tone(tmp_path / f"{n}.wav", 0.5, sample_rate=22050) for n in range(3)]
    clips = [Clip(str(files[0])), Clip(str(files[1]), 0.1, 0.2), Clip(str(files[2]))]
    needed = 4 * (8000 + 3200 + 8000)

    waveforms = read_into_memory(clips, needed, num_threads=2)

    assert [len(waveforms[clip]) for clip in clips] == [8000, 3200, 8000]
    np.testing.assert_array_equal(waveforms[clips[1]], load_audio(files[1], 0.1, 0.2))
    assert read_into_memory(clips, needed - 1, num_threads=2) is None


def test_a_clip_in_memory_is_cut_where_the_same_clip_on_disk_is(tmp_path):
    file = write_tone(tmp_path / "long.wav", 2.0)
    clip = Clip(str(file))
    options = {"targets": [0], "crop_s": 0.5, "seed": 3}

    on_disk, _ = ClipDataset([clip], **options)[0]
    in_memory, _ = ClipDataset([load_audio(file)], **options)[0]

    torch.testing.assert_close(in_memory, on_disk)


def test_a_damaged_clip_is_named_when_it_is_read_into_memory(tmp_path):
    good = write_tone(tmp_path / "good.wav")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(good.read_bytes()[:30])

    with pytest.raises(AudioError, match=r"bad\.wav"):
        read_into_memory([Clip(str(good)), Clip(str(bad))], 10**9, num_threads=1)
