"""A small world for the tests of the night: a source, a model, a store, and processes to end."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from jobs import nightly
from jobs.command import Result
from jobs.config import load_config
from pipeline.releases.storage import Storage
from tests.encoding.sources import BAD_ROWS, many_rows, write_rows
from tests.processes import descendants

RELEASED = ("codes", "rejects", "parts", "tables", "releases")


def write_source(folder: Path) -> Path:
    """Write three units of many chunks, and one of bad rows."""
    for n in range(3):
        write_rows(folder / f"{n}.parquet", many_rows(4000 * n, 4000 * (n + 1)), row_group_size=1000)
    write_rows(folder / "bad.parquet", BAD_ROWS)
    return folder


def settings(source: Path | str, store: Path | str, model: Path, *others: str) -> list[str]:
    """Return the overrides of a run."""
    return [
        f"data.path={source}",
        f"store.uri={store}",
        f"encode.model={model}",
        f"run.dir={model.parent / 'runs'}",
        f"encode.chunk_bytes={1 << 20}",
        "index.part_boundary=2",
        *others,
    ]


def run(overrides: list[str], *, job: Any = nightly, **arguments: Any) -> Result:
    """Run a job in this process."""
    args = argparse.Namespace(**({"dry_run": False} | arguments))
    result: Result = job.run(load_config(None, overrides, {}), args)
    return result


def content(store: Path | str) -> dict[str, str]:
    """Return path and digest of all that a store has released."""
    storage = Storage(store)
    paths = [path for folder in RELEASED for path in storage.list(folder)]
    return {path: hashlib.sha256(storage.read(path)).hexdigest() for path in paths}


def encoders() -> list[int]:
    """Return the process ids of the actors that encode for this process's own cluster."""
    return descendants("ray::MapWorker(Map(EncodeRow))")
