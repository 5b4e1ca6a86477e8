"""Events are those of the rules, written down here a second time, plainly, class by class and cell by cell."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beats_trainer.detection import EventFinder, EventRules, find_events

LABELS = ["owl", "frog", "rain"]


def plain_events(starts, ends, scores, rules):
    """The rules of the module's docstring, one class and one cell at a time."""
    found = []
    for label in range(scores.shape[1]):
        high = np.broadcast_to(rules.highs, scores.shape[1:])[label]
        runs = []  # [start, end, score]
        previous_end = None
        for start, end, row in zip(starts, ends, scores, strict=True):
            rank = sorted(range(len(row)), key=lambda other: (-row[other], other)).index(label)
            is_on = row[label] >= rules.release * high
            is_on = is_on and (rules.top_n is None or rank < rules.top_n)
            if is_on and runs and runs[-1][1] == start == previous_end:
                runs[-1][1:] = [end, max(runs[-1][2], row[label])]
            elif is_on:
                runs.append([start, end, row[label]])
            previous_end = end
        events = [run for run in runs if run[2] >= high]
        merged = events[:1]
        for event in events[1:]:
            if event[0] - merged[-1][1] <= rules.merge_gap_s:
                merged[-1][1:] = [event[1], max(merged[-1][2], event[2])]
            else:
                merged.append(event)
        found += [
            (start, end, label, score)
            for start, end, score in merged
            if end - start >= rules.min_duration_s
        ]
    return sorted(found, key=lambda event: (event[0], event[2]))


@st.composite
def cells(draw):
    """Cells of 1 or 2 s, now and then with a gap between them; scores in tenths, with ties."""
    count = draw(st.integers(0, 30))
    lengths = np.array(draw(st.lists(st.sampled_from([1, 2]), min_size=count, max_size=count)))
    gaps = np.array(
        draw(st.lists(st.sampled_from([0, 0, 0, 1, 3]), min_size=count, max_size=count))
    )
    ends = (lengths + gaps).cumsum().astype(float)
    tenths = np.random.default_rng(draw(st.integers(0, 999))).integers(0, 11, (count, 3))
    return ends - lengths, ends, tenths / 10


settings_of_rules = st.fixed_dictionaries(
    {
        "thresholds": st.sampled_from([[0.5, 0.8, 0.3], [0.7] * 3, 0.6, [0.9, np.inf, 0.0]]),
        "release": st.sampled_from([1.0, 0.75, 0.5, 0.1]),
        "min_duration_s": st.sampled_from([0.0, 2.0, 5.0]),
        "merge_gap_s": st.sampled_from([0.0, 1.0, 4.0]),
        "top_n": st.sampled_from([None, 1, 2, 5]),
    }
)


@given(cells(), settings_of_rules, st.data())
def test_events_are_those_of_the_rules_however_the_cells_arrive(cells, settings, data):
    starts, ends, scores = cells
    rules = EventRules(**settings)
    bounds = [
        0,
        *sorted(data.draw(st.lists(st.integers(0, len(starts)), max_size=6))),
        len(starts),
    ]

    chunks = [(starts[a:b], ends[a:b], scores[a:b]) for a, b in pairwise(bounds)]
    found = find_events(chunks, LABELS, rules)

    expected = [
        (start, end, LABELS[label], score)
        for start, end, label, score in plain_events(starts, ends, scores, rules)
    ]
    assert list(found.itertuples(index=False, name=None)) == expected


@given(cells(), settings_of_rules)
def test_an_event_is_given_as_soon_as_no_later_cell_can_change_it(cells, settings):
    starts, ends, scores = cells
    rules = EventRules(**settings)
    finder = EventFinder(rules)
    given_so_far = set()
    for number in range(len(starts)):
        one = slice(number, number + 1)
        events = finder.add(starts[one], ends[one], scores[one])
        given_so_far |= set(zip(events.starts, events.ends, events.classes, strict=True))

        so_far = slice(0, number + 1)
        known = plain_events(starts[so_far], ends[so_far], scores[so_far], rules)
        final = {
            (start, end, label)
            for start, end, label, _ in known
            if ends[number] - end > rules.merge_gap_s and label not in finder._open.classes
        }
        assert final <= given_so_far


def test_hysteresis_extends_an_event_both_ways_while_the_score_stays_above_release():
    scores = [[0.1], [0.3], [0.8], [0.3], [0.2], [0.3]]
    starts = np.arange(6.0)

    found = find_events([(starts, starts + 1, scores)], ["owl"], EventRules(0.6, release=0.5))

    assert found.values.tolist() == [[1.0, 4.0, "owl", 0.8]]


