"""Files by relative path under one root: a local folder or a prefix of an S3 bucket. The only user of s3fs.

What every caller may rely on: a file is either whole or not there; `create` has exactly one winner; nothing
is answered from a listing cache. Endpoint and credentials come from the environment chain of AWS
(AWS_ENDPOINT_URL, AWS_PROFILE, ...) and never stand in a URI, a pickle or an error.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pyarrow.fs

from pipeline.releases.addresses import check_path
from pipeline.releases.storage.backend import Backend, SourceFile, temporary
from pipeline.releases.storage.local import LocalBackend
from pipeline.releases.storage.retries import counted

__all__ = [
    "SourceFile",
    "Storage",
    "cache_folder",
    "iter_source",
    "list_source",
    "source_root",
    "storage_retries",
]

_PUT_LIMIT = 5 << 30  # what S3 takes in one PUT; a conditional write must be one PUT


class Storage:
    """A root under which files are read, written whole, created once and listed.

    Pickles as its URI, so a Ray worker opens it anew from its own environment.

    Args:
        uri: a local path, `file:///...` or `s3://bucket/prefix`.
    Raises:
        ValueError: another scheme, no bucket, or credentials in the URI.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self._backend: Backend = _backend(os.fspath(uri))
        self.uri = self._backend.uri
        self._creates_once: bool | None = None

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.uri,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def where(self, path: str = "") -> str:
        """Return the full name of a file, for messages."""
        return f"{self.uri}/{path}" if path else self.uri

    def read(self, path: str) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        return self._backend.read(check_path(path))

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file, replacing what was there. A reader sees the old or the new one."""
        self._backend.write(check_path(path), bytes(data))

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole file if none is there; return whether this call did. Of many callers one wins.

        On object storage the winner knows that it won even where the answer to its request was lost, unless
        the connection stays broken: that is an OSError, and the file may stand.
        """
        if len(data) > _PUT_LIMIT:
            raise ValueError(
                f"{self.where(path)}: at most 5 GiB can be created at once, got {len(data)} bytes"
            )
        return self._backend.create(check_path(path), bytes(data))

    def exists(self, path: str) -> bool:
        """Tell whether a file is there now."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return self.stat(path).size

    def stat(self, path: str) -> SourceFile:
        """Return size and token of a file as they are now.

        Raises:
            FileNotFoundError: it is not there.
        """
        return self._backend.stat(check_path(path))

    def files(self, prefix: str = "") -> Iterator[SourceFile]:
        """Yield every file below a folder, in no promised order. A missing folder has none."""
        return self._backend.files(check_path(prefix) if prefix else "")

    def list(self, prefix: str = "") -> list[str]:
        """Return the paths of every file below a folder, sorted."""
        return sorted(file.path for file in self.files(prefix))

    def delete(self, path: str) -> None:
        """Remove a file; a missing one is no error."""
        self._backend.delete(check_path(path))

    def upload(self, file: Path, path: str) -> None:
        """Put a local file, which may be larger than memory."""
        self._backend.upload(Path(file), check_path(path))

    def download(self, path: str, file: Path) -> None:
        """Copy a file to a local path; the local file appears whole or not at all."""
        target = Path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target) as partial:
            self._backend.download(check_path(path), partial)
            partial.replace(target)

    def upload_folder(self, folder: Path, path: str) -> None:
        """Put every file of a local folder below `path`."""
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                self.upload(file, f"{path}/{file.relative_to(folder).as_posix()}")

    def download_folder(self, path: str, folder: Path) -> None:
        """Copy every file below `path` into a local folder that is not there yet; it appears at once.

        Raises:
            FileNotFoundError: there is no file below `path`.
        """
        names = self.list(path)
        if not names:
            raise FileNotFoundError(f"{self.where(path)}: no such folder")
        target = Path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target) as partial:
            for name in names:
                self.download(name, partial / Path(name).relative_to(path))
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else another process brought the same folder first
                    raise

    def local(self, path: str) -> Path | None:
        """Return the local file behind `path`, for memory mapping; None on object storage."""
        return self._backend.local(check_path(path))

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return a picklable Arrow file system and the root in it: read `f"{root}/{path}"`."""
        return self._backend.filesystem()

    def creates_once(self) -> bool:
        """Tell whether `create` refuses a second file of one name here. Tried once per Storage."""
        if self._creates_once is None:
            path = f"heads/.probe-{secrets.token_hex(8)}"
            try:
                self._creates_once = self.create(path, b"first") and not self.create(path, b"second")
            finally:
                self.delete(path)
        return self._creates_once


def list_source(uri: str | os.PathLike[str], *, suffix: str = ".parquet") -> list[SourceFile]:
    """List the units of a source: one file, or every file of that suffix below a folder or prefix.

    Names with a step that starts with '.' or '_' are markers of other writers and are left out.

    Returns:
        Files sorted by path; paths are relative to `source_root(uri)`. Empty when no file has the suffix.
    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file's name is not UTF-8 or could lead out of the root.
    """
    return sorted(iter_source(uri, suffix=suffix), key=lambda file: file.path)


def iter_source(uri: str | os.PathLike[str], *, suffix: str = ".parquet") -> Iterator[SourceFile]:
    """Yield what `list_source` lists, in no promised order and one page of a listing at a time."""
    root, name = _split_source(uri)
    if name:
        yield root.stat(name)
        return
    found = False
    for file in root.files():
        found = True
        if file.path.endswith(suffix) and not _hidden(file.path):
            check_path(file.path)
            yield file
    if not found and not (root.uri.startswith("/") and Path(root.uri).is_dir()):
        raise FileNotFoundError(f"{root.uri}: no such file or folder; expected {suffix} files")


def source_root(uri: str | os.PathLike[str]) -> Storage:
    """Return the storage that the paths of `list_source(uri)` are relative to: one file's is its folder."""
    return _split_source(uri)[0]


def cache_folder(name: str) -> Path:
    """Return the folder of this node, and this user, for copies of one kind of files from object storage."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hashfleet" / name


def storage_retries() -> int:
    """Return how many requests to object storage this process has had to make again."""
    return sum(counted().values())


def _split_source(uri: str | os.PathLike[str]) -> tuple[Storage, str]:
    """Return root and file name of a source that is one file, else the source and ''."""
    storage = Storage(uri)
    folder, _, name = storage.uri.rpartition("/")
    if folder.endswith(":/") or not folder or not name:
        return storage, ""  # a bucket, or the root of the file system
    parent = Storage(folder)
    return (parent, name) if "." in name and parent.exists(name) else (storage, "")


def _hidden(path: str) -> bool:
    return any(step[:1] in (".", "_") for step in path.split("/"))


def _backend(uri: str) -> Backend:
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        # Imported late: who reads a local release waits neither for s3fs nor for botocore.
        from pipeline.releases.storage.s3 import S3Backend

        return S3Backend(uri)
    if separator and scheme != "file":
        raise ValueError(f"a storage uri is a local path, file:// or s3://, got scheme {scheme!r}")
    path = unquote(rest) if separator else uri
    if not path:
        raise ValueError("a storage uri is a local path, file:// or s3://, got an empty one")
    return LocalBackend(path)
