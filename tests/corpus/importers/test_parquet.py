"""Parquet with the pictures in it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.importers.parquet import PictureParquet
from tests.corpus.importers.sources import MAX_BYTES, folder_of, import_into, picture


def parquet(folder: Path, *names: str, **options: Any) -> PictureParquet:
    return PictureParquet(folder_of(folder), names, max_bytes=MAX_BYTES, **options)


def downloaded(number: int, **other: Any) -> dict[str, Any]:
    """Return a row as img2dataset writes it."""
    row = {"key": f"{number:09d}", "url": "http://x", "caption": "orig", "status": "success"}
    return (
        row | {"error_message": None, "width": 12, "jpg": picture(number), "txt": f"caption {number}"} | other
    )


def test_downloads_are_rows_and_failed_ones_rejects(tmp_path: Path) -> None:
    failed = {"status": "failed_to_download", "error_message": "HTTP Error 404", "jpg": None, "txt": None}
    rows = [downloaded(0), downloaded(1, **failed), downloaded(2, txt=""), downloaded(0)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    out = import_into(tmp_path / "out", parquet(tmp_path, "00000.parquet", keep=["width"]))
    first = {"key": "000000000", "image": picture(0), "text": "caption 0", "width": "12"}
    assert out.rows == [first, {"key": "000000002", "image": picture(2), "text": None, "width": "12"}]
    assert out.reasons() == {"000000001": "not downloaded", "000000000": "duplicate key"}
    assert out.rejects[0]["error"] == "HTTP Error 404"


def test_a_table_of_a_hub_without_keys_gets_them_from_its_rows(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": picture(n), "path": None}, "caption": ["", f"c {n}"], "label": n}
        for n in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    out = import_into(tmp_path / "out", parquet(tmp_path, "train-0.parquet"))
    assert out.rows == [
        {"key": f"train-0-00000000{n}", "image": picture(n), "text": f"c {n}", "labels": [n]}
        for n in range(2)
    ]


def test_a_string_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    table = pa.table({"key": ["a", "b"], "jpg": [picture(), picture()], "txt": text})
    pq.write_table(table, tmp_path / "a.parquet")
    out = import_into(tmp_path / "out", parquet(tmp_path, "a.parquet"))
    assert out.reasons() == {"b": "text not UTF-8"}
    assert [row["text"] for row in out.rows] == ["good"]


def test_a_file_cut_short_is_one_reject_beside_the_others(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.Table.from_pylist([downloaded(ord(name[0]))]), tmp_path / name)
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-20])
    out = import_into(tmp_path / "out", parquet(tmp_path, "a.parquet", "b.parquet"))
    assert len(out.rows) == 1
    assert out.ledger.rejects == {"broken file": 1}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"key": ["1"], "caption": ["x"]},
            {},
            r"no column that holds the picture; found: key, caption; name it",
        ),
        ({"jpg": [b"x"]}, {"columns": {"text": "title"}}, r"no column 'title'"),
        ({"jpg": [b"x"]}, {"keep": ["url"]}, r"no column 'url'"),
    ],
)
def test_a_table_without_pictures_is_one_clear_line(
    columns: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        parquet(tmp_path, "a.parquet", **options)
