"""`BEATsPredictor.detect`: events of whole recordings as a user gets them, and what it leaves in a folder."""

import math
import os

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from beats_trainer import (
    BEATsFeatureExtractor,
    BEATsForAudioClassification,
    BEATsModel,
    BEATsPredictor,
)
from beats_trainer.detection import EventRules, find_events, read_detections, write_detections
from beats_trainer.detection.tables import FORMATS, RAVEN_COLUMNS, STANDARD_NAMES
from beats_trainer.embeddings import open_store
from beats_trainer.errors import AudioError, StoreInUseError, StoreMismatchError
from beats_trainer.loading import Clip
from beats_trainer.model import ClassifierHead
from checkpoint_files import tiny_architecture
from sounds import tone, write_tone

LABELS = ["wren", "robin", "crow"]
WINDOWS = {"window_s": 1.0, "hop_s": 0.5}
EVENT_COLUMNS = ["file", "start_time", "end_time", "label", "score"]


def make_predictor(activation="sigmoid", **options):
    """A tiny network whose scores go up and down with the sound."""
    torch.manual_seed(3)
    encoder = BEATsModel(tiny_architecture())
    features = BEATsFeatureExtractor(encoder, "cpu", precision="float32")
    examples = features.extract_from_batch([sound(n, 1.0) for n in range(20)])
    head = ClassifierHead(32, len(LABELS))
    (linear,) = [layer for layer in head.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():  # logits of these sounds have mean 0 and deviation 2
        logits = torch.from_numpy(examples) @ linear.weight.T
        linear.weight *= 2 / logits.std(dim=0)[:, None]
        linear.bias.copy_(-(torch.from_numpy(examples) @ linear.weight.T).mean(dim=0))
    classifier = BEATsForAudioClassification(encoder, head, LABELS, activation, **options)
    return BEATsPredictor(classifier, device="cpu", precision="float32", batch_size=8)


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


def sound(seed, seconds=6.0):
    """Half-second pieces of sound, each of another pitch and loudness."""
    rng = np.random.default_rng(seed)
    num_pieces = math.ceil(seconds * 2)
    pieces = [
        tone(0.5, rng.uniform(150, 7000), seed=n, noise=rng.uniform(0, 0.4)) * rng.uniform(0.1, 1)
        for n in range(num_pieces)
    ]
    return np.concatenate(pieces)[: round(seconds * 16_000)]


def write_recording(path, seed=0, seconds=6.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seed, seconds), 16_000)
    return path


@pytest.fixture
def recordings(tmp_path):
    """Two nights with a time in their names, and one without."""
    folder = tmp_path / "recordings"
    write_recording(folder / "site a" / "20240510_235957.WAV", 0)
    write_recording(folder / "site b 🐸" / "20240511_043000.WAV", 1, 5.3)
    write_recording(folder / "toad.wav", 2, 4.0)
    return folder


def files_in(folder):
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() == ".wav")


def scores_by_hand(predictor, files, window_s=1.0, hop_s=0.5):
    table = predictor.predict(files, window_s=window_s, hop_s=hop_s)
    return {
        file: (rows["start_time"], rows["end_time"], rows[predictor.score_columns].to_numpy(float))
        for file, rows in table.groupby("file", sort=False)
    }


def middle_thresholds(predictor, files, share=0.5):
    """A threshold per class that the scores lie on both sides of, and none on it."""
    scores = np.concatenate([values for *_, values in scores_by_hand(predictor, files).values()])
    return dict(zip(LABELS, np.quantile(scores, share, axis=0).tolist(), strict=True))


def events_by_hand(predictor, files, thresholds, **rules):
    limits = [thresholds[label] for label in LABELS]
    parts = [
        find_events([windows], LABELS, EventRules(limits, **rules)).assign(file=file)
        for file, windows in scores_by_hand(predictor, files).items()
    ]
    return pd.concat(parts, ignore_index=True)[EVENT_COLUMNS]


def assert_same_events(found, expected):
    assert len(expected), "an empty table shows nothing"
    pd.testing.assert_frame_equal(
        found[EVENT_COLUMNS].reset_index(drop=True),
        expected.reset_index(drop=True),
        check_dtype=False,
        atol=1e-5,
    )


