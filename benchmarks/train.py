"""What a training step costs under Ray Train and DeepSpeed, beside a bare loop; where a start-up goes.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--rounds 3] [--only step data start]
    OMP_NUM_THREADS=1 python benchmarks/train.py --model [--ranks 1 2 4]

`step_vs_bare`: median seconds of a step of two ranks as `jobs/train.py` runs them, against two plain
processes with the same method, the same batches and the same collectives, gradients averaged in one flat
buffer; the first epoch, which decodes, is left out. `data`: the share of the time that a rank waits for rows,
decoded live and from memory. `start`: seconds from the command to the first step, and what they went into.
`--model`: the factors of benchmarks/train_model.py, measured here, and its prediction beside the bare loop's
steps.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks import train_factors
from cmh_models.method import Progress
from jobs import train
from jobs.config import load_config
from jobs.training_run import TrainingRun, plan_run
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.corpus.scenes import write_corpus
from pipeline.learning.engine import local_rows
from pipeline.learning.gather import all_sum, rank, world_size
from pipeline.learning.training import (
    collect_statistics,
    finite_values,
    gather_outputs,
    over_ranks,
    seed_step,
    to_batch,
)

ROWS, BATCH = 1024, 128
STEPS_PER_EPOCH = ROWS // BATCH
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
            run = plan(folder, "model", epochs=4)
            measured = {ranks: time_bare(run, ranks=ranks) for ranks in arguments.ranks}
            figures |= train_factors.check(run, measured)
        else:
            measures = {"start": measure_start, "step": measure_step, "data": measure_data}
            for name in arguments.only:
                found = measures[name](folder, arguments)
                figures["ratios"] |= found.pop("ratios", {})
                figures |= found
    print(json.dumps(figures))


def measure_step(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time runs of both kinds in turn."""
    ours, bare, ratios = [], [], []
    cost: dict[str, float] = {}
    for number in range(arguments.rounds):
        mine, cost = time_ours(plan(folder, f"round-{number}", epochs=arguments.epochs))
        theirs = time_bare(plan(folder, "bare", epochs=arguments.epochs), ranks=2)
        ours.append(mine)
        bare.append(theirs)
        ratios.append(mine / theirs)
        say(f"round {number}: {1e3 * mine:.1f} ms under Ray and DeepSpeed, {1e3 * theirs:.1f} ms bare")
    shares = {name: round(value, 3) for name, value in cost.items() if name.startswith("share_")}
    say(f"where the time of our steps goes (last round, all epochs): {shares}")
    return {
        "ratios": {"step_vs_bare": round(statistics.median(ratios), 3)},
        "ratios_of_rounds": {"step_vs_bare": [round(each, 3) for each in ratios]},
        "step_ms": {"ours": [round(1e3 * t, 2) for t in ours], "bare": [round(1e3 * t, 2) for t in bare]},
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
            told = {"began": began, "wall": Clock.wall, "cost": result["metrics"]}
            Path(self._file).write_text(json.dumps(told))
        return result


class Clock:
    """Notes when steps begin."""

    wall: list[float] = []  # noqa: RUF012

    def __init__(self, seconds: float | None) -> None:
        Clock.wall = []

    def __call__(self, step: int | None) -> None:
        Clock.wall.append(time.time())


def time_ours(run: TrainingRun) -> tuple[float, dict[str, float]]:
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
    return median_step(found["wall"]), cost


def median_step(wall: list[float]) -> float:
    """Return the median seconds between the beginnings of steps after the first epoch."""
    later = wall[STEPS_PER_EPOCH:]
    return statistics.median(b - a for a, b in itertools.pairwise(later))


def time_bare(run: TrainingRun, *, ranks: int) -> float:
    """Return the median seconds of a step of plain processes, the first epoch left out."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "times.json"
        torch.multiprocessing.spawn(bare_rank, (ranks, run, str(file)), nprocs=ranks)
        return median_step(json.loads(file.read_text()))


def bare_rank(number: int, ranks: int, run: TrainingRun, file: str) -> None:
    """Train one of so many plain processes, without Ray and DeepSpeed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.group", rank=number, world_size=ranks)
    wall = bare_loop(run)
    if number == 0:
        Path(file).write_text(json.dumps(wall))
    dist.destroy_process_group()


def bare_loop(run: TrainingRun) -> list[float]:
    """Train as plainly as torch allows and return when steps began; the last entry is the end."""
    method, config, seed = run.build().train(), run.train, run.config.run.seed
    method.global_rows = config.global_batch_size
    local_rows(config.global_batch_size, world_size())
    reader = PieceReader(run.filesystem, run.recipe, run.listing.classes)
    feed_config = FeedConfig(seed, config.global_batch_size, cache_bytes=run.config.data.cache_bytes)
    feed = Feed(run.listing, reader, feed_config, rank=rank(), ranks=world_size())
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    optimiser = config.make_optimiser(method)
    engine: Any = argparse.Namespace(method=method, device=torch.device("cpu"), forward=method)
    total = config.epochs * feed.steps_per_epoch
    collect_statistics(engine, feed, config.statistics_steps, total)
    wall, step = [], 0
    for epoch in range(config.epochs):
        for rows in feed.epoch(epoch):
            wall.append(time.time())
            seed_step(seed, step)
            bare_step(method, rows, weights, Progress(epoch, step, total))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
    return [*wall, time.time()]


def bare_step(method: Any, rows: Any, weights: Sequence[torch.Tensor], progress: Any) -> None:
    """Go forward and back over one batch and average the gradients over the ranks."""
    output = method(to_batch(method, rows, torch.device("cpu")), progress)
    sums = {name: all_sum(local) for name, local in method.sums(output).items()}
    everyone = gather_outputs(method, output)
    with torch.no_grad():
        method.update_statistics(everyone, sums)
    terms = over_ranks(method.loss(output, everyone, sums, progress))
    finite_values(terms, output, rows, progress)
    torch.stack(list(terms.values())).sum().backward()
    if world_size() > 1:
        flat = torch.cat([weight.grad.reshape(-1) for weight in weights if weight.grad is not None])
        dist.all_reduce(flat)
        flat /= world_size()
        for weight, mean in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = mean.view_as(weight)


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
