"""Names of processes that hold a lease, so that a rerun on the same machine need not wait for a dead one."""

import os
import socket
from pathlib import Path


def process_name() -> str:
    """Return a name that no other process of any machine has: host, boot, process space, id, start time."""
    return f"{_here()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(name: str) -> bool:
    """Tell whether a process of this machine is known to be dead. Of any other name: no."""
    machine, _, process = name.rpartition("/")
    machine, _, number = machine.rpartition("/")
    if machine != _here() or "" in _here().split("/") or not number.isdigit():
        return False
    return _started(int(number)) != process


def _here() -> str:
    """Name the machine since its boot, and the process space: containers may share the rest."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        boot = space = ""
    return f"{socket.gethostname()}/{boot}/{space}"


def _started(process: int) -> str:
    """Return the kernel's start time of a process, '' when there is none."""
    try:
        line = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state_and_on = line.rpartition(") ")[2].split()
    return "" if state_and_on[0] in "ZX" else state_and_on[19]
