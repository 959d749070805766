"""How soon does a large release answer, and how much of it becomes resident?

    python benchmarks/opening.py [--rows 10000000]

Writes a release of random 64-bit codes in 4 flat parts, opens it in a fresh process and asks it one query.
Starting Python, importing libraries and compiling come before the clock; the files were just written, so they
are in the page cache. Prints one line per figure to stderr and one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.releases.addresses import part_keys_path, part_path, sha256
from pipeline.releases.manifest import (
    PARTS,
    REJECTS,
    UNITS,
    ReleaseRecipe,
    create_store,
    write_release,
)
from pipeline.releases.storage import Storage
from pipeline.search.families import parse_recipe
from pipeline.search.partfiles import PartRecipe, write_codes

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    codes = np.random.default_rng(0).integers(0, 256, (rows, 8), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_release_of(codes, Path(folder))
        done = subprocess.run(
            [sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=True, cwd=ROOT
        )
    measured = json.loads(done.stdout)
    for name, value in measured.items():
        print(f"{name:<32} {value}", file=sys.stderr)
    ratios = {"open_and_answer_seconds": measured["seconds"]}
    print(json.dumps({"rows": rows, **measured, "ratios": ratios}))


OPEN = """
import json, sys, time
from pathlib import Path
import numpy as np
from pipeline.search import scan
from pipeline.search.parts import Part
from pipeline.search.retrieval import Release
import faiss, pyarrow as pa

def resident():
    # MiB of mapped files that are resident.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024

index = faiss.IndexBinaryFlat(64)
index.add(np.arange(1 << 22).view(np.uint8).reshape(-1, 8))  # enough for every core: all kernels are loaded
warm = [Part(index, pa.table({"id": np.arange(1 << 22) + n}) ) for n in (0, 1 << 22)]
warm[0].keys["id"].take(pa.array([1])), warm[0].ids  # Arrow loads what it needs for these on first use
scan.nearest(warm, np.zeros((1, 8), np.uint8), 3)
del index, warm
before = resident()
started = time.perf_counter()
release = Release.open(sys.argv[1], digest=(Path(sys.argv[1]) / "digest").read_text(), sides=["image"])
opened, open_ = time.perf_counter(), resident()
release.search(np.ones((1, 8), np.uint8), 10)
answered, after = time.perf_counter(), resident()
print(json.dumps({
    "seconds": round(answered - started, 3), "open_seconds": round(opened - started, 3),
    "mapped_mib_after_opening": round(open_ - before, 1), "mapped_mib_after_answer": round(after - before, 1),
    "codes_mib": round(release.rows("image") * 8 / 2**20, 1),
}))
"""


def write_release_of(codes: np.ndarray, folder: Path) -> None:
    """Write a release of one side in 4 parts; the keys are short."""
    storage = Storage(folder)
    create_store(storage)
    rows = []
    for number, block in enumerate(np.array_split(codes, 4)):
        with tempfile.TemporaryDirectory() as room:
            recipe = PartRecipe(parse_recipe("BFlat"), codes.shape[1])
            files = dict(zip(("index", "keys"), write_codes(block, recipe, Path(room)), strict=True))
            address = f"{number:032x}"
            row = {"side": "image", "ordinal": number, "part": address, "units": 1, "rows": len(block)}
            for kind, path in (("index", part_path(address)), ("keys", part_keys_path(address))):
                data = files[kind].read_bytes()
                row |= {f"{kind}_sha256": sha256(data), f"{kind}_bytes": len(data)}
                storage.create(path, data)
            rows.append(row)
    tables = {
        "units": UNITS.empty_table(),
        "parts": pa.Table.from_pylist(rows, schema=PARTS),
        "rejects": REJECTS.empty_table(),
    }
    release = ReleaseRecipe(
        code_length=8 * codes.shape[1], model="0" * 32, fingerprints={"image": "none"}, input_recipe="0" * 32
    )
    (folder / "digest").write_text(write_release(storage, release, tables=tables))


if __name__ == "__main__":
    main()
