"""A checkpoint: one folder with the shares of all ranks, and an index that says when it is whole.

Each rank writes into a folder of its own; whoever stores them merges the folders into one. Rank 0's share
holds `checkpoint.json`, which lists the files of all ranks with their sizes: a folder is a checkpoint only
when every listed file is there. DeepSpeed's files hold pickles: read a checkpoint from the run's own
storage only, never from a stranger.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.learning.engine import Engine
from pipeline.learning.gather import gather_objects, rank, world_size
from pipeline.learning.once import made_once
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)
INDEX = "checkpoint.json"
FORMAT = 2


@dataclass(frozen=True)
class Position:
    """Where a run stands: the epoch in progress, and the optimiser steps done in the whole run."""

    epoch: int = 0
    step: int = 0


START = Position()


def save_checkpoint(
    engine: Engine,
    folder: Path,
    position: Position,
    *,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Write this rank's share into an empty folder; called by all ranks.

    Args:
        facts: what a run that resumes from here must have in common with this one.
        metrics: what was measured at this position.
    """
    engine.save(folder)
    mine = {
        str(file.relative_to(folder).as_posix()): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    shares = gather_objects(mine)
    if rank() == 0:
        index = {
            "format": FORMAT,
            **asdict(position),
            "engine": engine.kind,
            "world_size": world_size(),
            "facts": dict(facts),
            "metrics": dict(metrics),
            "files": {name: size for share in shares for name, size in share.items()},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a complete checkpoint.

    Raises:
        OSError: the index or a file that it lists is missing or cut short.
        ValueError: the index was written by a newer version.
    """
    try:
        text = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        raise OSError(f"{folder} is not a complete checkpoint: it has no {INDEX}") from None
    sizes = {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file()
    }
    return _whole(text, sizes, where=str(folder))


def whole_checkpoints(storage: Storage, run: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the complete checkpoints below a folder, the newest first: where each stands, and its index.

    However many ranks kept them, and whether under Ray or not. Told by a listing: only indices are read.

    Raises:
        ValueError: an index was written by a newer version.
    """
    sizes = {file.path: file.size for file in storage.files(run)}
    found = []
    for path in sizes:
        folder, _, name = path.rpartition("/")
        if name != INDEX:
            continue
        inside = {file.removeprefix(f"{folder}/"): size for file, size in sizes.items()}
        try:
            found.append((folder, _whole(storage.read(path), inside, where=storage.where(folder))))
        except OSError as error:  # one that is not, or that was removed meanwhile
            log.warning("%s; it is passed over", error)
    return sorted(found, key=lambda each: int(each[1]["step"]), reverse=True)


def drop_leftovers(storage: Storage, run: str, kept: Collection[str], *, prefix: str) -> list[str]:
    """Remove what ranks uploaded of checkpoints that nobody keeps, since they died over it; return the names.

    For a run that has ended: none is being uploaded. What may still be gone on from is left alone: a
    checkpoint of more steps than the newest whole one that is kept, and all where there is none.

    Args:
        kept: names of the folders, below the run's own, of those that are.
        prefix: what all such names begin with.
    """
    whole = {path.rpartition("/")[2]: int(index["step"]) for path, index in whole_checkpoints(storage, run)}
    newest = max((whole[name] for name in kept if name in whole), default=-1)
    files: dict[str, list[str]] = {}
    for path in storage.list(run):
        name, _, inside = path.removeprefix(f"{run}/").partition("/")
        if inside and name.startswith(prefix) and name not in kept and whole.get(name, 0) <= newest:
            files.setdefault(name, []).append(path)
    for name, paths in files.items():
        paths.sort(key=lambda path: not path.endswith(f"/{INDEX}"))  # first what makes it whole
        for path in paths:
            storage.delete(path)
        if (here := storage.local(f"{run}/{name}")) is not None:
            shutil.rmtree(here, ignore_errors=True)  # its empty folders
    return sorted(files)


def _differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Tell by its dotted name each setting that differs; where a name differs, the rest follows from it."""
    if "name" in was and was["name"] != now.get("name"):
        yield f"{prefix}name was {was['name']}, is {now.get('name')}"
        return
    for name in was | now:
        one, other = was.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name} was {one}, is {other}"


@contextlib.contextmanager
def newest_checkpoint(storage: Storage, run: str) -> Iterator[Path | None]:
    """Give the newest complete checkpoint of a run as a folder, or None; called by all ranks.

    Rank 0 chooses, so that all go on from the same one. From object storage it is brought once a node.

    Raises:
        OSError: it cannot be brought here.
        ValueError: one was written by a newer version; on all ranks.
    """
    chosen: tuple[str | None, str] = gather_objects(_choose(storage, run) if rank() == 0 else (None, ""))[0]
    path, error = chosen
    if error:
        raise ValueError(error)
    if path is None or (here := storage.local(path)) is not None:
        yield None if path is None else here
        return
    where = storage.where(path)
    with made_once(where, lambda target: storage.download_folder(path, target)) as (folder, error):
        if folder is None:
            raise OSError(f"{where} cannot be brought here: {error}")
        yield folder


def _choose(storage: Storage, run: str) -> tuple[str | None, str]:
    """Return the path of the newest complete checkpoint, or why none can be chosen."""
    try:
        whole = whole_checkpoints(storage, run)
    except ValueError as error:
        return None, str(error)
    return (whole[0][0] if whole else None), ""


def _whole(text: bytes, sizes: Mapping[str, int], *, where: str) -> dict[str, Any]:
    """Return an index if the files that it lists are there, by their sizes."""
    try:
        index: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise OSError(f"{where}/{INDEX} is damaged: {error}") from error
    if index["format"] != FORMAT:
        raise ValueError(f"{where}: checkpoint format must be {FORMAT}, got {index['format']}")
    missing = [name for name, size in index["files"].items() if sizes.get(name) != size]
    if missing:
        raise OSError(
            f"{where} is not a complete checkpoint: {len(missing)} of {len(index['files'])} files are "
            f"missing or cut short, first {missing[0]}"
        )
    return index


def check_facts(index: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to the run that wants to go on from it.

    Raises:
        ValueError: it belongs to another run: says what differs.
    """
    told = "; ".join(_differences(index["facts"], json.loads(json.dumps(dict(facts)))))
    if told:
        raise ValueError(
            f"cannot go on from the checkpoint of this run: {told}; keep the old settings, or choose another "
            "run.name"
        )


class CheckpointStore:
    """Where a run in one process keeps its checkpoints: the last few, local or on object storage."""

    def __init__(self, storage: Storage, path: str, *, keep: int = 2) -> None:
        self._storage, self._path, self._keep = storage, path, keep

    def report(self, metrics: Mapping[str, float], folder: Path | None) -> None:
        """Keep a checkpoint, and drop those that are too old."""
        if folder is None:
            return
        index = read_index(folder)
        self._storage.upload_folder(folder, f"{self._path}/step-{index['step']:012d}")
        for name in self._names()[: -self._keep]:
            for file in self._storage.list(f"{self._path}/{name}"):
                self._storage.delete(file)

    def _names(self) -> list[str]:
        prefix = f"{self._path}/"
        return sorted({file.removeprefix(prefix).split("/")[0] for file in self._storage.list(self._path)})
