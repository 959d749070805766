"""The table of methods: every method on every set, both directions, mAP@all and mAP@50, with its protocol.

Each cell trains its recipe, jobs/configs/<set>_<method>_<bits>.yaml, in this process and is kept as a JSON
file of its own, so that a call that was stopped goes on where it was. `--validation` judges rows split off
train instead of query rows: what settings are chosen by. `--set` changes a setting in every cell.

examples:
  hashfleet benchmark_methods --data DATA
  hashfleet benchmark_methods --data DATA --sets wiki_dense --methods jdsh --validation --set train.epochs=40
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["benchmark_methods", *sys.argv[1:]]))

import argparse
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

from cmh_models import METHODS
from jobs.command import Result
from jobs.config import Config
from jobs.judging.cell_baselines import BASELINES
from jobs.judging.cell_data import DataSet
from jobs.judging.cells import Asked, Cell, is_done, run_cell
from jobs.judging.code_version import code_commit
from pipeline.quality.protocol import JOINT, OWN
from pipeline.quality.results import MARKERS, readme_block, results_page, results_plot
from pipeline.quality.table import notes, summarise
from pipeline.releases.storage import Storage

SETS = ("wiki", "wiki_dense", "cub600", "fashion", "flipkart", "icons")
SEEDS, BITS = (1, 2, 3, 4, 5), 32
LENGTHS = {"wiki": (16, 64, 128)}
"""Code lengths besides 32 of the standard table, at its first seed."""
RECIPES = Path(__file__).parent / "configs"
COMMAND = "hashfleet benchmark_methods --data DATA"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the table is of; without --bits and --seeds it is the standard one."""
    every = [*METHODS, *BASELINES]
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="folder of the sets' folders")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="folders below it")
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--bits", nargs="+", type=int, help="default: 32, and 16, 64, 128 on wiki")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1 to 5 at 32 bits, 1 elsewhere")
    parser.add_argument("--validation", action="store_true", help="judge rows split off train")
    parser.add_argument("--folds", nargs="+", type=int, default=[0], help="draws of validation rows")
    parser.add_argument(
        "--towers",
        choices=("cached", "full"),
        default="cached",
        help="pictures of descriptor towers are described once (default), or anew in every step; other "
        "towers are always trained whole. Without dropout both give equal codes, with it the draws differ",
    )
    parser.add_argument("--processes", type=int, default=1, help="cells that run at once")
    parser.add_argument("--recipes", metavar="DIR", type=Path, default=RECIPES)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/methods"))
    parser.add_argument(
        "--any-code", action="store_true", help="take cells as they stand though the code has changed since"
    )
    parser.add_argument("--only-done", action="store_true", help="train nothing, show what is done")
    parser.add_argument("--readme", metavar="FILE", type=Path, help="put the table between its markers")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Run what is missing of the table, print it, and write its page into --out."""
    if args.readme is not None and (args.validation or not _has_markers(args.readme)):
        raise ValueError(f"--readme {args.readme} needs query rows judged, and lines {' and '.join(MARKERS)}")
    cells = plan_cells([DataSet.open(args.data, name) for name in args.sets], args)
    records = []
    for fold in args.folds if args.validation else [None]:
        cached = args.towers == "cached"
        asked = Asked(
            args.data, args.out.resolve(), args.recipes, tuple(args.set), fold, cached, args.any_code
        )
        left = [cell for cell in cells if not args.only_done or is_done(cell, asked)]
        for record in run_cells(left, asked, processes=args.processes):
            log.info("%s", _line(record))
            records.append(record)
    outputs = {} if args.validation else write_page(records, args)
    return Result(outputs=outputs, metrics={"mean": _mean(records)}, counts={"cells": len(records)})


def plan_cells(sets: list[DataSet], args: argparse.Namespace) -> list[Cell]:
    """Return the cells of a call, seed after seed: a call that is stopped has whole tables of fewer seeds."""
    seeds = args.seeds or ([1] if args.validation else SEEDS)
    cells = []
    for seed, data in product(seeds, sets):
        others = () if args.validation or seed != seeds[0] else LENGTHS.get(data.name, ())
        for bits, method in product(args.bits or (BITS, *others), args.methods):
            cells.append(Cell(data, method, bits, seed))
    return cells


def run_cells(cells: list[Cell], asked: Asked, *, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the records of cells in their order."""
    if processes == 1:
        yield from (run_cell(cell, asked) for cell in cells)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(run_cell, asked=asked), cells)


def write_page(records: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, str]:
    """Write the table as JSON, Markdown and SVG, and into the README if that is asked for."""
    table = summarise(records)
    bits = BITS if args.bits is None or BITS in args.bits else args.bits[0]
    results = {"command": _command(args), "commit": code_commit(), "bits": bits, "table": table}
    for note in notes(table, bits):
        log.info("%s", note)
    page, plot = results_page(results), results_plot(results)
    for name, text in (("json", json.dumps(results, indent=1) + "\n"), ("md", page), ("svg", plot)):
        Storage(args.out).write(f"results.{name}", text.encode())
    if args.readme is not None:
        before, _, rest = args.readme.read_text(encoding="utf-8").partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        whole = before + readme_block(results) + after
        Storage(args.readme.parent).write(args.readme.name, whole.encode())
    return {"page": str(args.out / "results.md")}


def _command(args: argparse.Namespace) -> str:
    """Return the line that gives this table, wherever the data stands."""
    every = [*METHODS, *BASELINES]
    given = {
        "sets": args.sets if args.sets != list(SETS) else None,
        "methods": args.methods if sorted(args.methods) != sorted(every) else None,
        "bits": args.bits,
        "seeds": args.seeds,
    }
    flags = [f" --{name} {' '.join(map(str, values))}" for name, values in given.items() if values]
    return COMMAND + "".join(flags)


def _has_markers(readme: Path) -> bool:
    return readme.is_file() and all(marker in readme.read_text(encoding="utf-8") for marker in MARKERS)


def _line(record: dict[str, Any]) -> str:
    fold = "" if record["fold"] is None else f" fold {record['fold']}"
    name = f"{record['data']} {record['method']} {record['bits']} seed {record['seed']}{fold}"
    if "absent" in record:
        return f"{name}: {record['absent']}"
    codings = []
    for coding in (OWN, JOINT):
        metrics = record[coding]["metrics"]
        two = [f"{metrics[f'{kind}_i2t']:.3f}/{metrics[f'{kind}_t2i']:.3f}" for kind in ("map", "map50")]
        codings.append(f"{coding} I2T/T2I {two[0]} @50 {two[1]}")
    return f"{name}: {'; '.join(codings)}; {record['seconds']:.1f} s"


def _mean(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each metric over all cells, by own towers."""
    judged = [record[OWN]["metrics"] for record in records if "absent" not in record]
    return {name: sum(metrics[name] for metrics in judged) / len(judged) for name in (judged or [{}])[0]}
