"""Removing what no kept release needs: mark from the kept releases of every channel, then sweep the rest.

Kept are the newest releases of each channel, the current one among them. Whoever sweeps holds the lease of
every channel, so that no run is counting on a file that no release names yet; and files younger than a grace
time stay in any case, for the run that will go on where an ended one stopped. So do whole releases: where a
manifest stands, all that it names does. What makes a file count is
removed before what it counts on: a sweep that is ended leaves whole files only, and is simply run again.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.releases.addresses import (
    code_path,
    model_path,
    quantiser_path,
    rejects_path,
    release_path,
    table_path,
)
from pipeline.releases.forgetting import FORGOTTEN
from pipeline.releases.heads import FORGOTTEN_LOG, Log, channels
from pipeline.releases.manifest import SCHEMAS, ManifestError, ReleaseManifest, read_release, read_table
from pipeline.releases.retrying import RETRIES, chain, read_note
from pipeline.releases.storage import SourceFile, Storage
from pipeline.releases.upkeep import named_files

log = logging.getLogger(__name__)

HINTS = "hints"
FOLDERS = ("releases", HINTS, "tables", "parts", "codes", "rejects", "quantisers", "models", RETRIES)
"""What is swept, in this order; nothing outside of these folders is ever removed."""
PATIENCE = 14 * 86400.0
"""Seconds for which a model waits for its first release, and a channel for its next night."""

SETTLING = 3600.0
"""Seconds for which a list of forgotten keys stays that no log names: one may be about to."""

_THREADS = 16


@dataclass(frozen=True)
class Marked:
    """What is needed: the paths of all files that some releases name."""

    paths: frozenset[str]
    folders: tuple[str, ...]  # whole folders that are needed, with a slash at their end

    def needs(self, path: str) -> bool:
        """Tell whether a kept release needs a file."""
        return path in self.paths or path.startswith(self.folders)


def kept_releases(storage: Storage, *, keep: int) -> set[str]:
    """Return the newest releases of every channel, the current ones among them.

    Raises:
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"at least the current release of every channel is kept, got --keep {keep}")
    logs = [Log(storage, name) for name in channels(storage)]
    return {digest for log in logs for digest in itertools.islice(log.releases(), keep)}


def young_releases(storage: Storage, *, since: float) -> set[str]:
    """Return the releases whose manifests were written since (Unix seconds), published or not.

    One that is damaged is told of and left out: nobody can go back to it.
    """
    found = set()
    for file in storage.files("releases"):
        digest = file.path.removeprefix("releases/").removesuffix(".json")
        if file.modified < since:
            continue
        try:
            read_release(storage, digest)
        except ManifestError as error:
            log.warning("%s", error)
        else:
            found.add(digest)
    return found


def mark(storage: Storage, releases: set[str], *, noted_since: float) -> Marked:
    """Find what the releases need that are kept, and what the next ones of their channels have so far.

    Args:
        noted_since: Unix seconds; what the nights of a channel have made without publishing it is needed if
            they have noted some of it since.
    Raises:
        ManifestError: one of them is missing or damaged, so that nobody knows what it needs; roll back to a
            whole one, keep fewer, or lower the grace time.
    """
    paths: set[str] = set()
    models: set[str] = set()
    wanted: set[str] = set()
    for digest in sorted(releases):
        manifest = read_release(storage, digest)
        tables = {name: read_table(storage, manifest, name) for name in SCHEMAS}
        paths |= {file.path for file in named_files(tables)} | set(_own_files(digest, manifest))
        models.add(f"{model_path(manifest.recipe.model)}/")
        wanted |= set(pc.unique(tables["units"]["code"]).to_pylist())
    paths |= set(_needed_notes(storage, wanted)) | set(_forgotten(storage))
    paths |= set(_unpublished(storage, noted_since))
    return Marked(frozenset(paths), tuple(sorted(models)))


