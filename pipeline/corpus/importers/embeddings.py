"""Features that another model has made: the .npy files of clip-retrieval with their metadata."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.importers.rows import (
    BLOCK_ROWS,
    NOT_FINITE,
    Block,
    ImportReject,
    InputFolder,
    feature_column,
    feature_type,
)
from pipeline.corpus.importers.values import read_kept, read_text

CAPTION = "caption_text"
"""The caption's column. Not an alias of the text side: that is to be read from the features."""

_FILE = re.compile(r"(img_emb|text_emb|metadata)_?(\d*)\.(npy|parquet)$")
_SIDES = {"img_emb": "image_features", "text_emb": "text_features"}
_KEYS = ("key", "__key__", "image_path", "id", "uid")


class Embeddings:
    """The rows of `img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy` and `metadata/metadata_0.parquet`.

    Row i of the three files of one number is one row here. A partition whose files do not agree in their
    rows is one reject: which caption belongs to which picture cannot be known.

    Args:
        columns: `key` or `text` -> the metadata's column, where it is not `key`, `image_path` or `caption`.
        keep: metadata columns to take along, as strings.
    Raises:
        ValueError: there are no such files, or the first of them cannot be read.
    """

    label_names: Sequence[str] = ()

    def __init__(
        self, folder: InputFolder, *, columns: Mapping[str, str] | None = None, keep: Sequence[str] = ()
    ) -> None:
        self.folder, self.keep, self.columns = folder, tuple(keep), dict(columns or {})
        self.partitions = _partitions(folder)
        self.kinds = [kind for kind in _SIDES if any(kind in files for files in self.partitions.values())]
        if not self.kinds:
            raise ValueError(
                f"{folder.root}: no img_emb_0.npy and no text_emb_0.npy, here or in folders below; "
                "expected the output of clip-retrieval inference"
            )
        self.widths = {kind: self._width(kind) for kind in self.kinds}
        self.has_metadata = any("metadata" in files for files in self.partitions.values())
        if (keep or self.columns) and not self.has_metadata:
            raise ValueError(f"{folder.root}: no metadata_0.parquet to take columns from")
        self.has_caption = self.has_metadata and self._has_caption()
        texts = [(CAPTION, pa.string())] if self.has_caption else []
        self.schema = pa.schema(
            [("key", pa.string())]
            + [(_SIDES[kind], feature_type(self.widths[kind])) for kind in self.kinds]
            + texts
            + [(name, pa.string()) for name in keep]
        )

    def blocks(self) -> Iterator[Block]:
        """Yield the rows, partition after partition."""
        for number, files in self.partitions.items():
            where = f"partition {number or '0'}"
            try:
                rows = self._check(files)
            except (OSError, ValueError, pa.ArrowException) as error:
                lost = ImportReject(where, "", "broken partition", " ".join(str(error).split()), True)
                yield Block(self.schema.empty_table(), [lost], where)
                continue
            yield from self._partition(files, rows, where)

    def _width(self, kind: str) -> int:
        name = next(files[kind] for files in self.partitions.values() if kind in files)
        with _Npy(self.folder, name) as array:
            return array.shape[1]

    def _has_caption(self) -> bool:
        name = next(files["metadata"] for files in self.partitions.values() if "metadata" in files)
        with self.folder.open(name) as stream:
            found = pq.ParquetFile(stream).schema_arrow.names
        lacking = [column for column in [*self.columns.values(), *self.keep] if column not in found]
        if lacking:
            raise ValueError(
                f"{self.folder.where(name)}: no column {lacking[0]!r}; found: {', '.join(found)}"
            )
        return self.columns.get("text", "caption") in found

    def _check(self, files: Mapping[str, str]) -> int:
        """Return the rows of a partition after making sure that its files agree."""
        counts = {}
        for kind in self.kinds:
            if kind not in files:
                raise ValueError(f"no {kind} file")
            with _Npy(self.folder, files[kind]) as array:
                counts[files[kind]] = array.shape[0]
                if array.shape[1] != self.widths[kind]:
                    raise ValueError(
                        f"{files[kind]}: must have {self.widths[kind]} features, got {array.shape[1]}"
                    )
        if "metadata" in files:
            with self.folder.open(files["metadata"]) as stream:
                counts[files["metadata"]] = pq.ParquetFile(stream).metadata.num_rows
        elif self.has_metadata:
            raise ValueError("no metadata file")
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{name} {rows}" for name, rows in counts.items())
            raise ValueError(f"its files must have equal rows, got {found}")
        return next(iter(counts.values()))

    def _partition(self, files: Mapping[str, str], rows: int, where: str) -> Iterator[Block]:
        arrays = {kind: _Npy(self.folder, files[kind]) for kind in self.kinds}
        metadata = self._metadata(files) if "metadata" in files else iter(())
        try:
            for start in range(0, rows, BLOCK_ROWS):
                count = min(BLOCK_ROWS, rows - start)
                described = next(metadata, None)
                yield self._block(
                    {kind: array.read(count) for kind, array in arrays.items()}, described, where, start
                )
        finally:
            for array in arrays.values():
                array.close()

    def _metadata(self, files: Mapping[str, str]) -> Iterator[dict[str, list[Any]]]:
        """Yield the wanted columns of the metadata in blocks of `BLOCK_ROWS`."""
        with self.folder.open(files["metadata"]) as stream:
            file = pq.ParquetFile(stream)
            found = file.schema_arrow.names
            key = self.columns.get("key") or next((name for name in _KEYS if name in found), None)
            caption = self.columns.get("text", "caption") if self.has_caption else None
            wanted = [name for name in (key, caption, *self.keep) if name is not None]
            batches = file.iter_batches(batch_size=BLOCK_ROWS, columns=list(dict.fromkeys(wanted)))
            for table in _even(batches, BLOCK_ROWS):
                columns = {name: table.column(name).to_pylist() for name in dict.fromkeys(wanted)}
                taken = {name: columns[name] for name in self.keep}
                yield taken | {"": columns[key] if key else [], CAPTION: columns.get(caption or "", [])}

    def _block(
        self,
        features: dict[str, np.ndarray],
        described: Mapping[str, list[Any]] | None,
        where: str,
        start: int,
    ) -> Block:
        count = len(next(iter(features.values())))
        given = described[""] if described else []
        number = where.rpartition(" ")[2]
        keys = [read_text(key) for key in given] or [f"{number}-{start + i:09d}" for i in range(count)]
        columns: dict[str, Any] = {"key": pa.array(keys, pa.string())}
        columns |= {_SIDES[kind]: feature_column(values) for kind, values in features.items()}
        for name in (CAPTION, *self.keep):
            if name in self.schema.names and described:
                columns[name] = pa.array([read_kept(value) for value in described[name]], pa.string())
        finite = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in features.values()])
        rejects = [
            ImportReject(f"{where} row {start + i}", keys[i], *NOT_FINITE) for i in np.flatnonzero(~finite)
        ]
        table = pa.table(columns, schema=self.schema).filter(pa.array(finite))
        return Block(table, rejects, where)


