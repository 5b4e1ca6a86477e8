"""Clips for review: the right events, their own sound to the bit, under names that any system takes."""

import logging
import zipfile

import numpy as np
import pandas as pd
import pytest
import soundfile

from beats_trainer.audio.decode import open_decoder
from beats_trainer.detection import export_clips
from sounds import encode, tone


@pytest.fixture
def recording(tmp_path):
    """Ten seconds of noise, 8 kHz, 16 bits."""
    path = tmp_path / "A_20240510_043000.wav"
    noise = np.random.default_rng(0).integers(-32768, 32768, 80_000).astype(np.int16)
    soundfile.write(path, noise, 8000)
    return path


def events_in(file, scores, label="owl", length_s=0.5):
    starts = np.arange(len(scores)) * length_s
    return pd.DataFrame(
        {
            "file": str(file),
            "start_time": starts,
            "end_time": starts + length_s,
            "label": label,
            "score": np.asarray(scores, dtype=float),
        }
    )


def test_the_best_events_of_each_class_are_written_with_a_table_to_note_verdicts(
    recording, tmp_path
):
    events = pd.concat(
        [events_in(recording, [0.2, 0.9, 0.5, 0.7]), events_in(recording, [0.3, 0.4], "frog")]
    )

    table = export_clips(events, tmp_path / "out", num_clips=2, context_s=0)

    assert table["clip"].tolist() == [
        "frog/0.400_A_20240510_043000_0.500-1.000.wav",
        "frog/0.300_A_20240510_043000_0.000-0.500.wav",
        "owl/0.900_A_20240510_043000_0.500-1.000.wav",
        "owl/0.700_A_20240510_043000_1.500-2.000.wav",
    ]
    assert (tmp_path / "out/clips.csv").read_text().splitlines()[:2] == [
        "clip,file,start_time,end_time,label,score,correct",
        f"{table['clip'][0]},{recording},0.5,1.0,frog,0.4,",
    ]
    for clip in table["clip"]:
        assert soundfile.info(tmp_path / "out" / clip).frames == 4000


@pytest.mark.parametrize(
    ("subtype", "dtype", "expected"),
    [
        ("PCM_16", "int16", "PCM_16"),
        ("PCM_24", "int32", "PCM_24"),
        ("FLOAT", "float32", "FLOAT"),
        ("PCM_U8", "int16", "PCM_16"),
    ],
)
def test_the_sound_is_the_recordings_own_to_the_bit(tmp_path, subtype, dtype, expected):
    rng = np.random.default_rng(0)
    loud = rng.uniform(-1, 1, (48_000, 3)) * (2.5 if subtype == "FLOAT" else 1.0)
    loud[24_000:24_002] = [[1.0] * 3, [-1.0] * 3]
    file = tmp_path / "three_channels.wav"
    soundfile.write(file, loud, 48_000, subtype=subtype)
    events = events_in(file, [0.9] * 2)

    table = export_clips(events, tmp_path / "out", num_clips=2, context_s=0.1)

    clip = tmp_path / "out" / table["clip"][1]
    info = soundfile.info(clip)
    assert (info.samplerate, info.channels, info.subtype) == (48_000, 3, expected)
    original, _ = soundfile.read(file, dtype=dtype)
    written, _ = soundfile.read(clip, dtype=dtype)
    np.testing.assert_array_equal(written, original[round(0.4 * 48_000) : 48_000])


def test_compressed_recordings_give_clips_too(tmp_path):
    file = encode(tmp_path / "call.m4a", tone(3.0, sample_rate=44_100), 44_100, "aac", 96_000)
    events = events_in(file, [0.9, 0.8])

    table = export_clips(events, tmp_path / "out", num_clips=1)

    clip, rate = soundfile.read(tmp_path / "out" / table["clip"][0])
    assert (rate, len(clip)) == (44_100, round(1.5 * 44_100))  # no context before the start
    heard = np.concatenate(list(open_decoder(str(file)).pieces(0, len(clip))))[:, 0]
    np.testing.assert_allclose(clip, heard, atol=0.5 / 2**15)


