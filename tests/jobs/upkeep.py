"""A store with two real nights, so small that no cluster starts, and what tests of upkeep ask of it."""

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cmh_models.artefact import save_pretrained
from jobs.cli import main
from pipeline.releases.heads import Log
from pipeline.releases.storage import Storage
from tests.encoding.sources import BAD_ROWS, good_rows, tiny_method, write_rows

ROWS = 30


@dataclass(frozen=True)
class World:
    """A folder with a source, a model and a store, or the store elsewhere."""

    folder: Path
    uri: str = ""

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def store(self) -> Storage:
        return Storage(self.uri or self.folder / "store")

    def write_unit(self, number: int, *, rows: int = ROWS) -> None:
        """Write a unit of good rows k<1000 number>, k<1000 number + 1>, ..."""
        write_rows(self.source / f"{number}.parquet", good_rows(1000 * number, 1000 * number + rows))

    def settings(self, *others: str) -> list[str]:
        """Return the arguments that every job of this world takes; later ones win."""
        values = {
            "data.path": self.source,
            "store.uri": self.store.uri,
            "encode.model": self.folder / "model",
            "run.dir": self.folder / "runs",
            "encode.max_reject_fraction": 0.5,
            "index.part_boundary": 2,
            "gate.min_rows": 1_000_000,  # the bits of an untrained model are not judged
        }
        named = [f"{key}={value}" for key, value in values.items()]
        return [word for setting in (*named, *others) for word in ("--set", setting)]

    def current(self, channel: str = "main") -> str | None:
        return Log(self.store, channel).current_release()

    def named_files(self) -> set[str]:
        return set(self.store.list())


def make_world(folder: Path, uri: str = "") -> World:
    """Make a world whose store has had two nights: three units, then a fourth and one of them changed."""
    world = World(folder, uri)
    save_pretrained(tiny_method(), folder / "model", card={})
    for number in range(3):
        world.write_unit(number)
    write_rows(world.source / "bad.parquet", BAD_ROWS)
    assert call(world, "nightly")[0] == 0
    world.write_unit(1, rows=ROWS + 3)
    world.write_unit(3)
    assert call(world, "nightly")[0] == 0
    return world


def copy_world(world: World, folder: Path) -> World:
    """Return a copy, times of files included: to the night nothing has changed."""
    shutil.copytree(world.folder, folder)
    return World(folder)


def call(
    world: World, job: str, *arguments: str, settings: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """Run a job by its command line in this process; return exit code and result line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([job, *arguments, *world.settings(*settings)])
    return code, json.loads(printed.getvalue().splitlines()[-1])


@pytest.fixture(scope="session")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world that tests copy."""
    return make_world(tmp_path_factory.mktemp("upkeep"))
