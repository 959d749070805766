"""What the nights of the demo came to, read back from the releases that they published."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.command import Result
from jobs.demonstration.page import SIDE_NAMES
from jobs.demonstration.questions import Corpus, hits_of
from jobs.demonstration.source import Edits, Folders
from pipeline.corpus.schema import SIDES, sample_ids
from pipeline.quality.report.content import FileOfNight, Gone, Hit, Ledger, Night, Nights, Rejected
from pipeline.releases.addresses import code_path, rejects_path
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Release

SHOWN = 4


@dataclass(frozen=True)
class RanNight:
    """A run of the nightly job."""

    name: str
    result: Result
    seconds: float

    @property
    def release(self) -> str:
        return str(self.result.outputs["release"])


def describe_nights(folders: Folders, ran: Sequence[RanNight], edits: Edits) -> Nights:
    """Return what the page tells of the nights; the second one is told in full."""
    store = Storage(folders.store)
    tables = {night.release: units_of(store, night.release) for night in ran}
    before, after = tables[ran[0].release], tables[ran[1].release]
    return Nights(
        nights=[_describe(night, tables[night.release]) for night in ran],
        changes=edits.changes,
        files=_files(before, after),
        rejects=_rejects(store, ran[1].release),
        gone=_gone(folders, before, edits, releases=(ran[0].release, ran[1].release)),
    )


def units_of(store: Storage, release: str) -> pa.Table:
    """Return the table of units of a release."""
    return read_table(store, read_release(store, release), "units")


def bytes_read(before: pa.Table | None, after: pa.Table) -> int:
    """Return the size of the source files that a release could not take over from the one before."""
    known = set(before["code"].to_pylist()) if before is not None else set()
    return sum({row["path"]: row["size"] for row in after.to_pylist() if row["code"] not in known}.values())


def _describe(night: RanNight, units: pa.Table) -> Night:
    counts = night.result.counts
    return Night(
        name=night.name,
        seconds=night.seconds,
        release=night.release,
        ledgers=[_ledger(side, units, counts[f"rows_encoded_{side}"]) for side in SIDES],
        units_encoded=counts["units_encoded"],
        units_total=counts["units_total"],
        parts_built=counts["parts_built"],
        parts_reused=counts["parts_reused"],
    )


def _ledger(side: str, units: pa.Table, encoded: int) -> Ledger:
    mine = units.filter(pc.equal(units["side"], side))
    total = {name: pc.sum(mine[name]).as_py() for name in ("read", "encoded", "rejected", "absent")}
    return Ledger(
        side=SIDE_NAMES[side],
        rows=total["read"],
        encoded=encoded,
        reused=total["encoded"] - encoded,
        rejected=total["rejected"],
        absent=total["absent"],
    )


def _files(before: pa.Table, after: pa.Table) -> list[FileOfNight]:
    """Return the files that were read, and in one line those that were not."""
    codes, paths = set(before["code"].to_pylist()), set(before["path"].to_pylist())
    files: dict[str, list[dict[str, Any]]] = {}
    for row in after.to_pylist():
        files.setdefault(row["path"], []).append(row)
    read, untouched = [], []
    for path, rows in files.items():
        if all(row["code"] in codes for row in rows):
            untouched += rows
        else:
            read.append(_file(path, "changed, read again" if path in paths else "new", rows))
    others = len({row["path"] for row in untouched})
    return [*read, _file(f"{others} other files", "as before, not read", untouched)]


def _file(path: str, state: str, rows: Sequence[dict[str, Any]]) -> FileOfNight:
    return FileOfNight(
        path=path,
        state=state,
        rows=sum(row["read"] for row in rows if row["side"] == SIDES[0]),
        codes=sum(row["encoded"] for row in rows),
        rejected=sum(row["rejected"] for row in rows),
    )


def _rejects(store: Storage, release: str) -> list[Rejected]:
    found = []
    for table in read_table(store, read_release(store, release), "rejects").to_pylist():
        rejects = pq.read_table(pa.BufferReader(store.read(rejects_path(table["rejects"]))))
        for row in rejects.to_pylist():
            side = SIDE_NAMES[table["side"]]
            why = {"reason": row["reason"], "error": row["error"]}
            found.append(Rejected(path=table["path"], row=row["row"], key=row["key"] or "", side=side, **why))
    return sorted(found, key=lambda reject: (reject.path, reject.row, reject.side))


def _gone(folders: Folders, before: pa.Table, edits: Edits, *, releases: tuple[str, str]) -> Gone:
    """Search both releases with the code that the first deleted row had."""
    row = edits.deleted[0]
    code = _code_of(Storage(folders.store), before, row["key"])
    old, new = (Release.open(folders.store, digest=digest, sides=["image"]) for digest in releases)
    found = [release.search(code, release.rows("image"), "T2I") for release in (old, new)]
    if row["key"] in found[1].keys[0]:
        raise RuntimeError(f"{row['key']} was deleted from the source and is still found in {new.digest}")
    source = Corpus(folders.corpus)
    shown = [
        _shown(hits.keys[0][:SHOWN], hits.distances[0][:SHOWN], source=source, deleted=edits.deleted)
        for hits in found
    ]
    return Gone(row["key"], row["image"], row["text"], shown[0], shown[1], new.rows("image"))


def _shown(
    keys: Sequence[str], distances: np.ndarray, *, source: Corpus, deleted: Sequence[dict[str, Any]]
) -> list[Hit]:
    """Return hits of which some may be gone from the source."""
    lost = {row["key"]: row for row in deleted}
    hits = []
    for key, distance in zip(keys, distances.tolist(), strict=True):
        if key in lost:
            hits.append(Hit(key, distance, (), picture=lost[key]["image"], text=lost[key]["text"]))
        else:
            hits += hits_of([key], np.array([distance]), source=source, labels=())
    return hits


def _code_of(store: Storage, units: pa.Table, key: str) -> np.ndarray:
    """Return the (1, S) picture code of a key, from the code files of a release."""
    wanted = int(sample_ids([key])[0])
    for address in units.filter(pc.equal(units["side"], "image"))["code"].to_pylist():
        table = pq.read_table(pa.BufferReader(store.read(code_path(address))), columns=["id", "key", "code"])
        for row in table.filter(pc.equal(table["id"], wanted)).to_pylist():
            if row["key"] == key:
                return np.frombuffer(row["code"], np.uint8)[None]
    raise RuntimeError(f"no code file of the release holds {key}")
