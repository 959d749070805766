"""Rows that are still what they were take their codes from the earlier code file, and no byte changes."""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models.method import HashMethod
from pipeline.corpus.decode import content_hash, decode_side
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import Columns, Side, resolve_columns, sample_ids
from pipeline.encoding.codefile import CodeFileRecipe
from pipeline.encoding.decoding import Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.reuse import EarlierCodes, open_earlier
from pipeline.encoding.units import UnitReport, UnitWork, finish_unit, open_unit
from pipeline.releases.addresses import code_path, digest_json, rejects_path
from pipeline.releases.storage import Storage
from tests.encoding.sources import CODE_LENGTH, picture, tiny_method

RECIPE = InputRecipe(image_size=16)
Row = tuple[Any, Any, Any, Any]  # key, image, text, token

SIDES: tuple[Side, Side] = ("image", "text")
METHOD = tiny_method()
PICTURES = [picture(n) for n in range(6)]
BAD = {PICTURES[0][:-150], b"junk", " ", None}


def write(path: Path, rows: Sequence[Row], *, tokens: bool, row_group_size: int = 3) -> None:
    names = ["key", "image", "text", "updated"][: 4 if tokens else 3]
    kinds = [pa.string(), pa.binary(), pa.string(), pa.int64()]
    columns = [pa.array([row[n] for row in rows], kinds[n]) for n in range(len(names))]
    pq.write_table(pa.table(columns, names=names), path, row_group_size=row_group_size)


def files_of(version: str, **others: str) -> tuple[CodeFileRecipe, ...]:
    """Return the code files of one version of a unit."""
    made = []
    for side in SIDES:
        file = CodeFileRecipe(side, digest_json([version, side]), version, f"tower {side}", "r", CODE_LENGTH)
        made.append(replace(file, **others))
    return tuple(made)


def encode(version: Path, method: HashMethod, store: Storage, *, after: Path | None = None) -> UnitReport:
    """Encode a unit, taking rows from the code files of its earlier version where one is named."""
    source = Source(Storage(version.parent), RECIPE)
    earlier = {file.side: file.address for file in files_of(after.name)} if after else {}
    work = UnitWork(source.root.stat(version.name), files_of(version.name), earlier=earlier)
    work = open_unit(work, source, max_bytes=4000)
    network = EncodeChunk(method, tile=4)
    codes = open_earlier(work.files, work.earlier, store)
    receipts = [network(chunk, decode_pieces(chunk, source, earlier=codes)) for chunk in work.chunks]
    report = finish_unit(work, receipts, source=source, store=store)
    assert report.error == ""
    return report


def bytes_of(report: UnitReport, store: Storage) -> list[bytes]:
    """Return the bytes of every file that a report names."""
    paths = [code_path(codes.address) for codes in report.files.values()]
    paths += [rejects_path(codes.address) for codes in report.files.values() if codes.rejects]
    return [store.read(path) for path in paths]


def versions_of(folder: Path, *versions: Sequence[Row], tokens: bool) -> list[Path]:
    paths = [folder / f"{number}.parquet" for number in range(len(versions))]
    for path, rows in zip(paths, versions, strict=True):
        write(path, rows, tokens=tokens)
    return paths


def told(key: Any, image: Any, text: Any, touched: int = 0) -> Row:
    """Return a row with a token that changes with its bytes, and may change without."""
    digest = content_hash(repr((key, image, text, touched)).encode())
    return key, image, text, int.from_bytes(digest[:7], "big")


ROWS = st.lists(
    st.builds(
        told,
        st.sampled_from(["a", "b", "c", "d", "e", "", None]),
        st.sampled_from([*PICTURES, PICTURES[0][:-150], b"junk", None]),
        st.sampled_from(["a red boat", "ein Haus", "雪の家", " ", None]),
        st.integers(0, 1),
    ),
    max_size=12,
)


