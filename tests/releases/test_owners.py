"""Holders of a lease by name: a dead process of this machine is known, of any other nothing is."""

import subprocess
import sys

from pipeline.releases.heads import Log
from pipeline.releases.owners import is_gone, process_name
from pipeline.releases.storage import Storage
from tests.releases.small import taken


def started() -> tuple[subprocess.Popen[str], str]:
    """Start a process that waits, and return it with its name."""
    code = "from pipeline.releases.owners import process_name; print(process_name(), flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    return other, other.stdout.readline().strip()


def test_a_dead_process_is_known_and_a_live_one_is_left_alone(storage: Storage) -> None:
    other, holder = started()
    log = Log(storage)
    assert log.acquire(holder, 3600, is_gone=is_gone) is not None
    assert log.acquire(process_name(), 3600, is_gone=is_gone) is None
    other.kill()
    other.communicate()
    lease = taken(log.acquire(process_name(), 3600, is_gone=is_gone))
    assert lease.owner == process_name()


def test_a_process_of_another_machine_is_never_called_dead() -> None:
    other, name = started()
    other.kill()
    other.communicate()
    host, boot, space, process, start = name.split("/")
    assert is_gone(name)
    for foreign in (
        f"other-{host}/{boot}/{space}/{process}/{start}",
        f"{host}/{'0' * len(boot)}/{space}/{process}/{start}",  # the same machine before it was started again
        f"{host}/{boot}/{int(space) + 1}/{process}/{start}",  # another container of it
    ):
        assert not is_gone(foreign)
    assert not is_gone(process_name())
    assert not is_gone("")
    assert not is_gone("nightly")
    assert is_gone(process_name()[:-1] + "x")
