"""Releases: what was written is read, equal content has one digest, and any change is noticed."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.releases import manifest
from pipeline.releases.addresses import digest_json, release_path, sha256, table_path
from pipeline.releases.manifest import (
    PARTS,
    REJECTS,
    UNITS,
    ManifestError,
    ReleaseRecipe,
    check_store,
    create_store,
    read_release,
    read_table,
    to_parquet,
    write_release,
)
from pipeline.releases.storage import Storage

RECIPE = ReleaseRecipe(
    code_length=64,
    model="ab" * 16,
    fingerprints={"image": "1" * 32, "text": "2" * 32},
    input_recipe="3" * 32,
    index={"recipe": "BFlat"},
)


def unit_row(path: str, side: str, **changes: Any) -> dict[str, Any]:
    code = digest_json([path, side])
    row = {
        "path": path,
        "first_row_group": None,
        "last_row_group": None,
        "size": 10,
        "token": "t",
        "side": side,
    }
    row |= {"unit": digest_json(path), "code": code, "code_sha256": sha256(code.encode()), "code_bytes": 99}
    row |= {"read": 5, "encoded": 3, "rejected": 1, "absent": 1, "stale": False}
    return row | changes


def tables(**changes: Any) -> dict[str, pa.Table]:
    units = [unit_row(path, side) for path in ("b.parquet", "a ü.parquet") for side in ("text", "image")]
    rejects = [
        {
            "path": row["path"],
            "first_row_group": None,
            "side": row["side"],
            "rejects": row["code"],
            "sha256": "0" * 64,
            "bytes": 7,
            "rows": 1,
        }
        for row in units
    ]
    parts = [
        {
            "side": side,
            "ordinal": 0,
            "part": digest_json(side),
            "units": 2,
            "rows": 6,
            "index_sha256": "1" * 64,
            "index_bytes": 1,
            "keys_sha256": "2" * 64,
            "keys_bytes": 2,
        }
        for side in ("image", "text")
    ]
    made = {
        "units": pa.Table.from_pylist(units, schema=UNITS),
        "parts": pa.Table.from_pylist(parts, schema=PARTS),
        "rejects": pa.Table.from_pylist(rejects, schema=REJECTS),
    }
    return made | changes


def test_a_release_is_read_as_it_was_written(storage: Storage) -> None:
    digest = write_release(storage, RECIPE, tables=tables(), notes={"seconds": 3.5})
    manifest = read_release(storage, digest)
    assert manifest.recipe == RECIPE
    assert manifest.notes == {"seconds": 3.5}
    assert manifest.totals["units"] == 2
    assert manifest.totals["encoded_image"] == 6
    for name, table in tables().items():
        read = read_table(storage, manifest, name)
        assert read.schema == table.schema
        assert sorted(map(str, read.to_pylist())) == sorted(map(str, table.to_pylist()))
    assert [row["path"] for row in read_table(storage, manifest, "units").to_pylist()][::2] == [
        "a ü.parquet",
        "b.parquet",
    ]


def test_the_digest_depends_on_content_alone(tmp_path: Path) -> None:
    first, second = Storage(tmp_path / "one"), Storage(tmp_path / "two")
    digest = write_release(first, RECIPE, tables=tables(), notes={"host": "a", "seconds": 1})
    shuffled = {name: table.take(list(range(len(table)))[::-1]) for name, table in tables().items()}
    assert write_release(second, RECIPE, tables=shuffled, notes={"host": "b"}) == digest
    assert first.list("tables") == second.list("tables")
    stale = pa.Table.from_pylist([unit_row("b.parquet", "image", stale=True)], schema=UNITS)
    assert write_release(first, RECIPE, tables=tables(units=stale)) != digest
    other = RECIPE.model_copy(update={"input_recipe": "4" * 32})
    assert write_release(first, other, tables=tables()) != digest


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 10])
def test_a_table_written_group_by_group_has_the_bytes_of_one_that_is_written_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_ROW_GROUP", 4)
    table = pa.Table.from_pylist([unit_row(f"{n}.parquet", "text") for n in range(rows)], schema=UNITS)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=4)
    assert to_parquet(table) == sink.getvalue().to_pybytes()
    assert to_parquet(pa.concat_tables([table[:3], table[3:]])) == to_parquet(table)


def test_writing_a_release_again_keeps_the_first(storage: Storage) -> None:
    digest = write_release(storage, RECIPE, tables=tables(), notes={"run": 1})
    assert write_release(storage, RECIPE, tables=tables(), notes={"run": 2}) == digest
    assert read_release(storage, digest).notes == {"run": 1}


def test_the_manifest_is_written_last(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    create = Storage.create

    def recorded(self: Storage, path: str, data: bytes) -> bool:
        written.append(path)
        return create(self, path, data)

    monkeypatch.setattr(Storage, "create", recorded)
    digest = write_release(storage, RECIPE, tables=tables())
    assert written[-1] == release_path(digest)
    assert all(path.startswith("tables/") for path in written[:-1])


def test_an_empty_release_can_be_written(storage: Storage) -> None:
    empty = {"units": UNITS.empty_table(), "parts": PARTS.empty_table(), "rejects": REJECTS.empty_table()}
    manifest = read_release(storage, write_release(storage, RECIPE, tables=empty))
    assert manifest.totals == {"units": 0, "parts": 0}
    assert len(read_table(storage, manifest, "units")) == 0


@pytest.mark.parametrize("field", ["totals", "recipe", "units"])
def test_a_manifest_edited_by_hand_is_refused(storage: Storage, field: str) -> None:
    digest = write_release(storage, RECIPE, tables=tables())
    document = json.loads(storage.read(release_path(digest)))
    edits = {"totals": {"units": 3}, "recipe": {"code_length": 128}, "units": {"rows": 5}}
    document[field] |= edits[field]
    storage.write(release_path(digest), json.dumps(document).encode())
    with pytest.raises(ManifestError, match=f"{digest}.json was changed after it was written"):
        read_release(storage, digest)


@pytest.mark.parametrize("name", ["units", "parts", "rejects"])
def test_a_changed_or_missing_table_is_refused(storage: Storage, name: str) -> None:
    manifest = read_release(storage, write_release(storage, RECIPE, tables=tables()))
    path = table_path(getattr(manifest, name).sha256)
    data = bytearray(storage.read(path))
    data[len(data) // 2] ^= 1
    storage.write(path, bytes(data))
    with pytest.raises(ManifestError, match="is damaged"):
        read_table(storage, manifest, name)
    storage.delete(path)
    with pytest.raises(ManifestError, match=f"is missing: the {name} of a release"):
        read_table(storage, manifest, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{half", "not JSON"),
        (b"[]", "format must be a number"),
        (b'{"format": 2}', "this version reads up to 1; install a newer hashfleet"),
        (b'{"format": 1}', "recipe: Field required"),
    ],
)
def test_a_manifest_that_is_none_is_refused(storage: Storage, content: bytes, message: str) -> None:
    storage.write(release_path("5" * 32), content)
    with pytest.raises(ManifestError, match=message):
        read_release(storage, "5" * 32)


def test_a_missing_release_is_said(storage: Storage) -> None:
    with pytest.raises(ManifestError, match=f"there is no release {'6' * 32} in this store"):
        read_release(storage, "6" * 32)


@pytest.mark.parametrize("path", ["../a.parquet", "/etc/a.parquet", "a//b.parquet", ""])
def test_a_path_that_leaves_the_source_is_refused(storage: Storage, path: str) -> None:
    bad = pa.Table.from_pylist([unit_row(path, "image")], schema=UNITS)
    with pytest.raises(ValueError, match="a path must be relative"):
        write_release(storage, RECIPE, tables=tables(units=bad))
    assert storage.list() == []


@pytest.mark.parametrize("changes", [{"read": 6}, {"absent": None}, {"encoded": 4}])
def test_a_ledger_that_does_not_balance_is_refused(storage: Storage, changes: dict[str, Any]) -> None:
    bad = pa.Table.from_pylist([unit_row("a.parquet", "image", **changes)], schema=UNITS)
    with pytest.raises(ValueError, match=r"a\.parquet, image: the ledger does not balance"):
        write_release(storage, RECIPE, tables=tables(units=bad))
    assert storage.list() == []


def test_a_unit_named_twice_and_a_missing_column_are_refused(storage: Storage) -> None:
    twice = pa.Table.from_pylist([unit_row("a.parquet", "image")] * 2, schema=UNITS)
    with pytest.raises(ValueError, match="every row must differ in path, first_row_group, side"):
        write_release(storage, RECIPE, tables=tables(units=twice))
    with pytest.raises(ValueError, match=r"table units: columns must be path, .*; got path, first"):
        write_release(storage, RECIPE, tables=tables(units=twice.drop_columns(["stale"])))
    with pytest.raises(ValueError, match="a release has tables units, parts, rejects; got units"):
        write_release(storage, RECIPE, tables={"units": UNITS.empty_table()})
    assert storage.list() == []


def test_a_store_is_made_once_and_known_again(storage: Storage) -> None:
    with pytest.raises(ManifestError, match=r"is no store: it has no store\.json"):
        check_store(storage)
    for _ in range(2):
        create_store(storage)
        check_store(storage)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 2}', "has format 2, this version reads up to 1; install a newer hashfleet"),
        (b'{"format": "x"}', "format must be a number from 1, got 'x'"),
        (b"", "not JSON"),
    ],
)
def test_a_store_of_another_format_is_refused(storage: Storage, content: bytes, message: str) -> None:
    storage.write("store.json", content)
    for check in (check_store, create_store):
        with pytest.raises(ManifestError, match=message):
            check(storage)
