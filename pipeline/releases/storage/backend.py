"""What a kind of storage does: the contract behind `Storage`. Paths that arrive here are checked already."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow.fs

TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class SourceFile:
    """One file as a listing shows it: path relative to the root, bytes, and a token of its version.

    The token of S3 is the etag. A local file's names its modification time and its path: a time alone
    does not tell apart two files of equal size written in one tick of the clock. `modified` is in Unix
    seconds by the storage's clock, 0 where it was not asked for.
    """

    path: str
    size: int
    token: str
    modified: float = field(default=0.0, compare=False)


class Backend(Protocol):
    """Files below one root. `uri` is the root's full name, without a trailing slash."""

    uri: str

    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def stat(self, path: str) -> SourceFile: ...
    def files(self, prefix: str) -> Iterator[SourceFile]: ...
    def delete(self, path: str) -> None: ...
    def upload(self, file: Path, path: str) -> None: ...
    def download(self, path: str, file: Path) -> None: ...
    def local(self, path: str) -> Path | None: ...
    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]: ...


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """Yield a free name beside `target`, hidden from listings; what is left under it is removed."""
    partial = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        yield partial
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
