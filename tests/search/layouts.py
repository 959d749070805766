"""The same rows laid out in parts of every kind, for tests whose claim is that the layout changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import faiss
import numpy as np
import pyarrow as pa

from pipeline.search.indexing import build_part
from pipeline.search.order import Nearest, Within
from pipeline.search.parts import Part, mended
from pipeline.search.quantisers import Quantiser
from tests.search.stores import code_table, sample_id

Hit = tuple[int, int, str]


@dataclass(frozen=True)
class Rows:
    """A corpus: keys, codes, and ids that are those of the keys unless others are given."""

    codes: np.ndarray
    keys: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, codes: np.ndarray) -> "Rows":
        keys = [f"key {row}" for row in range(len(codes))]
        return cls(codes, keys, [sample_id(key) for key in keys])


def lay_out(
    rows: Rows, *, parts: int, seed: int, recipe: str = "BFlat", quantiser: Quantiser | None = None
) -> list[Part]:
    """Deal the rows out to units in a drawn order, and the units to parts."""
    order = np.random.default_rng(seed).permutation(len(rows.keys))
    tables: list[dict[str, pa.Table]] = [{} for _ in range(parts)]
    for number in range(2 * parts):
        mine = order[number :: 2 * parts]
        tables[number % parts][f"u{seed}-{number}"] = code_table(
            [rows.keys[row] for row in mine],
            size=rows.codes.shape[1],
            ids=[rows.ids[row] for row in mine],
            codes=rows.codes[mine],
        )
    return [open_built(part, recipe=recipe, quantiser=quantiser) for part in tables]


def open_built(
    tables: dict[str, pa.Table], *, recipe: str = "BFlat", quantiser: Quantiser | None = None
) -> Part:
    files = build_part(tables, recipe=recipe, quantiser=quantiser)
    index = faiss.deserialize_index_binary(np.frombuffer(files.index, np.uint8))
    return Part(mended(index), pa.ipc.open_file(files.keys).read_all())


def hits(parts: Sequence[Part], found: Nearest) -> list[list[Hit]]:
    """Return what was found as (distance, id, key), line by line; nothing for what was not."""
    lines = zip(found.distances, found.ids, found.part, found.row, strict=True)
    return [_line(parts, *line) for line in lines]


def ranges(parts: Sequence[Part], found: Within) -> list[list[Hit]]:
    columns = (found.distances, found.ids, found.part, found.row)
    limits = zip(found.limits, found.limits[1:], strict=False)
    return [_line(parts, *(column[start:stop] for column in columns)) for start, stop in limits]


def _line(parts: Sequence[Part], *columns: np.ndarray) -> list[Hit]:
    return [
        (int(distance), int(id_), parts[part].keys["key"][int(row)].as_py())
        for distance, id_, part, row in zip(*columns, strict=True)
        if part >= 0
    ]
