"""The two stages of a night that Ray runs: units to code files, and code files to index parts.

One Ray Data row carries one chunk from plan to receipt; the driver sees receipts only and starts one task
per complete unit, which writes its files. On CPUs a chunk is decoded and encoded in one process, so that no
pixel crosses the object store; where the encoder has a GPU, decoding is a stage of its own. An actor or task
that dies is tried again by Ray, and a repeated receipt changes nothing. A few rows are encoded by the driver
itself, with the same functions: that is done before a cluster has started.
"""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from cluster.resources import Request, wait_for
from cluster.runtime import connect
from jobs.night import Night
from jobs.stopping import hear_sigterm
from pipeline.corpus.schema import SchemaError
from pipeline.encoding.chunks import Place
from pipeline.encoding.codefile import CodeFileRecipe
from pipeline.encoding.decoding import Receipt
from pipeline.encoding.outcome import Outcome
from pipeline.encoding.rows import EncodeRow, Row, chunk_row, decode_row, receipt_of
from pipeline.encoding.units import StoredCodes, UnitReport, UnitWork, find_codes, finish_unit, open_unit
from pipeline.releases.planning import Plan
from pipeline.releases.storage import SourceFile
from pipeline.search.building import make_part, parts_table, plan_release_parts, reuse_parts

log = logging.getLogger(__name__)

REQUESTS = 16
"""Threads of the driver that wait for the storage while it looks at units."""
FEW_ROWS = 512
"""So many rows to encode are no work for a cluster."""
MANY_ROWS = 4_000_000
"""So many codes are indexed by tasks of the cluster; fewer are done before a cluster has started."""
SECONDS_PER_LINE = 10.0


def encode_units(night: Night, plan: Plan) -> Outcome:
    """Make the code files that a plan wants and that do not stand in the store yet.

    Raises:
        SchemaError: no unit has the columns that are needed.
        RuntimeError: a GPU is asked for and the cluster has none, or a ledger does not balance.
    """
    found, works = _look_at_units(night, plan)
    refused = {work.unit.path: work.error for work in works if work.error}
    _check_columns(works, refused)
    made = []
    for report in _encode(night, [work for work in works if not work.error]):
        if report.error:
            refused[report.unit.path] = report.error
        else:
            made.append(report)
    for path, error in sorted(refused.items()):
        log.warning("refused %s: %s", path, error)
    return Outcome(tuple(sorted(made, key=lambda report: report.unit.path)), found, refused)


def find_code_files(night: Night, plan: Plan) -> dict[str, StoredCodes]:
    """Return the code files that a plan wants and that stand in the store already, by address."""
    addresses = sorted(set(plan.encode["code"].to_pylist()))
    with ThreadPoolExecutor(REQUESTS) as pool:
        codes = pool.map(lambda address: find_codes(address, night.store), addresses)
        return {address: found for address, found in zip(addresses, codes, strict=True) if found is not None}


def count_parts(night: Night, units: pa.Table, parent_parts: pa.Table) -> dict[str, int]:
    """Count the parts that the next release shares with the one before it, and the others."""
    rows, missing = reuse_parts(plan_release_parts(units, night.index), parent_parts)
    return {"parts_built": len(missing), "parts_reused": len(rows)}