class Passes:
    """Counts the clips that go through the network."""

    def __init__(self, predictor):
        self.num_clips = 0
        self.handle = predictor.model.beats.register_forward_pre_hook(self.count)

    def count(self, network, arguments):
        self.num_clips += len(arguments[0])


@pytest.fixture
def passes(predictor):
    counter = Passes(predictor)
    yield counter
    counter.handle.remove()


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"release": 0.6},
        {"min_duration_s": 1.1},
        {"merge_gap_s": 1.0},
        {"top_n": 1},
        {"release": 0.5, "min_duration_s": 0.6, "merge_gap_s": 0.5, "top_n": 2},
    ],
    ids=lambda rules: "-".join(rules) or "none",
)
def test_events_are_those_of_the_averaged_window_scores(predictor, recordings, tmp_path, rules):
    files = files_in(recordings)
    thresholds = middle_thresholds(predictor, files)

    found = predictor.detect(
        recordings, tmp_path / "out", thresholds=thresholds, **WINDOWS, **rules
    )

    assert_same_events(found.events, events_by_hand(predictor, files, thresholds, **rules))
    assert found.num_recordings == 3
    assert found.recorded_s == pytest.approx(15.3)


def test_rules_change_what_is_found(predictor, recordings):
    """What the test above compares is not the same for all rules."""
    files = files_in(recordings)
    thresholds = middle_thresholds(predictor, files)

    numbers = [
        len(events_by_hand(predictor, files, thresholds, **rules))
        for rules in (
            {},
            {"release": 0.6},
            {"min_duration_s": 1.1},
            {"merge_gap_s": 1},
            {"top_n": 1},
        )
    ]

    assert len(set(numbers)) > 3


def test_thresholds_are_the_models_own_unless_given(predictor, recordings, tmp_path):
    files = files_in(recordings)
    own = middle_thresholds(predictor, files)
    model = make_predictor(thresholds=own)
    out = tmp_path / "out"

    assert_same_events(
        model.detect(files, out, **WINDOWS).events, events_by_hand(predictor, files, own)
    )
    assert_same_events(
        model.detect(files, out, thresholds=0.45, **WINDOWS).events,
        events_by_hand(predictor, files, dict.fromkeys(LABELS, 0.45)),
    )
    stricter = middle_thresholds(predictor, files, 0.8)["robin"]
    assert_same_events(
        model.detect(files, out, thresholds={"robin": stricter}, **WINDOWS).events,
        events_by_hand(predictor, files, own | {"robin": stricter}),
    )


def test_labels_limit_what_is_looked_for_and_the_best_are_still_the_best_of_all(
    predictor, recordings, tmp_path
):
    files = files_in(recordings)
    thresholds = middle_thresholds(predictor, files)
    expected = events_by_hand(predictor, files, thresholds, top_n=1)
    expected = expected[expected["label"].isin(["robin", "crow"])]

    found = predictor.detect(
        files, tmp_path / "out", labels=["robin", "crow"], thresholds=thresholds, top_n=1, **WINDOWS
    )

    assert_same_events(found.events, expected)


def test_other_thresholds_formats_and_rules_run_no_network(predictor, recordings, tmp_path, passes):
    out = tmp_path / "out"
    first = predictor.detect(recordings, out, thresholds=0.45, **WINDOWS)
    num_clips = passes.num_clips
    assert num_clips > 20

    second = predictor.detect(
        recordings, out, thresholds=0.4, release=0.9, formats=["raven"], timezone="UTC", **WINDOWS
    )

    assert passes.num_clips == num_clips
    assert len(second.events) != len(first.events)
    assert second.written["raven"]


def test_tables_of_an_earlier_run_that_are_not_written_anew_are_named(
    predictor, recordings, tmp_path, caplog
):
    out = tmp_path / "out"
    predictor.detect(recordings, out, formats=["csv", "raven"], num_clips=1, **WINDOWS)
    assert not caplog.records

    predictor.detect(recordings, out, thresholds=0.9, **WINDOWS)

    assert "raven, clips of an earlier run stay as before" in caplog.text


