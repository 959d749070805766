"""Real gloo ranks for the tests of this room: processes of their own, no Ray, no network but loopback."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(work: Callable[..., Any], ranks: int, folder: Path, *args: Any) -> list[Any]:
    """Call `work(*args)` on every rank of one process group and return what the ranks returned, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_enter, (work, ranks, folder, args), nprocs=ranks, start_method="spawn")
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(ranks)]


def _enter(rank: int, work: Callable[..., Any], ranks: int, folder: Path, args: tuple[Any, ...]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # what a launcher sets; DeepSpeed asks for it
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        torch.save(work(*args), folder / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()
