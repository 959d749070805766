"""A rank whose step does not end says where every thread of it stands, and ends.

In a collective all ranks wait for the slowest: when one hangs, each of them runs out of time, and the log
holds the stacks of all ranks. Whoever started the ranks starts them again from the newest checkpoint.
"""

import faulthandler
import os
import sys
import threading
import time

from pipeline.learning.gather import rank

CODE = 70
"""Exit code of a rank that ended itself so."""


class StepWatch:
    """Called at the beginning of every step, as the loop's `step` hook.

    Args:
        seconds: that a step may take, its wait for data included; None never ends a rank.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._step: int | None = None
        self._began = time.monotonic()
        if seconds is not None:
            threading.Thread(target=self._watch, args=(seconds,), name="step-watch", daemon=True).start()

    def __call__(self, step: int | None) -> None:
        """Note that a step begins; None: what follows is no step, and may take as long as it likes."""
        self._step, self._began = step, time.monotonic()

    def _watch(self, seconds: float) -> None:
        while True:
            step, left = self._step, self._began + seconds - time.monotonic()
            if step is not None and left <= 0:
                self._end(step, seconds)
            time.sleep(max(0.05, min(left, seconds / 4)) if step is not None else seconds / 4)

    def _end(self, step: int, seconds: float) -> None:
        told = (
            f"rank {rank()}: step {step} has taken more than {seconds:g} s (train.step_timeout): a rank, its "
            "data or the network hangs. The stacks of all threads of this rank follow; it ends with code "
            f"{CODE}, and the run goes on from its newest checkpoint.\n"
        )
        sys.stderr.write(told)
        sys.stderr.flush()
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(CODE)
