"""A forgotten key: hidden at once, left out of what is made from then on, and purged from what stands."""

import math
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.releases.collecting import SETTLING, kept_releases, mark, sweep, unneeded
from pipeline.releases.forgetting import forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import verify
from tests.encoding.sources import BAD_ROWS, good_rows, write_rows
from tests.jobs.upkeep import ROWS, World, call, copy_world, make_world

KEYS = ("k1002", "k1003", "truncated", "good-1")
"""Of a changed unit; rejected on one side; twice in its unit."""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "local":
        return copy_world(request.getfixturevalue("two_nights"), tmp_path / "world")
    return make_world(tmp_path / "world", f"{request.getfixturevalue('s3_server')}/{tmp_path.name}")


def content(store: Storage, path: str) -> str:
    """All that a file says, decompressed."""
    data = store.read(path)
    if path.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(data))
        return f"{table.to_pylist()} {table.schema.metadata}"
    if path.endswith(".arrow"):
        return str(pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist())
    return data.decode("latin-1")


def named(store: Storage, *keys: str) -> set[str]:
    """Those of some keys that stand anywhere in a store."""
    found = set()
    for path in store.list():
        text, data = content(store, path), store.read(path)
        found |= {key for key in keys if f"'{key}'" in text or f'"{key}"' in text or key.encode() in data}
    return found


def test_what_is_purged_stands_nowhere_and_the_nights_go_on(world: World) -> None:
    before = world.current() or ""
    assert named(world.store, *KEYS) == set(KEYS)
    rows = read_release(world.store, before).totals
    assert call(world, "releases", "forget", *KEYS)[1]["counts"] == {"keys_forgotten": 4, "keys_known": 0}
    assert "truncated" in forgotten_keys(Log(world.store))
    assert call(world, "releases", "explain", "k1002")[1]["forgotten"]
    assert call(world, "nightly")[1]["counts"]["rows_read"] == 0
    assert world.current() == before

    code, result = call(world, "releases", "gc", "--purge")
    assert (code, result["counts"]["releases_purged"]) == (0, 1)
    after = world.current() or ""
    assert named(world.store, *KEYS) == set()
    assert verify(world.store, after).faults == ()
    assert world.store.list("releases") == [f"releases/{after}.json"]
    totals = read_release(world.store, after).totals
    assert totals["read_image"] == rows["read_image"]
    assert totals["encoded_image"] == rows["encoded_image"] - 3  # k1002, k1003, good-1
    assert totals["encoded_text"] == rows["encoded_text"] - 4
    assert call(world, "releases", "explain", "k1002")[1]["counts"]["places"] == 0
    assert call(world, "releases", "explain", "k1004")[1]["counts"]["places"] == 2

    night = call(world, "nightly")[1]
    assert (night["outputs"]["release"], night["counts"]["rows_read"]) == (after, 0)
    world.write_unit(1, rows=ROWS + 5)
    night = call(world, "nightly")[1]
    assert (night["status"], night["counts"]["units_encoded"]) == ("done", 1)
    assert named(world.store, *KEYS) == set()
    assert call(world, "releases", "explain", "k1034")[1]["counts"]["places"] == 2
    assert verify(world.store, world.current() or "").faults == ()


def test_a_new_unit_leaves_forgotten_keys_out_and_says_so(
    two_nights: World,
    tmp_path: Path,
) -> None:
    world = copy_world(two_nights, tmp_path / "world")
    call(world, "releases", "forget", "k5001", "good-2")
    write_rows(world.source / "5.parquet", good_rows(5000, 5010))
    write_rows(world.source / "bad.parquet", [*BAD_ROWS, *good_rows(7000, 7001)])
    night = call(world, "nightly")[1]
    assert night["status"] == "done"
    assert named(world.store, "k5001") == set()
    table = read_table(world.store, read_release(world.store, world.current() or ""), "rejects")
    places = {(row["path"], row["side"]): row for row in table.to_pylist()}
    assert places["5.parquet", "image"]["rows"] == 1
    listed = content(world.store, f"rejects/{places['5.parquet', 'text']['rejects']}.parquet")
    assert "forgotten by" in listed


