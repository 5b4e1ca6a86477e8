"""A table of embeddings: what was embedded, from when to when, and with which recipe.

encoder -> embeddings -> [table] -> Parquet | pandas

Columns ``file, start_time, end_time, embedding`` (seconds from the file's start), as Parquet with a
fixed-size list of float32, so that R, Python, DuckDB and Spark open it. The recipe (model, weights' hash,
pooling, layer, window, hop, version) stands in the file's metadata under ``beats_trainer``.

Shapes in this file: N rows, D width of an embedding.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beats_trainer.embeddings.parquet import (
    FAILURES_KEY,
    Vectors,
    opened_parquet,
    printable_name,
    read_footer,
    rows_schema,
    rows_table,
    vectors_of,
    write_parquet,
)
from beats_trainer.errors import StoreError

if TYPE_CHECKING:  # the engine knows torch, which a table need not
    from beats_trainer.embeddings.encode import Failure

__all__ = ["EmbeddingTable", "StoredRows", "read_embeddings"]


@dataclass(frozen=True)
class StoredRows:
    """Some rows of a store, in memory.

    Attributes:
        file: File of each row.
        start_time: Seconds from the file's start, per row.
        end_time: Seconds from the file's start, per row.
        values: Each column's vectors, ``(N, D)``, as stored.

    Example:
        >>> rows = StoredRows(["a.wav"], np.zeros(1), np.ones(1), {"scores": np.zeros((1, 3))})
        >>> len(rows), rows.values["scores"].shape
        (1, (1, 3))
    """

    file: list[str]
    start_time: NDArray[np.float64]
    end_time: NDArray[np.float64]
    values: dict[str, Vectors]

    def __len__(self) -> int:
        return len(self.file)

    def to_pandas(self) -> pd.DataFrame:
        """One row per stored row; the columns of vectors hold arrays ``(D,)``."""
        return _frame(self.file, self.start_time, self.end_time, self.values)


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings with their place in time.

    Attributes:
        file: File of each row, as it was given.
        start_time: Seconds from the file's start, per row.
        end_time: Seconds from the file's start, per row; the last window may be shorter.
        embeddings: Shape ``(N, D)``, float32.
        recipe: How they were made, plain values.
        failures: What could not be read, and why.

    Example:
        >>> table = EmbeddingTable(["a.wav"], np.zeros(1), np.ones(1), np.zeros((1, 4), np.float32))
        >>> list(table.to_pandas().columns)
        ['file', 'start_time', 'end_time', 'embedding']
    """

    file: list[str]
    start_time: NDArray[np.float64]
    end_time: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    recipe: dict[str, Any] = field(default_factory=dict)
    failures: list["Failure"] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = {len(self.file), len(self.start_time), len(self.end_time), len(self.embeddings)}
        if len(rows) != 1 or self.embeddings.ndim != 2:
            raise ValueError(
                f"Expected as many files, times and embeddings (N, D); got {len(self.file)}, "
                f"{len(self.start_time)}, {len(self.end_time)} and {self.embeddings.shape}."
            )

    def __len__(self) -> int:
        return len(self.file)

    def to_pandas(self) -> pd.DataFrame:
        """One row per embedding; the column ``embedding`` holds arrays ``(D,)``."""
        return _frame(self.file, self.start_time, self.end_time, {"embedding": self.embeddings})

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write one Parquet file, whole or not at all.

        Args:
            path: Where; an existing file is replaced once the new one is complete.

        Returns:
            The path.
        """
        path = Path(path)
        values: dict[str, Vectors] = {"embedding": np.asarray(self.embeddings, np.float32)}
        rows = rows_table(self.file, self.start_time, self.end_time, values)
        failures = [[printable_name(f.file), None, None, f.reason] for f in self.failures]
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = rows_schema({"embedding": self.embeddings.shape[1]}, "float32", self.recipe)
        write_parquet(path, [rows], schema, {FAILURES_KEY: json.dumps(failures)})
        return path


def read_embeddings(path: str | os.PathLike[str]) -> EmbeddingTable:
    """Read what ``EmbeddingTable.to_parquet`` wrote, whole into memory.

    For a store of any size, or one with several columns, there is ``open_store``.

    Args:
        path: The Parquet file.

    Returns:
        The table, without the failures.

    Raises:
        FileNotFoundError: If there is no such file.
        StoreError: If the file is not a table of embeddings.
    """
    footer = read_footer(Path(path))
    if "embedding" not in footer.columns:
        raise StoreError(
            f"{path} is not a table of embeddings: it has no column embedding, but "
            f"{', '.join(footer.columns)}. Read it with open_store."
        )
    with opened_parquet(footer.path) as file:
        table = file.read(columns=["file", "start_time", "end_time", "embedding"])
    return EmbeddingTable(
        table["file"].to_pylist(),
        table["start_time"].to_numpy(),
        table["end_time"].to_numpy(),
        np.asarray(vectors_of(table["embedding"].combine_chunks()), np.float32),
        footer.recipe,
    )


def _frame(
    file: list[str],
    start_time: NDArray[np.float64],
    end_time: NDArray[np.float64],
    values: dict[str, Vectors],
) -> pd.DataFrame:
    place = {"file": file, "start_time": start_time, "end_time": end_time}
    return pd.DataFrame({**place, **{name: list(rows) for name, rows in values.items()}})
