"""The factors of benchmarks/train_model.py, measured here and over gloo; part of benchmarks/train.py.

In as many processes side by side as the step has ranks, all at the same work at the same time: ranks of one
machine share its memory, its caches and, beyond its cores, the cores.
"""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.train_model import Factors, gpu_factors, largest, seconds, step, table
from cmh_models.method import HashOutput, Progress
from jobs.training.plan import TrainingRun
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.learning.gather import rank, world_size
from pipeline.learning.training import collect_statistics, gather_outputs, to_batch

ROUNDS = 15
WORKER_NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112
"""Ray's own: plain processes take it too, so that all else on the machine weighs alike on both."""


def check(run: TrainingRun, ranks: Sequence[int], time_step: Callable[[int], float]) -> dict[str, Any]:
    """Return the factors, and the predicted beside the measured step at each number of ranks.

    Args:
        time_step: measures the seconds of a step of so many ranks.
    """
    batch, lines, ratios = run.train.global_batch_size, [], {}
    for count in ranks:
        factors, found = measure(run, count), time_step(count)
        predicted = seconds(factors, count, batch / count)
        parts = {name: round(1e3 * value, 2) for name, value in step(factors, count, batch / count).items()}
        told = {"predicted_ms": round(1e3 * predicted, 2), "measured_ms": round(1e3 * found, 2)}
        lines.append({"ranks": count, **told, "parts_ms": parts, "factors": vars(factors)})
        ratios[f"predicted_vs_measured_{count}"] = round(predicted / found, 3)
        say(f"{count} ranks: {1e3 * predicted:.1f} ms predicted, {1e3 * found:.1f} measured; {parts}")
    gpus = gpu_factors()
    for line in table(gpus, 256):
        say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
    sizes = {part: largest(gpus, 256, part) for part in ("loss", "gather", "gradients")}
    say(f"longer than the networks from so many GPUs on (arithmetic): {sizes}")
    return {"ratios": ratios, "steps": lines, "gpus_on_paper": table(gpus, 256), "overtakes": sizes}


