"""The search job: queries of three kinds, the order of hits, and one clear line for what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmh_models.artefact import artefact_digest, tower_fingerprint
from jobs import search
from jobs.command import run_job
from pipeline.corpus.scenes import write_corpus
from pipeline.encoding.encoder import encode_side
from pipeline.encoding.models import keep_model
from pipeline.releases.storage import Storage
from tests import reference
from tests.jobs.models import save_model
from tests.search.stores import code_table, publish, sample_id, write_store

TEXTS = [
    f"{size} {colour} {shape}" for size in ("small", "big") for colour in ("red", "blue") for shape in "abcde"
]
KEYS = [f"k{row}" for row in range(len(TEXTS))]

Search = Callable[..., tuple[int, dict[str, Any], Any]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Search:
    """Return a function that runs the job on the store of this test: exit code, result line, output."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], Any]:
        settings = [f"store.uri={tmp_path}/store", f"run.dir={tmp_path}/runs"]
        flags = [flag for setting in settings for flag in ("--set", setting)]
        code = run_job("search", search, [*flags, *arguments])
        printed = capsys.readouterr()
        return code, json.loads(printed.out.splitlines()[-1]), printed

    return run


@pytest.fixture
def codes(tmp_path: Path) -> np.ndarray:
    """Publish a release whose images and texts have the text codes of 20 sentences; return those codes."""
    method = save_model(tmp_path / "model")
    coded = encode_side(method, "text", TEXTS)
    parts = {side: [{"u": code_table(KEYS, size=2, codes=coded)}] for side in ("image", "text")}
    store = Storage(tmp_path / "store")
    digest = write_store(
        store.uri,
        parts,
        code_length=16,
        model=artefact_digest(tmp_path / "model"),
        fingerprints={side: tower_fingerprint(method, side) for side in ("image", "text")},
    )
    keep_model(tmp_path / "model", store)
    publish(store.uri, digest)
    return coded


def test_a_text_finds_the_images_of_its_own_code_first_in_the_order_of_answers(
    run: Search, codes: np.ndarray
) -> None:
    code, line, printed = run("--text", TEXTS[7], "-k", "12")
    ids = [sample_id(key) for key in KEYS]
    wanted = reference.search(codes[7:8], codes, ids=ids, keys=KEYS, k=12)[0]
    assert code == 0
    assert [(hit["distance"], hit["id"], hit["key"]) for hit in line["hits"]] == wanted
    assert line["hits"][0]["distance"] == 0
    table = printed.out.splitlines()[2:-1]
    assert [row.split() for row in table] == [
        [str(rank), str(distance), key] for rank, (distance, _, key) in enumerate(wanted, 1)
    ]


def test_a_code_in_hex_finds_the_same_as_the_text_that_it_is_of(run: Search, codes: np.ndarray) -> None:
    by_text = run("--text", TEXTS[3], "-k", "5")[1]
    by_code = run("--code", codes[3].tobytes().hex(), "--direction", "T2I", "-k", "5")[1]
    assert by_code["hits"] == by_text["hits"]
    assert by_code["code"] == by_text["code"]


def test_a_picture_finds_texts(run: Search, codes: np.ndarray, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_corpus(tmp_path / "scenes", 1, 1, 3)
    picture = pq.read_table(tmp_path / "scenes").to_pylist()[0]["image"]
    (tmp_path / "a picture.jpg").write_bytes(picture)
    code, line, _ = run("--image", str(tmp_path / "a picture.jpg"), "-k", "3")
    assert (code, line["direction"], len(line["hits"])) == (0, "I2T", 3)
    (tmp_path / "cut.jpg").write_bytes(picture[: len(picture) // 2])
    code, line, _ = run("--image", str(tmp_path / "cut.jpg"))
    assert code == 2
    assert "cut.jpg: truncated image" in line["error"]


def test_what_is_no_query_ends_in_one_line_and_exit_code_2(
    run: Search, codes: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for arguments, message in (
        (["--image", str(tmp_path / "notes.txt")], "notes.txt: not an image"),
        (["--image", str(tmp_path / "none.jpg")], "no file at"),
        (["--text", "  "], "more than white space"),
        (["--code", "xyz", "--direction", "T2I"], "must be hex digits, two per byte, got 'xyz'"),
        (["--code", "00", "--direction", "T2I"], "must be 4 hex digits, for the 16-bit codes of release"),
        (["--text", "a" * 2_000_000], "text too large: must have at most 1048576 bytes, got 2000000"),
        (["--text", "\udcff"], "text not UTF-8"),
        (["--code", "0000"], "--code needs --direction"),
        (["--text", "a", "--direction", "I2T"], "a text query is T2I, got --direction I2T"),
        (["--text", "a", "-k", "21"], "k must be within 1 and the 20 codes of side 'image', got 21"),
        (["--text", "a", "-k", "0"], "got 0"),
    ):
        code, line, printed = run(*arguments)
        assert (code, line["status"]) == (2, "failed")
        assert message in line["error"]
        assert len(printed.err.strip().splitlines()) == 1


def test_another_model_than_that_of_the_release_is_refused(
    run: Search, codes: np.ndarray, tmp_path: Path
) -> None:
    assert run("--text", "a", "--set", f"encode.model={tmp_path}/model")[0] == 0
    save_model(tmp_path / "other", seed=1)
    code, line, _ = run("--text", "a", "--set", f"encode.model={tmp_path}/other")
    assert code == 2
    assert "is not the one that release" in line["error"]
    save_model(tmp_path / "longer", code_length=32)
    code, line, _ = run("--text", "a", "--set", f"encode.model={tmp_path}/longer")
    assert code == 2
    assert "gives 32-bit codes, release" in line["error"]
    assert "holds 16-bit codes" in line["error"]


def test_a_model_that_the_store_has_lost_is_a_fault_of_the_store(
    run: Search, codes: np.ndarray, tmp_path: Path
) -> None:
    [config] = (tmp_path / "store" / "models").glob("*/config.json")
    config.write_text("{")
    code, line, _ = run("--text", "a")
    assert (code, "the model of release" in line["error"]) == (1, True)
    shutil.rmtree(config.parent)
    code, line, _ = run("--text", "a")
    assert (code, "restore it, or name its folder as encode.model" in line["error"]) == (1, True)
    assert run("--text", "a", "--set", f"encode.model={tmp_path}/model")[0] == 0


def test_a_store_that_is_not_there_or_newer_ends_with_exit_code_1(
    run: Search, codes: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "store" / "store.json").write_text('{"format": 99}')
    code, line, _ = run("--text", "a")
    assert (code, "format 99, this version reads up to" in line["error"]) == (1, True)
    code, line, _ = run("--text", "a", "--set", f"store.uri={tmp_path}/nowhere")
    assert (code, "is no store" in line["error"]) == (1, True)
