"""A folder that all ranks of a node read and one of them makes."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from pipeline.learning.gather import gather_objects


@contextlib.contextmanager
def made_once(name: str, make: Callable[[Path], None]) -> Iterator[tuple[Path | None, str]]:
    """Give a folder that the first rank of this node makes; or None, and the error of one that could not.

    All ranks enter and leave it together; when the last of them has left, whatever made it leave, the folder
    is gone.

    Args:
        name: tells what is in it from all else that this run makes so.
        make: is handed a path that is not there yet.
    """
    tag = blake2b(f"{os.getppid()} {name}".encode(), digest_size=8).hexdigest()
    shared = Path(tempfile.gettempdir()) / f"hashfleet-{tag}"
    target, error = shared / "made", ""
    with _reading(shared):
        if os.environ.get("LOCAL_RANK", "0") == "0":
            try:
                shutil.rmtree(target, ignore_errors=True)
                make(target)
            except Exception as failure:  # what others make may raise anything; DeepSpeed's converter asserts
                error = f"{type(failure).__name__}: {failure}"
        errors = [told for told in gather_objects(error) if told]  # all wait for the first of their nodes
        yield (None, errors[0]) if errors else (target, "")
        gather_objects(None)  # all have read it


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Hold a folder that processes of this node share; the last one to leave removes it.

    By locks, which end with their process, and not by a collective: one that has raised must wait for no
    other, and no other may find the folder gone under it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # what it holds is unpickled
        raise PermissionError(
            f"{folder} belongs to another user: remove it, or set TMPDIR to a place of your own"
        )
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        with contextlib.suppress(BlockingIOError):  # somebody else reads on, and will remove it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
