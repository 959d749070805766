"""A night without change: no library of the encoders is loaded, no process started, no data file read."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa

from jobs.config import load_config
from jobs.nights.facts import keep_facts
from jobs.nights.night import Parent, open_night, plan
from pipeline.releases.heads import Log
from pipeline.releases.manifest import PARTS, REJECTS, UNITS, create_store, write_release
from tests.jobs.feature_nights import feature_settings, write_model, write_unit
from tests.jobs.nights import run

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "deepspeed", "s3fs")
SCRIPT = f"""
import os, sys
from jobs.cli import main
code = main(["nightly", *sys.argv[1:]])
children = [line for line in open(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children")]
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules], "children:", children, file=sys.stderr)
sys.exit(code)
"""


def quiet_night(overrides: list[str]) -> tuple[dict, str, float]:
    """Run a night as a process of its own: result line, what it said, seconds."""
    words = [word for override in overrides for word in ("--set", override)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, time.monotonic() - started


def hide_data(folder: Path) -> None:
    """Take away all that a quiet night must not read: rows of the source, codes, rejects and parts."""
    for file in (folder / "source").iterdir():
        status = file.stat()
        file.write_bytes(b"\0" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for name in ("codes", "parts"):
        shutil.rmtree(folder / "store" / name)


def test_a_night_without_change_reads_no_data_and_loads_no_encoder(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for n in range(5):
        write_unit(tmp_path / "source" / f"{n}.parquet", range(2 * n, 2 * n + 2))
    first = run(feature_settings(tmp_path))
    hide_data(tmp_path)
    line, said, _ = quiet_night(feature_settings(tmp_path))
    assert line["outputs"]["release"] == first.outputs["release"]
    assert line["counts"]["units_total"] == 5
    assert "nothing to do: 5 units" in said
    assert "loaded: [] children: []" in said


def publish(overrides: list[str]) -> None:
    """Publish a release of the present source as a night would, without a code of it."""
    night = open_night(load_config(None, overrides, {}), argparse.Namespace())
    wanted = plan(night, Parent()).encode
    filled: dict = {
        "code_sha256": "0" * 64,
        "code_bytes": 1,
        "read": 1,
        "encoded": 1,
        "rejected": 0,
        "absent": 0,
    }
    rows = [row | filled | {"stale": False} for row in wanted.to_pylist()]
    units = pa.Table.from_pylist(rows, schema=UNITS)
    tables = {"units": units, "parts": PARTS.empty_table(), "rejects": REJECTS.empty_table()}
    create_store(night.store)
    keep_facts(night.config, night.store, night.facts)
    log = Log(night.store)
    lease = log.acquire("test", 60)
    assert lease is not None
    log.publish(lease, write_release(night.store, night.release_recipe, tables=tables))


def test_a_night_without_change_over_a_thousand_units_takes_less_than_three_seconds(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "source").mkdir()
    for n in range(1000):
        (tmp_path / "source" / f"{n:04d}.parquet").write_bytes(b"no rows, for nobody reads them")
    publish(feature_settings(tmp_path))
    tries = [quiet_night(feature_settings(tmp_path)) for _ in range(3)]
    assert all(line["counts"]["units_total"] == 1000 for line, _, _ in tries)
    assert all("loaded: [] children: []" in said for _, said, _ in tries)
    assert min(seconds for *_, seconds in tries) < 3, [seconds for *_, seconds in tries]
