"""Credentials come from the environment and go nowhere: no log, no file, no store, no pickle, no error."""

import os
import pickle

import pytest

from pipeline.releases.storage import Storage
from tests.chaos.world import Night, World
from tests.proxy import Fault


@pytest.mark.slow
def test_no_secret_is_in_anything_that_nights_leave_behind(world: World) -> None:
    secrets = [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], "hunter2"]
    world.proxy.forget(lambda request: Fault("slow down"))
    ends = {
        "throttled": Night(world, "calm", AWS_MAX_ATTEMPTS="1").wait(),
        "dead": Night(
            world, "calm", AWS_ENDPOINT_URL="http://a:hunter2@127.0.0.1:1", AWS_MAX_ATTEMPTS="1"
        ).wait(),
        "garbage": Night(world, "calm", AWS_ENDPOINT_URL="hunter2").wait(),
        "no profile": Night(world, "calm", AWS_PROFILE="hunter2").wait(),
    }
    world.proxy.forget()
    assert {name: code for name, (code, _) in ends.items()} == dict.fromkeys(ends, 1)
    left = {str(path): path.read_bytes() for path in world.folder.rglob("*") if path.is_file()}
    for name in ("base", "calm"):
        storage = Storage(world.store(name))
        left |= {storage.where(path): storage.read(path) for path in storage.list()}
        left[f"pickles of {name}"] = pickle.dumps((storage, storage.filesystem()))
    assert any(path.endswith("run.json") for path in left)
    assert any("/releases/" in path for path in left)
    found = [
        (path, number)
        for path, data in left.items()
        for number, word in enumerate(secrets)
        if word.encode() in data
    ]
    assert not found


def test_a_wrong_secret_is_refused_and_said_without_it(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ.get("TEST_S3") != "ceph":
        pytest.skip("moto takes any secret; TEST_S3=ceph runs this")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(PermissionError, match="S3 refused access") as caught:
        Storage(s3_server).write("a", b"")
    assert "hunter2" not in str(caught.value)
