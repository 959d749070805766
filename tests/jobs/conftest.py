"""What the tests of several jobs share."""

from pathlib import Path

import pytest

from jobs.command import Result
from tests.jobs.training import TWO_RANKS, run
from tests.jobs.upkeep import two_nights  # noqa: F401
from tests.s3 import BUCKET


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: str, scenes: Path) -> Result:
    """A run of two ranks that nothing happens to; its checkpoints and model go to object storage."""
    return run(scenes, f"s3://{BUCKET}/ray-runs", *TWO_RANKS, "run.name=undisturbed")
