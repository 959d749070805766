"""What Ray's processes on the head node hold in memory, idle and after many chunks of a night have passed.

    python benchmarks/head.py [--chunks 5000]

A cluster of this machine alone, without other nodes or a job queue. The chunks are rows as a night hands them
to Ray Data, one to a block, through two actors that do nothing. Memory is that of the processes that a head
node runs (state, scheduler, dashboard, autoscaler, logs), shared pages counted once; driver and actors are
told apart. Prints a table to stderr and one JSON line.
"""

import argparse
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
import ray.data

from cluster.runtime import connect

ROW = b"0" * 1500  # about what a chunk is told in, and its receipt without the rows
KINDS = ("gcs_server", "raylet", "dashboard", "monitor", "agents")


class Pass:
    """Gives a chunk back."""

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=5000)
    chunks = parser.parse_args().chunks
    logging.getLogger("ray").setLevel(logging.ERROR)
    connect()
    idle = memory()
    run(2)
    warm = memory()
    run(chunks)
    after = memory()
    print(f"{'MiB':<12}{'idle':>10}{'2 chunks':>10}{chunks:>10} chunks", file=sys.stderr)
    for kind in sorted(after):
        cells = "".join(f"{held[kind] / 2**20:>10.0f}" for held in (idle, warm, after))
        print(f"{kind:<12}{cells}", file=sys.stderr)
    head = [sum(held[kind] for kind in KINDS) for held in (idle, warm, after)]
    figures = {"head_idle": head[0], "head_after": head[2], "bytes_a_chunk": (head[2] - head[1]) / chunks}
    print(json.dumps({"benchmark": "head", "chunks": chunks, "ratios": {}, "figures": figures}))


def run(chunks: int) -> None:
    """Hand so many chunks to two actors, as `jobs.nights.actors` does."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items([{"chunk": ROW}] * chunks, override_num_blocks=chunks)
    strategy = ray.data.ActorPoolStrategy(min_size=1, max_size=2, initial_size=2)
    for _ in dataset.map(Pass, compute=strategy, num_cpus=1).iter_rows():
        pass


def memory() -> Counter[str]:
    """Return the bytes that each kind of process of this cluster holds (proportional set size)."""
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path()).name
    told = {folder: words for folder in Path("/proc").glob("[0-9]*") if (words := words_of(folder))}
    named = {folder.name for folder, words in told.items() if session in words} | {str(os.getpid())}
    held: Counter[str] = Counter()
    for folder, words in told.items():
        try:
            if folder.name in named or parent_of(folder) in named:  # a raylet's children have other titles
                held[kind_of(words)] += proportional_size(folder)
        except OSError:
            continue  # it is gone
    return held


def words_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def parent_of(process: Path) -> str:
    """Return the number of a process's parent."""
    return (process / "stat").read_text().rpartition(")")[2].split()[1]


def kind_of(words: str) -> str:
    for kind, mark in (
        ("gcs_server", "gcs_server "),
        ("raylet", "raylet/raylet "),
        ("agents", "agent"),
        ("dashboard", "dashboard/dashboard.py"),
        ("monitor", "monitor"),
    ):
        if mark in words.lower():
            return kind
    return "driver" if Path(__file__).name in words else "workers"


def proportional_size(process: Path) -> int:
    lines = (process / "smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
