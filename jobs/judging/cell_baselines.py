"""The baselines' cells: linear methods on the very features that the networks get, and random codes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmh_models import build_method
from cmh_models.method import SIDES
from jobs.config import Config
from jobs.judging.sets import EncodedSet, Encoder, check_sets, encode_sets
from jobs.source import source_uri
from jobs.training.plan import plan_run
from pipeline.corpus.decode import Pairs
from pipeline.corpus.recipe import InputRecipe
from pipeline.encoding.baselines import describe_pairs
from pipeline.encoding.models import input_recipe
from pipeline.quality.baselines import Choice, Features, Pair, choose, choose_cca, fit_cmfh, fit_ridge
from pipeline.quality.evaluation import CodedPairs, Evaluation, evaluate_relaxed_codes
from pipeline.quality.protocol import Coding

BASELINES = ("random", "cca", "cca_best", "cmfh", "ridge")


@dataclass(frozen=True)
class Described:
    """The three sets of a source, each row as the standardised fixed features that networks start from."""

    train: EncodedSet
    query: EncodedSet
    retrieval: EncodedSet


def describe_source(config: Config) -> Described:
    """Describe the rows of a source by the towers of a recipe, scaled by the moments of its train rows."""
    check_sets(source_uri(config), config)
    plan = plan_run(config)
    method = build_method(plan.spec["method"], plan.spec["towers"])
    recipe = input_recipe(method, config.data.columns, config.data.limits)
    split, uri = config.data.split, source_uri(config)

    def learn_scaling(pairs: Pairs) -> Mapping[Any, np.ndarray]:
        for side in SIDES:
            network: Any = getattr(method, side)
            described = network.describe(method.collate(side, getattr(pairs, side)))
            network.standardiser.update(network.standardiser.sums(described))
        return {}

    _encoded(uri, config, recipe, {"train": split.train}, learn_scaling)
    splits = {"train": split.train, "query": split.query, "retrieval": split.retrieval}
    return Described(**_encoded(uri, config, recipe, splits, lambda pairs: describe_pairs(method, pairs)))


def judge_baseline(
    name: str, config: Config, *, bits: int, groups: Mapping[str, str]
) -> tuple[dict[Coding, Evaluation], dict[str, Any]]:
    """Return what a baseline reaches under both codings, and what was chosen for it.

    Args:
        groups: key -> what a row has in common with its siblings, which are on one side of the draw of rows
            that its regulariser is chosen on; a key that is missing stands for itself.
    Raises:
        LookupError: CCA has no such length on these features.
    """
    rows = describe_source(config)
    if name == "random":
        drawn = np.random.default_rng(config.run.seed)
        sets = [_with(part, drawn.standard_normal, bits) for part in (rows.query, rows.retrieval)]
        return evaluate_relaxed_codes(*sets), {"code_length": bits}
    choice = _choose(name, rows.train, bits=bits, seed=config.run.seed, groups=groups)
    coded = [part.with_codes(choice.relaxed(features_of(part))) for part in (rows.query, rows.retrieval)]
    facts = {"code_length": choice.code_length, "regulariser": choice.regulariser, "unit": choice.unit}
    return evaluate_relaxed_codes(*coded), facts | {"validation_map": choice.validation_map}


def features_of(rows: EncodedSet) -> Features:
    """Return the features of a set and its labels."""
    return Features(rows.array("features", "image"), rows.array("features", "text"), rows.labels)


def _choose(name: str, rows: EncodedSet, *, bits: int, seed: int, groups: Mapping[str, str]) -> Choice:
    train = features_of(rows)
    siblings = [groups.get(key, key) for key in rows.keys]
    if name in ("cca", "cca_best"):
        choices = choose_cca(train, code_length=bits, seed=seed, groups=siblings)
        if name not in choices:
            widths = f"{train.image.shape[1]} and {train.text.shape[1]}"
            raise LookupError(f"CCA has no {bits} bits between sides of {widths} features")
        return choices[name]
    fit = {"cmfh": fit_cmfh, "ridge": fit_ridge}[name]

    def fit_bits(features: Features, regulariser: float) -> Pair:
        return fit(features, regulariser, code_length=bits, seed=seed)

    return choose(fit_bits, train, lengths=[bits], seed=seed, groups=siblings)[bits]


def _with(rows: EncodedSet, draw: Callable[[tuple[int, int]], np.ndarray], bits: int) -> CodedPairs:
    return rows.with_codes({side: draw((len(rows.keys), bits)) for side in SIDES})


def _encoded(
    uri: str, config: Config, recipe: InputRecipe, splits: Mapping[str, Sequence[str]], encoder: Encoder
) -> dict[str, EncodedSet]:
    sets = encode_sets(uri, config, recipe=recipe, splits=splits, encoders={"features": encoder})
    return {name: sets.require(name, values, uri) for name, values in splits.items()}
