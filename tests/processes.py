"""Processes of the tests: none outlives them, Ray is set up by us alone, and what they do is waited for."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_KEEPER = """
import contextlib, os, signal, subprocess, sys
kept = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()  # ends when the tests do, however they end
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
with contextlib.suppress(subprocess.TimeoutExpired):
    kept.wait(5)
os.killpg(0, signal.SIGKILL)
"""


def keep(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, inside: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a command below a keeper, which ends it and its children when its standard input ends.

    Args:
        log: takes what they say.
        inside: words before the keeper's own: where it is to run.
    """
    with log.open("wb") as told:
        return subprocess.Popen(
            [*inside, sys.executable, "-c", _KEEPER, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )


def let_go(*keepers: subprocess.Popen[bytes]) -> None:
    """End what keepers hold, the last one first."""
    for keeper in reversed(keepers):
        if keeper.stdin is not None:
            keeper.stdin.close()
    for keeper in keepers:
        keeper.wait()


def ray_environment() -> dict[str, str]:
    """Return this environment with settings of Ray's of its own: for another cluster, behind a token."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and name != "PYTHONPATH"
    }
    return ours | {
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def free_port() -> int:
    """Return a port of the loopback device that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def descendants(words: str, ancestor: int | None = None) -> list[int]:
    """Return the processes below one, by default this one, whose command lines start with `words`."""
    named = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _read(folder / "cmdline").startswith(words)
    ]
    return sorted(process for process in named if (ancestor or os.getpid()) in _ancestors(process))


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int((_read(Path(f"/proc/{process}/stat")).rpartition(") ")[2].split() or ["0", "0"])[1])
        found.append(process)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def wait_until(condition: Callable[[], Any], *, what: str = "a condition", seconds: float = 300) -> Any:
    """Return what a condition gives once it holds.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
    return found
