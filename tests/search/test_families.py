"""What each index family promises, against a sort of the rows that it looks at."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codes import hamming
from pipeline.search import approximate, fallback, inverted, scan
from pipeline.search.families import Effort, parse_recipe
from pipeline.search.order import NO_DISTANCE
from pipeline.search.partfiles import PartRecipe, write_codes
from pipeline.search.parts import Part
from pipeline.search.quantisers import Quantiser, load_quantiser, train_quantiser
from tests import reference
from tests.search.layouts import Hit, Rows, hits, lay_out, open_built, ranges
from tests.search.stores import code_table

EFFORT = Effort(nprobe=3, nflip=1, ef_search=16)
LAYOUTS = ((1, 1), (3, 1), (17, 2))  # parts, threads


def draw(seed: int, rows: int, *, spread: int, size: int = 2) -> tuple[Rows, np.ndarray]:
    """Return a corpus of 16-bit codes, so that ties abound, and queries, some of them of it."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, spread, (rows, size), dtype=np.uint8)
    queries = np.concatenate([rng.integers(0, 256, (3, size), dtype=np.uint8), codes[:2]])
    return Rows.of(codes), queries


def quantiser_of(rows: Rows, recipe: str) -> Quantiser:
    return load_quantiser(train_quantiser(rows.codes, parse_recipe(recipe), seed=1))


def of_candidates(rows: Rows, query: np.ndarray, looked_at: np.ndarray, k: int) -> list[Hit]:
    """Return the first k of the rows that are looked at, by a sort of them all."""
    distances = hamming(query[None], rows.codes)[0]
    return sorted((int(distances[row]), rows.ids[row], rows.keys[row]) for row in np.flatnonzero(looked_at))[
        :k
    ]


def visited(rows: Rows, query: np.ndarray, quantiser: Quantiser, k: int) -> np.ndarray:
    """Tell which rows lie in the lists that a query visits: nprobe, doubled until they hold k rows."""
    centroids = quantiser.centroids.codes
    lists = np.array([np.argmin(hamming(code[None], centroids)[0]) for code in rows.codes])
    order = np.argsort(hamming(query[None], centroids)[0], kind="stable")
    count = EFFORT.nprobe
    while np.isin(lists, order[:count]).sum() < k:
        count *= 2
    return np.isin(lists, order[:count])


