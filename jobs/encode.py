"""Re-encode what has changed: make the packed codes of every unit and side that the store lacks.

A code file is named by all it depends on (source file, tower, decoding), so what stands is never made
again, and a run that was ended goes on where it stopped; so does one that --deadline or --max-units has
stopped, which counts what it did not get to as `units_left`. Nothing is published; `hashfleet nightly` does.

example:
  hashfleet encode --config jobs/configs/scenes_nightly.yaml --set encode.model=runs/scenes_jdsh_64/model
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["encode", *sys.argv[1:]]))

import argparse
import logging
import time

from jobs.command import Result
from jobs.config import Config
from jobs.nights.budget import budget
from jobs.nights.dry_run import planned_counts, print_estimate, print_plan
from jobs.nights.night import (
    add_limits,
    encode_metrics,
    next_tables,
    open_channel,
    open_night,
    plan,
    read_parent,
)
from jobs.nights.stages import encode_units
from jobs.source import undrawn
from pipeline.encoding.outcome import check_limits, count_rows
from pipeline.releases.manifest import create_store

WRITES = True

log = logging.getLogger(__name__)
add_arguments = add_limits


def run(config: Config, args: argparse.Namespace) -> Result:
    """Encode what neither the current release nor the store holds."""
    limit = budget(args)
    current = open_channel(config).current_release()
    night = open_night(config, args, job="encode")
    if args.dry_run and undrawn(config):
        return Result()
    parent = read_parent(night, current)
    wanted = plan(night, parent)
    print_plan(wanted, parent)
    outputs = {"store": night.store.uri, "model": night.facts.digest}
    if args.dry_run:
        print_estimate(night, wanted, parent)
        return Result(outputs=outputs, counts=planned_counts(wanted))
    create_store(night.store)
    started = time.monotonic()
    outcome = encode_units(night, wanted, budget=limit)
    metrics = encode_metrics(night, wanted, outcome, seconds=time.monotonic() - started)
    counts = count_rows(outcome, wanted) | {"units_left": len(outcome.left)}
    if counts["units_left"]:
        log.info("%d units are left over; run again to go on", counts["units_left"])
    elif not counts["units_encoded"] and not outcome.refused:
        log.info("nothing to encode: all %d units have their codes", counts["units_total"])
    check_limits(
        outcome,
        next_tables(night, wanted, outcome, parent)["units"],
        max_reject_fraction=night.config.encode.max_reject_fraction,
        max_refused_units=night.config.encode.max_refused_units,
    )
    return Result(outputs=outputs, metrics=metrics, counts=counts)
