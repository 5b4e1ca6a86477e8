"""Where the rows of a run go: a folder that is a store, or one Parquet file that is whole at the end.

run -> [store in a folder -> merged where one file was asked for] -> output
"""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beats_trainer.atomic import written_whole
from beats_trainer.embeddings.parquet import RECIPE_KEY, Dtype, explained, read_footer
from beats_trainer.embeddings.store import open_store
from beats_trainer.embeddings.store_writer import StoreWriter
from beats_trainer.errors import StoreError

__all__ = ["stored_at"]


@contextlib.contextmanager
def stored_at(
    output: str | os.PathLike[str],
    columns: Mapping[str, int],
    recipe: Mapping[str, Any],
    dtype: Dtype = "float32",
    *,
    overwrite: bool = False,
) -> Iterator[StoreWriter]:
    """Open the writer of an output, and bring the output into its form when all went well.

    Args:
        output: A folder; or a file ending in ``.parquet``, for which the store lies in a folder
            ``OUTPUT.parts`` until it is complete, also over a kill. Beside the file, ``NAME.errors.csv`` lists
            what could not be read, if there is anything.
        columns: As for `StoreWriter`; the other arguments too.

    Yields:
        The writer.

    Raises:
        IsADirectoryError: If ``output`` ends in ``.parquet`` and is a folder.
        NotADirectoryError: If ``output`` is a file that does not.
        StoreError: As `StoreWriter`; or if a file is there that no run wrote, unless ``overwrite`` is set.
        OSError: If it cannot be written.
    """
    output = Path(output)
    is_one_file = output.suffix.lower() == ".parquet"
    if not is_one_file:
        if output.is_file():
            raise NotADirectoryError(
                f"{output} is a file. A store is a folder: name another, or a file ending in .parquet."
            )
        with StoreWriter(output, columns, recipe, dtype, overwrite) as writer:
            yield writer
        return
    if output.is_dir():
        raise IsADirectoryError(
            f"{output} is a folder, and an output ending in .parquet is one file. Name another."
        )
    if not overwrite and not _may_be_replaced(output):
        raise StoreError(
            f"{output} is there already and is not what a run wrote. Nothing was changed; choose another "
            "output, or replace it with overwrite=True (--overwrite)."
        )
    folder = output.with_name(output.name + ".parts")
    removed = output.with_name(f".{folder.name}.removed")
    errors = output.with_name(f"{output.stem}.errors.csv")
    with StoreWriter(folder, columns, recipe, dtype, overwrite) as writer:
        _remove(removed)  # what a run that was killed left, at this point or while it merged
        for name in (output.name, errors.name):
            for partial in output.parent.glob(f".{glob.escape(name)}.*.part"):
                partial.unlink()
        yield writer
        store = open_store(folder)
        failures = store.failures
        with explained(
            output, f"All rows are in {folder}; make room, and run the same command again"
        ):
            store.merge_to(output)
            if len(failures):
                with written_whole(errors) as partial:
                    failures.to_csv(partial, index=False)
            else:
                errors.unlink(missing_ok=True)
    os.replace(folder, removed)  # first: half of a store is no store, and would be in the way
    _remove(removed)


def _may_be_replaced(output: Path) -> bool:
    """Whether nothing is lost: no file, an empty one, or rows of embeddings or scores."""
    if not output.exists() or output.stat().st_size == 0:
        return True
    try:
        return RECIPE_KEY in read_footer(output).metadata
    except StoreError:
        return False


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # not there; or another run removes it too
        shutil.rmtree(folder)
