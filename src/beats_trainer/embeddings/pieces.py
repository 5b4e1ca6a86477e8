"""What goes through the network at once: clips cut into pieces, and the pieces' sound.

clips -> [length -> pieces on the token grid -> blocks of neighbours -> decode ahead] -> pieces with waveforms

A clip longer than the network hears at once is cut such that its pieces continue one another's grid of
tokens. Pieces that lie side by side in one file, as overlapping windows do, are decoded together, once.

As much is decoded ahead as the network takes at once, so that the threads have work all the while that it
computes.
"""

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from beats_trainer.audio import AudioReader, load_audio, probe_audio
from beats_trainer.constants import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE
from beats_trainer.errors import AudioError
from beats_trainer.loading import MOST_POOLED, Clip, read_ahead
from beats_trainer.model.architecture import Architecture
from beats_trainer.model.lengths import min_samples

__all__ = ["ClipInput", "Piece", "TokenGrid", "Work", "read_pieces"]

ClipInput: TypeAlias = str | os.PathLike[str] | Clip | NDArray[np.float32]
"""What can be encoded: a file, a part of one, or a waveform ``(S,)`` at 16 kHz."""

_BLOCK_SAMPLES = 60 * SAMPLE_RATE
"""Sound that is decoded in one go, for all pieces in it: a minute, 3.8 MB."""

_BLOCK_PIECES = 256
"""Pieces of a block at most."""

_CLIPS_AHEAD = 64
"""Clips whose lengths are looked up before their sound is wanted."""

_BUNDLE_SAMPLES = 5 * SAMPLE_RATE
_BUNDLE_BLOCKS = 16
"""Short clips that a thread reads in one go, at most: by itself, handing one over costs as much as reading it."""

_BUNDLES_PER_THREAD = 2
"""What is kept in work for each thread, however large it is."""


