"""Two gloo ranks, started once: a process that imports torch takes seconds to start."""

from collections.abc import Iterator

import pytest

from tests.learning.ranks import Ranks, SoloRank


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pool = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoloRank]:
    pool = SoloRank(tmp_path_factory.mktemp("solo"))
    yield pool
    pool.close()
