"""Nights one after the other come to the release of a full rebuild, whatever was done to the source between.

The rule for what is broken: a unit that cannot be read keeps the codes of its last whole version, marked
stale. So a store that went through all of it has, once every unit is whole again, the release of an empty
store's first night; and before that its rows are those of the last whole versions.
"""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.releases.heads import Log
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Release
from tests.jobs.feature_nights import feature_settings, write_model, write_unit
from tests.jobs.nights import run

NAMES = st.sampled_from(["a", "b", "c/d", "e"])
ROWS = st.lists(st.integers(0, 30), min_size=1, max_size=4, unique=True)


class Nights(RuleBasedStateMachine):
    """A source that is changed, and a store that follows it night by night."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # every file that is written is synced
        self.folder = Path(tempfile.mkdtemp(prefix="hashfleet-increments-", dir=memory))
        write_model(self.folder / "model")
        self.whole: dict[str, list[int]] = {}  # rows of the units that can be read
        self.broken: dict[str, list[int] | None] = {}  # rows that the release still has of the others
        self.released: dict[str, list[int]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def file(self, name: str) -> Path:
        return self.folder / "source" / f"{name}.parquet"

    @initialize(rows=ROWS)
    def begin(self, rows: list[int]) -> None:
        self.write("a", rows)
        self.night()

    @rule(name=NAMES, rows=ROWS)
    def write(self, name: str, rows: list[int]) -> None:
        """Add, change or mend a unit."""
        write_unit(self.file(name), rows, row_group_size=2)
        self.broken.pop(name, None)
        self.whole[name] = rows

    @precondition(lambda self: len(self.whole) > 1)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.whole)))
        self.file(name).unlink()
        del self.whole[name]

    @precondition(lambda self: len(self.whole) > 1)
    @rule(data=st.data())
    def break_(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.whole)))
        self.file(name).write_bytes(self.file(name).read_bytes()[:-7])
        del self.whole[name]
        self.broken[name] = None

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), to=NAMES)
    def rename(self, data: st.DataObject, to: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.whole)))
        if to not in self.whole and to not in self.broken:
            self.file(to).parent.mkdir(parents=True, exist_ok=True)
            self.file(name).rename(self.file(to))
            self.whole[to] = self.whole.pop(name)

    @rule(units=st.none() | st.integers(1, 2))
    def night(self, units: int | None = None) -> None:
        """Run a night, perhaps one that ends before all is encoded; then one that does not."""
        if units is not None:
            self.run("store", max_units=units)
        self.run("store")
        kept = {name: self.released[name] for name in self.broken if name in self.released}
        self.released = kept | self.whole

    def run(self, store: str, **limits: int) -> str | None:
        result = run(
            feature_settings(
                self.folder, "data.unit_bytes=700", "encode.max_refused_units=9", *GATE, store=store
            ),
            **limits,
        )
        assert result.status == "done"
        release: str | None = result.outputs["release"]
        return release

    @rule()
    def rebuild(self) -> None:
        """Compare with a first night in an empty store; what is broken has no codes there."""
        self.night()
        if not self.broken.keys() & self.released.keys():
            assert self.run("rebuilt") == Log(Storage(self.folder / "store")).current_release()
            shutil.rmtree(self.folder / "rebuilt")

    @invariant()
    def the_release_has_the_rows_of_the_last_night(self) -> None:
        if not self.released:
            return
        storage = Storage(self.folder / "store")
        units = read_table(storage, read_release(storage, str(Log(storage).current_release())), "units")
        found: dict[tuple[str, str], int] = {}
        for row in units.to_pylist():
            place = row["path"].removesuffix(".parquet"), row["side"]
            found[place] = found.get(place, 0) + row["encoded"]
        sides = ("image", "text")
        assert found == {(n, side): len(rows) for n, rows in self.released.items() for side in sides}
        assert Release.open(storage.uri).rows("text") == sum(map(len, self.released.values()))


GATE = [f"gate.max_{name}=1" for name in ("balance", "dead_bits", "collisions", "row_drop")]
TestIncrements = Nights.TestCase
TestIncrements.settings = settings(max_examples=4, stateful_step_count=8)
