"""The order of hits against a sort of everything: any layout, any insertion order, many ties."""

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.indexing import build_part
from pipeline.search.parts import Part
from pipeline.search.scan import nearest
from tests import reference
from tests.search.stores import code_table, sample_id


def open_parts(tables: list[dict[str, pa.Table]]) -> list[Part]:
    built = [build_part(part) for part in tables]
    return [
        Part(
            faiss.deserialize_index_binary(np.frombuffer(files.index, np.uint8)),
            pa.ipc.open_file(files.keys).read_all(),
        )
        for files in built
    ]


def lay_out(keys: list[str], codes: np.ndarray, *, ids: list[int], parts: int, seed: int) -> list[Part]:
    """Deal the rows out to units in a drawn order, and the units to parts."""
    order = np.random.default_rng(seed).permutation(len(keys))
    tables: list[dict[str, pa.Table]] = [{} for _ in range(parts)]
    for number in range(2 * parts):
        rows = order[number :: 2 * parts]
        tables[number % parts][f"u{seed}-{number}"] = code_table(
            [keys[row] for row in rows],
            size=codes.shape[1],
            ids=[ids[row] for row in rows],
            codes=codes[rows],
        )
    return open_parts(tables)


def answers(parts: list[Part], query: np.ndarray, k: int) -> list[list[tuple[int, int, str]]]:
    found = nearest(parts, query, k)
    assert (found.distances.dtype, found.ids.dtype, found.ids.shape) == (np.int32, np.int64, (len(query), k))
    return [
        [(int(d), int(i), parts[p].keys["key"][int(r)].as_py()) for d, i, p, r in zip(*columns, strict=True)]
        for columns in zip(found.distances, found.ids, found.part, found.row, strict=True)
    ]


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 120),
    cut=st.floats(0, 1),
    spread=st.sampled_from([1, 2, 4, 256]),
)
def test_answers_are_those_of_a_full_sort_for_1_3_and_17_parts_in_any_order(
    seed: int, rows: int, cut: float, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = [f"key {row}" for row in range(rows)]
    codes = rng.integers(0, spread, (rows, 2), dtype=np.uint8)
    query = np.concatenate([rng.integers(0, 256, (2, 2), dtype=np.uint8), codes[:1]])
    ids = [sample_id(key) for key in keys]
    k = 1 + round(cut * (rows - 1))
    wanted = reference.search(query, codes, ids=ids, keys=keys, k=k)
    for parts in (1, 3, 17):
        assert answers(lay_out(keys, codes, ids=ids, parts=parts, seed=seed), query, k) == wanted


def test_equal_ids_are_ordered_by_key_whatever_the_part_they_are_in() -> None:
    keys = [f"{letter}{number}" for letter in "dbca" for number in range(20)]
    codes, ids = np.zeros((80, 1), np.uint8), [7] * 80
    wanted = reference.search(codes[:1], codes, ids=ids, keys=keys, k=33)
    for parts in (1, 2, 5):
        assert answers(lay_out(keys, codes, ids=ids, parts=parts, seed=parts), codes[:1], 33) == wanted


def test_a_cut_among_many_more_ties_than_are_fetched_keeps_the_lowest_ids() -> None:
    rng = np.random.default_rng(5)
    keys = [f"k{row}" for row in range(3000)]
    codes = rng.choice(np.array([0, 1, 3], np.uint8), (3000, 1))
    ids = [sample_id(key) for key in keys]
    query = np.array([[0], [1], [255]], np.uint8)
    wanted = reference.search(query, codes, ids=ids, keys=keys, k=40)
    for parts in (1, 4):
        assert answers(lay_out(keys, codes, ids=ids, parts=parts, seed=1), query, 40) == wanted


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_query_blocks_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    keys, codes = [f"k{row}" for row in range(200)], rng.integers(0, 256, (200, 2), dtype=np.uint8)
    ids = [sample_id(key) for key in keys]
    parts = lay_out(keys, codes, ids=ids, parts=3, seed=1)
    query = rng.integers(0, 256, (50, 2), dtype=np.uint8)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        whole = answers(parts, query, 9)
        monkeypatch.setattr("pipeline.search.scan._CANDIDATES", 200, raising=False)
        assert answers(parts, query, 9) == whole == reference.search(query, codes, ids=ids, keys=keys, k=9)
    finally:
        faiss.omp_set_num_threads(before)


def test_no_queries_give_no_answers() -> None:
    parts = open_parts([{"u": code_table(["a", "b"], size=2)}])
    found = nearest(parts, np.empty((0, 2), np.uint8), 2)
    assert found.distances.shape == found.ids.shape == (0, 2)
