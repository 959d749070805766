"""Parquet files with the pictures in them: what img2dataset writes, and tables from data set hubs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.importers.rows import (
    Block,
    ImportReject,
    InputFolder,
    Row,
    block_rows,
    reject,
    schema_of,
)
from pipeline.corpus.importers.values import check_picture, read_kept, read_labels, read_text

NAMES: dict[str, tuple[str, ...]] = {
    "key": ("key", "__key__", "id", "uid"),
    "image": ("jpg", "png", "webp", "image"),
    "text": ("txt", "caption", "text", "TEXT"),
    "labels": ("labels", "label"),
    "split": ("split",),
}
"""Columns that are looked for when they are not named; the first that is there is taken."""


class PictureParquet:
    """The rows of Parquet files; a row that was not downloaded is a reject.

    Where there is no key column, the file and the number of the row in it make the key.

    Args:
        columns: our column -> the source's, for names not in `NAMES`.
        keep: further columns to take along, as strings.
    Raises:
        ValueError: the first file is no Parquet or holds no pictures.
    """

    label_names: Sequence[str] = ()

    def __init__(
        self,
        folder: InputFolder,
        names: Sequence[str],
        *,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] = (),
        max_bytes: int,
    ) -> None:
        self.folder, self.names, self.max_bytes, self.keep = folder, names, max_bytes, tuple(keep)
        with folder.open(names[0]) as stream:
            found = _open(stream, folder.where(names[0])).schema_arrow.names
        self.columns = dict(columns or {})
        for role, aliases in NAMES.items():
            alias = next((alias for alias in aliases if alias in found), None)
            if alias is not None:
                self.columns.setdefault(role, alias)
        lacking = [name for name in [*self.columns.values(), *keep] if name not in found]
        if lacking or "image" not in self.columns:
            what = f"no column {lacking[0]!r}" if lacking else "no column that holds the picture"
            raise ValueError(
                f"{folder.where(names[0])}: {what}; found: {', '.join(found)}; "
                "name it with --column image=NAME"
            )
        ours = ["key", "image", "text", *(role for role in ("labels", "split") if role in self.columns)]
        self.schema = schema_of(ours, keep=keep)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows of all files; a file that cannot be read is one reject."""
        for name in self.names:
            yield from block_rows(self._items(name), self.schema, name)

    def _items(self, name: str) -> Iterator[Row | ImportReject]:
        number = 0
        try:
            with self.folder.open(name) as stream:
                file = _open(stream, name)
                report = [field for field in ("status", "error_message") if field in file.schema_arrow.names]
                wanted = [*dict.fromkeys([*self.columns.values(), *self.keep, *report])]
                for batch in file.iter_batches(batch_size=64, columns=wanted, use_threads=False):
                    for row in _loose(batch).to_pylist():
                        yield self._row(row, name, number)
                        number += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            message = f"after {number} rows: {' '.join(str(error).split())}"
            yield ImportReject(name, "", "broken file", message, whole_file=True)

    def _row(self, row: Row, name: str, number: int) -> Row | ImportReject:
        def value(role: str) -> Any:
            return row.get(self.columns.get(role, ""))

        where = f"{name} row {number}"
        key = read_text(value("key")) if "key" in self.columns else f"{PurePosixPath(name).stem}-{number:09d}"
        image = value("image")
        image = image.get("bytes") if isinstance(image, dict) else image
        status = read_text(row.get("status", "success"))
        if status != "success":
            return ImportReject(where, key, "not downloaded", read_text(row.get("error_message")) or status)
        lost = check_picture(key, image, where, max_bytes=self.max_bytes)
        if lost is not None:
            return lost
        try:
            labels = read_labels(value("labels"))
        except ValueError as error:
            return reject(where, key, str(error))
        taken = {"where": where, "key": key, "image": image, "text": _texts(value("text")), "labels": labels}
        kept = {column: read_kept(row[column]) for column in self.keep}
        return taken | {"split": read_text(value("split")) or None} | kept


def _open(stream: pa.NativeFile, where: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{where}: no Parquet, or cut short: {' '.join(str(error).split())}") from error


def _loose(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return strings as bytes: Parquet does not check that they are UTF-8, and Python raises at others."""
    fields = [
        pa.field(field.name, pa.binary()) if pa.types.is_string(field.type) else field
        for field in batch.schema
    ]
    return batch.cast(pa.schema(fields))


def _texts(value: Any) -> str:
    """Return the first caption that is not blank, of one or of a list."""
    texts = [read_text(one) for one in (value if isinstance(value, list) else [value])]
    return next((text for text in texts if text.strip()), "")