def test_context_stays_within_the_recording_and_a_long_event_is_cut_off(recording, tmp_path):
    events = events_in(recording, [0.9, 0.8], length_s=5.0)

    table = export_clips(events, tmp_path / "out", num_clips=2, context_s=2.0, max_duration_s=3.0)

    lengths = [soundfile.info(tmp_path / "out" / clip).duration for clip in table["clip"]]
    assert lengths == [5.0, 7.0]  # 0 to 3 + 2, 5 - 2 to 8 + 2
    assert table["end_time"].tolist() == [5.0, 10.0]


def test_a_stratified_sample_has_as_many_clips_of_each_part_of_the_scores(recording, tmp_path):
    rng = np.random.default_rng(0)
    scores = np.concatenate([[0.5, 1.0], 0.5 + 0.5 * rng.random(498) ** 4])  # high ones are rare
    events = events_in(recording, scores, length_s=0.01)

    table = export_clips(events, tmp_path / "out", 30, by="stratified", context_s=0)

    parts = np.minimum((table["score"] - 0.5) / 0.05, 9).astype(int)
    assert np.bincount(parts).tolist() == [3] * 10


def test_a_part_of_the_scores_with_too_few_events_leaves_its_place_to_others(recording, tmp_path):
    events = events_in(recording, [1.0] + [0.1] * 3 + [0.5] * 6)

    table = export_clips(events, tmp_path / "out", 9, by="stratified", context_s=0)

    assert table["score"].value_counts().to_dict() == {1.0: 1, 0.1: 3, 0.5: 5}


def test_a_sample_depends_on_the_seed_and_not_on_the_order_of_the_events(recording, tmp_path):
    events = events_in(recording, np.random.default_rng(0).random(200), length_s=0.01)
    shuffled = events.sample(frac=1, random_state=1)

    samples = [
        set(export_clips(table, tmp_path / name, 10, by="stratified", seed=seed)["clip"])
        for name, table, seed in [("a", events, 3), ("b", shuffled, 3), ("c", events, 4)]
    ]

    assert samples[0] == samples[1] != samples[2]


def test_an_unreadable_recording_is_reported_and_replaced_by_the_next_event(
    recording, tmp_path, caplog
):
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes(b"RIFF not a wav")
    events = pd.concat(
        [
            events_in(damaged, [0.99, 0.98]),
            events_in(tmp_path / "gone.wav", [0.97]),
            events_in(recording, [0.5, 0.6]),
            events_in(damaged, [0.9], "frog"),
        ]
    )

    with caplog.at_level(logging.WARNING):
        table = export_clips(events, tmp_path / "out", num_clips=2)

    assert table["score"].tolist() == [0.6, 0.5]
    errors = pd.read_csv(tmp_path / "out/clip_errors.csv")
    assert errors["file"].tolist() == [str(damaged), str(tmp_path / "gone.wav")]
    assert "no such file" in errors["reason"][1]
    assert "0 instead of 1 clips of 'frog'" in caplog.text


def test_an_event_behind_the_recordings_end_is_reported(recording, tmp_path):
    events = events_in(recording, [0.9]).assign(start_time=10.0, end_time=11.0)

    table = export_clips(events, tmp_path / "out", num_clips=1)

    assert len(table) == 0
    reasons = pd.read_csv(tmp_path / "out/clip_errors.csv")["reason"]
    assert "10.000 s long, and an event starts at 10.000 s" in reasons[0]