def test_a_purge_that_is_ended_anywhere_is_run_again(
    two_nights: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = Storage.create
    for stop in range(3, 100, 4):
        world = copy_world(two_nights, tmp_path / f"{stop}")
        before = world.current() or ""
        call(world, "releases", "forget", "k1002")
        left = [stop]

        def broken(self: Storage, path: str, data: bytes, left: list[int] = left) -> bool:
            left[0] -= 1
            if not left[0]:
                raise OSError("the storage is gone")
            return create(self, path, data)

        monkeypatch.setattr(Storage, "create", broken)
        code, _ = call(world, "releases", "gc", "--purge")
        monkeypatch.setattr(Storage, "create", create)
        assert verify(world.store, world.current() or "").faults == ()
        if code == 0:
            assert stop > 10
            return
        assert call(world, "releases", "gc", "--purge")[0] == 0
        assert named(world.store, "k1002") == set()
        assert world.current() != before
        assert verify(world.store, world.current() or "").faults == ()


def test_every_channel_is_purged_and_a_key_of_none_costs_nothing(
    two_nights: World,
    tmp_path: Path,
) -> None:
    world = copy_world(two_nights, tmp_path / "world")
    first, second = reversed(list(Log(world.store).releases()))
    Log(world.store, "trial").rollback(first, "operator")
    call(world, "releases", "forget", "in no release")
    assert call(world, "releases", "gc", "--purge")[1]["counts"]["releases_purged"] == 0
    assert (world.current(), world.current("trial")) == (second, first)
    call(world, "releases", "forget", "k0001", "k29")
    assert call(world, "releases", "gc", "--purge")[1]["counts"]["releases_purged"] == 2
    assert named(world.store, "k29") == set()
    for channel in ("main", "trial"):
        assert verify(world.store, world.current(channel) or "").faults == ()


def test_a_key_that_is_forgotten_while_files_are_removed_stays_forgotten(
    two_nights: World,
    tmp_path: Path,
) -> None:
    """Its list is younger than the look at the log, and older than the look for what nobody needs."""
    world = copy_world(two_nights, tmp_path / "world")
    call(world, "releases", "forget", "k1002")
    now = time.time()
    marked = mark(world.store, kept_releases(world.store, keep=1), noted_since=math.inf)
    call(world, "releases", "forget", "k1003")
    sweep(
        world.store,
        unneeded(world.store, marked, older_than=math.inf, now=now),
        undisturbed=lambda: True,
    )
    assert "k1003" in forgotten_keys(Log(world.store))
    later = now + 2 * SETTLING
    left = unneeded(world.store, marked, older_than=math.inf, now=later)
    assert any(file.path.startswith("tables/") for file in left)  # the list before goes in the end


def test_a_key_may_hold_any_character_but_the_end_of_a_line(two_nights: World, tmp_path: Path) -> None:
    world = copy_world(two_nights, tmp_path / "world")
    keys = ["a\u2028b", "c\x0cd", "e f "]
    lines = "\ufeff" + "\r\n".join(keys) + "\n"  # as an editor of Windows writes it
    (tmp_path / "keys.txt").write_bytes(lines.encode())
    counts = call(world, "releases", "forget", "--keys-from", str(tmp_path / "keys.txt"))[1]["counts"]
    assert counts["keys_forgotten"] == len(keys)
    hidden = forgotten_keys(Log(world.store))
    assert all(key in hidden for key in keys)


def test_keys_come_from_a_file_too_and_nothing_is_no_key(
    two_nights: World,
    tmp_path: Path,
) -> None:
    world = copy_world(two_nights, tmp_path / "world")
    (tmp_path / "keys.txt").write_text("k1\nk 2\n\n")
    given = ("k1", "--keys-from", str(tmp_path / "keys.txt"), "--dry-run")
    code, result = call(world, "releases", "forget", *given)
    assert (code, result["counts"]["keys_forgotten"]) == (0, 2)
    assert len(forgotten_keys(Log(world.store))) == 0
    assert call(world, "releases", "forget")[0] == 2
    assert call(world, "releases", "forget", "--keys-from", str(tmp_path / "none"))[0] == 2
    (tmp_path / "keys.gz").write_bytes(b"k1\n\x1f\x8b\x08")
    code, result = call(world, "releases", "forget", "--keys-from", str(tmp_path / "keys.gz"))
    told = f"--keys-from: {tmp_path / 'keys.gz'} must be text in UTF-8, a key per line; byte 4 is not"
    assert (code, result["error"]) == (2, told)
    code, result = call(world, "releases", "forget", "k\udcff")
    assert (code, result["error"]) == (2, r"a key must be UTF-8, got 'k\udcff'")
    assert len(forgotten_keys(Log(world.store))) == 0
