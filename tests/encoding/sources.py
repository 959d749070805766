"""Small models and sources with every kind of bad row, for the tests of this room and of the night."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from cmh_models import build_method
from cmh_models.method import HashMethod

CODE_LENGTH = 16
TOWERS: dict[str, Any] = {
    "image": {"name": "descriptor", "image_size": 16, "hidden": 8},
    "text": {"name": "bag", "word_buckets": 64, "pair_buckets": 0, "hidden": 8},
}
FEATURES: dict[str, Any] = {
    "image": {"name": "features", "width": 3, "hidden": 8},
    "text": {"name": "bag", "word_buckets": 64, "pair_buckets": 0, "hidden": 8},
}


def tiny_method(
    towers: dict[str, Any] = TOWERS, *, seed: int = 0, code_length: int = CODE_LENGTH
) -> HashMethod:
    """Return an untrained model, of 16 bits unless told."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_method({"name": "jdsh", "code_length": code_length}, towers).eval()


def picture(n: int, *, size: int = 20) -> bytes:
    """Return the n-th of a family of noisy JPEGs."""
    pixels = np.random.default_rng(n).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def huge_picture() -> bytes:
    """Return a small file that says it holds 10 billion pixels."""
    data = bytearray(picture(0))
    start = data.index(b"\xff\xc0")  # the frame header: length, precision, height, width
    data[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    return bytes(data)


BAD_ROWS: list[tuple[Any, Any, Any]] = [  # key, image, text
    ("good-1", picture(1), "one red circle"),
    ("truncated", picture(2)[:-200], "a truncated picture"),
    ("huge", huge_picture(), "a huge picture"),
    ("not-a-picture", b"hello", "no picture at all"),
    ("empty-caption", picture(3), "  "),
    ("no-picture", None, "text alone"),
    ("no-text", picture(4), None),
    ("nothing", None, None),
    ("good-1", picture(5), "a second row of the first key"),
    (None, picture(6), "a row without a key"),
    ("", picture(7), "a row with an empty key"),
    ("no-text", picture(8), "the key of a row that has no text"),
    ("good-2", picture(9), "two blue squares"),
]


def write_rows(path: Path, rows: Sequence[tuple[Any, Any, Any]], *, row_group_size: int = 100) -> Path:
    """Write (key, image, text) rows as one unit."""
    key, image, text = zip(*rows, strict=True)
    schema = pa.schema([("key", pa.string()), ("image", pa.binary()), ("text", pa.string())])
    table = pa.table([list(key), list(image), list(text)], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def good_rows(start: int, stop: int) -> list[tuple[str, bytes, str]]:
    """Return complete rows with keys k<start> .. k<stop - 1>."""
    return [(f"k{n}", picture(n), f"caption number {n} of {n % 5} things") for n in range(start, stop)]


def many_rows(start: int, stop: int) -> list[tuple[str, bytes, str]]:
    """Return rows of few pictures and texts but distinct keys: quick to make, work to encode."""
    few = good_rows(0, 50)
    return [(f"m{n}", few[n % 50][1], few[n % 49][2]) for n in range(start, stop)]
