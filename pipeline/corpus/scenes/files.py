"""Writing scenes as Parquet files: each file alone, atomically, with the same bytes whoever makes it."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.scenes.captions import write_caption
from pipeline.corpus.scenes.composition import Draws, compose
from pipeline.corpus.scenes.painting import paint

ROW_GROUP_ROWS = 512
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("split", pa.string()),
    ]
)


def row(seed: int, number: int) -> dict[str, Any]:
    """Return row `number` of seed `seed`: a pure function of the two.

    Returns:
        key ("s1-000000042"), image (JPEG bytes), text, and labels (sorted numbers into LABELS).
    """
    draws = Draws(seed, number)
    scene = compose(draws)
    return {
        "key": f"s{seed}-{number:09d}",
        "image": paint(draws, scene),
        "text": write_caption(draws, scene),
        "labels": scene.labels(),
    }


def write_corpus(
    path: str | os.PathLike[str],
    rows: int,
    rows_per_file: int,
    seed: int,
    *,
    start: int = 0,
    split: str = "train",
    workers: int = 1,
) -> list[Path]:
    """Write rows `start` to `start + rows` of a seed into a folder of Parquet files.

    A file is named by its seed and first row, so that several calls can fill one folder.

    Args:
        split: the value of that column in every row written.
        workers: processes that write files at the same time; the bytes do not depend on it.
    Returns:
        the files, in the order of their rows.
    Raises:
        ValueError: a count is not positive, or the seed or start is negative.
    """
    if rows <= 0 or rows_per_file <= 0 or workers <= 0:
        raise ValueError(
            f"rows, rows_per_file and workers must be positive, got {rows}, {rows_per_file} and {workers}"
        )
    if seed < 0 or start < 0:
        raise ValueError(f"seed and start must not be negative, got {seed} and {start}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    work = list(_plan_files(folder, seed, range(start, start + rows), rows_per_file))
    jobs = [(file, seed, numbers, split) for file, numbers in work]
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            _write(job)
    else:
        # Not fork: the caller may hold threads and locks (Ray, torch), which a forked child cannot use.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            list(pool.map(_write, jobs))
    return [file for file, _ in work]


def write_file(file: Path, seed: int, numbers: range, *, split: str = "train") -> None:
    """Write some rows of a seed as one Parquet file, whole or not at all."""
    made = [row(seed, number) | {"split": split} for number in numbers]
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        pq.write_table(
            pa.Table.from_pylist(made, schema=SCHEMA),
            temporary,
            row_group_size=ROW_GROUP_ROWS,
            # JPEG does not compress further; dictionaries of unique values only cost.
            compression={name: "none" if name == "image" else "zstd" for name in SCHEMA.names},
            use_dictionary=["split", "labels"],
        )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _plan_files(folder: Path, seed: int, numbers: range, rows_per_file: int) -> Iterator[tuple[Path, range]]:
    for first in range(numbers.start, numbers.stop, rows_per_file):
        yield (
            folder / f"scenes-{seed}-{first:09d}.parquet",
            range(first, min(first + rows_per_file, numbers.stop)),
        )


def _write(job: tuple[Path, int, range, str]) -> None:
    file, seed, numbers, split = job
    write_file(file, seed, numbers, split=split)
