"""Decode a stretch of a file at its own sample rate, exactly, in pieces, from an open file.

file -> [soundfile, or PyAV] -> pieces (n, channels) at the file's rate

soundfile is the faster of the two and seeks exactly. PyAV brings FFmpeg for M4A, WMA, WebM and others, and
decodes MP3: libsndfile has wrong samples behind one seek in ten, and prints what it thinks of them.

A decoder holds one piece of the sound, never a stretch of it, and stays open, so that reading a recording
stretch by stretch costs what decoding it once costs.
"""

import contextlib
import os
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import av
import av.error
import numpy as np
import soundfile
from numpy.typing import NDArray

from beats_trainer.audio.formats import read_file_facts, read_mp3_header
from beats_trainer.errors import AudioError, AudioNotFoundError

__all__ = [
    "Decoder",
    "Source",
    "check_sample_rate",
    "find_source",
    "open_decoder",
    "scale_to_unit",
]

_PRE_ROLL_S = 1.0
"""Seconds that PyAV decodes before a stretch: more than MP3's bit reservoir (0.72 s at 8 kHz) reaches."""

_MP4_SLACK = 4096
"""Samples by which an MP4's stated length may exceed its sound: priming and padding."""

_MP3_SLACK = 2 * 1152
"""Samples by which an MP3's stated length may exceed its sound: encoders count frames differently."""

_MOST_SAMPLES = 2**40
"""A length from here on (33 days at 384 kHz) is a decoder's way to say that it knows none."""

_PIECE = 2**18
"""Values (samples times channels) decoded at once: 1 MB, whatever the rate and the channels."""

_SHORTEST_PIECE = 1024
"""Samples of a piece of a file with hundreds of channels."""

_LOWEST_RATE = 100
_HIGHEST_RATE = 10_000_000
"""Sample rates in Hz, from infrasound loggers to hydrophones; beyond them, a header is damaged."""

_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,matroska,mov,mp3,mpc,mpc8,mpeg,"
    "mpegts,ogg,oma,rm,tak,tta,voc,w64,wav,wv"
)
"""FFmpeg's containers that hold recordings. The others are playlists that open further files, pictures,
subtitles, and raw data that anything passes for."""

_EXACT_CONTAINERS = ("wv", "tta")
"""Containers that state their length to the sample and whose samples FFmpeg finds."""

_EXACT_IN_MP4 = ("aac", "alac", "flac", "mp3", "pcm_")
"""Codecs that FFmpeg finds to the sample in an MP4 file."""

_MOST_REMEMBERED = 4096
"""Files whose `Source` is kept, because windows of one recording are read by the thousand."""

_NEAR_S = 30.0
"""Seconds that PyAV decodes on rather than to seek, which may mean to run over the file from its start."""

_CHANGED = "it was changed while it was read. Read it again when it is complete."

_UNSETTLED_NS = 50_000_000
"""A file that changed so shortly ago may change again within the clock's grain: it is not remembered."""


@dataclass(frozen=True)
class Source:
    """A file that can be decoded.

    Attributes:
        file: The file as the user named it.
        path: Where its bytes are.
        decoder: ``"soundfile"`` or ``"av"``.
        sample_rate: Hz.
        num_channels: Channels.
        num_samples: Samples per channel.
        slack: Samples that may be missing at the end without the file being cut off.
        last_seek: The last sample that the decoder finds exactly; what lies behind is reached by decoding
            on from there. ``None`` if it finds all.
        seeking: How a place is found: ``"direct"`` at once; ``"scanned"`` by running over all that
            precedes it, without decoding it; ``"none"`` by decoding all that precedes it.
    """

    file: str
    path: str
    decoder: Literal["soundfile", "av"]
    sample_rate: int
    num_channels: int
    num_samples: int
    slack: int = 0
    last_seek: int | None = None
    seeking: Literal["direct", "scanned", "none"] = "direct"


