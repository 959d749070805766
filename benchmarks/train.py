"""What a training step costs under Ray Train and DeepSpeed, beside a bare loop; where a start-up goes.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--rounds 3] [--only step data start]
    OMP_NUM_THREADS=1 python benchmarks/train.py --model [--ranks 1 2 4]

`step_vs_bare`: median seconds of a step of two ranks as `jobs/train.py` runs them, against two plain
processes with the same method, the same batches and the same collectives, gradients averaged in one flat
buffer; the first epoch, which decodes, is left out. Two runs between them tell where a difference comes from:
the plain loop with DeepSpeed's engine (`engine_vs_bare`), and our loop with it (`loop_vs_bare`), both without
Ray. `data`: the share of the time that a rank waits for rows,
decoded live and from memory. `start`: seconds from the command to the first step, and what they went into.
`--model`: the factors of benchmarks/train_model.py, measured here in as many processes side by side as the
step has ranks, and its prediction beside the bare loop's steps.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import torch.multiprocessing

from benchmarks import train_factors
from cmh_models.method import Progress
from jobs import train
from jobs.config import load_config
from jobs.training.plan import TrainingRun, plan_run
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.corpus.scenes import write_corpus
from pipeline.learning.engine import local_rows, make_engine
from pipeline.learning.gather import all_sum, rank, world_size
from pipeline.learning.training import (
    Hooks,
    collect_statistics,
    finite_values,
    fit,
    gather_outputs,
    over_ranks,
    seed_step,
    to_batch,
)

ROWS, BATCH = 1024, 128
STEPS_PER_EPOCH = ROWS // BATCH
KINDS = ("bare", "engine", "loop")
"""Of processes without Ray: plain torch; its loop with DeepSpeed's engine; our loop with that engine."""
SETTINGS = (
    "method.name=jdsh",
    "method.feature_rounds=2",
    "method.moment_rounds=2",
    "method.threshold_rounds=2",
    "towers.image={name: cnn, image_size: 32, channels: [32, 64, 64]}",
    "towers.text={name: bag}",
    f"train.global_batch_size={BATCH}",
    "train.log_every=1000",
    "train.checkpoint_every_epochs=0",
    "resources.cpus_per_worker=1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9, help="of a timed run; the first is not timed")
    parts = ("step", "data", "start")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--model", action="store_true", help="measure the cost model's factors, check them")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], help="of --model")
    parser.add_argument("--one-start", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one_start:
        time_one_start(Path(arguments.one_start))
        return
    figures: dict[str, Any] = {"ratios": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_corpus(folder / "source", ROWS, ROWS // 4, 1, split="train")
        if arguments.model:
            run = plan(folder, "model", epochs=arguments.epochs)
            figures |= train_factors.check(run, arguments.ranks, partial(bare_seconds, run))
        else:
            measures = {"start": measure_start, "step": measure_step, "data": measure_data}
            for name in arguments.only:
                found = measures[name](folder, arguments)
                figures["ratios"] |= found.pop("ratios", {})
                figures |= found
    print(json.dumps(figures))


def measure_step(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time runs of all kinds in turn."""
    found: dict[str, list[StepTime]] = {"step": [], **{kind: [] for kind in KINDS}}
    cost: dict[str, float] = {}
    for number in range(arguments.rounds):
        mine, cost = time_ours(plan(folder, f"round-{number}", epochs=arguments.epochs))
        found["step"].append(mine)
        for kind in KINDS:
            found[kind].append(time_bare(plan(folder, "bare", epochs=arguments.epochs), ranks=2, kind=kind))
        for name, times in found.items():
            wall, cpu = (1e3 * seconds for seconds in times[-1])
            say(f"round {number}: {name:<7} {wall:.1f} ms a step, {cpu:.1f} ms of CPU")
    shares = {name: round(value, 3) for name, value in cost.items() if name.startswith("share_")}
    say(f"where the time of our steps goes (last round, all epochs): {shares}")
    ratios = {
        f"{name}_vs_bare": [round(a.wall / b.wall, 3) for a, b in zip(times, found["bare"], strict=True)]
        for name, times in found.items()
        if name != "bare"
    }
    return {
        "ratios": {name: statistics.median(each) for name, each in ratios.items()},
        "ratios_of_rounds": ratios,
        "step_ms": {name: [round(1e3 * t.wall, 2) for t in times] for name, times in found.items()},
        "step_cpu_ms": {name: [round(1e3 * t.cpu, 2) for t in times] for name, times in found.items()},
        "steps": (arguments.epochs - 1) * STEPS_PER_EPOCH,
        "shares": shares,
    }


def measure_data(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Report the shares of the time of a run that decodes every epoch, and of one that keeps its rows."""
    found: dict[str, Any] = {}
    for name, cache in (("live", 0), ("cached", 2 << 30)):
        _, cost = time_ours(
            plan(folder, f"data-{name}", f"data.cache_bytes={cache}", epochs=arguments.epochs)
        )
        found[name] = {key: round(value, 3) for key, value in cost.items()}
        waits, step = 100 * cost["share_data"], 1e3 * cost["step_seconds"]
        say(f"{name}: a rank waits {waits:.0f} % of the time for rows, {step:.1f} ms a step")
    return {"data": found}


def measure_start(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the command so many times and say when it came how far."""
    rounds = []
    for _ in range(arguments.rounds):
        began = time.time()
        command = [sys.executable, __file__, "--one-start", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        marks: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
        rounds.append({name: when - began for name, when in marks.items()})
    middle = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    say(f"seconds after the command: {middle}")
    return {"start": middle}


def time_one_start(folder: Path) -> None:
    """Train a few steps as a command of its own and print when it came how far."""
    marks = {"imported": time.time()}
    run = plan(folder, f"start-{os.getpid()}", epochs=1)
    marks["planned"] = time.time()
    from cluster.runtime import connect

    connect()
    marks["ray is up"] = time.time()
    with timed_ranks(folder) as times:
        train.train_on_ray(run)
        worker = json.loads(times.read_text())
    marks["rank begins"] = worker["began"]
    marks["first step"] = worker["wall"][0]
    marks["second step"] = worker["wall"][1]
    marks["ended"] = time.time()
    print(json.dumps(marks))


class timed_ranks:
    """While it stands, rank 0 of every run writes down when its steps began."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "times.json"

    def __enter__(self) -> Path:
        self._worker = train.train_worker
        train.train_worker = TimedWorker(str(self._file))
        return self._file

    def __exit__(self, *_: object) -> None:
        train.train_worker = self._worker


class TimedWorker:
    """The job's own worker, with a clock for the watch that it tells of its steps."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __call__(self, argument: dict[str, Any]) -> dict[str, Any]:
        began = time.time()
        train.StepWatch = Clock  # type: ignore[assignment, misc]
        result = train.train_worker(argument)
        if rank() == 0:
            told = {"began": began, "wall": Clock.wall, "cpu": Clock.cpu, "cost": result["metrics"]}
            Path(self._file).write_text(json.dumps(told))
        return result


class Clock:
    """Notes when steps begin, and when the last one ends."""

    wall: list[float] = []  # noqa: RUF012
    cpu: list[float] = []  # noqa: RUF012  # of this process

    def __init__(self, seconds: float | None, keep: Any = None) -> None:
        Clock.wall, Clock.cpu = [], []
        self._before: int | None = -1

    def __call__(self, step: int | None) -> None:
        if step is not None and step < 0:  # a batch shown before the first step
            return
        if step is not None or self._before is not None:
            Clock.wall.append(time.time())
            Clock.cpu.append(time.process_time())
        self._before = step


class StepTime(NamedTuple):
    """Median seconds of a step: on the clock, and of the process's own CPU time."""

    wall: float
    cpu: float


def time_ours(run: TrainingRun) -> tuple[StepTime, dict[str, float]]:
    """Return the median seconds of a step of a run on Ray, its first epoch left out, and its cost."""
    from cluster.runtime import connect

    connect()
    with tempfile.TemporaryDirectory() as scratch, timed_ranks(Path(scratch)) as times:
        told = train.train_on_ray(run)
        if "error" in told:
            raise RuntimeError(told["error"])
        found = json.loads(times.read_text())
    kept = ("share_", "step_seconds", "rows_", "peak")
    cost = {name: value for name, value in found["cost"].items() if name.startswith(kept)}
    return median_step(found), cost


def median_step(told: dict[str, Any]) -> StepTime:
    """Return the median seconds between the beginnings of steps after the first epoch."""
    found = []
    for clock in ("wall", "cpu"):
        later = told[clock][STEPS_PER_EPOCH:]
        found.append(statistics.median(b - a for a, b in itertools.pairwise(later)))
    return StepTime(*found)


def time_bare(run: TrainingRun, *, ranks: int, kind: str = "bare") -> StepTime:
    """Return the median seconds of a step of plain processes, the first epoch left out."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "times.json"
        torch.multiprocessing.spawn(bare_rank, (ranks, run, kind, str(file)), nprocs=ranks)
        return median_step(json.loads(file.read_text()))


def bare_seconds(run: TrainingRun, ranks: int) -> float:
    """Return the median seconds of a step of so many plain processes."""
    return time_bare(run, ranks=ranks).wall


def bare_rank(number: int, ranks: int, run: TrainingRun, kind: str, file: str) -> None:
    """Train one of so many processes that Ray knows nothing of."""
    with train_factors.joined(number, ranks, file):
        our_loop(run) if kind == "loop" else bare_loop(run, sharded=kind == "engine")
        if number == 0:
            Path(file).write_text(json.dumps({"wall": Clock.wall, "cpu": Clock.cpu}))


def our_loop(run: TrainingRun) -> None:
    """Train by our loop and DeepSpeed's engine."""
    engine = make_engine(run.build(), run.train, run.deepspeed)
    fit(engine, open_feed(run), run.train, seed=run.config.run.seed, hooks=Hooks(step=Clock(None)))


def open_feed(run: TrainingRun) -> Feed:
    """Return the batches of this process."""
    reader = PieceReader(run.filesystem, run.recipe, run.listing.classes)
    size, kept = run.train.global_batch_size, run.config.data.cache_bytes
    config = FeedConfig(run.config.run.seed, size, cache_bytes=kept)
    return Feed(run.listing, reader, config, rank=rank(), ranks=world_size())


def bare_loop(run: TrainingRun, *, sharded: bool = False) -> None:
    """Train as plainly as torch allows.

    Args:
        sharded: DeepSpeed's engine goes back from the loss, averages gradients and steps.
    """
    method, config, seed = run.build().train(), run.train, run.config.run.seed
    method.global_rows = config.global_batch_size
    local_rows(config.global_batch_size, world_size())
    feed = open_feed(run)
    engine: Any = argparse.Namespace(method=method, device=torch.device("cpu"), forward=method)
    stepper: Any = train_factors.PlainSteps(method, config.make_optimiser(method))
    if sharded:
        engine = stepper = make_engine(method, config, run.deepspeed)
    total = config.epochs * feed.steps_per_epoch
    collect_statistics(engine, feed, config.statistics_steps, total)
    clock, step = Clock(None), 0
    for epoch in range(config.epochs):
        for rows in feed.epoch(epoch):
            clock(step)
            seed_step(seed, step)
            bare_step(engine, stepper, rows, Progress(epoch, step, total))
            stepper.update(config.learning_rate)
            step += 1
    clock(None)


def bare_step(engine: Any, stepper: Any, rows: Any, progress: Progress) -> None:
    """Go forward and back over one batch."""
    method = engine.method
    output = engine.forward(to_batch(method, rows, torch.device("cpu")), progress)
    sums = {name: all_sum(local) for name, local in method.sums(output).items()}
    everyone = gather_outputs(method, output)
    with torch.no_grad():
        method.update_statistics(everyone, sums)
    terms = over_ranks(method.loss(output, everyone, sums, progress))
    finite_values(terms, output, rows, progress)
    stepper.accumulate(torch.stack(list(terms.values())).sum())


def plan(folder: Path, name: str, *others: str, epochs: int) -> TrainingRun:
    """Return a run of two ranks over the drawn corpus."""
    given = (f"data.path={folder / 'source'}", f"run.dir={folder / 'runs'}", f"run.name={name}")
    more = (f"train.epochs={epochs}", "resources.workers=2")
    return plan_run(load_config(None, [*SETTINGS, *given, *more, *others], {}))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    main()
