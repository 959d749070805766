"""Build the index parts that the codes of the present source need and the store lacks.

A part is named by the code files it holds, so one that stands is never built again, and one that the
current release has lost comes back as it was. Nothing is encoded: units without codes are an error. Nothing
is published; `hashfleet nightly` does.

example:
  hashfleet build_index --config jobs/configs/scenes_nightly.yaml --set encode.model=runs/scenes_jdsh_64/model
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["build_index", *sys.argv[1:]]))

import argparse

from jobs.command import Result
from jobs.config import Config
from jobs.nights.indexing import prepare_index, settle_index
from jobs.nights.memory import add_memory
from jobs.nights.night import next_tables, open_channel, open_night, plan, read_parent
from jobs.nights.stages import build_parts, count_parts, find_code_files
from jobs.source import undrawn
from pipeline.encoding.outcome import Outcome, Standing
from pipeline.search.building import standing_parts

WRITES = True
add_arguments = add_memory


def run(config: Config, args: argparse.Namespace) -> Result:
    """Build what is missing.

    Raises:
        RuntimeError: a unit has no codes yet.
    """
    current = open_channel(config).current_release()
    night = open_night(config, args, job="build_index")
    if args.dry_run and undrawn(config):
        return Result()
    parent = read_parent(night, current)
    night = settle_index(night, parent)
    wanted = plan(night, parent)
    found = Standing()
    found.found(find_code_files(night, wanted))
    outcome = Outcome(found.table())
    if len(missing := outcome.lacking_of(wanted)["path"]):
        raise RuntimeError(
            f"{len(missing)} code file(s) are missing, first of {missing[0]}; run `hashfleet encode` first"
        )
    units = next_tables(night, wanted, outcome, parent)["units"]
    standing = standing_parts(parent.parts, night.store)
    if args.dry_run:
        counts = count_parts(night, units, standing)
    else:
        night, _ = prepare_index(night, units, parent)
        _, counts = build_parts(night, units, standing)
    return Result(outputs={"store": night.store.uri}, counts=counts)
