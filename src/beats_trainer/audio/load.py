"""Load a recording, or a part of it, as the network hears it.

file or URL -> [decode just the part -> mono -> resample] -> waveform (S,) float32, 16 kHz

A part is what the whole would have been there: it is resampled with some context on both sides, from a
place where the two sample grids meet, and the context is cut off again. Beside the result, memory holds
about one decoded piece of a megabyte, whatever the length, the rate and the channels.
"""

import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from beats_trainer.audio.decode import Decoder, Source, find_source, open_decoder
from beats_trainer.audio.remote import LocalCopy, is_url
from beats_trainer.audio.waveform import (
    aligned_ratio,
    check_finite,
    mix_to_mono,
    resample_pieces,
)
from beats_trainer.constants import SAMPLE_RATE
from beats_trainer.errors import AudioError

__all__ = ["AudioInfo", "AudioReader", "load_audio", "probe_audio"]

_CONTEXT = 320
"""Samples on both sides of a part, at the lower of the two rates: 20 ms at 16 kHz."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Attributes:
        file: The file as it was given.
        duration_s: Seconds.
        sample_rate: Hz, of the file.
        num_channels: Channels of the file.
        num_samples: Samples per channel, at the file's own rate.
        is_seekable: Whether a part costs the same wherever it lies, so that parts may be loaded in any
            order and side by side. If not (MP3, WMA, WebM, bare AAC and others), what precedes a part is
            read or even decoded first: an `AudioReader` that goes forward does that once.
    """

    file: str
    duration_s: float
    sample_rate: int
    num_channels: int
    num_samples: int
    is_seekable: bool = True


def probe_audio(file: str | os.PathLike[str]) -> AudioInfo:
    """Read a file's length, rate and channels, without decoding its sound where the format allows.

    Args:
        file: WAV, MP3, FLAC, M4A, OGG, or anything else that soundfile or FFmpeg reads; a path or a URL,
            as for `load_audio`. A URL's file is fetched whole.

    Returns:
        What the header says. Files whose header has no exact length (bare AAC, WMA, WebM, an MP3 without
        a frame count) are decoded once to count, and the count is remembered while the file stays.

    Raises:
        AudioNotFoundError: If there is no such file.
        AudioError: If it is not audio, holds no samples, or is cut off, or a URL cannot be fetched.
    """
    name = os.fspath(file)
    if is_url(name):
        with LocalCopy(name) as path:
            return _info(find_source(name, path))
    return _info(find_source(name))


def load_audio(
    file: str | os.PathLike[str], start_s: float = 0.0, duration_s: float | None = None
) -> NDArray[np.float32]:
    """Load a recording, or a part of it, as mono float32 at 16 kHz.

    Channels are averaged; other rates are resampled. Only the part that is asked for is decoded; in WMA,
    WebM and Matroska files, what precedes it too: to read many parts of one, open an `AudioReader`. A
    part equals that part of the whole, but for the noise that AAC decoders make up in bands where the
    encoder kept its level only.

    A file that says how much it holds and holds less is an error, never a shorter waveform. MP3 without a
    frame count, bare AAC and MP2 do not say it: what is there is their sound.

    Args:
        file: WAV, MP3, FLAC, M4A, OGG, or anything else that soundfile or FFmpeg reads. A path, or a URL
            of a kind that fsspec knows (``https://``, ``s3://``, ``zip://a.wav::b.zip``): its file is
            fetched whole, and kept for a while for the next part.
        start_s: Seconds from the file's start.
        duration_s: Seconds; ``None`` means to the end. A part that reaches past the end is shorter.

    Returns:
        Shape ``(S,)``, about -1..1, at least one sample.

    Raises:
        AudioNotFoundError: If there is no such file.
        AudioError: If it cannot be decoded, is damaged or cut off, holds no samples or a sample that is
            not a number, ends before ``start_s``, or a URL cannot be fetched.
        ValueError: If ``start_s`` is negative or ``duration_s`` is not positive.
    """
    _check_part(start_s, duration_s)
    with AudioReader(file, overlap_s=0) as reader:
        return reader.read(start_s, duration_s)


