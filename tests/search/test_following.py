"""A handle that follows the log: no query is lost or mixed, and none waits."""

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.schema import sample_ids
from pipeline.releases.forgetting import forget
from pipeline.releases.heads import FORGOTTEN_LOG, Log
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.following import Following
from pipeline.search.retrieval import Release
from tests.search.stores import code_table, publish, write_store

QUERY = np.zeros((1, 2), np.uint8)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def night(store: Path, number: int) -> str:
    """Publish a release whose keys all say its number."""
    keys = [f"{number}:{row}" for row in range(20)]
    codes = np.random.default_rng(number).integers(0, 256, (20, 2), dtype=np.uint8)
    digest = write_store(
        store, {"image": [{f"u{number}": code_table(keys, size=2, codes=codes)}]}, code_length=16
    )
    publish(store, digest)
    return digest


def follow(store: Path, clock: Clock) -> Following:
    return Following(
        lambda **options: Release.open(store, sides=["image"], **options), seconds=30, clock=clock
    )


def beside() -> None:
    """Wait for the look that a query has started."""
    for thread in threading.enumerate():
        if thread.name == "hashfleet-follow":
            thread.join()


def test_a_newer_release_is_taken_once_it_is_time_to_look(tmp_path: Path) -> None:
    clock, first = Clock(), night(tmp_path, 1)
    handle = follow(tmp_path, clock)
    second = night(tmp_path, 2)
    clock.now = 29.9
    assert handle.search(QUERY, 1).keys[0][0].startswith("1:")
    beside()
    assert handle.release.digest == first
    clock.now = 30
    handle.search(QUERY, 1)
    beside()
    assert handle.release.digest == second
    assert handle.search(QUERY, 1).keys[0][0].startswith("2:")
    assert not handle.look()


def test_a_selection_of_the_release_before_is_refused_and_goes_on_filtering_that_one(tmp_path: Path) -> None:
    first = night(tmp_path, 1)
    handle = follow(tmp_path, Clock())
    held = handle.release
    mine = held.select(["1:3", "2:4"])
    assert handle.search(QUERY, 1, keys=mine).keys == [["1:3"]]
    second = night(tmp_path, 2)
    assert handle.look()
    with pytest.raises(ValueError, match=rf"of release {first}, this .* {second}; call select.* again"):
        handle.search(QUERY, 1, keys=mine)
    assert held.search(QUERY, 1, keys=mine).keys == [["1:3"]]
    again = handle.release.select(["1:3", "2:4"])
    assert handle.search(QUERY, 1, keys=again).keys == [["2:4"]]


def test_no_query_is_lost_or_mixed_while_releases_come_and_old_ones_go(tmp_path: Path) -> None:
    night(tmp_path, 0)
    handle = Release.follow(tmp_path, seconds=0, sides=["image"])
    stop, faults, asked = threading.Event(), [], [0, 0]

    def ask(worker: int) -> None:
        newest = 0
        while not stop.is_set() or asked[worker] < 20:
            try:
                numbers = {int(key.split(":")[0]) for key in handle.search(QUERY, 20).keys[0]}
                assert len(numbers) == 1, numbers
                assert min(numbers) >= newest
                newest = min(numbers)
            except Exception as error:
                faults.append(error)
                return
            asked[worker] += 1

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 8):
        newest = night(tmp_path, number)
        handle.look()
        for file in (tmp_path / "releases").iterdir():
            if file.stem != newest:
                file.unlink()
    stop.set()
    for thread in threads:
        thread.join()
    beside()
    assert not faults
    assert handle.search(QUERY, 1).keys[0][0].startswith("7:")


def test_keys_that_are_forgotten_meanwhile_are_hidden_from_the_next_look_on(tmp_path: Path) -> None:
    clock, first = Clock(), night(tmp_path, 1)
    handle = follow(tmp_path, clock)
    key = handle.search(QUERY, 1).keys[0][0]
    forget(Log(Storage(tmp_path)), [key], ids=sample_ids([key]), owner="test")
    assert not handle.look()
    assert key not in handle.search(QUERY, 19).keys[0]
    assert handle.release.digest == first


def test_a_damaged_list_of_forgotten_keys_stops_the_answers_and_its_mending_brings_them_back(
    tmp_path: Path,
) -> None:
    clock = Clock()
    night(tmp_path, 1)
    handle = follow(tmp_path, clock)
    forget(Log(Storage(tmp_path)), ["1:3"], ids=sample_ids(["1:3"]), owner="test")
    newest = Log(Storage(tmp_path), FORGOTTEN_LOG).newest()
    assert newest is not None
    file = tmp_path / "tables" / f"{newest.forgotten}.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    for attempt in (handle.look, lambda: handle.search(QUERY, 1)):
        with pytest.raises(ManifestError, match="is damaged"):
            attempt()
    file.write_bytes(whole)
    handle.look()
    assert "1:3" not in handle.search(QUERY, 19).keys[0]


def test_the_old_release_answers_while_the_newer_one_cannot_be_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, first = Clock(), night(tmp_path, 1)
    handle = follow(tmp_path, clock)
    second = night(tmp_path, 2)
    (tmp_path / "releases" / f"{second}.json").rename(tmp_path / "aside")
    clock.now = 31
    with caplog.at_level(logging.WARNING):
        handle.search(QUERY, 1)
        beside()
    assert f"still at release {first}" in caplog.text
    assert handle.search(QUERY, 1).keys[0][0].startswith("1:")
    with pytest.raises(ManifestError, match=f"there is no release {second}"):
        handle.look()
    (tmp_path / "aside").rename(tmp_path / "releases" / f"{second}.json")
    assert handle.look()
    assert handle.release.digest == second
    with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
        Release.follow(tmp_path, seconds=-1, sides=["image"])


def test_a_release_that_is_collected_while_it_is_opened_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = night(tmp_path, 1)
    read = Storage.read

    def collect_then_read(self: Storage, path: str) -> bytes:
        data = read(self, path)
        if path.startswith("releases/"):
            for folder in ("releases", "parts"):
                shutil.rmtree(tmp_path / folder)
        return data

    monkeypatch.setattr(Storage, "read", collect_then_read)
    with pytest.raises(ManifestError, match=f"release {digest} of .* was collected while it was opened"):
        Release.open(tmp_path, digest=digest)
