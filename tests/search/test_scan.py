"""The order of hits against a sort of everything: any layout, insertion order, code size and engine."""

import subprocess
import sys
from collections.abc import Callable

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.search import compiled, fallback
from pipeline.search.indexing import build_part
from pipeline.search.kernels import BLOCK_BYTES, LANES
from pipeline.search.order import Nearest, Within
from pipeline.search.parts import Part
from pipeline.search.scan import nearest, within
from tests import reference
from tests.search.stores import code_table, sample_id

Scan = Callable[[list[Part], np.ndarray, int], Nearest]
SCANS: dict[str, Scan] = {
    "compiled": lambda parts, codes, k: compiled.nearest(parts, codes, k, threads=1),
    "compiled, 2 threads": lambda parts, codes, k: compiled.nearest(parts, codes, k, threads=2),
    "FAISS": fallback.nearest,
}


@pytest.fixture(autouse=True)
def _threads_for_small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_THREAD_WORK", 1)


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


def hits(parts: list[Part], *columns: np.ndarray) -> list[tuple[int, int, str]]:
    return [
        (int(d), int(i), parts[p].keys["key"][int(r)].as_py()) for d, i, p, r in zip(*columns, strict=True)
    ]


def answers(parts: list[Part], query: np.ndarray, k: int, *, scan: str) -> list[list[tuple[int, int, str]]]:
    found = SCANS[scan](parts, query, k)
    assert (found.distances.dtype, found.ids.dtype, found.ids.shape) == (np.int32, np.int64, (len(query), k))
    columns = (found.distances, found.ids, found.part, found.row)
    return [hits(parts, *lines) for lines in zip(*columns, strict=True)]


def ranges(parts: list[Part], found: Within) -> list[list[tuple[int, int, str]]]:
    columns = (found.distances, found.ids, found.part, found.row)
    return [
        hits(parts, *(column[start:stop] for column in columns))
        for start, stop in zip(found.limits, found.limits[1:], strict=False)
    ]


