"""The memory that building parts may take, as an argument: it stands for the setting of the same name."""

import argparse
import re

from jobs.config import Config, validate
from pipeline.search.indexing import IndexConfig

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Take index.max_memory as an argument."""
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="index.max_memory: what builds of parts may take together, in bytes or as 512MiB, 8GiB",
    )


def index_config(config: Config, args: argparse.Namespace) -> IndexConfig:
    """Return the index section, the argument taken into account.

    Raises:
        ValueError: a setting or the argument does not fit.
    """
    index = config.section("index", IndexConfig)
    asked = getattr(args, "max_memory", None)
    if asked is None:
        return index
    values = index.model_dump() | {"max_memory": _bytes(asked)}
    return validate(IndexConfig, values, prefix="index.", where=lambda name: "arguments")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*(|KiB|MiB|GiB|TiB)", text)
    if found is None:
        raise ValueError(f"--max-memory must be bytes, or a number with KiB, MiB, GiB or TiB, got {text!r}")
    return int(found[1]) * _UNITS[found[2]]
