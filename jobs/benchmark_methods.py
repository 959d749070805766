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
import logging
from typing import Any

from cmh_models import METHODS
from jobs.cell_baselines import BASELINES
from jobs.cell_data import DataSet
from jobs.cells import Asked, Cell, run_cell
from jobs.command import Result
from jobs.config import Config
from pipeline.quality.protocol import JOINT, OWN

SETS = ("wiki", "wiki_dense", "cub600", "fashion", "flipkart", "icons")
RECIPES = Path(__file__).parent / "configs"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the table is of."""
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="folder of the sets' folders")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="folders below it")
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS, *BASELINES], default=[*METHODS, *BASELINES]
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[32])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--validation", action="store_true", help="judge rows split off train")
    parser.add_argument("--folds", nargs="+", type=int, default=[0], help="draws of validation rows")
    parser.add_argument(
        "--towers",
        choices=("cached", "full"),
        help="pictures described once (descriptor towers), or anew in every step; default: full at 32 bits",
    )
    parser.add_argument("--recipes", metavar="DIR", type=Path, default=RECIPES)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/methods"))


def run(config: Config, args: argparse.Namespace) -> Result:
    """Run what is missing of the table and print it."""
    sets = [DataSet.open(args.data, name) for name in args.sets]
    records = []
    for fold in args.folds if args.validation else [None]:
        described = None if args.towers is None else args.towers == "cached"
        asked = Asked(args.data, args.out.resolve(), args.recipes, tuple(args.set), fold, described)
        for cell in plan_cells(sets, args):
            record = run_cell(cell, asked)
            log.info("%s", _line(cell, record))
            records.append(record)
    return Result(metrics={"mean": _mean(records)}, counts={"cells": len(records)})


def plan_cells(sets: list[DataSet], args: argparse.Namespace) -> list[Cell]:
    """Return the cells of a call, in the order in which they are run."""
    return [
        Cell(data, method, bits, seed)
        for data in sets
        for bits in args.bits
        for method in args.methods
        for seed in args.seeds
    ]


def _line(cell: Cell, record: dict[str, Any]) -> str:
    if "absent" in record:
        return f"{cell}: {record['absent']}"
    own, joint = record[OWN]["metrics"], record[JOINT]["metrics"]
    fold = "" if record["fold"] is None else f" fold {record['fold']}"
    return (
        f"{cell}{fold}: own towers I2T/T2I {own['map_i2t']:.3f}/{own['map_t2i']:.3f} "
        f"@50 {own['map50_i2t']:.3f}/{own['map50_t2i']:.3f}; "
        f"joint code {joint['map_i2t']:.3f}/{joint['map_t2i']:.3f} "
        f"@50 {joint['map50_i2t']:.3f}/{joint['map50_t2i']:.3f}; "
        f"{record['seconds']:.1f} s"
    )


def _mean(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each metric over all cells, by own towers."""
    judged = [record[OWN]["metrics"] for record in records if "absent" not in record]
    return {name: sum(metrics[name] for metrics in judged) / len(judged) for name in (judged or [{}])[0]}
