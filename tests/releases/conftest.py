"""One test body, two kinds of storage: a local folder, and the S3 server over HTTP."""

from pathlib import Path

import pytest

from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage
from tests.releases.small import Clock


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty root of its own for every test: a folder, or a prefix of the session's bucket."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_server')}/{tmp_path.name}"


@pytest.fixture
def storage(root: str) -> Storage:
    """The storage at `root`."""
    return Storage(root)


@pytest.fixture
def clock() -> Clock:
    """The clock of `log`."""
    return Clock()


@pytest.fixture
def log(storage: Storage, clock: Clock) -> Log:
    """The main channel of `storage`."""
    return Log(storage, clock=clock)
