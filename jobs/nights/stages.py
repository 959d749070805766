"""The two stages of a night: units to code files, and code files to index parts.

Units are worked on in batches, so that the driver holds a bounded number of them: it looks which code files
stand, opens the footers of the others, and has their chunks encoded. A few rows are encoded by the driver
itself, with the same functions as a cluster's: that is done before a cluster has started.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.nights.budget import NO_LIMIT, Budget
from jobs.nights.indexing import plan_builds
from jobs.nights.night import Night
from jobs.nights.notes import NOTES, find_noted, read_notes, write_notes
from jobs.nights.progress import Progress
from pipeline.corpus.schema import SchemaError
from pipeline.encoding.chunks import Place
from pipeline.encoding.codefile import CodeFileRecipe
from pipeline.encoding.outcome import PLACES, Outcome, Standing, stored_table
from pipeline.encoding.units import UnitReport, UnitWork, find_codes, finish_unit, open_unit
from pipeline.releases.forgetting import NOTHING_FORGOTTEN, forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.planning import Plan
from pipeline.releases.storage import SourceFile, Storage
from pipeline.search.building import make_part, parts_table
from pipeline.search.part_plans import PartsPlan, plan_release_parts, reuse_parts

log = logging.getLogger(__name__)

REQUESTS = 16
"""Threads of the driver that wait for the storage while it looks at units."""
FEW_ROWS = 512
"""So many rows to encode are no work for a cluster."""
MANY_ROWS = 4_000_000
"""So many codes are indexed by tasks of the cluster; fewer are done before a cluster has started."""
MANY_FILES = 256
"""For more addresses than this the store's code files are listed, instead of asked for one by one."""
MANY_READS = 4096
"""More code files than this, left by an earlier run, are read by tasks of the cluster."""
READS = 256
"""So many of them by each task."""
OPENED = 256
"""So many units are opened before it is looked whether their rows fill what may be in flight."""
SECONDS_PER_NOTE = 600.0

Rows = list[dict[str, Any]]


@dataclass
class _Tally:
    """What has become of the units so far."""

    notebook: "_Notebook | None" = None
    standing: Standing = field(default_factory=Standing)
    refused: dict[str, str] = field(default_factory=dict)
    left: list[pa.RecordBatch] = field(default_factory=list)
    started: int = 0

    def leave(self, places: Sequence[Place]) -> None:
        """Note units that are left over."""
        columns = zip(*places, strict=True) if places else ((), ())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, PLACES.types, strict=True)]
        self.left.append(pa.record_batch(arrays, schema=PLACES))

    def outcome(self) -> Outcome:
        left = pa.Table.from_batches(self.left, schema=PLACES)
        return Outcome(self.standing.table(), self.refused, left)


class _Notebook:
    """Notes of a channel: read once, written now and then and at the end."""

    def __init__(self, night: Night) -> None:
        self.store, self.channel = night.store, night.config.store.channel
        self.before = read_notes(self.store, self.channel)
        self._due = time.monotonic() + SECONDS_PER_NOTE

    def write(self, standing: Standing, *, if_due: bool = False) -> None:
        if not if_due or time.monotonic() >= self._due:
            write_notes(self.store, self.channel, standing.table().select(NOTES.names), before=self.before)
            self._due = time.monotonic() + SECONDS_PER_NOTE


def encode_units(night: Night, plan: Plan, *, budget: Budget = NO_LIMIT) -> Outcome:
    """Make the code files that a plan wants and that do not stand in the store yet; say what there is then.

    Raises:
        SchemaError: no unit has the columns that are needed.
        RuntimeError: a GPU is asked for and the cluster has none, or a ledger does not balance.
    """
    encoder = _Encoder(
        night, budget, Progress(plan.counts()["units_encoded"], *night.run_json, job=night.job)
    )
    tally = _Tally(_Notebook(night) if len(plan.encode) > MANY_FILES else None)
    wanted, tally.refused = _readable(plan)
    encoder.progress.stands(len(tally.refused))
    units = _units(wanted, _may_stand(night.store, wanted["code"]))
    try:
        while batch := list(itertools.islice(units, night.config.encode.units_in_flight)):
            _take_batch(encoder, batch, tally)
    finally:  # an interrupted run too leaves its notes
        if tally.notebook is not None:
            tally.notebook.write(tally.standing)
    for path, error in sorted(tally.refused.items()):
        log.warning("refused %s: %s", path, error)
    return tally.outcome()


def _readable(plan: Plan) -> tuple[pa.Table, dict[str, str]]:
    """Return the code files that can be made, and why others cannot, by the path of their unit."""
    unread = pc.is_in(plan.encode["path"], value_set=pa.array(list(plan.unread), pa.string()))
    paths = pc.unique(plan.encode["path"].filter(unread)).to_pylist()
    return plan.encode.filter(pc.invert(unread)), {path: plan.unread[path] for path in paths}


