"""What encode, build_index and nightly stand on: source, model and store, the plan, and the next release."""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import Config, validate
from jobs.nights.budget import add_budget
from jobs.nights.facts import keep_facts, model_facts
from jobs.nights.memory import add_memory, index_config
from jobs.source import absolute, list_units, source_files, source_uri
from pipeline.corpus.schema import SIDES
from pipeline.encoding.decoding import Source
from pipeline.encoding.models import ModelFacts, artefact, keep_model
from pipeline.encoding.outcome import Outcome, next_rejects, next_units
from pipeline.quality.gate import GateConfig
from pipeline.releases.addresses import digest_json
from pipeline.releases.heads import Log
from pipeline.releases.manifest import (
    PARTS,
    REJECTS,
    UNITS,
    ManifestError,
    ReleaseManifest,
    ReleaseRecipe,
    check_store,
    read_release,
    read_table,
)
from pipeline.releases.planning import Plan, plan_night, source_bytes
from pipeline.releases.retrying import retried
from pipeline.releases.storage import Storage, source_root
from pipeline.search.indexing import IndexConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Night:
    """The fixed frame of a run: nothing here changes while it works."""

    config: Config
    uri: str  # of the source
    source: Source
    store: Storage
    facts: ModelFacts
    index: IndexConfig
    job: str = "nightly"
    quantisers: Mapping[str, str] = field(default_factory=dict)  # side -> digest
    auto: Mapping[str, Any] = field(default_factory=dict)  # what a recipe that was chosen was chosen for

    @property
    def recipes(self) -> dict[str, str]:
        """Digest of the input recipe, by side."""
        return {side: self.facts.recipe.digest(side) for side in self.source.sides}

    @property
    def release_recipe(self) -> ReleaseRecipe:
        """What the next release will say that its codes and parts were made with."""
        return ReleaseRecipe(
            code_length=self.facts.code_length,
            model=self.facts.digest,
            fingerprints=dict(self.facts.fingerprints),
            input_recipe=digest_json(self.recipes),
            index=self.index.of_release() | dict(self.auto),
            quantisers=dict(self.quantisers),
        )

    @property
    def run_json(self) -> tuple[Storage, str]:
        """Where the run says how far it is, and later what came of it."""
        return Storage(self.config.run.dir), f"{self.config.run.name}/{self.job}/run.json"

    @property
    def rate_json(self) -> tuple[Storage, str]:
        """Where it stands how fast the newest encoding was."""
        return Storage(self.config.run.dir), f"{self.config.run.name}/rate.json"

    def keep_model(self) -> None:
        """Put the model into the store, from where every encoder loads it, and what is known of it."""
        with artefact(self.config.require("encode.model"), self.store) as folder:
            keep_model(folder, self.store)
            if self.config.encode.query_encoders:
                from pipeline.encoding.query_encoders import keep_query_encoders  # torch

                keep_query_encoders(folder, self.store)
        keep_facts(self.config, self.store, self.facts)


