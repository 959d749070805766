"""Opening a release and searching it: what is answered, what is refused, and what is never imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.families import parse_recipe
from pipeline.search.quantisers import train_quantiser
from pipeline.search.retrieval import Release
from tests import reference
from tests.search.stores import code_table, publish, sample_id, write_store

KEYS = [f"k{row}" for row in range(60)]
CODES = np.random.default_rng(1).integers(0, 256, (60, 2), dtype=np.uint8)
QUERY = np.random.default_rng(2).integers(0, 256, (4, 2), dtype=np.uint8)


def make_store(uri: str | Path, *, texts: int = 60) -> str:
    """Write 60 image codes in three parts and some text codes in one."""
    images = [
        {f"u{n}": code_table(KEYS[n:m], size=2, codes=CODES[n:m])} for n, m in ((0, 20), (20, 21), (21, 60))
    ]
    text = [
        {"u0": code_table(KEYS[:texts], size=2, codes=CODES[:texts, ::-1])},
        {"u1": code_table([], size=2)},
    ]
    return write_store(uri, {"image": images, "text": text}, code_length=16)


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path / "store", make_store(tmp_path / "store")


def part_files(store: Path, suffix: str) -> list[Path]:
    return sorted((store / "parts").glob(f"*{suffix}"), key=lambda file: file.stat().st_size)


def test_hits_are_those_of_a_full_sort_in_both_directions(store: tuple[Path, str]) -> None:
    release = Release.open(store[0], digest=store[1])
    ids = [sample_id(key) for key in KEYS]
    for direction, codes in (("T2I", CODES), ("I2T", CODES[:, ::-1])):
        hits = release.search(QUERY, 7, direction)
        wanted = reference.search(QUERY, np.ascontiguousarray(codes), ids=ids, keys=KEYS, k=7)
        found = [
            list(zip(*row, strict=True))
            for row in zip(hits.distances.tolist(), hits.ids.tolist(), hits.keys, strict=True)
        ]
        assert found == wanted


def test_the_whole_corpus_can_be_asked_for(store: tuple[Path, str]) -> None:
    hits = Release.open(store[0], digest=store[1]).search(QUERY, k=60)
    assert sorted(hits.keys[0]) == sorted(KEYS)


def test_local_parts_are_mapped_where_they_lie(store: tuple[Path, str]) -> None:
    release = Release.open(store[0], digest=store[1])
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert all(str(file) in maps for file in part_files(store[0], ".faiss") if file.stat().st_size > 33)
    assert release.rows("image") == 60


@pytest.mark.parametrize("k", [0, -1, 61])
def test_k_outside_the_corpus_is_refused(store: tuple[Path, str], k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be within 1 and the 60 codes of side 'image', got {k}"):
        Release.open(store[0], digest=store[1]).search(QUERY, k)


def test_codes_that_are_no_codes_of_this_release_are_refused(store: tuple[Path, str]) -> None:
    release = Release.open(store[0], digest=store[1])
    with pytest.raises(ValueError, match=r"\(queries, 2\) uint8 for the 16-bit codes .*, got \(4, 8\) uint8"):
        release.search(np.zeros((4, 8), np.uint8))
    with pytest.raises(ValueError, match=r"got \(4, 2\) float32"):
        release.search(np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"got \(2,\) uint8"):
        release.search(QUERY[0])
    with pytest.raises(TypeError, match="numpy array, got list"):
        release.search([[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"whole number, got 2\.5"):
        release.search(QUERY, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="direction must be one of T2I, I2T, got 't2i'"):
        release.search(QUERY, 1, "t2i")  # type: ignore[arg-type]


def test_a_side_that_was_not_opened_says_so(store: tuple[Path, str]) -> None:
    release = Release.open(store[0], digest=store[1], sides=["text"])
    assert release.search(QUERY, 1, "I2T").distances.shape == (4, 1)
    with pytest.raises(ValueError, match="searches side 'image', which was not opened"):
        release.search(QUERY, 1, "T2I")


@pytest.mark.parametrize("sides", ["image", ["img"], ("image", "Text")])
def test_sides_that_are_no_list_of_sides_are_refused(store: tuple[Path, str], sides: str) -> None:
    with pytest.raises(ValueError, match=r"sides must be a list of some of image, text, got .*im"):
        Release.open(store[0], digest=store[1], sides=sides)


def test_a_radius_is_a_whole_number_from_0(store: tuple[Path, str]) -> None:
    release = Release.open(store[0], digest=store[1])
    assert len(release.range_search(QUERY, np.int64(16))[0][2]) == 60
    for radius in (2.5, float("nan"), "3", True):
        with pytest.raises(TypeError, match=f"radius must be a whole number, got {radius!r}"):
            release.range_search(QUERY, radius)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
        release.range_search(QUERY, -1)


@pytest.mark.parametrize("recipe", ["BIVF4", "BHNSW8", "BHash6", "BHash2x4"])
def test_a_release_of_every_family_is_opened_and_searched(tmp_path: Path, recipe: str) -> None:
    family = parse_recipe(recipe)
    quantiser = train_quantiser(CODES, family, seed=0) if family.has_quantiser else b""
    images = [{f"u{n}": code_table(KEYS[n:m], size=2, codes=CODES[n:m])} for n, m in ((0, 20), (20, 60))]
    digest = write_store(tmp_path, {"image": images}, code_length=16, recipe=recipe, quantiser=quantiser)
    release = Release.open(tmp_path, digest=digest, sides=["image"])
    hits = release.search(CODES[:9], 3)
    assert hits.distances[:, 0].tolist() == [0] * 9
    assert [len(line) for line in hits.keys] == (hits.ids >= 0).sum(axis=1).tolist()
    everything = reference.search(CODES[:9], CODES, ids=[sample_id(key) for key in KEYS], keys=KEYS, k=60)
    if recipe != "BHash6":
        within = [[hit[2] for hit in line if hit[0] <= 5] for line in everything]
        assert [keys for _, _, keys in release.range_search(CODES[:9], 5)] == within
    else:
        assert all(set(keys) <= set(KEYS) for _, _, keys in release.range_search(CODES[:9], 5))


def test_a_quantiser_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    quantiser = train_quantiser(CODES, parse_recipe("BIVF4"), seed=0)
    tables = [{"u": code_table(KEYS, size=2, codes=CODES)}]
    digest = write_store(tmp_path, {"image": tables}, code_length=16, recipe="BIVF4", quantiser=quantiser)
    (file,) = (tmp_path / "quantisers").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ManifestError, match=f"{file.name} is damaged: its digest is "):
        Release.open(tmp_path, digest=digest, sides=["image"])
    file.unlink()
    with pytest.raises(ManifestError, match=f"{file.name} is missing: the release's coarse quantiser"):
        Release.open(tmp_path, digest=digest, sides=["image"])


def test_a_bit_that_flipped_and_a_part_that_was_swapped_are_named_where_that_is_asked_for(
    store: tuple[Path, str],
) -> None:
    for suffix in (".faiss", ".keys.arrow"):
        *_, file, other = part_files(store[0], suffix)
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(
            ManifestError, match=rf"{file.name} is damaged: its sha256 is .*, the release names"
        ):
            Release.open(store[0], digest=store[1], check=True)
        file.write_bytes(other.read_bytes()[: len(whole)].ljust(len(whole), b"x"))
        with pytest.raises(ManifestError, match=f"{file.name}"):
            Release.open(store[0], digest=store[1], check=True)
        file.write_bytes(whole)
    assert Release.open(store[0], digest=store[1], check=True).rows("image") == 60


def test_a_float_index_and_a_part_of_another_family_are_named(store: tuple[Path, str]) -> None:
    index = part_files(store[0], ".faiss")[-1]
    size = index.stat().st_size
    wrong = faiss.IndexFlatL2(1)
    wrong.add(np.zeros(((size - 45) // 4, 1), np.float32))
    data = faiss.serialize_index(wrong).tobytes()
    index.write_bytes(data.ljust(size, b"x"))
    with pytest.raises(
        ManifestError, match=rf"{index.name} is a float FAISS index \(IndexFlatL2\), a part must"
    ):
        Release.open(store[0], digest=store[1])
    graph = faiss.IndexBinaryHNSW(16, 2)
    graph.add(np.zeros((3, 2), np.uint8))
    index.write_bytes(faiss.serialize_index_binary(graph).tobytes()[:size].ljust(size, b"x"))
    with pytest.raises(ManifestError, match=f"{index.name}"):
        Release.open(store[0], digest=store[1])


def test_a_release_whose_files_are_collected_while_it_is_open_goes_on_answering(
    store: tuple[Path, str],
) -> None:
    release = Release.open(store[0], digest=store[1])
    wanted = release.search(QUERY, 9)
    shutil.rmtree(store[0])
    hits = release.search(QUERY, 9)
    assert hits.keys == wanted.keys
    with pytest.raises(ManifestError, match="is no store"):
        Release.open(store[0], digest=store[1])


@pytest.mark.parametrize("fault", ["a file is in its place", "full"])
def test_a_cache_that_cannot_be_written_says_so_and_where_to_name_another(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    uri = f"{s3_server}/cache-{fault[0]}"
    digest = make_store(uri)
    cache = tmp_path / "cache"
    if fault == "full":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    else:
        cache.write_text("not a folder")
    with pytest.raises(
        OSError, match=r"cannot keep .* bytes\): .*; free or name another cache folder \(cache="
    ):
        Release.open(uri, digest=digest, cache=cache)


def test_a_missing_or_truncated_part_is_named(store: tuple[Path, str]) -> None:
    index, keys = part_files(store[0], ".faiss")[-1], part_files(store[0], ".keys.arrow")[-1]
    whole = index.read_bytes()
    index.write_bytes(whole[:-1])
    with pytest.raises(
        ManifestError, match=rf"{index.name} has {len(whole) - 1} bytes, .* names {len(whole)} "
    ):
        Release.open(store[0], digest=store[1])
    index.write_bytes(whole)
    keys.unlink()
    with pytest.raises(ManifestError, match=f"{keys.name} is missing"):
        Release.open(store[0], digest=store[1])


def test_a_file_that_is_no_flat_binary_index_is_named(store: tuple[Path, str]) -> None:
    index = part_files(store[0], ".faiss")[-1]
    size = index.stat().st_size
    index.write_bytes(b"x" * size)
    with pytest.raises(ManifestError, match=f"{index.name} is no binary index that FAISS can read"):
        Release.open(store[0], digest=store[1])
    smaller = faiss.IndexBinaryFlat(8)
    smaller.add(np.zeros((size - 33, 1), np.uint8))
    faiss.write_index_binary(smaller, str(index))
    with pytest.raises(
        ManifestError, match=f"{index.name}: the release says .* codes of 16 bits, the files hold"
    ):
        Release.open(store[0], digest=store[1])


def test_a_store_of_a_newer_format_and_a_folder_that_is_no_store_are_refused(store: tuple[Path, str]) -> None:
    with pytest.raises(ManifestError, match="is no store"):
        Release.open(store[0].parent)
    (store[0] / "store.json").write_text('{"format": 99}')
    with pytest.raises(ManifestError, match="format 99, this version reads up to"):
        Release.open(store[0], digest=store[1])


def test_a_store_without_a_published_release_says_so(store: tuple[Path, str]) -> None:
    with pytest.raises(ManifestError, match="nothing is published in channel 'main'"):
        Release.open(store[0])


def test_the_newest_published_release_is_opened_and_others_by_digest(store: tuple[Path, str]) -> None:
    second = make_store(store[0], texts=59)
    for digest in (store[1], second):
        publish(store[0], digest)
        assert Release.open(store[0]).digest == digest
    assert Release.open(store[0]).rows("text") == 59
    assert Release.open(store[0], digest=store[1]).rows("text") == 60
    with pytest.raises(ManifestError, match="nothing is published in channel 'other'"):
        Release.open(store[0], "other")


def test_a_head_that_names_a_missing_release_is_an_error_that_names_it(store: tuple[Path, str]) -> None:
    publish(store[0], store[1])
    (store[0] / "releases" / f"{store[1]}.json").unlink()
    with pytest.raises(ManifestError, match=f"there is no release {store[1]} in this store"):
        Release.open(store[0])


def test_a_remote_part_is_downloaded_once_and_checked(s3_server: str, tmp_path: Path) -> None:
    uri = f"{s3_server}/search"
    digest = make_store(uri)
    local = Release.open(make_local(tmp_path), digest=digest).search(QUERY, 9)
    cache = tmp_path / "cache"
    hits = Release.open(uri, digest=digest, cache=cache).search(QUERY, 9)
    assert hits.keys == local.keys
    assert np.array_equal(hits.distances, local.distances)
    copies = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(copies) == 10
    Release.open(uri, digest=digest, cache=cache)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == copies
    storage = Storage(uri)
    path = next(path for path in storage.list("parts") if path.endswith(".faiss"))
    storage.write(path, bytes(storage.size(path)))
    with pytest.raises(ManifestError, match=rf"{path} is damaged: its sha256 is "):
        Release.open(uri, digest=digest, cache=tmp_path / "other")
    assert {file.suffix for file in (tmp_path / "other").iterdir()} <= {".faiss", ".arrow"}


def make_local(tmp_path: Path) -> Path:
    make_store(tmp_path / "local")
    return tmp_path / "local"


def test_the_search_team_gets_neither_torch_nor_ray() -> None:
    script = (
        "import sys, pipeline.search.retrieval\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'ray', 's3fs')))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_base_and_faiss_alone_open_and_search_a_release(store: tuple[Path, str], tmp_path: Path) -> None:
    """Installs from the package index that pip is configured for."""
    root = Path(__file__).parents[2]
    python = tmp_path / "fresh" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    install = [*pip, "install", "-q", "--no-compile", "-c", "constraints.txt", "-e", ".[cpu]"]
    subprocess.run(install, cwd=root, check=True)
    publish(store[0], store[1])
    script = (
        "import importlib.util, json, sys\n"
        "import numpy as np\n"
        "from pipeline.search.retrieval import Release\n"
        "hits = Release.open(sys.argv[1]).search(np.array(json.loads(sys.argv[2]), np.uint8), k=7)\n"
        "there = [name for name in ('torch', 'ray', 'deepspeed') if importlib.util.find_spec(name)]\n"
        "print(json.dumps([hits.keys, there]))"
    )
    command = [python, "-I", "-c", script, store[0], json.dumps(QUERY.tolist())]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    keys = Release.open(store[0]).search(QUERY, k=7).keys
    assert json.loads(result.stdout) == [keys, []]
