"""One cell of the benchmark's table: a method on a set at a code length with a seed, trained and judged here.

A cell is a JSON file named by all that its numbers depend on: the recipe, the data, the seed and the code.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmh_models import METHODS
from cmh_models.method import SIDES, HashMethod
from cmh_models.towers import TowersConfig
from jobs.config import Config, load_config
from jobs.judging.cell_baselines import BASELINES, judge_baseline
from jobs.judging.cell_data import DataSet, description_of, open_view, sibling_groups
from jobs.judging.code_version import code_commit, code_version, files_version
from jobs.judging.sets import EncodedSet, check_sets, encode_sets
from jobs.source import source_uri
from jobs.training.plan import plan_run
from jobs.training.pretrained import start_from_pretrained
from pipeline.codes import pack
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.corpus.decode import Pairs
from pipeline.encoding.encoder import relaxed_codes
from pipeline.encoding.models import input_recipe
from pipeline.learning.engine import LocalEngine, local_device
from pipeline.learning.training import fit
from pipeline.quality.evaluation import Evaluation, evaluate_relaxed_codes
from pipeline.quality.protocol import Coding
from pipeline.releases.addresses import digest_bytes, digest_json
from pipeline.releases.storage import Storage

EPOCH_RULE = "as many as the recipe says, chosen on validation rows split off train; the last is taken"
NO_EPOCHS = "none: fitted in closed form or by a fixed number of rounds"
_JUDGING = ("pipeline/quality/metrics.py", "pipeline/quality/evaluation.py", "jobs/judging/cells.py")
_TRAINED_PART = ("hidden", "dropout", "pair_buckets", "trained_on", "channels")
_BASELINES = ("pipeline/quality/baselines.py", "jobs/judging/cell_baselines.py")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What holds for every cell of a call."""

    data: Path
    out: Path
    recipes: Path
    overrides: tuple[str, ...] = ()
    fold: int | None = None  # draw of validation rows; None judges the query rows
    described: bool = True  # pictures of descriptor towers once and for all, not in every step
    any_code: bool = False  # take a cell as it stands though the code has changed since


@dataclass(frozen=True)
class Cell:
    """A method on a set at a code length with a seed."""

    data: DataSet
    method: str
    bits: int
    seed: int

    @property
    def file_name(self) -> str:
        """The beginning of the names of its files."""
        return f"{self.data.name}_{self.method}_{self.bits}_{self.seed}"

    def __str__(self) -> str:
        return f"{self.data.name} {self.method} {self.bits} seed {self.seed}"


def run_cell(cell: Cell, asked: Asked) -> dict[str, Any]:
    """Return the record of a cell: from its file where it stands, else trained, judged and kept.

    Raises:
        ValueError: there is no recipe for it, or the recipe does not fit the data.
    """
    config = cell_config(cell, asked)
    identity, key = cell_keys(cell, config, asked)
    if (known := _known(cell, asked, identity=identity, key=key)) is not None:
        return known
    started = time.monotonic()
    record: dict[str, Any] = {
        "key": key,
        "identity": identity,
        "commit": code_commit(),
        "data": cell.data.name,
        "method": cell.method,
        "bits": cell.bits,
        "seed": cell.seed,
        "fold": asked.fold,
        "recipe": digest_json(settings_of(config, baseline=cell.method in BASELINES)),
    }
    try:
        judged, facts = judge_cell(cell, config)
    except LookupError as error:
        judged, facts = {}, {"absent": str(error)}
    for coding, evaluation in judged.items():
        record[coding] = {
            "metrics": evaluation.metrics,
            "ties": evaluation.ties,
            "protocol": evaluation.with_protocol(**known_of(cell, config, facts)).protocol.as_json(),
        }
    record |= facts | {"seconds": round(time.monotonic() - started, 2)}
    kept = json.dumps(record, indent=1).encode()
    Storage(asked.out).write(f"cells/{cell.file_name}_{key[:12]}.json", kept)
    return record


def is_done(cell: Cell, asked: Asked) -> bool:
    """Tell whether a cell's record stands."""
    identity, key = cell_keys(cell, cell_config(cell, asked), asked)
    return _known(cell, asked, identity=identity, key=key) is not None


def judge_cell(cell: Cell, config: Config) -> tuple[dict[Coding, Evaluation], dict[str, Any]]:
    """Train a cell's method or fit its baseline, and judge it under both codings."""
    if cell.method in BASELINES:
        return judge_baseline(cell.method, config, bits=cell.bits, groups=sibling_groups(cell.data))
    return learn(config)


