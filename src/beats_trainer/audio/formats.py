"""What the headers of audio files say, and whether the file holds what they promise.

The decoders read a truncated WAV, OGG, CAF, WebM or MP3 file to its end without a word. Here is what
tells it apart from a whole one; it reads headers, never the sound.
"""

import logging
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["AUDIO_EXTENSIONS", "FileFacts", "read_file_facts", "read_mp3_header"]

AUDIO_EXTENSIONS: tuple[str, ...] = (
    *(".wav", ".mp3", ".flac", ".m4a", ".ogg"),
    *(".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".caf", ".mka", ".mp2", ".mp4", ".oga"),
    *(".opus", ".rf64", ".w64", ".wave", ".webm", ".wma", ".wv"),
)
"""Endings of files that are looked for in folders, in lower case; the content decides how they are read."""

_logger = logging.getLogger(__name__)

_PLACEHOLDERS = (0x7FFF_FFFF, 0xFFFF_FFFF)
"""Sizes that a recorder writes when it does not know how long it will run, give or take its header."""

_ZEROS = 0x1_0000
"""So many zero bytes in the place of a chunk are no gap between two: FFmpeg would go through all that follow,
eight at a time, for minutes in the gigabytes that a recorder without power leaves behind."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass(frozen=True)
class FileFacts:
    """What the bytes of a file tell before any decoder sees it.

    Attributes:
        missing: A sentence that says what is missing at the end; ``None`` if nothing is, or if the format
            promises no size.
        is_mpeg_stream: Whether it begins with a frame of MP3 or AAC, behind any ID3 tags.
        is_chained_ogg: Whether it is an OGG file that ends with another stream than it begins with. Files
            put one behind the other are one file of this kind; libsndfile may read the first of them only.
        last_ogg_page: The sample at which the last page of an OGG file begins; 0 if it is the first with
            sound, and for other formats.
    """

    missing: str | None
    is_mpeg_stream: bool
    is_chained_ogg: bool = False
    last_ogg_page: int = 0


def read_file_facts(path: str, file: str) -> FileFacts:
    """Read what tells a whole file from a damaged one; the file is opened once, and no sound is decoded.

    Args:
        path: A file that exists: WAV, RF64, W64, AIFF, AU, CAF, OGG, MP3, MP4, Matroska, ASF. Of another
            format, little is told.
        file: What messages call it.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as stream:
        file_size = os.fstat(stream.fileno()).st_size
        magic = stream.read(18)
        if magic[:4] == b"OggS":
            tail = _ogg_tail(stream, file_size)
            missing = _find_missing_ogg_end(tail, file)
            last = tail.rfind(b"OggS")
            is_chained = magic[14:18] != tail[last + 14 : last + 18]
            return FileFacts(missing, False, is_chained, _last_ogg_page(tail))
        missing = _find_truncation(stream, file_size, magic[:16])
        return FileFacts(missing, _find_first_frame(stream) is not None)


def _find_truncation(stream: BinaryIO, file_size: int, magic: bytes) -> str | None:
    if magic[4:8] in (b"ftyp", b"moov", b"mdat"):
        return _find_missing_mp4_box(stream, file_size)
    try:
        promise = _find_promise(magic)(stream, file_size)
    except _NothingWrittenError:
        return "behind its header there are zeros and no sound: the recorder never wrote it."
    except struct.error:
        return None  # the header itself is cut off: the decoders say so
    if promise is None:
        return None
    there = max(0, file_size - promise.start)
    if promise.size - there < promise.tolerance:
        return None
    return (
        f"its header promises {promise.size:,} bytes of sound and {there:,} are there: the file is cut "
        "off. Copy it again from the source, or save what is left of it with an audio editor."
    )


class _NothingWrittenError(Exception):
    """Zeros stand where a chunk was expected."""


@dataclass(frozen=True)
class _Promise:
    """Where the sound starts, how many bytes it has, and how many may be missing without loss."""

    start: int
    size: int
    tolerance: int = 1


def _find_promise(magic: bytes) -> Callable[[BinaryIO, int], _Promise | None]:
    if magic == _ASF:
        return _asf_promise
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        return _mp3_promise
    return _PROMISES.get(magic[:4], lambda stream, file_size: None)


def _chunks(
    stream: BinaryIO, file_size: int, start: int, header: str, align: int = 1, counted: bool = False
) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size of each chunk's content; ``counted`` says that a size includes its header."""
    layout = struct.Struct(header)
    while start + layout.size <= file_size:
        stream.seek(start)
        name, size = layout.unpack(stream.read(layout.size))
        if not any(name) and stream.read(_ZEROS) == bytes(_ZEROS):
            raise _NothingWrittenError
        start += layout.size
        size -= layout.size if counted else 0
        yield name, start, size
        if size < 0:
            return
        start += size + -size % align


def _wav_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    stream.seek(8)
    if stream.read(4) != b"WAVE":
        return None
    tolerance = 1
    long_size: int | None = None  # RF64 keeps sizes beyond 4 GB in a chunk of their own
    for name, start, size in _chunks(stream, file_size, 12, "<4sI", align=2):
        if name == b"ds64":
            long_size = struct.unpack("<8xQ", stream.read(16))[0]
        elif name == b"fmt ":
            codec, block = struct.unpack("<H10xH", stream.read(14))
            if codec in (1, 3, 0xFFFE):  # plain samples; elsewhere a block holds many
                tolerance = max(1, block)
        elif name == b"data":
            if size == 0xFFFF_FFFF and long_size is not None:
                return _Promise(start, long_size, tolerance)
            return None if _is_placeholder(size) else _Promise(start, size, tolerance)
    return None


def _w64_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    # Two identifiers of 16 bytes and the file's size come first.
    for name, start, size in _chunks(stream, file_size, 40, "<16sQ", align=8, counted=True):
        if name[:4] == b"data":
            return _Promise(start, size)
    return None


def _aiff_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    stream.seek(8)
    if stream.read(4) not in (b"AIFF", b"AIFC"):
        return None
    for name, start, size in _chunks(stream, file_size, 12, ">4sI", align=2):
        if name == b"SSND":
            return None if _is_placeholder(size) else _Promise(start, size)
    return None


def _caf_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    for name, start, size in _chunks(stream, file_size, 8, ">4sq"):
        if name == b"data":
            return None if size < 0 else _Promise(start, size)  # -1: to the end, whatever it is
    return None


def _au_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    stream.seek(4)
    start, size = struct.unpack(">II", stream.read(8))
    return None if _is_placeholder(size) else _Promise(start, size)


def _mp3_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    header = _read_mp3_header(stream)
    # Some encoders count an ID3 tag before the first frame, so that only what exceeds the whole file tells.
    return None if header is None or header.num_bytes is None else _Promise(0, header.num_bytes)


def _matroska_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    stream.seek(4)
    header_size, length = _read_ebml_size(stream)
    if header_size is None:
        return None
    stream.seek(4 + length + header_size)
    if stream.read(4) != b"\x18\x53\x80\x67":  # the segment: everything that follows
        return None
    size, _ = _read_ebml_size(stream)
    return None if size is None else _Promise(stream.tell(), size)


def _read_ebml_size(stream: BinaryIO) -> tuple[int | None, int]:
    """A size, ``None`` if a live recorder left it open, and the bytes that it took."""
    (first,) = struct.unpack("B", stream.read(1))
    length = 9 - first.bit_length()  # as many leading zeros as bytes follow
    if length > 8:
        return None, 1
    (value,) = struct.unpack(
        ">Q", bytes([first]).rjust(9 - length, b"\0") + stream.read(length - 1)
    )
    value &= (1 << 7 * length) - 1
    return (None if value == (1 << 7 * length) - 1 else value), length


def _asf_promise(stream: BinaryIO, file_size: int) -> _Promise | None:
    for name, _, _ in _chunks(stream, file_size, 30, "<16sQ", counted=True):
        if name == _ASF_FILE_PROPERTIES:
            size, flags = struct.unpack("<16xQ40xI", stream.read(68))
            is_broadcast = flags & 1
            return None if is_broadcast else _Promise(0, size)
    return None


def _is_placeholder(size: int) -> bool:
    return any(abs(size - mark) < 0x1_0000 for mark in _PLACEHOLDERS)


_PROMISES: dict[bytes, Callable[[BinaryIO, int], _Promise | None]] = {
    b"RIFF": _wav_promise,
    b"RF64": _wav_promise,
    b"BW64": _wav_promise,
    b"riff": _w64_promise,
    b"FORM": _aiff_promise,
    b"caff": _caf_promise,
    b".snd": _au_promise,
    b"\x1a\x45\xdf\xa3": _matroska_promise,
}


_MP4_BOXES = (
    b"free",
    b"ftyp",
    b"mdat",
    b"meta",
    b"moof",
    b"moov",
    b"sidx",
    b"skip",
    b"udta",
    b"uuid",
)
"""What an MP4 file is made of; behind the last one, some editors leave a tag."""


def _find_missing_mp4_box(stream: BinaryIO, file_size: int) -> str | None:
    start, names = 0, set()
    while start + 8 <= file_size:
        stream.seek(start)
        size, name = struct.unpack(">I4s", stream.read(8))
        if size == 1:  # a size beyond 4 GB follows
            size = int.from_bytes(stream.read(8), "big")
        elif size == 0:  # to the end of the file
            size = file_size - start
        if start + size > file_size and name in _MP4_BOXES:
            return (
                f"its part {name.decode()!r} is {size:,} bytes long and {file_size - start:,} are there: "
                "the file is cut off. Copy it again from the source."
            )
        names.add(name)
        start += max(8, size)
    if b"moov" not in names:
        return (
            "its index ('moov') is missing: the recording was never finished, or the file is cut off. "
            "Copy it again from the source, or repair it with an MP4 recovery tool."
        )
    return None


def _find_missing_ogg_end(tail: bytes, file: str) -> str | None:
    page = tail.rfind(b"OggS")
    cut_off = "its last page is incomplete: the file is cut off. Copy it again from the source."
    if page < 0 or len(tail) < page + 27:
        return cut_off
    body = page + 27 + tail[page + 26]
    if len(tail) < body + sum(tail[page + 27 : body]):
        return cut_off
    if not tail[page + 5] & 0x04:
        # Live streams and recorders that were switched off leave files like that, and nothing is missing.
        _logger.warning("%s has no end mark: it is used as it is, but may be part of a file.", file)
    return None


def _ogg_tail(stream: BinaryIO, file_size: int) -> bytes:
    # A page is at most 65,307 bytes: the last two start in this tail.
    stream.seek(max(0, file_size - 2 * 65_307))
    return stream.read()


def _last_ogg_page(tail: bytes) -> int:
    previous = tail.rfind(b"OggS", 0, max(0, tail.rfind(b"OggS")))
    if previous < 0 or len(tail) < previous + 14:
        return 0
    end_of_previous: int = struct.unpack("<q", tail[previous + 6 : previous + 14])[0]
    return max(0, end_of_previous - 1)


@dataclass(frozen=True)
class Mp3Header:
    """What the first frame of an MP3 file says of the others (Xing, Info or VBRI).

    Attributes:
        num_frames: Frames with sound; ``None`` if it is not said.
        num_bytes: Bytes of all frames; ``None`` if it is not said.
        is_exact: Whether the file ends where these bytes do, but for a tag of 128 bytes. If not, something
            was added or cut since, and the number of frames may be wrong.
    """

    num_frames: int | None
    num_bytes: int | None
    is_exact: bool


def read_mp3_header(path: str) -> Mp3Header | None:
    """Read what an MP3 file's first frame says of its length; ``None`` if it says nothing.

    Without it, the length is an estimate from the bit rate until the file is decoded.
    """
    with open(path, "rb") as stream:
        return _read_mp3_header(stream)


def _find_first_frame(stream: BinaryIO) -> int | None:
    first = 0
    stream.seek(0)
    while (tag := stream.read(10))[:3] == b"ID3" and len(tag) == 10:
        sizes = tag[6:10]  # seven bits a byte
        first += 10 + (sizes[0] << 21 | sizes[1] << 14 | sizes[2] << 7 | sizes[3])
        stream.seek(first)
    return first if tag[:1] == b"\xff" and tag[1:2] >= b"\xe0" else None


def _read_mp3_header(stream: BinaryIO) -> Mp3Header | None:
    file_size = os.fstat(stream.fileno()).st_size
    first = _find_first_frame(stream)
    if first is None:
        return None
    stream.seek(first)
    frame = stream.read(64)
    num_frames: int | None = None
    num_bytes: int | None = None
    xing = max(frame.find(b"Xing", 0, 44), frame.find(b"Info", 0, 44))
    if xing >= 0 and len(frame) >= xing + 16:
        flags, *values = struct.unpack(">III", frame[xing + 4 : xing + 16])
        if flags & 1:
            num_frames = values.pop(0)
        if flags & 2:
            num_bytes = values.pop(0)
    elif frame[36:40] == b"VBRI" and len(frame) >= 54:
        num_bytes, num_frames = struct.unpack(">II", frame[46:54])
    else:
        return None
    is_exact = bool(num_frames and num_bytes) and file_size - first - (num_bytes or 0) in (0, 128)
    return Mp3Header(num_frames, num_bytes, is_exact)
