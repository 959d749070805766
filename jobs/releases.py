"""Look after the releases of a store.

  list             the log of the channel, and every release that the store keeps
  show [DIGEST]    what a release was made with and holds (default: the current one)
  verify [DIGEST]  read and hash everything a release names; exit code 1 when something is wrong

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
from datetime import UTC, datetime

from jobs.command import Result
from jobs.config import Config
from pipeline.releases.heads import Entry, Log
from pipeline.releases.manifest import ManifestError, check_store, read_release
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import stored_releases, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=list(ACTIONS), help="what to do")
    parser.add_argument("digest", nargs="?", help="a release; the current one if left out")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Open the store and do what was asked."""
    storage = Storage(config.require("store.uri"))
    check_store(storage)
    return ACTIONS[args.action](Log(storage, config.store.channel), args.digest)


def _list(log: Log, digest: str | None) -> Result:
    if digest is not None:
        raise ValueError(f"list takes no release, got {digest}; use show")
    history, releases = log.history(), stored_releases(log.storage)
    print(f"{'seq':>4}  {'kind':<8}  {'release':<32}  {'fence':>5}  lease until        by")
    for entry in history:
        print(_line(entry))
    current = history[-1].release if history else None
    print(f"\n{'release':<32}  units  parts")
    for name, release in releases.items():
        if isinstance(release, ManifestError):
            print(f"{name}  damaged: {release}")
        else:
            mark = "  current" if name == current else ""
            print(f"{name}  {release.totals['units']:>5}  {release.totals['parts']:>5}{mark}")
    if current is not None and current not in releases:
        print(f"{current}  missing: the log names it as current; restore releases/{current}.json")
    return Result(outputs={"release": current}, counts={"entries": len(history), "releases": len(releases)})


def _show(log: Log, digest: str | None) -> Result:
    digest = digest or _current(log)
    manifest = read_release(log.storage, digest)
    print(f"release {digest}\n{manifest.model_dump_json(indent=1)}")
    return Result(outputs={"release": digest}, counts=manifest.totals)


def _verify(log: Log, digest: str | None) -> Result:
    digest = digest or _current(log)
    verdict = verify(log.storage, digest)
    for fault in verdict.faults:
        print(fault)
    print(f"release {digest}: {verdict.files} files, {verdict.size} bytes, {len(verdict.faults)} faults")
    return Result(
        "failed" if verdict.faults else "done",
        outputs={"release": digest},
        counts={"files": verdict.files, "bytes": verdict.size, "faults": len(verdict.faults)},
        details={"faults": list(verdict.faults)},
    )


ACTIONS: dict[str, Callable[[Log, str | None], Result]] = {"list": _list, "show": _show, "verify": _verify}


def _current(log: Log) -> str:
    digest = log.current_release()
    if digest is None:
        raise ManifestError(
            f"{log.storage.where()}: nothing is published in channel {log.channel!r}; a nightly run does that"
        )
    return digest


def _line(entry: Entry) -> str:
    until = "-"
    if entry.expires:
        until = datetime.fromtimestamp(entry.expires, UTC).strftime("%Y-%m-%d %H:%MZ")
    where = f"{entry.seq:>4}  {entry.kind:<8}  {entry.release or '-':<32}  {entry.fence:>5}"
    return f"{where}  {until:<17}  {entry.owner}"
