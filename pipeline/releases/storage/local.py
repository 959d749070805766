"""A local folder as storage: a temporary file in the same folder, synced, then renamed or linked.

What has returned outlasts a loss of power: files, the folders that they needed, and removals."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs

from pipeline.releases.addresses import digest_bytes
from pipeline.releases.storage.backend import TEMPORARY, SourceFile, temporary

_TRIES = 100  # to put a file into a folder that others remove as soon as it is empty


class LocalBackend:
    """Files below a local folder, which need not exist before the first write. Empty folders do not stay."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        self._put(path, lambda partial: _write_synced(partial, data))

    def create(self, path: str, data: bytes) -> bool:
        target = self.root / path
        if target.exists():
            return False
        with _partial(target) as partial:
            _write_synced(partial, data)
            try:
                os.link(partial, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                raise OSError(
                    error.errno,
                    "this file system has no hard links, by which a file is created once; use another one",
                    str(target),
                ) from error
        _sync_folder(target.parent)
        return True

    def stat(self, path: str) -> SourceFile:
        target = self.root / path
        if not target.is_file():
            raise FileNotFoundError(f"{target}: no such file")
        return _source_file(path, target.stat())

    def files(self, prefix: str) -> Iterator[SourceFile]:
        folder = self.root / prefix
        yield from _walk(folder, f"{prefix}/" if prefix else "", above=())

    def delete(self, path: str) -> None:
        target = self.root / path
        target.unlink(missing_ok=True)
        _sync_folder(target.parent)
        with contextlib.suppress(OSError):  # one is not empty, or another process was quicker
            for folder in target.parents:
                if folder == self.root:
                    break
                folder.rmdir()

    def upload(self, file: Path, path: str) -> None:
        self._put(path, lambda partial: _copy_synced(file, partial))

    def download(self, path: str, file: Path) -> None:
        with _naming(file, file):
            shutil.copyfile(self.root / path, file)

    def local(self, path: str) -> Path | None:
        return self.root / path

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.LocalFileSystem(), self.uri

    def _put(self, path: str, fill: Callable[[Path], None]) -> None:
        target = self.root / path
        with _partial(target) as partial:
            fill(partial)
            partial.replace(target)
        _sync_folder(target.parent)


def _walk(folder: Path, prefix: str, *, above: tuple[tuple[int, int], ...]) -> Iterator[SourceFile]:
    """Yield the files below a folder; links to folders are followed unless they lead back up."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith(TEMPORARY):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", above=(*above, here))
        elif entry.is_file():
            with contextlib.suppress(FileNotFoundError):  # removed since its folder was read
                yield _source_file(prefix + entry.name, entry.stat())


def _source_file(path: str, status: os.stat_result) -> SourceFile:
    name = digest_bytes(os.fsencode(path))
    token = f"{status.st_mtime_ns}-{name}"
    return SourceFile(path=path, size=status.st_size, token=token, modified=status.st_mtime)


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Yield a new file beside `target`. While it is there nobody can remove the folder, which may be new."""
    for left in reversed(range(_TRIES)):
        with temporary(target) as partial, _naming(target, partial):
            try:
                _make_folder(target.parent)
                partial.touch(exist_ok=False)
            except (FileNotFoundError, FileExistsError):  # a folder was removed since it was made or found
                if left:
                    continue
                raise
            yield partial
            return


@contextlib.contextmanager
def _naming(target: Path, partial: Path) -> Iterator[None]:
    """Let an error of writing name the file that was to be: Python names the source of a copy, or nothing."""
    try:
        yield
    except OSError as error:
        of_another = error.filename2 is None and error.filename not in (None, str(partial))
        if error.errno is None or of_another:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


def _write_synced(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _copy_synced(source: Path, file: Path) -> None:
    shutil.copyfile(source, file)
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, each of them durable in the one above."""
    if folder.is_dir():
        return
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename or a removal durable before anything that counts on it can be done."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # removed by another, with all that was in it: that is to last, too
        return _sync_folder(folder.parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
