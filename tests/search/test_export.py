"""Exports: read back by the libraries they are for, every code is the release's, bit for bit."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.corpus.schema import sample_ids
from pipeline.releases.forgetting import forget
from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage
from pipeline.search.export import Codes, Questions, export_codes
from pipeline.search.families import parse_recipe
from pipeline.search.quantisers import train_quantiser
from pipeline.search.retrieval import Release
from tests import reference
from tests.search.stores import code_table, publish, write_store

KEYS = [f"k{row}" for row in range(50)]
CODES = np.random.default_rng(1).integers(0, 256, (50, 8), dtype=np.uint8)
QUERY = np.random.default_rng(2).integers(0, 256, (3, 8), dtype=np.uint8)
GONE = {"k3", "k40"}


def open_release(folder: Path, recipe: str = "BFlat") -> Release:
    """Open a release of two parts, two keys of which are forgotten."""
    family = parse_recipe(recipe)
    quantiser = train_quantiser(CODES, family, seed=0) if family.has_quantiser else b""
    tables = [
        {f"u{n}": code_table(KEYS[n:m], size=8, codes=CODES[n:m], fingerprint="f")}
        for n, m in ((0, 20), (20, 50))
    ]
    digest = write_store(folder, {"image": tables}, code_length=64, recipe=recipe, quantiser=quantiser)
    publish(folder, digest)
    forget(Log(Storage(folder)), sorted(GONE), ids=sample_ids(sorted(GONE)), owner="test")
    return Release.open(folder, sides=["image"])


def wanted(folder: Path) -> np.ndarray:
    """Check the keys of an export and return the codes that belong to them."""
    keys = pq.read_table(folder / "keys.parquet")
    names = keys["key"].to_pylist()
    assert sorted(names) == sorted(set(KEYS) - GONE)
    assert keys["id"].to_pylist() == sample_ids(names).tolist()
    assert keys.schema.metadata[b"hashfleet.bit_order"] == b"msb"
    return CODES[[KEYS.index(name) for name in names]]


@pytest.mark.parametrize("recipe", ["BFlat", "BIVF4", "BHNSW8", "BHash2x8"])
def test_parquet_gives_back_every_code_of_every_family_that_holds_them(tmp_path: Path, recipe: str) -> None:
    folder = export_codes(
        open_release(tmp_path / "store", recipe), tmp_path / "out", side="image", kind="parquet"
    )
    table = pq.read_table(folder / "codes.parquet")
    assert np.array_equal(np.array([list(code) for code in table["code"].to_pylist()]), wanted(folder))
    assert table.schema.metadata[b"hashfleet.fingerprint"] == b"tower of image"


def test_a_faiss_index_gives_back_every_code(tmp_path: Path) -> None:
    folder = export_codes(open_release(tmp_path / "store"), tmp_path / "out", side="image", kind="faiss")
    index = faiss.read_index_binary(str(folder / "codes.faiss"))
    codes = wanted(folder)
    assert np.array_equal(faiss.vector_to_array(index.xb).reshape(-1, 8), codes)
    distances, rows = index.search(codes, 1)
    assert distances.max() == 0
    assert np.array_equal(codes[rows[:, 0]], codes)


def test_u8bin_and_its_ground_truth_are_read_back_by_their_headers(tmp_path: Path) -> None:
    release = open_release(tmp_path / "store", "BIVF4")
    folder = export_codes(
        release, tmp_path / "out", side="image", kind="u8bin", queries=Questions(QUERY, k=7)
    )
    codes = wanted(folder)
    for name, dtype, values in (("codes.u8bin", np.uint8, codes), ("queries.u8bin", np.uint8, QUERY)):
        assert np.array_equal(read_bin(folder / name, dtype), values)
    truth = read_bin(folder / "groundtruth.ibin", np.int32)
    keys = pq.read_table(folder / "keys.parquet")["key"].to_pylist()
    answers = reference.search(QUERY, codes, ids=sample_ids(keys).tolist(), keys=keys, k=7)
    assert [[keys[row] for row in line] for line in truth] == [[hit[2] for hit in line] for line in answers]


def read_bin(file: Path, dtype: type) -> np.ndarray:
    rows, width = np.fromfile(file, "<u4", 2)
    values = np.fromfile(file, dtype, offset=8)
    return values.reshape(rows, width)


def test_ubinary_is_what_sentence_transformers_packs_from_the_same_signs(tmp_path: Path) -> None:
    folder = export_codes(open_release(tmp_path / "store"), tmp_path / "out", side="image", kind="ubinary")
    codes = wanted(folder)
    signs = np.unpackbits(codes, axis=1).astype(np.float32) - 0.5  # embeddings of these signs
    packed = np.packbits(signs > 0).reshape(len(signs), -1)  # quantize_embeddings(..., "ubinary")
    array = np.load(folder / "codes.npy")
    assert array.dtype == np.uint8
    assert np.array_equal(array, packed)
    assert np.array_equal(array, codes)


def test_usearch_gives_back_every_code(tmp_path: Path) -> None:
    module = pytest.importorskip("usearch.index", reason="usearch is not installed")
    folder = export_codes(open_release(tmp_path / "store"), tmp_path / "out", side="image", kind="usearch")
    codes = wanted(folder)
    index = module.Index.restore(str(folder / "codes.usearch"))
    assert np.array_equal(np.asarray(index.get(np.arange(len(codes)))).view(np.uint8), codes)
    hits = index.search(codes, 1, exact=True)
    assert np.asarray(hits.distances).max() == 0


def test_milvus_rows_hold_the_bytes_of_every_code_as_uint8(tmp_path: Path) -> None:
    folder = export_codes(open_release(tmp_path / "store"), tmp_path / "out", side="image", kind="milvus")
    table = pq.read_table(folder / "codes.parquet")
    assert [str(kind) for kind in table.schema.types] == ["string", "int64", "list<element: uint8>"]
    assert np.array_equal(np.array(table["code"].to_pylist(), np.uint8), wanted(folder))
    assert table["key"].to_pylist() == pq.read_table(folder / "keys.parquet")["key"].to_pylist()


def test_blocks_of_any_size_give_the_same_rows(tmp_path: Path) -> None:
    release = open_release(tmp_path / "store", "BIVF4")
    whole = np.concatenate([block for block, _ in Codes(release, "image").blocks()])
    for rows in (1, 7, 18, 19, 30):
        blocks = [block for block, _ in Codes(release, "image", block_rows=rows).blocks()]
        assert max(map(len, blocks)) <= rows
        assert np.array_equal(np.concatenate(blocks), whole)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    release = open_release(tmp_path / "store", "BHash6")
    with pytest.raises(ValueError, match="unknown format 'csv'; known: parquet, faiss"):
        export_codes(release, tmp_path / "out", side="image", kind="csv")
    with pytest.raises(ValueError, match="has a BHash index, which keeps its codes in pieces"):
        export_codes(release, tmp_path / "out", side="image", kind="faiss")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists; name a new folder"):
        export_codes(release, tmp_path / "there", side="image", kind="faiss")
    flat = open_release(tmp_path / "flat")
    with pytest.raises(ValueError, match="codes must be"):
        export_codes(flat, tmp_path / "out", side="image", kind="u8bin", queries=Questions(QUERY[:, :3]))
    assert {path.name for path in tmp_path.iterdir()} == {"store", "there", "flat"}


def test_the_job_writes_a_folder_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_release(tmp_path / "store")
    np.save(tmp_path / "queries.npy", QUERY)
    arguments = [
        "export_codes",
        "--set",
        f"store.uri={tmp_path}/store",
        "--format",
        "u8bin",
        "--side",
        "image",
    ]
    arguments += ["--to", f"{tmp_path}/out", "--queries", f"{tmp_path}/queries.npy", "-k", "5"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["counts"] == {"codes": 48}
    assert read_bin(tmp_path / "out" / "groundtruth.ibin", np.int32).shape == (3, 5)
    wanted(tmp_path / "out")
    assert main([*arguments[:-4], "--queries", f"{tmp_path}/none"]) == 2
