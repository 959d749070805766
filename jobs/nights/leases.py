"""Leases for as long as work goes on: of one channel, and of a whole store while files are removed."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs.config import Config
from pipeline.releases.heads import UPKEEP_LOG, Lease, Log, channels
from pipeline.releases.owners import is_gone, process_name

log = logging.getLogger(__name__)


@contextmanager
def kept_alive(channel: Log, lease: Lease, seconds: float) -> Iterator[None]:
    """Renew a lease while work goes on, and give it back at the end unless publishing has ended it."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(seconds / 3):
            try:
                channel.renew(lease, seconds)
            except RuntimeError as error:  # over: publishing will find that too, and say it
                log.warning("%s", error)
                return
            except OSError as error:
                log.warning("the lease could not be renewed and is tried again: %s", error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        try:
            channel.release(lease)
        except OSError as error:  # what ended the night is what must be told
            log.warning("the lease is not given back and ends in %.0f s at the latest: %s", seconds, error)


@dataclass
class StoreLease:
    """The leases of every channel of a store. `locked_by`: which of them another has; '' when none."""

    held: dict[str, tuple[Log, Lease]] = field(default_factory=dict)
    locked_by: str = ""
    seconds: float = 900

    def undisturbed(self) -> bool:
        """Tell whether every one of them is still held, by an entry in each log.

        A rollback that has looked at the store before finds its number taken, and looks again.
        """
        try:
            for channel, lease in self.held.values():
                channel.renew(lease, self.seconds)
        except RuntimeError as error:
            log.warning("%s", error)
            return False
        return True


@contextmanager
def whole_store(log: Log, config: Config) -> Iterator[StoreLease]:
    """Hold the lease of every channel of a store, and keep new channels from starting meanwhile."""
    seconds, owner = config.store.lease_seconds, process_name()
    leases = StoreLease(seconds=seconds)
    with contextlib.ExitStack() as stack:
        for channel in _logs(log):
            single = config.store.single_writer
            lease = channel.acquire(owner, seconds, is_gone=is_gone, single_writer=single, cleaning=True)
            if lease is None:
                newest = channel.newest()
                leases.locked_by = f"{channel.channel}: {newest.holder if newest else 'another run'}"
                break
            leases.held[channel.channel] = (channel, lease)
            stack.enter_context(kept_alive(channel, lease, seconds))
        yield leases


def _logs(log: Log) -> Iterator[Log]:
    """Yield the log of the store itself; once that is held, those of the channels that there are by then."""
    yield Log(log.storage, UPKEEP_LOG)
    for name in channels(log.storage):
        yield Log(log.storage, name)