def test_recordings_of_earlier_runs_stay_in_the_tables_and_are_told(
    predictor, recordings, tmp_path, caplog
):
    out = tmp_path / "out"
    first = predictor.detect(recordings, out, thresholds=0.45, **WINDOWS)
    caplog.set_level("INFO")

    second = predictor.detect(recordings / "toad.wav", out, thresholds=0.45, **WINDOWS)

    assert_same_events(second.events, first.events[EVENT_COLUMNS])
    assert "holds 2 recordings besides these" in caplog.text


def test_a_recording_is_the_same_however_its_path_is_written(
    predictor, recordings, tmp_path, passes, monkeypatch, caplog
):
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    first = predictor.detect("recordings", out, thresholds=0.45, **WINDOWS)
    num_clips = passes.num_clips
    caplog.set_level("INFO")

    second = predictor.detect(recordings, out, thresholds=0.45, num_clips=1, **WINDOWS)

    assert_same_events(second.events, first.events[EVENT_COLUMNS])
    assert second.num_recordings == 3
    assert passes.num_clips == num_clips
    assert "besides these" not in caplog.text
    elsewhere = write_recording(tmp_path / "elsewhere" / "recordings" / "toad.wav", 7, 4.0)
    monkeypatch.chdir(
        elsewhere.parents[1]
    )  # the same relative name is told apart by an absolute one
    third = predictor.detect(elsewhere, out, thresholds=0.45, **WINDOWS)
    assert third.num_recordings == 4
    assert len(third.events) > len(first.events)


def test_another_run_is_refused_until_the_tables_are_written(
    predictor, recordings, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    refused = []

    def write_meanwhile(*given, **options):
        with pytest.raises(StoreInUseError) as error:
            predictor.detect(recordings, out, thresholds=0.9, **WINDOWS)
        refused.append(error)
        return write_detections(*given, **options)

    monkeypatch.setattr("beats_trainer.detection.outputs.write_detections", write_meanwhile)

    predictor.detect(recordings, out, thresholds=0.45, **WINDOWS)

    assert len(refused) == 1


def test_new_recordings_are_added_and_only_they_are_computed(
    predictor, recordings, tmp_path, passes
):
    out = tmp_path / "out"
    predictor.detect(recordings, out, thresholds=0.45, **WINDOWS)
    before = passes.num_clips
    write_recording(recordings / "new.wav", 7, 3.0)

    found = predictor.detect(recordings, out, thresholds=0.45, **WINDOWS)

    assert passes.num_clips - before == 5  # windows of 1 s every 0.5 s in 3 s
    assert found.num_recordings == 4
    assert str(recordings / "new.wav") in set(found.events["file"])


@pytest.mark.parametrize(
    ("changed", "setting"),
    [({"window_s": 2.0}, "window_s"), ({"hop_s": 0.25}, "hop_s"), ({"per_step": True}, "per_step")],
)
def test_scores_made_in_another_way_are_not_mixed(
    predictor, recordings, tmp_path, changed, setting
):
    out = tmp_path / "out"
    first = predictor.detect(recordings, out, **WINDOWS)

    with pytest.raises(StoreMismatchError, match=setting):
        predictor.detect(recordings, out, **{**WINDOWS, **changed})

    assert len(predictor.detect(recordings, out, **WINDOWS).events) == len(first.events)
    predictor.detect(recordings, out, overwrite=True, **{**WINDOWS, **changed})


def test_a_run_that_was_stopped_goes_on_and_finds_the_same(predictor, recordings, tmp_path, passes):
    unbroken = predictor.detect(recordings, tmp_path / "unbroken", thresholds=0.45, **WINDOWS)
    total = passes.num_clips

    def stop_later(network, arguments):
        if passes.num_clips > total + 12:
            raise KeyboardInterrupt

    handle = predictor.model.beats.register_forward_pre_hook(stop_later)
    out = tmp_path / "out"
    options = {"thresholds": 0.45, "rows_per_shard": 4, **WINDOWS}
    with pytest.raises(KeyboardInterrupt):
        predictor.detect(recordings, out, **options)
    handle.remove()
    assert not (out / "detections.csv").exists()
    before = passes.num_clips

    found = predictor.detect(recordings, out, **options)

    assert 0 < passes.num_clips - before < total
    assert_same_events(found.events, unbroken.events[EVENT_COLUMNS])


def test_a_window_of_no_choice_is_the_models_or_ten_seconds(recordings, tmp_path):
    predictor, trained = make_predictor(), make_predictor(window_s=2.0)

    predictor.detect(recordings, tmp_path / "default")
    trained.detect(recordings, tmp_path / "trained")

    recipes = [open_store(tmp_path / name / "scores").recipe for name in ("default", "trained")]
    assert [(recipe["window_s"], recipe["hop_s"]) for recipe in recipes] == [(10, 5), (2, 1)]


def test_per_step_gives_a_score_for_each_160_ms_and_a_table_of_onsets(
    predictor, recordings, tmp_path
):
    out = tmp_path / "out"

    found = predictor.detect(
        recordings, out, per_step=True, window_s=2.0, thresholds=0.5, formats=["frames"]
    )

    rows = open_store(out / "scores").to_pandas(files=[str(recordings / "toad.wav")])
    np.testing.assert_allclose(rows["start_time"], 0.16 * np.arange(len(rows)), atol=1e-9)
    np.testing.assert_allclose(rows["end_time"] - rows["start_time"], 0.16, atol=1e-9)
    assert 4.0 - rows["end_time"].iloc[-1] < 0.2
    frames = pd.read_csv(out / "detections.tsv", sep="\t")
    assert list(frames.columns) == ["filename", "onset", "offset", "event_label"]
    assert len(frames) == len(found.events) > 3
    steps = frames["onset"] / 0.16
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)


