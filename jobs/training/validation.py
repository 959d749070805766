"""Judge a method while it trains, on pairs kept out: mAP between a quarter of them and the rest."""

from collections.abc import Callable

import numpy as np

from cmh_models.method import HashMethod
from jobs.training.plan import TrainingRun
from pipeline.corpus.cache import Arrays
from pipeline.corpus.dataset import Piece, PieceReader, stacked
from pipeline.corpus.schema import SIDES, Side, sample_ids
from pipeline.encoding.encoder import encode_side
from pipeline.quality.evaluation import CodedPairs, evaluate_codes

MOST_ROWS = 4000
"""Rows looked at: the first ones of the source."""


def validator(plan: TrainingRun) -> Callable[[HashMethod], dict[str, float]] | None:
    """Return the loop's `validate` hook, or None when none is asked for.

    Every rank judges all rows, so that all of them know the same figures.
    """
    if plan.held_out is None:
        return None
    rows = _read(plan)
    order = np.argsort(sample_ids(rows["key"].tolist()), kind="stable")
    quarter = max(1, len(order) // 4)

    def validate(method: HashMethod) -> dict[str, float]:
        codes = {side: encode_side(method, side, _values(rows[side])) for side in SIDES}
        query, retrieval = (_coded(rows, codes, part) for part in (order[:quarter], order[quarter:]))
        return {
            f"validation_{name}": value for name, value in evaluate_codes(query, retrieval).metrics.items()
        }

    return validate


def _read(plan: TrainingRun) -> Arrays:
    """Decode the held-out rows; a row that stands in for a damaged one is left out."""
    assert plan.held_out is not None
    reader = PieceReader(plan.filesystem, plan.recipe, plan.held_out.classes)
    parts, count = [], 0
    for chunk in plan.held_out.chunks:
        if count < MOST_ROWS:
            parts.append(reader(Piece(chunk, np.arange(chunk.rows))).arrays)
            count += chunk.rows
    if count < 2:
        share = plan.config.data.split.validation
        raise ValueError(f"{count} pairs are held out: data.split.validation of {share} is too small a share")
    rows = stacked(parts)
    _, first = np.unique(rows["key"].astype(str), return_index=True)
    return {name: values[np.sort(first)] for name, values in rows.items()}


def _values(values: np.ndarray) -> object:
    return values.tolist() if values.dtype == object else values


def _coded(rows: Arrays, codes: dict[Side, np.ndarray], part: np.ndarray) -> CodedPairs:
    keys = rows["key"][part].tolist()
    labels = [np.flatnonzero(row) for row in rows["labels"][part]]
    return CodedPairs(
        keys, sample_ids(keys), labels, {str(side): packed[part] for side, packed in codes.items()}
    )
