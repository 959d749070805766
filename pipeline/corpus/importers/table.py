"""A folder of pictures with a table of captions: CSV or TSV, with or without ids, one caption a line."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.corpus.importers.pictures import load_pictures
from pipeline.corpus.importers.rows import (
    Block,
    ImportReject,
    InputFolder,
    Row,
    block_rows,
    reject,
    schema_of,
)

NAMES: dict[str, tuple[str, ...]] = {
    "key": ("key", "id", "uid"),
    "image": ("image", "picture", "file", "filename", "file_name", "path", "image_path", "filepath", "img"),
    "text": ("caption", "text", "TEXT", "txt", "title", "description", "comment"),
    "labels": ("labels", "label"),
    "split": ("split",),
}
"""Headings under which a column is found when it is not named; the first that is there is taken."""

_DELIMITERS = (",", "\t", "|", ";")
_LABEL_ENDS = re.compile(r"[;|,]|(?<=\d)\s+(?=\d)")
_LABEL_NUMBER = re.compile(r"\d{1,9}")


class CaptionTable:
    """The rows of a table whose pictures are files.

    Without a key column the picture's path is the key, and neighbouring lines of one picture are one row
    with several captions. A label that is no whole number is a name; names are numbered as they appear.

    Args:
        pictures: the folder that the paths in the table start from.
        columns: our column -> heading, for headings not in `NAMES`.
        keep: headings of further columns to take along, as strings.
    Raises:
        ValueError: there is no heading for picture or caption, or the file is in another encoding.
    """

    def __init__(
        self,
        folder: InputFolder,
        table: str,
        *,
        pictures: InputFolder,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] = (),
        encoding: str = "utf-8",
        delimiter: str | None = None,
        max_bytes: int,
    ) -> None:
        self.folder, self.table, self.pictures = folder, table, pictures
        self.encoding, self.max_bytes, self.keep = encoding, max_bytes, tuple(keep)
        self._labels = _Labels()
        self.label_names = self._labels.names
        with self._lines() as lines:
            first = lines.readline()
        self.delimiter = delimiter or max(_DELIMITERS, key=first.count)
        self.header: list[str] = next(self._reader([first]), [])
        self.columns = self._find(columns or {})
        ours = ["key", "image", "text", *(name for name in ("labels", "split") if name in self.columns)]
        self.schema = schema_of(ours, texts="key" not in self.columns, keep=self.keep)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in the order of the table."""
        items: Iterable[Row | ImportReject] = self._items()
        if "key" not in self.columns:
            items = _merge_neighbours(items)
        loaded = load_pictures(items, self.pictures, max_bytes=self.max_bytes)
        return block_rows(loaded, self.schema, self.table)

    def _lines(self) -> io.TextIOWrapper:
        # A byte that is not of the encoding comes as a lone surrogate, so that only its row is a reject.
        stream = io.BufferedReader(self.folder.open(self.table), 1 << 20)
        head = stream.peek(2)[:2]
        if self.encoding == "utf-8" and head in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{self.folder.where(self.table)} is UTF-16; give --encoding utf-16")
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        try:
            return io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        except LookupError:
            raise ValueError(f"--encoding must be one that Python knows, got {self.encoding!r}") from None

    def _reader(self, lines: Iterable[str]) -> Any:
        if len(self.delimiter) != 1:
            raise ValueError(f"--delimiter must be one character, got {self.delimiter!r}")
        return csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=True)

    def _find(self, named: Mapping[str, str]) -> dict[str, str]:
        header = [heading.strip() for heading in self.header]
        known = {heading.lower(): heading for heading in reversed(header)}
        found = {}
        for role, aliases in NAMES.items():
            heading = named.get(role) or next((known[a.lower()] for a in aliases if a.lower() in known), None)
            if heading is not None:
                found[role] = heading
        lacking = [role for role in ("image", "text") if role not in found]
        absent = [heading for heading in [*found.values(), *self.keep] if heading not in header]
        if lacking or absent:
            what = f"no column {absent[0]!r}" if absent else f"no column that holds the {lacking[0]}"
            raise ValueError(
                f"{self.folder.where(self.table)}: {what}; its headings are: {', '.join(header) or 'none'}; "
                "name columns with --column image=HEADING --column text=HEADING"
            )
        return found

    def _items(self) -> Iterator[Row | ImportReject]:
        """Yield one row a line, the picture's path under `image`."""
        header = [heading.strip() for heading in self.header]
        places = {role: header.index(heading) for role, heading in self.columns.items()}
        kept = {heading: header.index(heading) for heading in self.keep}
        with self._lines() as lines:
            reader = self._reader(lines)
            next(reader)
            while True:
                start = reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    where = f"{self.table} lines {start} to {max(start, reader.line_num)}"
                    yield ImportReject(where, "", "broken line", str(error))
                    continue
                where = f"{self.table} line {start}"
                if len(fields) == len(header):
                    yield self._row(fields, places, kept, where)
                elif fields:
                    count = f"must have {len(header)} fields as the first line has, got {len(fields)}"
                    yield ImportReject(where, "", "broken line", count)

    def _row(
        self, fields: list[str], places: Mapping[str, int], kept: Mapping[str, int], where: str
    ) -> Row | ImportReject:
        image = fields[places["image"]].strip()
        key = fields[places.get("key", places["image"])].strip()
        if not image:
            return ImportReject(where, key, "missing picture", "the line names no picture")
        row: Row = {"where": where, "key": key, "image": image, "text": fields[places["text"]]}
        if "split" in places:
            row["split"] = fields[places["split"]].strip() or None
        if "labels" in places:
            try:
                row["labels"] = self._labels.read(fields[places["labels"]])
            except ValueError as error:
                return reject(where, key, str(error))
        return row | {heading: fields[place] for heading, place in kept.items()}


