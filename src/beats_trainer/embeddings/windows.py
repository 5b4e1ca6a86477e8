"""Which windows of a clip become rows: the plan that a windowed run follows.

clip -> [length -> plan] -> windows with start and end -> encoder

Every sample of a clip lies in a window; the last one may be shorter. Per time step, windows begin on the
clip's grid of tokens, and no window is planned that has no token of its own.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from beats_trainer.audio import probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.embeddings.encode import Failure
from beats_trainer.embeddings.pieces import TokenGrid
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip, plan_windows, read_ahead

__all__ = ["ClipPlan", "WindowPlan", "Windowing", "plan_clip", "plan_clips"]


@dataclass(frozen=True)
class Windowing:
    """How clips are cut into windows.

    Attributes:
        window_s: Seconds of a window; ``None`` makes each clip one.
        hop_s: Seconds between the starts of two windows; ``None`` means ``window_s``, no overlap.
        grid: The network's grid of tokens, if windows give a row per time step: windows and hops then are
            whole time steps, the nearest that are not longer.

    Raises:
        ValueError: If a length is not positive or not finite, the hop is longer than the window, or has no window.

    Example:
        >>> Windowing(5.0, 2.5).samples
        (80000, 40000)
    """

    window_s: float | None = None
    hop_s: float | None = None
    grid: TokenGrid | None = None

    def __post_init__(self) -> None:
        if self.window_s is None:
            if self.hop_s is not None:
                raise ValueError("hop_s needs window_s: without windows, a file is one clip.")
            if self.grid is not None:
                raise ValueError("Rows per time step need window_s.")
            return
        hop_s = self.window_s if self.hop_s is None else self.hop_s
        if not (0 < self.window_s < math.inf and 0 < hop_s < math.inf):
            raise ValueError(
                "window_s and hop_s must be positive and finite, not "
                f"{self.window_s} and {self.hop_s}."
            )
        if hop_s > self.window_s:
            raise ValueError(
                f"hop_s ({hop_s}) is longer than window_s ({self.window_s}): sound between the windows "
                "would be lost."
            )
        window, hop = self.samples
        if min(window, hop) < 1:
            raise ValueError(
                f"window_s ({self.window_s}) and hop_s ({hop_s}) must be at least one "
                + ("sample." if self.grid is None else "time step, 0.175 s and 0.16 s.")
            )

    @property
    def samples(self) -> tuple[int, int]:
        """Window and hop in samples; only where there are windows."""
        assert self.window_s is not None
        window, hop = (
            round(seconds * SAMPLE_RATE)
            for seconds in (self.window_s, self.window_s if self.hop_s is None else self.hop_s)
        )
        if self.grid is None:
            return window, hop
        step, overlap = self.grid.step, self.grid.window - self.grid.hop
        num_steps = (window - overlap) // step
        return num_steps * step + overlap if num_steps else 0, min(hop // step, num_steps) * step


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """The windows of one clip.

    Attributes:
        clip: The clip.
        duration_s: Its seconds.
        num_samples: Its samples at 16 kHz, as many as are read of it.
        starts: First sample of each window, from the clip's start.
        window: Samples of a window; ``None`` if the clip is one.
    """

    clip: Clip
    duration_s: float
    num_samples: int
    starts: range
    window: int | None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Clip:
        """The window as a part of the file; both times are known."""
        if self.window is None:
            return Clip(self.clip.file, self.clip.start_s, self.duration_s)
        start = self.starts[index]
        return Clip(
            self.clip.file,
            self.clip.start_s + start / SAMPLE_RATE,
            min(self.window, self.num_samples - start) / SAMPLE_RATE,
        )

    def sound(self, index: int) -> Clip:
        """The window as it is read: a clip that is a whole file is read as such."""
        return self.clip if self.window is None else self[index]


@dataclass(frozen=True)
class WindowPlan:
    """What is to be embedded.

    Attributes:
        clips: One per row of the result, file by file, in time order; each has a duration.
        failures: Files whose length could not be found, and why.
    """

    clips: list[Clip]
    failures: list[Failure]


def plan_clip(clip: Clip, windowing: Windowing) -> ClipPlan:
    """Cut one clip into windows, reading its file's header only.

    Raises:
        AudioError: If the file cannot be read, or ends before the clip starts.
    """
    info = probe_audio(clip.file)
    of_file = info.duration_s
    duration_s = of_file - clip.start_s
    if clip.duration_s is not None:
        duration_s = min(duration_s, clip.duration_s)
    # In the reader's way: a sample more than it finds may be a window of its own.
    first = round(clip.start_s * SAMPLE_RATE)
    num_samples = max(1, round(info.num_samples * SAMPLE_RATE / info.sample_rate)) - first
    if clip.duration_s is not None:
        num_samples = min(num_samples, max(1, round(clip.duration_s * SAMPLE_RATE)))
    if duration_s <= 0 or num_samples < 1:
        raise AudioError(
            clip.file, f"it is {of_file:.3f} s long, and the part starts at {clip.start_s:.3f} s."
        )
    if windowing.window_s is None:
        return ClipPlan(clip, duration_s, num_samples, range(1), None)
    window, hop = windowing.samples
    if windowing.grid is None:
        starts = plan_windows(num_samples, window, hop)
        return ClipPlan(clip, duration_s, num_samples, starts, window)
    step, overlap = windowing.grid.step, windowing.grid.window - windowing.grid.hop
    num_steps = max(1, (num_samples - overlap) // step)  # a tail too short for a token gives none
    starts = plan_windows(num_steps, (window - overlap) // step, hop // step)
    return ClipPlan(clip, duration_s, num_samples, range(0, starts.stop * step, hop), window)


def plan_clips(
    files: Sequence[str | os.PathLike[str]],
    window_s: float | None = None,
    hop_s: float | None = None,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    num_threads: int = 4,
) -> WindowPlan:
    """Cut files into windows, reading their headers only.

    Args:
        files: The recordings.
        window_s: Seconds of a window; ``None`` makes each file one clip.
        hop_s: Seconds between the starts of two windows; ``None`` means ``window_s``, no overlap.
        on_error: ``"raise"`` at the first unreadable file, or ``"skip"`` it.
        num_threads: Threads that read headers.

    Returns:
        The plan.

    Raises:
        AudioError: If a file cannot be read and ``on_error`` is ``"raise"``.
        ValueError: If the window or hop is not positive, or a hop has no window.
    """
    windowing = Windowing(window_s, hop_s)
    clips: list[Clip] = []
    failures: list[Failure] = []
    given: Iterable[tuple[int, Clip]] = enumerate(Clip(os.fspath(file)) for file in files)
    plans = read_ahead(given, lambda item: plan_clip(item[1], windowing), num_threads, 64)
    for (index, _), plan in plans:
        if isinstance(plan, AudioError) and on_error == "skip":
            failures.append(Failure(index, plan.file, plan.reason))
        elif isinstance(plan, Exception):
            raise plan
        else:
            clips += [plan[number] for number in range(len(plan))]
    return WindowPlan(clips, failures)
