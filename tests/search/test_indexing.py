"""Parts: boundaries that follow content, files that follow (id, key) order, bytes that repeat."""

from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.search.indexing import IndexConfig, build_part, part_ends
from tests.search.stores import code_table, sample_id


def plan_parts(units: set[str], boundary: int) -> list[tuple[str, ...]]:
    """Return the units of each part."""
    names = sorted(units)
    ends = part_ends(pa.chunked_array([names], pa.string()), boundary=boundary).tolist()
    return [tuple(names[start:stop]) for start, stop in pairwise([0, *ends])]


paths = st.sets(st.text("abcdef/0123456789", min_size=1, max_size=6), max_size=40)


@given(units=paths, boundary=st.integers(1, 9))
def test_a_plan_holds_every_unit_once_in_path_order(units: set[str], boundary: int) -> None:
    parts = plan_parts(units, boundary)
    assert [unit for part in parts for unit in part] == sorted(units)
    assert all(parts)


@given(units=paths, boundary=st.integers(1, 9))
def test_a_part_ends_where_the_path_hash_is_0_mod_the_boundary(units: set[str], boundary: int) -> None:
    for part in plan_parts(units, boundary):
        hashes = [int.from_bytes(blake2b(unit.encode(), digest_size=8).digest(), "big") for unit in part]
        assert all(value % boundary for value in hashes[:-1])
        assert part[-1] == max(units) or hashes[-1] % boundary == 0


@given(units=paths, unit=st.text("abcdef/0123456789", min_size=1, max_size=6), boundary=st.integers(1, 9))
def test_a_unit_that_comes_or_goes_touches_at_most_two_parts(
    units: set[str], unit: str, boundary: int
) -> None:
    without, with_it = (
        plan_parts(units - {unit}, boundary),
        plan_parts(units | {unit}, boundary),
    )
    assert len(set(with_it) - set(without)) <= 2
    assert len(set(without) - set(with_it)) <= 2


def test_the_plan_refuses_a_boundary_of_0_and_names_that_are_not_distinct_and_in_order() -> None:
    with pytest.raises(ValueError, match="part_boundary must be at least 1, got 0"):
        plan_parts({"a"}, 0)
    for names in (["a", "b", "b"], ["a", "c", "b"]):
        with pytest.raises(ValueError, match="distinct and in order, 'b' is not"):
            part_ends(pa.chunked_array([names]), boundary=4)


def test_a_recipe_that_faiss_has_no_family_for_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="unknown index recipe 'IVF1024'; known: BFlat, BIVF<n>, "):
        IndexConfig(recipe="IVF1024")
    with pytest.raises(ValueError, match="unknown index recipe 'BHNSW'; known: BFlat"):
        build_part({"a": code_table(["x"], size=8)}, recipe="BHNSW")
    for recipe in ("BIVF0", "BIVF1024 ", "BHash70", "bflat", "BIVF9_HNSW"):
        with pytest.raises(ValueError, match="unknown index recipe"):
            IndexConfig(recipe=recipe)
    assert IndexConfig(recipe="auto").recipe == "auto"


def test_faiss_alone_opens_a_part_and_its_rows_stand_in_id_and_key_order(tmp_path: Path) -> None:
    tables = {f"u{n}.parquet": code_table([f"{n}-{i}" for i in range(9)], size=8, seed=n) for n in range(3)}
    part = build_part(tables)
    (tmp_path / "part.faiss").write_bytes(part.index)
    index = faiss.read_index_binary(str(tmp_path / "part.faiss"))
    keys = pa.ipc.open_file(part.keys).read_all()
    assert (index.ntotal, index.d, keys.num_rows, part.rows) == (27, 64, 27, 27)
    assert keys["key"].to_pylist() == sorted(keys["key"].to_pylist(), key=lambda key: (sample_id(key), key))
    stored = faiss.vector_to_array(index.xb).reshape(-1, 8)
    for number, row in enumerate(keys.to_pylist()):
        source = (
            tables[row["unit"]]
            .filter(pa.compute.equal(tables[row["unit"]]["row"], row["row"]))
            .to_pylist()[0]
        )
        assert (row["id"], row["key"]) == (source["id"], source["key"])
        assert stored[number].tobytes() == source["code"]


def test_equal_ids_are_ordered_by_key_and_equal_keys_by_unit() -> None:
    first, second = code_table(["b", "a"], size=1, ids=[5, 5]), code_table(["a"], size=1, ids=[5])
    keys = pa.ipc.open_file(build_part({"y": second, "x": first}).keys).read_all()
    assert [(row["key"], row["unit"]) for row in keys.to_pylist()] == [("a", "x"), ("a", "y"), ("b", "x")]


def test_the_same_code_files_give_the_same_bytes_in_any_order() -> None:
    tables = {f"u{n}": code_table([f"{n}-{i}" for i in range(5)], size=2, seed=n) for n in range(4)}
    shuffled = {
        unit: table.take(np.random.default_rng(1).permutation(5)) for unit, table in reversed(tables.items())
    }
    assert build_part(tables) == build_part(shuffled)


def test_a_part_without_rows_is_a_valid_part() -> None:
    part = build_part({"a": code_table([], size=8), "b": code_table([], size=8)})
    index = faiss.deserialize_index_binary(np.frombuffer(part.index, np.uint8))
    assert (part.rows, index.ntotal, pa.ipc.open_file(part.keys).read_all().num_rows) == (0, 0, 0)


def test_tables_that_do_not_belong_together_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="codes of b have 128 bits, those of a 64"):
        build_part({"a": code_table(["x"], size=8), "b": code_table(["y"], size=16)})
    with pytest.raises(ValueError, match="codes of b have fingerprint f2, those of a f1"):
        build_part(
            {unit: code_table([unit], size=8, fingerprint=name) for unit, name in (("a", "f1"), ("b", "f2"))}
        )
    with pytest.raises(ValueError, match="codes of a: no column 'code'; found: id, key, row"):
        build_part({"a": code_table(["x"], size=8).select(["id", "key", "row"])})
    with pytest.raises(ValueError, match="at least one unit"):
        build_part({})