def find_code_files(night: Night, plan: Plan) -> pa.Table:
    """Return the code files (STORED) that a plan wants and that stand in the store already."""
    wanted = plan.encode["code"]
    return _find(night, wanted.filter(_may_stand(night.store, wanted)).to_pylist())


def count_parts(night: Night, units: pa.Table, parent_parts: pa.Table) -> dict[str, int]:
    """Count the parts that the next release shares with the one before it, and the others."""
    reused, missing = _plan_parts(night, units, parent_parts)
    plan_builds(night, missing)
    return {"parts_built": len(missing), "parts_reused": len(reused)}


def build_parts(night: Night, units: pa.Table, parent_parts: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Make the index parts of a release; return its table `parts`, and how many were built and reused.

    Args:
        units: table `units` of the release.
        parent_parts: table `parts` of the release before it.
    """
    reused, missing = _plan_parts(night, units, parent_parts)
    many = len(missing) > 1 and missing.rows >= MANY_ROWS
    missing, at_once = plan_builds(night, missing, at_once=64 if many else 1)
    if many:
        from jobs.nights.actors import join_cluster, map_tasks

        join_cluster(night)
        made = map_tasks(make_part, missing, at_once=at_once, storage=night.store)
    else:
        made = (make_part(part, night.store) for part in missing)
    return parts_table(reused, made), {"parts_built": len(missing), "parts_reused": len(reused)}


def _plan_parts(night: Night, units: pa.Table, parent_parts: pa.Table) -> tuple[pa.Table, PartsPlan]:
    return reuse_parts(plan_release_parts(units, night.index, night.quantisers), parent_parts)


def _may_stand(store: Storage, addresses: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tell of every address whether its code file may stand: one listing where the addresses are many."""
    if len(addresses) <= MANY_FILES:
        return pa.chunked_array([pa.array([True] * len(addresses), pa.bool_())])
    names = (file.path for file in store.files("codes"))
    pages = iter(
        lambda: pa.array(list(itertools.islice(names, 1 << 14)), pa.string()), pa.array([], pa.string())
    )
    listed = pa.chunked_array(list(pages), pa.string())
    return pc.is_in(pc.binary_join_element_wise("codes/", addresses, ".parquet", ""), value_set=listed)


def _units(encode: pa.Table, may_stand: pa.ChunkedArray) -> Iterator[Rows]:
    """Yield the wanted code files of one unit after the other."""
    table = encode.append_column("stands", may_stand)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in table.to_batches(max_chunksize=4096))
    return (list(unit) for _, unit in itertools.groupby(rows, key=_place))


def _place(row: Mapping[str, Any]) -> Place:
    return row["path"], row["first_row_group"]


def _take_batch(encoder: "_Encoder", units: Sequence[Rows], tally: _Tally) -> None:
    """Look which code files of some units stand, and have the others made."""
    if tally.left:  # the limit is reached: what is left is not even looked at
        tally.leave([_place(unit[0]) for unit in units])
        return
    works = _missing(encoder.night, units, tally)
    encoder.progress.stands(len(units) - len(works))
    allowed = 0 if encoder.budget.is_over() else encoder.budget.left(tally.started)
    if allowed is not None and works[allowed:]:
        tally.leave([work.place for work in works[allowed:]])
    _take(encoder, works[:allowed], tally)
    if tally.notebook is not None:
        tally.notebook.write(tally.standing, if_due=True)


def _missing(night: Night, units: Sequence[Rows], tally: _Tally) -> list[UnitWork]:
    """Return the units that lack a code file, and note the files that stand."""
    asked = [row["code"] for unit in units for row in unit if row["stands"]]
    known: set[str] = set()
    if tally.notebook is not None:
        noted = find_noted(tally.notebook.before, asked)
        tally.standing.found(noted)
        known = set(noted["code"].to_pylist())
    found = _find(night, [address for address in asked if address not in known])
    tally.standing.found(found)
    known.update(found["code"].to_pylist())
    lacking = ([row for row in unit if row["code"] not in known] for unit in units)
    return [_work(night, rows) for rows in lacking if rows]


def _work(night: Night, rows: Rows) -> UnitWork:
    files = tuple(
        CodeFileRecipe(
            side=row["side"],
            address=row["code"],
            unit_token=row["unit"],
            fingerprint=night.facts.fingerprints[row["side"]],
            input_recipe=night.recipes[row["side"]],
            code_length=night.facts.code_length,
        )
        for row in rows
    )
    first = rows[0]
    row_groups = (first["first_row_group"], first["last_row_group"])
    return UnitWork(
        SourceFile(first["path"], first["size"], first["token"]),
        files,
        None if row_groups[0] is None else row_groups,
        {row["side"]: row["earlier"] for row in rows if row["earlier"]},
    )


def _find(night: Night, addresses: Sequence[str]) -> pa.Table:
    """Read what stands at some addresses (STORED): a few files here, many in tasks of the cluster."""
    if len(addresses) <= MANY_READS:
        return _find_some(addresses, night.store)
    from jobs.nights.actors import join_cluster, map_tasks

    join_cluster(night)
    groups = [addresses[start : start + READS] for start in range(0, len(addresses), READS)]
    return pa.concat_tables(map_tasks(_find_some, groups, store=night.store))


