"""One test body, three storages: a local folder, S3 over HTTP, and S3 through a network that fails."""

from pathlib import Path

import pytest

from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage, retries
from tests.proxy import drawn
from tests.releases.small import Clock


@pytest.fixture(params=["local", "s3", pytest.param("failing", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty root of its own for every test: a folder, or a prefix of the session's bucket."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "failing":
        proxy = request.getfixturevalue("s3_proxy")
        proxy.forget(drawn(20, rate=0.1, most=2))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(retries, "FIRST_WAIT", 0.02)
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
