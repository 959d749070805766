"""What the suite shares: one Ray cluster, one S3 server, one small corpus, a fixed hypothesis profile."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.s3 import s3_proxy, s3_server  # noqa: F401

settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("suite")

# Several ranks on two cores: without this every process starts as many threads as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Writing them takes seconds of every first night; the tests that are about them ask for them.
os.environ.setdefault("HASHFLEET_ENCODE__QUERY_ENCODERS", "false")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
# Ray's workers have niceness 15 by default: beside anything else that computes they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# A run's end, and a rank's, are seen by looking: every two seconds unless told otherwise.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that need Ray first: as one group of `make test` they take longest."""
    items.sort(key=lambda item: not _needs_ray(str(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal files out to the workers of `make test`; all that need Ray go to one of them, with one cluster.

    Raylets that start at once on one machine disturb each other.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FilesAndOneCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = nodeid.partition("::")[0]
            return "ray" if _needs_ray(str(config.rootpath / file)) else file

    return FilesAndOneCluster(config, log)


@cache
def _needs_ray(file: str) -> bool:
    return "mark.ray" in Path(file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def ray_cluster(s3_server: str) -> Iterator[str]:  # noqa: F811
    """One local Ray for all tests that need one. The CPUs are logical: more than a small machine has.

    It starts after the S3 server: its workers inherit the environment in which that is found.
    """
    import ray

    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=512 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 drawn pairs in 3 files, all of split `train`."""
    from pipeline.corpus.scenes import write_corpus

    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    write_corpus(folder, 96, 32, 7, split="train")
    return folder
