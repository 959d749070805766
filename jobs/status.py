"""Say whether the nights go well: for every channel the age of its release, the last failure, and the lease.

A release counts from when it was published, or from the last night that found nothing to change in it. Exit
code 1 when that of the channel in question is older than --max-age, or when it has none.

example:
  hashfleet status --max-age 26h --set store.uri=s3://bucket/store
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["status", *sys.argv[1:]]))

import argparse
import time
from typing import Any

from jobs.command import Result
from jobs.config import Config
from jobs.nights.remembering import Remembered, recall
from pipeline.releases.heads import Log, channels
from pipeline.releases.manifest import check_store
from pipeline.releases.storage import Storage

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-age", metavar="TIME", help="such as 26h, 90m or 2d; exit code 1 beyond it")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Look at every channel; judge the one that the settings name."""
    limit = None if args.max_age is None else _seconds(args.max_age)
    storage = Storage(config.require("store.uri"))
    check_store(storage)
    now = time.time()
    found = {name: _look(Log(storage, name), now) for name in {*channels(storage), config.store.channel}}
    for name, state in sorted(found.items()):
        print(_line(name, state))
    mine = found[config.store.channel]
    age = mine["age_seconds"]
    late = limit is not None and (age is None or age > limit)
    if late:
        told = "has no release" if age is None else f"was last up to date {_words(age)} ago"
        print(f"channel {config.store.channel} {told}, --max-age is {args.max_age}; see its last failure")
    return Result(
        "failed" if late else "done",
        outputs={"release": mine["release"]},
        metrics={} if age is None else {"age_seconds": age},
        details={"channels": found},
    )


def _look(log: Log, now: float) -> dict[str, Any]:
    newest, pointed = log.newest(), log.pointed()
    last, failure = recall(log.storage, log.channel)
    release = newest.release if newest else None
    times = [pointed.at] if pointed and pointed.at else []
    if last is not None and last.status == "done" and last.release == release:
        times.append(last.at)
    held = newest is not None and newest.is_held(now)
    return {
        "release": release,
        "age_seconds": round(max(0.0, now - max(times)), 1) if release and times else None,
        "last_run": _told(last, now),
        "last_failure": _told(failure, now),
        "lease_holder": newest.holder if newest and held else None,
        "lease_left_seconds": round(newest.expires - now, 1) if newest and held else None,
    }


def _told(run: Remembered | None, now: float) -> dict[str, Any] | None:
    if run is None:
        return None
    return {"status": run.status, "ago_seconds": round(max(0.0, now - run.at), 1), "error": run.error}


def _line(name: str, state: dict[str, Any]) -> str:
    age = "-" if state["age_seconds"] is None else _words(state["age_seconds"])
    words = [f"{name}: release {state['release'] or '-'}, up to date {age} ago"]
    if state["lease_holder"]:
        words.append(f"at work: {state['lease_holder']}, lease for {_words(state['lease_left_seconds'])}")
    if failure := state["last_failure"]:
        words.append(f"last failure {_words(failure['ago_seconds'])} ago ({failure['error']})")
    return "; ".join(words)


def _words(seconds: float) -> str:
    """Return a time in the largest unit in which it is at least 2."""
    unit = next((name for name in "dhm" if seconds >= 2 * UNITS[name]), "s")
    return f"{seconds / UNITS[unit]:.1f} {unit}"


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        value = float(number) * UNITS[unit]
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"--max-age takes a time like 26h, 90m, 2d or 3600s, got {text!r}")
    return value