def test_names_are_such_that_any_file_system_takes_them(recording, tmp_path):
    labels = [
        "a/b",
        "a\\b",
        "a_b",
        "A_B",
        "con",
        "..",
        "🦉 owl?",
        "Straße: \t<x>",
        "dot.",
        "鸟" * 200,
        "鸟" * 201,
        "\x00",
    ]
    events = pd.concat([events_in(recording, [0.9], label) for label in labels])

    table = export_clips(events, tmp_path / "out", num_clips=1)

    assert sorted(table["label"]) == sorted(labels)
    folders = [clip.partition("/")[0] for clip in table["clip"]]
    assert len({folder.casefold() for folder in folders}) == len(labels)
    for folder, clip in zip(folders, table["clip"], strict=True):
        assert not set('<>:"\\|?*') & set(clip)
        assert clip.isprintable()
        assert clip.count("/") == 1
        assert folder.rstrip(" .") == folder != "con"
        assert len(folder.encode()) <= 70
        assert (tmp_path / "out" / clip).is_file()


def test_events_that_would_have_one_name_have_two(recording, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    files = [tmp_path / "b/x.wav", tmp_path / "c/x.wav", tmp_path / "c/X.wav"]
    for file in files:
        file.write_bytes(recording.read_bytes())
    events = pd.concat([events_in(file, [0.9]) for file in [*files, files[0]]])

    table = export_clips(events, tmp_path / "out", num_clips=4)

    assert len({clip.casefold() for clip in table["clip"]}) == 4
    assert len(list((tmp_path / "out/owl").iterdir())) == 4


@pytest.mark.skipif("sys.platform == 'win32' or sys.platform == 'darwin'")
def test_a_recordings_name_of_any_bytes_is_read_and_told_in_printable_form(recording, tmp_path):
    file = tmp_path / "caf\udce9 🎵.wav"
    file.write_bytes(recording.read_bytes())

    events = events_in("", [0.9]).assign(file=pd.Series([str(file)], dtype=object))

    table = export_clips(events, tmp_path / "out", num_clips=1)

    assert table["file"].tolist() == [f"{tmp_path}/caf\\xe9 🎵.wav"]
    assert table["clip"].tolist() == ["owl/0.900_caf_ 🎵_0.000-0.500.wav"]
    assert (tmp_path / "out" / table["clip"][0]).is_file()


def test_clips_are_cut_out_of_recordings_behind_urls_too(recording, tmp_path):
    archive = tmp_path / "recordings.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.write(recording, "site/A_20240510_043000.wav")
    url = f"zip://site/A_20240510_043000.wav::{archive}"

    table = export_clips(events_in(url, [0.9]), tmp_path / "out", num_clips=1, context_s=0)

    samples, _ = soundfile.read(tmp_path / "out" / table["clip"][0], dtype="int16")
    expected, _ = soundfile.read(recording, stop=4000, dtype="int16")
    np.testing.assert_array_equal(samples, expected)


def test_a_folder_that_holds_something_is_left_alone_unless_told_otherwise(recording, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    events = events_in(recording, [0.9])

    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_clips(events, folder, num_clips=1)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]

    export_clips(events, folder, num_clips=1, overwrite=True)

    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "clips.csv").is_file()


def test_no_events_give_tables_with_headers(tmp_path):
    table = export_clips(events_in("a.wav", []), tmp_path / "out", num_clips=5)

    assert len(table) == 0
    header = "clip,file,start_time,end_time,label,score,correct"
    assert (tmp_path / "out/clips.csv").read_text() == f"{header}\n"
    assert (tmp_path / "out/clip_errors.csv").read_text() == "file,reason\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clips": 0}, "num_clips"),
        ({"by": "random"}, "'top' or 'stratified'"),
        ({"context_s": -1.0}, "context_s"),
        ({"max_duration_s": 0.0}, "max_duration_s"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        export_clips(events_in("a.wav", [0.9]), tmp_path / "out", **({"num_clips": 1} | settings))
    with pytest.raises(ValueError, match="no column score"):
        export_clips(events_in("a.wav", [0.9]).drop(columns="score"), tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
