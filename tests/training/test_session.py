"""What a training measures on: groups for the intervals."""

import pandas as pd

from beats_trainer.training.session import groups_of


def test_a_clip_without_a_group_belongs_with_the_parts_of_its_file():
    table = pd.DataFrame({"path": ["/a", "/b", "/b"], "group": ["site", None, None]})

    assert groups_of(table).tolist() == ["site", "/b", "/b"]


def test_without_any_group_clips_stand_for_themselves():
    paths = pd.DataFrame({"path": ["/a", "/b"]})

    assert groups_of(paths) is None
    assert groups_of(paths.assign(group=None)) is None
