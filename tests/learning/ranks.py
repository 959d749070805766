"""Real gloo ranks for the tests of this room: two processes for the whole session, no Ray."""

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEADLINE = 300.0
"""Seconds after which a call is a hang."""


class Ranks:
    """Two processes in one process group, which call what they are given."""

    count = 2

    def __init__(self, folder: Path) -> None:
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.count, folder, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def call(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `work(*args)` on both ranks and return what they returned, in rank order."""
        for pipe in self._pipes:
            pipe.send((work, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(DEADLINE):
                raise TimeoutError(f"rank {rank} did not answer in {DEADLINE:g} s")
            answers.append(pipe.recv())
        for rank, (error, _) in enumerate(answers):  # all have answered: the next call starts clean
            if error:
                raise RuntimeError(f"rank {rank}:\n{error}")
        return [result for _, result in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


class SoloRank(Ranks):
    """One process in a process group of its own: what DeepSpeed sees of a single rank."""

    count = 1


class FourRanks(Ranks):
    """Four processes in one process group: more than a small machine has cores."""

    count = 4


def _serve(rank: int, ranks: int, folder: Path, pipe: Connection) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # what a launcher sets; DeepSpeed asks for it
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    while True:
        work, args = pipe.recv()
        try:
            answer = (None, work(*args))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
