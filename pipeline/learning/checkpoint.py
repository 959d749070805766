"""A checkpoint: one folder with the shares of all ranks, and an index that says when it is whole.

Each rank writes into a folder of its own; whoever stores them merges the folders into one. Rank 0's share
holds `checkpoint.json`, which lists the files of all ranks with their sizes: a folder is a checkpoint only
when every listed file is there. DeepSpeed's files hold pickles: read a checkpoint from the run's own
storage only, never from a stranger.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.learning.engine import Engine
from pipeline.learning.gather import gather_objects, rank, world_size

INDEX = "checkpoint.json"
FORMAT = 1


@dataclass(frozen=True)
class Position:
    """Where a run stands: the epoch in progress, and the optimiser steps done in the whole run."""

    epoch: int = 0
    step: int = 0


def save_checkpoint(engine: Engine, folder: Path, position: Position, facts: dict[str, Any]) -> None:
    """Write this rank's share into an empty folder; called by all ranks.

    Args:
        facts: what a run that resumes from here must have in common with this one.
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
            "world_size": world_size(),
            "facts": facts,
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


def load_checkpoint(engine: Engine, folder: Path, facts: dict[str, Any]) -> Position:
    """Read a complete checkpoint back into the engine and return where it stood.

    Raises:
        OSError: it is not complete.
        ValueError: it belongs to another run: says what differs.
    """
    index = read_index(folder)
    mine = json.loads(json.dumps({"world_size": world_size(), **facts}))
    theirs = {"world_size": index["world_size"], **index["facts"]}
    different = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    if different:
        told = "; ".join(f"{name} was {theirs.get(name)}, is {mine.get(name)}" for name in different)
        raise ValueError(
            f"cannot resume from {folder}: {told}; keep these settings, or give the run another name"
        )
    engine.load(folder)
    return Position(index["epoch"], index["step"])


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
