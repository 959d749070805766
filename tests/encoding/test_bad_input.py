"""Bad input by the rules of docs/own_data.md: what is wrong is told, and nothing vanishes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.encoding.decoding import Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.units import UnitReport, UnitWork, finish_unit, open_unit
from pipeline.releases.addresses import code_path
from pipeline.releases.storage import SourceFile, Storage
from tests.encoding.sources import good_rows, picture, tiny_method, write_rows
from tests.encoding.test_reuse import RECIPE
from tests.encoding.test_units import FILES


def encode(path: Path, store: Storage) -> UnitReport:
    source, network = Source(Storage(path.parent), RECIPE), EncodeChunk(tiny_method(), tile=4)
    work = open_unit(UnitWork(source.root.stat(path.name), FILES), source)
    if work.error:
        return UnitReport(work.unit, error=work.error)
    receipts = [network(chunk, decode_pieces(chunk, source)) for chunk in work.chunks]
    return finish_unit(work, receipts, source=source, store=store)


def keys_of(report: UnitReport, store: Storage) -> list[str]:
    data = store.read(code_path(report.files["text"].address))
    return pq.read_table(io.BytesIO(data))["key"].to_pylist()


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_unit_is_refused_with_nothing_written(tmp_path: Path, left: float) -> None:
    path, store = (
        write_rows(tmp_path / "u.parquet", good_rows(0, 9), row_group_size=3),
        Storage(tmp_path / "s"),
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data))])
    report = encode(path, store)
    assert report.error and not report.files and store.list() == []


def test_damage_between_header_and_footer_refuses_the_unit_or_rejects_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "u.parquet", good_rows(0, 9), row_group_size=3)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(40):
        damaged = bytearray(data)
        damaged[rng.integers(4, len(data) - 4)] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        report = encode(path, Storage(tmp_path / f"store-{number}"))
        assert report.error or all(codes.ledger.balanced for codes in report.files.values())


def test_a_unit_may_have_its_columns_in_another_order_of_other_types_and_more_of_them(tmp_path: Path) -> None:
    rows = good_rows(0, 5)
    plain = write_rows(tmp_path / "plain.parquet", rows)
    key, image, text = (list(column) for column in zip(*rows, strict=True))
    other: dict[str, Any] = {
        "width": [1] * 5,
        "text": pa.array(text, pa.large_string()).dictionary_encode(),
        "image": pa.array([{"bytes": data, "path": "x"} for data in image]),
        "key": pa.array([k.encode() for k in key], pa.binary()),
    }
    pq.write_table(pa.table(other), tmp_path / "other.parquet")
    stores = Storage(tmp_path / "one"), Storage(tmp_path / "two")
    reports = encode(plain, stores[0]), encode(tmp_path / "other.parquet", stores[1])
    tables = [
        [
            pq.read_table(io.BytesIO(store.read(code_path(report.files[side].address))))
            for side in report.files
        ]
        for report, store in zip(reports, stores, strict=True)
    ]
    assert [t.remove_column(0).equals(o.remove_column(0)) for t, o in zip(*tables, strict=True)] == [
        True,
        True,
    ]


def test_a_unit_that_changes_while_it_is_read_is_refused_also_where_its_size_stays(tmp_path: Path) -> None:
    path, store = write_rows(tmp_path / "u.parquet", good_rows(0, 4)), Storage(tmp_path / "s")
    source, network = Source(Storage(tmp_path), RECIPE), EncodeChunk(tiny_method(), tile=4)
    work = open_unit(UnitWork(source.root.stat(path.name), FILES), source)
    receipts = [network(chunk, decode_pieces(chunk, source)) for chunk in work.chunks]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    Path(path).touch()
    report = finish_unit(work, receipts, source=source, store=store)
    assert "changed while it was read" in report.error and store.list() == []


def test_keys_that_are_long_odd_or_not_utf8(tmp_path: Path) -> None:
    odd = ["x" * 10_000, "../../etc/passwd", "/absolute", "a\0b", "  ", "😀" * 500]
    keys = [key.encode() for key in odd] + [b"\xff\xfe", b""]
    images = [picture(n) for n in range(len(keys))]
    table = pa.table({"key": pa.array(keys, pa.binary()), "image": images, "text": ["a"] * len(keys)})
    pq.write_table(table, tmp_path / "u.parquet")
    store = Storage(tmp_path / "s")
    report = encode(tmp_path / "u.parquet", store)
    assert sorted(keys_of(report, store)) == sorted(odd)
    for codes in report.files.values():
        assert codes.ledger.reasons == {"missing key": 2}
        assert codes.ledger.read == codes.ledger.encoded + 2 == len(keys)


def test_a_key_in_two_units_stands_in_the_codes_of_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store = Storage(tmp_path / f"store-{name}")
        report = encode(write_rows(tmp_path / f"{name}.parquet", good_rows(0, 2)), store)
        assert sorted(keys_of(report, store)) == ["k0", "k1"]


@pytest.mark.parametrize("path", ["../u.parquet", "/etc/u.parquet", "a/../../u.parquet"])
def test_a_path_that_leads_out_of_the_source_refuses_the_unit(tmp_path: Path, path: str) -> None:
    write_rows(tmp_path / "u.parquet", good_rows(0, 1))
    (tmp_path / "inner").mkdir()
    source = Source(Storage(tmp_path / "inner"), RECIPE)
    work = open_unit(UnitWork(SourceFile(path, (tmp_path / "u.parquet").stat().st_size, "t"), FILES), source)
    assert "a path must be relative" in work.error
