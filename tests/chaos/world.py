"""The world of the trials: a source in object storage at two nights, a store after the first, and its nights.

A night is a process of its own that may be killed at any moment. It is forked from a server that has loaded
the libraries, which saves seconds each; its clients go through the proxy. With Ray it is started plainly.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from cmh_models.artefact import save_pretrained
from pipeline.releases.addresses import code_path
from pipeline.releases.heads import Log
from pipeline.releases.manifest import code_file, read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import verify
from tests.encoding.sources import BAD_ROWS, good_rows, many_rows, tiny_method, write_rows
from tests.proxy import Proxy

GOOD_PICTURES = ("good-1", "empty-caption", "no-text", "good-2")  # of BAD_ROWS
GOOD_TEXTS = ("good-1", "truncated", "huge", "not-a-picture", "no-picture", "good-2")
LOOK = 0.3  # seconds between two looks of a reader
SECONDS = 300  # within which a night must have ended
ROOT = Path(__file__).parents[2]


@dataclass
class World:
    """Where everything lies. `expected`: keys by side after the second night; `releases`: of either night."""

    folder: Path
    bucket: str  # s3://...
    proxy: Proxy
    endpoint: str  # of the server itself
    rows: int
    expected: dict[str, Counter[str]] = field(default_factory=dict)
    releases: tuple[str, str] = ("", "")
    base: list[str] = field(default_factory=list)  # files of the store after the first night
    calm: list[str] = field(default_factory=list)  # requests of the undisturbed second night

    def source(self, night: int) -> str:
        """Return the source as it is on a night."""
        return f"{self.bucket}/source-{night}"

    def store(self, name: str) -> str:
        """Return the store of a trial."""
        return f"{self.bucket}/{name}"

    def settings(self, name: str, *others: str, night: int = 2) -> list[str]:
        """Return the command line of a night over the store of a trial."""
        told = {
            "data.path": self.source(night),
            "store.uri": self.store(name),
            "encode.model": str(self.folder / "model"),
            "encode.chunk_bytes": str(1 << 20),
            "encode.max_reject_fraction": "0.5",
            **{f"gate.{limit}": "1" for limit in ("max_balance", "max_collisions", "max_dead_bits")},
            **{
                f"gate.{size}": "1" for size in ("parts", "queries", "reused_units")
            },  # not what is tried here
            "index.part_boundary": "2",
            "run.dir": str(self.folder / "runs" / name),
        }
        settings = [f"{key}={value}" for key, value in told.items()]
        return ["nightly", *(word for one in [*settings, *others] for word in ("--set", one))]

    def copy_base(self, name: str) -> None:
        """Make the store of a trial: what stood after the first night."""
        source, target = Storage(self.store("base")), Storage(self.store(name))
        for path in self.base:
            target.write(path, source.read(path))


class Night:
    """One process at work. `wait` returns its exit code and the result line it has printed."""

    def __init__(self, world: World, name: str, *others: str, ray: bool = False, **environment: str) -> None:
        self.log = world.folder / "logs" / f"{name}-{os.urandom(4).hex()}"
        self.log.parent.mkdir(exist_ok=True)
        told = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        told |= {"AWS_ENDPOINT_URL": world.proxy.endpoint, "OMP_NUM_THREADS": "1"} | environment
        words = world.settings(name, *others)
        self.process: subprocess.Popen[bytes] | BaseProcess
        if ray:
            with self.log.open("wb") as stream:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "jobs.cli", *words],
                    env=told,
                    stdout=stream,
                    stderr=stream,
                    cwd=ROOT,
                )
        else:
            self.process = _server().Process(target=_night, args=(words, str(self.log), told))
            self.process.start()

    @property
    def pid(self) -> int:
        """The process id of the driver."""
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        """End the driver and return when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def children(self, *words: str) -> list[psutil.Process]:
        """Return the processes below the driver whose command line holds one of the words."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word in " ".join(process.cmdline()) for word in words):
                    found.append(process)
        return found

    def wait(self, seconds: float = SECONDS) -> tuple[int, dict[str, Any]]:
        """Wait for the end; a night that hangs is killed, with all it has started, and told as code -1."""
        code = self._join(seconds)
        if code is None:
            below = psutil.Process(self.pid).children(recursive=True)
            for process in below:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.kill()
            self._join(10)
            said = self.log.read_text(errors="replace").splitlines()[-1:]
            return -1, {"error": f"did not end within {seconds:.0f} s; it said last: {said}"}
        lines = self.log.read_text(errors="replace").splitlines()
        for line in reversed(lines):
            if line.startswith('{"job"'):
                return code, json.loads(line)
        return code, {"error": lines[-1] if lines else ""}

    def _join(self, seconds: float) -> int | None:
        if isinstance(self.process, subprocess.Popen):
            try:
                return self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        self.process.join(seconds)
        return self.process.exitcode


class Reader:
    """A search team: a process that opens and verifies the current release again and again."""

    def __init__(self, world: World, name: str) -> None:
        self._ours, theirs = _server().Pipe()
        told = os.environ | {"AWS_ENDPOINT_URL": world.endpoint}
        cache = str(world.folder / "cache" / name)
        self._process = _server().Process(target=_read, args=(world.store(name), cache, theirs, told))
        self._process.start()
        self._ours.recv()  # it has seen the release of the first night

    def stop(self) -> tuple[list[str], list[str], int]:
        """End it; return the releases it saw, in order, what was wrong, and how often it looked."""
        self._ours.send("stop")
        seen, faults, looks = self._ours.recv()
        self._process.join()
        return seen, faults, looks


def _read(uri: str, cache: str, pipe: Any, told: dict[str, str]) -> None:
    from pipeline.search.retrieval import Release

    os.environ.update(told)
    seen: list[str] = []
    faults: list[str] = []
    looks = 0
    while not looks or not pipe.poll(LOOK):
        try:
            release = Release.open(uri, cache=cache)
            found = verify(Storage(uri), release.digest).faults
            faults += [f"{release.digest}: {fault}" for fault in found]
            if release.digest not in seen[-1:]:
                seen.append(release.digest)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
        looks += 1
        if looks == 1:
            pipe.send("ready")
    pipe.send((seen, faults, looks))
    shutil.rmtree(cache, ignore_errors=True)


def _night(words: list[str], log: str, told: dict[str, str]) -> None:
    """Be a night: standard output and error go into one file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(told)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from jobs.cli import main

    code = main(words)
    sys.stdout.flush()
    os._exit(code)


