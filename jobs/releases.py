"""Look after the releases of a store.

  list              the log of the channel, and every release that the store keeps
  show [DIGEST]     what a release was made with and holds (default: the current one)
  verify [DIGEST]   read and hash everything a release names; exit code 1 when something is wrong
  diff A B          which units, parts and settings differ between two releases
  explain KEY       where a row is in the current release, or why it was rejected
  rollback [DIGEST] make an earlier release current (default: the one that the current one followed; again:
                    one further back); the gate does not apply
  promote CHANNEL   make the current release of that channel current here
  forget KEY...     hide keys from every reader, at once and in every channel
  retry-rejects     have the next night read the units again that have rejects
  gc                remove what none of the newest releases of any channel needs; with --purge also what
                    is left of forgotten keys

example:
  hashfleet releases verify --set store.uri=s3://bucket/store
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["releases", *sys.argv[1:]]))

import argparse
from collections.abc import Callable

from jobs.command import Result
from jobs.config import Config
from jobs.upkeep import changing, cleaning, looking
from jobs.upkeep.request import Request
from pipeline.releases.heads import Log
from pipeline.releases.manifest import check_store
from pipeline.releases.storage import Storage

WRITES = True

ACTIONS: dict[str, Callable[[Request], Result]] = {
    "list": looking.show_log,
    "show": looking.show,
    "verify": looking.check,
    "diff": looking.show_difference,
    "explain": looking.explain,
    "rollback": changing.roll_back,
    "promote": changing.promote,
    "forget": changing.forget_keys,
    "retry-rejects": changing.retry_rejects,
    "gc": cleaning.collect,
}


OPTIONS = {
    "gc": ("keep", "grace_hours", "purge"),
    "promote": ("accept_new_length",),
    "forget": ("keys_from",),
}
"""The options that an action takes; any other of these is refused with it, not ignored."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=list(ACTIONS), help="what to do")
    parser.add_argument("words", nargs="*", metavar="WORD", help="releases, a channel, or keys")
    parser.add_argument("--keep", type=int, metavar="N", help=f"gc: releases per channel ({cleaning.KEEP})")
    hours = cleaning.GRACE_HOURS
    parser.add_argument("--grace-hours", type=float, metavar="H", help=f"gc: younger files stay ({hours:g})")
    parser.add_argument("--purge", action="store_true", help="gc: also what is left of forgotten keys")
    parser.add_argument(
        "--accept-new-length", action="store_true", help="promote: codes of another length than the channel's"
    )
    parser.add_argument("--keys-from", metavar="FILE", help="forget: a file with one key per line")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Open the store and do what was asked."""
    _check_options(args)
    storage = Storage(config.require("store.uri"))
    check_store(storage)
    log = Log(storage, config.store.channel)
    return ACTIONS[args.action](Request(log, tuple(args.words), config, args))


def _check_options(args: argparse.Namespace) -> None:
    for action, names in OPTIONS.items():
        for name in names:
            value = getattr(args, name)
            if value is not None and value is not False and action != args.action:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is an option of {action}, not of {args.action}; leave it out")
