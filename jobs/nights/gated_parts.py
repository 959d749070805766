"""What a gate asks of index parts, opened as a reader opens them, and the truth from the code files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.nights.night import Night, Parent
from pipeline.codes import hamming
from pipeline.corpus.schema import Side
from pipeline.quality.gate import GateConfig, PartSample
from pipeline.releases.addresses import code_path, digest_json
from pipeline.releases.forgetting import Forgotten
from pipeline.releases.locating import read_keys, unit_name
from pipeline.releases.manifest import code_file
from pipeline.releases.planning import Plan
from pipeline.releases.storage import cache_folder
from pipeline.search.approximate import search
from pipeline.search.families import Effort
from pipeline.search.partfiles import code_matrix
from pipeline.search.parts import PartsOpening, open_part
from pipeline.search.quantisers import open_quantiser

HEALTH_ROWS = 1 << 16
"""So many codes are looked at bit by bit, at most."""
HEALTH_LEAST = 1 << 12
"""So many, where a side has them: of a few small parts alone most bits may be constant."""
_BLOCK = 1 << 14
_FLIPPED = 0.1  # share of the bits in which a query differs from the stored code that it is made of


@dataclass(frozen=True)
class Candidate:
    """What a night would publish, beside what stands."""

    night: Night
    plan: Plan
    parent: Parent
    tables: Mapping[str, pa.Table]

    @property
    def limits(self) -> GateConfig:
        return self.night.config.section("gate", GateConfig)

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.night.source.sides

    def rng(self) -> np.random.Generator:
        """Return the draws of this candidate: the same ones whenever it is tried."""
        return np.random.default_rng(int(digest_json(self.tables["parts"]["part"].to_pylist()), 16))


def search_parts(
    candidate: Candidate, side: str, *, rng: np.random.Generator, forgotten: Forgotten
) -> tuple[list[PartSample], np.ndarray]:
    """Ask a few parts of a side; return what they found, and codes to look at bit by bit."""
    samples: list[PartSample] = []
    codes = [np.empty((0, candidate.night.facts.code_length // 8), np.uint8)]
    for row in _parts_in_turn(candidate, side, rng):
        asked = len(samples) == candidate.limits.parts
        if asked and sum(map(len, codes)) >= HEALTH_LEAST:
            break
        keys, stored = _stored_codes(candidate, side, row)
        codes.append(stored)
        if not asked:
            samples.append(_ask(candidate, row, rng=rng, keys=keys, codes=stored, forgotten=forgotten))
    together = np.concatenate(codes)
    return samples, together[rng.permutation(len(together))[:HEALTH_ROWS]]


def _parts_in_turn(candidate: Candidate, side: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the parts of a side, those first that the parent release does not have."""
    parts = candidate.tables["parts"]
    mine = parts.filter(pc.and_(pc.equal(parts["side"], side), pc.greater(parts["rows"], 0)))
    known = pc.is_in(mine["part"], value_set=candidate.parent.parts["part"]).to_numpy()
    order = rng.permutation(len(mine))
    for number in order[np.argsort(known[order], kind="stable")]:
        yield mine.slice(number, 1).to_pylist()[0]


def _stored_codes(
    candidate: Candidate, side: str, row: Mapping[str, Any]
) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Read keys and codes of a part from the code files that it was built from."""
    store, units = candidate.night.store, candidate.tables["units"]
    named = set(pc.unique(read_keys(store, row["part"])["unit"]).to_pylist())
    paths = named | {name.rpartition("[")[0] for name in named}  # ranges have row groups behind it
    mine = pc.and_(
        pc.equal(units["side"], side), pc.is_in(units["path"], value_set=pa.array(sorted(paths), pa.string()))
    )
    tables = [
        pq.read_table(pa.BufferReader(store.read(code_path(code_file(unit)))), columns=["key", "code"])
        for unit in units.filter(mine).to_pylist()
        if unit["encoded"] and unit_name(unit) in named
    ]
    rows = pa.concat_tables(tables)
    return rows["key"], code_matrix(rows["code"], rows["code"].type.byte_width)


def _ask(
    candidate: Candidate,
    row: Mapping[str, Any],
    *,
    rng: np.random.Generator,
    keys: pa.ChunkedArray,
    codes: np.ndarray,
    forgotten: Forgotten,
) -> PartSample:
    """Ask one part for codes near stored ones, and for stored ones."""
    night, limits = candidate.night, candidate.limits
    recipe = night.release_recipe
    family = recipe.index.get("recipe", "BFlat")
    opening = PartsOpening(night.facts.code_length, cache_folder("parts"), family)
    part = open_part(night.store, row, opening)
    quantiser = recipe.quantisers.get(row["side"])
    opened = open_quantiser(quantiser, night.store) if quantiser else None
    known = {name: recipe.index[name] for name in Effort.__dataclass_fields__ if name in recipe.index}
    k = min(limits.k, part.rows)
    chosen = rng.permutation(len(codes))[: limits.queries]
    own = codes[chosen]
    noise = np.packbits(rng.random((len(own), 8 * own.shape[1])) < _FLIPPED, axis=1)
    asked = np.concatenate([own ^ noise, own])
    found = search([part], asked, k, effort=Effort(**known), quantiser=opened)
    distances, rows = found.distances[len(own) :], found.row[len(own) :]
    wanted = keys.take(pa.array(chosen)).to_pylist()
    own_found = [
        _is_found(
            wanted[n], distances[n], part.keys["key"].take(pa.array(np.maximum(rows[n], 0))).to_pylist()
        )
        for n in range(len(own))
        if wanted[n] not in forgotten
    ]
    return PartSample(found.distances[: len(own)], _nearest(own ^ noise, codes, k), np.array(own_found, bool))


def _is_found(key: str, distances: np.ndarray, keys: Sequence[str]) -> bool:
    """Tell whether a stored code came back under its key, or as many others with the same code did."""
    at_zero = distances == 0
    return bool(at_zero.all()) or any(one == key for one, hit in zip(keys, at_zero, strict=True) if hit)


def _nearest(queries: np.ndarray, codes: np.ndarray, k: int) -> np.ndarray:
    """Return the (Q, k) distances of the nearest codes, by looking at every one."""
    nearest = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(codes), _BLOCK):
        block = np.concatenate([nearest, hamming(queries, codes[start : start + _BLOCK])], axis=1)
        nearest = np.partition(block, k - 1, axis=1)[:, :k] if block.shape[1] > k else block
    return np.sort(nearest, axis=1)
