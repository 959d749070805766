"""What tests of releases share: a clock that stands still, and the smallest release."""

from pipeline.releases.heads import Lease
from pipeline.releases.manifest import PARTS, REJECTS, UNITS, ReleaseRecipe, write_release
from pipeline.releases.storage import Storage


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make_release(storage: Storage, number: int) -> str:
    """Write an empty release of its own digest."""
    recipe = ReleaseRecipe(code_length=64, model=f"{number:032x}", fingerprints={}, input_recipe="0" * 32)
    empty = {"units": UNITS.empty_table(), "parts": PARTS.empty_table(), "rejects": REJECTS.empty_table()}
    return write_release(storage, recipe, tables=empty)


def taken(lease: Lease | None) -> Lease:
    """The lease that an acquire must have given."""
    assert lease is not None
    return lease