@settings(max_examples=30)
@given(before=ROWS, rows=ROWS, taken=st.lists(st.integers(0, 11), max_size=8), tokens=st.booleans())
def test_a_changed_unit_gets_byte_for_byte_the_files_of_a_full_encode(
    before: list[Row], rows: list[Row], taken: list[int], tokens: bool
) -> None:
    after = [before[n] for n in taken if n < len(before)] + rows
    with tempfile.TemporaryDirectory() as folder:
        old, new = versions_of(Path(folder), before, after, tokens=tokens)
        store, fresh = Storage(Path(folder) / "store"), Storage(Path(folder) / "fresh")
        encode(old, METHOD, store)
        full, changed = encode(new, METHOD, fresh), encode(new, METHOD, store, after=old)
        assert bytes_of(changed, store) == bytes_of(full, fresh)
    assert changed.files == full.files
    for side in SIDES:
        assert full.reused[side] == 0
        usable = [row for row in before if row[0]]  # without a key nothing is kept
        column = SIDES.index(side) + 1
        first = {row[0]: row for row in reversed(usable)}
        known = {row[column] for row in first.values()} - BAD
        wanted = [row[column] for row in after if row[0] and row[column] not in BAD]
        assert changed.forwarded[side] == sum(value not in known for value in wanted)
        assert changed.reused[side] + changed.forwarded[side] >= changed.files[side].ledger.encoded


def test_one_changed_row_in_each_of_100_units_is_100_rows_through_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    method = tiny_method()
    collate = method.collate
    monkeypatch.setattr(
        method, "collate", lambda side, rows: seen.append((side, len(rows))) or collate(side, rows)
    )
    forwarded = {"image": 0, "text": 0}
    for unit in range(100):
        rows = [told(f"{unit}-{n}", PICTURES[n], f"caption {n}") for n in range(6)]
        changed = [*rows[:2], told(rows[2][0], picture(1000 + unit), rows[2][2]), *rows[3:]]
        folder = tmp_path / str(unit)
        folder.mkdir()
        old, new = versions_of(folder, rows, changed, tokens=unit % 2 == 0)
        store = Storage(folder / "store")
        encode(old, METHOD, store)
        report = encode(new, method, store, after=old)
        for side in SIDES:
            forwarded[side] += report.forwarded[side]
            assert report.reused[side] == 6 - (side == "image")
    assert forwarded == {"image": 100, "text": 0}
    assert [side for side, _ in seen] == ["image"] * 100  # one tile for each row


def test_with_a_token_the_bytes_of_an_unchanged_row_are_not_read(tmp_path: Path) -> None:
    rows = [told(f"k{n}", picture(n), f"caption {n}") for n in range(9)]
    lying = [*rows[:4], (*rows[4][:1], picture(99), *rows[4][2:]), *rows[5:]]
    old, new = versions_of(tmp_path, rows, lying, tokens=True)
    store = Storage(tmp_path / "store")
    first = encode(old, METHOD, store)
    report = encode(new, METHOD, store, after=old)
    assert report.forwarded == {"image": 0, "text": 0}
    assert codes_of(first, store) == codes_of(report, store)  # its code is of the bytes of before


MARKED = st.dictionaries(st.text(max_size=3), st.integers(0, 3) | st.none(), max_size=20)