class _Labels:
    """Reads label cells. The first one decides whether labels are numbers or names; names are numbered."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.numbers: dict[str, int] = {}
        self.are_numbers: bool | None = None

    def read(self, cell: str) -> list[int]:
        """Read `3`, `1 4 7`, `cat;dog` or `["cat", "dog"]` as sorted numbers."""
        parts = [part.strip(" '\"") for part in _LABEL_ENDS.split(cell.strip().strip("[]"))]
        return sorted({self._number(part) for part in parts if part})

    def _number(self, part: str) -> int:
        if self.are_numbers is None:
            self.are_numbers = bool(_LABEL_NUMBER.fullmatch(part))
        if self.are_numbers:
            if not _LABEL_NUMBER.fullmatch(part):
                raise ValueError(f"bad label: must be a whole number as the first label is, got {part!r}")
            return int(part)
        if part not in self.numbers:
            self.numbers[part] = len(self.names)
            self.names.append(part)
        return self.numbers[part]


def find_table(folder: InputFolder) -> str:
    """Return the one table that lies in a folder of pictures.

    Raises:
        ValueError: there is none, or more than one.
    """
    tables = folder.names(".csv", ".tsv", recursive=False) or folder.names(".txt", recursive=False)
    if len(tables) == 1:
        return tables[0]
    found = f"{len(tables)} tables: {', '.join(tables[:5])}" if tables else "no .csv, .tsv or .txt file"
    raise ValueError(f"{folder.root}: {found}; say which by --table FILE")


def _merge_neighbours(items: Iterable[Row | ImportReject]) -> Iterator[Row | ImportReject]:
    """Make lines of one picture that follow each other one row with all their captions."""

    def picture(numbered: tuple[int, Row | ImportReject]) -> tuple[str, int]:
        number, item = numbered
        return ("", number) if isinstance(item, ImportReject) else (item["key"], -1)

    for _, group in groupby(enumerate(items), key=picture):
        members = [item for _, item in group]
        first = members[0]
        if isinstance(first, ImportReject):
            yield first
        else:
            yield first | {"text": [member["text"] for member in members if isinstance(member, dict)]}
