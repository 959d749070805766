"""The demo's corpus: how it is drawn, and how it changes between two nights. The same changes every time."""

import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.scenes import write_corpus
from pipeline.corpus.scenes.captions import write_caption
from pipeline.corpus.scenes.composition import Draws, compose
from pipeline.corpus.scenes.painting import paint
from pipeline.quality.report.content import Change

TRAIN_SEED, HELD_OUT_SEED, SECOND_DRAW = 1, 2, 3
FILES = 8
MARK = ".hashfleet-demo"
"""Marks a folder as one that the demo made and may therefore empty."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Folders:
    """Where the demo's things lie."""

    root: Path

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def held_out(self) -> Path:
        return self.root / "heldout"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def page(self) -> Path:
        return self.root / "index.html"


@dataclass(frozen=True)
class Edits:
    """What was done to the corpus, and the rows that were deleted."""

    changes: list[Change]
    deleted: list[Row]


def clear(folder: Path) -> Folders:
    """Make an empty folder, or empty one that an earlier demo made.

    Raises:
        ValueError: the folder holds something else.
    """
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise ValueError(f"--dir {folder} is not empty and was not made by the demo; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return Folders(folder)


def draw(folders: Folders, rows: int) -> int:
    """Draw the corpus to learn from and encode, and pairs of another seed to judge by; return all rows."""
    per_file = -(-rows // FILES)
    write_corpus(folders.corpus, rows, per_file, TRAIN_SEED, split="train")
    asked, searched = max(10, rows // 8), rows // 2
    for split, start, count in (("query", 0, asked), ("retrieval", asked, searched)):
        target, part = folders.held_out / split, max(1, searched // 4)
        write_corpus(target, count, part, HELD_OUT_SEED, start=start, split=split)
    return rows + asked + searched


def change(folders: Folders, rows: int) -> Edits:
    """Add one per cent of new rows, some of them broken, and change and delete rows of the last file."""
    last = sorted(folders.corpus.glob("*.parquet"))[-1]
    table = pq.read_table(last)
    old = table.to_pylist()
    few = max(2, rows // 800)
    captions, pictures, deleted, kept = old[:few], old[few : 2 * few], old[2 * few : 3 * few], old[3 * few :]
    edited = [*map(_rewrite, captions), *map(_redraw, pictures), *kept]
    pq.write_table(pa.Table.from_pylist(edited, schema=table.schema), last)
    new = max(2 * len(BREAKS), rows // 100)
    added = write_corpus(folders.corpus, new, new, TRAIN_SEED, start=rows)[0]
    _damage(added)
    broken = ", ".join(BREAKS)
    return Edits(
        [
            Change("new", new - len(BREAKS), f"in a file of their own, {added.name}"),
            Change("broken", len(BREAKS), f"in the same file: {broken}"),
            Change("new caption", few, f"the same picture in other words, in {last.name}"),
            Change("new picture", few, f"the same scene drawn again, in {last.name}"),
            Change("deleted", few, f"from {last.name}"),
        ],
        deleted,
    )


def _rewrite(row: Row) -> Row:
    number = _number(row)
    scene = compose(Draws(TRAIN_SEED, number))
    return row | {"text": write_caption(Draws(SECOND_DRAW, number), scene)}


def _redraw(row: Row) -> Row:
    number = _number(row)
    scene = compose(Draws(TRAIN_SEED, number))
    return row | {"image": paint(Draws(SECOND_DRAW, number), scene)}


def _number(row: Row) -> int:
    return int(row["key"].rpartition("-")[2])


def _damage(file: Path) -> None:
    """Break the last rows of a file, each in its own way."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    first = len(rows) - len(BREAKS)
    for position, damage in enumerate(BREAKS.values(), first):
        rows[position] |= damage(rows[position], rows[0])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


def _bomb() -> bytes:
    """Return a PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = part(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


BREAKS: dict[str, Callable[[Row, Row], Row]] = {
    "a picture cut short": lambda row, other: {"image": row["image"][: len(row["image"]) // 2]},
    "a picture that is a web page": lambda row, other: {"image": b"<html>404 Not Found</html>"},
    "a decompression bomb": lambda row, other: {"image": _bomb()},
    "an empty caption": lambda row, other: {"text": "  "},
    "no key": lambda row, other: {"key": None},
    "a key that another row has": lambda row, other: {"key": other["key"]},
}
"""What is done to a row, and the columns it then has; the second row is the first of the file."""
