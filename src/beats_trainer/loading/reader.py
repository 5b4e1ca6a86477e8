"""Read ahead in threads, in order, a bounded number of items at a time; or all of them into memory.

items -> [threads] -> (item, result or exception), in the order of the items

Decoders and the resampler release Python's lock, so that threads decode in parallel while the network
computes.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from beats_trainer.audio import load_audio, probe_audio
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import AudioError
from beats_trainer.loading.clips import Clip

__all__ = ["read_ahead", "read_into_memory"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    num_threads: int,
    max_ahead: float,
    weigh: Callable[[Item], float] | None = None,
    is_known: Callable[[Item], bool] | None = None,
) -> Generator[tuple[Item, Result | Exception]]:
    """Call ``read`` on each item in threads, and give results in the order of the items.

    Args:
        items: Taken one by one, never more than ``max_ahead`` before the consumer.
        read: Runs in a thread. An exception that it raises is given as its result.
        num_threads: At least 1.
        max_ahead: Results held or in work at most, at least 1; where they are weighed, their weight, which
            the last one may exceed.
        weigh: What a result counts; each counts 1 by default.
        is_known: Whether ``read`` of an item gives at once what is known: a thread would cost more than it.

    Yields:
        Each item with its result, or with the exception that reading it raised. Closing the generator
        (or dropping it) waits for the reads in work and starts no more.

    Example:
        >>> list(read_ahead([1, 2, 3], lambda item: item * 10, num_threads=2, max_ahead=2))
        [(1, 10), (2, 20), (3, 30)]
    """
    if num_threads < 1 or max_ahead < 1:
        raise ValueError(
            f"num_threads and max_ahead must be at least 1, not {num_threads} and {max_ahead}."
        )
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="read_ahead")
    waiting: deque[tuple[Item, Future[Result], float]] = deque()
    ahead = 0.0
    try:
        for item in items:
            weight = 1.0 if weigh is None else weigh(item)
            is_at_once = is_known is not None and is_known(item)
            future = _done(read, item) if is_at_once else executor.submit(read, item)
            waiting.append((item, future, weight))
            ahead += weight
            while waiting and ahead >= max_ahead:
                item_done, future, weight = waiting.popleft()
                yield item_done, _outcome(future)
                ahead = ahead - weight if waiting else 0.0  # no rounding is carried on
        while waiting:
            item_done, future, weight = waiting.popleft()
            yield item_done, _outcome(future)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def read_into_memory(
    clips: Sequence[Clip], budget_bytes: int, num_threads: int, *, skip_unreadable: bool = False
) -> dict[Clip, NDArray[np.float32]] | None:
    """Decode clips once and keep them, if they fit.

    Args:
        clips: Files, or parts of files.
        budget_bytes: Memory that their samples may take, 4 bytes each at 16 kHz.
        num_threads: Threads that decode.
        skip_unreadable: Leave out clips that cannot be read.

    Returns:
        The waveform ``(S,)`` of each clip, float32 at 16 kHz; ``None``, before anything is decoded, if
        they would take more memory.

    Raises:
        AudioError: If a clip cannot be read, and they are not to be left out.
    """
    needed = 0.0
    for clip in clips:
        duration_s = clip.duration_s
        if duration_s is None:
            duration_s = probe_audio(clip.file).duration_s - clip.start_s
        needed += 4 * SAMPLE_RATE * duration_s
        if needed > budget_bytes:
            return None
    waveforms = {}
    stream = read_ahead(
        clips,
        lambda clip: load_audio(clip.file, clip.start_s, clip.duration_s),
        num_threads,
        4 * num_threads,
    )
    with contextlib.closing(stream):
        for clip, waveform in stream:
            if isinstance(waveform, AudioError) and skip_unreadable:
                continue
            if isinstance(waveform, Exception):
                raise waveform
            waveforms[clip] = waveform
    return waveforms


def _done(read: Callable[[Item], Result], item: Item) -> "Future[Result]":
    future: Future[Result] = Future()
    try:
        future.set_result(read(item))
    except Exception as error:
        future.set_exception(error)
    return future


def _outcome(future: "Future[Any]") -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error  # KeyboardInterrupt and the like are nobody's result
