"""The table on disk: what comes back, what any Parquet reader sees, and nothing half-written."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beats_trainer.embeddings.parquet import rows_table
from beats_trainer.embeddings.table import EmbeddingTable, read_embeddings
from beats_trainer.errors import StoreError


def table_of(num_rows):
    random = np.random.default_rng(0)
    starts = np.arange(num_rows) * 0.5
    return EmbeddingTable(
        [f"bird {row}.wav" for row in range(num_rows)],
        starts,
        starts + 1,
        random.standard_normal((num_rows, 4)).astype(np.float32),
        {"pooling": "mean", "window_s": 1.0},
    )


@pytest.mark.parametrize("num_rows", [0, 3])
def test_what_was_written_comes_back(tmp_path, num_rows):
    table = table_of(num_rows)

    back = read_embeddings(table.to_parquet(tmp_path / "new folder" / "out.parquet"))

    assert back.file == table.file
    np.testing.assert_array_equal(back.embeddings, table.embeddings)
    np.testing.assert_array_equal(back.end_time, table.end_time)
    assert back.recipe == table.recipe
    assert back.embeddings.shape == (num_rows, 4)


def test_any_parquet_reader_sees_four_columns(tmp_path):
    table = table_of(2)
    path = table.to_parquet(tmp_path / "out.parquet")

    frame = pd.read_parquet(path)
    schema = pq.read_schema(path)

    assert list(frame.columns) == ["file", "start_time", "end_time", "embedding"]
    np.testing.assert_array_equal(np.stack(frame["embedding"]), table.embeddings)
    assert schema.field("embedding").type == pa.list_(pa.float32(), 4)


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = table_of(2).to_parquet(tmp_path / "out.parquet")
    before = path.read_bytes()

    def fail(writer, table, **_):
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)

    with pytest.raises(OSError, match="disk full"):
        table_of(3).to_parquet(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="as many files"):
        EmbeddingTable(["a"], np.zeros(2), np.zeros(1), np.zeros((1, 4), np.float32))


def test_another_parquet_file_is_no_table_of_embeddings(tmp_path):
    pd.DataFrame({"file": ["a"]}).to_parquet(tmp_path / "other.parquet")

    with pytest.raises(ValueError, match="nor embedding"):
        read_embeddings(tmp_path / "other.parquet")


def test_a_table_of_scores_is_no_table_of_embeddings(tmp_path):
    rows = rows_table(["a"], [0.0], [1.0], {"scores": np.zeros((1, 3), np.float32)})
    pq.write_table(rows, tmp_path / "scores.parquet")

    with pytest.raises(StoreError, match=r"no column embedding, but scores.*open_store"):
        read_embeddings(tmp_path / "scores.parquet")


def test_names_that_are_no_text_are_stored_printable(tmp_path):
    table = EmbeddingTable(["caf\udce9.wav"], np.zeros(1), np.ones(1), np.zeros((1, 4), np.float32))

    assert read_embeddings(table.to_parquet(tmp_path / "out.parquet")).file == ["caf\\xe9.wav"]
