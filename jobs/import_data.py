"""Write your own data as Parquet that train, encode and nightly read.

Rows that cannot be taken (no picture there, a caption that is not UTF-8, an id met before, the rest of a tar
that was cut short) are left out, counted by reason and listed. Memory does not grow with the source, but for
16 bytes a row that find repeated ids (and the JSON of coco, and version 5 of mat, which are read whole).

formats, and what --from is:
  img2dataset   a folder of webdataset tars, or of Parquet files with the pictures in them
  csv           a folder of pictures with a .csv or .tsv of captions in it (or --table FILE)
  coco          the captions JSON; --pictures FOLDER, and --labels INSTANCES.json for labels
  mat           MIRFlickr, NUS-WIDE and others as .mat: a file, or a folder with one per array
  embeddings    features of CLIP or another model: a folder as clip-retrieval writes it

outputs, in the folder --to:
  part-000000.parquet, ...   key, image or image_features, text or text_features, labels, split
  _rejects.jsonl             one line per reject: where, key, reason, error
  _import.json               the counts; its state is "done" once everything is there

example:
  hashfleet import_data csv --from "my pictures" --to data/mine --split query=5%,train=rest
  hashfleet check_data --set data.path=data/mine
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["import_data", *sys.argv[1:]]))

import argparse
import json
import logging
import tempfile
from collections import Counter
from typing import Any

from pyarrow.fs import FileType

from jobs.command import Result
from jobs.config import Config
from pipeline.corpus.importers.opening import FORMATS, SourceOptions, open_importer
from pipeline.corpus.importers.rows import Importer, InputFolder
from pipeline.corpus.importers.splits import parse_split
from pipeline.corpus.importers.writing import LEDGER, REJECTS, WriteSettings, kept_blocks, write_import
from pipeline.releases.storage import Storage, source_root

WRITES = True
TRIED_ROWS = 1000

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("format", choices=list(FORMATS), help="what the source is; see above")
    add("--from", dest="source", metavar="PATH", required=True, help="folder, file or URI to read")
    add("--to", metavar="PATH", help="folder or URI to write (default: the setting data.path)")
    add("--pictures", metavar="PATH", help="folder that picture names start from (csv, coco)")
    add("--table", metavar="FILE", help="the table, where --from holds several or none (csv)")
    add("--labels", metavar="FILE", help="instances JSON to take labels from (coco)")
    columns = "the source's column for key, image, text, labels or split, where its name is not known"
    add("--column", metavar="OURS=THEIRS", action="append", default=[], help=columns)
    add("--keep", metavar="NAME", action="append", default=[], help="a column of the source to take along")
    add("--prefix", metavar="TEXT", default="", help="put before every key, to tell imports apart")
    split = "train, or query=2000,train=10000,retrieval=rest (in order), or query=5%%,train=rest (by key)"
    add("--split", metavar="RULE", help=split)
    add("--encoding", metavar="NAME", help="of the table, such as cp1252; default: utf-8 (csv)")
    add("--delimiter", metavar="C", help="of the table; default: what its first line has most of (csv)")
    add("--rows-per-file", type=int, default=10_000, metavar="N", help="default: 10000")
    add("--limit", type=int, metavar="N", help="stop after this many rows, to try it out")
    add("--replace", action="store_true", help="replace a finished import in --to")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Import one source; the result counts rows by what became of them."""
    target = Storage(args.to or config.require("data.path"))
    rule = parse_split(args.split) if args.split else None
    settings = WriteSettings(args.rows_per_file, args.limit, args.prefix, rule)
    _check_target(target, replace=args.replace)
    importer = open_importer(args.format, _options(args, config), _open_path)
    if args.dry_run:
        return _try_out(importer, settings)
    with tempfile.TemporaryDirectory(prefix="hashfleet-import-") as scratch:
        ledger = write_import(importer, target.upload, Path(scratch), settings)
    for stale in _parts(target)[ledger.files_written :]:
        target.delete(stale)
    log.info("next: hashfleet check_data --set data.path='%s'", target.uri)
    return Result(
        outputs={"data": target.uri, "rejects": target.where(REJECTS), "report": target.where(LEDGER)},
        counts={name: value for name, value in vars(ledger).items() if isinstance(value, int)},
        details={"rejects": ledger.rejects, "columns": ledger.columns},
    )


def _options(args: argparse.Namespace, config: Config) -> SourceOptions:
    pairs = [item.partition("=") for item in args.column]
    if any(not ours or not theirs for ours, _, theirs in pairs):
        raise ValueError(f"--column takes OURS=THEIRS, got {args.column}")
    return SourceOptions(
        args.source,
        max_bytes=config.data.limits.max_image_bytes,
        pictures=args.pictures,
        table=args.table,
        labels=args.labels,
        columns={ours: theirs for ours, _, theirs in pairs},
        keep=tuple(args.keep),
        encoding=args.encoding,
        delimiter=args.delimiter,
    )


def _open_path(path: str) -> tuple[InputFolder, str]:
    root = source_root(path)
    filesystem, folder = root.filesystem()
    name = Storage(path).uri.removeprefix(root.uri).lstrip("/")
    if filesystem.get_file_info(f"{folder}/{name}".rstrip("/")).type == FileType.NotFound:
        raise ValueError(f"{path}: no such file or folder")
    return InputFolder(filesystem, folder), name


def _check_target(target: Storage, *, replace: bool) -> None:
    """Refuse a folder whose files are not ours to overwrite; those of an import that was cut short are."""
    if not any(path.endswith(".parquet") for path in target.list()):
        return
    if not target.exists(LEDGER):
        raise ValueError(f"{target.uri} holds Parquet files of another origin; give an empty folder as --to")
    if json.loads(target.read(LEDGER)).get("state") == "done" and not replace:
        raise ValueError(f"{target.uri} holds a finished import; give another --to, or --replace")


def _parts(target: Storage) -> list[str]:
    return [path for path in target.list() if path.startswith("part-") and path.endswith(".parquet")]


def _try_out(importer: Importer, settings: WriteSettings) -> Result:
    """Read the first rows, show what the first of them would become, write nothing."""
    rows, reasons = 0, Counter[str]()
    for block in kept_blocks(importer, settings):
        if rows == 0 and block.table.num_rows:
            for name, value in block.table.slice(0, 1).to_pylist()[0].items():
                log.info("  %-15s %s: %s", name, block.table.schema.field(name).type, _shown(value))
        rows += block.table.num_rows
        reasons.update(reject.reason for reject in block.rejects)
        if rows + reasons.total() >= TRIED_ROWS:
            break
    log.info("tried %d rows; rejects: %s", rows + reasons.total(), dict(reasons) or "none")
    return Result(counts={"rows_read": rows + reasons.total(), "rows_rejected": reasons.total()})


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