def _server() -> ForkServerContext:
    """Return the server that forks the processes of the trials, its libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    nights = ["jobs.command", "jobs.nightly", "jobs.nights.stages", "jobs.nights.gating"]
    readers = ["pipeline.search.retrieval", "pipeline.releases.storage.s3", "tests.chaos.world"]
    context.set_forkserver_preload(["tests.chaos.light", *nights, *readers])
    return context


@contextlib.contextmanager
def made_world(folder: Path, proxy: Proxy, *, bucket: str, name: str, large: bool = False) -> Iterator[World]:
    """Make a source of two nights, the store after the first, and know what the second must come to.

    Args:
        large: enough rows that the night is a matter for Ray.
    """
    world = World(folder, f"{bucket}/{name}", proxy, proxy.upstream, rows=200 if large else 24)
    save_pretrained(tiny_method(), folder / "model", card={})
    rows = many_rows if large else good_rows
    units = {
        "a": rows(0, world.rows),
        "b": rows(1000, 1000 + world.rows),
        "b2": rows(1000, 1000 + world.rows - 3) + rows(1700, 1705),
        "c": rows(2000, 2000 + world.rows),
        "d": rows(3000, 3000 + world.rows),
        # Of several chunks, where large: only such a unit is finished by a task, not where it was encoded.
        "e": rows(6000, 6000 + (2000 if large else world.rows)),
        "f": rows(5000, 5000 + world.rows),
    }
    for unit, content in units.items():
        write_rows(folder / "units" / f"{unit}.parquet", content, row_group_size=50)
    write_rows(folder / "units" / "bad.parquet", BAD_ROWS)
    first = {"a": "a", "b": "b", "c": "c", "d": "d"}
    second = {"a": "a", "b": "b2", "d": "d", "e": "e", "f": "f", "bad": "bad"}
    for night, names in ((1, first), (2, second)):
        source = Storage(world.source(night))
        for path, unit in names.items():
            source.upload(folder / "units" / f"{unit}.parquet", f"{path}.parquet")
    releases = []
    for night, store in ((1, "base"), (2, "calm")):
        proxy.forget()
        code, line = Night(world, store, f"data.path={world.source(night)}", ray=large).wait()
        if code:
            raise RuntimeError(f"the undisturbed night {night} ended with code {code}: {line}")
        releases.append(line["outputs"]["release"])
        if night == 1:
            world.base = Storage(world.store("base")).list()
            world.copy_base("calm")
    world.calm = list(proxy.seen)
    world.releases = (releases[0], releases[1])
    world.expected = _written(units, second.values())
    if found := check_end(world, "calm"):
        raise RuntimeError(f"the undisturbed night itself is wrong: {found}")
    yield world


def _written(units: dict[str, Any], names: Iterable[str]) -> dict[str, Counter[str]]:
    """Return the keys that must have a code, by side, from the rows that were written into the source."""
    good = Counter(key for name in names for key, *_ in units.get(name, []))
    bad = {"image": GOOD_PICTURES, "text": GOOD_TEXTS}
    return {side: good + Counter(keys) for side, keys in bad.items()}


def keys_of(store: str, release: str) -> dict[str, Counter[str]]:
    """Return how often each key stands in the code files of a release, by side."""
    storage = Storage(store)
    found: dict[str, Counter[str]] = {"image": Counter(), "text": Counter()}
    for row in read_table(storage, read_release(storage, release), "units").to_pylist():
        data = storage.read(code_path(code_file(row)))
        found[row["side"]].update(pq.read_table(_buffer(data), columns=["key"])["key"].to_pylist())
    return found


def _buffer(data: bytes) -> Any:
    import pyarrow as pa

    return pa.BufferReader(data)


def check_end(world: World, name: str) -> list[str]:
    """Return what is wrong with the store of a trial after its rerun."""
    storage, wrong = Storage(world.store(name)), []
    log = Log(storage)
    history = log.history()
    newest = log.newest()
    if newest is None or newest.release != world.releases[1]:
        wrong.append(f"the release is {newest and newest.release}, undisturbed it is {world.releases[1]}")
        return wrong
    if newest.holder:
        wrong.append(f"the lease is still held by {newest.holder}")
    if [entry.seq for entry in history] != list(range(1, len(history) + 1)):
        wrong.append("the log has gaps")
    if keys_of(world.store(name), world.releases[1]) != world.expected:
        wrong.append("rows are lost or doubled")
    return wrong + list(verify(storage, world.releases[1]).faults)
