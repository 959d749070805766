"""Write the model of a run from its newest checkpoint, or the one that did best in validation.

Training writes the model when it ends; this makes one of a run that is still going on or was given up. It
runs in one process, without Ray, whatever engine the run trains with.

example:
  hashfleet export --config jobs/configs/scenes_jdsh_64.yaml
  hashfleet export --config jobs/configs/scenes_jdsh_64.yaml --best
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))

import argparse
import logging
import tempfile
from typing import Any

from cmh_models.method import HashMethod
from jobs.command import Result
from jobs.config import Config
from jobs.source import source_files, source_uri
from jobs.training.best import best_model
from jobs.training.plan import TrainingRun, keep_model, plan_run
from pipeline.learning.checkpoint import check_facts, whole_checkpoints
from pipeline.learning.engine.conversion import saved_weights

WRITES = True

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take which model is wanted."""
    parser.add_argument("--best", action="store_true", help="the best in validation instead of the newest")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Write <run.dir>/<run.name>/model."""
    source_files(source_uri(config, draw=False))  # a run that was trained has a corpus: none is drawn here
    plan = plan_run(config)
    method, metrics = best_model(plan) if args.best else newest_model(plan)
    model = plan.storage.where(plan.model)
    if args.dry_run:
        log.info("would write %s of epoch %s, step %s", model, metrics.get("epoch"), metrics.get("step"))
        return Result(metrics=metrics)
    return Result(outputs={"model": model, "digest": keep_model(method, plan, metrics)}, metrics=metrics)


def newest_model(plan: TrainingRun) -> tuple[HashMethod, dict[str, Any]]:
    """Return the method with the weights of the newest complete checkpoint of a run.

    Raises:
        ValueError: the run has no complete checkpoint, or it was trained with other settings.
    """
    storage, name = plan.storage, plan.config.run.name
    whole = whole_checkpoints(storage, name)
    if not whole:
        raise ValueError(f"{storage.where(name)} has no complete checkpoint; train first")
    path, index = whole[0]
    check_facts(index, plan.facts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = storage.local(path)
        if folder is None:
            folder = Path(temporary) / "checkpoint"
            storage.download_folder(path, folder)
        method = plan.build()
        method.load_state_dict(saved_weights(folder, index["engine"]))
    return method.eval(), index["metrics"]
