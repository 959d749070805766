"""Run the night: encode what has changed, build the index parts it touches, publish one release.

Every output is named by what went into it, so a run that was ended is simply started again, and a night
without change does nothing. One run at a time works on a channel: a second one ends with exit code 4.

A night that may not take all the time it needs is given --deadline or --max-units. It then starts no further
unit, finishes those it has begun, and counts the others as `units_left`. Those of which the channel has codes
by the same tower keep them, marked stale, and a release is published. If one has none, as under a new model,
nothing is published: `outputs.release` is null, the exit code 0, and the next run goes on where this one
stopped. A new model thus fills a store.channel of its own over several nights and is published once.

example:
  hashfleet nightly --config jobs/configs/scenes_nightly.yaml --set encode.model=runs/scenes_jdsh_64/model
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["nightly", *sys.argv[1:]]))

import argparse
import logging
import time
from dataclasses import dataclass
from typing import Any

from jobs.command import Result
from jobs.config import Config
from jobs.nights.budget import Budget, budget
from jobs.nights.dry_run import LINES, planned_counts, print_estimate, print_plan
from jobs.nights.facts import keep_facts
from jobs.nights.indexing import prepare_index, settle_index
from jobs.nights.leases import kept_alive
from jobs.nights.night import (
    Night,
    Parent,
    add_limits,
    check_codes,
    encode_metrics,
    is_current,
    next_tables,
    open_channel,
    open_night,
    plan,
    read_parent,
)
from jobs.nights.notes import drop_notes
from jobs.nights.remembering import remember as remember
from jobs.source import undrawn
from pipeline.encoding.outcome import Outcome, check_limits, count_rows, without_codes
from pipeline.releases.heads import Entry, Lease, Log
from pipeline.releases.manifest import create_store, write_release
from pipeline.releases.owners import is_gone, process_name
from pipeline.releases.planning import Plan

WRITES = True

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_limits(parser)
    parser.add_argument(
        "--accept-new-model", action="store_true", help="let the gate pass another model than the release's"
    )


def run(config: Config, args: argparse.Namespace) -> Result:
    """Publish a release of the present source, unless the current one is it already."""
    limit = budget(args)
    channel = open_channel(config)
    newest = channel.newest()
    if _is_locked(newest):
        return _locked(newest)
    night = open_night(config, args)
    if args.dry_run and undrawn(config):
        return Result()
    parent = read_parent(night, newest.release if newest else None)
    night = settle_index(night, parent)
    wanted = plan(night, parent)
    if is_current(night, wanted, parent):
        if not args.dry_run:
            keep_facts(config, night.store, night.facts)
        return _nothing(parent, wanted)
    print_plan(wanted, parent)
    if args.dry_run:
        print_estimate(night, wanted, parent)
        return Result(counts=planned_counts(wanted))
    create_store(night.store)
    owner, seconds = process_name(), config.store.lease_seconds
    try:
        lease = channel.acquire(owner, seconds, is_gone=is_gone, single_writer=config.store.single_writer)
        if lease is None:
            return _locked(channel.newest())
        with kept_alive(channel, lease, seconds):
            return _publish(
                night,
                wanted,
                parent,
                held=_Held(channel, lease),
                limit=limit,
                accepted=getattr(args, "accept_new_model", False),
            )
    except KeyboardInterrupt:
        channel.give_back(owner)  # it may have come between taking the lease and keeping it
        raise


@dataclass(frozen=True)
class _Held:
    """A channel and the lease of it."""

    channel: Log
    lease: Lease


def _publish(
    night: Night, wanted: Plan, parent: Parent, *, held: _Held, limit: Budget, accepted: bool
) -> Result:
    """Do the work of the night, planned again if another run has published since."""
    current = held.channel.current_release()
    if current != parent.digest:
        parent = read_parent(night, current)
        night = settle_index(night, parent)
        wanted = plan(night, parent)
        if is_current(night, wanted, parent):
            return _nothing(parent, wanted)
    return _work(night, wanted, parent, held=held, limit=limit, accepted=accepted)


def _work(
    night: Night, wanted: Plan, parent: Parent, *, held: _Held, limit: Budget, accepted: bool
) -> Result:
    """Encode, check, index and publish."""
    from jobs.nights.gating import (  # these import what a night without change can spare
        check_gate,
        refuse_new_model,
    )
    from jobs.nights.stages import build_parts, encode_units

    if report := refuse_new_model(night, parent, accepted=accepted):
        return Result("refused", counts=_count(Outcome(), wanted), details={"gate": report.as_json()})
    started = time.monotonic()
    outcome = encode_units(night, wanted, budget=limit)
    metrics = encode_metrics(night, wanted, outcome, seconds=time.monotonic() - started)
    tables = next_tables(night, wanted, outcome, parent)
    check_limits(
        outcome,
        tables["units"],
        max_reject_fraction=night.config.encode.max_reject_fraction,
        max_refused_units=night.config.encode.max_refused_units,
    )
    counts = _count(outcome, wanted)
    details: dict[str, Any] = {"refused": dict(sorted(outcome.refused.items())[:LINES])}
    if lacking := without_codes(wanted, outcome, tables["units"]):
        log.info(
            "%d units are left over, %d of them without codes of this model: nothing is published; run again",
            len(outcome.left),
            lacking,
        )
        return Result(
            outputs={"release": None, "model": night.facts.digest},
            metrics=metrics,
            counts=counts,
            details=details,
        )
    check_codes(night, tables["units"])
    started = time.monotonic()
    night, chosen = prepare_index(night, tables["units"], parent)
    tables["parts"], parts = build_parts(night, tables["units"], parent.parts)
    metrics["parts_seconds"] = round(time.monotonic() - started, 3)
    report = check_gate(night, wanted, parent, tables)
    details |= {"gate": report.as_json()}
    if report.refused:
        log.warning("the gate refused: nothing is published, what was made stays for the next try")
        return Result("refused", metrics=metrics, counts=counts | parts, details=details)
    notes = chosen | {"gate": report.as_json()}
    release = write_release(night.store, night.release_recipe, tables=tables, notes=notes)
    if release == parent.digest:
        log.info("release %s stays current", release)
    else:
        held.channel.publish(held.lease, release)
        drop_notes(night.store, night.config.store.channel)
        log.info("published release %s: %d rows encoded", release, counts["rows_encoded"])
    outputs = {"release": release, "model": night.facts.digest}
    return Result(outputs=outputs, metrics=metrics, counts=counts | parts, details=details)


def _count(outcome: Outcome, wanted: Plan) -> dict[str, int]:
    return count_rows(outcome, wanted) | {"units_left": len(outcome.left)}


def _nothing(parent: Parent, wanted: Plan) -> Result:
    counts = _count(Outcome(), wanted) | {"parts_built": 0, "parts_reused": len(parent.parts)}
    log.info("nothing to do: %d units are as release %s has them", counts["units_total"], parent.digest)
    return Result(outputs={"release": parent.digest}, counts=counts)


def _is_locked(newest: Entry | None) -> bool:
    return newest is not None and newest.is_held(time.time()) and not is_gone(newest.holder)


def _locked(newest: Entry | None) -> Result:
    holder = (newest.holder if newest else "") or "whoever removes files from the store"
    left = max(0, round(newest.expires - time.time())) if newest else 0
    log.info("locked: %s holds the lease for another %d s", holder, left)
    return Result("locked", details={"holder": holder})
