"""What every importer gives, blocks of rows in our columns and rejects, and the folder it reads from.

An importer streams: it holds one block at a time. What is wrong with one row is a reject, what is wrong with
the whole source a ValueError in one line.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.fs

BLOCK_ROWS = 1024
BLOCK_BYTES = 32 << 20
NOT_FINITE = ("feature not finite", "a value is NaN or infinite")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

Row = dict[str, Any]
"""A row by column: `key`, `image`, `text`, `labels`, `split` and kept columns; a missing one is null."""


@dataclass(frozen=True)
class ImportReject:
    """A row, or with `whole_file` the unread rest of a file, that was not imported."""

    where: str  # file and place in it
    key: str  # "" where it is not known
    reason: str  # one of a few short classes, to count by
    error: str = ""
    whole_file: bool = False


@dataclass(frozen=True)
class Block:
    """Some rows of the source, in order, and the rejects met on the way to them."""

    table: pa.Table
    rejects: list[ImportReject] = field(default_factory=list)
    where: str = ""  # the file they come from


class Importer(Protocol):
    """A source in a layout of its own, read as blocks of one schema."""

    schema: pa.Schema

    @property
    def label_names(self) -> Sequence[str]:
        """Names of the labels 0, 1, ..., once all is read; empty where the source numbers them itself."""

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in the order of the source."""


@dataclass(frozen=True)
class InputFolder:
    """A folder of a source: an Arrow file system and the root in it."""

    filesystem: pyarrow.fs.FileSystem
    root: str

    def where(self, path: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.root}/{path}"

    def names(self, *suffixes: str, recursive: bool = True) -> list[str]:
        """Return the files below it that end in one of the suffixes, sorted; hidden ones are left out."""
        selector = pyarrow.fs.FileSelector(self.root, recursive=recursive)
        files = (info for info in self.filesystem.get_file_info(selector) if info.is_file)
        names = [info.path.removeprefix(self.root).lstrip("/") for info in files]
        return sorted(
            name
            for name in names
            if name.lower().endswith(suffixes) and not any(step[0] in "._" for step in name.split("/"))
        )

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for reading at any place.

        Raises:
            OSError: it is not there or cannot be read.
        """
        return self.filesystem.open_input_file(f"{self.root}/{path}")

    def read(self, path: str) -> bytes:
        """Return a whole file."""
        with self.open(path) as file:
            return bytes(file.readall())

    def read_picture(self, path: str, *, max_bytes: int) -> bytes:
        """Return the bytes of a picture by the path that a table gives for it.

        A name is also tried in the other Unicode normal form (archives made on a Mac decompose accents) and
        with slashes for backslashes.

        Raises:
            ValueError: "picture is a url", "unsafe path", "missing picture", "unreadable picture",
                "empty picture" or "picture too large", then a colon and the detail.
        """
        for candidate in self._candidates(path):
            try:
                with self.open(candidate) as file:
                    size = file.size()
                    if not 0 < size <= max_bytes:
                        raise ValueError(
                            f"picture too large: must have at most {max_bytes} bytes, got {size}"
                            if size
                            else f"empty picture: {self.where(candidate)} has no bytes"
                        )
                    return bytes(file.readall())
            except FileNotFoundError:
                continue
            except OSError as error:
                if self.filesystem.get_file_info(self.where(candidate)).type == pyarrow.fs.FileType.NotFound:
                    continue
                raise ValueError(f"unreadable picture: {' '.join(str(error).split())}") from error
        raise ValueError(f"missing picture: no file {self.where(path)}")

    def _candidates(self, path: str) -> list[str]:
        if "://" in path:
            raise ValueError(f"picture is a url: {path}; download it first, with img2dataset for example")
        path = path.removeprefix(f"{self.root}/")
        steps = PurePosixPath(path.replace("\\", "/"))
        if steps.is_absolute() or ".." in steps.parts:
            raise ValueError(f"unsafe path: {path} leads out of {self.root}")
        spelled = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
        return list(dict.fromkeys([path, *spelled, path.replace("\\", "/")]))


def schema_of(columns: Iterable[str], *, texts: bool = False, keep: Sequence[str] = ()) -> pa.Schema:
    """Return the schema of rows with these of our columns; `texts` makes text a list, kept columns strings.

    Raises:
        ValueError: a kept column has the name of one of ours.
    """
    types = {
        "key": pa.string(),
        "image": pa.binary(),
        "text": pa.list_(pa.string()) if texts else pa.string(),
        "labels": pa.list_(pa.int32()),
        "split": pa.string(),
    }
    clash = [name for name in keep if name in types]
    if clash:
        raise ValueError(f"--keep {clash[0]}: that name is one of our own columns; rename it in the source")
    return pa.schema([(name, types[name]) for name in columns] + [(name, pa.string()) for name in keep])


def block_rows(items: Iterable[Row | ImportReject], schema: pa.Schema, where: str) -> Iterator[Block]:
    """Gather rows into blocks of bounded rows and bytes; keys and captions that are no UTF-8 are rejects."""
    rows: list[Row] = []
    rejects: list[ImportReject] = []
    size = 0
    for item in items:
        checked = item if isinstance(item, ImportReject) else _check_row(item, where)
        if isinstance(checked, ImportReject):
            rejects.append(checked)
        else:
            rows.append(checked)
            size += len(checked.get("image") or b"") + 200
        if size >= BLOCK_BYTES or len(rows) >= BLOCK_ROWS or len(rejects) >= BLOCK_ROWS:
            yield Block(pa.Table.from_pylist(rows, schema), rejects, where)
            rows, rejects, size = [], [], 0
    if rows or rejects:
        yield Block(pa.Table.from_pylist(rows, schema), rejects, where)


def feature_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """Return (N, D) numbers as a column of float32 lists of width D."""
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def feature_type(width: int) -> pa.DataType:
    """Return the column type of features of this width."""
    return pa.list_(pa.float32(), width)


def reject(where: str, key: str, fault: str) -> ImportReject:
    """Return a reject from "reason: detail"."""
    reason, _, detail = fault.partition(": ")
    return ImportReject(where, key, reason, detail)


def _check_row(row: Row, where: str) -> Row | ImportReject:
    """Drop blank captions; refuse what is no UTF-8, which arrives as lone surrogates."""
    text = row.get("text")
    texts = [one for one in (text if isinstance(text, list) else [text]) if one and one.strip()]
    for name, value in [("key", row["key"]), *(("text", one) for one in texts)]:
        try:
            value.encode()
        except UnicodeEncodeError:
            shown = value.encode("utf-8", "backslashreplace").decode()[:80]
            key = shown if name == "key" else row["key"]
            return ImportReject(row.get("where", where), key, f"{name} not UTF-8", f"got {shown!r}")
    many = texts or None
    return row | {"text": many if isinstance(text, list) else (texts[0] if texts else None)}