def test_recordings_without_an_event_have_tables_with_a_header(predictor, recordings, tmp_path):
    out = tmp_path / "out"
    scores = scores_by_hand(predictor, files_in(recordings))
    highest = {file: values[:, 0].max() for file, (_, _, values) in scores.items()}
    ranked = sorted(highest, key=highest.get)
    between = (highest[ranked[-1]] + highest[ranked[-2]]) / 2

    found = predictor.detect(
        recordings,
        out,
        labels=["wren"],
        thresholds=float(between),
        window_s=1.0,
        hop_s=1.0,
        formats=["raven", "audacity"],
    )

    assert set(found.events["file"]) <= {ranked[-1]}
    tables = [pd.read_csv(path, sep="\t") for path in found.written["raven"]]
    assert len(tables) == 3
    assert all(tuple(table.columns) == RAVEN_COLUMNS for table in tables)
    assert sorted(len(table) > 0 for table in tables)[:2] == [False, False]
    assert [path.name for path in found.written["audacity"]] == [
        "20240510_235957.WAV.txt",
        "20240511_043000.WAV.txt",
        "toad.wav.txt",
    ]


def test_nothing_found_gives_every_table_with_a_header_and_a_picture(
    predictor, recordings, tmp_path
):
    out = tmp_path / "out"

    found = predictor.detect(
        recordings, out, thresholds=1.0, formats=FORMATS, timezone="UTC", num_clips=3, **WINDOWS
    )

    assert len(found.events) == 0
    assert list(found.events.columns) == [*EVENT_COLUMNS, "datetime"]
    for name in FORMATS:
        assert list(read_detections(out / STANDARD_NAMES[name]).columns)[:5] == EVENT_COLUMNS
        assert len(read_detections(out / STANDARD_NAMES[name])) == 0
    summary = pd.read_csv(out / "summary.csv")
    assert list(summary.columns)[:4] == ["label", "date", "hour", "num_events"]
    assert len(summary) == 0
    assert "<svg" in (out / "summary.svg").read_text()
    assert (out / "errors.csv").read_text() == "file,start_time,end_time,reason\n"
    assert (out / "clips" / "clips.csv").read_text().startswith("clip,file,start_time")


