"""Run the night: encode what has changed, build the index parts it touches, publish one release.

Every output is named by what went into it, so a run that was ended is simply started again, and a night
without change does nothing. One run at a time works on a channel: a second one ends with exit code 4.

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

from jobs.command import Result
from jobs.config import Config
from jobs.night import (
    LINES,
    Night,
    Parent,
    add_limits,
    check_codes,
    is_current,
    kept_alive,
    next_tables,
    open_channel,
    open_night,
    plan,
    print_plan,
    read_parent,
)
from jobs.source import undrawn
from pipeline.encoding.outcome import Outcome, check_limits, count_rows
from pipeline.releases.heads import Entry, Lease, Log
from pipeline.releases.manifest import create_store, write_release
from pipeline.releases.owners import is_gone, process_name
from pipeline.releases.planning import Plan

WRITES = True

log = logging.getLogger(__name__)
add_arguments = add_limits


def run(config: Config, args: argparse.Namespace) -> Result:
    """Publish a release of the present source, unless the current one is it already."""
    channel = open_channel(config)
    if args.dry_run and undrawn(config):
        return Result()
    newest = channel.newest()
    if _is_locked(newest):
        return _locked(newest)
    night = open_night(config, args)
    parent = read_parent(night, newest.release if newest else None)
    wanted = plan(night, parent)
    if is_current(night, wanted, parent):
        return _nothing(parent, wanted)
    print_plan(wanted)
    if args.dry_run:
        return Result(counts=count_rows(Outcome(), wanted))
    create_store(night.store)
    owner, seconds = process_name(), config.store.lease_seconds
    try:
        lease = channel.acquire(owner, seconds, is_gone=is_gone)
        if lease is None:
            return _locked(channel.newest())
        with kept_alive(channel, lease, seconds):
            return _publish(night, wanted, parent, channel=channel, lease=lease)
    except KeyboardInterrupt:
        channel.give_back(owner)  # it may have come between taking the lease and keeping it
        raise


def _publish(night: Night, wanted: Plan, parent: Parent, *, channel: Log, lease: Lease) -> Result:
    """Do the work of the night, planned again if another run has published since."""
    current = channel.current_release()
    if current != parent.digest:
        parent = read_parent(night, current)
        wanted = plan(night, parent)
        if is_current(night, wanted, parent):
            return _nothing(parent, wanted)
    return _work(night, wanted, parent, channel=channel, lease=lease)


def _work(night: Night, wanted: Plan, parent: Parent, *, channel: Log, lease: Lease) -> Result:
    """Encode, check, index and publish."""
    from jobs.stages import build_parts, encode_units  # imports Ray, which a night without change can spare

    limits = night.config.encode
    outcome = encode_units(night, wanted)
    tables = next_tables(night, wanted, outcome, parent)
    check_limits(
        outcome,
        tables["units"],
        max_reject_fraction=limits.max_reject_fraction,
        max_refused_units=limits.max_refused_units,
    )
    check_codes(night, tables["units"])
    tables["parts"], parts = build_parts(night, tables["units"], parent.parts)
    release = write_release(night.store, night.release_recipe, tables=tables)
    counts = count_rows(outcome, wanted) | parts
    if release == parent.digest:
        log.info("release %s stays current", release)
    else:
        channel.publish(lease, release)
        log.info("published release %s: %d rows encoded", release, counts["rows_encoded"])
    refused = dict(sorted(outcome.refused.items())[:LINES])
    return Result(
        outputs={"release": release, "model": night.facts.digest}, counts=counts, details={"refused": refused}
    )


def _nothing(parent: Parent, wanted: Plan) -> Result:
    counts = count_rows(Outcome(), wanted) | {"parts_built": 0, "parts_reused": len(parent.parts)}
    log.info("nothing to do: %d units are as release %s has them", counts["units_total"], parent.digest)
    return Result(outputs={"release": parent.digest}, counts=counts)


def _is_locked(newest: Entry | None) -> bool:
    return newest is not None and newest.is_held(time.time()) and not is_gone(newest.holder)


def _locked(newest: Entry | None) -> Result:
    holder = newest.holder if newest else "another run"
    left = max(0, round(newest.expires - time.time())) if newest else 0
    log.info("locked: %s holds the lease for another %d s", holder, left)
    return Result("locked", details={"holder": holder})
