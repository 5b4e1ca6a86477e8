"""File names as text: whether one is a URL, and what is shown, stored and written of a name that is no text.

On Linux a name is bytes. Python carries those that are no UTF-8 as lone surrogates, which no table can hold.
"""

import os
import re

__all__ = ["is_url", "printable_name"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*://", re.IGNORECASE)
"""Of two letters at least: one is a drive of Windows."""


def is_url(file: str) -> bool:
    r"""Tell whether a name is a URL, such as ``s3://bucket/a.wav``, and not a path.

    Example:
        >>> is_url("https://example.org/a.wav"), is_url("zip://a.wav::s3://bucket/b.zip")
        (True, True)
        >>> is_url(r"C:\sounds\a.wav"), is_url("2025-05-03T03:13:00.wav")
        (False, False)
    """
    return _URL.match(file) is not None


def printable_name(name: str | os.PathLike[str]) -> str:
    r"""Give a file's name as text that any table can hold: bytes that are none become ``\xff``.

    Example:
        >>> printable_name("caf\udce9.wav")
        'caf\\xe9.wav'
        >>> printable_name("café.wav")
        'café.wav'
    """
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # not from bytes: half a character of Windows
            raw = text.encode("utf-8", "backslashreplace")
        return raw.decode("utf-8", "backslashreplace")
    return text