def test_an_unreadable_recording_is_listed_and_the_others_go_on(predictor, recordings, tmp_path):
    bad = recordings / "site a" / "bad.wav"
    bad.write_text("no sound")
    good = [file for file in files_in(recordings) if file != str(bad)]

    found = predictor.detect(recordings, tmp_path / "out", thresholds=0.45, **WINDOWS)

    expected = events_by_hand(predictor, good, dict.fromkeys(LABELS, 0.45))
    assert_same_events(found.events, expected)
    assert found.failures["file"].tolist() == [str(bad)]
    errors = pd.read_csv(tmp_path / "out" / "errors.csv")
    assert errors["file"].tolist() == [str(bad)]
    assert "not audio" in errors["reason"][0]
    with pytest.raises(AudioError, match=r"bad\.wav"):
        predictor.detect(recordings, tmp_path / "other", on_error="raise", **WINDOWS)


def test_of_a_model_for_one_class_per_clip_scores_are_shares_and_events_come_of_them(
    recordings, tmp_path
):
    predictor = make_predictor("softmax", task="single")
    files = files_in(recordings)
    thresholds = dict.fromkeys(LABELS, 0.4)

    found = predictor.detect(files, tmp_path / "out", thresholds=thresholds, **WINDOWS)

    scores = open_store(tmp_path / "out" / "scores").to_numpy()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert_same_events(found.events, events_by_hand(predictor, files, thresholds))


def test_without_an_output_nothing_is_left_on_the_disk(
    predictor, recordings, tmp_path, monkeypatch
):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr("tempfile.tempdir", str(empty))
    thresholds = dict.fromkeys(LABELS, 0.45)

    found = predictor.detect(recordings, thresholds=thresholds, **WINDOWS)

    assert_same_events(found.events, events_by_hand(predictor, files_in(recordings), thresholds))
    assert found.written == {}
    assert list(empty.iterdir()) == []


def test_clips_for_review_hold_their_events(predictor, recordings, tmp_path):
    out = tmp_path / "out"
    predictor.detect(recordings, out, thresholds=0.45, num_clips=2, **WINDOWS)

    clips = pd.read_csv(out / "clips" / "clips.csv")

    assert clips.groupby("label").size().max() == 2
    for row in clips.itertuples():
        samples, rate = soundfile.read(out / "clips" / row.clip, dtype="float32")
        source, _ = soundfile.read(row.file, dtype="float32")
        first = max(0, round((row.start_time - 1) * rate))
        stop = min(len(source), round((row.end_time + 1) * rate))
        np.testing.assert_array_equal(samples, source[first:stop])


def test_clips_that_somebody_has_judged_are_not_written_over(predictor, recordings, tmp_path):
    out = tmp_path / "out"
    options = {"thresholds": 0.45, "num_clips": 2, **WINDOWS}
    predictor.detect(recordings, out, **options)
    verdicts = out / "clips" / "clips.csv"
    table = pd.read_csv(verdicts)
    table["correct"] = "yes"
    table.to_csv(verdicts, index=False)

    with pytest.raises(FileExistsError, match="verdict"):
        predictor.detect(recordings, out, **options)

    assert pd.read_csv(verdicts)["correct"].tolist() == ["yes"] * len(table)
    predictor.detect(recordings, out, thresholds=0.45, **WINDOWS)  # tables alone


def test_clips_for_review_are_no_recordings_of_the_next_run(
    predictor, recordings, tmp_path, caplog
):
    out = recordings / "out"
    options = {"thresholds": 0.45, "num_clips": 2, **WINDOWS}
    first = predictor.detect(recordings, out, **options)
    (out / "clips").rename(out / "judged")  # what to do to keep verdicts
    caplog.set_level("INFO")

    second = predictor.detect(recordings, out, **options)

    assert_same_events(second.events, first.events[EVENT_COLUMNS])
    assert second.num_recordings == 3
    num_clips = len(list((out / "judged").rglob("*.wav")))
    assert f"{num_clips} clips in {out}" in caplog.text
    with pytest.raises(AudioError, match="choose another output"):
        predictor.detect(out / "judged", out, **options)
    other = predictor.detect(out / "judged", tmp_path / "other", thresholds=0.45, **WINDOWS)
    assert other.num_recordings == num_clips