class AudioReader:
    """A recording held open, to read one part after the other.

    Each part is what `load_audio` gives for it, and reading a recording forward costs what decoding it
    once costs, in every format: the decoder goes on where it stopped. Going back further than
    ``overlap_s`` is allowed, and costs a new start where `AudioInfo.is_seekable` is false.

    One thread at a time may use a reader; open one for each. It keeps the file open, and opens it again
    to go back in some formats and to seek in OGG Vorbis. Of a file that grows meanwhile, it gives what was
    there at first; of one that is gone or another when it is opened again, an error.

    Args:
        file: A path or a URL, as for `load_audio`.
        overlap_s: Seconds by which a part may begin before the end of the one before it; so much of the
            mono sound is kept in memory, at the file's rate, where places are not found at once.

    Attributes:
        info: What `probe_audio` gives.

    Raises:
        AudioNotFoundError: If there is no such file.
        AudioError: If it is not audio, holds no samples, or is cut off, or a URL cannot be fetched.
        ValueError: If ``overlap_s`` is negative.

    Example:
        >>> import soundfile, tempfile
        >>> file = f"{tempfile.mkdtemp()}/night.wav"
        >>> soundfile.write(file, np.zeros(3 * 48_000), 48_000)
        >>> with AudioReader(file) as reader:
        ...     [len(reader.read(start_s, duration_s=2.0)) for start_s in (0.0, 1.0, 2.0)]
        [32000, 32000, 16000]
    """

    info: AudioInfo

    def __init__(self, file: str | os.PathLike[str], overlap_s: float = 10.0) -> None:
        if not overlap_s >= 0:
            raise ValueError(f"overlap_s must not be negative, not {overlap_s}.")
        self._file = os.fspath(file)
        self._copy = LocalCopy(self._file) if is_url(self._file) else None
        self._decoder: Decoder | None = None
        self._kept = _Kept(0)
        try:
            self._path = self._file if self._copy is None else self._copy.__enter__()
            self._decoder = open_decoder(self._file, self._path)
        except BaseException:
            self.close()
            raise
        self._source = self._decoder.source
        self.info = _info(self._source)
        # A part begins earlier by its context and to where the grids meet, and the last one ended later.
        rate = self._source.sample_rate
        margin = 2 * _CONTEXT * math.ceil(rate / SAMPLE_RATE) + aligned_ratio(rate)[0] + 2
        self._kept = _Kept(math.ceil(overlap_s * rate) + margin)

    def read(self, start_s: float = 0.0, duration_s: float | None = None) -> NDArray[np.float32]:
        """Load a part; arguments, result and errors are those of `load_audio`.

        Raises:
            AudioNotFoundError: If the file had to be opened again, and is gone.
            AudioError: If it is damaged or cut off, has a sample that is not a number, ends before
                ``start_s``, or was changed since it was first opened.
            ValueError: If ``start_s`` is negative or ``duration_s`` is not positive, or if the reader is
                closed.
        """
        _check_part(start_s, duration_s)
        if self._decoder is None:
            raise ValueError(f"The reader of {self._file} is closed; open another one.")
        try:
            if start_s == 0 and duration_s is None:
                return self._read_whole()
            return self._read_part(start_s, duration_s)
        except BaseException as error:
            self._kept.clear()
            self._decoder.restart()  # where it stands now is not known
            if not isinstance(error, MemoryError):
                raise
            raise AudioError(
                self._file,
                f"its header states {self.info.duration_s:,.0f} s of sound, more than memory holds. If "
                "that is true, read it in parts.",
            ) from error

    def _read_whole(self) -> NDArray[np.float32]:
        source = self._source
        waveform = resample_pieces(
            self._mono(0, source.num_samples), source.sample_rate, source.num_samples
        )
        if len(waveform) == 0:
            raise AudioError(self._file, "it holds no samples.")
        return waveform

    def _read_part(self, start_s: float, duration_s: float | None) -> NDArray[np.float32]:
        num_samples, rate = self._source.num_samples, self._source.sample_rate
        start = round(start_s * SAMPLE_RATE)
        end = max(1, round(num_samples * SAMPLE_RATE / rate))
        if duration_s is not None:
            end = min(end, start + max(1, round(duration_s * SAMPLE_RATE)))
        if start >= end:
            raise AudioError(
                self._file,
                f"it is {num_samples / rate:.3f} s long, and the part starts at {start_s:.3f} s.",
            )
        per_file, per_ours = aligned_ratio(rate)
        context = math.ceil(_CONTEXT * SAMPLE_RATE / min(rate, SAMPLE_RATE))
        first = max(0, start - context) // per_ours * per_ours
        file_start = first // per_ours * per_file
        file_stop = min(math.ceil((end + context) * per_file / per_ours), num_samples)
        pieces = self._mono(file_start, file_stop)
        part = resample_pieces(pieces, rate, file_stop - file_start)[start - first : end - first]
        if len(part) == 0:
            raise AudioError(
                self._file, f"its sound ends before {start_s:.3f} s, where the part starts."
            )
        return part

    def _mono(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """Samples ``start`` to ``stop`` of the file, at its own rate, in pieces.

        Raises:
            AudioError: If one is not a number, or the file is damaged or holds fewer than it states.
        """
        assert self._decoder is not None, "read() sees to that"
        source, position = self._source, start
        goes_on = self._decoder.source.seeking != "direct"
        if goes_on:
            for piece in self._kept.pieces(start, stop):
                check_finite(piece, self._file, source.sample_rate, position)
                position += len(piece)
                yield piece
        if position < stop:
            for frames in self._decoder.pieces(position, stop):
                piece = mix_to_mono(frames)
                if goes_on:
                    self._kept.add(position, piece)
                check_finite(piece, self._file, source.sample_rate, position)
                position += len(piece)
                yield piece
        # What a decoder gives behind the stated end is the encoder's padding, which players cut off too;
        # of some formats, a little of what is stated is padding.
        slack = max(0, source.slack - (source.num_samples - stop))
        if position < stop - slack:
            raise AudioError(
                self._file,
                f"it states {source.num_samples:,} samples, but decoding ends after {position:,}: the "
                "file is cut off or damaged.",
            )

    def close(self) -> None:
        """Close the file; a URL's may be removed then."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._kept.clear()
        if self._copy is not None:
            self._copy.__exit__(None, None, None)
            self._copy = None

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Kept:
    """The mono samples that were decoded last, for a part that begins before their end."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._pieces: deque[NDArray[np.float32]] = deque()
        self._start = self._stop = 0

    def add(self, start: int, piece: NDArray[np.float32]) -> None:
        if start != self._stop:
            self.clear()
            self._start = self._stop = start
        self._pieces.append(piece)
        self._stop += len(piece)
        while self._stop - self._start - len(self._pieces[0]) >= self._num_samples:
            self._start += len(self._pieces.popleft())

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """What is kept of ``start`` to ``stop``: from ``start`` on, or nothing."""
        if not self._start <= start < self._stop:
            return
        position = self._start
        for piece in tuple(self._pieces):
            part = piece[max(0, start - position) : max(0, stop - position)]
            position += len(piece)
            if len(part):
                yield part

    def clear(self) -> None:
        self._pieces.clear()
        self._start = self._stop = 0


def _info(source: Source) -> AudioInfo:
    return AudioInfo(
        source.file,
        source.num_samples / source.sample_rate,
        source.sample_rate,
        source.num_channels,
        source.num_samples,
        source.seeking == "direct",
    )


def _check_part(start_s: float, duration_s: float | None) -> None:
    if not start_s >= 0 or (duration_s is not None and not duration_s > 0):
        raise ValueError(
            f"start_s must not be negative and duration_s positive, not {start_s} and {duration_s}."
        )
