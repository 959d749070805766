"""Verification: a whole release has no fault; every damaged or missing file is named."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest

from cmh_models.artefact_digest import CONTENT, artefact_digest
from pipeline.releases.addresses import (
    code_path,
    digest_bytes,
    digest_json,
    model_path,
    part_keys_path,
    part_path,
    quantiser_path,
    rejects_path,
    release_path,
    sha256,
)
from pipeline.releases.manifest import PARTS, REJECTS, UNITS, ReleaseRecipe, write_release
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import stored_releases, verify

CODE, PART = digest_json("code"), digest_json("part")


def model_digest() -> str:
    """Return the name of the model whose every file is an empty object."""
    with TemporaryDirectory() as folder:
        for name in CONTENT:
            (Path(folder) / name).write_bytes(b"{}")
        return artefact_digest(Path(folder))


MODEL = model_digest()
FILES = {
    code_path(CODE): b"codes" * 1000,
    rejects_path(CODE): b"rejects",
    part_path(PART): b"faiss" * 1000,
    part_keys_path(PART): b"keys",
    **{f"{model_path(MODEL)}/{name}": b"{}" for name in CONTENT},
}


def write_small_release(
    storage: Storage, *, indexed: int = 3, quantisers: dict[str, str] | None = None
) -> str:
    """Write a release of one unit on one side, with every file it names."""
    for path, data in FILES.items():
        storage.write(path, data)
    names = {kind: (sha256(FILES[path]), len(FILES[path])) for kind, path in zip("crpk", FILES, strict=False)}
    unit = {"path": "a.parquet", "size": 10, "token": "t", "unit": digest_json("unit"), "side": "image"}
    unit |= {"code": CODE, "code_sha256": names["c"][0], "code_bytes": names["c"][1], "stale": False}
    unit |= {"read": 4, "encoded": 3, "rejected": 1, "absent": 0}
    rejects = {"path": "a.parquet", "side": "image", "rejects": CODE, "rows": 1}
    rejects |= {"sha256": names["r"][0], "bytes": names["r"][1]}
    part = {"side": "image", "ordinal": 0, "part": PART, "units": 1, "rows": indexed}
    part |= {"index_sha256": names["p"][0], "index_bytes": names["p"][1]}
    part |= {"keys_sha256": names["k"][0], "keys_bytes": names["k"][1]}
    tables = {
        "units": pa.Table.from_pylist([unit], schema=UNITS),
        "rejects": pa.Table.from_pylist([rejects], schema=REJECTS),
        "parts": pa.Table.from_pylist([part], schema=PARTS),
    }
    recipe = ReleaseRecipe(
        code_length=64,
        model=MODEL,
        fingerprints={"image": "1" * 32},
        input_recipe="3" * 32,
        quantisers=quantisers or {},
    )
    return write_release(storage, recipe, tables=tables)


def test_a_whole_release_has_no_fault(storage: Storage) -> None:
    verdict = verify(storage, write_small_release(storage))
    assert verdict.faults == ()
    assert verdict.files == 4
    assert verdict.size == sum(map(len, FILES.values())) - 2 * len(CONTENT)


@pytest.mark.parametrize("path", list(FILES)[:4])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "is damaged"),
        (lambda data: data[:-1], "bytes, the release names"),
        (None, "is missing"),
    ],
)
def test_every_harmed_file_is_named(
    storage: Storage, path: str, harm: Callable[[bytes], bytes] | None, message: str
) -> None:
    digest = write_small_release(storage)
    if harm is None:
        storage.delete(path)
    else:
        storage.write(path, harm(FILES[path]))
    (fault,) = verify(storage, digest).faults
    assert fault.startswith(f"{storage.where(path)} ")
    assert message in fault


def test_rows_that_no_part_holds_and_a_missing_model_are_said(storage: Storage) -> None:
    digest = write_small_release(storage, indexed=2)
    for name in CONTENT:
        storage.delete(f"{model_path(MODEL)}/{name}")
    assert [fault.removeprefix(f"{storage.uri}/") for fault in verify(storage, digest).faults] == [
        "image: the units hold 3 codes, the parts 2",
        f"{model_path(MODEL)} is missing: the release's model",
    ]


def test_a_damaged_release_is_listed_as_such(storage: Storage) -> None:
    digest = write_small_release(storage)
    storage.write(release_path("9" * 32), b"{}")
    releases = stored_releases(storage)
    assert sorted(releases) == sorted([digest, "9" * 32])
    assert "format must be a number" in str(releases["9" * 32])
    assert len(verify(storage, "9" * 32).faults) == 1


def test_a_missing_and_a_harmed_quantiser_are_named(storage: Storage) -> None:
    name = digest_bytes(b"centroids")
    digest = write_small_release(storage, quantisers={"image": name})
    (fault,) = verify(storage, digest).faults
    assert fault == f"{storage.where(quantiser_path(name))} is missing"
    storage.write(quantiser_path(name), b"centroids")
    assert verify(storage, digest).faults == ()
    storage.write(quantiser_path(name), b"others")
    (fault,) = verify(storage, digest).faults
    assert fault.startswith(f"{storage.where(quantiser_path(name))} is damaged: its digest is ")
