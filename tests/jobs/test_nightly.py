"""The night as a whole: one release from any number of tries, and none from a night without change."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cmh_models.artefact import save_pretrained
from jobs.command import Result
from pipeline.encoding.encoder import encode_side
from pipeline.releases.heads import Log
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Release
from tests.encoding.sources import good_rows, tiny_method
from tests.jobs.nights import content, encoders, run, settings, write_source
from tests.processes import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` and `model`."""
    folder = tmp_path_factory.mktemp("world")
    write_source(folder / "source")
    save_pretrained(tiny_method(), folder / "model", card={})
    return folder


@pytest.fixture(scope="module")
def night(ray_cluster: str, world: Path) -> Result:
    """The first night over the source, undisturbed, into `store`."""
    return run(tolerant(world, "store"))


def tolerant(world: Path, store: str, *others: str) -> list[str]:
    # The gate is right about this corpus: few pictures under many keys, and an untrained model.
    gate = [f"gate.max_{name}=1" for name in ("balance", "dead_bits", "collisions")]
    return settings(world / "source", world / store, world / "model", *gate, *others)


def command(overrides: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start nightly as a process of its own."""
    arguments = [word for override in overrides for word in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "nightly.py"), *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background hands its children a Ctrl-C that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def times(store: Path) -> dict[str, int]:
    """When each file of a store was written, but for what it remembers of its last run."""
    paths = [path for path in Storage(store).list() if not path.startswith("runs/")]
    return {path: (store / path).stat().st_mtime_ns for path in paths}


@pytest.mark.ray
def test_a_night_publishes_a_release_that_search_opens(night: Result, world: Path) -> None:
    assert night.status == "done"
    assert night.counts == {
        "rows_read": 2 * 12013,
        "rows_encoded": 12004 + 12006,
        "rows_encoded_image": 12004,
        "rows_encoded_text": 12006,
        "rows_reused": 0,
        "rows_rejected": 7 + 5,
        "rows_absent": 4,
        "units_total": 4,
        "units_encoded": 4,
        "units_refused": 0,
        "units_left": 0,
        "parts_built": night.counts["parts_built"],
        "parts_reused": 0,
    }
    release = Release.open(world / "store")
    assert release.digest == night.outputs["release"]
    assert (release.rows("image"), release.rows("text")) == (12004, 12006)
    texts = [text for *_, text in good_rows(0, 5)]
    hits = release.search(encode_side(tiny_method(), "text", texts), k=12000, direction="I2T")
    for n, (distances, keys) in enumerate(zip(hits.distances, hits.keys, strict=True)):
        assert f"m{n}" in keys[: np.searchsorted(distances, 0, side="right")]


@pytest.mark.ray
def test_every_row_is_in_the_tables_of_the_release(night: Result, world: Path) -> None:
    store = Storage(world / "store")
    manifest = read_release(store, night.outputs["release"])
    assert manifest.totals["read_image"] == manifest.totals["read_text"] == 12013
    for unit in read_table(store, manifest, "units").to_pylist():
        codes = pq.read_table(world / "store" / "codes" / f"{unit['code']}.parquet")
        assert codes.num_rows == unit["encoded"]
        assert unit["read"] == unit["encoded"] + unit["rejected"] + unit["absent"]
        assert codes["key"].to_pylist() == [row["key"] for row in sorted_by_id(codes.to_pylist())]
    rejects = read_table(store, manifest, "rejects").to_pylist()
    assert {(row["path"], row["side"], row["rows"]) for row in rejects} == {
        ("bad.parquet", "image", 7),
        ("bad.parquet", "text", 5),
    }


def sorted_by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["id"], row["key"]))


@pytest.mark.ray
def test_a_night_without_change_does_nothing_says_so_and_starts_no_ray(night: Result, world: Path) -> None:
    before = times(world / "store")
    process = command(tolerant(world, "store"), RAY_ADDRESS="127.0.0.1:1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    line = json.loads(out.splitlines()[-1])
    assert (line["job"], line["status"]) == ("nightly", "done")
    assert line["outputs"]["release"] == night.outputs["release"]
    assert line["counts"] == dict.fromkeys(night.counts, 0) | {
        "units_total": 4,
        "parts_reused": night.counts["parts_built"],
    }
    assert [said for said in err.splitlines() if said] == [
        f"nothing to do: 4 units are as release {night.outputs['release']} has them"
    ]
    assert times(world / "store") == before


@pytest.mark.ray
@pytest.mark.slow
def test_killed_actors_change_nothing_of_the_release(night: Result, world: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        wait_until(
            lambda: (world / "actor" / "codes").is_dir() and any((world / "actor" / "codes").iterdir())
        )
        for process in encoders():
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    thread = threading.Thread(target=kill)
    thread.start()
    result = run(tolerant(world, "actor"))
    thread.join()
    assert killed, "the run was over before an actor could be killed"
    assert result.outputs == night.outputs
    assert result.counts == night.counts
    assert content(world / "actor") == content(world / "store")


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_run_again_makes_only_what_is_missing(
    night: Result, world: Path, ray_cluster: str
) -> None:
    process = command(tolerant(world, "driver"), RAY_ADDRESS=ray_cluster)
    codes = world / "driver" / "codes"
    try:
        wait_until(lambda: (codes.is_dir() and any(codes.iterdir())) or process.poll() is not None)
    finally:
        process.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    assert Log(Storage(world / "driver")).current_release() is None
    standing = {path.name: path.stat().st_mtime_ns for path in codes.iterdir() if path.suffix == ".parquet"}
    assert 0 < len(standing) < 8, "the driver was not killed in the middle of its work"
    result = run(tolerant(world, "driver"))
    assert result.outputs == night.outputs
    assert result.counts["units_encoded"] <= 4 - len(standing) // 2
    assert {name: (codes / name).stat().st_mtime_ns for name in standing} == standing
    assert content(world / "driver") == content(world / "store")
