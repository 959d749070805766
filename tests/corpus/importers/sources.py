"""Small sources that the importer tests write, and what an importer made of them."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pyarrow.parquet as pq
from PIL import Image

from pipeline.corpus.importers.rows import Importer, InputFolder
from pipeline.corpus.importers.writing import ImportLedger, WriteSettings, write_import

MAX_BYTES = 1 << 20


def picture(shade: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    """Return a small JPEG; another shade is another picture."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 90, 200)).save(stream, "JPEG")
    return stream.getvalue()


def folder_of(path: Path) -> InputFolder:
    return InputFolder(pyarrow.fs.LocalFileSystem(), str(path))


@dataclass
class Imported:
    """What an import wrote."""

    ledger: ImportLedger
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    files: list[Path]

    def reasons(self) -> dict[str, str]:
        """Return the reason of each reject by key."""
        return {reject.get("key", ""): reject["reason"] for reject in self.rejects}


def import_into(folder: Path, importer: Importer, **settings: Any) -> Imported:
    """Write an import into a new folder and read it back."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)

    def put(file: Path, name: str) -> None:
        (folder / name).write_bytes(file.read_bytes())

    ledger = write_import(importer, put, scratch, WriteSettings(**settings))
    files = sorted(folder.glob("part-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    rejects = [json.loads(line) for line in (folder / "_rejects.jsonl").read_text().splitlines()]
    assert ledger.rows_read == ledger.rows_written + ledger.rows_rejected
    assert ledger.rows_written == len(rows)
    return Imported(ledger, rows, rejects, files)


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def features(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