def measure(run: TrainingRun, ranks: int) -> Factors:
    """Measure what this machine and this method take where so many ranks work side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "factors.json"
        torch.multiprocessing.spawn(_measure_rank, (ranks, run, str(file)), nprocs=ranks)
        return Factors(**json.loads(file.read_text()))


@contextmanager
def joined(number: int, ranks: int, file: str) -> Iterator[None]:
    """Be one of so many processes that Ray knows nothing of, as nice as its workers, on one thread."""
    torch.set_num_threads(1)
    os.nice(WORKER_NICENESS - os.nice(0))
    os.environ |= {"LOCAL_RANK": str(number), "RANK": str(number), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", init_method=f"file://{file}.group", rank=number, world_size=ranks)
    yield
    dist.barrier()  # a group that one rank still uses ends badly
    dist.destroy_process_group()


def _measure_rank(number: int, ranks: int, run: TrainingRun, file: str) -> None:
    with joined(number, ranks, file):
        found = factors(run)
        if number == 0:
            Path(file).write_text(json.dumps(vars(found)))


def factors(run: TrainingRun) -> Factors:
    """Measure the factors, on all ranks of this process group at once."""
    method, config = run.build().train(), run.train
    batch = method.global_rows = config.global_batch_size
    reader = PieceReader(run.filesystem, run.recipe, run.listing.classes)
    feed = Feed(run.listing, reader, FeedConfig(0, batch), rank=rank(), ranks=world_size())
    engine: Any = _Plain(method)
    collect_statistics(engine, feed, config.statistics_steps, 1)
    whole, *_ = feed.epoch(0)  # to the end: what is decoded ahead would be timed, too
    mine = batch // world_size()
    half = {name: value[: mine // 2] for name, value in whole.items()}
    at_whole = timed(lambda: networks(method, whole))
    at_half = timed(lambda: networks(method, half))
    # What half of the rows take may be less than half: what is left then is no time below nothing.
    row = min(at_whole / mine, (at_whole - at_half) / (mine - mine // 2))
    optimiser = config.make_optimiser(method)
    networks(method, whole)
    fixed = at_whole - mine * row + timed(optimiser.step)
    average = timed(PlainSteps(method, optimiser).average)
    pair = timed_loss(method, whole) / (mine * batch)
    with torch.no_grad():
        output = method(to_batch(method, whole, torch.device("cpu")), Progress(0, 0, 1))
    gathered = sum(output[name][0].numel() * output[name].element_size() for name in method.gathers)
    parameters = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    hop, link = collectives(parameters, average)
    return Factors(row, fixed, pair, 2 * gathered, hop, link, parameters, calls=2 + len(method.gathers))


class _Plain:
    """As much of an engine as statistics ask for."""

    def __init__(self, method: Any) -> None:
        self.method, self.device = method, torch.device("cpu")

    def forward(self, batch: Any, progress: Progress) -> HashOutput:
        output: HashOutput = self.method(batch, progress)
        return output


class PlainSteps:
    """Goes back from a loss, averages gradients over ranks in one flat buffer, and steps."""

    def __init__(self, method: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self._weights = [weight for weight in method.parameters() if weight.requires_grad]
        self._optimiser = optimiser

    def accumulate(self, loss: torch.Tensor) -> None:
        loss.backward()

    def average(self) -> None:
        """Give every rank the average of the gradients of all."""
        flat = torch.cat([w.grad.reshape(-1) for w in self._weights if w.grad is not None])
        dist.all_reduce(flat)
        flat /= world_size()
        sizes = [weight.numel() for weight in self._weights]
        for weight, mean in zip(self._weights, flat.split(sizes), strict=True):
            weight.grad = mean.view_as(weight)

    def update(self, learning_rate: float) -> None:
        if world_size() > 1:
            self.average()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


def networks(method: Any, rows: Any) -> None:
    """Go forward and back through the networks alone, from decoded rows."""
    method.zero_grad()
    output = method(to_batch(method, rows, torch.device("cpu")), Progress(0, 0, 1))
    torch.stack([output[side].square().sum() for side in ("image", "text")]).sum().backward()


def timed_loss(method: Any, rows: Any) -> float:
    """Return the seconds of the loss of the local rows, back to their codes; what it gathers is there."""
    progress = Progress(0, 0, 1)
    with torch.no_grad():
        output = method(to_batch(method, rows, torch.device("cpu")), progress)
        everyone, sums = gather_outputs(method, output), method.sums(output)
    local = {name: value.detach() for name, value in output.items()}
    for name in ("image", "text", "units"):
        if name in local:
            local[name].requires_grad_()

    def work() -> None:
        terms = method.loss(local, everyone, sums, progress)
        torch.stack([term.numerator for term in terms.values()]).sum().backward()

    return timed(work)


def timed(work: Callable[[], Any]) -> float:
    """Return the median seconds of a call that all ranks begin together; the slowest of them counts."""
    found = []
    for _ in range(ROUNDS):
        dist.barrier()
        began = time.perf_counter()
        work()
        took = torch.tensor(time.perf_counter() - began)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        found.append(took.item())
    return statistics.median(found[2:])


def collectives(parameters: int, average: float) -> tuple[float, float]:
    """Return the seconds until the first byte, a doubling of ranks, and the bytes a second of one rank.

    Args:
        average: seconds that the gradients of so many parameters take, put together, sent and taken apart.
    """
    ranks = world_size()
    if ranks == 1:
        return 0.0, 1.0  # nobody to talk to
    first = timed(partial(dist.all_reduce, torch.zeros(1)))
    moved = 2 * (ranks - 1) / ranks * 4 * parameters
    return first / (2 * math.log2(ranks)), moved / max(1e-9, average - first)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
