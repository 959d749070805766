"""Connect to Ray once: the cluster that the environment names, or one of this machine's own."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping

import ray

LOGICAL_CPUS_PER_CORE = 2
"""Tasks of a pipeline wait for one another: with one slot per core, cores of a small machine stand idle."""


ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""For a Ray on this machine alone: nobody takes its node away, and every process less starts it sooner.

Ray Train looks at its ranks every two seconds unless told otherwise. A checkpoint waits for the look after
the one before it, and so does the end of a run: here a look costs next to nothing.
"""

_connected = False


def connect() -> bool:
    """Connect this process to Ray and return whether the cluster is its own.

    `RAY_ADDRESS` decides, which `ray job submit` sets for what it runs: set it to `auto` for a cluster that
    runs on this machine already. Without it a private one is started, which ends with this process.

    Raises:
        RuntimeError: Ray could not start a worker with this interpreter.
    """
    if ray.is_initialized():
        return False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    global _connected
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        _connected = True
        return False
    _refuse_spaces(sys.executable)
    with _environment(ALONE):
        ray.init(
            address="local",
            num_cpus=own_cpus(),
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    _connected = True
    return True


def disconnect() -> None:
    """Leave the Ray that `connect` joined or started, if it did: from then on it prints nothing any more.

    It echoes the logs of its processes, and those of a node that died by the page, to stdout: also after a
    result line, which is to be the last one.
    """
    global _connected
    if _connected:
        _connected = False
        ray.shutdown()


def is_own() -> bool:
    """Tell whether `connect` would start a Ray, and join none."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def own_cpus() -> int:
    """Return the CPUs of the Ray that `connect` starts where it joins none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(4, LOGICAL_CPUS_PER_CORE * cores)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have variables in the environment for as long as processes start that take it over.

    Where they stay set in the driver, Ray Train gives its controller a runtime environment, and so a process
    of its own in place of one that has started already. What the user has set stands.
    """
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _refuse_spaces(interpreter: str) -> None:
    """Ray 2.60 starts workers by a shell line without quotes, and would retry that for minutes."""
    if " " in interpreter:
        raise RuntimeError(
            f"Ray cannot start workers with {interpreter}: its path has a space; "
            "move the environment (a clone makes it in .venv) to a path without one"
        )