class Decoder(Protocol):
    """An open file. Not for two threads at once."""

    source: Source

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """Decode samples ``start`` to ``stop``: pieces ``(n, channels)``, float32, about -1..1.

        Unless places are found at once, decoding goes on where the last stretch ended; it begins anew for
        what lies before that. Fewer samples come if the file ends before ``stop``.

        Raises:
            AudioError: If the file is damaged.
        """

    def restart(self) -> None:
        """Forget where decoding stopped, after an error on the way."""

    def close(self) -> None:
        """Close the file."""


def find_source(file: str, path: str | None = None) -> Source:
    """Find out how a file is decoded and how long it is.

    Args:
        file: What the user calls it; errors say it.
        path: Where its bytes are, if elsewhere.

    Raises:
        AudioError: If it is not there, not audio, empty or cut off.
    """
    source, sound = _find(file, file if path is None else path)
    if sound is not None:
        sound.close()
    return source


def open_decoder(file: str, path: str | None = None) -> Decoder:
    """Open a file for decoding; arguments and errors are those of `find_source`."""
    path = file if path is None else path
    source, sound = _find(file, path)
    if source.decoder == "av":
        return _AvDecoder(source)
    return _SoundfileDecoder(source, sound or _open_with_soundfile(source))


_remembered: OrderedDict[tuple[Any, ...], Source] = OrderedDict()
_remembering = threading.Lock()