def unneeded(storage: Storage, marked: Marked, *, older_than: float, now: float) -> list[SourceFile]:
    """List the files that no kept release needs and that were written before a time, in order of removal.

    Args:
        older_than: Unix seconds. A model counts as old as its youngest file, and is given PATIENCE besides.
        now: Unix seconds.
    """
    found = [file for folder in FOLDERS for file in _ordered(storage, folder) if not marked.needs(file.path)]
    youngest: dict[str, float] = {}
    for file in found:
        name = _whole(file.path)
        youngest[name] = max(file.modified, youngest.get(name, 0.0))
    limits = {"models": min(older_than, now - PATIENCE)}
    old = (
        file
        for file in found
        if youngest[_whole(file.path)] < limits.get(file.path.split("/")[0], older_than)
    )
    return [file for file in old if file.modified < now - SETTLING or not _lists_forgotten(storage, file)]


def sweep(storage: Storage, files: Sequence[SourceFile], *, undisturbed: Callable[[], bool]) -> int:
    """Remove files that `unneeded` listed; return the bytes they had.

    Manifests go first. If a rollback has come meanwhile they are put back and nothing is removed.

    Args:
        undisturbed: tells whether all leases are still held under which the files were found, and appends an
            entry to each of their logs.
    Raises:
        RuntimeError: they are not.
    """
    manifests = [file.path for file in files if file.path.startswith("releases/")]
    saved = {path: storage.read(path) for path in manifests}
    for path in manifests:
        storage.delete(path)
    quiet = False
    try:
        quiet = undisturbed()
    finally:
        if not quiet:
            for path, data in saved.items():
                storage.create(path, data)
    if not quiet:
        raise RuntimeError(f"{storage.where()}: a rollback or another run came between; nothing was removed")
    rest = [file.path for file in files if not file.path.startswith("releases/")]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _, group in itertools.groupby(rest, key=_rank):
            list(pool.map(storage.delete, group))
    return sum(file.size for file in files)


def _own_files(digest: str, manifest: ReleaseManifest) -> Iterator[str]:
    yield release_path(digest)
    yield from (table_path(getattr(manifest, name).sha256) for name in SCHEMAS)
    yield from (quantiser_path(quantiser) for quantiser in manifest.recipe.quantisers.values())


def _forgotten(storage: Storage) -> Iterator[str]:
    newest = Log(storage, FORGOTTEN_LOG).newest()
    if newest is not None and newest.forgotten is not None:
        yield table_path(newest.forgotten)


def _lists_forgotten(storage: Storage, file: SourceFile) -> bool:
    """Tell whether a file is a list of forgotten keys, which may stay for a while: it names none of them."""
    if not file.path.startswith("tables/"):
        return False
    try:
        return pq.read_schema(pa.BufferReader(storage.read(file.path))).equals(FORGOTTEN)
    except (FileNotFoundError, pa.ArrowException):
        return False


def _unpublished(storage: Storage, since: float) -> Iterator[str]:
    """Yield the notes of channels that are being filled, and the files that they name."""
    for file in storage.files(HINTS):
        if file.modified < since:
            continue
        try:
            codes = pq.read_table(pa.BufferReader(storage.read(file.path)), columns=["code"])["code"]
        except (pa.ArrowException, ValueError, KeyError) as error:
            log.warning("%s is passed over: %s", storage.where(file.path), error)
            continue
        yield file.path
        for address in codes.to_pylist():
            yield code_path(address)
            yield rejects_path(address)


def _needed_notes(storage: Storage, wanted: set[str]) -> Iterator[str]:
    """Yield the notes of retries that led to, or will lead from, an address of a kept release."""
    notes = {path: read_note(storage, path) for path in storage.list(RETRIES)}
    retries = frozenset(address for addresses in notes.values() for address in addresses)
    for path, addresses in notes.items():
        if any(not wanted.isdisjoint(chain(address, retries)) for address in addresses):
            yield path


def _ordered(storage: Storage, folder: str) -> list[SourceFile]:
    return sorted(storage.files(folder), key=lambda file: (_rank(file.path), file.path))


def _rank(path: str) -> tuple[int, int]:
    """Order removals: a part before its keys; what makes a model known, or one at all, before its weights."""
    last = not path.endswith((".faiss", "/config.json")) and "/facts-" not in path
    return FOLDERS.index(path.split("/")[0]), int(last)


def _whole(path: str) -> str:
    """Return what a file is old or young with: its model, its part, or itself."""
    folder, _, name = path.partition("/")
    if folder == "models":
        return f"{folder}/{name.partition('/')[0]}"
    return f"{folder}/{name.partition('.')[0]}"
