"""The action that removes files: gc, and with --purge what the store still holds of forgotten keys."""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence

from jobs.command import Result
from jobs.nights.leases import StoreLease, whole_store
from jobs.upkeep.request import Request
from pipeline.releases.collecting import PATIENCE, kept_releases, mark, sweep, unneeded, young_releases
from pipeline.releases.forgetting import forgotten_keys
from pipeline.releases.storage import SourceFile

log = logging.getLogger(__name__)

LINES = 20
KEEP = 3
GRACE_HOURS = PATIENCE / 3600


def collect(request: Request) -> Result:
    """Remove what none of the newest releases of any channel needs; list it, and remove nothing, if dry."""
    request.none("gc")
    _grace_hours(request)
    keep = KEEP if request.args.keep is None else request.args.keep
    if keep < 1:
        raise ValueError(f"--keep must be at least 1, the current release of every channel, got {keep}")
    if request.dry_run:
        files = _find(request, kept_releases(request.log.storage, keep=keep))
        return _told(request, files, removed=0)
    with whole_store(request.log, request.config) as lease:
        if lease.locked_by:
            log.info("locked: a lease is held, of %s", lease.locked_by)
            return Result("locked", details={"holder": lease.locked_by})
        purged = 0
        if request.args.purge:
            kept, purged = _purge(request, lease, keep=keep)
        else:
            kept = kept_releases(request.log.storage, keep=keep)
        files = _find(request, kept)
        removed = sweep(request.log.storage, files, undisturbed=lease.undisturbed)
    return _told(request, files, removed=removed, purged=purged)


def _grace_hours(request: Request) -> float:
    hours: float | None = request.args.grace_hours
    if hours is None:
        return GRACE_HOURS
    if not 0 <= hours < math.inf:
        raise ValueError(f"--grace-hours must be a number of hours from 0, got {hours:g}")
    if request.args.purge and hours:
        raise ValueError(f"--purge spares no young file, got --grace-hours {hours:g} beside it; leave it out")
    return hours


def _find(request: Request, kept: set[str]) -> list[SourceFile]:
    """List what can go. A purge leaves nothing for ended runs: their files may hold what was forgotten."""
    storage, now = request.log.storage, time.time()
    if request.args.purge:
        older_than = noted_since = math.inf
    else:
        older_than, noted_since = now - 3600 * _grace_hours(request), now - PATIENCE
    marked = mark(storage, kept | young_releases(storage, since=older_than), noted_since=noted_since)
    return unneeded(storage, marked, older_than=older_than, now=now)


def _purge(request: Request, lease: StoreLease, *, keep: int) -> tuple[set[str], int]:
    """Rewrite and publish the current release of every channel; return what is kept, and how many were."""
    from jobs.upkeep.purging import Purge  # needs what encodes and indexes, which the other actions can spare

    storage = request.log.storage
    purge = Purge(storage, forgotten_keys(request.log))
    count = 0
    for name, (channel, held) in lease.held.items():
        current = channel.current_release()
        left = purge.rewrite(current) if current is not None else None
        if left is not None and left != current:
            channel.publish(held, left, keep_lease=True)
            log.info("channel %s: release %s without forgotten keys is %s", name, current, left)
            count += 1
    return {digest for digest in kept_releases(storage, keep=keep) if not purge.holds(digest)}, count


def _told(request: Request, files: Sequence[SourceFile], *, removed: int, purged: int = 0) -> Result:
    verb = "would remove" if request.dry_run else "removed"
    for file in files[:LINES]:
        print(f"{verb} {file.size:>12} {file.path}")
    if len(files) > LINES:
        print(f"{verb} ... and {len(files) - LINES} more")
    size = sum(file.size for file in files)
    folders = Counter(file.path.split("/")[0] for file in files)
    what = ", ".join(f"{count} of {name}" for name, count in sorted(folders.items())) or "nothing"
    print(f"{verb} {what}: {size} bytes")
    counts = {"files_unneeded": len(files), "bytes_unneeded": size, "bytes_removed": removed}
    return Result(counts=counts | {"releases_purged": purged})
