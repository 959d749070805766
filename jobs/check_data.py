"""Look at data before anyone spends GPU hours on it.

Opens the footers of up to 64 files, counts missing and repeated keys, reads and decodes 500 rows from all
over the source, and says: which columns were found, how large row groups and rows are, what would be
rejected and why, and how long a pass over all rows would take. With encode.model the network runs over the
sample too, and the hours include it; without, they are those of reading and decoding alone.

It is trouble, and exit code 2, when: a file cannot be read or differs from the others, there is no column
for key, picture or text, nothing decodes on a side, more rows than encode.max_reject_fraction would be
rejected, there is no train row, or an import that wrote the data did not end.

inputs: data.path, data.columns, data.limits, data.split; encode.model if there is one
outputs, in <run.dir>/<run.name>/check_data:
  sheet.html   up to 200 rows as the networks will see them, with captions, labels and rejects
  run.json     the same as the last line of stdout

example:
  hashfleet check_data --set data.path=data/mine
  hashfleet check_data --config jobs/configs/scenes_jdsh_64.yaml --set encode.model=runs/scenes_jdsh_64/model
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["check_data", *sys.argv[1:]]))

import argparse
import json
import logging

import pyarrow.parquet as pq

from jobs.command import USAGE_ERROR, Result
from jobs.config import Config
from jobs.source import source_files, source_uri
from jobs.trial import choose_recipe, load_model, time_network
from pipeline.corpus.importers.writing import LEDGER
from pipeline.corpus.inspection.findings import (
    Expectations,
    Findings,
    judge_keys,
    judge_layout,
    judge_sample,
    judge_splits,
)
from pipeline.corpus.inspection.layout import count_keys, count_splits, read_layout
from pipeline.corpus.inspection.sample import SampledRow, draw_sample
from pipeline.corpus.inspection.sheet import render_sheet
from pipeline.releases.storage import Storage, source_root

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", type=int, default=500, metavar="N", help="rows to decode (default: 500)")
    add("--image-size", type=int, metavar="PIXELS", help="side of decoded pictures, where no model says it")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Check the source of `data.path`; trouble makes the result failed, with exit code 2."""
    if args.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {args.rows}")
    uri = source_uri(config)
    root, files = source_root(uri), source_files(uri)
    filesystem, folder = root.filesystem()

    def open_file(path: str) -> pq.ParquetFile:
        return pq.ParquetFile(filesystem.open_input_file(f"{folder}/{path}"))

    layout = read_layout([(file.path, file.size) for file in files], open_file, config.data.columns)
    found, rows = judge_layout(layout), []
    if layout.footers and layout.rows:
        expected = _expectations(config)
        judge_keys(count_keys(layout, open_file), found, expected)
        judge_splits(count_splits(layout, open_file), layout, found, expected)
        method = load_model(config)
        recipe = choose_recipe(config, method, layout, image_size=args.image_size)
        sample = draw_sample(layout, open_file, recipe, rows=args.rows)
        judge_sample(sample, layout, time_network(method, sample, config), found, expected)
        rows = sample.rows
    _check_import(root, found)
    return _result(config, uri, found, rows)


def _expectations(config: Config) -> Expectations:
    split = config.data.split
    return Expectations(
        max_reject_fraction=config.encode.max_reject_fraction,
        splits={"train": split.train, "query": split.query, "retrieval": split.retrieval},
        encoders=config.resources.encoders,
    )


def _check_import(root: Storage, found: Findings) -> None:
    """Say whether an import of ours wrote the source, and did not end."""
    if root.exists(LEDGER) and json.loads(root.read(LEDGER)).get("state") != "done":
        found.trouble.append(f"{root.where(LEDGER)}: the import of this data did not end; run it again")


def _result(config: Config, uri: str, found: Findings, rows: list[SampledRow]) -> Result:
    """Print the findings and keep the sheet."""
    for name, value in found.facts.items():
        log.info("%-12s %s", name, value)
    for heading, lines in (("worth knowing", found.notes), ("TROUBLE", found.trouble)):
        for line in lines:
            log.info("%s: %s", heading, line)
    page = render_sheet(uri, rows, facts=found.facts, trouble=found.trouble, notes=found.notes)
    place, path = Storage(config.run.dir), f"{config.run.name}/check_data/sheet.html"
    place.write(path, page.encode())
    log.info("sheet: %s", place.where(path))
    return Result(
        status="failed" if found.trouble else "done",
        outputs={"sheet": place.where(path)},
        metrics=found.metrics,
        counts=found.counts,
        details=found.details | {"trouble": found.trouble, "notes": found.notes},
        code=USAGE_ERROR if found.trouble else None,
    )