@pytest.fixture(params=["compiled", "FAISS"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(inverted, "_THREAD_QUERIES", 1)
    if request.param == "FAISS":
        monkeypatch.setattr(scan, "_compiled", lambda: None)
    return str(request.param)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(9, 150),
    cut=st.floats(0, 1),
    spread=st.sampled_from([2, 4, 256]),
)
@settings(max_examples=8)
def test_inverted_lists_answer_with_the_first_of_the_rows_visited_in_any_layout(
    engine: str, seed: int, rows: int, cut: float, spread: int
) -> None:
    corpus, queries = draw(seed, rows, spread=spread)
    quantiser = quantiser_of(corpus, "BIVF9")
    k = 1 + round(cut * (rows - 1))
    wanted = [of_candidates(corpus, query, visited(corpus, query, quantiser, k), k) for query in queries]
    for parts, threads in LAYOUTS:
        laid_out = lay_out(corpus, parts=parts, seed=seed + parts, recipe="BIVF9", quantiser=quantiser)
        found = approximate.search(laid_out, queries, k, effort=EFFORT, quantiser=quantiser, threads=threads)
        assert hits(laid_out, found) == wanted


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 150), spread=st.sampled_from([2, 4, 256]))
@settings(max_examples=8)
def test_hash_tables_answer_with_the_first_of_their_candidates_in_any_layout(
    seed: int, rows: int, spread: int
) -> None:
    corpus, queries = draw(seed, rows, spread=spread)
    for recipe, pieces in (("BHash6", [range(6)]), ("BHash2x7", [range(7), range(7, 14)])):
        # FAISS counts the bits of a byte from its least significant one.
        bits = [np.unpackbits(codes, axis=1, bitorder="little") for codes in (corpus.codes, queries)]
        for k in {1 + rows // 3, rows}:
            wanted = []
            for number, query in enumerate(queries):
                flips = [(bits[0][:, piece] != bits[1][number, piece]).sum(axis=1) for piece in pieces]
                wanted.append(of_candidates(corpus, query, np.min(flips, axis=0) <= EFFORT.nflip, k))
            for parts, _ in LAYOUTS:
                laid_out = lay_out(corpus, parts=parts, seed=seed + parts, recipe=recipe)
                found = approximate.search(laid_out, queries, k, effort=EFFORT)
                assert hits(laid_out, found) == wanted
                missing = [k - len(line) for line in wanted]
                assert (found.distances == NO_DISTANCE).sum(axis=1).tolist() == missing
                assert (found.ids == -1).sum(axis=1).tolist() == missing


def test_a_graph_answers_the_same_every_time_and_is_built_the_same_from_the_same_codes() -> None:
    corpus, queries = draw(5, 400, spread=256)
    first, second = (lay_out(corpus, parts=3, seed=4, recipe="BHNSW8") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        files = [faiss.serialize_index_binary(part.index) for part in (one, other)]
        assert np.array_equal(*files)
    answers = [
        hits(parts, approximate.search(parts, queries, 9, effort=EFFORT)) for parts in (first, first, second)
    ]
    assert answers[0] == answers[1] == answers[2]
    exact = reference.search(queries, corpus.codes, ids=corpus.ids, keys=corpus.keys, k=9)
    assert sum(len(set(a) & set(b)) for a, b in zip(answers[0], exact, strict=True)) > 30


def test_lists_found_by_a_graph_are_the_same_in_any_layout() -> None:
    corpus, queries = draw(6, 500, spread=256)
    quantiser = quantiser_of(corpus, "BIVF40_HNSW8")
    answers = []
    for parts, threads in LAYOUTS:
        laid_out = lay_out(corpus, parts=parts, seed=parts, recipe="BIVF40_HNSW8", quantiser=quantiser)
        found = approximate.search(laid_out, queries, 20, effort=EFFORT, quantiser=quantiser, threads=threads)
        answers.append(hits(laid_out, found))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("recipe", ["BIVF7", "BIVF7_HNSW4", "BHNSW8", "BHash2x4"])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_code_can_be_scanned_whatever_the_family(engine: str, recipe: str, parts: int) -> None:
    corpus, queries = draw(7, 90, spread=4)
    quantiser = quantiser_of(corpus, recipe) if recipe.startswith("BIVF") else None
    laid_out = lay_out(corpus, parts=parts, seed=2, recipe=recipe, quantiser=quantiser)
    everything = reference.search(queries, corpus.codes, ids=corpus.ids, keys=corpus.keys, k=90)
    for k in (1, 30, 90):
        assert hits(laid_out, scan.nearest(laid_out, queries, k)) == [line[:k] for line in everything]
    for radius in (0, 3, 16):
        wanted = [[hit for hit in line if hit[0] <= radius] for line in everything]
        assert ranges(laid_out, approximate.within(laid_out, queries, radius)) == wanted


@pytest.mark.parametrize("recipe", ["BFlat", "BIVF7", "BHNSW8", "BHash2x4"])
def test_some_rows_are_searched_as_if_there_were_no_others(engine: str, recipe: str) -> None:
    corpus, queries = draw(8, 90, spread=4)
    quantiser = quantiser_of(corpus, recipe) if recipe.startswith("BIVF") else None
    laid_out = lay_out(corpus, parts=3, seed=2, recipe=recipe, quantiser=quantiser)
    rng = np.random.default_rng(3)
    masks = [rng.random(part.rows) < 0.3 for part in laid_out]
    wanted_keys = {
        key
        for part, mask in zip(laid_out, masks, strict=True)
        for key in part.keys["key"].filter(mask).to_pylist()
    }
    everything = reference.search(queries, corpus.codes, ids=corpus.ids, keys=corpus.keys, k=90)
    wanted = [[hit for hit in line if hit[2] in wanted_keys][:7] for line in everything]
    assert hits(laid_out, scan.nearest(laid_out, queries, 7, allowed=masks)) == wanted
    numbers = [np.flatnonzero(mask)[::-1] for mask in masks]
    assert hits(laid_out, scan.nearest(laid_out, queries, 7, allowed=numbers)) == wanted


def test_rows_that_are_allowed_must_be_rows_of_their_parts() -> None:
    corpus, queries = draw(8, 9, spread=4)
    parts = lay_out(corpus, parts=1, seed=2)
    with pytest.raises(ValueError, match="k must be within 1 and the 2 rows"):
        scan.nearest(parts, queries, 3, allowed=[np.array([1, 5])])
    with pytest.raises(ValueError, match="allowed rows must be within 0 and 8, got -1 to 9"):
        scan.nearest(parts, queries, 1, allowed=[np.array([9, -1])])
    with pytest.raises(ValueError, match=r"a mask of allowed rows must be \(9,\), got \(8,\)"):
        scan.nearest(parts, queries, 1, allowed=[np.ones(8, bool)])
    with pytest.raises(ValueError, match="the rows of each of 1 parts, got 0 of them"):
        scan.nearest(parts, queries, 1, allowed=[])
    hashed = lay_out(corpus, parts=1, seed=2, recipe="BHash4")
    with pytest.raises(ValueError, match="a IndexBinaryHash does not hold its codes row by row"):
        scan.nearest(hashed, queries, 1, allowed=[np.array([1])])


def test_more_ties_than_there_is_room_for_are_answered_by_the_lowest_ids() -> None:
    codes = np.repeat(np.array([0, 1, 3], np.uint8), 2000)[:, None]
    corpus = Rows.of(codes)
    query = np.array([[0], [1], [255]], np.uint8)
    quantiser = load_quantiser(train_quantiser(codes[::9], parse_recipe("BIVF2"), seed=1))
    wanted = reference.search(query, codes, ids=corpus.ids, keys=corpus.keys, k=11)
    for parts in (1, 5):
        laid_out = lay_out(corpus, parts=parts, seed=1, recipe="BIVF2", quantiser=quantiser)
        found = approximate.search(laid_out, query, 11, effort=Effort(nprobe=2), quantiser=quantiser)
        assert hits(laid_out, found) == wanted


@pytest.mark.parametrize("size", [1, 3, 8, 12, 16, 33])
def test_lists_of_codes_of_any_size_are_read_to_their_last_byte(size: int) -> None:
    corpus, queries = draw(size, 300, spread=256, size=size)
    quantiser = quantiser_of(corpus, "BIVF30")
    laid_out = lay_out(corpus, parts=2, seed=1, recipe="BIVF30", quantiser=quantiser)
    wanted = reference.search(queries, corpus.codes, ids=corpus.ids, keys=corpus.keys, k=300)
    assert hits(laid_out, scan.nearest(laid_out, queries, 300)) == wanted


def test_faiss_alone_finds_in_the_lists_what_we_find() -> None:
    rng = np.random.default_rng(4)
    corpus = Rows.of(rng.integers(0, 256, (3000, 8), dtype=np.uint8))
    queries = rng.integers(0, 256, (20, 8), dtype=np.uint8)
    quantiser = quantiser_of(corpus, "BIVF32")
    (part,) = lay_out(corpus, parts=1, seed=1, recipe="BIVF32", quantiser=quantiser)
    part.index.nprobe = 5
    distances, _ = part.index.search(queries, 10)
    found = approximate.search([part], queries, 10, effort=Effort(nprobe=5), quantiser=quantiser)
    assert np.array_equal(found.distances, distances)
    assert (
        faiss.serialize_index_binary(part.index).size - 3000 * 16
    ) / 3000 < 1  # ids: 8 bytes beside each code


def test_a_list_that_names_a_row_that_is_not_there_is_an_error_and_no_answer() -> None:
    corpus, queries = draw(3, 60, spread=256)
    quantiser = quantiser_of(corpus, "BIVF4")
    (part,) = lay_out(corpus, parts=1, seed=1, recipe="BIVF4", quantiser=quantiser)
    lists = faiss.downcast_InvertedLists(part.index.invlists)
    number = int(np.argmax(part.lists.rows))
    faiss.rev_swig_ptr(lists.get_ids(number), 1)[0] = 1 << 39
    for search in (
        lambda: scan.nearest([part], queries, 60),
        lambda: scan.within([part], queries, 16),
    ):
        with pytest.raises(ValueError, match="names a row that its part does not have; verify the release"):
            search()


def test_a_part_and_its_quantiser_must_fit() -> None:
    corpus, queries = draw(3, 60, spread=256)
    quantiser = quantiser_of(corpus, "BIVF4")
    table = {"u": code_table(["a", "b"], size=2)}
    with pytest.raises(ValueError, match="have a quantiser if and only if they have lists"):
        open_built(table, recipe="BIVF4")
    with pytest.raises(ValueError, match="have a quantiser if and only if they have lists"):
        open_built(table, quantiser=quantiser)
    with pytest.raises(ValueError, match=r"BIVF5 over codes of 16 bits needs 5 centroids .* has 4 of 16"):
        open_built(table, recipe="BIVF5", quantiser=quantiser)
    with pytest.raises(ValueError, match="BHash3x6 hashes 18 bits, codes have 16; hash fewer"):
        PartRecipe(parse_recipe("BHash3x6"), 2)
    parts = lay_out(corpus, parts=1, seed=1, recipe="BIVF4", quantiser=quantiser)
    with pytest.raises(ValueError, match="searched with the quantiser of their release, got none"):
        approximate.search(parts, queries, 1)
    with pytest.raises(ValueError, match="needs at least 61 codes to train its lists, got 60"):
        quantiser_of(corpus, "BIVF61")
    for bad in (b"", b"x" * 40, faiss.serialize_index_binary(faiss.IndexBinaryFlat(16)).tobytes()):
        with pytest.raises(ValueError, match=r"FAISS cannot read it|no set of centroids"):
            load_quantiser(bad)


SEARCHES: dict[str, Callable[[list[Part], np.ndarray, int], object]] = {
    "search": lambda parts, codes, k: approximate.search(parts, codes, k),
    "within": lambda parts, codes, k: approximate.within(parts, codes, k - 1),
}


@pytest.mark.parametrize("recipe", ["BHNSW4", "BHash4"])
def test_what_cannot_be_searched_is_refused_by_every_family(recipe: str) -> None:
    corpus, queries = draw(3, 20, spread=256)
    parts = lay_out(corpus, parts=2, seed=1, recipe=recipe)
    for k in (0, 21):
        with pytest.raises(ValueError, match=f"k must be within 1 and the 20 rows of all parts, got {k}"):
            approximate.search(parts, queries, k)
    for codes in (queries[:, :1], queries.astype(np.int16), queries[0]):
        for search in SEARCHES.values():
            with pytest.raises(ValueError, match=r"codes must be \(Q, 2\) uint8, got"):
                search(parts, np.ascontiguousarray(codes), 1)
    with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
        approximate.within(parts, queries, -1)


def test_no_queries_give_no_answers_in_any_family() -> None:
    corpus, _ = draw(3, 40, spread=256)
    for recipe in ("BIVF4", "BHNSW4", "BHash4", "BHash2x4"):
        quantiser = quantiser_of(corpus, recipe) if recipe == "BIVF4" else None
        parts = lay_out(corpus, parts=2, seed=1, recipe=recipe, quantiser=quantiser)
        found = approximate.search(parts, np.empty((0, 2), np.uint8), 3, quantiser=quantiser)
        assert found.ids.shape == (0, 3)


def test_queries_are_answered_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, queries = draw(3, 90, spread=8)
    quantiser = quantiser_of(corpus, "BIVF9")
    parts = lay_out(corpus, parts=3, seed=1, recipe="BIVF9", quantiser=quantiser)
    hashed = lay_out(corpus, parts=3, seed=1, recipe="BHash6")
    wanted = [
        hits(made, approximate.search(made, queries, 7, quantiser=quantiser)) for made in (parts, hashed)
    ]
    for module, name in (
        (inverted, "_QUERIES"),
        (inverted, "_FOUND"),
        (approximate, "_CANDIDATES"),
        (scan, "_VISITS"),
    ):
        monkeypatch.setattr(module, name, 2)
    assert wanted == [
        hits(made, approximate.search(made, queries, 7, quantiser=quantiser)) for made in (parts, hashed)
    ]
    assert fallback.nearest(lay_out(corpus, parts=1, seed=1), queries, 5).ids.shape == (5, 5)


TOUCH = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from pipeline.search import approximate
from pipeline.search.families import Effort
from pipeline.search.parts import Part, read_index
from pipeline.search.quantisers import load_quantiser

def mapped():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))

