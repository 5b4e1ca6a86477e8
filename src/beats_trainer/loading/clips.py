"""A clip is a file, or a part of one; a long recording is a row of clips.

recording -> [windows] -> clips -> reader -> batches
"""

from dataclasses import dataclass

__all__ = ["Clip", "plan_windows"]


@dataclass(frozen=True, slots=True)
class Clip:
    """What is read as one waveform.

    Attributes:
        file: The recording.
        start_s: Seconds from its start.
        duration_s: Seconds; ``None`` means to its end.
    """

    file: str
    start_s: float = 0.0
    duration_s: float | None = None


def plan_windows(num_samples: int, window: int, hop: int) -> list[tuple[int, int]]:
    """Cut a recording into windows such that every sample is in one.

    Windows start every ``hop`` samples until one reaches the end; that last one may be shorter. None is
    added that holds nothing new.

    Args:
        num_samples: Length of the recording, at least 1.
        window: Length of a window.
        hop: Samples between the starts of two windows, at most ``window``.

    Returns:
        First sample and one past the last of each window, in samples.

    Raises:
        ValueError: If a length is not positive, or ``hop`` would leave gaps.

    Example:
        >>> plan_windows(25, 10, 5)
        [(0, 10), (5, 15), (10, 20), (15, 25)]
        >>> plan_windows(26, 10, 10)
        [(0, 10), (10, 20), (20, 26)]
    """
    if num_samples < 1 or window < 1 or not 1 <= hop <= window:
        raise ValueError(
            "Expected a recording and a window of at least one sample and a hop of 1 to the window's "
            f"length; got {num_samples}, {window} and {hop}."
        )
    beyond_first = max(0, num_samples - window)
    num_windows = 1 + -(-beyond_first // hop)
    return [(index * hop, min(index * hop + window, num_samples)) for index in range(num_windows)]
