"""Train a hash network on image-text pairs, on as many ranks as `resources.workers` says.

The model is written to <run.dir>/<run.name>/model. The same run.name goes on from its newest checkpoint;
with resources.workers=0 training runs in this process, without Ray and DeepSpeed.

examples:
  hashfleet train --config jobs/configs/scenes_jdsh_64.yaml --set train.epochs=5
  ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/scenes_jdsh_64.yaml
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

import argparse
import logging
import os
from typing import Any

from jobs.command import Result, settings_text
from jobs.config import Config
from jobs.source import undrawn
from jobs.training.best import KeepBest, best_model
from jobs.training.plan import TrainingRun, check_settings, keep_model, plan_run
from jobs.training.pretrained import start_from_pretrained
from jobs.training.surroundings import journal, surroundings
from jobs.training.trackers import check_trackers
from jobs.training.validation import validator
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.learning.checkpoint import (
    START,
    check_facts,
    drop_leftovers,
    newest_checkpoint,
    whole_checkpoints,
)
from pipeline.learning.gather import rank, world_size
from pipeline.learning.monitor import describe_cost
from pipeline.learning.resume import open_engine
from pipeline.learning.training import Hooks, fit
from pipeline.learning.watch import StepWatch

WRITES = True

log = logging.getLogger(__name__)


def run(config: Config, args: argparse.Namespace) -> Result:
    """Plan the run, train on its ranks, and say where the model is."""
    check_trackers(config.run.trackers)
    if args.dry_run and undrawn(config):
        check_settings(config)
        return Result()
    plan = plan_run(config)
    for _, index in whole_checkpoints(plan.storage, config.run.name)[:1]:
        check_facts(index, plan.facts)
        if index["epoch"] > plan.train.epochs:
            raise ValueError(
                f"train.epochs is {plan.train.epochs} but run {config.run.name!r} has done {index['epoch']}: "
                "set it to as many or more, or choose another run.name"
            )
    model = plan.storage.where(plan.model)
    steps = plan.listing.rows // plan.train.global_batch_size
    log.info("%d pairs, %d steps an epoch, %d epochs", plan.listing.rows, steps, plan.train.epochs)
    if args.dry_run:
        log.info("would train %d ranks and write %s", max(1, config.resources.workers), model)
        return Result(counts={"rows": plan.listing.rows})
    # Storage that cannot be written to is met here, and not when the first checkpoint is due.
    plan.storage.write(f"{plan.folder}/config.yaml", settings_text(config))
    trained = train_on_ray(plan) if config.resources.workers else train_worker({"run": plan})
    if "error" in trained:
        raise RuntimeError(trained["error"])
    return Result(
        outputs={"model": model, "digest": trained["digest"]},
        metrics=trained["metrics"],
        counts={"rows": plan.listing.rows, **trained["counts"]},
    )


def train_on_ray(plan: TrainingRun) -> dict[str, Any]:
    """Run the worker below on the ranks of a cluster, started again when one of them dies."""
    # Of lines that differ in nothing but numbers, as the stacks of ranks that hang do, Ray shows one rank's
    # only, unless it finds this where it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", r"^rank \d+[:|] ")
    from cluster.resources import Request, wait_for
    from cluster.runtime import connect, is_own, own_cpus
    from cluster.trainer import CHECKPOINTS, RankSettings, run_ranks

    asked, timeout = plan.config.resources, plan.config.resources.worker_timeout
    request = Request(asked.workers, asked.cpus_per_worker, asked.gpu)
    if not asked.gpu and is_own():  # known without starting it; its GPUs are not
        wait_for(request, seconds=0, totals=lambda: {"CPU": own_cpus()})
    own = connect()
    wait_for(request, seconds=0 if own else timeout)
    filesystem, root = plan.storage.filesystem()
    settings = RankSettings(
        workers=asked.workers,
        cpus=asked.cpus_per_worker,
        gpu=asked.gpu,
        name=plan.config.run.name,
        storage_path=root,
        filesystem=filesystem,
        max_failures=asked.max_restarts,
        start_attempts=max(1, timeout // 60),
    )
    before = set(plan.storage.list(plan.stacks))
    try:
        ended = run_ranks(train_worker, {"run": plan, "bar": sys.stderr.isatty()}, settings)
    except RuntimeError as error:
        if hung := set(plan.storage.list(plan.stacks)) - before:
            limit, where = plan.train.step_timeout, plan.storage.where(plan.stacks)
            raise RuntimeError(
                f"a step took longer than train.step_timeout, {limit:g} s: where {len(hung)} ranks stood is "
                f"kept in {where}; {error}"
            ) from error
        raise
    try:
        drop_leftovers(plan.storage, plan.config.run.name, ended.kept, prefix=CHECKPOINTS)
    except OSError as error:
        log.warning("what ranks left that died over a checkpoint could not be removed: %s", error)
    return dict(ended.returned)


def train_worker(argument: dict[str, Any]) -> dict[str, Any]:
    """Train one rank; what is returned counts on rank 0.

    An error that is the same on every rank, and would come again, is returned: nothing is there to recover
    from. Any other is raised, which ends the group of ranks.
    """
    plan: TrainingRun = argument["run"]
    here = surroundings(plan, bar=argument.get("bar", sys.stderr.isatty()))
    feed = Feed(
        plan.listing,
        PieceReader(plan.filesystem, plan.recipe, plan.listing.classes),
        FeedConfig(
            plan.config.run.seed, plan.train.global_batch_size, cache_bytes=plan.config.data.cache_bytes
        ),
        rank=rank(),
        ranks=world_size(),
        decode=here.decode,
    )
    try:
        with newest_checkpoint(plan.storage, plan.config.run.name) as folder:
            method = plan.build()
            if folder is None:
                start_from_pretrained(method)
            resumed = open_engine(
                method,
                plan.train,
                plan.deepspeed,
                folder=folder,
                facts=plan.facts,
                device=here.device,
            )
    except ValueError as error:
        return {"error": str(error)}
    engine, start = resumed.engine, resumed.position
    if rank() == 0 and start != START:
        log.warning("going on from epoch %d, step %d", start.epoch, start.step)
    try:
        with journal(plan, feed.steps_per_epoch, start.step, bar=here.bar) as note:
            judge = validator(plan)
            best = KeepBest(plan, engine, judge) if judge is not None else None
            hooks = Hooks(
                note, StepWatch(plan.train.step_timeout, plan.keep_stacks), best, here.report, plan.facts
            )
            fitted = fit(engine, feed, plan.train, seed=plan.config.run.seed, start=start, hooks=hooks)
    except FloatingPointError as error:
        return {"error": str(error)}
    metrics = resumed.metrics | fitted.metrics | fitted.cost
    if rank() == 0 and fitted.cost:
        log.info("%s", describe_cost(fitted.cost))
    with engine.whole_weights():
        method = engine.method
        if rank() == 0 and plan.train.export == "best":
            method, judged = best_model(plan)
            metrics |= judged
        digest = keep_model(method, plan, metrics) if rank() == 0 else ""
    counts = {
        "steps": fitted.position.step,  # of the whole run
        "steps_now": len(fitted.losses),  # since it was last started
        "rows_replaced": feed.replaced.total(),  # on rank 0
    }
    return {"metrics": metrics, "counts": counts, "digest": digest}
