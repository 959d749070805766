"""A step that hangs ends its rank, with the stacks of all its threads."""

import subprocess
import sys
from pathlib import Path

from pipeline.learning.watch import CODE

HANGS = """
import threading
from pipeline.learning.watch import StepWatch
watch = StepWatch(0.3)
watch(0)
watch(None)  # validation may take as long as it likes
threading.Event().wait(1.0)
watch(7)

def the_collective_that_hangs():
    threading.Event().wait()

the_collective_that_hangs()
"""


def test_a_step_that_hangs_ends_its_rank_and_shows_where_it_stood() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == CODE
    assert "rank 0: step 7 has taken more than 0.3 s (train.step_timeout)" in done.stderr
    assert "the_collective_that_hangs" in done.stderr
