"""Files that are written whole or not at all.

content -> [temporary name beside the file -> rename] -> file
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes ``path`` when the writing went well.

    Args:
        path: The file; its folder exists. One that is there is replaced.

    Yields:
        A name in the same folder; after an exception, nothing of it is left, and ``path`` is as it was.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "numbers.csv")
        >>> with written_whole(file) as partial:
        ...     _ = partial.write_text("1,2")
        >>> file.read_text()
        '1,2'
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
