"""What the trials of the suite share."""

from collections.abc import Iterator

import pytest

from tests.chaos.world import World, made_world
from tests.proxy import Proxy
from tests.s3 import BUCKET


@pytest.fixture(scope="package")
def world(s3_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A small source and its stores: after the first night, and after an undisturbed second one."""
    folder = tmp_path_factory.mktemp("chaos")
    with made_world(folder, s3_proxy, bucket=f"s3://{BUCKET}", name="chaos") as world:
        yield world
