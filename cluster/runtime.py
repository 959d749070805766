"""Connect to Ray once: the cluster that the environment names, or one of this machine's own."""

import logging
import os
import sys

import ray

LOGICAL_CPUS_PER_CORE = 2
"""Tasks of a pipeline wait for one another: with one slot per core, cores of a small machine stand idle."""


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
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return False
    _refuse_spaces(sys.executable)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ray.init(
        address="local",
        num_cpus=max(4, LOGICAL_CPUS_PER_CORE * cores),
        include_dashboard=False,
        logging_level=logging.ERROR,
    )
    return True


def _refuse_spaces(interpreter: str) -> None:
    """Ray 2.60 starts workers by a shell line without quotes, and would retry that for minutes."""
    if " " in interpreter:
        raise RuntimeError(
            f"Ray cannot start workers with {interpreter}: its path has a space; "
            "move the environment (a clone makes it in .venv) to a path without one"
        )