def known_of(cell: Cell, config: Config, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what only the cell knows of the protocol of its numbers."""
    split = config.data.split
    return {
        "data": cell.data.name,
        "data_digest": cell.data.digest,
        "seed": cell.seed,
        "split": {"train": split.train, "query": split.query, "retrieval": split.retrieval},
        "epochs": NO_EPOCHS if cell.method in BASELINES else EPOCH_RULE,
        "code_length": facts.get("code_length", cell.bits),
    }


def cell_config(cell: Cell, asked: Asked) -> Config:
    """Return the settings of a cell: its recipe, and this call's own on top."""
    recipe = _recipe(cell, asked)
    own = (f"run.seed={cell.seed}", f"run.dir={asked.out}", "run.name=cell", "resources.workers=0")
    quiet = ("train.checkpoint_every_epochs=0", "train.validate_every_epochs=0")
    settings = [*own, *quiet, f"method.code_length={cell.bits}", *asked.overrides]
    config = load_config(str(recipe), settings, {})
    view = open_view(cell.data, config, fold=asked.fold, described=asked.described, cache=asked.out / "data")
    return load_config(str(recipe), [*settings, f"data.path={view.folder}", *view.settings], {})


def _recipe(cell: Cell, asked: Asked) -> Path:
    """Return the recipe of a cell.

    A baseline starts from the features of a method that learns from the same: ridge, which sees labels, from
    those of DSCMH, the others from those of JDSH; where there is no such recipe, from those of any method.
    """
    alike = "dscmh" if cell.method == "ridge" else "jdsh"
    names = sorted(METHODS, key=alike.__ne__) if cell.method in BASELINES else [cell.method]
    files = [asked.recipes / f"{cell.data.name}_{name}_{cell.bits}.yaml" for name in names]
    for file in files:
        if file.is_file():
            return file
    raise ValueError(f"{cell}: no recipe {files[0].name} in {asked.recipes}; see --recipes")


def cell_keys(cell: Cell, config: Config, asked: Asked) -> tuple[str, str]:
    """Return the digest of what a cell was asked for, and that of it and the code that makes its numbers."""
    facts = {
        "settings": settings_of(config, baseline=cell.method in BASELINES),
        "method": cell.method,
        "data": cell.data.digest,
        "fold": asked.fold,
        "seed": cell.seed,
    }
    # Pictures that were described beforehand come as features: how, no setting of their tower tells any more.
    recipe = load_config(str(_recipe(cell, asked)), list(asked.overrides), {})
    if asked.described and (description := description_of(recipe)):
        facts["pictures"] = description
    identity = digest_json(facts)
    judging = files_version(*_JUDGING, *(_BASELINES if cell.method in BASELINES else ()))
    return identity, digest_json([identity, code_version(cell.method), judging])


def _known(cell: Cell, asked: Asked, *, identity: str, key: str) -> dict[str, Any] | None:
    """Return the record of a cell that is done; of several by other code the newest."""
    files = sorted(
        (asked.out / "cells").glob(f"{cell.file_name}_*.json"), key=lambda file: file.stat().st_mtime
    )
    records = [json.loads(file.read_text(encoding="utf-8")) for file in reversed(files)]
    exact = [record for record in records if record["key"] == key]
    alike = [record for record in records if asked.any_code and record["identity"] == identity]
    return next(iter(exact + alike), None)


def settings_of(config: Config, *, baseline: bool = False) -> dict[str, Any]:
    """Return the settings that codes depend on, as far as they differ from the defaults.

    So an option that is new to the code makes no other recipe; a default that changes shows in the digest of
    the code. Of a baseline the settings that decide its features.
    """
    towers = config.section("towers", TowersConfig).model_dump(mode="json", exclude_defaults=True)
    places = {"path", "cache_bytes", "scenes"}
    data = config.data.model_dump(mode="json", exclude_defaults=True, exclude=places)
    if baseline:
        features = {
            side: {key: value for key, value in tower.items() if key not in _TRAINED_PART}
            for side, tower in towers.items()
        }
        return {"data": data, "towers": features}
    checked = config.check("method", "train")
    dumped = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in checked.items()}
    return dumped | {"data": data, "towers": towers}


def learn(config: Config) -> tuple[dict[Coding, Evaluation], dict[str, Any]]:
    """Train a method on the train rows and judge the codes of the query rows, all in this process."""
    started = time.monotonic()
    check_sets(source_uri(config), config)
    plan = plan_run(config)
    method = plan.build()
    start_from_pretrained(method)
    engine = LocalEngine(method, plan.train, device=local_device(gpu=config.resources.gpu))
    reader = PieceReader(plan.filesystem, plan.recipe, plan.listing.classes)
    feed = Feed(
        plan.listing,
        reader,
        FeedConfig(config.run.seed, plan.train.global_batch_size, cache_bytes=config.data.cache_bytes),
    )
    fitted = fit(engine, feed, plan.train, seed=config.run.seed)
    trained = time.monotonic()
    query, retrieval = relaxed_sets(method, config)
    overlap = config.evaluate.allow_overlap
    judged = evaluate_relaxed_codes(query.coded("relaxed"), retrieval.coded("relaxed"), allow_overlap=overlap)
    return judged, {
        "rows": plan.listing.rows,
        "steps": fitted.position.step,
        "loss": fitted.losses[-1],
        "train_seconds": round(trained - started, 2),
        "codes": codes_digest(query, retrieval),
    }


def codes_digest(query: EncodedSet, retrieval: EncodedSet) -> str:
    """Return a digest of the packed codes of both sides, rows in the order of the source."""
    codes = [pack(rows.array("relaxed", side)) for rows in (query, retrieval) for side in SIDES]
    return digest_bytes(b"".join(values.tobytes() for values in codes))


def relaxed_sets(method: HashMethod, config: Config) -> tuple[EncodedSet, EncodedSet]:
    """Return query and retrieval rows with the relaxed codes of both sides."""

    def encode(pairs: Pairs) -> dict[Any, np.ndarray]:
        return {
            side: relaxed_codes(method, side, getattr(pairs, side), tile=config.encode.tile) for side in SIDES
        }

    split, uri = config.data.split, source_uri(config)
    recipe = input_recipe(method, config.data.columns, config.data.limits)
    splits = {"query": split.query, "retrieval": split.retrieval}
    sets = encode_sets(uri, config, recipe=recipe, splits=splits, encoders={"relaxed": encode})
    return sets.require("query", split.query, uri), sets.require("retrieval", split.retrieval, uri)
