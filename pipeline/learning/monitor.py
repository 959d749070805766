"""What the loop reports every few steps: mean terms, code health, rows per second, and where the time goes.

The clock is the host's: on a GPU, which works on while the host goes ahead, time shows up where the host
waits for it, and only the total is exact.
"""

import logging
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from cmh_models.method import SIDES, HashOutput
from pipeline.learning.gather import all_sum, rank, world_size
from pipeline.learning.health import code_health, count_ones, describe_collapse

log = logging.getLogger(__name__)
T = TypeVar("T")


class Monitor:
    """Adds up one log window; `read` judges it and opens the next. Rows are those of the global batch."""

    def __init__(self, code_length: int, rows_per_step: int) -> None:
        self.latest: dict[str, float] = {}
        self._code_length = code_length
        self._rows_per_step = rows_per_step
        self._laps: dict[str, float] = defaultdict(float)
        self._all_steps = 0
        self._open()

    def _open(self) -> None:
        self._steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()
        self._terms: dict[str, float] = defaultdict(float)
        self._ones: dict[str, Tensor] = {}

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches through and note how long they kept the loop waiting."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._lap = time.perf_counter()
            self._waited += self._lap - asked
            self._laps["data"] += self._lap - asked
            yield batch

    def lap(self, part: str) -> None:
        """Note that a part of a step ends here; it began where the one before it ended."""
        now = time.perf_counter()
        self._laps[part] += now - self._lap
        self._lap = now

    def add(self, values: Mapping[str, float], output: HashOutput) -> None:
        """Note one step."""
        self._steps += 1
        self._all_steps += 1
        for name, value in values.items():
            self._terms[name] += value
        for side in SIDES:
            ones = count_ones(output[side])
            self._ones[side] = self._ones[side] + ones if side in self._ones else ones

    def cost(self) -> dict[str, float]:
        """Return the cost of all steps so far on this rank: how fast, where the time went, how much memory.

        `share_*` are of the time that the steps took; `peak_memory_gib` is the largest resident size of the
        process, and on a GPU also what its tensors took at most.
        """
        total = sum(self._laps.values())
        if not total:
            return {}
        cost = {f"share_{part}": seconds / total for part, seconds in self._laps.items()}
        rows = self._all_steps * self._rows_per_step / world_size()
        cost |= {"rows_per_second_per_rank": rows / total, "step_seconds": total / self._all_steps}
        cost["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if torch.cuda.is_available():
            cost["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return cost

    def read(self) -> dict[str, float]:
        """Return the scalars of the window; all ranks call it, as it sums over them."""
        seconds = time.perf_counter() - self._since
        rows = self._steps * self._rows_per_step
        means = {f"loss_{name}": total / self._steps for name, total in self._terms.items()}
        self.latest = {"loss": sum(means.values()), **means}
        for side in SIDES:
            health = code_health(all_sum(self._ones[side]), rows)
            self.latest |= {f"{side}_{name}": value for name, value in health.items()}
            collapse = describe_collapse(side, health, code_length=self._code_length, rows=rows)
            if collapse and rank() == 0:
                log.warning(collapse)
        speed = {"rows_per_second": rows / seconds, "data_wait": self._waited / seconds}
        self._open()
        return self.latest | speed


def describe_cost(cost: dict[str, float]) -> str:
    """Return in words what the steps of a rank cost."""
    parts = ", ".join(
        f"{name.removeprefix('share_')} {100 * share:.0f} %"
        for name, share in cost.items()
        if name.startswith("share_")
    )
    return (
        f"{cost['rows_per_second_per_rank']:.0f} rows/s a rank; {1e3 * cost['step_seconds']:.1f} ms a step: "
        f"{parts}; peak memory {cost['peak_memory_gib']:.1f} GiB"
    )
