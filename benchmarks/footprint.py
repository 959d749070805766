"""What a row, a unit, a part and a night cost in bytes and in requests, and what that comes to at a billion.

Bytes: every kind of file is made at two sizes from drawn codes and keys; the slope between them is what a row
takes, the rest is fixed. Requests: nights over an S3 server on loopback (moto, extra `test`), few units and
more of them, counted by a proxy; the slope is what a changed unit takes, the rest what a night takes. The
corpora on paper are these figures times their rows, nothing else.

    python benchmarks/footprint.py [--bits 64] [--key-bytes 20] [--rows-per-unit 100000] [--units-per-part 16]
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmh_models.artefact import save_pretrained
from jobs import nightly
from jobs.config import load_config
from pipeline.corpus.decode import Reject
from pipeline.encoding.codefile import CodeFileRecipe, EncodedSide, UnitRows, make_code_file
from pipeline.releases.heads import Log
from pipeline.releases.manifest import PARTS, REJECTS, UNITS, ReleaseRecipe, create_store, write_release
from pipeline.releases.storage import Storage
from pipeline.search.indexing import build_part
from tests.encoding.sources import good_rows, tiny_method, write_rows
from tests.proxy import Proxy, running_proxy
from tests.s3 import BUCKET, chosen_server

SMALL, LARGE = 20_000, 100_000
CORPORA = (1_000_000_000, 10_000_000_000)
SIDES = 2


def main() -> None:
    """Measure, print tables to stderr and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--key-bytes", type=int, default=20)
    parser.add_argument("--rows-per-unit", type=int, default=100_000)
    parser.add_argument("--units-per-part", type=int, default=16)
    args = parser.parse_args()
    sizes = bytes_of(args.bits, args.key_bytes)
    asked = requests()
    _print("bytes", ("slope", "fixed"), sizes)
    _print("requests", ("slope", "fixed"), asked)
    paper = {rows: on_paper(rows, sizes, asked, args) for rows in CORPORA}
    _print("on paper", [f"{rows:.0e}" for rows in CORPORA], _transposed(paper))
    bare = args.bits / 8
    ratios = {
        "code_file_vs_bare_codes": sizes["code file, a row"][0] / bare,
        "part_vs_bare_codes": (sizes["part, a row"][0] + sizes["keys of a part, a row"][0]) / bare,
    }
    figures = {"bytes": sizes, "requests": asked, "paper": paper, "settings": vars(args)}
    print(json.dumps({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}} | figures))


def bytes_of(bits: int, key_bytes: int) -> dict[str, tuple[float, float]]:
    """Return (bytes of one more, fixed bytes) of everything that a store holds."""

    def code_file(rows: int) -> int:
        return len(_code_file(rows, bits, key_bytes).codes)

    def rejects(rows: int) -> int:
        return len(_code_file(rows, bits, key_bytes, rejected=True).rejects or b"")

    def part(rows: int) -> int:
        return len(_part(rows, bits, key_bytes).index)

    def keys(rows: int) -> int:
        return len(_part(rows, bits, key_bytes).keys)

    return {
        "code file, a row": _line(code_file),
        "rejects file, a row": _line(rejects),
        "part, a row": _line(part),
        "keys of a part, a row": _line(keys),
        "table units, a unit and side": _line(lambda count: _table_bytes("units", count)),
        "table parts, a part": _line(lambda count: _table_bytes("parts", count)),
        "log, an entry": (_entry_bytes(), 0.0),
    }


def requests() -> dict[str, tuple[float, float]]:
    """Return (requests for one more unit, fixed requests) of a first night, and of one without change."""
    found: dict[str, dict[int, int]] = {}
    kinds: Counter[str] = Counter()
    with (
        chosen_server() as told,
        running_proxy(told["AWS_ENDPOINT_URL"]) as proxy,
        tempfile.TemporaryDirectory() as folder,
    ):
        save_pretrained(tiny_method(), Path(folder, "model"), card={})
        for units in (4, 8):
            counts = _nights(Path(folder), proxy, units, told)
            for night, seen in counts.items():
                found.setdefault(night, {})[units] = len(seen)
            kinds = Counter(line.split(" ")[0] for line in counts["first night, a unit"])
    print(f"a first night of 8 units: {dict(sorted(kinds.items()))}", file=sys.stderr)
    lines = {}
    for night, by_units in found.items():
        slope = (by_units[8] - by_units[4]) / 4
        lines[night] = (slope, by_units[8] - 8 * slope)
    return lines