def test_clips_of_an_earlier_threshold_do_not_stay_among_the_new_ones(
    predictor, recordings, tmp_path
):
    clips = tmp_path / "out" / "clips"
    predictor.detect(recordings, tmp_path / "out", thresholds=0.45, num_clips=9, **WINDOWS)
    before = set(clips.rglob("*.wav"))
    own = clips / "my notes.wav"
    own.write_bytes(b"")

    predictor.detect(recordings, tmp_path / "out", thresholds=0.9, num_clips=1, **WINDOWS)

    after = {clips / name for name in pd.read_csv(clips / "clips.csv")["clip"]}
    assert after
    assert len(after) < len(before)
    assert set(clips.rglob("*.wav")) == after | {own}


def test_parts_of_files_have_events_there_only(predictor, recordings, tmp_path):
    file = str(recordings / "toad.wav")
    table = tmp_path / "parts.csv"
    pd.DataFrame(
        [(file, 2.5, 4.0), (file, 0.5, 1.5)], columns=["file", "start_time", "end_time"]
    ).to_csv(table, index=False)
    out = tmp_path / "out"
    formats = ["csv", "raven-combined"]

    found = predictor.detect(
        [table, recordings / "site a"],
        out,
        thresholds=0.0,
        formats=formats,
        timezone="UTC",
        **WINDOWS,
    )

    own = found.events[found.events["file"] == file]
    assert (
        own.groupby("label")[["start_time", "end_time"]]
        .apply(lambda rows: rows.values.tolist())
        .tolist()
        == [[[0.5, 1.5], [2.5, 4.0]]] * 3
    )
    assert found.recorded_s == pytest.approx(6.0 + 2.5)
    hours = found.summary.dropna(subset="hour")["recorded_s"]
    assert hours.tolist() == [3.0] * 3  # until midnight
    # In the table over all files, time is counted by the whole files before.
    combined = pd.read_csv(out / "detections.selections.txt", sep="\t")
    last = combined.iloc[-1]
    assert last["Begin Time (s)"] == 6.0 + last["File Offset (s)"]


def test_time_after_a_recording_of_which_a_part_was_searched_counts_whole(
    predictor, recordings, tmp_path
):
    """Raven adds up whole files, whatever was searched in them."""
    parts = [Clip(str(recordings / "site a" / "20240510_235957.WAV"), 0.0, 1.0)]

    predictor.detect(
        [*parts, recordings / "toad.wav"],
        tmp_path / "out",
        thresholds=0.0,
        formats=["raven-combined"],
        **WINDOWS,
    )

    combined = pd.read_csv(tmp_path / "out" / "detections.selections.txt", sep="\t")
    of_toad = combined[combined["Begin Path"].str.endswith("toad.wav")]
    assert (of_toad["Begin Time (s)"] - of_toad["File Offset (s)"]).tolist() == [6.0] * len(of_toad)


def test_dates_and_times_are_told_in_the_zone_asked_for(predictor, recordings, tmp_path):
    out = tmp_path / "out"

    found = predictor.detect(
        recordings,
        out,
        thresholds=0.0,
        labels=["wren"],
        timezone="UTC",
        convert_to="Europe/Oslo",
        formats=["csv", "parquet"],
        **WINDOWS,
    )

    times = [None if pd.isna(time) else time.isoformat() for time in found.events["datetime"]]
    assert times == ["2024-05-11T01:59:57+02:00", "2024-05-11T06:30:00+02:00", None]
    summary = pd.read_csv(out / "summary.csv")
    assert summary[["date", "hour"]].values.tolist()[:2] == [["2024-05-11", 1], ["2024-05-11", 6]]
    written = pd.read_csv(out / "detections.csv")
    assert pd.Timestamp(written["datetime"][0]) == found.events["datetime"][0]
    stored = pd.read_parquet(out / "detections.parquet")
    assert stored["datetime"][0] == found.events["datetime"][0]


