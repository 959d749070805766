"""The actions that only look: list, show, verify, diff, explain."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from cmh_models.artefact_digest import artefact_digest
from jobs.command import Result
from jobs.upkeep.request import Request
from pipeline.corpus.schema import sample_ids
from pipeline.releases.addresses import model_path
from pipeline.releases.differences import Difference, compare
from pipeline.releases.forgetting import forgotten_keys
from pipeline.releases.heads import Entry
from pipeline.releases.locating import find_rows
from pipeline.releases.manifest import SCHEMAS, ManifestError, read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import stored_releases, verify

LINES = 20
"""So many units of each kind are listed; the rest is counted."""


def show_log(request: Request) -> Result:
    """Print the log of the channel, and every release that the store keeps."""
    request.none("list")
    log = request.log
    history, releases = log.history(), stored_releases(log.storage)
    print(f"{'seq':>4}  {'kind':<8}  {'release':<32}  {'fence':>5}  {'at':<17}  lease until        by")
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


def show(request: Request) -> Result:
    """Print what a release was made with and holds, and what the gate said of it."""
    digest = request.digest("show")
    manifest = read_release(request.log.storage, digest)
    print(f"release {digest}\n{manifest.model_dump_json(indent=1)}")
    return Result(outputs={"release": digest}, counts=manifest.totals)


def check(request: Request) -> Result:
    """Read and hash everything that a release names."""
    digest = request.digest("verify")
    verdict = verify(request.log.storage, digest)
    faults = [*verdict.faults, *_model_faults(request.log.storage, digest)]
    for fault in faults:
        print(fault)
    print(f"release {digest}: {verdict.files} files, {verdict.size} bytes, {len(faults)} faults")
    return Result(
        "failed" if faults else "done",
        outputs={"release": digest},
        counts={"files": verdict.files, "bytes": verdict.size, "faults": len(faults)},
        details={"faults": faults},
    )


def show_difference(request: Request) -> Result:
    """Print what the second release has that the first has not, and the other way round."""
    first, second = request.exactly("diff", "a release", "another one")
    found = compare(request.log.storage, first, second)
    _print_units("added", found.added)
    _print_units("removed", found.removed)
    _print_units("changed", found.changed)
    for name, (before, after) in found.recipe.items():
        print(f"recipe   {name}: {before} -> {after}")
    counts = _counts(found)
    print(" ".join(f"{name}={value}" for name, value in counts.items()))
    return Result(
        outputs={"from": first, "to": second}, counts=counts, details={"recipe": sorted(found.recipe)}
    )


def explain(request: Request) -> Result:
    """Print where a key is in the current release, side by side, or why it was rejected."""
    (key,) = request.exactly("explain", "one key")
    storage, digest = request.log.storage, request.current()
    manifest = read_release(storage, digest)
    tables = {name: read_table(storage, manifest, name) for name in SCHEMAS}
    places, rejections = find_rows(storage, tables, key, number=int(sample_ids([key])[0]))
    hidden = key in forgotten_keys(request.log)
    for place in places:
        print(f"{place.side}: row {place.row} of {place.unit}{', stale' if place.stale else ''}")
        print(f"  code {place.code} of model {manifest.recipe.model}")
        print(f"  in {place.code_file}; row {place.position} of part {place.part}")
    for rejection in rejections:
        print(f"{rejection.side}: row {rejection.row} of {rejection.unit} was rejected")
        print(f"  {rejection.reason}: {rejection.error}")
    if hidden:
        print("forgotten: no reader is shown it; `releases gc --purge` removes what is left of it")
    if not places and not rejections:
        print(f"release {digest} has no row of this key: it is absent, on both sides, or not in the source")
    return Result(
        outputs={"release": digest, "model": manifest.recipe.model},
        counts={"places": len(places), "rejections": len(rejections)},
        details={
            "places": [asdict(place) for place in places],
            "rejections": [asdict(rejection) for rejection in rejections],
            "forgotten": hidden,
        },
    )


def _model_faults(storage: Storage, release: str) -> Iterator[str]:
    """Compare the files of a release's model with the digest that names them."""
    try:
        model = read_release(storage, release).recipe.model
    except ManifestError:
        return  # said already
    path = model_path(model)
    if not storage.list(path):
        return
    with TemporaryDirectory() as folder:
        local = storage.local(path) or Path(folder) / "model"
        if not local.exists():
            storage.download_folder(path, local)
        try:
            found = artefact_digest(local)
        except ValueError as error:
            yield str(error)
            return
    if found != model:
        yield f"{storage.where(path)} is damaged: its files have digest {found}, the release names {model}"


def _counts(found: Difference) -> dict[str, int]:
    return {
        "units_added": len(found.added),
        "units_removed": len(found.removed),
        "units_changed": len(found.changed),
        "units_same": found.same,
        "parts_shared": found.parts_shared,
        "parts_added": found.parts_added,
        "parts_removed": found.parts_removed,
    }


def _print_units(what: str, units: pa.Table) -> None:
    for row in units.slice(0, LINES).to_pylist():
        rows = f"{row['rows_a'] or 0} -> {row['rows_b'] or 0} rows"
        print(f"{what:<8} {row['side']:<5} {row['path']}  {rows}")
    if len(units) > LINES:
        print(f"{what:<8} ... and {len(units) - LINES} more")


def _line(entry: Entry) -> str:
    where = f"{entry.seq:>4}  {entry.kind:<8}  {entry.release or '-':<32}  {entry.fence:>5}"
    return f"{where}  {_time(entry.at):<17}  {_time(entry.expires):<17}  {entry.owner}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ") if seconds else "-"
