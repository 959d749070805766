"""A rank whose step does not end says where every thread of it stands, and ends.

In a collective all ranks wait for the slowest: when one hangs, each of them runs out of time and tells its
stacks. Those that got a step further do so a step later, and the end of the first would take them along: it
waits for them. Whoever started the ranks starts them again from the newest checkpoint.
"""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from pipeline.learning.gather import rank

CODE = 70
"""Exit code of a rank that ended itself so."""
GRACE = 1.0
"""How long a rank that has told its stacks waits for others to tell theirs, as a share of the time limit.

Another one may have got its rows, which took it less than the limit, and stand in a collective since then.
"""


class StepWatch:
    """Called at the beginning of every step, as the loop's `step` hook.

    Args:
        seconds: that a step may take, its wait for data included; as long after it the rank ends. None
            never ends one.
        keep: takes a name and what is told, beside stderr; it may fail, and is not waited for long.
    """

    def __init__(self, seconds: float | None, keep: Callable[[str, str], None] | None = None) -> None:
        self._seconds, self._keep = seconds, keep
        self._step: int | None = None
        self._began = time.monotonic()
        if seconds is not None:
            threading.Thread(target=self._watch, args=(seconds,), name="step-watch", daemon=True).start()

    def __call__(self, step: int | None) -> None:
        """Note that a step begins; None: what follows is no step, and may take as long as it likes.

        A round of statistics before the first step is a step below 0.
        """
        self._step, self._began = step, time.monotonic()

    def _watch(self, seconds: float) -> None:
        while True:
            step, left = self._step, self._began + seconds - time.monotonic()
            if step is not None and left <= 0:
                self._end(step, seconds)
            time.sleep(max(0.05, min(left, seconds / 4)) if step is not None else seconds / 4)

    def _end(self, step: int, seconds: float) -> None:
        who = f"rank {rank()}"
        lines = [
            f"{who}: {_in_words(step)} has taken more than {seconds:g} s (train.step_timeout): a rank, its "
            f"data or the network hangs; the stacks of all its threads follow; when the others have told "
            f"theirs, in {GRACE * seconds:g} s, it ends with code {CODE}"
        ]
        with tempfile.TemporaryFile() as file:  # not a pipe, which a long dump would fill
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            lines += [f"{who}| {line}" for line in file.read().decode(errors="replace").splitlines()]
        told = "\n".join([*lines, ""])
        sys.stderr.write(told)
        sys.stderr.flush()
        if self._keep is not None:
            name = f"step-{max(step, 0)}-rank-{rank()}-{os.getpid()}.txt"
            threading.Thread(target=self._keep, args=(name, told), daemon=True).start()
        time.sleep(GRACE * seconds)
        os._exit(CODE)


def _in_words(step: int) -> str:
    return f"step {step}" if step >= 0 else "a batch shown before the first step"