@given(
    MARKED,
    st.lists(st.tuples(st.text(max_size=3) | st.none(), st.integers(0, 3) | st.none()), max_size=20),
    st.permutations(range(20)),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_a_key_and_its_token_are_found_wherever_the_row_was(
    before: dict[str, int | None],
    asked: list[tuple[str | None, int | None]],
    places: list[int],
    start: int,
    first_row: int,
) -> None:
    asked = asked + list(before.items())[::2]
    rows = sorted(zip(before, places, strict=False), key=lambda row: (sample_ids([row[0]])[0], row[0]))
    table = pa.table(
        {
            "id": pa.array(sample_ids(key for key, _ in rows)),
            "key": pa.array([key for key, _ in rows], pa.string()),
            "row": pa.array([start + place for _, place in rows], pa.int64()),
            "content_hash": pa.array([content_hash(key.encode()) for key, _ in rows], pa.binary(16)),
            "code": pa.array([b"c"] * len(rows), pa.binary(1)),
            "token": pa.array([before[key] for key, _ in rows], pa.int64()),
        }
    )
    keys, tokens = (
        pa.array([row[n] for row in asked], kind) for n, kind in enumerate([pa.string(), pa.int64()])
    )
    found = EarlierCodes(table).by_token(keys, tokens, first_row=first_row)
    known = {key: n for n, (key, _) in enumerate(rows)}
    for (key, token), row in zip(asked, found.tolist(), strict=True):
        same = key in known and token is not None and before[key] == token
        assert row == (known[key] if same else -1)


def test_a_code_of_another_tower_recipe_or_packer_is_never_taken(tmp_path: Path) -> None:
    (old,) = versions_of(tmp_path, [told("a", PICTURES[0], "a")], tokens=False)
    store = Storage(tmp_path / "store")
    encode(old, METHOD, store)
    earlier = {file.side: file.address for file in files_of(old.name)}
    assert open_earlier(files_of("new"), earlier, store).keys() == {"image", "text"}
    for other in ({"fingerprint": "other"}, {"input_recipe": "other"}, {"code_length": 24}):
        assert open_earlier(files_of("new", **other), earlier, store) == {}
    swapped = {"image": earlier["text"], "text": earlier["image"]}
    assert open_earlier(files_of("new"), swapped, store) == {}


def test_an_earlier_code_file_that_is_gone_or_damaged_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [told(f"k{n}", PICTURES[n], f"caption {n}") for n in range(5)]
    old, new = versions_of(tmp_path, rows, rows, tokens=False)
    store = Storage(tmp_path / "store")
    encode(old, METHOD, store)
    image, text = (code_path(file.address) for file in files_of(old.name))
    store.delete(image)
    data = bytearray(store.read(text))
    column = pq.read_metadata(io.BytesIO(bytes(data))).row_group(0).column(4)
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # one bit of a code
    store.write(text, bytes(data))
    report = encode(new, METHOD, store, after=old)
    assert (report.reused, report.forwarded) == ({"image": 0, "text": 0}, {"image": 5, "text": 5})
    assert f"{image} is gone" in caplog.text and f"{text} is damaged" in caplog.text


def test_features_are_known_again_by_width_and_bytes(tmp_path: Path) -> None:
    """Six float32 have the bytes of three float64: only rows of the right width may be compared."""
    narrow = np.arange(24, dtype=np.float32).reshape(4, 6)
    codes = EarlierCodes(
        pa.table(
            {
                "key": list("abcd"),
                "content_hash": pa.array([content_hash(row.tobytes()) for row in narrow], pa.binary(16)),
                "code": pa.array([bytes([n]) for n in range(4)], pa.binary(1)),
            }
        )
    )
    for column, found in (
        (pa.array(narrow.tolist(), pa.list_(pa.float32())), 4),
        (pa.array(narrow.view(np.float64).tolist(), pa.list_(pa.float64())), 0),
    ):
        table = pa.table({"key": list("abcd"), "image_features": column, "text": list("abcd")})
        columns = resolve_columns(table.schema, Columns(), where="t")
        decoded = decode_side(
            table,
            columns,
            InputRecipe(image_width=6),
            side="image",
            keys=list("abcd"),
            known=lambda hashes: codes.by_hash(hashes) >= 0,
        )
        assert (len(decoded.known_rows), len(decoded.rejects)) == (found, 4 - found)


def codes_of(report: UnitReport, store: Storage) -> list[list[bytes]]:
    return [
        pq.read_table(io.BytesIO(store.read(code_path(codes.address))))["code"].to_pylist()
        for codes in report.files.values()
    ]
