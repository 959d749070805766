"""The factors of benchmarks/train_model.py, measured here and over gloo; part of benchmarks/train.py."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.train_model import Factors, gpu_factors, largest, seconds, step, table
from cmh_models.method import HashOutput, Progress
from jobs.training_run import TrainingRun
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.learning.training import collect_statistics, gather_outputs, over_ranks, to_batch

ROUNDS = 15
SIZES = (1 << 12, 1 << 20)  # floats of a timed collective


def check(run: TrainingRun, measured: dict[int, float]) -> dict[str, Any]:
    """Return the factors, and the predicted beside the measured step at each number of ranks."""
    factors = measure(run)
    cores, batch = len(os.sched_getaffinity(0)), run.train.global_batch_size
    lines = []
    for ranks, found in measured.items():
        here = factors.on(cores / ranks)
        predicted = seconds(here, ranks, batch / ranks)
        parts = {name: round(1e3 * value, 2) for name, value in step(here, ranks, batch / ranks).items()}
        lines.append(
            {"ranks": ranks, "predicted_ms": round(1e3 * predicted, 2), "measured_ms": round(1e3 * found, 2)}
        )
        say(f"{ranks} ranks: {1e3 * predicted:.1f} ms predicted, {1e3 * found:.1f} measured; {parts}")
    gpus = gpu_factors()
    for line in table(gpus, 256):
        say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
    sizes = {part: largest(gpus, 256, part) for part in ("loss", "gather", "gradients")}
    say(f"longer than the networks from so many GPUs on (arithmetic): {sizes}")
    return {"factors": vars(factors), "steps": lines, "gpus_on_paper": table(gpus, 256), "overtakes": sizes}


def measure(run: TrainingRun) -> Factors:
    """Measure what this machine and this method take."""
    method, config = run.build().train(), run.train
    batch = method.global_rows = config.global_batch_size
    reader = PieceReader(run.filesystem, run.recipe, run.listing.classes)
    feed = Feed(run.listing, reader, FeedConfig(0, batch))
    engine: Any = _Plain(method)
    collect_statistics(engine, feed, config.statistics_steps, 1)
    rows = next(iter(feed.epoch(0)))
    whole = to_batch(method, rows, torch.device("cpu"))
    half = {name: value[: batch // 2] for name, value in whole.items()}
    progress = Progress(0, 0, 1)
    at_whole = timed(lambda: networks(method, whole, progress))
    at_half = timed(lambda: networks(method, half, progress))
    row = (at_whole - at_half) / (batch / 2)
    optimiser = config.make_optimiser(method)
    networks(method, whole, progress)
    fixed = max(0.0, at_whole - batch * row) + timed(optimiser.step)
    pair = timed(lambda: losses(method, whole, progress)) / batch**2
    with torch.no_grad():
        output = method(whole, progress)
    gathered = sum(output[name][0].numel() * output[name].element_size() for name in method.gathers)
    hop, link = collectives()
    parameters = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    return Factors(row, fixed, pair, 2 * gathered, hop, link, parameters, calls=2 + len(method.gathers))


class _Plain:
    """As much of an engine as statistics ask for."""

    def __init__(self, method: Any) -> None:
        self.method, self.device = method, torch.device("cpu")

    def forward(self, batch: Any, progress: Progress) -> HashOutput:
        output: HashOutput = self.method(batch, progress)
        return output


def networks(method: Any, batch: Any, progress: Progress) -> None:
    """Go forward and back through the networks alone."""
    method.zero_grad()
    output = method(batch, progress)
    torch.stack([output[side].square().sum() for side in ("image", "text")]).sum().backward()


def losses(method: Any, batch: Any, progress: Progress) -> None:
    """Take the loss of codes that lead nowhere, and go back to them."""
    with torch.no_grad():
        output = {name: value.detach() for name, value in method(batch, progress).items()}
    for name in ("image", "text", "units"):
        if name in output:
            output[name].requires_grad_()
    began = time.perf_counter()
    sums = method.sums(output)
    terms = over_ranks(method.loss(output, gather_outputs(method, output), sums, progress))
    torch.stack(list(terms.values())).sum().backward()
    losses.seconds = time.perf_counter() - began  # type: ignore[attr-defined]


def timed(work: Callable[[], Any]) -> float:
    """Return the median seconds of a call; of the timed part, where the work times one itself."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        losses.seconds = None  # type: ignore[attr-defined]
        work()
        inside = losses.seconds  # type: ignore[attr-defined]
        found.append(time.perf_counter() - began if inside is None else inside)
    return statistics.median(found[2:])


def collectives() -> tuple[float, float]:
    """Return the seconds until the first byte and the bytes a second of two processes over gloo."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "found"
        torch.multiprocessing.spawn(_exchange, (str(file),), nprocs=2)
        small, large = map(float, file.read_text().split())
    # At two ranks an all-reduce takes two hops and moves its array once.
    link = 4 * (SIZES[1] - SIZES[0]) / max(1e-9, large - small)
    return max(0.0, small - 4 * SIZES[0] / link) / 2, link


def _exchange(number: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.group", rank=number, world_size=2)
    found = []
    for size in SIZES:
        values = torch.zeros(size)
        found.append(timed(partial(dist.all_reduce, values)))
    if number == 0:
        Path(file).write_text(" ".join(map(str, found)))
    dist.destroy_process_group()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
