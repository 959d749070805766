"""The actions that append to a log or leave a note: rollback, promote, forget, retry-rejects."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.command import Result
from jobs.upkeep.request import Request
from pipeline.corpus.schema import sample_ids
from pipeline.releases.addresses import check_digest, rejects_path
from pipeline.releases.forgetting import forget, forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.manifest import ManifestError, read_release, read_table
from pipeline.releases.owners import process_name
from pipeline.releases.retrying import retry

HOPELESS = ("forgotten", "duplicate key")
"""Reasons that another try cannot change."""


def roll_back(request: Request) -> Result:
    """Make an earlier release current, by default the one that the current one followed."""
    current = request.current()
    digest = check_digest(request.digest("rollback")) if request.words else _before(request.log)
    read_release(request.log.storage, digest)
    if request.dry_run:
        print(f"would make release {digest} current of channel {request.log.channel!r}, now {current}")
        return Result(outputs={"release": digest, "was": current})
    request.log.rollback(digest, process_name())
    print(f"release {digest} is current of channel {request.log.channel!r}, it was {current}")
    return Result(outputs={"release": digest, "was": current})


def promote(request: Request) -> Result:
    """Make the current release of another channel current here."""
    (name,) = request.exactly("promote", "a channel")
    other = Log(request.log.storage, name)
    digest, before = other.current_release(), request.log.current_release()
    if name == request.log.channel:
        raise ValueError(f"promote takes another channel than {name!r}, into which it promotes")
    if digest is None:
        raise ManifestError(f"{other.storage.where()}: nothing is published in channel {name!r}")
    _check_length(request, digest, before)
    if not request.dry_run:
        request.log.promote(digest, process_name())
    verb = "would be" if request.dry_run else "is"
    print(f"release {digest} of {name!r} {verb} current of channel {request.log.channel!r}, was {before}")
    return Result(outputs={"release": digest, "was": before})


def forget_keys(request: Request) -> Result:
    """Hide keys from every reader at once."""
    keys = sorted({*request.words, *_read_keys(request.args.keys_from)})
    if not keys:
        raise ValueError("forget takes keys, or a file of them as --keys-from")
    if "" in keys:
        raise ValueError("a key has at least one character, got an empty one")
    known = forgotten_keys(request.log)
    new = [key for key in keys if key not in known]
    if not request.dry_run:
        forget(request.log, keys, ids=sample_ids(keys), owner=process_name())
    verb = "would be" if request.dry_run else "are"
    print(f"{len(new)} key(s) {verb} hidden from every reader, {len(keys) - len(new)} were before;")
    print("`releases gc --purge` removes what the store still holds of them")
    return Result(counts={"keys_forgotten": len(new), "keys_known": len(keys) - len(new)})


def retry_rejects(request: Request) -> Result:
    """Have the next night read the units again that have rejects."""
    request.none("retry-rejects")
    storage = request.log.storage
    manifest = read_release(storage, request.current())
    units = read_table(storage, manifest, "units")
    worth = {
        (file["path"], file["first_row_group"], file["side"])
        for file in read_table(storage, manifest, "rejects").to_pylist()
        if not set(_reasons(request, file["rejects"])) <= set(HOPELESS)
    }
    chosen = [
        unit
        for unit in units.filter(pc.greater(units["rejected"], 0)).to_pylist()
        if (unit["path"], unit["first_row_group"], unit["side"]) in worth
    ]
    rows = sum(unit["rejected"] for unit in chosen)
    if chosen and not request.dry_run:
        retry(storage, [unit["code"] for unit in chosen])
    verb = "would be" if request.dry_run else "will be"
    print(f"{len(chosen)} unit side(s) with {rows} rejected rows {verb} read again by the next night")
    return Result(counts={"units_retried": len(chosen), "rows_rejected": rows})


def _check_length(request: Request, digest: str, before: str | None) -> None:
    """Check that a channel keeps the length of its codes, unless it is meant to change."""
    storage = request.log.storage
    new = read_release(storage, digest).recipe.code_length
    try:
        old = new if before is None else read_release(storage, before).recipe.code_length
    except ManifestError:
        return  # what is current is damaged: there are no readers of it to confuse
    if new != old and not request.args.accept_new_length:
        raise ValueError(
            f"release {digest} has codes of {new} bits, channel {request.log.channel!r} of {old}: readers"
            " would ask with codes that do not fit; have them ready for both, then pass --accept-new-length"
        )


def _before(log: Log) -> str:
    """Return the newest release that the current one followed and that the store still has."""
    line = _line(log)
    for digest in reversed(line):
        if digest == line[-1]:
            continue
        try:
            read_release(log.storage, digest)
        except ManifestError:
            continue
        return digest
    raise ManifestError(
        f"{log.storage.where()}: channel {log.channel!r} has no release before the current one; name one that"
        " `releases list` shows"
    )


def _line(log: Log) -> list[str]:
    """Return the releases that led to the current one, which is the last.

    A rollback takes away what had followed the release that it goes back to, so that another one goes on
    from there instead of returning.
    """
    line: list[str] = []
    for entry in log.history():
        if entry.kind == "rollback" and entry.release in line:
            while line[-1] != entry.release:
                line.pop()
        elif entry.release is not None and entry.release not in line[-1:]:
            line.append(entry.release)
    return line


def _reasons(request: Request, address: str) -> list[str]:
    storage, path = request.log.storage, rejects_path(address)
    try:
        rows = pq.read_table(pa.BufferReader(storage.read(path)), columns=["reason"])
    except FileNotFoundError as error:
        raise ManifestError(f"{storage.where(path)} is missing: rejects of the release") from error
    reasons: list[str] = pc.unique(rows["reason"]).to_pylist()
    return reasons


def _read_keys(path: str | None) -> Iterator[str]:
    if path is not None:
        try:
            # Not splitlines: what it takes for the end of a line may stand in a key.
            lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
            yield from (key for line in lines if (key := line.removesuffix("\r")))
        except FileNotFoundError:
            raise ValueError(f"--keys-from: no file at {path}") from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"--keys-from: {path} must be text in UTF-8, a key per line; byte {error.start} is not"
            ) from None
