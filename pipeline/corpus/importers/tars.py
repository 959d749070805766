"""Webdataset tars, as `img2dataset --output_format webdataset` and many others leave them."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from pipeline.corpus.importers.rows import (
    PICTURE_SUFFIXES,
    Block,
    ImportReject,
    InputFolder,
    Row,
    block_rows,
    reject,
    schema_of,
)
from pipeline.corpus.importers.values import check_picture, read_kept, read_labels, read_text

_TEXTS = ("txt", "caption", "text", "TEXT")
_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)


class PictureTars:
    """The samples of tars: neighbouring members of one name (`7.jpg`, `7.txt`, `7.json`) make a row.

    The name is the key. A caption is taken from `.txt`, else from a field of `.json`. A tar that was cut
    short gives the samples that were surely whole, and one reject.

    Args:
        columns: our column -> the extension or JSON field that it is read from.
        keep: JSON fields to take along, as strings.
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
        self.columns = dict(columns or {})
        ours = ["key", "image", "text", *(role for role in ("labels", "split") if role in self.columns)]
        self.schema = schema_of(ours, keep=keep)

    def blocks(self) -> Iterator[Block]:
        """Yield the samples of all tars in order."""
        for name in self.names:
            yield from block_rows(self._items(name), self.schema, name)

    def _items(self, name: str) -> Iterator[Row | ImportReject]:
        # A sample is known to be whole when the next has begun or the end mark was met. `groupby` reads that
        # far before it ends a group, so of a tar that was cut the last sample never gets out of `list`.
        try:
            for sample, members in groupby(self._members(name), key=lambda member: member.sample):
                yield self._row(sample, {member.extension: member for member in members}, name)
        except (OSError, tarfile.TarError) as error:
            yield ImportReject(name, "", "broken tar", " ".join(str(error).split()), whole_file=True)

    def _members(self, name: str) -> Iterator["_Member"]:
        with (
            io.BufferedReader(self.folder.open(name), 1 << 20) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header it has seen
                if not member.isfile():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, extension = last.partition(".")
                content = tar.extractfile(member) if member.size <= self.max_bytes else None
                data = content.read() if content is not None else None
                yield _Member(f"{folder}/{stem}".lstrip("./"), extension.lower(), data, member.size)
            # tarfile takes a cut or damaged header for the end.
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"cut short or damaged after {tar.offset} bytes: no end mark there")

    def _row(self, sample: str, files: Mapping[str, "_Member"], name: str) -> Row | ImportReject:
        where = f"{name} {sample}"
        extensions = [self.columns["image"]] if "image" in self.columns else _EXTENSIONS
        picture = next((files[extension] for extension in extensions if extension in files), None)
        if picture is not None and picture.data is None:
            error = f"must have at most {self.max_bytes} bytes, got {picture.size}"
            return ImportReject(where, sample, "picture too large", error)
        image = picture.data if picture is not None else None
        lost = check_picture(sample, image, where, max_bytes=self.max_bytes)
        if lost is not None:
            return lost
        fields = _json_fields(files.get("json"))
        try:
            labels = read_labels(self._value("labels", files, fields))
        except ValueError as error:
            return reject(where, sample, str(error))
        key = read_text(self._value("key", files, fields)) if "key" in self.columns else sample
        text, split = (read_text(self._value(role, files, fields)) for role in ("text", "split"))
        row: Row = {"where": where, "key": key, "image": image, "text": text, "labels": labels}
        kept = {field: read_kept(fields.get(field)) for field in self.keep}
        return row | {"split": split.strip() or None} | kept

    def _value(self, role: str, files: Mapping[str, "_Member"], fields: Mapping[str, Any]) -> Any:
        """Return the member, else the JSON field, that a role is read from."""
        known = _TEXTS if role == "text" else ()
        for name in [self.columns[role]] if role in self.columns else known:
            if name in files:
                return files[name].data
            if fields.get(name) is not None:
                return fields[name]
        return None


class _Member(NamedTuple):
    sample: str  # the member's name up to the first dot of its last step
    extension: str
    data: bytes | None  # None: more bytes than a picture may have
    size: int


def _json_fields(member: _Member | None) -> dict[str, Any]:
    try:
        fields = json.loads(member.data or b"") if member is not None else {}
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
