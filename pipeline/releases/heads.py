"""The log of a channel: create-only entries that are lease, fence, pointer and rollback at once.

Entry n + 1 is written by someone who has read entry n, and only one writer can create it. Every entry
carries the whole state on (current release, lease, forgotten keys), so the newest one says all. The clock
decides only whether a lease has expired; safety never rests on it: a writer that slept past its lease finds
its time over or its number taken.
"""

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.releases.addresses import check_digest, heads_folder, table_path
from pipeline.releases.manifest import ManifestError, read_release
from pipeline.releases.storage import Storage

Kind = Literal["acquire", "publish", "rollback", "release", "forget"]
_HURRIES = 100  # appends lost to others before a writer gives up
_THREADS = 16  # that read a history: years of nights are tens of thousands of entries

FORGOTTEN_LOG, UPKEEP_LOG = "forgotten.keys", "store.upkeep"
"""Logs of the store itself: of forgotten keys, and the one whose lease is held while files are removed. They
are no channels, and since they have a dot in their names, no setting can make them some."""


class Entry(BaseModel):
    """One file of the log: what was done, and the state that it left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq: int = Field(ge=1)
    kind: Kind
    release: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")  # current from here on
    fence: int = Field(default=0, ge=0)  # seq of the entry that took the newest lease; 0 before the first
    holder: str = ""  # of the lease, '' when there is none
    expires: float = 0  # Unix seconds at which the lease ends; 0 when there is none
    forgotten: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # table of keys to hide
    owner: str  # who wrote this entry
    nonce: str  # tells the writer's own entry from another's when an answer was lost
    at: float = Field(default=0, ge=0)  # Unix seconds, by the writer's clock: for people, nothing rests on it

    def is_held(self, now: float) -> bool:
        """Tell whether someone's lease is live."""
        return now < self.expires


@dataclass(frozen=True)
class Lease:
    """The right to publish one release. It ends by publishing, by its time, or by a rollback."""

    fence: int
    owner: str
    expires: float


