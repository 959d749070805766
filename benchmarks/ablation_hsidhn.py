"""What each part of HSIDHN (reconstruction) is worth: levels, scales, interaction, hard and soft similarity.

    OMP_NUM_THREADS=1 python benchmarks/ablation_hsidhn.py --data DATA \\
        --set train.epochs=30 --set towers.image.hidden=256 --set towers.text.hidden=256

Protocol: the recipe of each set at 32 bits, with the parts of `ABLATIONS` (cmh_models/hsidhn.py) in place of
its own; queries are rows split off train, another draw for each seed, and the rest of train is searched.
Query and test rows are never read. mAP@all, each side by its own tower: mean over the seeds, and the largest
less the smallest. Prints a table to stderr and one JSON line. A call that was stopped goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmh_models.hsidhn import ABLATIONS
from jobs.judging.cell_data import DataSet
from jobs.judging.cells import Asked, Cell, run_cell
from pipeline.quality.protocol import OWN

RECIPES = Path(__file__).resolve().parents[1] / "jobs" / "configs"
DIRECTIONS = ("map_i2t", "map_t2i")
WHOLE: dict[str, Any] = {
    "levels": {
        "depth": 2,
        "width": 128,
        "use": "all",
        "multi_scale": True,
        "interaction": {"reading": "both", "rank": 64},
        "dropout": 0.3,
    },
    "quantisation_weight": 0.2,
    "similarity": "dual",
}
"""The method with all its parts, from which each row takes some away."""
PLAIN = {"levels": {"depth": 1, "multi_scale": False, "interaction": {"reading": "none"}}}
"""Towers of two layers with the same losses."""
ROWS = {"- plain": PLAIN, **ABLATIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets' folders")
    parser.add_argument("--sets", nargs="+", default=["wiki_dense", "cub600"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=[name[0] for name in ROWS], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="cells go here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="in every cell")
    asked = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in asked.sets:
        data = DataSet.open(asked.data, name)
        chosen = {row: parts for row, parts in ROWS.items() if not asked.rows or row[0] in asked.rows}
        found[name] = {row: measure(data, parts, asked) for row, parts in chosen.items()}
        report(name, found[name])
    print(json.dumps({"seeds": asked.seeds, "validation_map": found}))


def measure(data: DataSet, parts: dict[str, Any], asked: argparse.Namespace) -> dict[str, float]:
    """Return mean and spread of both directions over the seeds."""
    settings = settled(WHOLE) | settled(parts)
    own = [f"method.{name}={json.dumps(value)}" for name, value in settings.items()]
    runs = []
    for seed in asked.seeds:
        cell = Cell(data, "hsidhn", 32, seed)
        where = Asked(asked.data, asked.out.resolve(), RECIPES, (*own, *asked.set), fold=seed)
        runs.append(run_cell(cell, where)[OWN]["metrics"])
    summary = {}
    for way in DIRECTIONS:
        values = [run[way] for run in runs]
        summary[way] = round(sum(values) / len(values), 4)
        summary[f"{way}_spread"] = round(max(values) - min(values), 4)
    return summary


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """Return nested options by dotted name."""
    return dict(_dotted(options, ""))


def _dotted(options: dict[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield before + name, value


def report(name: str, rows: dict[str, dict[str, float]]) -> None:
    """Print the table of one set."""
    print(f"{name:<16} {'I2T mAP':>9} {'spread':>7} {'T2I mAP':>9} {'spread':>7}", file=sys.stderr)
    for row, found in rows.items():
        cells = "".join(f" {found[way]:>9.4f} {found[f'{way}_spread']:>7.4f}" for way in DIRECTIONS)
        print(f"{row:<16}{cells}", file=sys.stderr)


if __name__ == "__main__":
    main()
