"""A night that is frozen past the end of its lease wakes up too late: it cannot publish."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.releases.heads import Log
from tests.jobs.upkeep import World, call, copy_world

ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Return when something has come true; fail when the process has ended, or when it takes too long."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        pause.wait(0.005)
    raise AssertionError(f"not within {seconds} s")


@pytest.mark.slow
def test_a_night_frozen_past_its_lease_cannot_publish(two_nights: World, tmp_path: Path) -> None:
    world = copy_world(two_nights, tmp_path / "world")
    log, before = Log(world.store), world.current()
    count, codes = len(log.history()), len(world.store.list("codes"))
    world.write_unit(4)
    lease = ("store.lease_seconds=2",)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "nightly.py"), *world.settings(*lease)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(world.store.list("codes")) > codes, process)
        os.kill(process.pid, signal.SIGSTOP)
        assert world.current() == before, "the night was over before it could be frozen"
        newest = log.newest()
        assert newest is not None
        wait_until(lambda: not newest.is_held(time.time()), process)
        world.write_unit(5)
        code, other = call(world, "nightly")
        assert code == 0
    finally:
        os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "the lease of" in json.loads(out.splitlines()[-1])["error"]
    assert world.current() == other["outputs"]["release"]
    assert [entry.kind for entry in log.history()[count:]].count("publish") == 1