def on_paper(
    rows: int,
    sizes: dict[str, tuple[float, float]],
    asked: dict[str, tuple[float, float]],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Return what a corpus of so many pairs comes to; GB are 10^9 bytes."""
    units = -(-rows // args.rows_per_unit)
    parts = SIDES * -(-units // args.units_per_part)
    each = {
        "code files": (SIDES * rows, SIDES * units, sizes["code file, a row"]),
        "parts": (SIDES * rows, parts, sizes["part, a row"]),
        "keys of parts": (SIDES * rows, parts, sizes["keys of a part, a row"]),
        "table units": (SIDES * units, 1, sizes["table units, a unit and side"]),
        "table parts": (parts, 1, sizes["table parts, a part"]),
    }
    paper: dict[str, float] = {"units": units, "parts": parts}
    for name, (count, files, (slope, fixed)) in each.items():
        paper[f"GB of {name}"] = round((count * slope + files * fixed) / 1e9, 4)
    for night, share in (("first night", 1.0), ("1 % of units changed", 0.01), ("nothing changed", 0.0)):
        slope, fixed = asked["first night, a unit"] if share else asked["nothing changed, a unit"]
        listing = units / 1000  # one page of a listing names a thousand units
        paper[f"requests, {night}"] = round(slope * units * share + fixed + listing)
    return paper


def _nights(folder: Path, proxy: Proxy, units: int, told: dict[str, str]) -> dict[str, list[str]]:
    """Run three nights over so many units; return the requests of each."""
    source, store = f"s3://{BUCKET}/source-{units}", f"s3://{BUCKET}/store-{units}"
    for number in range(units):
        file = folder / f"{number}.parquet"
        write_rows(file, good_rows(40 * number, 40 * number + 40))
        Storage(source).upload(file, file.name)
    settings = {
        "data.path": source,
        "store.uri": store,
        "encode.model": str(folder / "model"),
        "run.dir": str(folder / "runs"),
        "index.part_boundary": "1",
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    seen = {}
    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    try:
        for night in ("first night, a unit", "nothing changed, a unit"):
            proxy.forget()
            nightly.run(load_config(None, words, {}), argparse.Namespace(dry_run=False))
            seen[night] = list(proxy.seen)
    finally:
        os.environ["AWS_ENDPOINT_URL"] = told["AWS_ENDPOINT_URL"]
    return seen


def _line(measure: Callable[[int], int]) -> tuple[float, float]:
    small, large = measure(SMALL), measure(LARGE)
    slope = (large - small) / (LARGE - SMALL)
    return round(slope, 3), round(large - slope * LARGE)


def _keys(rows: int, key_bytes: int) -> pa.Array:
    """Return distinct keys that do not compress better than a hash would."""
    digits = np.random.default_rng(0).integers(0, 1 << 62, rows)
    return pa.array(
        [f"{digit:015x}{n:x}".rjust(key_bytes, "k")[:key_bytes] for n, digit in enumerate(digits)]
    )


def _code_file(rows: int, bits: int, key_bytes: int, *, rejected: bool = False):  # type: ignore[no-untyped-def]
    draw, keys = np.random.default_rng(1), _keys(rows, key_bytes)
    bad = [Reject(n, keys[n].as_py(), "decode", "cannot identify image file") for n in range(rows)]
    side = EncodedSide(
        read=rows,
        absent=0,
        rows=np.arange(0 if rejected else rows),
        hashes=draw.integers(0, 256, (0 if rejected else rows, 16), dtype=np.uint8),
        codes=draw.integers(0, 256, (0 if rejected else rows, bits // 8), dtype=np.uint8),
        rejects=tuple(bad) if rejected else (),
    )
    recipe = CodeFileRecipe("image", "0" * 32, "1" * 32, "2" * 32, "3" * 32, bits)
    return make_code_file(recipe, UnitRows(keys), [side])


def _part(rows: int, bits: int, key_bytes: int):  # type: ignore[no-untyped-def]
    table = pq.read_table(pa.BufferReader(_code_file(rows, bits, key_bytes).codes))
    return build_part({"2026/11/part-00000.parquet": table}, recipe="BFlat")


def _table_bytes(name: str, count: int) -> int:
    """Return the bytes of a table of a release with so many rows, from its manifest."""
    draw = np.random.default_rng(2)

    def digests(size: int) -> list[str]:
        return [draw.bytes(size // 2).hex() for _ in range(count)]

    numbers = pa.array(draw.integers(1, 1 << 30, count))
    ordinals, zeros = np.arange(count), np.zeros(count, np.int64)
    drawn = {
        "path": [f"2026/11/part-{n:09d}.parquet" for n in range(count)],
        "side": ["image"] * count,
        "ordinal": ordinals,
        "stale": np.zeros(count, bool),
        "read": np.full(count, 100_000),
        "encoded": np.full(count, 100_000),
        "rejected": zeros,
        "absent": zeros,
        **{column: digests(32) for column in ("token", "unit", "code", "part")},
        **{column: digests(64) for column in ("code_sha256", "index_sha256", "keys_sha256")},
        **dict.fromkeys(("size", "code_bytes", "index_bytes", "keys_bytes", "units", "rows"), numbers),
    }
    schemas = {"units": UNITS, "parts": PARTS, "rejects": REJECTS}
    empty = pa.nulls(count)
    tables = {other: schema.empty_table() for other, schema in schemas.items()}
    schema = schemas[name]
    columns = [pa.array(drawn[c]) if c in drawn else empty for c in schema.names]
    tables[name] = pa.table(columns, names=schema.names).cast(schema)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        recipe = ReleaseRecipe(code_length=64, model="0" * 32, fingerprints={}, input_recipe="0" * 32)
        write_release(storage, recipe, tables=tables)
        return max(storage.size(path) for path in storage.list("tables"))


def _entry_bytes() -> float:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        create_store(storage)
        log = Log(storage)
        lease = log.acquire("host/boot/space/1/2", 900)
        assert lease is not None
        return float(max(storage.size(path) for path in storage.list("heads") if path.endswith(".json")))


def _transposed(paper: dict[int, dict[str, float]]) -> dict[str, tuple[float, ...]]:
    names = next(iter(paper.values()))
    return {name: tuple(column[name] for column in paper.values()) for name in names}


def _print(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    print(f"\n{title:<32}" + "".join(f"{head:>16}" for head in heads), file=sys.stderr)
    for name, values in rows.items():
        print(f"{name:<32}" + "".join(f"{value:>16,.6g}" for value in values), file=sys.stderr)


if __name__ == "__main__":
    main()
