"""A clip is a file, or a part of one; a long recording is a row of clips.

recording -> [windows] -> clips -> reader -> batches
"""

import math
from dataclasses import dataclass

__all__ = ["Clip", "plan_windows"]


@dataclass(frozen=True, slots=True)
class Clip:
    """What is read as one waveform.

    Attributes:
        file: The recording.
        start_s: Seconds from its start.
        duration_s: Seconds; ``None`` means to its end.

    Raises:
        ValueError: If a clip cannot start or last like that.
    """

    file: str
    start_s: float = 0.0
    duration_s: float | None = None

    def __post_init__(self) -> None:
        duration_s = 1.0 if self.duration_s is None else self.duration_s
        if not (0 <= self.start_s < math.inf and 0 < duration_s < math.inf):
            raise ValueError(
                "A clip starts at 0 s or later and lasts longer than 0 s, both finite; got start_s="
                f"{self.start_s} and duration_s={self.duration_s} for {self.file}."
            )


def plan_windows(num_samples: int, window: int, hop: int) -> range:
    """Cut a recording into windows such that every sample is in one.

    Windows start every ``hop`` samples until one reaches the end; that last one may be shorter. None is
    added that holds nothing new.

    Args:
        num_samples: Length of the recording, at least 1.
        window: Length of a window.
        hop: Samples between the starts of two windows, at most ``window``.

    Returns:
        First sample of each window; it ends ``window`` samples later, or where the recording ends.

    Raises:
        ValueError: If a length is not positive, or ``hop`` would leave gaps.

    Example:
        >>> list(plan_windows(25, 10, 5))
        [0, 5, 10, 15]
        >>> list(plan_windows(26, 10, 10))
        [0, 10, 20]
    """
    if num_samples < 1 or window < 1 or not 1 <= hop <= window:
        raise ValueError(
            "Expected a recording and a window of at least one sample and a hop of 1 to the window's "
            f"length; got {num_samples}, {window} and {hop}."
        )
    beyond_first = max(0, num_samples - window)
    return range(0, (1 + -(-beyond_first // hop)) * hop, hop)
