"""A folder that all ranks of a node read and one of them makes."""

import contextlib
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

    All ranks enter and leave it together; afterwards it is gone.

    Args:
        name: tells what is in it from all else that this run makes so.
        make: is handed a path that is not there yet.
    """
    tag = blake2b(f"{os.getppid()} {name}".encode(), digest_size=8).hexdigest()
    target, error = Path(tempfile.gettempdir()) / f"hashfleet-{tag}", ""
    leader = os.environ.get("LOCAL_RANK", "0") == "0"
    if leader:
        try:
            shutil.rmtree(target, ignore_errors=True)
            make(target)
        except Exception as failure:  # what others make may raise anything; DeepSpeed's converter asserts
            error = f"{type(failure).__name__}: {failure}"
    errors = [told for told in gather_objects(error) if told]  # all wait for the first ranks of their nodes
    try:
        yield (None, errors[0]) if errors else (target, "")
        gather_objects(None)  # all have read it
    finally:
        if leader:
            shutil.rmtree(target, ignore_errors=True)