def _find(file: str, path: str) -> tuple[Source, Any]:
    """A file's `Source`, and the open ``SoundFile`` if finding it took one."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(file, "this is a folder; name the files in it.")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(file, "this is a device or a pipe, not a file.")
        if status.st_size == 0:
            raise AudioError(file, "the file is empty (0 bytes).")
        # A file may be replaced by one of its size and date: the other numbers tell them apart.
        changed = (status.st_mtime_ns, status.st_ctime_ns)
        key = (file, path, os.getcwd(), status.st_dev, status.st_ino, status.st_size, *changed)
        with _remembering:
            if key in _remembered:
                _remembered.move_to_end(key)
                return _remembered[key], None
        source, sound = _examine(file, path)
    except FileNotFoundError as error:
        raise AudioNotFoundError(file) from error
    except OSError as error:
        raise AudioError(file, f"{error.strerror or error}.") from error
    except ValueError as error:  # of os.stat: a zero byte, as a damaged list may hold
        raise AudioError(file, f"no file can have this name ({error}).") from error
    now = time.time_ns()
    if all(abs(now - moment) > _UNSETTLED_NS for moment in changed):
        with _remembering:
            _remembered[key] = source
            while len(_remembered) > _MOST_REMEMBERED:
                _remembered.popitem(last=False)
    return source, sound


def _examine(file: str, path: str) -> tuple[Source, Any]:
    facts = read_file_facts(path, file)
    if facts.missing is not None:
        raise AudioError(file, facts.missing)
    if facts.is_mpeg_stream or facts.is_chained_ogg:
        return _examine_with_av(file, path), None
    try:
        sound = soundfile.SoundFile(_soundfile_name(path))
    except (soundfile.SoundFileError, TypeError):  # a TypeError for its own format "raw"
        return _examine_with_av(file, path), None
    is_mp3 = sound.subtype.startswith("MPEG_LAYER")  # in a WAV file, or behind a long tag
    is_guess = (
        sound.format == "RAW"
    )  # by the ending alone: any text in a file named .au is sound then
    # A recorder that lost power leaves a length of 0 before its sound; a chained OGG or a streamed FLAC
    # has none.
    if is_mp3 or is_guess or not 0 < sound.frames < _MOST_SAMPLES:
        sound.close()
        return _examine_with_av(file, path), None
    check_sample_rate(file, sound.samplerate)
    source = Source(
        *(file, path, "soundfile", sound.samplerate, sound.channels, sound.frames),
        # libsndfile takes the cut-off end of the last Vorbis page for its whole length: what it is sent
        # to there comes hundreds of samples late.
        last_seek=facts.last_ogg_page if sound.subtype == "VORBIS" else None,
        seeking="direct" if sound.seekable() else "none",
    )
    return source, sound


def _unchanged(source: Source) -> Source:
    """Raise an `AudioError` if a file that is opened a second time is not what it was the first time."""
    if find_source(source.file, source.path) != source:
        raise AudioError(source.file, _CHANGED)
    return source


def _open_with_soundfile(source: Source) -> Any:
    """Open a file that was examined before."""
    try:
        sound = soundfile.SoundFile(_soundfile_name(source.path))
    except (soundfile.SoundFileError, TypeError) as error:
        if not os.path.exists(source.path):
            raise AudioNotFoundError(source.file) from error
        raise AudioError(source.file, f"it cannot be opened ({_text(error)}).") from error
    found = (sound.samplerate, sound.channels, sound.frames)
    if found != (source.sample_rate, source.num_channels, source.num_samples):
        sound.close()
        raise AudioError(source.file, _CHANGED)
    return sound


class _SoundfileDecoder:
    def __init__(self, source: Source, sound: Any) -> None:
        self.source = source
        self._sound = sound
        self._position: int | None = 0
        self._length = max(_SHORTEST_PIECE, _PIECE // source.num_channels)

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        last_seek = self.source.last_seek
        position = start if last_seek is None else min(start, last_seek)
        try:
            if last_seek is not None and self._position != 0:
                # libsndfile finds wrong samples in one of three places of a Vorbis file that it has read
                # from, and the right ones in a file just opened.
                self._sound.close()
                self._sound = _open_with_soundfile(self.source)
            if self.source.seeking == "direct":
                # To 0 too: else libsndfile starts FFmpeg's Opus in the wrong place.
                self._sound.seek(position)
            else:
                if self._position is None or self._position > start:
                    self._sound.close()
                    self._sound = _open_with_soundfile(_unchanged(self.source))
                    self._position = 0
                position = self._position
            while position < stop:
                wanted = min(self._length, stop - position)
                piece = self._sound.read(wanted, dtype="float32", always_2d=True)
                position += len(piece)
                self._position = position
                if position > start:
                    yield piece[max(0, len(piece) - (position - start)) :]
                if len(piece) < wanted:
                    break
        except soundfile.SoundFileError as error:
            raise AudioError(self.source.file, f"it is damaged ({_text(error)}).") from error

    def restart(self) -> None:
        self._position = None

    def close(self) -> None:
        self._sound.close()


def _soundfile_name(path: str) -> str | bytes:
    # soundfile encodes a name strictly; on other systems than Windows it may hold any bytes.
    return path if sys.platform == "win32" else os.fsencode(path)


def _examine_with_av(file: str, path: str) -> Source:
    with contextlib.closing(_AvFile(file, path)) as opened:
        name, codec = opened.container.format.name, opened.stream.codec_context.name
        first = next(opened.frames(), None)
        if first is None:
            raise AudioError(file, "it holds no samples.")
        # From the frame: what an HE-AAC header says is half the rate that is decoded.
        rate, channels = first.sample_rate, first.layout.nb_channels
        check_sample_rate(file, rate)
        time_base, duration = opened.stream.time_base, opened.stream.duration
    tick = time_base * rate if time_base else None
    stated = round(duration * tick) if duration and tick else 0
    source = Source(file, path, "av", rate, channels, stated)
    if name.startswith("mov") and stated and tick in (1, 2) and codec.startswith(_EXACT_IN_MP4):
        return replace(source, slack=_MP4_SLACK)
    if stated and name in _EXACT_CONTAINERS:
        return replace(source, seeking="scanned" if name == "wv" else "direct")
    header = read_mp3_header(path) if name == "mp3" else None
    if stated and header is not None and header.is_exact:
        return replace(source, slack=_MP3_SLACK, seeking="scanned")
    # The others state their length roughly, guess it or say nothing: they are counted.
    with contextlib.closing(_AvFile(file, path)) as opened:
        sizes = [frame.samples if frame else 0 for frame in opened.frames((rate, channels))]
    num_samples = sum(sizes)
    if header is not None and header.num_frames:
        promised = header.num_frames * (1152 if rate >= 32_000 else 576)
        if num_samples < promised - 2 * _MP3_SLACK:  # without delay and padding, some frames
            raise AudioError(
                file,
                f"it states {promised:,} samples and {num_samples:,} are there: the file is cut off. "
                "Copy it again from the source.",
            )
        if stated <= num_samples <= stated + _MP3_SLACK:
            num_samples = stated  # a tag at the end kept FFmpeg from cutting the padding off
    # MP3 and AAC streams are found to the sample; in other containers FFmpeg errs by thousands.
    is_found = name in ("mp3", "aac") and 0 not in sizes
    return replace(source, num_samples=num_samples, seeking="scanned" if is_found else "none")


class _AvDecoder:
    def __init__(self, source: Source) -> None:
        self.source = source
        self._found = source
        self._file = _AvFile(source.file, source.path)
        self._blocks: Iterator[tuple[int, NDArray[np.float32]]] | None = None
        self._next: tuple[int, NDArray[np.float32]] | None = None
        self._position: int | None = None

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        # Frames are short: resampling each by itself would cost more than decoding it.
        parts: list[NDArray[np.float32]] = []
        num_values = 0
        for part in self._parts(start, stop):
            parts.append(part)
            num_values += part.size
            if num_values >= _PIECE:
                yield np.ascontiguousarray(np.concatenate(parts, axis=1).T)
                parts, num_values = [], 0
        if parts:
            yield np.ascontiguousarray(np.concatenate(parts, axis=1).T)

    def _parts(self, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """What samples ``start`` to ``stop`` are of the decoded blocks, ``(channels, n)``."""
        ahead = start - self._position if self._position is not None else -1
        is_found = self.source.seeking != "none"
        goes_on = 0 <= ahead <= (_NEAR_S * self.source.sample_rate if is_found else ahead)
        if not goes_on:
            self._seek(start if is_found else 0)
        is_sought = is_found and not goes_on
        assert self._blocks is not None
        while (item := self._next or next(self._blocks, None)) is not None:
            index, block = self._next = item
            if is_sought and index > start:  # it went too far, as it may again
                self.source = replace(self.source, seeking="none")
                is_sought = False
                self._seek(0)
                continue
            is_sought = False
            if index >= stop:
                return
            part = block[:, max(0, start - index) : max(0, stop - index)]
            if part.shape[1]:
                self._position = min(stop, index + block.shape[1])
                yield part
            if index + block.shape[1] > stop:
                return  # the rest of this block begins the next stretch
            self._next = None

    def _seek(self, start: int) -> None:
        """Go to a place that is not behind ``start``, and far enough before it."""
        seek_s = start / self.source.sample_rate - _PRE_ROLL_S
        stream = self._file.stream
        is_sought = seek_s > 0 and stream.time_base is not None
        if is_sought:
            self._file.seek((stream.start_time or 0) + int(seek_s / stream.time_base))
        elif self._blocks is not None:
            self._file.close()
            _unchanged(self._found)
            self._file = _AvFile(self.source.file, self.source.path)
        self._blocks, self._next, self._position = self._decoded(is_sought), None, start

    def _decoded(self, is_sought: bool) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Decoded blocks ``(channels, n)`` with the index of their first sample."""
        stream, rate = self._file.stream, self.source.sample_rate
        origin = stream.start_time or 0
        index: int | None = None if is_sought else 0
        for frame in self._file.frames((rate, self.source.num_channels)):
            if frame is None:
                continue
            if index is None:  # after a seek, the time stamp tells where we are
                pts = frame.pts if frame.pts is not None else origin
                index = round((pts - origin) * stream.time_base * rate)
            try:
                block = _as_float(frame)
            except ValueError as error:  # of PyAV, for 64-bit integers
                raise AudioError(
                    self.source.file,
                    f"its samples have a format that is not read ({frame.format.name}). Save it with "
                    "samples of 16 to 32 bits.",
                ) from error
            yield index, block
            index += frame.samples

    def restart(self) -> None:
        self._position = None

    def close(self) -> None:
        self._file.close()