@dataclass(frozen=True)
class Parent:
    """The current release, which the next one starts from; on the first night one without a row."""

    digest: str | None = None
    manifest: ReleaseManifest | None = None
    units: pa.Table = field(default_factory=UNITS.empty_table)
    parts: pa.Table = field(default_factory=PARTS.empty_table)
    rejects: pa.Table = field(default_factory=REJECTS.empty_table)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Take limits as arguments: two stand for the settings of the same name, two are of this run alone."""
    parser.add_argument("--max-reject-fraction", type=float, metavar="F", help="encode.max_reject_fraction")
    parser.add_argument("--max-refused-units", type=int, metavar="N", help="encode.max_refused_units")
    add_budget(parser)
    add_memory(parser)


def open_night(config: Config, args: argparse.Namespace, *, job: str = "nightly") -> Night:
    """Read the model and the settings; the source is drawn if it is to be, but in a dry run, and not read.

    Raises:
        ValueError: a setting is missing or does not fit, or there is no such model, or no canary.
    """
    for name in ("max_reject_fraction", "max_refused_units"):
        if (value := getattr(args, name, None)) is not None:
            encode = config.encode.model_dump() | {name: value}
            checked = validate(type(config.encode), encode, prefix="encode.", where=lambda name: "arguments")
            config = config.model_copy(update={"encode": checked})
    store = Storage(config.require("store.uri"))
    index = index_config(config, args)
    if canary := config.section("gate", GateConfig).canary:
        source_files(absolute(canary), setting="gate.canary")
    facts = model_facts(config, store)
    uri = source_uri(config, draw=not getattr(args, "dry_run", False))
    return Night(config, uri, Source(_source(uri, store), facts.recipe, SIDES), store, facts, index, job)


def _source(uri: str, store: Storage) -> Storage:
    """Return the root of the source, which the store must not lie in."""
    root = source_root(uri)
    place = str(Path(store.uri).resolve()) if store.uri.startswith("/") else store.uri
    if root.uri == Storage(uri).uri and f"{place}/".startswith(f"{root.uri}/"):
        raise ValueError(
            f"store.uri {store.uri} lies inside data.path {uri}, where its own files would be taken for "
            "units; name another place for one of the two"
        )
    return root


def open_channel(config: Config) -> Log:
    """Return the log of the channel that the settings name.

    Raises:
        ManifestError: the store is of a newer format, or it has lost its store.json.
    """
    store = Storage(config.require("store.uri"))
    channel = Log(store, config.store.channel)
    if store.exists("store.json"):
        check_store(store)
    elif channel.newest() is not None:
        raise ManifestError(f"{store.where()} has a log but no store.json; restore the file")
    return channel


def read_parent(night: Night, digest: str | None) -> Parent:
    """Read the current release of the channel.

    Raises:
        ValueError: its codes are of another length than the model's; readers of a channel expect one.
        ManifestError: it is missing or damaged.
    """
    if digest is None:
        return Parent()
    manifest = read_release(night.store, digest)
    held, made = manifest.recipe.code_length, night.facts.code_length
    if held != made:
        raise ValueError(
            f"channel {night.config.store.channel!r} of {night.store.where()} holds codes of {held} bits, "
            f"the model makes {made}; publish to another store.channel or another store"
        )
    tables = {name: read_table(night.store, manifest, name) for name in ("units", "parts", "rejects")}
    return Parent(digest, manifest, **tables)


def plan(night: Night, parent: Parent) -> Plan:
    """List the source and compare it with the parent release.

    Raises:
        ValueError: the source holds no Parquet file.
    """
    limit = night.config.data.unit_bytes
    units, unread = list_units(night.uri, night.source, parent.units, limit=limit)
    planned = plan_night(
        units,
        night.facts.fingerprints,
        recipes=night.recipes,
        parent_units=parent.units,
        retries=retried(night.store),
    )
    return replace(planned, unread=unread)


def is_current(night: Night, plan: Plan, parent: Parent) -> bool:
    """Tell whether the parent release is what this night would make."""
    return (
        parent.manifest is not None
        and plan.nothing_to_do
        and not pc.any(parent.units["stale"]).as_py()
        and parent.manifest.recipe == night.release_recipe
    )


def next_tables(night: Night, plan: Plan, outcome: Outcome, parent: Parent) -> dict[str, pa.Table]:
    """Return the tables `units` and `rejects` of the next release.

    A unit that was refused or left over keeps the codes of its earlier version, marked stale, if they are of
    tonight's tower; else it has none.
    """
    recipe, earlier = night.release_recipe, parent.manifest.recipe if parent.manifest else None
    usable = [
        side
        for side in SIDES
        if earlier is not None and earlier.fingerprints.get(side) == recipe.fingerprints[side]
    ]
    same_towers = parent.units.filter(pc.is_in(parent.units["side"], value_set=pa.array(usable, pa.string())))
    units = next_units(plan, outcome, same_towers)
    return {"units": units, "rejects": next_rejects(units, outcome, parent.rejects)}


def encode_metrics(night: Night, plan: Plan, outcome: Outcome, *, seconds: float) -> dict[str, float]:
    """Return how long an encoding took, and of how many source bytes; later plans are estimated by that."""
    size = source_bytes(outcome.made_of(plan))
    metrics = {"encode_seconds": round(seconds, 3), "encode_bytes": size}
    if size:
        folder, path = night.rate_json
        try:
            folder.write(path, json.dumps(metrics).encode())
        except OSError as error:
            log.warning("the rate of this run is not kept: %s; see run.dir", error)
    return metrics


def check_codes(night: Night, units: pa.Table) -> None:
    """Check that a release would hold a code at all.

    Raises:
        ValueError: the source has no row.
        RuntimeError: none of its rows could be encoded.
    """
    if pc.sum(units["encoded"]).as_py():
        return
    if not pc.sum(units["read"]).as_py() and not pc.any(units["stale"]).as_py():
        raise ValueError(f"{night.uri} has no row in its units: an empty corpus makes no release")
    raise RuntimeError(f"{night.uri}: not one row has a code, on either side; look at the rejects")
