"""The log under writers at once: threads, processes, and every interleaving that hypothesis thinks of."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.releases.heads import Entry, Lease, Log
from pipeline.releases.storage import Storage
from tests.releases.small import Clock, make_release


def test_of_many_threads_one_takes_the_lease(root: str) -> None:
    start = threading.Barrier(8)

    def race(number: int) -> Lease | None:
        log = Log(Storage(root))
        start.wait()
        return log.acquire(f"writer {number}", 60)

    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(race, range(8)) if lease]
    assert len(leases) == 1
    assert [entry.fence for entry in Log(Storage(root)).history()] == [leases[0].fence]


APPENDER = """
import sys
from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage
log = Log(Storage(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(5):
    while (lease := log.acquire(sys.argv[2], 60)) is None:
        pass
    log.publish(lease, sys.argv[3])
"""


def test_processes_that_append_at_once_leave_a_dense_lawful_log(root: str) -> None:
    storage = Storage(root)
    release = make_release(storage, 1)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDER, root, f"writer {number}", release],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    history = Log(storage).history()
    check_laws(history)
    assert len(history) == 20


def check_laws(history: list[Entry]) -> None:
    """Assert what holds of every log, however many writers had a hand in it."""
    assert [entry.seq for entry in history] == list(range(1, len(history) + 1))
    published = [entry.fence for entry in history if entry.kind == "publish"]
    assert len(published) == len(set(published))
    fences = [entry.fence for entry in history]
    assert fences == sorted(fences)
    assert len({entry.nonce for entry in history}) == len(history)
    for before, entry in zip([None, *history], history, strict=False):
        if entry.kind == "publish":
            # Who publishes held the lease at the entry before, and holds it no more.
            assert before is not None
            assert (before.fence, before.holder) == (entry.fence, entry.owner)
            assert before.expires > 0
            assert entry.expires == 0
        if entry.kind not in ("publish", "rollback"):
            assert entry.release == (before.release if before else None)


steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["acquire", "renew", "publish", "release", "rollback", "wait", "forget"]),
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(steps, st.randoms(use_true_random=False))
def test_any_interleaving_of_two_writers_is_lawful(tmp_path_factory, plan, choice) -> None:  # type: ignore[no-untyped-def]
    """Writers interleave between look and write: each create may find the other's acts done before it."""
    storage = Storage(tmp_path_factory.mktemp("log"))
    releases = [make_release(storage, number) for number in (1, 2)]
    table = storage.list("tables")[0].removeprefix("tables/").removesuffix(".parquet")
    clock = Clock()
    leases: list[Lease | None] = [None, None]
    logs = [Log(storage, clock=clock) for _ in range(2)]
    later: list[tuple[int, str]] = list(reversed(plan))
    create = Storage.create

    def act(writer: int, verb: str) -> None:
        log, lease, name = logs[writer], leases[writer], f"writer {writer}"
        if verb == "wait":
            clock.now += 40
        elif verb == "acquire":
            leases[writer] = log.acquire(name, 60) or lease
        elif verb == "rollback":
            log.rollback(releases[writer], "operator")
        elif verb == "forget":
            log.forget(table, "operator")
        elif lease is not None:
            verbs: dict[str, Callable[[], object]] = {
                "renew": lambda: log.renew(lease, 60),
                "publish": lambda: log.publish(lease, releases[writer]),
                "release": lambda: log.release(lease),
            }
            try:
                verbs[verb]()
            except RuntimeError as error:
                assert "the lease of" in str(error)

    def interrupted(self: Storage, path: str, data: bytes) -> bool:
        while later and "heads/main/" in path and choice.random() < 0.5:
            act(*later.pop())
        return create(self, path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "create", interrupted)
        while later:
            act(*later.pop())
    check_laws(logs[0].history())
