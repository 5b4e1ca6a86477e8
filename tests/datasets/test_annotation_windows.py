"""Cutting annotated recordings into clips with labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beats_trainer.datasets import Annotations, read_annotations, window_clips, write_raven


def annotated(*rows, duration_s=10.0, file="/a.wav", **others) -> Annotations:
    """Annotations ``(start, end, label)`` of one recording, and other recordings with nothing in them."""
    table = pd.DataFrame(
        {
            "file": [file] * len(rows),
            "start_time": np.array([row[0] for row in rows], float),
            "end_time": np.array([row[1] for row in rows], float),
            "label": [row[2] for row in rows],
        }
    )
    return Annotations(table, {file: duration_s, **others})


def test_a_label_is_present_with_enough_overlap_and_unknown_with_less():
    annotations = annotated((1, 2, "robin"), (4.9, 7, "wren"), (4, 5.25, "tit"), (0, 10, "rain"))

    clips = window_clips(annotations)

    assert clips[["start_time", "end_time"]].to_numpy().tolist() == [[0, 5], [5, 10]]
    assert clips["category"].tolist() == [["rain", "robin", "tit"], ["rain", "tit", "wren"]]
    assert clips["unknown"].tolist() == [["wren"], []]
    assert clips["filename"].tolist() == clips["group"].tolist() == ["/a.wav", "/a.wav"]


def test_a_short_call_counts_where_it_is_whole():
    clips = window_clips(annotated((4.9, 5.0, "click"), (5.0, 5.01, "tick")))

    assert clips["category"].tolist() == [["click"], ["tick"]]
    assert clips["unknown"].tolist() == [[], []]


def test_a_call_that_every_window_cuts_is_present_where_most_of_it_is():
    clips = window_clips(annotated((4.9, 5.2, "click")))

    assert clips["category"].tolist() == [[], ["click"]]
    assert clips["unknown"].tolist() == [["click"], []]


def test_a_second_annotation_of_a_label_may_make_it_present_where_the_first_leaves_it_unknown():
    clips = window_clips(annotated((4.9, 7, "wren"), (1, 2, "wren")))

    assert clips["category"].tolist() == [["wren"], ["wren"]]
    assert clips["unknown"].tolist() == [[], []]


def test_a_smaller_fraction_of_a_call_can_be_enough():
    annotations = annotated((4.8, 8.8, "wren"))

    assert window_clips(annotations)["category"].tolist() == [[], ["wren"]]
    fraction = window_clips(annotations, min_label_fraction=0.05)
    assert fraction["category"].tolist() == [["wren"], ["wren"]]


def test_last_window_is_moved_back_to_the_recordings_end():
    clips = window_clips(annotated((10.5, 12, "robin"), duration_s=12.0), hop_s=2.5)

    assert clips["start_time"].tolist() == [0, 2.5, 5, 7]
    assert clips["end_time"].tolist() == [5, 7.5, 10, 12]
    assert clips["category"].tolist() == [[], [], [], ["robin"]]


def test_a_recording_shorter_than_a_window_is_one_clip():
    clips = window_clips(annotated((0.1, 0.2, "robin"), duration_s=0.7))

    assert clips[["start_time", "end_time"]].to_numpy().tolist() == [[0, 0.7]]
    assert clips["category"].tolist() == [["robin"]]


def test_only_the_labels_that_are_asked_for_count():
    annotations = annotated((1, 2, "robin"), (1, 2, "wren"), (4.9, 7, "rain"))

    clips = window_clips(annotations, labels=["wren"])

    assert clips["category"].tolist() == [["wren"], []]
    assert clips["unknown"].tolist() == [[], []]
    with pytest.warns(UserWarning, match=r"'robbin'. Did you mean 'robin'\?"):
        window_clips(annotations, labels=["robbin"])


def test_empty_windows_can_be_left_out_or_limited():
    annotations = annotated((1, 2, "robin"), (6, 7, "wren"), **{"/b.wav": 500.0})

    assert len(window_clips(annotations)) == 102
    assert window_clips(annotations, keep_empty=False)["category"].tolist() == [["robin"], ["wren"]]
    limited = window_clips(annotations, max_empty_ratio=1.5)
    assert [len(names) for names in limited["category"]] == [1, 1, 0, 0, 0]
    of_b = limited[limited["filename"] == "/b.wav"]
    assert of_b["start_time"].is_monotonic_increasing
    assert of_b["start_time"].is_unique


def test_chosen_empty_windows_follow_the_seed_and_not_the_order_of_recordings():
    recordings = {"/b.wav": 500.0, "/c.wav": 500.0}
    annotations = annotated((1, 2, "robin"), **recordings)
    turned = Annotations(annotations.table, dict(reversed(annotations.recordings.items())))

    def chosen(given, seed):
        clips = window_clips(given, max_empty_ratio=10, seed=seed)
        return set(zip(clips["filename"], clips["start_time"], strict=True))

    assert len(chosen(annotations, 1)) == 11
    assert chosen(annotations, 1) == chosen(turned, 1)
    assert chosen(annotations, 1) != chosen(annotations, 2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"window_s": 0}, "window"),
        ({"hop_s": 6}, "nothing is left out"),
        ({"hop_s": float("nan")}, "hop"),
        ({"min_overlap_s": 0}, "min_overlap_s"),
        ({"window_s": 0.1}, "min_overlap_s"),
        ({"min_label_fraction": 0}, "min_label_fraction"),
        ({"max_empty_ratio": -1}, "max_empty_ratio"),
        ({"max_empty_ratio": 1, "keep_empty": False}, "no effect"),
    ],
)
def test_lengths_and_ratios_out_of_range_are_errors(options, problem):
    with pytest.raises(ValueError, match=problem):
        window_clips(annotated((1, 2, "robin")), **options)


def test_no_recording_gives_a_table_with_the_same_columns():
    nothing = annotated()
    nothing.recordings.clear()

    assert list(window_clips(nothing).columns) == list(window_clips(annotated()).columns)


@st.composite
def any_annotations(draw):
    duration = draw(st.floats(0.01, 60))
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.floats(0, duration * 0.999))
        end = min(duration, start + draw(st.floats(1e-4, 60)))
        rows.append((start, end, draw(st.sampled_from("abc"))))
    return annotated(*(row for row in rows if row[1] > row[0]), duration_s=duration)


@settings(deadline=None, max_examples=100)
@given(
    annotations=any_annotations(),
    window=st.floats(0.5, 20),
    overlap=st.floats(0.2, 1),
    data=st.data(),
)
def test_every_sample_is_in_a_window_and_every_annotation_is_present_in_one(
    annotations, window, overlap, data
):
    min_overlap = data.draw(st.floats(0.01, window))
    clips = window_clips(
        annotations, window_s=window, hop_s=window * overlap, min_overlap_s=min_overlap
    )

    starts, ends = clips["start_time"].to_numpy(), clips["end_time"].to_numpy()
    duration = annotations.recordings["/a.wav"]
    assert starts[0] == 0
    assert ends[-1] == duration
    assert (starts[1:] <= ends[:-1] + 1e-9).all()
    assert (np.diff(starts) > 0).all()
    if duration > window + 1e-5:
        np.testing.assert_allclose(ends - starts, window, atol=1e-9)
    for row in annotations.table.itertuples():
        inside = np.minimum(ends, row.end_time) - np.maximum(starts, row.start_time)
        present = np.array([row.label in names for names in clips["category"]])
        unknown = np.array([row.label in names for names in clips["unknown"]])
        assert present[inside > 0].any()
        assert present[inside >= min_overlap].all()
        assert (present | unknown)[inside > 1e-5].all()
        assert not (present & unknown).any()
    for index, names in enumerate(clips["category"]):
        for label in names + clips["unknown"][index]:
            same = annotations.table[annotations.table["label"] == label]
            assert ((same["start_time"] < ends[index]) & (same["end_time"] > starts[index])).any()


def test_windows_of_real_field_recordings_have_the_calls_in_them(shared_data, tmp_path):
    """A minute of forest and 44.57 s of toads, annotated in one Raven table."""
    field = shared_data / "field"
    forest, toad = str(field / "1min.wav"), str(field / "great_plains_toad.wav")
    table = pd.DataFrame(
        {
            "file": [forest, forest, toad],
            "start_time": [2.0, 14.9, 0.0],
            "end_time": [3.0, 17.0, 44.571],
            "label": ["bird", "bird", "toad"],
            "low_freq": [2000.0, 2000.0, 1800.0],
            "high_freq": [8000.0, 8000.0, 3000.0],
        }
    )

    annotations = read_annotations(write_raven(table, tmp_path / "all.selections.txt"))
    clips = window_clips(annotations)

    pd.testing.assert_frame_equal(annotations.table, table)
    of_forest, of_toad = (clips[clips["filename"] == file] for file in (forest, toad))
    assert len(of_forest) == 12
    assert len(of_toad) == 9
    assert of_toad["category"].tolist() == [["toad"]] * 9
    assert of_toad["end_time"].iloc[-1] == annotations.recordings[toad]
    assert [bool(names) for names in of_forest["category"]] == [
        True,
        *[False] * 2,
        True,
        *[False] * 8,
    ]
    assert of_forest["unknown"].tolist()[2] == ["bird"]
