"""What Ray runs of a night: chunks through decoder and encoder, and tasks that finish units or read files.

One Ray Data row carries one chunk from plan to receipt; the driver sees receipts only and starts one task
per complete unit, which writes its files. On CPUs a chunk is decoded and encoded in one process, so that no
pixel crosses the object store, and a unit that is one chunk is finished there, too: the driver sees its
report only. Where the encoder has a GPU, decoding is a stage of its own, and nobody waits for a store. An
actor or task that dies is tried again by Ray, and a repeated answer changes nothing. Imported only where
there is work for a cluster.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from cluster.metrics import run_gauges
from cluster.resources import Request, wait_for
from cluster.runtime import connect
from jobs.nights.budget import Budget
from jobs.nights.night import Night
from jobs.stopping import hear_sigterm
from pipeline.encoding.chunks import Chunk, Place
from pipeline.encoding.decoding import Receipt
from pipeline.encoding.rows import EncodeRow, answer_of, chunk_row, decode_row
from pipeline.encoding.units import UnitReport, UnitWork, finish_unit
from pipeline.releases.forgetting import Forgotten

FIGURES = {
    "units_total": "units whose codes the running night wants",
    "units_done": "units whose code files are written",
    "rows_done": "rows that were read by this run",
    "rows_per_second": "rows read per second since this run began to encode",
    "seconds_left": "estimated seconds until the last unit is encoded",
}


def join_cluster(night: Night) -> None:
    """Connect to Ray, and wait for a GPU if the encoders are to have one.

    Raises:
        RuntimeError: a GPU is asked for and the cluster has none.
    """
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is told; others are the same
    own = connect()
    hear_sigterm()
    if night.config.resources.gpu:  # a cluster of our own does not grow: there is nothing to wait for
        wait_for(Request(1, 1, gpu=True), seconds=0 if own else night.config.resources.worker_timeout)


def gauges(run: str) -> Callable[[Mapping[str, float]], None]:
    """Return a function that shows the figures of a run as Ray metrics `hashfleet_*`."""
    return run_gauges(run, prefix="hashfleet", describe=FIGURES.__getitem__)


def map_tasks(
    function: Callable[..., Any], items: Iterable[Any], *, at_once: int = 64, **inputs: Any
) -> Iterator[Any]:
    """Run a function on every item in tasks of the cluster; yield results in the order of the items.

    Args:
        inputs: further arguments of the function.
    """
    task = ray.remote(function)
    running: list[ray.ObjectRef] = []
    for item in items:
        running.append(task.remote(item, **inputs))
        if len(running) >= at_once:
            yield _result(running.pop(0))
    yield from map(_result, running)


def encode_units_by_actors(
    night: Night, works: Sequence[UnitWork], *, budget: Budget, forgotten: Forgotten
) -> Iterator[UnitReport]:
    """Encode units in one go: what the driver holds of them is bounded by their number.

    When the time of the budget is up, the units that have a receipt are finished and the others dropped.
    """
    waiting = {work.place: work for work in works}
    receipts: dict[Place, dict[int, Receipt]] = defaultdict(dict)
    finish = ray.remote(num_cpus=0)(finish_unit)  # the encoders hold the CPUs until the last receipt
    finishing: list[ray.ObjectRef] = []

    def take(answer: Receipt | UnitReport) -> Iterator[UnitReport]:
        place = answer.place if isinstance(answer, UnitReport) else answer.chunk.place
        if place not in waiting:
            return  # repeated
        if isinstance(answer, UnitReport):
            del waiting[place]
            yield answer
            return
        receipts[place][answer.chunk.index] = answer
        if len(receipts[place]) == len(waiting[place].chunks):
            work, complete = waiting.pop(place), list(receipts.pop(place).values())
            inputs = {"source": night.source, "store": night.store, "forgotten": forgotten}
            finishing.append(finish.remote(work, complete, **inputs))
        yield from _done(finishing, night.config.resources.encoders)

    every = [(chunk, work) for work in works for chunk in work.chunks]
    at_first = _answers(night, every, forgotten=forgotten)
    for answer in at_first:
        yield from take(answer)
        if budget.is_over():
            break
    at_first.close()
    begun = [waiting[place] for place in receipts]
    missing = [(c, work) for work in begun for c in work.chunks if c.index not in receipts[work.place]]
    for answer in _answers(night, missing, forgotten=forgotten) if missing else ():
        yield from take(answer)
    yield from _done(finishing, 0)


def _answers(
    night: Night, chunks: Sequence[tuple[Chunk, UnitWork]], *, forgotten: Forgotten
) -> Generator[Receipt | UnitReport, None, None]:
    """Run chunks through decoder and encoder; answers come in any order."""
    config, source, store = night.config, night.source, night.store
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [chunk_row(chunk, work) for chunk, work in chunks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    settings: dict[str, Any] = {"tile": config.encode.tile, "gpu": config.resources.gpu}
    if config.resources.gpu:
        dataset = dataset.map(lambda row: decode_row(row, source, store), num_cpus=1)
        resources = {"num_cpus": 1, "num_gpus": 1}
    else:
        settings |= {"source": source, "forgotten": forgotten}
        resources = {"num_cpus": 1}
    encoders = min(config.resources.encoders, len(rows))
    dataset = dataset.map(
        EncodeRow,
        fn_constructor_args=(night.facts.digest, night.store),
        fn_constructor_kwargs=settings,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=encoders, initial_size=encoders),
        **resources,
    )
    try:
        for row in dataset.iter_rows():
            yield answer_of(row)
    except RayError as error:
        raise RuntimeError(_last_line(error)) from error


def _last_line(error: Exception) -> str:
    """Return what an actor said last: the end of the traceback that Ray makes a message of."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"an encoder failed: {lines[-1]}" if lines else type(error).__name__


def _done(finishing: list[ray.ObjectRef], limit: int) -> Iterator[UnitReport]:
    """Take finished tasks off the list, and wait until no more than `limit` are left."""
    while finishing:
        wait = None if len(finishing) > limit else 0
        ready, finishing[:] = ray.wait(finishing, num_returns=1, timeout=wait)
        if not ready:
            return
        yield _result(ready[0])


def _result(task: ray.ObjectRef) -> Any:
    """Return what a task returned, or raise what it raised: without the tracebacks that Ray puts into it."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from error
