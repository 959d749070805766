"""How long a night of a million units is planned, how much memory that takes, and how fast a release opens.

Synthetic tables, no data files: a parent release of so many units (two sides), the same source with one per
cent of the units changed, a first night, and a store on local disk that holds such a release; `indexed`, a
first night whose units are all reported as encoded and whose parts as built, up to the written release; and
the whole process of a night of 1,000 units in which nothing has changed (median of five). Every figure is of
a process of its own: its peak memory is that of all it did. There is nothing to compare with but limits: the
ratios are limit / measured, so at least 1 is within.

    python benchmarks/planning.py [--units N]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa

from jobs.config import load_config
from jobs.nights.facts import keep_facts
from jobs.nights.night import Parent, open_night, plan
from pipeline.corpus.recipe import InputRecipe
from pipeline.encoding.codefile import Ledger
from pipeline.encoding.models import ModelFacts
from pipeline.encoding.outcome import (
    Outcome,
    Standing,
    check_limits,
    count_rows,
    next_rejects,
    next_units,
    without_codes,
)
from pipeline.encoding.units import StoredCodes, StoredFile, UnitReport
from pipeline.releases.heads import Log
from pipeline.releases.manifest import (
    PARTS,
    REJECTS,
    UNITS,
    ReleaseRecipe,
    create_store,
    read_release,
    read_table,
    write_release,
)
from pipeline.releases.planning import cut_files, plan_night, source_bytes, source_table
from pipeline.releases.storage import SourceFile, Storage
from pipeline.search.building import part_row, parts_table
from pipeline.search.indexing import IndexConfig
from pipeline.search.part_plans import PartPlan, plan_release_parts, reuse_parts
from pipeline.search.retrieval import Release

TOWERS = {"image": "1" * 32, "text": "2" * 32}
RECIPES = {"image": "3" * 32, "text": "4" * 32}
SECONDS, BYTES, OPEN_SECONDS = 60.0, 2 << 30, 2.0
QUIET_UNITS, QUIET_SECONDS = 1000, 3.0
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure each case in a child process; print a table and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(CASES[args.case](args.folder, args.units)))
        return
    with tempfile.TemporaryDirectory(prefix="hashfleet-planning-") as name:
        figures = {case: _child(case, Path(name), args.units) for case in CASES}
    print(f"{args.units} units, two sides\ncase          seconds  peak MiB", file=sys.stderr)
    for case, figure in figures.items():
        print(f"{case:<12} {figure['seconds']:8.2f} {figure['peak'] / 2**20:9.0f}", file=sys.stderr)
    ratios = {}
    for case in ("first_night", "unchanged", "changed", "new_tower", "indexed"):
        ratios[f"{case}_seconds"] = SECONDS / figures[case]["seconds"]
        ratios[f"{case}_memory"] = BYTES / figures[case]["peak"]
    ratios["quiet_night_seconds"] = QUIET_SECONDS / figures["quiet_night"]["seconds"]
    ratios["open_seconds"] = OPEN_SECONDS / figures["open"]["seconds"]
    print(json.dumps({"benchmark": "planning", "units": args.units, "ratios": ratios, "figures": figures}))


def _child(case: str, folder: Path, units: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--case", case, "--folder", str(folder), "--units", str(units)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _files(units: int, changed: int = 0) -> pa.Table:
    """Return the source as a table: every `changed`-th file has another version."""
    return source_table(
        SourceFile(
            path=f"year=2026/month={number % 12:02d}/part-{number:08d}.snappy.parquet",
            size=100_000_000 + number,
            token=f"{number:032x}-{int(changed > 0 and number % changed == 0)}",
        )
        for number in range(units)
    )


def _write_store(folder: Path, units: int) -> dict[str, float]:
    """Leave a store with a release of these units: tables alone, which is all that is planned with."""
    started = time.monotonic()
    storage = Storage(folder)
    made = plan_night(cut_files(_files(units), UNITS.empty_table(), {}), TOWERS, recipes=RECIPES).encode
    _publish(
        storage,
        made,
        ReleaseRecipe(code_length=64, model="5" * 32, fingerprints=TOWERS, input_recipe="6" * 32),
    )
    return {"seconds": time.monotonic() - started, "peak": _peak()}


def _publish(storage: Storage, made: pa.Table, recipe: ReleaseRecipe) -> None:
    """Publish a release of units whose code files are made up."""
    create_store(storage)
    random = np.random.default_rng(0)
    rows = random.integers(5000, 15000, len(made))
    columns = {name: made[name] for name in UNITS.names if name in made.column_names} | {
        "code_sha256": pa.array([f"{a:032x}{b:032x}" for a, b in random.integers(0, 2**62, (len(made), 2))]),
        "code_bytes": pa.array(rows * 30),
        "read": pa.array(rows),
        "encoded": pa.array(rows),
        "rejected": pa.array(np.zeros(len(made), np.int64)),
        "absent": pa.array(np.zeros(len(made), np.int64)),
        "stale": pa.array(np.zeros(len(made), bool)),
    }
    table = pa.table([columns.get(name, pa.nulls(len(made), kind)) for name, kind in _fields()], schema=UNITS)
    tables = {"units": table, "parts": PARTS.empty_table(), "rejects": REJECTS.empty_table()}
    digest = write_release(storage, recipe, tables=tables)
    log = Log(storage)
    lease = log.acquire("benchmark", 3600)
    if lease is None:
        raise RuntimeError(f"{storage.where()} is not ours")
    log.publish(lease, digest)


def _fields() -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in UNITS]


def _plan(
    folder: Path, units: int, *, towers: dict[str, str] = TOWERS, changed: int = 0, parent: bool = True
) -> dict[str, float]:
    """Take a listing in, read the parent release and plan."""
    started = time.monotonic()
    files = _files(units, changed)
    listed = time.monotonic()
    known = UNITS.empty_table()
    if parent:
        storage = Storage(folder)
        manifest = read_release(storage, str(Log(storage).current_release()))
        known = read_table(storage, manifest, "units")
    read = time.monotonic()
    found = plan_night(cut_files(files, known, {}), towers, recipes=RECIPES, parent_units=known)
    found.counts()
    now = time.monotonic()
    facts = {"encode": len(found.encode), "reuse": len(found.reuse), "nothing": found.nothing_to_do}
    return {
        "seconds": now - started,
        "listing": listed - started,
        "reading": read - listed,
        "peak": _peak(),
    } | facts


def _indexed(folder: Path, units: int) -> dict[str, float]:
    """Do what the driver does in a first night, but for encoding, building parts and the gate."""
    started = time.monotonic()
    wanted = plan_night(cut_files(_files(units), UNITS.empty_table(), {}), TOWERS, recipes=RECIPES)
    planned, before = time.monotonic(), _peak()
    standing = Standing()
    for batch in wanted.encode.to_batches(max_chunksize=4096):
        rows = iter(batch.to_pylist())  # both sides of a unit, one after the other
        for image, text in zip(rows, rows, strict=True):
            standing.made(_report(image, text))
    outcome = Outcome(standing.table())
    taken = time.monotonic()
    source_bytes(outcome.made_of(wanted))
    made = next_units(wanted, outcome, UNITS.empty_table())
    tables = {"units": made, "rejects": next_rejects(made, outcome, REJECTS.empty_table())}
    check_limits(outcome, made, max_reject_fraction=0.01, max_refused_units=0)
    counts = count_rows(outcome, wanted)
    without_codes(wanted, outcome, made)
    counted = time.monotonic()
    reused, missing = reuse_parts(plan_release_parts(made, IndexConfig()), PARTS.empty_table())
    tables["parts"] = parts_table(reused, map(_part, missing))
    indexed = time.monotonic()
    storage = Storage(folder / "indexed")
    recipe = ReleaseRecipe(code_length=64, model="5" * 32, fingerprints=TOWERS, input_recipe="6" * 32)
    write_release(storage, recipe, tables=tables)
    now = time.monotonic()
    return {
        "seconds": now - started,
        "planning": planned - started,
        "reports": taken - planned,
        "tables": counted - taken,
        "parts": indexed - counted,
        "writing": now - indexed,
        "peak": _peak(),
        "peak_of_planning": before,
        "rows": counts["rows_encoded"],
        "parts_built": len(missing),
    }


def _report(image: dict[str, Any], text: dict[str, Any]) -> UnitReport:
    """Return the report of a unit; in every hundredth some rows are rejected."""
    files = {}
    for row in (image, text):
        rejected = 7 if row["size"] % 100 == 0 else 0
        ledger = Ledger(10_000, 10_000 - rejected, rejected, 0)
        rejects = StoredFile(2 * row["unit"], 900) if rejected else None
        files[row["side"]] = StoredCodes(row["code"], ledger, StoredFile(2 * row["code"], 300_000), rejects)
    unit = SourceFile(image["path"], image["size"], image["token"])
    return UnitReport(unit, files, place=(image["path"], None))


def _part(plan: PartPlan) -> dict[str, Any]:
    """Return the row of a part that was built."""
    digest = 2 * plan.address
    return part_row(plan, index=(digest, 8 * plan.rows), keys=(digest, 48 * plan.rows))


def _open(folder: Path, units: int) -> dict[str, float]:
    started = time.monotonic()
    Release.open(folder)
    return {"seconds": time.monotonic() - started, "peak": _peak()}


def _quiet(folder: Path, units: int) -> dict[str, float]:
    """Time `hashfleet nightly` as a whole process over a source of which nothing has changed."""
    source, store = folder / "quiet-source", folder / "quiet-store"
    source.mkdir()
    for number in range(QUIET_UNITS):
        (source / f"{number:06d}.parquet").write_bytes(b"never read")
    given = [
        f"data.path={source}",
        f"store.uri={store}",
        f"encode.model={'5' * 32}",
        f"run.dir={folder / 'runs'}",
    ]
    facts = ModelFacts("5" * 32, 64, TOWERS, InputRecipe(image_width=512, text_width=512))
    config = load_config(None, given, {})
    keep_facts(config, Storage(store), facts)
    night = open_night(config, argparse.Namespace())
    _publish(night.store, plan(night, Parent()).encode, night.release_recipe)
    words = [sys.executable, str(ROOT / "jobs" / "nightly.py"), *(w for one in given for w in ("--set", one))]
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        seconds.append(time.monotonic() - started)
        if "nothing to do" not in done.stderr:
            raise RuntimeError(f"the night was not quiet: {done.stderr}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (used.ru_utime + used.ru_stime) / len(seconds)
    return {"seconds": statistics.median(seconds), "cpu_seconds": cpu, "peak": used.ru_maxrss * 1024}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CASES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "write": _write_store,
    "first_night": lambda folder, units: _plan(folder, units, parent=False),
    "unchanged": _plan,
    "changed": lambda folder, units: _plan(folder, units, changed=100),
    "new_tower": lambda folder, units: _plan(folder, units, towers=TOWERS | {"text": "9" * 32}),
    "indexed": _indexed,
    "open": _open,
    "quiet_night": _quiet,
}


if __name__ == "__main__":
    main()
