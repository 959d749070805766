"""The data sets of the benchmark as its cells read them: whole, or train alone with validation rows marked.

Pictures can be described once and for all: the view then holds the descriptor's features in their place, and
a `descriptor` tower becomes a `features` tower of the same layers. Views are made once, named by a digest of
all that went into them.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmh_models import build_method
from cmh_models.descriptor import DESCRIPTOR_VERSION
from cmh_models.towers import DescriptorTower
from jobs.config import Config
from jobs.source import source_digest
from pipeline.corpus.decode import decode_pairs
from pipeline.corpus.schema import Columns, resolve_columns
from pipeline.encoding.baselines import describe_pairs
from pipeline.encoding.models import input_recipe
from pipeline.releases.addresses import digest_json

VALIDATION_SHARE = 0.15
VALIDATION = "validation"
DESCRIBED_BY = {"image_size", "cells"}
"""Settings of a `descriptor` tower that decide the description; the others go with the layers upon it."""

GROUPS: dict[str, tuple[str, Callable[[str], str]]] = {
    "icons": ("id", lambda name: name.partition("-")[0]),  # the first word: never finer than the base icon
    "fashion": ("text", str),
}
"""Sets in which rows are siblings: a column, and what siblings have in common of its value."""
_VIEW_VERSION = 2


@dataclass(frozen=True)
class DataSet:
    """A folder of Parquet files under the root of `--data`, and the digest of their bytes."""

    name: str
    files: tuple[Path, ...]
    digest: str

    @classmethod
    def open(cls, root: Path, name: str) -> "DataSet":
        """Find a set and digest its files.

        Raises:
            ValueError: there is no such folder, or no Parquet file in it.
        """
        files = tuple(sorted((root / name).glob("*.parquet")))
        if not files:
            known = sorted(folder.parent.name for folder in root.glob("*/*.parquet")) if root.is_dir() else []
            there = ", ".join(dict.fromkeys(known)) or "none"
            raise ValueError(
                f"--data {root} has no set {name!r} (a folder of .parquet files); found: {there}"
            )
        return cls(name, files, source_digest(str(root / name)))


@dataclass(frozen=True)
class View:
    """What a cell reads: a folder, and settings that go with it."""

    folder: Path
    settings: tuple[str, ...] = ()


def open_view(data: DataSet, config: Config, *, fold: int | None, described: bool, cache: Path) -> View:
    """Return the rows that a cell reads, made anew where they are not cached.

    Args:
        fold: which draw of validation rows to split off train, query and database rows being left out;
            None gives the set as it is.
        described: pictures described once and for all, where the recipe's tower allows it.
        cache: folder of all views.
    """
    image = dict(config.towers.get("image", {}))
    description = description_of(config) if described else None
    settings: tuple[str, ...] = ()
    folder, name = data.files[0].parent, digest_json([_VIEW_VERSION, data.digest])
    if description is not None:
        tower = {key: value for key, value in image.items() if key not in ("name", *DESCRIBED_BY)}
        name = digest_json([_VIEW_VERSION, data.digest, DESCRIPTOR_VERSION, description])
        folder = _made(cache / name, lambda made: _describe(data.files, config, made))
        config_of_tower = ", ".join(f"{key}: {value}" for key, value in tower.items())
        settings = (f"towers.image={{name: features{', ' if tower else ''}{config_of_tower}}}",)
    if fold is not None:
        files = sorted(folder.glob("*.parquet"))
        target = cache / digest_json([name, data.name, VALIDATION, VALIDATION_SHARE, fold])
        folder = _made(target, lambda made: _split_off(files, sibling_groups(data), fold, made))
        settings += (f"data.split.query=[{VALIDATION}]", "data.split.retrieval=[train]")
    return View(folder, settings)


def description_of(config: Config) -> dict[str, Any] | None:
    """Return how a recipe describes pictures, defaults left out; None where its tower is no descriptor."""
    image = dict(config.towers.get("image", {}))
    if image.get("name") != "descriptor":
        return None
    settings = DescriptorTower.model_validate(image)
    return settings.model_dump(mode="json", include=DESCRIBED_BY, exclude_defaults=True)


def sibling_groups(data: DataSet) -> dict[str, str]:
    """Return what each row has in common with its siblings, by key; empty where rows stand alone."""
    if data.name not in GROUPS:
        return {}
    column, common = GROUPS[data.name]
    groups: dict[str, str] = {}
    for file in data.files:
        key = resolve_columns(pq.read_schema(file), Columns(), where=str(file)).key
        table = pq.read_table(file, columns=list({key, column}))
        values = [common(str(value)) for value in table[column].to_pylist()]
        groups |= dict(zip(map(str, table[key].to_pylist()), values, strict=True))
    return groups


def in_fold(group: str, fold: int) -> bool:
    """Tell whether rows of a group are validation rows of a draw."""
    drawn = hashlib.blake2b(f"{fold}/{group}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") < VALIDATION_SHARE * 2**64


def _split_off(files: list[Path], groups: Mapping[str, str], fold: int, folder: Path) -> None:
    """Keep the train rows only, some of them marked as validation rows."""
    for file in files:
        table = pq.read_table(file)
        columns = resolve_columns(table.schema, Columns(), where=str(file))
        if columns.split is None:
            raise ValueError(f"{file}: no column 'split': nothing says which rows are train")
        table = table.filter(pc.equal(table[columns.split].cast(pa.string()), "train"))
        keys = [str(key) for key in table[columns.key].to_pylist()]
        split = [VALIDATION if in_fold(groups.get(key, key), fold) else "train" for key in keys]
        at = table.schema.get_field_index(columns.split)
        pq.write_table(table.set_column(at, columns.split, pa.array(split)), folder / file.name)


def _describe(files: tuple[Path, ...], config: Config, folder: Path) -> None:
    """Write each file with descriptors in place of its pictures; row groups stay as they are."""
    # Any method describes alike: before it has seen a row its scaling leaves features as they are.
    method = build_method({"name": "jdsh", "code_length": 8}, {"image": config.towers["image"]})
    recipe = input_recipe(method, config.data.columns, config.data.limits)
    for file in files:
        source = pq.ParquetFile(file)
        columns = resolve_columns(source.schema_arrow, config.data.columns, where=str(file))
        writer: pq.ParquetWriter | None = None
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            pairs = decode_pairs(table, columns, recipe)
            if len(pairs.rows) != table.num_rows:
                raise ValueError(f"{file}: row group {group}: pictures that do not decode: {pairs.dropped}")
            described = np.ascontiguousarray(describe_pairs(method, pairs)["image"], np.float32)
            features = pa.FixedSizeListArray.from_arrays(pa.array(described.ravel()), described.shape[1])
            place = table.schema.get_field_index(columns.image.name if columns.image else "image")
            table = table.set_column(place, "image_features", features)
            writer = writer or pq.ParquetWriter(folder / file.name, table.schema)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        if writer is not None:
            writer.close()


def _made(target: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder under a temporary name and move it to its place, unless it is there."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as temporary:
        made = Path(temporary) / "view"
        made.mkdir()
        make(made)
        try:
            made.rename(target)
        except OSError:  # another process was first
            if not os.path.isdir(target):  # noqa: PTH112
                raise
    return target
