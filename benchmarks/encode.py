"""How fast rows become codes: on Ray against a bare loop, our decoder against Pillow's, 1 % of rows changed.

    OMP_NUM_THREADS=1 python benchmarks/encode.py [--rounds 3] [--only pictures features decode changed]

`pictures_vs_bare`, `features_vs_bare`: rows per second of the encoders that a night runs on Ray, against two
plain processes that do the same work with the same functions. Steady: from the times of two sizes, so that
start-up does not count. `decode_vs_pillow`: one core, 500 x 375 JPEG to 224 x 224, against Pillow's chain in
torchvision's order (resize, crop, floats, normalised); `decode_vs_pillow_uint8`: the same without the floats.
`row_token_vs_full`, `content_hash_vs_full`: CPU seconds to encode a unit in full against the same unit with
1 % of its rows, drawn at random, changed and the codes of the night before at hand. 500 x 375 JPEG of about
120 kB, 3,200 rows in row groups of 128; for the token pages of 8 rows (1 MB), and beside it
(`row_token_large_pages`) pyarrow's own: one page per row group, all of which must be read for one row. The
network's pass has 64 rows, twice the 32 that changed; `row_token_large_unit` is a unit of 12,800 rows, whose
128 fill more of it. The model is loaded before.
"""

import argparse
import io
import json
import logging
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from cmh_models import build_method
from cmh_models.artefact import save_pretrained
from jobs.config import Config
from jobs.nights.actors import encode_units_by_actors, join_cluster
from jobs.nights.budget import NO_LIMIT
from jobs.nights.night import Night, open_night
from pipeline.corpus import pictures
from pipeline.corpus.schema import SIDES
from pipeline.encoding.codefile import CodeFileRecipe
from pipeline.encoding.decoding import Source
from pipeline.encoding.rows import EncodeRow, chunk_row, receipt_of
from pipeline.encoding.units import UnitWork, finish_unit, open_unit
from pipeline.releases.addresses import digest_json
from pipeline.releases.forgetting import NOTHING_FORGOTTEN
from pipeline.releases.storage import Storage

SIZE = 224
WIDTH = 256
TOWERS: dict[str, dict[str, Any]] = {
    "pictures": {"image": {"name": "descriptor", "image_size": SIZE}, "text": {"name": "bag"}},
    "features": {side: {"name": "features", "width": WIDTH} for side in SIDES},
}
UNITS = {"pictures": (8, 72), "features": (8, 64)}
UNIT_ROWS = {"pictures": 64, "features": 8192}
CHANGED_ROWS = 3200
ROW_GROUP = 128
ROWS_PER_PAGE = 8
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
SPREAD = np.array([0.229, 0.224, 0.225], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parts = ("decode", "changed", "pictures", "features")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in arguments.only:
            folder = Path(scratch) / part
            folder.mkdir()
            if part == "decode":
                ratios |= measure_decode(arguments.rounds)
            elif part == "changed":
                ratios |= measure_changed(folder, arguments.rounds)
            else:
                ratios[f"{part}_vs_bare"] = measure_rate(part, folder, arguments.rounds)
    print(json.dumps({"ratios": {name: round(value, 3) for name, value in ratios.items()}}))


def photograph(seed: int, *, width: int = 500, height: int = 375) -> bytes:
    """Return a JPEG of noise whose amplitude falls with frequency, as that of photographs does."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    shaped = np.fft.irfft2(np.fft.rfft2(noise, axes=(0, 1)) / frequency[..., None], (height, width), (0, 1))
    scaled = (shaped - shaped.mean()) / shaped.std() * 50 + 128
    file = io.BytesIO()
    Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure_decode(rounds: int) -> dict[str, float]:
    """Compare decoders on one core; check that the pixels are the same."""
    files = [photograph(seed) for seed in range(40)]
    pictures.WARM_UP = 0

    def ours(data: bytes) -> np.ndarray:
        return pictures.decode_picture(data, SIZE, crop=True, max_pixels=10**8)

    differences = [np.abs(ours(data).astype(int) - pillow_chain(data)).mean() for data in files]

    def normalised(data: bytes) -> np.ndarray:
        floats = (pillow_chain(data).astype(np.float32) / 255 - MEAN) / SPREAD
        return np.ascontiguousarray(floats.transpose(2, 0, 1))

    chains = {"ours": ours, "pillow, uint8": pillow_chain, "pillow, floats": normalised}
    times: dict[str, list[float]] = {name: [] for name in chains}
    for _ in range(2 * rounds + 1):
        for name, chain in chains.items():
            times[name].append(cpu_seconds(decode_all, chain, files) / len(files))
    for name, values in times.items():
        say(f"decode {name:16s} {1 / statistics.median(values):8.0f} pictures/s a core")
    say(f"mean difference of pixels {np.mean(differences):.5f} of 255")
    return {
        "decode_vs_pillow": ratio(times["pillow, floats"], times["ours"]),
        "decode_vs_pillow_uint8": ratio(times["pillow, uint8"], times["ours"]),
        "decode_mean_difference": float(np.mean(differences)),
    }


def decode_all(chain: Callable[[bytes], np.ndarray], files: list[bytes]) -> None:
    for data in files:
        chain(data)


def pillow_chain(data: bytes) -> np.ndarray:
    """Decode, scale the shorter side and cut the centre, as torchvision does with Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scaled = [int(SIZE * side / min(picture.size)) for side in picture.size]
    left, top = (round((side - SIZE) / 2) for side in scaled)
    resized = picture.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)))


