"""Parts built within a memory limit: the same bytes as without one, and no more memory than was given."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.search.assembly import Need, assemble, memory_need
from pipeline.search.families import parse_recipe
from pipeline.search.indexing import build_part
from pipeline.search.quantisers import Quantiser, load_quantiser, train_quantiser
from tests.search.layouts import Rows
from tests.search.stores import code_table
from tests.search.test_families import draw

RECIPES = ("BFlat", "BIVF5", "BHNSW8", "BHash6", "BHash2x5")


def write_units(folder: Path, rows: Rows, *, units: int) -> dict[str, Path]:
    files = {}
    for number in range(units):
        table = code_table(
            rows.keys[number::units],
            size=rows.codes.shape[1],
            ids=rows.ids[number::units],
            codes=rows.codes[number::units],
        )
        files[f"u{number}"] = folder / f"{number}.parquet"
        pq.write_table(table, files[f"u{number}"], row_group_size=7)
    return files


def quantiser_of(rows: Rows, recipe: str) -> Quantiser | None:
    family = parse_recipe(recipe)
    return load_quantiser(train_quantiser(rows.codes, family, seed=1)) if family.has_quantiser else None


@pytest.mark.parametrize("recipe", RECIPES)
def test_memory_changes_no_byte_of_a_part(recipe: str, tmp_path: Path) -> None:
    rows, _ = draw(1, 400, spread=256)
    files = write_units(tmp_path, rows, units=5)
    quantiser = quantiser_of(rows, recipe)
    whole = build_part(
        {unit: pq.read_table(file) for unit, file in files.items()}, recipe=recipe, quantiser=quantiser
    )
    size = sum(file.stat().st_size for file in files.values())
    need = memory_need(400, size, parse_recipe(recipe), code_size=2)
    for memory, buckets in (
        (need.most, 1),
        (need.least + (need.most - need.least) // 3, 4),
        (need.least, 1024),
    ):
        assert need.buckets(memory) == buckets
        folder = tmp_path / str(buckets)
        folder.mkdir()
        index, keys, count = assemble(files, recipe, quantiser=quantiser, folder=folder, memory=memory)
        assert (index.read_bytes(), keys.read_bytes(), count) == (whole.index, whole.keys, 400)
        assert sorted(path.name for path in folder.iterdir()) == ["part.faiss", "part.keys.arrow"]


def test_units_without_rows_make_a_part_without_rows(tmp_path: Path) -> None:
    empty = code_table([], size=2)
    pq.write_table(empty, tmp_path / "a.parquet")
    (tmp_path / "out").mkdir()
    index, keys, rows = assemble(
        {"a": tmp_path / "a.parquet"}, "BFlat", quantiser=None, folder=tmp_path / "out", memory=1 << 30
    )
    whole = build_part({"a": empty})
    assert (index.read_bytes(), keys.read_bytes(), rows) == (whole.index, whole.keys, 0)


def test_rows_are_sorted_in_as_few_pieces_as_fit() -> None:
    need = Need(least=100, most=1100)
    assert [need.buckets(memory) for memory in (2000, 1100, 1099, 600, 350, 100, 1)] == [
        1,
        1,
        2,
        2,
        4,
        1024,
        1024,
    ]


CHILD = """
import json, sys, tempfile, threading, time
from pathlib import Path
from pipeline.search.assembly import assemble, memory_need
from pipeline.search.families import parse_recipe
from pipeline.search.quantisers import load_quantiser
recipe, memory, quantiser, *files = json.loads(sys.argv[1])
quantiser = load_quantiser(Path(quantiser).read_bytes()) if quantiser else None

def private():
    # What the process itself holds; pages of mapped files are the system's to take back.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

if quantiser:
    from pipeline.search.scan import nearest
    quantiser.assign(quantiser.centroids.codes)  # compiles
before = peak = private()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, private())
watcher = threading.Thread(target=watch)
watcher.start()
with tempfile.TemporaryDirectory() as folder:
    files = {name: Path(name) for name in files}
    rows = assemble(files, recipe, quantiser=quantiser, folder=Path(folder), memory=memory)[2]
done.set(); watcher.join()
print(json.dumps([peak - before, rows]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["BFlat", "BIVF64"])
def test_a_build_stays_within_its_memory_at_four_times_the_data(recipe: str, tmp_path: Path) -> None:
    import numpy as np

    rows = Rows.of(np.random.default_rng(1).integers(0, 256, (150_000, 8), dtype=np.uint8))
    family, once = parse_recipe(recipe), write_units(tmp_path, rows, units=3)
    quantiser = ""
    if family.has_quantiser:
        quantiser = str(tmp_path / "quantiser")
        Path(quantiser).write_bytes(train_quantiser(rows.codes[:20_000], family, seed=1))
    size = sum(file.stat().st_size for file in once.values())
    memory = memory_need(150_000, size, family, code_size=8).most
    for times in (1, 4):
        files = []
        for copy in range(times):
            for file in once.values():
                files.append(tmp_path / f"{copy}-{file.name}")
                files[-1].write_bytes(file.read_bytes())
        need = memory_need(times * 150_000, times * size, family, code_size=8)
        assert need.most <= memory or times == 4  # four times the data would not fit at once
        asked = json.dumps([recipe, memory, quantiser, *map(str, files)])
        made = subprocess.run(
            [sys.executable, "-c", CHILD, asked], capture_output=True, text=True, check=True
        )
        peak, count = json.loads(made.stdout)
        assert count == times * 150_000
        assert peak <= memory
        print(f"{recipe} x{times}: {peak >> 20} of {memory >> 20} MiB", file=sys.stderr)
