"""Clips cut into windows on the way through the engine: one outcome per window, in order.

clips -> [header -> windows] -> engine -> (window, values or why there are none)
"""

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beats_trainer.embeddings.batch_size import BatchSize
from beats_trainer.embeddings.encode import encode_stream
from beats_trainer.embeddings.encoder import Encoder
from beats_trainer.embeddings.journal import FileState
from beats_trainer.embeddings.pieces import Work
from beats_trainer.embeddings.windows import ClipPlan, Windowing, plan_clip
from beats_trainer.errors import AudioError
from beats_trainer.file_names import is_url
from beats_trainer.loading import Clip, read_ahead

__all__ = ["Window", "encode_windows"]

_CLIPS_AHEAD = 256
"""Clips that are planned before their windows are wanted."""

_URLS_AHEAD = 8
"""Of these, those behind URLs: planning one fetches it, and it must still be here when it is read."""


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a run; or a clip of which not even the length can be read.

    Attributes:
        clip: The clip that it is cut from, as given.
        state: What the clip's file was when its windows were planned.
        duration_s: The clip's seconds; ``None`` if unknown.
        index: Its place among the clip's windows.
        is_last: Whether the clip ends with it.
        start_time: Seconds from the file's start; ``None`` if the length is unknown.
        end_time: Seconds from the file's start.
        group: Windows of one group are batched together.
    """

    clip: Clip
    state: FileState | None
    duration_s: float | None
    index: int
    is_last: bool
    start_time: float | None
    end_time: float | None
    group: int


def encode_windows(
    encoder: Encoder,
    clips: Iterable[tuple[Clip, int]],
    windowing: Windowing,
    *,
    windows_per_group: int = 4096,
    batch_size: BatchSize = None,
    num_threads: int | None = None,
) -> Generator[tuple[Window, NDArray[np.float32] | AudioError]]:
    """Encode the windows of clips, in bounded memory.

    Args:
        encoder: The network and what is kept of its tokens.
        clips: Each with the first of its windows that is wanted.
        windowing: How they are cut; with a grid if the encoder gives a row per time step.
        windows_per_group: Windows that are batched among themselves, see `encode_stream`.
        batch_size: Most windows in a batch; ``None`` chooses.
        num_threads: Threads that decode ahead; ``None`` chooses by the machine.

    Yields:
        Each window, in order, with its values or with why it could not be read.
    """
    assert encoder.per_step == (windowing.grid is not None)
    upcoming: deque[Window] = deque()
    planned = _plan(clips, windowing, windows_per_group, num_threads or 4)
    with contextlib.closing(planned):
        work = _noting(planned, upcoming)
        with contextlib.closing(encode_stream(encoder, work, batch_size, num_threads)) as stream:
            for _, values in stream:
                yield upcoming.popleft(), values


def _plan(
    clips: Iterable[tuple[Clip, int]], windowing: Windowing, per_group: int, num_threads: int
) -> Generator[tuple[Window, Work]]:
    """Give the windows of all clips in order, each with what is to be encoded."""

    def plan(item: tuple[Clip, int]) -> tuple[FileState | None, ClipPlan | AudioError]:
        state = FileState.of(item[0].file)  # before its length: what comes later is a change
        try:
            return state, plan_clip(item[0], windowing)
        except AudioError as error:
            return state, error

    def weigh(item: tuple[Clip, int]) -> float:
        return _CLIPS_AHEAD / _URLS_AHEAD if is_url(item[0].file) else 1.0

    count = 0
    plans = read_ahead(clips, plan, num_threads, _CLIPS_AHEAD, weigh)
    with contextlib.closing(plans):
        for (clip, first), outcome in plans:
            if isinstance(outcome, Exception):
                raise outcome
            state, found = outcome
            if isinstance(found, ClipPlan) and first >= len(found):
                found = AudioError(clip.file, "it is shorter than what was read of it before.")
            if isinstance(found, AudioError):
                group = count // per_group
                window = Window(clip, state, None, first, True, None, None, group)
                yield window, Work(found, group)
                count += 1
                continue
            for index in range(first, len(found)):
                part = found[index]
                assert part.duration_s is not None
                end_time = part.start_s + part.duration_s
                is_last = index == len(found) - 1
                group = count // per_group
                window = Window(
                    *(clip, state, found.duration_s, index, is_last, part.start_s, end_time), group
                )
                yield window, Work(found.sound(index), group, part.duration_s)
                count += 1


def _noting(planned: Iterable[tuple[Window, Work]], upcoming: deque[Window]) -> Iterator[Work]:
    """What the engine is to encode; it takes some ahead, and their windows wait in ``upcoming``."""
    for window, work in planned:
        upcoming.append(window)
        yield work
