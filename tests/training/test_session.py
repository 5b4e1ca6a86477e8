"""What a training measures on, and how much of it the network hears at once."""

import pandas as pd
import pytest

from beats_trainer.config import Config
from beats_trainer.training.session import groups_of, trained_window_s


def test_a_clip_without_a_group_belongs_with_the_parts_of_its_file():
    table = pd.DataFrame({"path": ["/a", "/b", "/b"], "group": ["site", None, None]})

    assert groups_of(table).tolist() == ["site", "/b", "/b"]


def test_without_any_group_clips_stand_for_themselves():
    paths = pd.DataFrame({"path": ["/a", "/b"]})

    assert groups_of(paths) is None
    assert groups_of(paths.assign(group=None)) is None


@pytest.mark.parametrize(
    ("mode", "max_duration_s", "ends", "expected"),
    [
        ("full", None, [3.0, 3.0, 1.2], 3.0),
        ("full", 10.0, [3.0, 3.0, 1.2], 3.0),  # what is cut to 10 s are windows of 3 s
        ("full", 2.0, [3.0, 3.0, 1.2], 2.0),
        ("head", 2.0, [3.0, 3.0, 1.2], 3.0),  # a frozen network hears them whole
        ("full", None, [1.0, 2.0, 3.0], None),
        ("full", None, [None, None, 3.0], None),
        ("full", 2.0, None, 2.0),
        ("head", 2.0, None, None),
    ],
)
def test_a_model_knows_how_much_sound_it_was_trained_on_at_once(
    mode, max_duration_s, ends, expected
):
    config = Config()
    config.model.mode = mode
    config.data.max_duration_s = max_duration_s
    table = pd.DataFrame({"path": ["/a", "/b", "/c"]})
    if ends is not None:
        table = table.assign(start_time=[0.0, None, 0.0] if ends[0] is None else 0.0, end_time=ends)

    assert trained_window_s(table, config) == expected
