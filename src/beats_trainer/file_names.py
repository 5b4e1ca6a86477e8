"""File names as text: what is shown, stored and written of a name that is none.

On Linux a name is bytes. Python carries those that are no UTF-8 as lone surrogates, which no table can hold.
"""

import os

__all__ = ["printable_name"]


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
