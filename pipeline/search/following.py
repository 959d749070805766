"""A release that follows the log: queries go on being answered while a newer one is opened and taken.

Whoever serves queries for days opens one of these; whoever needs the same answers throughout opens a Release.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.releases.forgetting import forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Hits, Release

log = logging.getLogger(__name__)


class Following:
    """The newest release of a channel, opened again when there is a newer one. Safe for several threads.

    A query that finds it is time has the log looked at, in a thread beside it: no query waits, and those
    under way end on the release that they began with. While the store cannot be read, or a newer release
    cannot be opened, the old one goes on answering (a warning says why). Keys that are forgotten meanwhile
    are hidden from the next look on; if the list of them is damaged, nothing is answered.

    Args:
        open_newest: opens the channel's newest release, or the one of `digest=`.
        seconds: between two looks at the log.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        open_newest: Callable[..., Release],
        channel: str = "main",
        *,
        seconds: float = 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if seconds < 0:
            raise ValueError(f"seconds must be at least 0, got {seconds}")
        self.seconds = seconds
        self._open, self._clock = open_newest, clock
        self._release = open_newest()
        self._log = Log(Storage(self._release.uri), channel)
        self._looked = clock()
        self._looking = threading.Lock()
        self._fault: ManifestError | None = None

    @property
    def release(self) -> Release:
        """The newest release that is known; where several questions belong together, keep hold of it.

        Raises:
            ManifestError: the list of forgotten keys is damaged.
        """
        if self._clock() - self._looked >= self.seconds and self._looking.acquire(blocking=False):
            self._looked = self._clock()
            threading.Thread(target=self._look_beside, name="hashfleet-follow", daemon=True).start()
        if self._fault is not None:
            raise self._fault
        return self._release

    def search(self, *args: Any, **options: Any) -> Hits:
        """Search the newest release; see `Release.search`."""
        return self.release.search(*args, **options)

    def range_search(self, *args: Any, **options: Any) -> list[Any]:
        """Search the newest release by radius; see `Release.range_search`."""
        return self.release.range_search(*args, **options)

    def look(self) -> bool:
        """Look at the log now, and wait for it; return whether another release was taken.

        Raises:
            ManifestError, OSError: the log or the newer release cannot be read; the old one stays.
        """
        with self._looking:
            self._looked = self._clock()
            return self._look()

    def _look(self) -> bool:
        before = self._release
        newest = self._log.current_release()
        changed = newest is not None and newest != before.digest
        opened = self._open(digest=newest) if changed else before
        try:
            forgotten = forgotten_keys(self._log)
        except ManifestError as error:
            self._fault = error
            raise
        if forgotten.table != opened.forgotten.table:
            opened = opened.hiding(forgotten)
        self._release, self._fault = opened, None
        if changed:
            log.info("went over from release %s to %s", before.digest, newest)
        return changed

    def _look_beside(self) -> None:
        try:
            self._look()
        except Exception as error:  # whatever it was, queries are to go on being answered
            log.warning("still at release %s: %s", self._release.digest, error)
        finally:
            self._looking.release()
