"""What a source's files say of themselves."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.inspection.layout import count_keys, count_splits, read_layout
from pipeline.corpus.schema import Columns


def write(folder: Path, name: str, **columns: Any) -> None:
    pq.write_table(pa.table(columns), folder / name, row_group_size=4)


def layout_of(folder: Path, **options: Any) -> Any:
    files = [(file.name, file.stat().st_size) for file in sorted(folder.glob("*.parquet"))]
    return read_layout(files, lambda path: pq.ParquetFile(folder / path), Columns(), **options)


def test_rows_row_groups_and_bytes_of_all_files_are_counted(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path, f"{n}.parquet", key=[f"{n}-{i}" for i in range(5)], text=["x" * 1000] * 5)
    layout = layout_of(tmp_path)
    assert (layout.files, layout.rows, layout.complete, layout.faults) == (3, 15, True, [])
    assert [(number, rows) for _, number, rows, _ in layout.groups()] == [(0, 4), (1, 1)] * 3
    assert set(layout.bytes_per_row()) == {"key", "text"}
    assert layout.size == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_of_many_files_some_stand_for_all_and_rows_are_estimated(tmp_path: Path) -> None:
    for n in range(20):
        write(tmp_path, f"{n:02d}.parquet", key=[f"{n}-{i}" for i in range(10)], text=["x"] * 10)
    layout = layout_of(tmp_path, at_most=5)
    assert [footer.path for footer in layout.footers] == [f"{n:02d}.parquet" for n in (0, 5, 10, 14, 19)]
    assert not layout.complete
    assert layout.rows == pytest.approx(200, abs=5)


def test_files_that_are_broken_or_unlike_the_first_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", key=["1"], image=[b"x"], text=["x"])
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    write(tmp_path, "c.parquet", key=["1"], title=["x"])
    write(
        tmp_path,
        "d.parquet",
        key=["1"],
        image_features=pa.array([[0.5]], pa.list_(pa.float32(), 1)),
        text=["x"],
    )
    write(tmp_path, "e.parquet", key=["1"], image=[b"x"])
    write(tmp_path, "f.parquet", key=["1"], image=[b"x"], text=["x"], labels=[[1]])
    layout = layout_of(tmp_path)
    assert [footer.path for footer in layout.footers] == ["a.parquet"]
    broken, unknown, features, no_text, labels = layout.faults
    assert broken.startswith("b.parquet: ")
    assert unknown.startswith("c.parquet: no column 'image' or 'text'; found: key, title")
    assert (
        "d.parquet: its image side is features of width 1 in column 'image_features', that of a.p" in features
    )
    assert "e.parquet: its text side is not there" in no_text
    assert "f.parquet: its labels column is 'labels', in a.parquet None" in labels


def test_keys_missing_and_repeated_are_counted_in_files_and_across_them(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", key=["1", "2", "2", None, ""], text=["x"] * 5)
    write(tmp_path, "b.parquet", key=["1", "3", "4"], text=["x"] * 3)
    layout = layout_of(tmp_path)
    opened = lambda path: pq.ParquetFile(tmp_path / path)  # noqa: E731
    counts = count_keys(layout, opened)
    assert (counts.rows, counts.missing, counts.repeated_in_file, counts.repeated_across_files) == (
        8,
        2,
        1,
        1,
    )
    assert count_keys(layout, opened, max_rows=7).rows == 5


def test_the_values_of_the_split_column_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", key=["1", "2"], text=["x"] * 2, split=["train", None])
    write(tmp_path, "b.parquet", key=["3", "4"], text=["x"] * 2, split=["train", "query"])
    layout = layout_of(tmp_path)
    counts = count_splits(layout, lambda path: pq.ParquetFile(tmp_path / path))
    assert counts == {"train": 2, "": 1, "query": 1}