class _Npy:
    """An .npy file of (N, D) floats, read from the front; nothing is unpickled.

    Raises:
        ValueError: it is no such file, or has fewer bytes than its header says.
    """

    def __init__(self, folder: InputFolder, name: str) -> None:
        self.stream = folder.open(name)
        try:
            self._read_header(name)
        except BaseException:
            self.stream.close()
            raise

    def _read_header(self, name: str) -> None:
        try:
            version = np.lib.format.read_magic(self.stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            self.shape, fortran, self.dtype = read[version](self.stream)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{name}: no .npy file: {' '.join(str(error).split())}") from error
        if len(self.shape) != 2 or fortran or self.dtype.kind != "f":
            order = " in Fortran order" if fortran else ""
            raise ValueError(f"{name}: must be (rows, features) floats, got {self.dtype} {self.shape}{order}")
        needed = self.stream.tell() + self.shape[0] * self.shape[1] * self.dtype.itemsize
        if self.stream.size() < needed:
            raise ValueError(f"{name}: cut short: must have {needed} bytes, got {self.stream.size()}")

    def __enter__(self) -> "_Npy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.stream.close()

    def read(self, rows: int) -> np.ndarray:
        """Return the next rows."""
        data = self.stream.read(rows * self.shape[1] * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(rows, self.shape[1])


def _partitions(folder: InputFolder) -> dict[str, dict[str, str]]:
    """Return the files of each partition by kind, partitions in the order of their numbers."""
    partitions: dict[str, dict[str, str]] = {}
    for name in folder.names(".npy", ".parquet"):
        found = _FILE.fullmatch(PurePosixPath(name).name)
        if found is not None and (found[1] == "metadata") == (found[3] == "parquet"):
            partitions.setdefault(found[2], {})[found[1]] = name
    return dict(sorted(partitions.items(), key=lambda item: int(item[0] or 0)))


def _even(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield tables of exactly `rows` rows, but for the last; row groups end where they like."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        table = pa.Table.from_batches(waiting)
        while table.num_rows >= rows:
            yield table.slice(0, rows)
            table = table.slice(rows)
        waiting = table.to_batches() if table.num_rows else []
    if waiting:
        yield pa.Table.from_batches(waiting)
