"""Filters by key and hidden keys: the answers are those of a corpus that never held the other rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codes import BIT_ORDER
from pipeline.corpus.schema import sample_ids
from pipeline.releases.forgetting import forget
from pipeline.releases.heads import FORGOTTEN_LOG, Log
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search import selection
from pipeline.search.families import Effort, parse_recipe
from pipeline.search.order import NO_DISTANCE
from pipeline.search.quantisers import train_quantiser
from pipeline.search.retrieval import Hits, Origin, Release
from tests import reference
from tests.search.stores import code_table, write_store

KEYS = [f"k{row}" for row in range(90)]
CODES = np.random.default_rng(1).integers(0, 4, (90, 2), dtype=np.uint8)  # many ties
QUERY = np.random.default_rng(2).integers(0, 4, (5, 2), dtype=np.uint8)
FAMILIES = ["BFlat", "BIVF4", "BHNSW8", "BHash2x4"]


def make_store(uri: str | Path, recipe: str = "BFlat") -> str:
    """Write 90 image codes in two parts; the key k7 stands in both."""
    family = parse_recipe(recipe)
    quantiser = train_quantiser(CODES, family, seed=0) if family.has_quantiser else b""
    tables = [
        {"u0": code_table(KEYS[:30], size=2, codes=CODES[:30])},
        {"u1": code_table([*KEYS[30:], "k7"], size=2, codes=CODES[np.r_[30:90, 7]])},
    ]
    return write_store(uri, {"image": tables}, code_length=16, recipe=recipe, quantiser=quantiser)


def hide(uri: str | Path, keys: list[str]) -> None:
    forget(Log(Storage(uri)), keys, ids=sample_ids(keys), owner="test")


def of_others(gone: set[str]) -> tuple[list[str], np.ndarray]:
    """Return the rows of the store that are not gone."""
    keys, codes = [*KEYS, "k7"], np.concatenate([CODES, CODES[7:8]])
    kept = [row for row, key in enumerate(keys) if key not in gone]
    return [keys[row] for row in kept], codes[kept]


def wanted(keys: list[str], codes: np.ndarray, k: int) -> list[list[tuple[int, int, str]]]:
    ids = sample_ids(keys).tolist()
    return reference.search(QUERY, np.ascontiguousarray(codes), ids=ids, keys=keys, k=k)


def found(hits: Hits) -> list[list[tuple[int, int, str]]]:
    lines = zip(hits.distances.tolist(), hits.ids.tolist(), hits.keys, strict=True)
    return [list(zip(*line, strict=False)) for line in lines]


@pytest.mark.parametrize("recipe", ["BFlat", "BIVF4"])
def test_forgotten_keys_leave_the_answers_of_a_corpus_that_never_held_them(
    tmp_path: Path, recipe: str
) -> None:
    digest, gone = make_store(tmp_path, recipe), {key for key in KEYS if key.endswith(("7", "3"))}
    open_before = Release.open(tmp_path, digest=digest, sides=["image"])
    hide(tmp_path, sorted(gone))
    release = Release.open(tmp_path, digest=digest, sides=["image"])
    release._effort = Effort(nprobe=4)
    keys, codes = of_others(gone)
    assert release.rows("image") == len(keys) == open_before.rows("image") - 19
    for k in (1, 7, len(keys)):
        assert found(release.search(QUERY, k)) == wanted(keys, codes, k)
    within = [[hit for hit in line if hit[0] <= 2] for line in wanted(keys, codes, len(keys))]
    answers = release.range_search(QUERY, 2)
    assert [list(zip(d.tolist(), i.tolist(), n, strict=True)) for d, i, n in answers] == within
    with pytest.raises(ValueError, match=f"k must be within 1 and the {len(keys)} codes"):
        release.search(QUERY, len(keys) + 1)
    assert len(release.search(QUERY, 5, keys=["k3", "k4", "k7"]).keys[0]) == 1
    assert release.range_search(QUERY, 16, keys=["k3", "k4"])[0][2] == ["k4"]


@pytest.mark.parametrize("recipe", ["BHNSW8", "BHash2x4"])
def test_forgotten_keys_are_never_shown_by_graphs_and_hash_tables(tmp_path: Path, recipe: str) -> None:
    digest, gone = make_store(tmp_path, recipe), set(KEYS[::2])
    before = Release.open(tmp_path, digest=digest, sides=["image"]).search(QUERY, 40)
    hide(tmp_path, sorted(gone))
    release = Release.open(tmp_path, digest=digest, sides=["image"])
    hits = release.search(QUERY, 10)
    for line, earlier in zip(hits.keys, before.keys, strict=True):
        assert line and not gone & set(line)
        if recipe != "BHNSW8":  # a graph promises nothing across what is asked for
            assert line == [key for key in earlier if key not in gone][: len(line)]
    assert not gone & {key for _, _, keys in release.range_search(QUERY, 16) for key in keys}


@pytest.mark.parametrize("recipe", FAMILIES)
@pytest.mark.parametrize("copied", [selection.COPIED_ROWS, 0], ids=["scanned", "fetched"])
def test_a_filter_gives_the_answers_of_the_filtered_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, copied: int
) -> None:
    monkeypatch.setattr(selection, "COPIED_ROWS", copied)
    release = Release.open(tmp_path, digest=make_store(tmp_path, recipe), sides=["image"])
    release._effort = Effort(nprobe=4)
    chosen = [*KEYS[5:25], "not there"]
    keys, codes = of_others({key for key in KEYS if key not in chosen})
    exact = recipe in ("BFlat", "BIVF4") or (copied and recipe == "BHNSW8")
    for asked in (chosen, release.select(chosen)):
        hits = release.search(QUERY, 30, keys=asked)
        assert hits.distances.shape == (5, 30)
        assert hits.counts.tolist() == [len(line) for line in hits.keys]
        assert (hits.distances[hits.ids < 0] == NO_DISTANCE).all()
        if exact:
            assert hits.counts.tolist() == [21] * 5
            assert found(hits) == wanted(keys, codes, 30)
            assert found(release.search(QUERY, 4, keys=asked)) == wanted(keys, codes, 4)
        else:
            every = wanted(keys, codes, 30)
            assert all(set(line) <= set(all_) for line, all_ in zip(found(hits), every, strict=True))
    assert release.search(QUERY, 3, keys=[]).counts.tolist() == [0] * 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]), k=st.integers(1, 60))
def test_fetching_gives_what_a_sort_of_the_kept_rows_gives(seed: int, share: float, k: int) -> None:
    rng = np.random.default_rng(seed)
    rows, queries = 60, 3
    distances = rng.integers(0, 5, (queries, rows)).astype(np.int32)
    order = np.lexsort((np.tile(np.arange(rows), (queries, 1)), distances))

    def ask(codes: np.ndarray, fetch: int) -> selection.Nearest:
        mine = order[codes[:, 0]][:, :fetch]
        return selection.Nearest(
            np.take_along_axis(distances[codes[:, 0]], mine, axis=1), mine, np.zeros_like(mine), mine
        )

    kept = rng.random(rows) < share
    fetching = selection.Fetching(k, fetch=min(rows, k), total=rows, most=int(kept.sum()))
    hits = fetching.nearest(np.arange(queries)[:, None], ask, lambda some: kept[some.row])
    for query in range(queries):
        line = [row for row in order[query].tolist() if kept[row]][:k]
        assert hits.row[query].tolist() == line + [-1] * (k - len(line))


def test_a_damaged_list_of_forgotten_keys_lets_nothing_be_opened(tmp_path: Path) -> None:
    digest = make_store(tmp_path)
    hide(tmp_path, ["k1"])
    newest = Log(Storage(tmp_path), FORGOTTEN_LOG).newest()
    assert newest is not None
    file = tmp_path / "tables" / f"{newest.forgotten}.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ManifestError, match=f"{file.name} is damaged"):
        Release.open(tmp_path, digest=digest, sides=["image"])


def test_codes_of_another_tower_or_bit_order_are_refused_where_that_is_known(tmp_path: Path) -> None:
    release = Release.open(tmp_path, digest=make_store(tmp_path), sides=["image"])
    release.recipe.fingerprints["text"] = "tower of text"
    right = Origin("tower of text", BIT_ORDER)
    assert release.search(QUERY, 1, origin=right).distances.shape == (5, 1)
    with pytest.raises(ValueError, match=r"codes are of tower tower of image, release .* text tower tower"):
        release.search(QUERY, 1, origin=Origin("tower of image"))
    with pytest.raises(ValueError, match=r"codes have bit order 'lsb', those of release .* have 'msb'"):
        release.range_search(QUERY, 1, origin=Origin(bit_order="lsb"))


def test_what_is_no_collection_of_keys_is_refused(tmp_path: Path) -> None:
    release = Release.open(tmp_path, digest=make_store(tmp_path), sides=["image"])
    for keys in ("k1", [1, 2], (key for key in KEYS), 7):
        with pytest.raises(TypeError, match="keys must be a collection of strings"):
            release.search(QUERY, 1, keys=keys)  # type: ignore[arg-type]


def test_a_key_that_no_file_can_hold_is_named(tmp_path: Path) -> None:
    release = Release.open(tmp_path, digest=make_store(tmp_path), sides=["image"])
    with pytest.raises(ValueError, match=r"a key must be UTF-8, got 'k\\udcff'"):
        release.search(QUERY, 1, keys=["k1", "k\udcff"])


def test_a_selection_of_another_release_or_side_never_filters(tmp_path: Path) -> None:
    """Both releases have one part a side: their row numbers would pass for each other's."""

    def opened(first: int) -> Release:
        table = {f"u{first}": code_table(KEYS[first : first + 60], size=2, codes=CODES[:60])}
        digest = write_store(tmp_path, {"image": [table], "text": [table]}, code_length=16)
        return Release.open(tmp_path, digest=digest)

    old, new = opened(0), opened(30)
    mine = old.select(["k40", "k41"])
    assert {*old.search(QUERY, 2, keys=mine).keys[0]} == {"k40", "k41"}
    for asked in (new.search, new.range_search):
        with pytest.raises(ValueError, match=rf"of release {old.digest}, this .*{new.digest}; call select"):
            asked(QUERY, 2, keys=mine)
    with pytest.raises(ValueError, match=r"the selection is of side 'image' .* this is side 'text'"):
        old.search(QUERY, 2, "I2T", keys=mine)
    again = Release.open(tmp_path, digest=old.digest)
    assert {*again.search(QUERY, 2, keys=mine).keys[0]} == {"k40", "k41"}
