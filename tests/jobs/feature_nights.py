"""Nights over small units of features and words, which the driver encodes itself in milliseconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmh_models.artefact import save_pretrained
from tests.encoding.sources import FEATURES, tiny_method
from tests.jobs.nights import settings


def write_model(folder: Path) -> Path:
    """Write the model of these nights."""
    save_pretrained(tiny_method(FEATURES), folder, card={})
    return folder


def write_unit(path: Path, rows: Sequence[int], *, row_group_size: int = 1000) -> Path:
    """Write a unit whose row n is a pure function of n: key, features, words."""
    features = [np.random.default_rng(n).normal(size=3).astype(np.float32).tolist() for n in rows]
    table = pa.table(
        {
            "key": pa.array([f"k{n}" for n in rows], pa.string()),
            "image_features": pa.array(features, pa.list_(pa.float32(), 3)),
            "text": pa.array([f"words of row {n} and {n % 7}" for n in rows], pa.string()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def feature_settings(folder: Path, *others: str, source: str = "source", store: str = "store") -> list[str]:
    """Return the overrides of a night in a folder with `source` and `model`."""
    return settings(
        folder / source,
        folder / store,
        folder / "model",
        f"run.dir={folder / 'runs'}",
        "encode.max_reject_fraction=1",
        *others,
    )