@pytest.mark.parametrize("scan", SCANS)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 120),
    cut=st.floats(0, 1),
    spread=st.sampled_from([1, 2, 4, 256]),
)
@settings(max_examples=20)
def test_answers_are_those_of_a_full_sort_for_1_3_and_17_parts_in_any_order(
    scan: str, seed: int, rows: int, cut: float, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = [f"key {row}" for row in range(rows)]
    codes = rng.integers(0, spread, (rows, 1 + seed % 2), dtype=np.uint8)
    query = np.concatenate([rng.integers(0, 256, (2, codes.shape[1]), dtype=np.uint8), codes[:1]])
    ids = [sample_id(key) for key in keys]
    k = 1 + round(cut * (rows - 1))
    wanted = reference.search(query, codes, ids=ids, keys=keys, k=k)
    for parts in (1, 3, 17):
        laid_out = lay_out(keys, codes, ids=ids, parts=parts, seed=seed)
        assert answers(laid_out, query, k, scan=scan) == wanted


@pytest.mark.parametrize("scan", SCANS)
def test_equal_ids_are_ordered_by_key_whatever_the_part_they_are_in(scan: str) -> None:
    keys = [f"{letter}{number}" for letter in "dbca" for number in range(20)]
    codes, ids = np.zeros((80, 1), np.uint8), [7] * 80
    codes[::7] = 3
    for k in (1, 33, 80):
        wanted = reference.search(codes[:2], codes, ids=ids, keys=keys, k=k)
        for parts in (1, 2, 5):
            laid_out = lay_out(keys, codes, ids=ids, parts=parts, seed=parts)
            assert answers(laid_out, codes[:2], k, scan=scan) == wanted


@pytest.mark.parametrize("scan", SCANS)
def test_a_key_that_several_parts_hold_is_ordered_by_unit_and_row(scan: str) -> None:
    codes = np.zeros((3, 2), np.uint8)
    tables = [{unit: code_table(["a", "b", "c"], size=2, codes=codes)} for unit in ("y", "x", "z")]
    parts = open_parts(tables)
    found = SCANS[scan](parts, codes[:1], 9)
    units = [parts[p].keys["unit"][int(r)].as_py() for p, r in zip(found.part[0], found.row[0], strict=True)]
    assert units == ["x", "y", "z"] * 3


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("size", [*range(1, 18), 23, 24, 31, 32, 33, 63, 64])
def test_codes_of_every_size_are_compared_to_their_last_byte(size: int, scan: str) -> None:
    rng = np.random.default_rng(size)
    block = max(LANES, BLOCK_BYTES // 8 // -(-size // 8) // LANES * LANES)
    for rows in (1, LANES - 1, LANES, LANES + 1, block + 1):
        codes = rng.integers(0, 256, (rows, size), dtype=np.uint8)
        codes[: rows // 2, :-1] = 0
        query = np.stack([codes[0], codes[-1] ^ 1])
        distances = np.bitwise_count(query[:, None] ^ codes[None]).sum(axis=2, dtype=np.int64)
        k = min(rows, 7)
        wanted = np.argsort(distances, axis=1, kind="stable")[:, :k]
        keys = pa.table({"id": pa.array(range(rows), pa.int64())})
        index = faiss.IndexBinaryFlat(8 * size)
        index.add(codes)
        found = SCANS[scan]([Part(index, keys)], query, k)
        np.testing.assert_array_equal(found.row, wanted)
        np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, wanted, axis=1))


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("k", [1, 299, 300, 301, 3999, 4000])
def test_rows_that_come_nearer_and_nearer_and_tie_do_not_overflow_what_is_kept(k: int, scan: str) -> None:
    steps = np.repeat(np.arange(8), 500)
    codes = ((1 << (8 - steps)) - 1).astype(np.uint8)[:, None]  # 8 bits down to 1: ever nearer to zero
    keys, ids = [f"{row:05}" for row in range(4000)], list(range(4000))
    wanted = reference.search(np.zeros((1, 1), np.uint8), codes, ids=ids, keys=keys, k=k)
    for parts in (1, 17):
        laid_out = lay_out(keys, codes, ids=ids, parts=parts, seed=3)
        assert answers(laid_out, np.zeros((1, 1), np.uint8), k, scan=scan) == wanted


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("values", [[0], [0, 1], [3, 1, 0]])
def test_a_later_part_with_more_ties_than_there_is_room_for_gives_its_lowest_ids(
    values: list[int], scan: str
) -> None:
    rows, k = 4000, 3
    codes = np.repeat(np.array(values, np.uint8), -(-rows // len(values)))[:rows, None]
    keys, ids = [f"{row:05}" for row in range(rows)], list(range(rows))
    query = np.zeros((1, 1), np.uint8)
    wanted = reference.search(query, codes, ids=ids, keys=keys, k=k)
    assert answers(lay_out(keys, codes, ids=ids, parts=3, seed=8), query, k, scan=scan) == wanted


@pytest.mark.parametrize("scan", SCANS)
def test_a_cut_among_many_more_ties_than_are_fetched_keeps_the_lowest_ids(scan: str) -> None:
    rng = np.random.default_rng(5)
    keys = [f"k{row}" for row in range(3000)]
    codes = rng.choice(np.array([0, 1, 3], np.uint8), (3000, 1))
    ids = [sample_id(key) for key in keys]
    query = np.array([[0], [1], [255]], np.uint8)
    wanted = reference.search(query, codes, ids=ids, keys=keys, k=40)
    for parts in (1, 4, 40):
        assert answers(lay_out(keys, codes, ids=ids, parts=parts, seed=1), query, 40, scan=scan) == wanted


def test_threads_and_query_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    keys, codes = [f"k{row}" for row in range(200)], rng.integers(0, 256, (200, 2), dtype=np.uint8)
    ids = [sample_id(key) for key in keys]
    parts = lay_out(keys, codes, ids=ids, parts=3, seed=1)
    for queries in (1, 7, 8, 50):  # few are dealt out by rows, many by queries
        query = rng.integers(0, 256, (queries, 2), dtype=np.uint8)
        wanted = reference.search(query, codes, ids=ids, keys=keys, k=9)
        for threads in (1, 2, 5):
            found = nearest(parts, query, 9, threads=threads)
            columns = zip(found.distances, found.ids, found.part, found.row, strict=True)
            assert [hits(parts, *lines) for lines in columns] == wanted
    monkeypatch.setattr(compiled, "_QUERIES", 3)
    assert answers(parts, query, 9, scan="compiled, 2 threads") == wanted
    monkeypatch.setattr(fallback, "_CANDIDATES", 200)
    assert answers(parts, query, 9, scan="FAISS") == wanted


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 120),
    radius=st.integers(0, 17),
    spread=st.sampled_from([1, 4, 256]),
)
@settings(max_examples=20)
def test_a_radius_finds_every_row_within_it_and_itself(
    seed: int, rows: int, radius: int, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    keys, codes = [f"k{row}" for row in range(rows)], rng.integers(0, spread, (rows, 2), dtype=np.uint8)
    ids = [sample_id(key) >> 58 for key in keys]  # many rows of one id
    query = rng.integers(0, spread, (3, 2), dtype=np.uint8)
    everything = reference.search(query, codes, ids=ids, keys=keys, k=rows)
    wanted = [[hit for hit in line if hit[0] <= radius] for line in everything]
    for parts in (1, 3):
        laid_out = lay_out(keys, codes, ids=ids, parts=parts, seed=seed)
        for found in (
            within(laid_out, query, radius, threads=1),
            within(laid_out, query, radius, threads=2),
            fallback.within(laid_out, query, radius),
        ):
            assert ranges(laid_out, found) == wanted


def test_no_queries_give_no_answers() -> None:
    parts = open_parts([{"u": code_table(["a", "b"], size=2)}, {"v": code_table([], size=2)}])
    for scan in SCANS.values():
        found = scan(parts, np.empty((0, 2), np.uint8), 2)
        assert found.distances.shape == found.ids.shape == (0, 2)
    assert within(parts, np.empty((0, 2), np.uint8), 3).limits.tolist() == [0]
    assert within([], np.zeros((2, 2), np.uint8), 3).limits.tolist() == [0, 0, 0]


def test_codes_too_long_for_the_compiled_scan_are_left_to_faiss() -> None:
    size = compiled.CODE_SIZE + 1
    parts = open_parts([{"u": code_table(["a", "b"], size=size)}])
    assert nearest(parts, parts[0].codes[1:], 2).row.tolist() == [[1, 0]]


def test_what_cannot_be_searched_is_refused() -> None:
    parts = open_parts([{"u": code_table(["a", "b"], size=2)}])
    query = np.zeros((1, 2), np.uint8)
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k must be within 1 and the 2 rows of all parts, got {k}"):
            nearest(parts, query, k)
    with pytest.raises(ValueError, match=r"codes must be \(Q, 2\) uint8, got \(1, 3\) uint8"):
        nearest(parts, np.zeros((1, 3), np.uint8), 1)
    with pytest.raises(ValueError, match=r"codes must be \(Q, 2\) uint8, got \(1, 2\) int64"):
        within(parts, query.astype(np.int64), 1)
    with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
        within(parts, query, -1)
    with pytest.raises(ValueError, match=r"parts must have one code size, got \[2, 3\] bytes"):
        nearest([*parts, *open_parts([{"u": code_table(["a"], size=3)}])], query, 1)


def test_without_numba_faiss_gives_the_same_answers() -> None:
    program = """if True:
        import sys
        sys.modules["numba"] = None
        import faiss, numpy as np, pyarrow as pa
        from pipeline.search.parts import Part
        from pipeline.search.scan import nearest, within
        index = faiss.IndexBinaryFlat(8)
        index.add(np.array([[1], [0], [3], [0]], np.uint8))
        parts = [Part(index, pa.table({"id": [1, 2, 3, 4]}))]
        query = np.zeros((1, 1), np.uint8)
        print(nearest(parts, query, 3).row, within(parts, query, 1).row)
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[[1 3 0]] [1 3 0]"