def test_without_a_zone_times_are_those_of_the_recorders_clock(predictor, recordings):
    found = predictor.detect(recordings, thresholds=0.0, labels=["wren"], **WINDOWS)

    assert str(found.events["datetime"][0]) == "2024-05-10 23:59:57"
    # Three of the six seconds are of the next day.
    hours = found.summary.dropna(subset="hour")
    assert hours[["date", "hour", "recorded_s"]].values.tolist() == [
        ["2024-05-10", 23, 3.0],
        ["2024-05-11", 4, 5.3],
    ]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_with_bytes_that_are_no_text_goes_all_the_way(predictor, tmp_path):
    file = os.fsencode(tmp_path) + b"/caf\xe9_20240510_043000.wav"
    try:
        with open(file, "wb") as stream:
            soundfile.write(stream, sound(1), 8_000, format="WAV")
    except OSError:
        pytest.skip("this file system takes text only")
    write_tone(tmp_path / "z.wav", 2.0)
    out = tmp_path / "out"

    found = predictor.detect(
        [file, tmp_path / "z.wav"],
        out,
        thresholds=0.0,
        labels=["wren"],
        formats=FORMATS,
        num_clips=1,
        timezone="UTC",
        **WINDOWS,
    )

    shown = f"{tmp_path}/caf\\xe9_20240510_043000.wav"
    assert found.events["file"].tolist() == [shown, str(tmp_path / "z.wav")]
    assert found.events["datetime"][0].hour == 4
    assert len(pd.read_csv(out / "clips" / "clips.csv")) == 1
    assert (out / "clips" / "clip_errors.csv").read_text() == "file,reason\n"
    assert [path.name for path in found.written["raven"]] == [
        "caf\\xe9_20240510_043000.wav.selections.txt",
        "z.wav.selections.txt",
    ]
    assert pd.read_csv(found.written["raven"][0], sep="\t")["High Freq (Hz)"][0] == 4000
    again = read_detections(out / "detections.csv")
    assert again["file"].tolist() == found.events["file"].tolist()


def test_a_recording_much_longer_than_a_piece_in_memory_has_the_same_events(
    predictor, recordings, tmp_path, monkeypatch
):
    files = files_in(recordings)
    thresholds = middle_thresholds(predictor, files)
    out = tmp_path / "out"
    whole = predictor.detect(files, out, thresholds=thresholds, **WINDOWS)
    monkeypatch.setattr("beats_trainer.detector._PIECE_BYTES", 12 * 2)  # two rows at a time

    pieces = predictor.detect(files, out, thresholds=thresholds, **WINDOWS)

    pd.testing.assert_frame_equal(pieces.events, whole.events)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_are_stored_as_asked(predictor, recordings, tmp_path, dtype):
    out = tmp_path / "out"

    predictor.detect(recordings, out, dtype=dtype, **WINDOWS)

    store = open_store(out / "scores")
    assert store.dtype == dtype
    expected = np.concatenate(
        [values for *_, values in scores_by_hand(predictor, files_in(recordings)).values()]
    )
    np.testing.assert_allclose(store.to_numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"formats": ["ravn"]}, ValueError, "Did you mean 'raven'"),
        ({"timezone": "Oslo"}, ValueError, "Europe/Oslo"),
        ({"convert_to": "UTC"}, ValueError, "timezone="),
        ({"thresholds": {"wrem": 0.5}}, ValueError, "mean 'wren'"),
        ({"thresholds": 1.5}, ValueError, "from 0 to 1"),
        ({"labels": ["wrem"]}, ValueError, "look for 'wrem'.*mean 'wren'"),
        ({"labels": []}, ValueError, "labels"),
        ({"release": 0.0}, ValueError, "release"),
        ({"merge_gap_s": -1.0}, ValueError, "merge_gap_s"),
        ({"top_n": 0}, ValueError, "top_n"),
        ({"num_clips": -1}, ValueError, "num_clips"),
        ({"num_clips": 1, "clips_by": "best"}, ValueError, "stratified"),
        ({"window_s": 0.0}, ValueError, "window"),
        ({"hop_s": 20.0}, ValueError, "hop"),
        ({"dtype": "int8"}, ValueError, "dtype"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"batch_rows": 1}, TypeError, "batch_rows"),
    ],
)
def test_a_setting_that_makes_no_sense_is_an_error_before_anything_is_written(
    predictor, recordings, tmp_path, options, error, said
):
    with pytest.raises(error, match=said):
        predictor.detect(recordings, tmp_path / "out", **options)

    assert not (tmp_path / "out").exists()


def test_clips_for_review_need_an_output(predictor, recordings):
    with pytest.raises(ValueError, match="output"):
        predictor.detect(recordings, num_clips=1)
