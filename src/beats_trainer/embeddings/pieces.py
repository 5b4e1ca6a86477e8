"""What goes through the network at once: clips cut into pieces, and the pieces' sound.

clips -> [length -> pieces on the token grid -> blocks of neighbours -> decode ahead] -> pieces with waveforms

A clip longer than the network hears at once is cut such that its pieces continue one another's grid of
tokens. Pieces that lie side by side in one file, as overlapping windows do, are decoded together, once.
"""

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from beats_trainer.audio import load_audio, probe_audio
from beats_trainer.constants import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE
from beats_trainer.errors import AudioError
from beats_trainer.loading import Clip, read_ahead
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

_BLOCKS_AHEAD = 4
"""Decoded blocks kept waiting per reading thread."""


@dataclass(frozen=True, slots=True)
class Work:
    """One clip to encode.

    Attributes:
        source: Its sound.
        group: Clips are batched with others of their group only; groups come one after another.
    """

    source: ClipInput
    group: int = 0


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
            ValueError: If that is less than one time step.
        """
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
    start: int = 0
    length: int | None = None


def read_pieces(work: Iterable[Work], grid: TokenGrid, num_threads: int) -> Generator[Piece]:
    """Read clips ahead of the network, piece by piece.

    Args:
        work: Taken as the sound is wanted, a bounded number ahead.
        grid: How long clips are cut.
        num_threads: Threads that decode.

    Yields:
        The pieces of each clip in time order, clip by clip. An unreadable clip has at least one piece that
        says why.
    """
    with contextlib.closing(_spans(work, grid, num_threads)) as spans:
        blocks = read_ahead(_blocks(spans), _read_block, num_threads, _BLOCKS_AHEAD * num_threads)
        with contextlib.closing(blocks):
            for block, waveforms in blocks:
                if isinstance(waveforms, Exception):
                    raise waveforms
                for span, waveform in zip(block, waveforms, strict=True):
                    yield Piece(span.clip, span.group, span.is_last, waveform)


def _spans(work: Iterable[Work], grid: TokenGrid, num_threads: int) -> Generator[_Span]:
    """Cut each clip, after its length was looked up where it matters."""
    items = read_ahead(
        enumerate(work), lambda item: _sound_of(item[1].source, grid), num_threads, _CLIPS_AHEAD
    )
    with contextlib.closing(items):
        for (index, item), found in items:
            if isinstance(found, AudioError):
                yield _Span(index, item.group, True, found)
                continue
            if isinstance(found, Exception):
                raise found
            source, num_samples = found
            if num_samples is None:
                yield _Span(index, item.group, True, source)
                continue
            first = 0 if isinstance(source, np.ndarray) else round(source.start_s * SAMPLE_RATE)
            starts = grid.starts(num_samples)
            for start in starts:
                length = min(grid.window, num_samples - start)
                yield _Span(index, item.group, start == starts[-1], source, first + start, length)


def _sound_of(source: ClipInput, grid: TokenGrid) -> tuple[Clip | NDArray[np.float32], int | None]:
    """The clip, and its samples where it must be cut or is known to be a part of a file."""
    if isinstance(source, np.ndarray):
        return source, len(source) if len(source) > grid.window else None
    clip = source if isinstance(source, Clip) else Clip(os.fspath(source))
    if clip.duration_s is not None and clip.duration_s * SAMPLE_RATE <= grid.window:
        return clip, max(1, round(clip.duration_s * SAMPLE_RATE))
    duration_s = probe_audio(clip.file).duration_s - clip.start_s
    if clip.duration_s is not None:
        duration_s = min(duration_s, clip.duration_s)
    num_samples = round(duration_s * SAMPLE_RATE)
    return clip, num_samples if num_samples > grid.window else None


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


def _read_block(block: Sequence[_Span]) -> list[NDArray[np.float32] | AudioError]:
    """The waveform of each span, or why there is none."""
    if len(block) == 1:
        return [_read_span(block[0])]
    first = block[0]
    assert isinstance(first.source, Clip)
    stop = max(span.start + (span.length or 0) for span in block)
    try:
        sound = load_audio(
            first.source.file, first.start / SAMPLE_RATE, (stop - first.start) / SAMPLE_RATE
        )
    except AudioError:  # of one span, maybe: the others may well be readable
        return [_read_span(span) for span in block]
    parts: list[NDArray[np.float32] | AudioError] = []
    for span in block:
        begin = span.start - first.start
        part = sound[begin : begin + (span.length or 0)]
        # Past the end of the file: let the reader say so, in its words.
        parts.append(part if len(part) else _read_span(span))
    return parts


def _read_span(span: _Span) -> NDArray[np.float32] | AudioError:
    source = span.source
    if isinstance(source, AudioError):
        return source
    if isinstance(source, np.ndarray):
        return source if span.length is None else source[span.start : span.start + span.length]
    try:
        if span.length is None:
            return load_audio(source.file, source.start_s, source.duration_s)
        return load_audio(source.file, span.start / SAMPLE_RATE, span.length / SAMPLE_RATE)
    except AudioError as error:
        return error
