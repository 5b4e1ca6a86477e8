"""The folder of a store: which files are in it, and what they are called.

```text
OUT/
|-- shards/part-000000.parquet, ...   the rows; each footer says what the shard accounts for
|-- store.json                        the recipe, for people; the shards have it too
|-- errors.csv                        what could not be read
|-- damaged-part-000003.parquet       set aside by a run that found it damaged
|-- .lock, .lock.json                 held by the run that writes, and who that is
```

The shards have a folder of their own because readers of a Parquet folder (pandas, Arrow in R) take every
file in it for a shard: ``pd.read_parquet("OUT/shards")`` works while a run is writing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beats_trainer.atomic import written_whole
from beats_trainer.embeddings.journal import FORMAT_VERSION, Entry, decode_entries
from beats_trainer.embeddings.parquet import JOURNAL_KEY, Dtype, Footer
from beats_trainer.errors import StoreError

__all__ = [
    "DAMAGED_PREFIX",
    "DESCRIPTION_NAME",
    "ERRORS_NAME",
    "SHARD_FOLDER",
    "entries_of",
    "list_shards",
    "read_description",
    "shard_number",
    "shard_path",
    "write_description",
]

SHARD_FOLDER = "shards"
"""Folder of the rows."""
DESCRIPTION_NAME = "store.json"
"""The recipe and the columns, for people."""
ERRORS_NAME = "errors.csv"
"""What could not be read."""
DAMAGED_PREFIX = "damaged-"
"""Before the name of a shard that was set aside."""

_SHARD = re.compile(r"part-(\d{6,})\.parquet")


def shard_path(store: Path, number: int) -> Path:
    """Where a shard lies."""
    return store / SHARD_FOLDER / f"part-{number:06d}.parquet"


def shard_number(path: Path) -> int:
    """Which shard this is."""
    match = _SHARD.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def list_shards(store: Path) -> list[Path]:
    """Find the shards of a store, in order; none if it is no store."""
    folder = store / SHARD_FOLDER
    if not folder.is_dir():
        return []
    return sorted(filter(_is_shard, folder.iterdir()), key=shard_number)


def _is_shard(path: Path) -> bool:
    return _SHARD.fullmatch(path.name) is not None


def entries_of(footer: Footer) -> Iterator[Entry]:
    """Read what a shard accounts for.

    Raises:
        StoreError: If it is no shard of a store, or of a newer format.
    """
    if JOURNAL_KEY not in footer.metadata:
        raise StoreError(
            f"{footer.path} does not say what it accounts for: it was not written by a run into this store. "
            "Move it to another folder."
        )
    return decode_entries(footer.metadata[JOURNAL_KEY])


def write_description(
    store: Path, recipe: Mapping[str, Any], columns: Mapping[str, int], dtype: Dtype
) -> None:
    """Write ``store.json``, whole or not at all."""
    content = {
        "format_version": FORMAT_VERSION,
        "columns": dict(columns),
        "dtype": dtype,
        "recipe": dict(recipe),
    }
    text = json.dumps(content, indent=2)
    with written_whole(store / DESCRIPTION_NAME) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_description(store: Path) -> dict[str, Any] | None:
    """Read ``store.json``.

    Returns:
        Its content; ``None`` if it is missing or unusable: where there are shards, they know better.

    Raises:
        StoreError: If a newer version of this package wrote it.
    """
    try:
        content = json.loads((store / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        version = content["format_version"]
        usable = isinstance(content["recipe"], dict) and isinstance(content["columns"], dict)
        usable = usable and isinstance(version, int) and content["dtype"] in ("float32", "float16")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    if usable and version > FORMAT_VERSION:
        raise StoreError(
            f"{store} has format {version}, this version of beats_trainer reads up to {FORMAT_VERSION}: "
            "update beats_trainer to use it."
        )
    return dict(content) if usable else None
