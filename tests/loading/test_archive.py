"""The archive: what there is, and steps that follow from their number alone."""

import itertools
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from beats_trainer.audio import load_audio
from beats_trainer.errors import AudioError, AudioNotFoundError, ConfigError, DatasetError
from beats_trainer.loading import archive as archive_module
from beats_trainer.loading.archive import Archive, ArchiveBatches

RATE = 16_000


def write(path, seconds, seed=0, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * level
    soundfile.write(path, noise.clip(-1, 1), RATE)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two long recordings and thirty short ones of many lengths."""
    folder = tmp_path_factory.mktemp("archive")
    for number, seconds in enumerate([23.0, 41.5]):
        write(folder / f"long/{number}.wav", seconds, number)
    for number in range(30):
        write(folder / f"short/{number}.wav", 0.3 + 0.09 * number, 10 + number)
    return folder


def batches(archive, window_s=5.0, batch_s=20.0, seed=0, **options):
    return ArchiveBatches(archive, window_s, batch_s, seed, **options)


def first_steps(source, count, first=0, rank=0, num_ranks=1):
    return list(itertools.islice(source(first, rank, num_ranks), count))


# -- what there is -----------------------------------------------------------------------------------------------


def test_a_scan_lists_what_can_be_read_and_says_why_the_rest_cannot(tmp_path):
    write(tmp_path / "a.wav", 1.0)
    write(tmp_path / "b/short.wav", 0.1)
    (tmp_path / "broken.wav").write_text("no sound")
    write(tmp_path / "test/secret.wav", 1.0)
    write(tmp_path / "5-100.wav", 1.0)
    seen = []

    archive = Archive.scan(
        tmp_path, exclude=["*/test/*", "5-*"], on_progress=lambda *done: seen.append(done)
    )

    assert [path.rpartition("/")[2] for path in archive.table["file"]] == ["a.wav"]
    assert archive.total_s == pytest.approx(1.0)
    reasons = dict(zip(archive.failures["file"], archive.failures["reason"], strict=True))
    assert "less than a patch" in reasons[str(tmp_path / "b/short.wav")]
    assert str(tmp_path / "broken.wav") in reasons
    assert seen[-1] == (3, 3)


def test_nothing_to_read_is_an_error_that_names_the_first_reason(tmp_path):
    with pytest.raises(AudioNotFoundError):
        Archive.scan(tmp_path)
    write(tmp_path / "short.wav", 0.1)
    with pytest.raises(DatasetError, match=r"none can be read.*less than a patch"):
        Archive.scan(tmp_path)


def test_an_archive_comes_back_from_disk_with_its_fingerprint(folder, tmp_path):
    archive = Archive.scan(folder)

    archive.write(tmp_path / "recordings.csv")
    again = Archive.read(tmp_path / "recordings.csv")

    assert again.fingerprint == archive.fingerprint
    assert batches(again).plan(1)[0].tolist() == batches(archive).plan(1)[0].tolist()


def test_files_that_are_gone_or_others_are_named_and_new_ones_do_not_matter(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.wav", 1.0)
    archive = Archive.scan(tmp_path)
    write(tmp_path / "new.wav", 1.0)
    archive.require_unchanged()

    (tmp_path / "a.wav").unlink()
    write(tmp_path / "b.wav", 1.5)

    with pytest.raises(DatasetError, match=r"a\.wav is gone; .*b\.wav is another"):
        archive.require_unchanged()


def test_a_file_of_the_same_size_but_another_date_is_a_warning(tmp_path, caplog):
    for name in "ab":
        write(tmp_path / f"{name}.wav", 1.0)
    archive = Archive.scan(tmp_path)
    os.utime(tmp_path / "b.wav", ns=(0, 0))

    archive.require_unchanged()

    (said,) = caplog.messages
    assert said.startswith("Written anew since the run was begun")
    assert "b.wav" in said
    assert "a.wav" not in said


def test_silence_is_told_from_sound(tmp_path, folder):
    assert Archive.scan(folder).require_sound(2.0) == 0.0
    for number in range(3):
        write(tmp_path / f"{number}.wav", 1.0, level=0.0)
    with pytest.raises(DatasetError, match="3 recordings are digital silence"):
        Archive.scan(tmp_path).require_sound(2.0)
    write(tmp_path / "sound.wav", 1.0)
    assert Archive.scan(tmp_path).require_sound(2.0) == 0.75


def test_whole_recordings_are_held_out(folder):
    archive = Archive.scan(folder)

    kept, held = archive.split(0.2, seed=0)

    assert len(held.table) == 6
    assert not set(kept.table["file"]) & set(held.table["file"])
    assert len(kept.table) + len(held.table) == len(archive.table)
    assert archive.split(0.0, seed=0)[1] is None
    assert archive.split(0.2, seed=0)[1].fingerprint == held.fingerprint
    assert archive.split(0.2, seed=1)[1].fingerprint != held.fingerprint


# -- steps -------------------------------------------------------------------------------------------------------


def test_a_step_follows_from_its_number_whatever_was_heard_before(folder):
    source = batches(Archive.scan(folder))
    num_of_pass = len(source.plan(0))

    whole = first_steps(source, num_of_pass + 3)
    later = first_steps(source, 4, first=num_of_pass - 1)

    assert [step.step for step in whole] == list(range(num_of_pass + 3))
    for expected, found in zip(whole[num_of_pass - 1 :], later, strict=True):
        assert found.step == expected.step
        assert found.rows == expected.rows
        assert torch.equal(found.audio.waveforms, expected.audio.waveforms)


@pytest.mark.parametrize(("num_ranks", "parts"), [(2, 1), (1, 2), (2, 2)])
def test_shares_of_a_step_together_are_the_step(folder, num_ranks, parts):
    archive = Archive.scan(folder)
    whole = first_steps(batches(archive), 5)

    shares = [
        first_steps(batches(archive, parts=parts), 5 * parts, 0, rank, num_ranks)
        for rank in range(num_ranks)
    ]

    for step in whole:
        clips = {}
        for share in itertools.chain(*shares):
            if share.step == step.step:
                for row, waveform, length in zip(
                    share.rows, share.audio.waveforms, share.audio.lengths, strict=True
                ):
                    clips[row] = waveform[:length]
        assert sorted(clips) == list(range(len(step.rows)))
        for row, length in enumerate(step.audio.lengths):
            assert torch.equal(clips[row], step.audio.waveforms[row, :length])


def test_each_second_of_a_long_recording_is_heard_about_equally_often(tmp_path):
    write(tmp_path / "a.wav", 60.0)
    source = batches(Archive.scan(tmp_path), window_s=7.0, batch_s=14.0)

    heard = np.zeros(60)
    for number in range(200):
        for _, start, length, _ in np.concatenate(source.plan(number)).tolist():
            heard[start // RATE : (start + length) // RATE] += 1

    assert heard[8:52].min() > 0.9 * heard.mean()
    assert heard[:2].min() > 0.2 * heard.mean()  # edges lie in fewer windows


def test_short_clips_are_whole_and_heard_once_in_a_pass(folder):
    archive = Archive.scan(folder / "short")
    windows = np.concatenate(batches(archive).plan(3))

    assert sorted(windows[:, 0].tolist()) == list(range(30))
    lengths = dict(windows[:, [0, 2]].tolist())
    for index, duration_s in enumerate(archive.table["duration_s"]):
        assert lengths[index] == round(duration_s * RATE)


def test_little_is_padding_and_no_step_is_over_its_size(folder):
    source = batches(Archive.scan(folder))

    for number in range(5):
        for windows in source.plan(number):
            padded = len(windows) * windows[:, 2].max()
            assert padded <= 20 * RATE
            assert windows[:, 2].sum() >= 0.9 * padded


def test_sound_is_the_same_from_memory_and_from_the_files(folder):
    archive = Archive.scan(folder)
    cached, read = (first_steps(batches(archive, cache_gb=gb), 6) for gb in (1.0, 0.0))

    for one, other in zip(cached, read, strict=True):
        torch.testing.assert_close(one.audio.waveforms, other.audio.waveforms, atol=0, rtol=0)


def test_parts_of_recordings_stay_within_their_parts(folder):
    from beats_trainer.loading.clips import Clip

    file = str(folder / "long/1.wav")
    archive = Archive.scan([Clip(file, 10.0, 12.0), Clip(file, 30.0)])
    source = batches(archive, window_s=4.0, batch_s=8.0)

    for _, start, length, _ in np.concatenate(source.plan(0)).tolist():
        assert 10 * RATE <= start <= start + length <= 22 * RATE or (
            30 * RATE <= start <= start + length <= 41.5 * RATE
        )
    step = first_steps(source, 1)[0]
    windows = source.plan(0)[0]
    expected = load_audio(file, windows[0, 1] / RATE, 4.0)
    np.testing.assert_array_equal(step.audio.waveforms[0].numpy(), expected)


def test_fixed_windows_are_the_same_in_every_pass_and_come_in_order(folder):
    source = batches(Archive.scan(folder), are_fixed=True)

    first, second = (
        {row[3]: tuple(row[:3]) for row in np.concatenate(source.plan(n)).tolist()} for n in (0, 7)
    )

    assert first == second
    lengths = torch.cat([batch.lengths for batch in source.in_order(3, 8)]).tolist()
    assert lengths == source.windows()[3:, 2].tolist()
    step = first_steps(source, 1)[0]
    assert [first[number][2] for number in step.windows] == step.audio.lengths.tolist()


# -- bad input ---------------------------------------------------------------------------------------------------


def test_less_sound_than_a_step_takes_is_refused(tmp_path):
    write(tmp_path / "a.wav", 3.0)

    with pytest.raises(
        ConfigError, match=r"3 s of sound to train on, and a step takes 20 s \(batch_s\)"
    ):
        batches(Archive.scan(tmp_path))


def test_a_file_that_turns_out_to_be_damaged_is_left_out_with_one_warning(tmp_path, caplog):
    for number in range(200):
        write(tmp_path / f"{number:03}.wav", 1.0, number)
    archive = Archive.scan(tmp_path)
    (tmp_path / "007.wav").write_bytes(b"RIFF")

    with caplog.at_level(logging.WARNING, "beats_trainer.loading.archive"):
        source = batches(archive, cache_gb=0.0)
        steps = first_steps(source, 2 * len(source.plan(0)))

    assert [record.getMessage() for record in caplog.records if "007.wav" in record.getMessage()]
    assert len(caplog.records) == 1
    heard = [step for step in steps if len(step.rows) < 20]
    assert len(heard) == 2  # once in each pass
    assert all(len(step.rows) == len(step.audio) for step in steps)


def test_one_damaged_file_leaves_the_others_in_memory(tmp_path, monkeypatch):
    for number in range(30):
        write(tmp_path / f"{number:03}.wav", 1.0, number)
    archive = Archive.scan(tmp_path)
    (tmp_path / "007.wav").write_bytes(b"RIFF")
    source = batches(archive)
    first = first_steps(source, len(source.plan(0)))
    read = []

    def watch(file, *place):
        read.append(Path(file).name)
        return load_audio(file, *place)

    monkeypatch.setattr(archive_module, "load_audio", watch)
    again = first_steps(source, len(source.plan(0)))

    assert set(read) == {"007.wav"}
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.audio.waveforms, other.audio.waveforms)


def test_one_damaged_file_does_not_stop_a_run_whose_shares_are_single_windows(tmp_path):
    for number in range(100):
        write(tmp_path / f"{number:03}.wav", 1.0, number)
    archive = Archive.scan(tmp_path)
    (tmp_path / "007.wav").write_bytes(b"RIFF")
    source = batches(archive, window_s=2.0, batch_s=4.0, cache_gb=0.0, parts=4)

    steps = first_steps(source, 4 * len(source.plan(0)))

    silent = [step for step in steps if not step.audio.waveforms.any()]
    assert len(silent) == 1
    assert len(silent[0].rows) == 1


def test_many_damaged_files_stop_the_run(tmp_path):
    for number in range(200):
        write(tmp_path / f"{number:03}.wav", 1.0, number)
    archive = Archive.scan(tmp_path)
    for number in range(100):
        (tmp_path / f"{number:03}.wav").write_bytes(b"RIFF")

    with pytest.raises(AudioError):
        first_steps(batches(archive, cache_gb=0.0), 40)