quantiser = load_quantiser(Path(sys.argv[1], "quantiser").read_bytes())

def search(name):
    index = read_index(Path(sys.argv[1], name, "part.faiss"), name)
    part = Part(index, pa.table({"id": np.arange(index.ntotal)}))
    asked = {"effort": Effort(nprobe=1), "quantiser": quantiser}
    return part, approximate.search([part], np.ones((1, 8), np.uint8), 3, **asked)

small = search("small")  # loads and compiles
before = mapped()
large = search("large")
print(mapped() - before)
"""


@pytest.mark.slow
def test_a_search_of_one_list_does_not_bring_the_others_into_memory(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 256, (3_000_000, 8), dtype=np.uint8)
    data = train_quantiser(codes[:4096], parse_recipe("BIVF64"), seed=1)
    (tmp_path / "quantiser").write_bytes(data)
    for name, rows in (("small", 1000), ("large", len(codes))):
        (tmp_path / name).mkdir()
        write_codes(
            codes[:rows], PartRecipe(parse_recipe("BIVF64"), 8, load_quantiser(data)), tmp_path / name
        )
    asked = [sys.executable, "-c", TOUCH, str(tmp_path)]
    grown = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    size = (tmp_path / "large" / "part.faiss").stat().st_size
    assert size > 45 << 20
    assert grown < size / 3  # one list of 64, in the steps of up to 2 MiB in which a kernel maps files