def build_parts(night: Night, units: pa.Table, parent_parts: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Make the index parts of a release; return its table `parts`, and how many were built and reused.

    Args:
        units: table `units` of the release.
        parent_parts: table `parts` of the release before it.
    """
    rows, missing = reuse_parts(plan_release_parts(units, night.index), parent_parts)
    if len(missing) > 1 and sum(plan.rows for plan in missing) >= MANY_ROWS:
        _connect()
        task = ray.remote(make_part)
        tasks = [task.remote(plan, night.store) for plan in missing]
        made = [_result(running) for running in tasks]
    else:
        made = [make_part(plan, night.store) for plan in missing]
    return parts_table(rows + made), {"parts_built": len(made), "parts_reused": len(rows)}


def _look_at_units(night: Night, plan: Plan) -> tuple[dict[str, StoredCodes], list[UnitWork]]:
    """Find what stands in the store, and read the footers of the units that lack a code file."""
    found = find_code_files(night, plan)
    missing: dict[tuple[SourceFile, tuple[int, int] | None], dict[CodeFileRecipe, str | None]] = defaultdict(
        dict
    )
    for row in plan.encode.to_pylist():
        if row["code"] not in found:
            unit = SourceFile(row["path"], row["size"], row["token"])
            first, last = row["first_row_group"], row["last_row_group"]
            missing[unit, None if first is None else (first, last)][
                CodeFileRecipe(
                    side=row["side"],
                    address=row["code"],
                    unit_token=row["unit"],
                    fingerprint=night.facts.fingerprints[row["side"]],
                    input_recipe=night.recipes[row["side"]],
                    code_length=night.facts.code_length,
                )
            ] = row["earlier"]

    def look(work: UnitWork) -> UnitWork:
        return open_unit(work, night.source, max_bytes=night.config.encode.chunk_bytes)

    works = [
        UnitWork(unit, tuple(files), range_, {file.side: code for file, code in files.items() if code})
        for (unit, range_), files in missing.items()
    ]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return found, list(pool.map(look, works))


def _check_columns(works: Sequence[UnitWork], refused: Mapping[str, str]) -> None:
    """Raise when not one unit has the columns: then the settings are wrong and not the units."""
    name = SchemaError.__name__ + ": "
    if works and len(refused) == len(works) and all(error.startswith(name) for error in refused.values()):
        raise SchemaError(next(iter(refused.values())).removeprefix(name))


def _encode(night: Night, works: Sequence[UnitWork]) -> Iterator[UnitReport]:
    """Encode units and yield a report of each when its files are written."""
    for work in works:
        if not work.chunks:
            yield finish_unit(work, [], source=night.source, store=night.store)
    todo = [work for work in works if work.chunks]
    if not todo:
        return
    progress = _Progress(todo)
    night.keep_model()
    if sum(work.rows for work in todo) <= FEW_ROWS and not night.config.resources.gpu:
        yield from map(progress.saw, _encode_here(night, todo))
        return
    own = _connect()
    if night.config.resources.gpu:  # a cluster of our own does not grow: there is nothing to wait for
        wait_for(Request(1, 1, gpu=True), seconds=0 if own else night.config.resources.worker_timeout)
    at_once = night.config.encode.units_in_flight
    for start in range(0, len(todo), at_once):
        for report in _encode_some(night, todo[start : start + at_once]):
            yield progress.saw(report)


def _encode_here(night: Night, works: Sequence[UnitWork]) -> Iterator[UnitReport]:
    """Encode units in this process."""
    encode = EncodeRow(night.facts.digest, night.store, tile=night.config.encode.tile, source=night.source)
    for work in works:
        receipts = [receipt_of(encode(chunk_row(chunk, work))) for chunk in work.chunks]
        yield finish_unit(work, receipts, source=night.source, store=night.store)


def _encode_some(night: Night, works: Sequence[UnitWork]) -> Iterator[UnitReport]:
    """Encode units in one go: what the driver holds of them is bounded by their number."""
    finish = ray.remote(num_cpus=0)(finish_unit)  # the encoders hold the CPUs until the last receipt
    waiting = {work.place: work for work in works}
    receipts: dict[Place, dict[int, Receipt]] = defaultdict(dict)
    finishing: list[ray.ObjectRef] = []
    for row in _receipts(night, works):
        receipt = receipt_of(row)
        place = receipt.chunk.place
        receipts[place][receipt.chunk.index] = receipt
        if place in waiting and len(receipts[place]) == len(waiting[place].chunks):
            work, complete = waiting.pop(place), list(receipts.pop(place).values())
            finishing.append(finish.remote(work, complete, source=night.source, store=night.store))
        yield from _done(finishing, night.config.resources.encoders)
    yield from _done(finishing, 0)


def _receipts(night: Night, works: Sequence[UnitWork]) -> Iterator[Row]:
    """Run the chunks of units through decoder and encoder; receipts come in any order."""
    config, source, store = night.config, night.source, night.store
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [chunk_row(chunk, work) for work in works for chunk in work.chunks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    settings: dict[str, Any] = {"tile": config.encode.tile, "gpu": config.resources.gpu}
    if config.resources.gpu:
        dataset = dataset.map(lambda row: decode_row(row, source, store), num_cpus=1)
        resources = {"num_cpus": 1, "num_gpus": 1}
    else:
        settings["source"] = source
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
        yield from dataset.iter_rows()
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


def _connect() -> bool:
    """Connect to Ray; return whether the cluster is our own."""
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is told; others are the same
    own = connect()
    hear_sigterm()
    return own


def _result(task: ray.ObjectRef) -> Any:
    """Return what a task returned, or raise what it raised: without the tracebacks that Ray puts into it."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from error


class _Progress:
    """Says now and then how far the encoding has come, from units whose files are written."""

    def __init__(self, works: Sequence[UnitWork]) -> None:
        self.rows = {work.place: work.rows for work in works}
        self.total = sum(self.rows.values())
        self.done = 0
        self.started = self.spoken = time.monotonic()
        log.info("encoding %d rows of %d units", self.total, len(works))

    def saw(self, report: UnitReport) -> UnitReport:
        """Count a unit and hand its report on."""
        self.done += self.rows.pop(report.place)
        now = time.monotonic()
        if now - self.spoken >= SECONDS_PER_LINE or not self.rows:
            self.spoken = now
            rate = self.done / (now - self.started)
            log.info("encoded %d of %d rows, %.0f rows/s", self.done, self.total, rate)
        return report
