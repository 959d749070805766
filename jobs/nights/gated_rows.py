"""What a gate encodes again: rows whose codes a night takes over, in whole units and in changed ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.nights.gated_parts import Candidate
from jobs.nights.night import Night
from pipeline.corpus.schema import Side
from pipeline.encoding.codefile import CodeFileRecipe
from pipeline.encoding.decoding import Receipt
from pipeline.encoding.rows import EncodeRow, Row, chunk_row, receipt_of
from pipeline.encoding.units import UnitWork, open_unit
from pipeline.releases.addresses import code_path
from pipeline.releases.manifest import code_file
from pipeline.releases.storage import SourceFile

Unit = Mapping[str, Any]
"""A row of the table `units`; of a changed one with `earlier`, the code file that lent it rows."""

CHUNK_BYTES = 4 << 20
"""Decoded bytes of the rows of one unit that are encoded again."""


def encode_again(candidate: Candidate, side: Side, *, rng: np.random.Generator) -> tuple[int, int]:
    """Encode some reused rows of a side again; return the bits that differ, and how many rows there were.

    Half the units are taken over whole, half have changed and took over rows. A row that has no code any more
    differs in all its bits. A unit that has changed since it was listed is passed over.
    """
    works = []
    for unit in [*_taken_over(candidate, side, rng), *_changed(candidate, side, rng)]:
        work = _open(candidate.night, unit, side)
        if work.chunks:
            works.append((unit, chunk_row(work.chunks[rng.integers(len(work.chunks))], work)))
    flips = rows = 0
    receipts = _receipts(candidate.night, [row for _, row in works])
    for (unit, _), receipt in zip(works, receipts, strict=True):
        if not receipt.error:
            differing = _compare(candidate.night, unit, receipt, side=side)
            flips, rows = flips + sum(differing), rows + len(differing)
    return flips, rows


def _taken_over(candidate: Candidate, side: Side, rng: np.random.Generator) -> list[Unit]:
    """Return a few units of a side whose code files are those of an earlier night."""
    return _drawn(candidate, candidate.plan.reuse, side, rng=rng)


def _changed(candidate: Candidate, side: Side, rng: np.random.Generator) -> list[Unit]:
    """Return a few units of a side that were encoded anew, with the code file that lent them rows."""
    encode, units = candidate.plan.encode, candidate.tables["units"]
    lent = encode.filter(pc.and_(pc.equal(encode["side"], side), pc.is_valid(encode["earlier"])))
    made = units.filter(pc.is_in(units["code"], value_set=lent["code"]))
    found = pc.index_in(made["code"], value_set=lent["code"])
    return _drawn(candidate, made.append_column("earlier", lent["earlier"].take(found)), side, rng=rng)


def _drawn(candidate: Candidate, units: pa.Table, side: Side, *, rng: np.random.Generator) -> list[Unit]:
    mine = units.filter(pc.and_(pc.equal(units["side"], side), pc.greater(units["encoded"], 0)))
    return mine.take(pa.array(rng.permutation(len(mine))[: candidate.limits.reused_units])).to_pylist()


def _open(night: Night, unit: Unit, side: Side) -> UnitWork:
    """Cut a unit into small chunks; one that cannot be read, or that has changed, has none."""
    recipe = CodeFileRecipe(
        side=side,
        address=unit["code"],
        unit_token=unit["unit"],
        fingerprint=night.facts.fingerprints[side],
        input_recipe=night.recipes[side],
        code_length=night.facts.code_length,
    )
    ranged = unit["first_row_group"] is not None
    groups = (unit["first_row_group"], unit["last_row_group"]) if ranged else None
    work = UnitWork(SourceFile(unit["path"], unit["size"], unit["token"]), (recipe,), groups)
    return open_unit(work, night.source, max_bytes=CHUNK_BYTES)


def _receipts(night: Night, rows: Sequence[Row]) -> Iterator[Receipt]:
    """Encode rows where the night has encoded them: here, or on a GPU of the cluster."""
    if not rows:
        return
    if night.config.resources.gpu:
        import ray

        from jobs.nights.actors import join_cluster

        join_cluster(night)  # a night that only lost units has not done so yet
        answers = ray.get(ray.remote(num_gpus=1, num_cpus=1)(_encode).remote(night, rows))
    else:
        answers = _encode(night, rows)
    yield from (receipt_of(answer) for answer in answers)


def _encode(night: Night, rows: Sequence[Row]) -> list[Row]:
    encode = EncodeRow(
        night.facts.digest,
        night.store,
        tile=night.config.encode.tile,
        gpu=night.config.resources.gpu,
        source=night.source,
    )
    return [encode(row) for row in rows]


def _compare(night: Night, unit: Unit, receipt: Receipt, *, side: Side) -> list[int]:
    """Return, for each row of a chunk that was taken over, the bits in which its code differs today."""
    stored = _rows(night, code_file(unit), ["row", "code", "content_hash"])
    if earlier := unit.get("earlier"):
        known = _rows(night, earlier, ["content_hash"])["content_hash"]
        stored = stored.filter(pc.is_in(stored["content_hash"], value_set=known))
    first, stop = receipt.chunk.start, receipt.chunk.stop
    stored = stored.filter(pc.and_(pc.greater_equal(stored["row"], first), pc.less(stored["row"], stop)))
    encoded = receipt.sides[side]
    now = dict(zip(encoded.rows.tolist(), encoded.codes, strict=True))
    differing = []
    for row in stored.to_pylist():
        before = np.frombuffer(row["code"], np.uint8)
        same = row["row"] in now
        differing.append(int(np.bitwise_count(now[row["row"]] ^ before).sum()) if same else 8 * len(before))
    return differing


def _rows(night: Night, address: str, columns: list[str]) -> pa.Table:
    return pq.read_table(pa.BufferReader(night.store.read(code_path(address))), columns=columns)
