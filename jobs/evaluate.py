"""Judge a model: how well the codes of one side find those of the other, in both directions.

Query and retrieval rows come from `data.path`, told apart by its split column (`data.split`). mAP@all and
mAP@50 are printed with their definitions; `evaluate.baselines` adds random codes, the untrained network and
CCA on the model's own input features, fitted on the train rows of `evaluate.train` (default: `data.path`).

example:
  hashfleet evaluate --config jobs/configs/scenes_jdsh_64.yaml --set encode.model=runs/scenes_jdsh_64/model \\
      --set data.path=heldout --set evaluate.baselines=true
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))

import argparse
import logging
from typing import Any

import numpy as np

from cmh_models.method import SIDES, HashMethod
from jobs.command import Result
from jobs.config import Config
from jobs.sets import EncodedSet, Encoder, Sets, encode_sets
from jobs.source import source_uri
from pipeline.encoding.baselines import describe_pairs, untrained
from pipeline.encoding.encoder import encode_pairs
from pipeline.encoding.models import input_recipe, open_model
from pipeline.quality.baselines import Features, choose_cca, random_codes
from pipeline.quality.evaluation import DEFINITIONS, Evaluation, evaluate_codes
from pipeline.quality.metrics import bit_health
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)


def run(config: Config, args: argparse.Namespace) -> Result:
    """Encode the query and retrieval rows, judge them, and judge the baselines beside them if asked to."""
    store = Storage(config.store.uri) if config.store.uri else None
    method = open_model(config.require("encode.model"), store)
    uri = source_uri(config)
    sets = _encode(uri, config, method)
    query = sets.require("query", config.data.split.query, uri)
    retrieval = sets.require("retrieval", config.data.split.retrieval, uri)
    overlap = config.evaluate.allow_overlap
    judged = evaluate_codes(query.coded("model"), retrieval.coded("model"), allow_overlap=overlap)
    details: dict[str, Any] = {
        "protocol": judged.protocol | {"seed": config.run.seed},
        "ties": judged.ties,
        "bits": {side: bit_health(retrieval.array("model", side)) for side in SIDES},
    }
    if config.evaluate.baselines:
        details["baselines"] = _baselines(config, method, sets, query=query, retrieval=retrieval)
    _print(judged, details.get("baselines", {}))
    counts = {"rows_read": sets.rows_read, "rows_left_out": sum(sets.dropped.values())}
    return Result(
        outputs={"model": config.encode.model},
        metrics=judged.metrics,
        counts=counts | {"queries": len(query.keys), "retrieval_rows": len(retrieval.keys)},
        details=details,
    )


def _encode(uri: str, config: Config, method: HashMethod) -> Sets:
    """Read the source once; with baselines, the rows they learn from and the features they work on too."""
    split, tile = config.data.split, config.encode.tile
    encoders: dict[str, Encoder] = {"model": lambda pairs: encode_pairs(method, pairs, tile=tile)}
    splits = {"query": split.query, "retrieval": split.retrieval}
    recipe = input_recipe(method, config.data.columns, config.data.limits)
    if not config.evaluate.baselines:
        return encode_sets(uri, config, recipe=recipe, splits=splits, encoders=encoders)
    fresh = untrained(method, config.run.seed)
    encoders["untrained"] = lambda pairs: encode_pairs(fresh, pairs, tile=tile)
    features: dict[str, Encoder] = {"features": lambda pairs: describe_pairs(method, pairs)}
    elsewhere = config.evaluate.train
    if elsewhere is None:
        splits["train"] = split.train
    sets = encode_sets(uri, config, recipe=recipe, splits=splits, encoders=encoders | features)
    if elsewhere is not None:
        learnt = encode_sets(
            elsewhere, config, recipe=recipe, splits={"train": split.train}, encoders=features
        )
        sets.sets |= learnt.sets
    return sets


def _baselines(
    config: Config, method: HashMethod, sets: Sets, *, query: EncodedSet, retrieval: EncodedSet
) -> dict[str, dict[str, float]]:
    where = config.evaluate.train or config.require("data.path")
    train = sets.require("train", config.data.split.train, where)
    length, seed, n = method.code_length, config.run.seed, len(query.keys)
    drawn = random_codes(n + len(retrieval.keys), code_length=length, seed=seed)
    coded: dict[str, list[dict[str, np.ndarray]]] = {
        "random": [{side: drawn[side][rows] for side in SIDES} for rows in (slice(n), slice(n, None))],
        "untrained": [{side: rows.array("untrained", side) for side in SIDES} for rows in (query, retrieval)],
    }
    for name, choice in choose_cca(_as_features(train), code_length=length, seed=seed).items():
        log.info("%s: %d bits, regulariser %g", name, choice.code_length, choice.regulariser)
        coded[name] = [choice.codes(_as_features(rows)) for rows in (query, retrieval)]
    overlap = config.evaluate.allow_overlap
    judged = {
        name: evaluate_codes(query.with_codes(asked), retrieval.with_codes(found), allow_overlap=overlap)
        for name, (asked, found) in coded.items()
    }
    return {name: one.metrics | {"code_length": one.protocol["code_length"]} for name, one in judged.items()}


def _as_features(rows: EncodedSet) -> Features:
    return Features(rows.array("features", "image"), rows.array("features", "text"), rows.labels)


def _print(judged: Evaluation, baselines: dict[str, dict[str, float]]) -> None:
    """Print the table and its definitions to stderr, beside the logs."""
    columns = ("map_i2t", "map_t2i", "map50_i2t", "map50_t2i")
    rows = {"model": judged.metrics | {"code_length": judged.protocol["code_length"]}} | baselines
    log.info("\n%-10s %5s %9s %9s %9s %9s", "", "bits", "I2T mAP", "T2I mAP", "I2T @50", "T2I @50")
    for name, metrics in rows.items():
        values = " ".join(f"{metrics[column]:9.4f}" for column in columns)
        log.info("%-10s %5d %s", name, metrics["code_length"], values)
    log.info(
        "\n%d queries, %d retrieval rows; I2T: image asks, texts are found",
        judged.protocol["queries"],
        judged.protocol["retrieval_rows"],
    )
    for term, definition in DEFINITIONS.items():
        log.info("%s: %s", term, definition)