@dataclass(frozen=True, slots=True)
class Work:
    """One clip to encode.

    Attributes:
        source: Its sound, or why it cannot be had.
        group: Clips are batched with others of their group only; groups come one after another.
        duration_s: Its seconds, where they are known: the file is then not asked for them.
    """

    source: ClipInput | AudioError
    group: int = 0
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a clip that the network hears at once.

    Attributes:
        clip: Place of the clip among those given.
        group: The clip's.
        is_last: Whether the clip ends with it.
        waveform: Shape ``(S,)`` at 16 kHz, or why it could not be read.
    """

    clip: int
    group: int
    is_last: bool
    waveform: NDArray[np.float32] | AudioError


@dataclass(frozen=True)
class TokenGrid:
    """How a long clip is cut so that its pieces share one grid of tokens.

    A piece of K time steps is followed by the next K steps on, and reads the samples of its last step to
    their end.

    Attributes:
        step: Samples between two time steps.
        hop: Samples between the starts of two pieces.
        window: Samples of a piece, but for the last.
        minimum: Samples of one time step; fewer give no further token.

    Example:
        >>> grid = TokenGrid.of(Architecture(), window_s=10.0)
        >>> grid.hop / SAMPLE_RATE, list(grid.starts(400_000))
        (9.92, [0, 158720, 317440])
    """

    step: int
    hop: int
    window: int
    minimum: int

    @classmethod
    def of(cls, architecture: Architecture, window_s: float) -> "TokenGrid":
        """Build the grid of a network that hears ``window_s`` at once.

        Raises:
            ValueError: If that is less than one time step, or not finite.
        """
        if not math.isfinite(window_s):
            raise ValueError(f"window_s must be a finite number of seconds, not {window_s}.")
        patch = architecture.input_patch_size
        step = patch * FRAME_SHIFT
        overlap = FRAME_LENGTH - FRAME_SHIFT
        num_steps = int((window_s * SAMPLE_RATE - overlap) // step)
        if num_steps < 1:
            raise ValueError(
                f"window_s must be at least {min_samples(patch) / SAMPLE_RATE} s, not {window_s}."
            )
        return cls(step, num_steps * step, num_steps * step + overlap, min_samples(patch))

    def starts(self, num_samples: int) -> range:
        """First sample of each piece; a tail too short for a token adds none, as in the whole."""
        return range(0, max(1, num_samples - self.minimum + 1), self.hop)


@dataclass(frozen=True, slots=True)
class _Span:
    """A piece before it is read; ``length`` is ``None`` for a clip that is read whole, as it is."""

    clip: int
    group: int
    is_last: bool
    source: Clip | NDArray[np.float32] | AudioError
    size: int
    """Samples that it is expected to have."""
    start: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class _Sound:
    """The sound of a clip: its samples as its header has them, and whether it must be read by numbers."""

    source: Clip | NDArray[np.float32]
    num_samples: int
    is_part: bool


def read_pieces(
    work: Iterable[Work], grid: TokenGrid, num_threads: int, num_ahead: int = 64
) -> Generator[Piece]:
    """Read clips ahead of the network, piece by piece.

    Args:
        work: Taken as the sound is wanted, a bounded number ahead.
        grid: How long clips are cut.
        num_threads: Threads that decode.
        num_ahead: Pieces that are decoded ahead, as far as `MOST_POOLED` samples hold them.

    Yields:
        The pieces of each clip in time order, clip by clip. An unreadable clip has at least one piece that
        says why.
    """
    with contextlib.closing(_spans(work, grid, num_threads)) as spans:
        most = 1 / (_BUNDLES_PER_THREAD * num_threads)

        def share(bundle: Sequence[_Block]) -> float:
            """What a bundle takes of the room that there is."""
            spans = [span for block in bundle for span in block.spans]
            num_samples = sum(span.size for span in spans)
            return min(most, max(len(spans) / num_ahead, num_samples / MOST_POOLED))

        with contextlib.closing(_in_turns(_blocks(spans))) as in_turns:
            ready = read_ahead(_bundles(in_turns), _read_bundle, num_threads, 1, share)
            with contextlib.closing(ready):
                for bundle, outcome in ready:
                    if isinstance(outcome, Exception):
                        raise outcome
                    for block, waveforms in zip(bundle, outcome, strict=True):
                        if isinstance(waveforms, Exception):
                            raise waveforms
                        for span, waveform in zip(block.spans, waveforms, strict=True):
                            yield Piece(span.clip, span.group, span.is_last, waveform)


def _spans(work: Iterable[Work], grid: TokenGrid, num_threads: int) -> Generator[_Span]:
    """Cut each clip, after its length was looked up where it matters."""
    items = read_ahead(
        enumerate(work),
        lambda item: _sound_of(item[1], grid),
        num_threads,
        _CLIPS_AHEAD,
        is_known=lambda item: _is_known(item[1], grid),
    )
    with contextlib.closing(items):
        for (index, item), found in items:
            if isinstance(found, AudioError):
                yield _Span(index, item.group, True, found, 0)
                continue
            if isinstance(found, Exception):
                raise found
            source, num_samples = found.source, found.num_samples
            if not found.is_part:
                yield _Span(index, item.group, True, source, num_samples)
                continue
            first = 0 if isinstance(source, np.ndarray) else round(source.start_s * SAMPLE_RATE)
            starts = grid.starts(num_samples)
            for start in starts:
                length = min(grid.window, num_samples - start)
                is_last = start == starts[-1]
                yield _Span(index, item.group, is_last, source, length, first + start, length)


def _is_known(item: Work, grid: TokenGrid) -> bool:
    """Whether no file has to be asked how long it is."""
    if item.duration_s is not None or isinstance(item.source, np.ndarray | AudioError):
        return True
    return isinstance(item.source, Clip) and _is_short(item.source, grid)


def _is_short(clip: Clip, grid: TokenGrid) -> bool:
    return clip.duration_s is not None and clip.duration_s * SAMPLE_RATE <= grid.window


def _sound_of(item: Work, grid: TokenGrid) -> _Sound | AudioError:
    source = item.source
    if isinstance(source, AudioError):
        return source
    if isinstance(source, np.ndarray):
        return _Sound(source, len(source), len(source) > grid.window)
    clip = source if isinstance(source, Clip) else Clip(os.fspath(source))
    if clip.duration_s is not None and _is_short(clip, grid):
        return _Sound(clip, max(1, round(clip.duration_s * SAMPLE_RATE)), True)
    duration_s = item.duration_s
    if duration_s is None:
        duration_s = probe_audio(clip.file).duration_s - clip.start_s
    if clip.duration_s is not None:
        duration_s = min(duration_s, clip.duration_s)
    num_samples = round(duration_s * SAMPLE_RATE)
    return _Sound(clip, num_samples, num_samples > grid.window)


def _blocks(spans: Iterable[_Span]) -> Iterator[list[_Span]]:
    """Put neighbours in one file together, as long as nothing between them is read in vain."""
    block: list[_Span] = []
    for span in spans:
        if block and not _continues(block, span):
            yield block
            block = []
        block.append(span)
    if block:
        yield block


def _continues(block: Sequence[_Span], span: _Span) -> bool:
    first, last = block[0], block[-1]
    if not isinstance(first.source, Clip) or not isinstance(span.source, Clip):
        return False
    if last.length is None or span.length is None or first.group != span.group:
        return False
    return (
        first.source.file == span.source.file
        and last.start < span.start <= last.start + last.length
        and len(block) < _BLOCK_PIECES
        and span.start + span.length - first.start <= _BLOCK_SAMPLES
    )


class _Recording:
    """A file whose blocks must be read one after the other, by one decoder that goes on where it stopped."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.num_blocks = 0
        self._changed = threading.Condition()
        self._next = 0
        self._is_whole = False
        self._reader: AudioReader | None = None

    def read(self, turn: int, spans: Sequence[_Span]) -> list[NDArray[np.float32] | AudioError]:
        """Wait for the blocks before this one, and read it. They were begun earlier, so they come to an end."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == turn)
        try:
            if self._reader is None:
                self._reader = AudioReader(self.file, _BLOCK_SAMPLES / SAMPLE_RATE)
            return _read_spans(spans, self._reader.read)
        except AudioError as error:  # it cannot even be opened
            return [error for _ in spans]
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()
                self._close_after_last()

    def finish(self) -> None:
        """Say that no further block comes."""
        with self._changed:
            self._is_whole = True
            self._close_after_last()

    def _close_after_last(self) -> None:
        if self._is_whole and self._next == self.num_blocks and self._reader is not None:
            self._reader.close()
            self._reader = None


@dataclass(frozen=True, slots=True)
class _Block:
    """Pieces that are decoded in one go, and which turn of their recording it is where turns matter."""

    spans: list[_Span]
    recording: _Recording | None = None
    turn: int = 0


def _in_turns(blocks: Iterable[list[_Span]]) -> Generator[_Block]:
    """Find the files in which a block far behind costs what precedes it: theirs are read in order."""
    file: str | None = None
    recording: _Recording | None = None
    try:
        for spans in blocks:
            source = spans[0].source
            if not isinstance(source, Clip) or source.file != file:
                if recording is not None:
                    recording.finish()
                recording = None
                file = source.file if isinstance(source, Clip) else None
            elif recording is None and file is not None and not _is_seekable(file):
                recording = _Recording(file)
            if recording is None:
                yield _Block(spans)
            else:
                recording.num_blocks += 1
                yield _Block(spans, recording, recording.num_blocks - 1)
    finally:
        if recording is not None:
            recording.finish()


def _is_seekable(file: str) -> bool:
    try:
        return probe_audio(file).is_seekable
    except AudioError:  # which those say who read it
        return True


def _bundles(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Put short blocks together for one thread to read, whatever their files."""
    bundle: list[_Block] = []
    num_samples = 0
    for block in blocks:
        size = sum(span.size for span in block.spans)
        if bundle and (num_samples + size > _BUNDLE_SAMPLES or len(bundle) == _BUNDLE_BLOCKS):
            yield bundle
            bundle, num_samples = [], 0
        bundle.append(block)
        num_samples += size
    if bundle:
        yield bundle


