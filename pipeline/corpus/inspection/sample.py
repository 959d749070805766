"""A sample of a source's rows, decoded as training and encoding would, and what that costs on one core."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.decode import DecodedSide, decode_table
from pipeline.corpus.inspection.layout import Layout, OpenFile
from pipeline.corpus.readers import FloatRows, read_keys, read_labels
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import SIDES, ColumnMap, Side

WHOLE_GROUP_BYTES = 64 << 20
"""A row group up to this is read whole; of a larger one only the rows from its start."""
SPOTS = 20


@dataclass(frozen=True)
class Spot:
    """Some neighbouring rows of one row group."""

    path: str
    group: int
    offset: int  # rows before them in the row group
    count: int
    first_row: int  # of them, in the file
    whole: bool  # the row group is small enough to be read whole


@dataclass
class SampledRow:
    """One row as the sheet shows it."""

    path: str
    row: int
    key: str
    image: Any = None  # (S, S, 3) uint8 | (D,) float32 | None
    text: Any = None  # str | (D,) float32 | None
    labels: list[int] | None = None
    passthrough: dict[str, str] = field(default_factory=dict)
    faults: dict[Side, str] = field(default_factory=dict)


@dataclass
class Trial:
    """One side of the sample: what became of its rows and how long it took on one core."""

    read: int = 0
    absent: int = 0
    decoded: int = 0
    seconds: float = 0.0
    rejects: Counter[str] = field(default_factory=Counter)
    values: list[Any] = field(default_factory=list)  # decoded, in pieces

    def together(self) -> Any:
        """Return the decoded values as one array, or one list of texts."""
        pieces = [piece for piece in self.values if len(piece)]
        if pieces and isinstance(pieces[0], np.ndarray):
            return np.concatenate(pieces)
        return [text for piece in pieces for text in piece]


@dataclass
class Sample:
    """Rows from all over a source, decoded."""

    trials: dict[Side, Trial]
    rows: list[SampledRow] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    rows_read: int = 0  # from storage, to get at the rows of the sample
    read_seconds: float = 0.0


def plan_spots(layout: Layout, rows: int, *, spots: int = SPOTS) -> list[Spot]:
    """Choose `rows` rows in up to `spots` places that are spread evenly over a source; none twice."""
    groups = [group for group in layout.groups() if group[2]]
    total = sum(count for _, _, count, _ in groups)
    if not total:
        return []
    wanted = min(rows, total)
    places = min(spots, wanted)
    starts = [total * i // places for i in range(places)]
    counts = [wanted * (i + 1) // places - wanted * i // places for i in range(places)]
    ends = [
        min(start + count, after)
        for start, count, after in zip(starts, counts, [*starts[1:], total], strict=True)
    ]
    planned, passed, rows_before = [], 0, Counter[str]()
    for footer, number, count, stored in groups:
        for start, end in zip(starts, ends, strict=True):
            first, last = max(start, passed), min(end, passed + count)
            if first < last:
                whole = stored <= WHOLE_GROUP_BYTES
                offset = first - passed if whole else 0
                first_row = rows_before[footer.path] + offset
                planned.append(Spot(footer.path, number, offset, last - first, first_row, whole))
        passed += count
        rows_before[footer.path] += count
    return planned


def draw_sample(
    layout: Layout, open_file: OpenFile, recipe: InputRecipe, *, rows: int = 500, shown: int = 200
) -> Sample:
    """Read and decode rows from all over a source, each side timed for itself.

    Args:
        recipe: how rows are decoded; widths of features that the schema leaves open are taken from the rows.
        shown: rows to keep with their values.
    """
    columns = layout.columns
    sides = [side for side in SIDES if columns.side(side) is not None]
    sample = Sample({side: Trial() for side in sides})
    spots = plan_spots(layout, rows)
    share = shown / max(sum(spot.count for spot in spots), 1)
    for spot in spots:
        try:
            table = _read(spot, open_file, columns, sample)
        except Exception as error:  # a page can be broken where the footer is not
            sample.faults.append(f"{spot.path}: row group {spot.group}: {' '.join(str(error).split())}")
            continue
        recipe = _with_widths(table, columns, recipe)
        decoded = {side: _decode(table, columns, recipe, side, spot, sample.trials[side]) for side in sides}
        sample.rows += _show(table, columns, decoded, spot, max(1, round(share * table.num_rows)))
    del sample.rows[shown:]
    return sample


def _read(spot: Spot, open_file: OpenFile, columns: ColumnMap, sample: Sample) -> pa.Table:
    names = columns.names(extras=True)
    started = time.perf_counter()
    with open_file(spot.path) as file:
        if spot.whole:
            table = file.read_row_group(spot.group, columns=names, use_threads=False)
        else:
            batches = file.iter_batches(
                batch_size=spot.count, row_groups=[spot.group], columns=names, use_threads=False
            )
            table = pa.Table.from_batches([next(batches)])
    sample.read_seconds += time.perf_counter() - started
    sample.rows_read += table.num_rows
    return table.slice(spot.offset, spot.count)


def _with_widths(table: pa.Table, columns: ColumnMap, recipe: InputRecipe) -> InputRecipe:
    """Fill in the width of feature lists from the first row that has one."""
    widths = {}
    for side in SIDES:
        column = columns.side(side)
        if column is None or column.kind != "features" or getattr(recipe, f"{side}_width") or column.width:
            continue
        lengths = FloatRows(table.column(column.name)).lengths
        if (lengths > 0).any():
            widths[f"{side}_width"] = int(lengths[lengths > 0][0])
    return recipe.model_copy(update=widths) if widths else recipe


def _decode(
    table: pa.Table, columns: ColumnMap, recipe: InputRecipe, side: Side, spot: Spot, trial: Trial
) -> DecodedSide:
    if trial.read == 0:  # the first picture loads its parsers
        decode_table(table.slice(0, 1), columns, recipe, sides=(side,))
    started = time.perf_counter()
    decoded = decode_table(table, columns, recipe, sides=(side,), first_row=spot.first_row)[side]
    trial.seconds += time.perf_counter() - started
    trial.read += decoded.read
    trial.absent += decoded.absent
    trial.decoded += len(decoded.rows)
    trial.rejects.update(reject.reason for reject in decoded.rejects)
    trial.values.append(decoded.values)
    return decoded


def _show(
    table: pa.Table, columns: ColumnMap, decoded: dict[Side, DecodedSide], spot: Spot, count: int
) -> list[SampledRow]:
    """Return the first rows of a spot with what was decoded of them."""
    head = table.slice(0, count)
    keys = read_keys(head.column(columns.key))
    labels = read_labels(head.column(columns.labels)) if columns.labels else None
    rows = []
    for i, key in enumerate(keys):
        row = SampledRow(spot.path, spot.first_row + i, key or "")
        row.labels = None if labels is None else labels[i].tolist()
        row.passthrough = {name: str(head.column(name)[i].as_py()) for name in columns.passthrough}
        rows.append(row)
    for side, values in decoded.items():
        for place, number in enumerate(values.rows.tolist()):
            if number - spot.first_row < len(rows):
                setattr(rows[number - spot.first_row], side, values.values[place])
        for reject in values.rejects:
            if reject.row - spot.first_row < len(rows):
                rows[reject.row - spot.first_row].faults[side] = f"{reject.reason}: {reject.error}"
    return rows
