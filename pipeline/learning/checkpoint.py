"""A checkpoint: one folder with the shares of all ranks, and an index that says when it is whole.

Each rank writes into a folder of its own; whoever stores them merges the folders into one. Rank 0's share
holds `checkpoint.json`, which lists the files of all ranks with their sizes: a folder is a checkpoint only
when every listed file is there. DeepSpeed's files hold pickles: read a checkpoint from the run's own
storage only, never from a stranger.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.learning.engine import Engine
from pipeline.learning.gather import gather_objects, rank, world_size
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
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except FileNotFoundError:
        raise OSError(f"{folder} is not a complete checkpoint: it has no {INDEX}") from None
    except ValueError as error:
        raise OSError(f"{folder / INDEX} is damaged: {error}") from error
    if index["format"] != FORMAT:
        raise ValueError(f"{folder}: checkpoint format must be {FORMAT}, got {index['format']}")
    missing = [name for name, size in index["files"].items() if not _is_whole(folder / name, size)]
    if missing:
        raise OSError(
            f"{folder} is not a complete checkpoint: {len(missing)} of {len(index['files'])} files are "
            f"missing or cut short, first {missing[0]}; resume from an earlier one"
        )
    return index


def check_facts(index: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to the run that wants to go on from it.

    Raises:
        ValueError: it belongs to another run: says what differs.
    """
    mine, theirs = json.loads(json.dumps(dict(facts))), index["facts"]
    different = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    if different:
        told = "; ".join(f"{name} was {theirs.get(name)}, is {mine.get(name)}" for name in different)
        raise ValueError(
            f"cannot go on from the checkpoint of this run: {told}; keep the old settings, or choose another "
            "run.name"
        )


class CheckpointStore:
    """The checkpoints of a run in one process: the last few, newest first, local or on object storage."""

    device = "cpu"

    def __init__(self, storage: Storage, path: str, *, keep: int = 2) -> None:
        self._storage, self._path, self._keep = storage, path, keep

    @contextlib.contextmanager
    def newest_checkpoint(self) -> Iterator[Path | None]:
        """Give the newest complete checkpoint as a folder, or None; one cut short is passed over."""
        with tempfile.TemporaryDirectory() as temporary:
            for name in reversed(self._names()):
                folder = Path(temporary) / name
                self._storage.download_folder(f"{self._path}/{name}", folder)
                try:
                    read_index(folder)
                except OSError as error:
                    log.warning("%s", error)
                    continue
                yield folder
                return
            yield None

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


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