def _read_bundle(
    bundle: Sequence[_Block],
) -> list[list[NDArray[np.float32] | AudioError] | Exception]:
    """What each block gives, or what it raised: the blocks behind it are read all the same.

    Other threads wait for their turns, which would never come.
    """
    outcomes: list[list[NDArray[np.float32] | AudioError] | Exception] = []
    for block in bundle:
        try:
            outcomes.append(_read_block(block))
        except Exception as error:
            outcomes.append(error)
    return outcomes


def _read_block(block: _Block) -> list[NDArray[np.float32] | AudioError]:
    """The waveform of each span, or why there is none."""
    if block.recording is not None:
        return block.recording.read(block.turn, block.spans)
    first = block.spans[0].source
    if not isinstance(first, Clip):
        return [_read_span(span, None) for span in block.spans]
    return _read_spans(block.spans, functools.partial(load_audio, first.file))


def _read_spans(
    spans: Sequence[_Span], read: Callable[[float, float | None], NDArray[np.float32]]
) -> list[NDArray[np.float32] | AudioError]:
    if len(spans) == 1:
        return [_read_span(spans[0], read)]
    first = spans[0].start
    stop = max(span.start + (span.length or 0) for span in spans)
    try:
        sound = read(first / SAMPLE_RATE, (stop - first) / SAMPLE_RATE)
    except AudioError:  # of one span, maybe: the others may well be readable
        return [_read_span(span, read) for span in spans]
    parts: list[NDArray[np.float32] | AudioError] = []
    for span in spans:
        begin = span.start - first
        part = sound[begin : begin + (span.length or 0)]
        # Past the end of the file: let the reader say so, in its words.
        parts.append(part if len(part) else _read_span(span, read))
    return parts


def _read_span(
    span: _Span, read: Callable[[float, float | None], NDArray[np.float32]] | None
) -> NDArray[np.float32] | AudioError:
    source = span.source
    if isinstance(source, AudioError):
        return source
    if isinstance(source, np.ndarray):
        return source if span.length is None else source[span.start : span.start + span.length]
    assert read is not None
    try:
        if span.length is None:
            return read(source.start_s, source.duration_s)
        return read(span.start / SAMPLE_RATE, span.length / SAMPLE_RATE)
    except AudioError as error:
        return error