def measure_changed(folder: Path, rounds: int) -> dict[str, float]:
    """Compare, in one process, full encodes with encodes that find the codes of all but 1 % of the rows."""
    files = [photograph(seed) for seed in range(50)]
    ratios = {}
    for name, token, rows_per_page, rows in (
        ("row_token", True, ROWS_PER_PAGE, CHANGED_ROWS),
        ("row_token_large_unit", True, ROWS_PER_PAGE, 4 * CHANGED_ROWS),
        ("row_token_large_pages", True, None, CHANGED_ROWS),
        ("content_hash", False, None, CHANGED_ROWS),
    ):
        place = folder / name
        drawn = np.random.default_rng(0).choice(rows, rows // 100, replace=False)
        touched = np.isin(np.arange(rows), drawn).astype(int)
        for version, marks in (("before", 0 * touched), ("after", touched)):
            columns: dict[str, Any] = {"key": [f"k{n}" for n in range(rows)]}
            columns["image"] = [commented(files[n % 50], n, mark) for n, mark in enumerate(marks.tolist())]
            columns["text"] = [f"caption {n} {mark}" for n, mark in enumerate(marks)]
            if token:
                columns["updated"] = marks
            path = place / version / "u.parquet"
            write(path, columns, row_group_size=ROW_GROUP, rows_per_page=rows_per_page)
        ratios[f"{name}_vs_full"] = compare_changed(name, place, rounds, rows=rows)
        shutil.rmtree(place)
    return ratios


def compare_changed(name: str, place: Path, rounds: int, *, rows: int) -> float:
    """Return how many times cheaper the second version of a unit is with the codes of the first."""
    night = night_of(place, place / "after", TOWERS["pictures"])
    source = Source(Storage(place / "before"), night.source.recipe)
    before = works_of(night, "before", source=source)
    early = EncodeRow(night.facts.digest, night.store, tile=64, source=source)
    list(run_units(before, early, source, night.store))
    encode = EncodeRow(night.facts.digest, night.store, tile=64, source=night.source)
    addresses = {file.side: file.address for file in before[0].files}
    full, changed = [], []
    for number in range(rounds):
        whole, some = works_of(night, f"full {number}"), works_of(night, str(number), earlier=addresses)
        full.append(cpu_seconds(run_here, night, encode, whole))
        changed.append(cpu_seconds(run_here, night, encode, some))
    say(
        f"changed {name:22s} full {statistics.median(full) / rows * 1e6:7.0f} us/row, "
        f"1 % changed {statistics.median(changed) / rows * 1e6:7.1f} us/row"
    )
    return ratio(full, changed)


def commented(data: bytes, number: int, touched: int) -> bytes:
    """Return a JPEG of the same pixels and other bytes."""
    return data[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(4, "big") + touched.to_bytes(4, "big") + data[2:]


def measure_rate(kind: str, folder: Path, rounds: int) -> float:
    """Return the steady rate of the encoders on Ray over that of two plain processes."""
    few, many = UNITS[kind]
    for number in range(many):
        write(folder / "source" / f"{number:03d}.parquet", rows_of(kind, number), row_group_size=1024)
    night = night_of(folder, folder / "source", TOWERS[kind])
    join_cluster(night)
    rates: dict[str, list[float]] = {"ray": [], "bare": []}
    for number in range(rounds):
        for name, run in (("ray", run_ray), ("bare", run_bare)):
            times = []
            for count in (few, many):
                works = works_of(night, f"{name} {number} {count}")[:count]
                times.append(wall_seconds(run, night, works))
            rates[name].append((many - few) * UNIT_ROWS[kind] / (times[1] - times[0]))
            say(f"{kind} {name:5s} {rates[name][-1]:9.0f} rows/s steady; {times[0]:.1f} and {times[1]:.1f} s")
    return ratio(rates["ray"], rates["bare"])


def run_ray(night: Night, works: list[UnitWork]) -> None:
    list(encode_units_by_actors(night, works, budget=NO_LIMIT, forgotten=NOTHING_FORGOTTEN))


def run_here(night: Night, encode: EncodeRow, works: list[UnitWork]) -> None:
    list(run_units(works, encode, night.source, night.store))


def run_bare(night: Night, works: list[UnitWork]) -> None:
    """Encode half of the units in each of two processes."""
    context = multiprocessing.get_context("spawn")
    inputs = (night.facts.digest, night.source, night.store)
    processes = [context.Process(target=_bare, args=(works[half::2], *inputs)) for half in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError("a plain process failed; its traceback stands above")


def _bare(works: list[UnitWork], model: str, source: Source, store: Storage) -> None:
    torch.set_num_threads(1)
    encode = EncodeRow(model, store, tile=64, source=source)
    list(run_units(works, encode, source, store))


def run_units(works: list[UnitWork], encode: EncodeRow, source: Source, store: Storage) -> Iterator[Any]:
    """Encode units one after another."""
    for work in works:
        receipts = [receipt_of(encode(chunk_row(chunk, work))) for chunk in work.chunks]
        report = finish_unit(work, receipts, source=source, store=store)
        if report.error:
            raise RuntimeError(report.error)
        yield report


def rows_of(kind: str, number: int) -> dict[str, Any]:
    """Return the columns of a unit."""
    count = UNIT_ROWS[kind]
    columns: dict[str, Any] = {"key": [f"{number}-{n}" for n in range(count)]}
    if kind == "pictures":
        columns["image"] = [photograph(n) for n in range(16)] * (count // 16)
        columns["text"] = [f"caption number {n} of unit {number}" for n in range(count)]
    else:
        for side in SIDES:
            values = np.random.default_rng(number).standard_normal(count * WIDTH, np.float32)
            columns[f"{side}_features"] = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
    return columns


def write(
    path: Path, columns: dict[str, Any], *, row_group_size: int, rows_per_page: int | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = {"max_rows_per_page": rows_per_page, "write_batch_size": rows_per_page} if rows_per_page else {}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, use_dictionary=False, **pages)


def night_of(folder: Path, source: Path, towers: dict[str, Any]) -> Night:
    """Return the frame of a night with an untrained model, kept in its store."""
    torch.manual_seed(0)
    save_pretrained(build_method({"name": "jdsh", "code_length": 64}, towers), folder / "model", card={})
    settings = {
        "data": {"path": str(source)},
        "encode": {"model": str(folder / "model")},
        "store": {"uri": str(folder / "store")},
    }
    night = open_night(Config.model_validate(settings), argparse.Namespace())
    night.keep_model()
    return night


def works_of(
    night: Night, run: str, *, source: Source | None = None, earlier: dict[Any, str] | None = None
) -> list[UnitWork]:
    """Return the units of a source, opened, with code files that no other run has."""
    source = source or night.source
    works = []
    for unit in sorted(source.root.files(), key=lambda file: file.path):
        files = tuple(
            CodeFileRecipe(
                side=side,
                address=digest_json([run, unit.path, side]),
                unit_token=unit.token,
                fingerprint=night.facts.fingerprints[side],
                input_recipe=night.recipes[side],
                code_length=night.facts.code_length,
            )
            for side in SIDES
        )
        works.append(open_unit(UnitWork(unit, files, earlier=earlier or {}), source))
    return works


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def cpu_seconds(work: Callable[..., Any], *inputs: Any) -> float:
    started = time.process_time()
    work(*inputs)
    return time.process_time() - started


def wall_seconds(work: Callable[..., Any], *inputs: Any) -> float:
    started = time.perf_counter()
    work(*inputs)
    return time.perf_counter() - started


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
