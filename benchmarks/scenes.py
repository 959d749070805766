"""How far JDSH stands above its baselines on the built-in corpus, over several seeds.

    OMP_NUM_THREADS=1 python benchmarks/scenes.py [--seeds 1 2 3] [--folder runs/benchmark]

Protocol: the recipe scenes_jdsh_64.yaml as it stands (8,000 pairs of corpus seed 1, settings chosen on
validation rows of that corpus), trained in this process once per seed of weights and order; judged on 1,000
queries against 4,000 pairs of corpus seed 2; mAP@all as expectation over ties. Baselines: random codes, the
untrained network of the seed, CCA on the very features that JDSH's target uses at 64 bits and at its best
length, regularisers chosen on validation rows. Prints a table to stderr and one JSON line.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from jobs import train
from jobs.config import load_config
from jobs.judging.judgement import judge

RECIPES = Path(__file__).resolve().parents[1] / "jobs" / "configs"
DIRECTIONS = ("map_i2t", "map_t2i")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", default="runs/benchmark", help="corpora and models go here")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    seconds = []
    for seed in asked.seeds:
        started = time.monotonic()
        model = learn(asked.folder, seed)
        seconds.append(round(time.monotonic() - started, 1))
        evaluations = look(asked.folder, seed, model)
        for name, metrics in evaluations.items():
            found.setdefault(name, []).append(metrics)
    report(found, {"seeds": asked.seeds, "train_seconds": seconds})


def learn(folder: str, seed: int) -> str:
    """Train the recipe with one seed; return the model's folder."""
    settings = [
        f"run.seed={seed}",
        f"run.name=jdsh_{seed}",
        f"run.dir={folder}",
        f"data.path={folder}/scenes",
    ]
    recipe = str(RECIPES / "scenes_jdsh_64.yaml")
    config = load_config(recipe, [*settings, "resources.workers=0"], {})
    return str(train.run(config, argparse.Namespace(dry_run=False)).outputs["model"])


def look(folder: str, seed: int, model: str) -> dict[str, dict[str, float]]:
    """Judge one model and its baselines on pairs of the other corpus seed."""
    recipe = str(RECIPES / "scenes_evaluate.yaml")
    paths = [f"data.path={folder}/heldout", f"evaluate.train={folder}/scenes", f"encode.model={model}"]
    judged = judge(load_config(recipe, [*paths, f"run.seed={seed}"], {}))
    return {"jdsh": judged.evaluations["model"].metrics, **judged.baselines}


def report(found: dict[str, list[dict[str, float]]], facts: dict[str, object]) -> None:
    """Print mean and spread (largest - smallest over the seeds) of each row, and what JDSH gains."""
    table = {
        name: {direction: summary([run[direction] for run in runs]) for direction in DIRECTIONS}
        for name, runs in found.items()
    }
    print(f"{'':<12} {'I2T mAP':>9} {'spread':>7} {'T2I mAP':>9} {'spread':>7}", file=sys.stderr)
    for name, row in table.items():
        cells = "".join(f" {row[way]['mean']:>9.4f} {row[way]['spread']:>7.4f}" for way in DIRECTIONS)
        print(f"{name:<12}{cells}", file=sys.stderr)
    gains = {
        f"{way}_minus_{name}": round(table["jdsh"][way]["mean"] - table[name][way]["mean"], 4)
        for name in ("untrained", "cca", "cca_best")
        for way in DIRECTIONS
    }
    print(json.dumps({**facts, "map": table, "gains": gains}))


def summary(values: list[float]) -> dict[str, float]:
    """Return the mean over the seeds, and the largest less the smallest."""
    spread = max(values) - min(values)
    return {"mean": round(statistics.mean(values), 4), "spread": round(spread, 4)}


if __name__ == "__main__":
    main()
