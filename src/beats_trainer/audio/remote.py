"""A recording behind a URL -> a file on disk that the decoders can seek in.

URL -> [fsspec, once] -> temporary file, kept for the next part -> decode

The files live as long as the process: those that were used last, up to some gigabytes.
"""

import atexit
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import unquote

from beats_trainer.errors import AudioError, AudioNotFoundError
from beats_trainer.file_names import is_url

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["LocalCopy", "is_url"]

_MOST_FILES = 1024
_MOST_BYTES = 4 * 10**9
"""What is kept of files that nobody reads now; short ones are looked at some hundred ahead of their turn."""

_SUFFIX = re.compile(r"\.\w{1,8}$", re.ASCII)


class LocalCopy:
    """The path of a URL's file on this disk, while the context lasts; fetched once for all threads.

    A ``file://`` URL is not copied: its path is that of the file itself.

    Args:
        url: Anything that `is_url`.

    Raises:
        AudioNotFoundError: If there is no such file.
        AudioError: If it cannot be fetched, or a package for its protocol is missing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._held: _Held | None = None

    def __enter__(self) -> str:
        import fsspec.core  # only for URLs: it takes a fifth of this package's time to import
        from fsspec.implementations.local import LocalFileSystem

        try:
            system, place = fsspec.core.url_to_fs(self._url)
        except Exception as error:  # see _fetch
            raise _as_audio_error(self._url, error) from error
        if isinstance(system, LocalFileSystem):
            # Path.as_uri() writes %20 for a space; fsspec takes it to the letter.
            return place if os.path.exists(place) else unquote(place)
        self._held = _copies.hold(self._url, lambda to: _fetch(self._url, system, place, to))
        return self._held.path.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._held is not None:
            _copies.release(self._held)
            self._held = None


def _fetch(url: str, system: "AbstractFileSystem", place: str, path: str) -> None:
    try:
        system.get_file(place, path)
        if not os.path.isfile(path):
            raise AudioError(url, "this is a folder; name the files in it.")
    except AudioError:
        raise
    # Each protocol's package has exceptions of its own, without a common base; all mean the same here.
    except Exception as error:
        raise _as_audio_error(url, error) from error


def _as_audio_error(url: str, error: Exception) -> AudioError:
    if isinstance(error, FileNotFoundError):
        return AudioNotFoundError(url)
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        return AudioError(url, f"a package for its protocol is missing: {reason.rstrip('.')}.")
    return AudioError(url, f"it could not be fetched ({reason.rstrip('.')}).")


class _Held:
    """One fetched file, how many read it now, and its size once it is there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path: Future[str] = Future()
        self.num_readers = 0
        self.num_bytes = 0


class _Copies:
    """The fetched files of this process, the one used last at the end."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: the files of the process that this one was forked from are not ours."""
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._folder: str | None = None
        self._num_fetched = 0

    def hold(self, url: str, fetch: Callable[[str], None]) -> _Held:
        """Have a URL's file, or wait for the thread that fetches it; `release` it in the end."""
        with self._lock:
            held = self._held.get(url)
            is_first = held is None
            if held is None:
                held = self._held[url] = _Held(url)
            self._held.move_to_end(url)
            held.num_readers += 1
        if is_first:
            self._fill(held, fetch)
        try:
            held.path.result()
        except BaseException:
            self.release(held)
            raise
        return held

    def _fill(self, held: _Held, fetch: Callable[[str], None]) -> None:
        path = ""
        try:
            path = self._new_path(held.url)
            fetch(path)
            held.num_bytes = os.path.getsize(path)
        except BaseException as error:
            with self._lock:
                del self._held[held.url]  # the next who asks tries again
            if os.path.isfile(path):
                os.remove(path)
            if isinstance(error, OSError) and not isinstance(error, AudioError):
                error = AudioError(held.url, f"no room for it on this disk ({error}).")
            held.path.set_exception(error)
        else:
            held.path.set_result(path)

    def _new_path(self, url: str) -> str:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="beats_trainer_")
            self._num_fetched += 1
            # A few formats are told by their ending. In a chain, the file's own name comes first.
            suffix = _SUFFIX.search(url.split("::")[0].split("?")[0])
            name = f"{self._num_fetched}{suffix.group() if suffix else ''}"
            return os.path.join(self._folder, name)

    def release(self, held: _Held) -> None:
        """Let a file go; those that nobody reads are removed when there are too many, oldest first."""
        with self._lock:
            held.num_readers -= 1
            num_bytes = sum(one.num_bytes for one in self._held.values())
            for url, one in list(self._held.items()):
                if len(self._held) <= _MOST_FILES and num_bytes <= _MOST_BYTES:
                    break
                if one.num_readers == 0:
                    del self._held[url]
                    num_bytes -= one.num_bytes
                    os.remove(one.path.result())

    def remove_all(self) -> None:
        """Remove the files, at the process's end."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self.forget()


_copies = _Copies()
atexit.register(_copies.remove_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_copies.forget)
