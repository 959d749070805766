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


GROUP = """
import sys, threading
import torch
import torch.distributed as dist
from pipeline.learning.watch import StepWatch

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
watch = StepWatch(1.0)
dist.barrier()
watch(3)

def reads_from_a_disk_that_is_gone():
    threading.Event().wait()

def waits_for_the_others():
    dist.all_reduce(torch.zeros(1))

if rank:
    reads_from_a_disk_that_is_gone()
threading.Event().wait(0.7)
watch(4)  # its rows were there: it gets a step further
waits_for_the_others()
"""


def test_a_hung_collective_ends_with_the_stacks_of_all_ranks(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", GROUP, str(rank), str(tmp_path)],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert ranks[1].returncode == CODE  # and it may take the other one along, which has had its say
    assert "rank 0: step 4" in told[0] and "waits_for_the_others" in told[0]
    assert "rank 1: step 3" in told[1] and "reads_from_a_disk_that_is_gone" in told[1]


def test_a_step_that_hangs_ends_its_rank_and_shows_where_it_stood() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == CODE
    assert "rank 0: step 7 has taken more than 0.3 s (train.step_timeout)" in done.stderr
    assert "the_collective_that_hangs" in done.stderr
