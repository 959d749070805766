"""What the tests of several jobs share."""

from tests.jobs.upkeep import two_nights  # noqa: F401
