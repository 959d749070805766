"""The code file and its ledger: whatever the order of the chunks, the same bytes, and no row lost."""

import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import PACKER_VERSION
from pipeline.corpus.decode import Reject
from pipeline.corpus.schema import sample_ids
from pipeline.encoding.codefile import (
    CodeFileRecipe,
    EncodedSide,
    Ledger,
    UnitRows,
    make_code_file,
    read_ledger,
)

RECIPE = CodeFileRecipe("text", "0" * 32, "token", "tower", "recipe", 16)


def part(rows: list[str], start: int) -> EncodedSide:
    """Make rows [start, ...) of a unit: 'c' has a code, 'r' is rejected, 'a' is absent."""
    coded = np.array([start + i for i, kind in enumerate(rows) if kind == "c"], dtype=np.int64)
    return EncodedSide(
        read=len(rows),
        absent=rows.count("a"),
        rows=coded,
        hashes=np.repeat(coded[:, None].astype(np.uint8), 16, axis=1),
        codes=np.stack([coded % 256, coded // 256], axis=1).astype(np.uint8),
        rejects=tuple(
            Reject(start + i, "k", "empty text", "e") for i, kind in enumerate(rows) if kind == "r"
        ),
    )


def table(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


@given(
    rows=st.lists(st.tuples(st.sampled_from("cra"), st.sampled_from(["a", "b", "ü", "c" * 9])), max_size=9),
    cut=st.integers(0, 9),
)
def test_each_key_has_one_code_and_every_row_is_in_the_ledger(rows: list[tuple[str, str]], cut: int) -> None:
    kinds, keys = [kind for kind, _ in rows], [key for _, key in rows]
    parts = [part(kinds[:cut], 0), part(kinds[cut:], min(cut, len(rows)))]
    made = make_code_file(RECIPE, UnitRows(pa.array(keys, pa.string())), parts)
    expected = [
        (sample_ids([key])[0], key, row)
        for row, (kind, key) in enumerate(rows)
        if kind == "c" and keys.index(key) == row
    ]
    codes = table(made.codes)
    assert [tuple(r.values()) for r in codes.select(["id", "key", "row"]).to_pylist()] == sorted(expected)
    assert [r["code"] for r in codes.to_pylist()] == [bytes([row["row"], 0]) for row in codes.to_pylist()]
    assert all(r["content_hash"] == bytes([r["row"]] * 16) for r in codes.to_pylist())
    duplicates = kinds.count("c") - len(expected)
    reasons = {"duplicate key": duplicates, "empty text": kinds.count("r")}
    assert made.ledger == Ledger(
        read=len(rows),
        encoded=len(expected),
        rejected=duplicates + kinds.count("r"),
        absent=kinds.count("a"),
        reasons={reason: count for reason, count in reasons.items() if count},
    )
    rejects = table(made.rejects).to_pylist() if made.rejects else []
    assert len(rejects) == made.ledger.rejected
    assert [r["row"] for r in rejects] == sorted(r["row"] for r in rejects)


def test_the_order_in_which_chunks_arrive_does_not_change_a_byte() -> None:
    parts = [part(["c", "r"], 0), part(["c", "c"], 2), part(["a", "c"], 4)]
    keys = pa.array(list("abcdea"))
    made = [make_code_file(RECIPE, UnitRows(keys), order) for order in itertools.permutations(parts)]
    assert len({(file.codes, file.rejects) for file in made}) == 1


def test_a_code_file_says_what_it_is_of() -> None:
    made = make_code_file(RECIPE, UnitRows(pa.array(["a", "b"])), [part(["c", "r"], 0)])
    schema = pq.read_schema(io.BytesIO(made.codes))
    assert read_ledger(schema) == made.ledger == Ledger(2, 1, 1, 0, {"empty text": 1})
    said = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert (
        said.items()
        >= {
            "hashfleet.code_length": "16",
            "hashfleet.bit_order": "msb",
            "hashfleet.fingerprint": "tower",
            "hashfleet.packer_version": str(PACKER_VERSION),
            "hashfleet.side": "text",
            "hashfleet.unit_token": "token",
            "hashfleet.input_recipe": "recipe",
        }.items()
    )
    assert str(schema.field("code").type) == "fixed_size_binary[2]"
    assert str(schema.field("content_hash").type) == "fixed_size_binary[16]"


def test_a_unit_without_rows_makes_an_empty_code_file() -> None:
    made = make_code_file(RECIPE, UnitRows(pa.array([], pa.string())), [])
    assert table(made.codes).num_rows == 0
    assert made.ledger == Ledger(0, 0, 0, 0)
    assert made.rejects is None


def test_rows_without_a_key_are_no_duplicates_of_each_other() -> None:
    made = make_code_file(RECIPE, UnitRows(pa.array([None, "a", None, "b"])), [part(["r", "c", "r", "c"], 0)])
    assert made.ledger.reasons == {"empty text": 2}


def test_a_missing_or_doubled_chunk_is_found() -> None:
    keys = pa.array(["a", "b", "c"])
    for parts in ([part(["c"], 0)], [part(["c", "c"], 0), part(["c", "c"], 1)]):
        with pytest.raises(RuntimeError, match="does not balance over 3 rows"):
            make_code_file(RECIPE, UnitRows(keys), parts)


def test_a_file_without_a_ledger_is_no_code_file() -> None:
    with pytest.raises(ValueError, match=r"no hashfleet\.ledger in its schema; found key"):
        read_ledger(pa.schema([("key", pa.string())]))
