"""What the store remembers of the runs of a channel: the last one, and the last one that failed.

The two files are overwritten and nothing rests on them; `hashfleet status` tells them.
"""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from jobs.config import Config
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)

LAST, FAILED = "last", "failed"


@dataclass(frozen=True)
class Remembered:
    """How a run ended, by the clock of its machine."""

    at: float  # Unix seconds
    status: str
    error: str | None
    release: str | None


def remember(config: Config, line: dict[str, Any]) -> None:
    """Keep the result line of a run in its store, if there is one; a run that met a lease says nothing."""
    if line["status"] == "locked" or not config.store.uri:
        return
    failed = line["status"] != "done"
    try:
        storage = Storage(config.store.uri)
        if storage.exists("store.json"):
            data = json.dumps({"at": time.time()} | line, indent=1).encode()
            for name in (LAST, FAILED) if failed else (LAST,):
                storage.write(_path(config.store.channel, name), data)
    except (OSError, ValueError) as error:
        log.warning("the store does not remember this run: %s", " ".join(str(error).split()))


def recall(storage: Storage, channel: str) -> tuple[Remembered | None, Remembered | None]:
    """Return the last run of a channel and the last failure; None where none is remembered."""
    return _read(storage, _path(channel, LAST)), _read(storage, _path(channel, FAILED))


def _path(channel: str, name: str) -> str:
    return f"runs/{channel}/{name}.json"


def _read(storage: Storage, path: str) -> Remembered | None:
    try:
        line = json.loads(storage.read(path))
        error = line.get("error") or ("the gate refused" if line["status"] == "refused" else None)
        return Remembered(float(line["at"]), line["status"], error, line["outputs"].get("release"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not a remembered run (%s)", storage.where(path), error)
        return None
