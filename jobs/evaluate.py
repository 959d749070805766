"""Judge a model: how well the codes of one side find those of the other, in both directions.

Query and retrieval rows come from `data.path`, told apart by its split column (`data.split`). mAP@all and
mAP@50 are printed with their definitions; `evaluate.baselines` adds random codes, the untrained network and
CCA on the model's own input features, fitted on the train rows of `evaluate.train` (default: `data.path`).

example:
  hashfleet evaluate --config jobs/configs/scenes_evaluate.yaml --set encode.model=runs/scenes_jdsh_64/model
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))

import argparse
import logging
from typing import Any

from cmh_models.method import SIDES
from jobs.command import Result
from jobs.config import Config
from jobs.judging.judgement import judge
from jobs.source import source_files
from pipeline.quality.evaluation import DEFINITIONS, Evaluation
from pipeline.quality.metrics import bit_health

log = logging.getLogger(__name__)


def run(config: Config, args: argparse.Namespace) -> Result:
    """Encode the query and retrieval rows, judge them, and judge the baselines beside them if asked to."""
    if config.evaluate.baselines and config.evaluate.train:
        source_files(config.evaluate.train, setting="evaluate.train")
    judged = judge(config)
    model, retrieval = judged.evaluations["model"], judged.coded["model"][1]
    details: dict[str, Any] = {
        "protocol": model.protocol.as_json() | {"definitions": DEFINITIONS},
        "ties": model.ties,
        "bits": {side: bit_health(retrieval.codes[side]) for side in SIDES},
    }
    if config.evaluate.baselines:
        details["baselines"] = judged.baselines
    _print(model, judged.baselines)
    return Result(
        outputs={"model": config.encode.model},
        metrics=model.metrics,
        counts=judged.counts,
        details=details,
    )


def _print(judged: Evaluation, baselines: dict[str, dict[str, float]]) -> None:
    """Print the table and its definitions to stderr, beside the logs."""
    columns = ("map_i2t", "map_t2i", "map50_i2t", "map50_t2i")
    rows = {"model": judged.metrics | {"code_length": judged.protocol.code_length}} | baselines
    log.info("\n%-10s %5s %9s %9s %9s %9s", "", "bits", "I2T mAP", "T2I mAP", "I2T @50", "T2I @50")
    for name, metrics in rows.items():
        values = " ".join(f"{metrics[column]:9.4f}" for column in columns)
        log.info("%-10s %5d %s", name, metrics["code_length"], values)
    log.info(
        "\n%d queries, %d retrieval rows; I2T: image asks, texts are found",
        judged.protocol.queries,
        judged.protocol.retrieval_rows,
    )
    for term, definition in DEFINITIONS.items():
        log.info("%s: %s", term, definition)
