"""Does the cluster have what a run asks for? Asked before work starts, answered in one line."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Workers that must run at the same time."""

    workers: int
    cpus: float  # of each
    gpu: bool = False

    def missing(self, there: Mapping[str, float]) -> str | None:
        """Say what a cluster lacks; None when it has all.

        Args:
            there: totals of a cluster by resource, as `ray.cluster_resources()` gives them.
        """
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        if self.gpu and not gpus:
            return "resources.gpu is true but the cluster has no GPU; set it to false, or add a node with one"
        if self.gpu and gpus < self.workers:
            return _more("GPUs", self.workers, gpus, "lower resources.workers")
        if cpus < self.workers * self.cpus:
            return _more(
                "CPUs", self.workers * self.cpus, cpus, "lower resources.workers or resources.cpus_per_worker"
            )
        return None


def wait_for(
    request: Request, *, seconds: float, totals: Callable[[], Mapping[str, float]] | None = None
) -> None:
    """Return when the cluster has what is asked for; a cluster that scales up may need a while.

    Args:
        seconds: how long to wait; 0 decides at once.
        totals: what the cluster has; None asks Ray.
    Raises:
        RuntimeError: it still lacks something.
    """
    deadline, told = time.monotonic() + seconds, False
    while (lack := request.missing((totals or ray.cluster_resources)())) is not None:
        if time.monotonic() >= deadline:
            waited = f" (waited {seconds:g} s, resources.worker_timeout)" if seconds else ""
            raise RuntimeError(lack + waited)
        if not told:
            log.warning(
                "%s; waiting up to %g s for nodes that join (resources.worker_timeout)", lack, seconds
            )
            told = True
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def _more(what: str, asked: float, there: float, advice: str) -> str:
    return f"the run asks for {asked:g} {what} and the cluster has {there:g}: {advice}, or add nodes"