def test_missing_sound_ends_an_event_unless_the_gap_may_be_merged():
    starts, ends, scores = np.array([0.0, 3.0]), np.array([1.0, 4.0]), [[0.9], [0.8]]

    apart = find_events([(starts, ends, scores)], ["owl"], EventRules(0.5))
    merged = find_events([(starts, ends, scores)], ["owl"], EventRules(0.5, merge_gap_s=2.0))

    assert apart[["start_time", "end_time"]].values.tolist() == [[0, 1], [3, 4]]
    assert merged.values.tolist() == [[0.0, 4.0, "owl", 0.9]]


def test_short_events_are_dropped_after_merging_not_before():
    starts = np.arange(5.0)
    scores = np.array([[0.9], [0.0], [0.9], [0.0], [0.0]])

    rules = EventRules(0.5, merge_gap_s=1.0, min_duration_s=3.0)
    found = find_events([(starts, starts + 1, scores)], ["owl"], rules)

    assert found[["start_time", "end_time"]].values.tolist() == [[0.0, 3.0]]


def test_the_first_class_is_found_like_any_other():
    found = find_events([([0.0], [5.0], [[0.9, 0.1]])], ["first", "second"], EventRules(0.5))

    assert found["label"].tolist() == ["first"]


def test_windows_that_overlap_are_averaged_before_thresholds():
    windows = ([0.0, 5.0], [10.0, 15.0], [[0.9], [0.3]])

    found = find_events([windows], ["owl"], EventRules(0.6))

    assert found.drop(columns="score").values.tolist() == [[0.0, 10.0, "owl"]]
    assert found["score"].tolist() == [0.9]


def test_the_lowest_of_overlapping_windows_gives_the_time_of_a_short_sound_where_the_mean_blurs_it():
    starts = np.arange(12.0)
    hears_it = (starts < 7) & (starts + 4 > 6)  # windows of 4 s, and a sound from 6 to 7 s
    windows = (starts, starts + 4, np.where(hears_it, 0.9, 0.1)[:, None])

    mean = find_events([windows], ["owl"], EventRules(0.5))
    lowest = find_events([windows], ["owl"], EventRules(0.5, combine="lowest"))

    assert mean[["start_time", "end_time"]].values.tolist() == [[4.0, 9.0]]
    assert lowest[["start_time", "end_time"]].values.tolist() == [[6.0, 7.0]]


def test_no_events_are_a_table_with_the_same_columns_and_types():
    some = find_events([([0.0], [5.0], [[0.9]])], ["owl"], EventRules(0.5))
    none = find_events([([0.0], [5.0], [[0.1]])], ["owl"], EventRules(0.5))
    nothing = find_events([], ["owl"], EventRules(0.5))

    pd.testing.assert_frame_equal(none, some.iloc[:0])
    pd.testing.assert_frame_equal(nothing, some.iloc[:0])


def test_memory_holds_no_more_than_a_run_and_an_event_of_each_class():
    rng = np.random.default_rng(0)
    finder = EventFinder(EventRules(0.5, release=0.5, merge_gap_s=2.0))
    for number in range(40):
        starts = 50.0 * number + np.arange(50)
        finder.add(starts, starts + 1, rng.random((50, 4)))

        assert len(finder._open) <= 4
        assert len(finder._waiting) <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": []}, "one number per class"),
        ({"thresholds": [[0.5]]}, "one number per class"),
        ({"thresholds": [0.5, -0.1]}, "negative"),
        ({"thresholds": [np.nan]}, "NaN"),
        ({"thresholds": 0.5, "combine": "median"}, "'mean' or 'lowest', not 'median'"),
        ({"thresholds": 0.5, "release": 0.0}, "release"),
        ({"thresholds": 0.5, "release": 1.5}, "release"),
        ({"thresholds": 0.5, "min_duration_s": -1}, "min_duration_s"),
        ({"thresholds": 0.5, "merge_gap_s": np.nan}, "merge_gap_s"),
        ({"thresholds": 0.5, "top_n": 0}, "top_n"),
        ({"thresholds": 0.5, "top_n": 1.5}, "top_n"),
    ],
)
def test_rules_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EventRules(**settings)


def test_what_does_not_fit_is_refused():
    rules = EventRules([0.5, 0.5])

    with pytest.raises(ValueError, match="2 thresholds for 1 labels"):
        find_events([], ["owl"], rules)
    with pytest.raises(ValueError, match="3 scores, and there are 2 labels"):
        find_events([([0.0], [1.0], [[0.1, 0.2, 0.3]])], ["owl", "frog"], rules)
    with pytest.raises(ValueError, match="thresholds for 2 classes"):
        EventFinder(rules).add([0.0], [1.0], [[0.1]])
    with pytest.raises(ValueError, match="OverlapAverage"):
        EventFinder(rules).add([0.0, 0.5], [1.0, 1.5], [[0.1, 0.1], [0.1, 0.1]])