def _find_some(addresses: Sequence[str], store: Storage) -> pa.Table:
    with ThreadPoolExecutor(REQUESTS) as pool:
        codes = pool.map(lambda address: find_codes(address, store), addresses)
        return stored_table(found for found in codes if found is not None)


def _take(encoder: "_Encoder", works: Sequence[UnitWork], tally: _Tally) -> None:
    """Encode some units, as many at once as may be in flight."""
    groups, opened = encoder.open(works), 0
    for group in groups:
        opened += len(group)
        _take_opened(encoder, group, tally)
        if encoder.budget.is_over():
            break
    if works[opened:]:
        tally.leave([work.place for work in works[opened:]])


def _take_opened(encoder: "_Encoder", opened: Sequence[UnitWork], tally: _Tally) -> None:
    """Encode units whose footers were read, and note what becomes of them."""
    tally.refused |= {work.unit.path: work.error for work in opened if work.error}
    encoder.progress.stands(sum(bool(work.error) for work in opened))
    if not tally.started:
        _check_columns(opened)
    waiting = {work.place for work in opened if not work.error}
    for report in encoder.encode([work for work in opened if not work.error]):
        waiting.remove(report.place)
        tally.started += 1
        if report.error:
            tally.refused[report.unit.path] = report.error
        else:
            tally.standing.made(report)
    if waiting:
        tally.leave(sorted(waiting, key=lambda place: (place[0], place[1] or 0)))


def _check_columns(works: Sequence[UnitWork]) -> None:
    """Raise when not one unit has the columns: then the settings are wrong and not the units."""
    name = SchemaError.__name__ + ": "
    if works and all(work.error.startswith(name) for work in works):
        raise SchemaError(works[0].error.removeprefix(name))


class _Encoder:
    """Encodes batches of units, in this process while the rows are few, else by a cluster from then on."""

    def __init__(self, night: Night, budget: Budget, progress: Progress) -> None:
        self.night, self.budget, self.progress = night, budget, progress
        self.rows = 0  # so far, and still to come of this batch
        self.forgotten = NOTHING_FORGOTTEN
        self.prepared = False

    def open(self, works: Sequence[UnitWork]) -> Iterator[list[UnitWork]]:
        """Read the footers of units; yield those that may be in flight together, in order."""
        config = self.night.config  # decoded rows that go to a GPU cross the object store, a chunk at once
        look = partial(
            open_unit,
            source=self.night.source,
            max_bytes=config.encode.chunk_bytes,
            join=not config.resources.gpu,
        )
        group: list[UnitWork] = []
        rows, limit = 0, config.encode.rows_in_flight
        with ThreadPoolExecutor(REQUESTS) as pool:
            for start in range(0, len(works), OPENED):
                for work in pool.map(look, works[start : start + OPENED]):
                    if rows and rows + work.rows > limit:  # refused ones alone are no group
                        yield group
                        group, rows = [], 0
                    group.append(work)
                    rows += work.rows
        if group:
            yield group

    def encode(self, works: Sequence[UnitWork]) -> Iterator[UnitReport]:
        """Encode units and yield a report of each when its files are written; none of those not started."""
        if works and not self.prepared:
            self.prepared, self.forgotten = True, forgotten_keys(Log(self.night.store))
            self.night.keep_model()
        for work in works:
            if not work.chunks:
                yield self.progress.saw(self._finish(work, []))
        todo = [work for work in works if work.chunks]
        self.rows += sum(work.rows for work in todo)
        if not todo:
            return
        small = self.rows <= FEW_ROWS and not self.night.config.resources.gpu
        yield from map(self.progress.saw, self._here(todo) if small else self._by_actors(todo))

    def _here(self, works: Sequence[UnitWork]) -> Iterator[UnitReport]:
        from pipeline.encoding.rows import EncodeRow, chunk_row, receipt_of

        night, tile = self.night, self.night.config.encode.tile
        encode = EncodeRow(night.facts.digest, night.store, tile=tile, source=night.source)
        for work in works:
            if self.budget.is_over():
                return
            yield self._finish(work, [receipt_of(encode(chunk_row(chunk, work))) for chunk in work.chunks])

    def _by_actors(self, works: Sequence[UnitWork]) -> Iterator[UnitReport]:
        from jobs.nights.actors import encode_units_by_actors, gauges, join_cluster

        join_cluster(self.night)
        self.progress.also = self.progress.also or gauges(self.night.config.run.name)
        yield from encode_units_by_actors(self.night, works, budget=self.budget, forgotten=self.forgotten)

    def _finish(self, work: UnitWork, receipts: list[Any]) -> UnitReport:
        night = self.night
        return finish_unit(work, receipts, source=night.source, store=night.store, forgotten=self.forgotten)