class Log:
    """The log of one channel of a store.

    Args:
        channel: the default is what readers open when they name none.
        clock: Unix seconds; only the end of leases is compared with it.
    """

    def __init__(
        self, storage: Storage, channel: str = "main", *, clock: Callable[[], float] = time.time
    ) -> None:
        self.storage = storage
        self.channel = channel
        self._folder = heads_folder(channel)
        self._clock = clock

    def newest(self) -> Entry | None:
        """Return the newest entry, None when the channel has none. Three requests as a rule.

        Raises:
            ManifestError: an entry is damaged.
        """
        newest = self._read(self._hint()) or self._read(self._listed())
        step = 1
        # Entries are dense: leap upward until one is missing, then halve the leap.
        while newest is not None and step:
            further = self._read(newest.seq + step)
            if further is not None:
                newest, step = further, step * 2
            else:
                step //= 2
        return newest

    def current_release(self) -> str | None:
        """Return the digest of the current release, None when nothing was published yet."""
        newest = self.newest()
        return newest.release if newest else None

    def pointed(self) -> Entry | None:
        """Return the entry that made the current release current, None when nothing is published."""
        entry = self.newest()
        while entry is not None and entry.release is not None:
            if entry.kind in ("publish", "rollback"):
                return entry
            entry = self._read(entry.seq - 1)
        return None

    def releases(self) -> Iterator[str]:
        """Yield the releases that were current, each once, the newest first; entries are read as needed."""
        entry = self.newest()
        seen = set()
        while entry is not None:
            if entry.release is not None and entry.release not in seen:
                seen.add(entry.release)
                yield entry.release
            entry = self._read(entry.seq - 1)

    def history(self) -> list[Entry]:
        """Return every entry that is kept, oldest first.

        Raises:
            ManifestError: an entry is damaged or missing between others.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            entries = [entry for entry in pool.map(self._read, self._sequence()) if entry is not None]
        for entry, following in itertools.pairwise(entries):
            if following.seq != entry.seq + 1:
                raise ManifestError(
                    f"{self._where(entry.seq + 1)} is missing between others; restore the file"
                )
        return entries

    def acquire(
        self,
        owner: str,
        ttl: float,
        *,
        is_gone: Callable[[str], bool] = lambda holder: False,
        single_writer: bool = False,
        cleaning: bool = False,
    ) -> Lease | None:
        """Take the lease of the channel; None while another holds it, or while files are being removed.

        Args:
            owner: who takes it, for messages.
            ttl: seconds until it ends; `renew` before that.
            is_gone: tells of a holder's name whether that process is known to be dead.
            single_writer: the caller vouches that no other run writes to this store, ever; then the storage
                need not be able to create a file only if it is absent.
            cleaning: it is the caller who removes files.
        Raises:
            OSError: the storage cannot create a file only if it is absent.
        """
        if not single_writer and not self.storage.creates_once():
            raise OSError(
                f"{self.storage.where()}: this storage overwrites a file that is there, so two runs could"
                " destroy each other's work; use one that honours If-None-Match on PUT, or a local folder, or"
                " set store.single_writer=true if never more than one run writes to it"
            )

        fence = 0

        def take(tip: Entry | None, now: float) -> dict[str, Any] | None:
            nonlocal fence
            if tip is not None and tip.is_held(now) and not is_gone(tip.holder):
                return None
            fence = tip.fence if tip else 0
            seq = tip.seq + 1 if tip else 1
            return {"fence": seq, "holder": owner, "expires": now + ttl}

        lease = _lease(self._append("acquire", owner, change=take))
        if lease is not None and not (fence or cleaning) and self._is_cleaned(is_gone):
            # Whoever removes files holds the lease of every channel that it saw; this one may be newer.
            self.release(lease)
            return None
        return lease

    def renew(self, lease: Lease, ttl: float) -> Lease:
        """Move the end of a live lease to `ttl` seconds from now; the fence stays.

        Raises:
            RuntimeError: the lease is over.
        """

        def extend(tip: Entry | None, now: float) -> dict[str, Any]:
            self._check_live(lease, tip, now)
            return {"expires": now + ttl}

        renewed = _lease(self._append("acquire", lease.owner, change=extend))
        assert renewed is not None
        return renewed

    def publish(self, lease: Lease, release: str, *, keep_lease: bool = False) -> Entry:
        """Make a release current and end the lease, in one step.

        Args:
            keep_lease: the lease goes on; there is more to do under it.
        Raises:
            RuntimeError: the lease is over: its time has passed, it has published, or a rollback ended it.
            ManifestError: the release is not in the store.
        """
        read_release(self.storage, release)

        def point(tip: Entry | None, now: float) -> dict[str, Any]:
            self._check_live(lease, tip, now)
            return {"release": release} | ({} if keep_lease else {"holder": "", "expires": 0})

        entry = self._append("publish", lease.owner, change=point)
        assert entry is not None
        return entry

    def release(self, lease: Lease) -> None:
        """Give a lease back without publishing. One that is over already is left as it is."""

        def end(tip: Entry | None, now: float) -> dict[str, Any] | None:
            mine = tip is not None and tip.fence == lease.fence and tip.expires > 0
            return {"holder": "", "expires": 0} if mine else None

        self._append("release", lease.owner, change=end)

    def give_back(self, owner: str) -> None:
        """End the lease of the channel if this owner holds it: for one who does not know whether it does."""

        def end(tip: Entry | None, now: float) -> dict[str, Any] | None:
            mine = tip is not None and tip.holder == owner and tip.expires > 0
            return {"holder": "", "expires": 0} if mine else None

        self._append("release", owner, change=end)

    def rollback(self, release: str, owner: str) -> Entry:
        """Make an earlier release current. It ends a live lease: a run under way will not undo it.

        Raises:
            ManifestError: the release is not in the store.
        """
        return self._point("rollback", release, owner)

    def promote(self, release: str, owner: str) -> Entry:
        """Make the release of another channel current here, in one step; it ends a live lease as well.

        Raises:
            ManifestError: the release is not in the store.
        """
        return self._point("publish", release, owner)

    def forget(self, table: str, owner: str, *, replaces: str | None = None) -> Entry | None:
        """Name the table of all keys to hide, earlier ones included; None if another table came between.

        Args:
            table: SHA-256 of the table.
            replaces: SHA-256 of the table that the log names before; None when it names none.
        """
        if not self.storage.exists(table_path(table)):
            raise ManifestError(f"{self.storage.where(table_path(table))} is missing: write the table first")

        def name(tip: Entry | None, now: float) -> dict[str, Any] | None:
            return {"forgotten": table} if (tip.forgotten if tip else None) == replaces else None

        return self._append("forget", owner, change=name)

    def _point(self, kind: Kind, release: str, owner: str) -> Entry:
        check_digest(release)

        def point(tip: Entry | None, now: float) -> dict[str, Any]:
            # After the newest entry was read, each time. Whoever removes releases appends an entry once they
            # are gone: either this look finds that, or that entry cannot be appended any more.
            read_release(self.storage, release)
            return {"release": release, "holder": "", "expires": 0}

        entry = self._append(kind, owner, change=point)
        assert entry is not None
        return entry

    def _is_cleaned(self, is_gone: Callable[[str], bool]) -> bool:
        if self.channel == UPKEEP_LOG:
            return False
        tip = Log(self.storage, UPKEEP_LOG, clock=self._clock).newest()
        return tip is not None and tip.is_held(self._clock()) and not is_gone(tip.holder)

    def _append(
        self, kind: Kind, owner: str, *, change: Callable[[Entry | None, float], dict[str, Any] | None]
    ) -> Entry | None:
        """Append what `change` makes of the newest entry, again if another was quicker; None: it declined."""
        for _ in range(_HURRIES):
            tip = self.newest()
            changed = change(tip, self._clock())
            if changed is None:
                return None
            state = tip.model_dump() if tip else {}
            state |= {"seq": tip.seq + 1 if tip else 1, "kind": kind, "owner": owner}
            entry = Entry(**(state | changed | {"nonce": secrets.token_hex(16), "at": self._clock()}))
            if self._create(entry):
                return entry
        raise RuntimeError(
            f"{self.storage.where(self._folder)}: {_HURRIES} appends were lost to other writers"
        )

    def _create(self, entry: Entry) -> bool:
        """Create an entry; its nonce tells whether it is ours when the answer was lost."""
        try:
            created = self.storage.create(self._path(entry.seq), entry.model_dump_json().encode())
        except OSError:
            if not self._is_own(entry):
                raise
            created = True
        if not created and not self._is_own(entry):
            return False
        with contextlib.suppress(OSError):  # a hint only: whoever reads an old one looks further up
            self.storage.write(f"{self._folder}/CURRENT", str(entry.seq).encode())
        return True

    def _is_own(self, entry: Entry) -> bool:
        there = self._read(entry.seq)
        return there is not None and there.nonce == entry.nonce

    def _check_live(self, lease: Lease, tip: Entry | None, now: float) -> None:
        where = f"channel {self.channel!r} of {self.storage.where()}"
        if tip is None or tip.fence != lease.fence:
            taker = f", {tip.holder or tip.owner} has taken the next one" if tip else ""
            raise RuntimeError(f"{where}: the lease of {lease.owner} is over{taker}; run again")
        if not tip.expires:
            raise RuntimeError(f"{where}: the lease of {lease.owner} was ended by {tip.kind} of {tip.owner}")
        if not tip.is_held(now):
            late = round(now - tip.expires)
            raise RuntimeError(f"{where}: the lease of {lease.owner} ended {late} s ago; run again")

    def _read(self, seq: int) -> Entry | None:
        if seq < 1:
            return None
        try:
            data = self.storage.read(self._path(seq))
        except FileNotFoundError:
            return None
        try:
            entry = Entry.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(step) for step in fault["loc"])
            what = f"{field} {fault['msg']}".strip()
            raise ManifestError(f"{self._where(seq)}: {what}; restore the file") from error
        if entry.seq != seq:
            raise ManifestError(f"{self._where(seq)}: seq must be {seq}, got {entry.seq}; restore the file")
        return entry

    def _hint(self) -> int:
        try:
            return int(self.storage.read(f"{self._folder}/CURRENT"))
        except (FileNotFoundError, ValueError):
            return 0

    def _listed(self) -> int:
        return max(self._sequence(), default=0)

    def _sequence(self) -> list[int]:
        names = [path.rsplit("/", 1)[-1] for path in self.storage.list(self._folder)]
        return sorted(int(name[:12]) for name in names if name[12:] == ".json" and name[:12].isdigit())

    def _path(self, seq: int) -> str:
        return f"{self._folder}/{seq:012d}.json"

    def _where(self, seq: int) -> str:
        return self.storage.where(self._path(seq))


def _lease(entry: Entry | None) -> Lease | None:
    return None if entry is None else Lease(entry.fence, entry.holder, entry.expires)


def channels(storage: Storage) -> list[str]:
    """Return the channels of a store, sorted, without the logs of the store itself."""
    names = {path.split("/")[1] for path in storage.list("heads") if path.count("/") == 2}
    return sorted(names - {FORGOTTEN_LOG, UPKEEP_LOG})
