"""Judge a model and its baselines on the same rows: the codes of each of them, and how well they do."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cmh_models.method import SIDES, HashMethod
from jobs.config import Config
from jobs.judging.sets import EncodedSet, Encoder, Sets, encode_sets
from jobs.source import source_digest, source_uri
from pipeline.codes import pack
from pipeline.corpus.decode import Pairs
from pipeline.corpus.schema import Side
from pipeline.encoding.baselines import describe_pairs, untrained
from pipeline.encoding.encoder import relaxed_codes
from pipeline.encoding.models import input_recipe, open_model
from pipeline.quality.baselines import Features, choose_cca, random_codes
from pipeline.quality.evaluation import CodedPairs, Evaluation, evaluate_codes
from pipeline.releases.storage import Storage

MODEL_AS_IT_IS = "of the model as it stands; its card says how it was trained"

log = logging.getLogger(__name__)

QueryAndRetrieval = tuple[CodedPairs, CodedPairs]


@dataclass(frozen=True)
class Judgement:
    """What was judged, by name: `model`, then the baselines."""

    coded: dict[str, QueryAndRetrieval]
    evaluations: dict[str, Evaluation]
    counts: dict[str, int]
    relaxed: QueryAndRetrieval | None = None  # the model's codes before their signs are taken

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The metrics of each baseline, and its code length."""
        return {
            name: one.metrics | {"code_length": one.protocol.code_length}
            for name, one in self.evaluations.items()
            if name != "model"
        }


def judge(config: Config, *, cca_lengths: Sequence[int] = (), keep_relaxed: bool = False) -> Judgement:
    """Encode the query and retrieval rows in every way that is to be judged, and judge each.

    Args:
        cca_lengths: lengths at which CCA is judged too, besides the model's own and the best.
        keep_relaxed: hand the model's relaxed codes back as well: L floats a row and side.
    """
    store = Storage(config.store.uri) if config.store.uri else None
    method = open_model(config.require("encode.model"), store)
    uri = source_uri(config)
    sets = _encode(uri, config, method, keep_relaxed=keep_relaxed)
    query = sets.require("query", config.data.split.query, uri)
    retrieval = sets.require("retrieval", config.data.split.retrieval, uri)
    coded = {"model": (query.coded("model"), retrieval.coded("model"))}
    lengths: dict[str, int] = {}  # where bits were filled up to whole bytes
    if config.evaluate.baselines:
        train = sets.require("train", config.data.split.train, config.evaluate.train or uri)
        length, seed = method.code_length, config.run.seed
        coded |= _simple(query, retrieval, code_length=length, seed=seed)
        choices = choose_cca(_as_features(train), code_length=length, seed=seed, others=cca_lengths)
        for name, choice in choices.items():
            log.info("%s: %d bits, regulariser %g", name, choice.code_length, choice.regulariser)
            lengths[name] = choice.code_length
            coded[name] = (
                query.with_codes(choice.codes(_as_features(query))),
                retrieval.with_codes(choice.codes(_as_features(retrieval))),
            )
    overlap, split = config.evaluate.allow_overlap, config.data.split
    known = {
        "data": PurePosixPath(uri).name,
        "data_digest": source_digest(uri),
        "seed": config.run.seed,
        "split": {"train": split.train, "query": split.query, "retrieval": split.retrieval},
        "epochs": MODEL_AS_IT_IS,
    }
    counts = {"rows_read": sets.rows_read, "rows_left_out": sum(sets.dropped.values())}
    return Judgement(
        coded,
        {
            name: evaluate_codes(*pair, allow_overlap=overlap).with_protocol(
                **known | ({"code_length": lengths[name]} if name in lengths else {})
            )
            for name, pair in coded.items()
        },
        counts | {"queries": len(query.keys), "retrieval_rows": len(retrieval.keys)},
        (query.coded("relaxed"), retrieval.coded("relaxed")) if keep_relaxed else None,
    )


def _encode(uri: str, config: Config, method: HashMethod, *, keep_relaxed: bool) -> Sets:
    """Read the source once; with baselines, the rows they learn from and the features they work on too."""
    split = config.data.split
    encoders: dict[str, Encoder] = {"model": _encoder(config, method)}
    splits = {"query": split.query, "retrieval": split.retrieval}
    recipe = input_recipe(method, config.data.columns, config.data.limits)
    if keep_relaxed:
        encoders["relaxed"] = _encoder(config, method, relaxed=True)
    if not config.evaluate.baselines:
        return encode_sets(uri, config, recipe=recipe, splits=splits, encoders=encoders)
    encoders["untrained"] = _encoder(config, untrained(method, config.run.seed))
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


def _encoder(config: Config, method: HashMethod, *, relaxed: bool = False) -> Encoder:
    def encode(pairs: Pairs) -> dict[Side, np.ndarray]:
        values: dict[Side, np.ndarray] = {
            side: relaxed_codes(method, side, getattr(pairs, side), tile=config.encode.tile) for side in SIDES
        }
        return values if relaxed else {side: pack(codes) for side, codes in values.items()}

    return encode


def _simple(
    query: EncodedSet, retrieval: EncodedSet, *, code_length: int, seed: int
) -> dict[str, QueryAndRetrieval]:
    """Return the codes that nothing was learnt for."""
    asked, n = len(query.keys), len(query.keys) + len(retrieval.keys)
    drawn = random_codes(n, code_length=code_length, seed=seed)
    return {
        "random": (
            query.with_codes({side: drawn[side][:asked] for side in SIDES}),
            retrieval.with_codes({side: drawn[side][asked:] for side in SIDES}),
        ),
        "untrained": (query.coded("untrained"), retrieval.coded("untrained")),
    }


def _as_features(rows: EncodedSet) -> Features:
    return Features(rows.array("features", "image"), rows.array("features", "text"), rows.labels)