class _AvFile:
    """FFmpeg's container and its first audio stream; what FFmpeg raises becomes an `AudioError`."""

    def __init__(self, file: str, path: str) -> None:
        self.file = file
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        try:
            # Without "file:", the colon of a time in a file's name would end the name of a protocol.
            self.container = av.open(f"file:{path}", options=options, metadata_errors="replace")
        except av.error.FileNotFoundError as error:
            raise AudioNotFoundError(file) from error
        except (av.error.FFmpegError, ValueError) as error:
            raise AudioError(
                file, "it is not audio that can be decoded; is it damaged, or misnamed?"
            ) from error
        streams = self.container.streams.audio
        if not streams:
            self.close()
            raise AudioError(file, "it holds no audio.")
        self.stream: Any = streams[0]
        if self.stream.codec_context is None:
            self.close()
            raise AudioError(file, "FFmpeg has no decoder for it. Convert it to WAV.")

    def seek(self, time_stamp: int) -> None:
        try:
            self.container.seek(time_stamp, stream=self.stream)
        except av.error.FFmpegError as error:
            raise AudioError(self.file, f"it is damaged ({_text(error)}).") from error

    def frames(self, expected: tuple[int, int] | None = None) -> Iterator[Any]:
        """Decoded frames; ``None`` for a packet of an MP3 or AAC stream that is no frame, but a tag.

        Args:
            expected: Hz and channels that every frame must have.
        """
        has_sync_words = self.container.format.name in ("mp3", "aac")
        try:
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    is_frame = bytes(packet)[:1] == b"\xff"
                    if is_frame or not has_sync_words:
                        raise
                    yield None
                    continue
                for frame in frames:
                    found = (frame.sample_rate, frame.layout.nb_channels)
                    if expected not in (None, found):
                        rate, channels = expected
                        raise AudioError(
                            self.file,
                            f"it changes from {rate} Hz and {channels} channels to {found[0]} Hz and "
                            f"{found[1]} on the way. Convert it to WAV.",
                        )
                    yield frame
        except av.error.FFmpegError as error:
            raise AudioError(self.file, f"it is damaged ({_text(error)}).") from error

    def close(self) -> None:
        self.container.close()


def _as_float(frame: Any) -> NDArray[np.float32]:
    """A PyAV frame as ``(channels, n)`` float32 in -1..1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    return scale_to_unit(values)


def scale_to_unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """Scale integers to -1..1 by their type's range; floats are taken as they are."""
    if np.issubdtype(values.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
            return values.astype(np.float32, copy=False)
    limits = np.iinfo(values.dtype)
    if limits.min == 0:  # unsigned: silence is in the middle
        middle = 2.0 ** (limits.bits - 1)
        return ((values.astype(np.float64) - middle) / middle).astype(np.float32)
    return (values / -float(limits.min)).astype(np.float32)


def check_sample_rate(file: str, sample_rate: float) -> None:
    """Raise an `AudioError` unless a rate is one that sound can have: others cost memory without end."""
    if not _LOWEST_RATE <= sample_rate <= _HIGHEST_RATE:
        raise AudioError(
            file,
            f"its sample rate is said to be {sample_rate:,} Hz; expected {_LOWEST_RATE:,} to "
            f"{_HIGHEST_RATE:,} Hz.",
        )


def _text(error: BaseException) -> str:
    text = str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error)
    return " ".join(text.split()).rstrip(".")
