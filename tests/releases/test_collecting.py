"""What may be removed and in which order: a model is as old as its youngest file, what counts goes first."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.releases.addresses import model_path, part_keys_path, part_path
from pipeline.releases.collecting import PATIENCE, Marked, sweep, unneeded
from pipeline.releases.storage import SourceFile, Storage

NOW = 2_000_000_000.0
NOTHING = Marked(frozenset(), ())
MODEL, PARTS = model_path("a" * 32), ["b" * 32, "c" * 32]
WEIGHTS = f"{MODEL}/model.safetensors"
KNOWN_BY = [f"{MODEL}/config.json", f"{MODEL}/facts-cpu.json"]
PAIRS = [(part_path(part), part_keys_path(part)) for part in PARTS]


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """A store of a model and two parts that no release needs."""
    storage = Storage(tmp_path / "store")
    for path in (*KNOWN_BY, WEIGHTS, *itertools.chain.from_iterable(PAIRS)):
        storage.write(path, b"x")
        aged(storage, path, 2 * PATIENCE)
    return storage


def aged(storage: Storage, path: str, seconds: float) -> None:
    os.utime(storage.local(path) or "", (NOW - seconds, NOW - seconds))


def found(storage: Storage) -> list[SourceFile]:
    return unneeded(storage, NOTHING, older_than=NOW - 3600, now=NOW)


@pytest.mark.parametrize("young", [WEIGHTS, *KNOWN_BY])
def test_a_model_with_one_young_file_stays_whole(store: Storage, young: str) -> None:
    assert len(found(store)) == len(store.list())
    aged(store, young, PATIENCE - 1)
    assert [file.path for file in found(store) if file.path.startswith("models/")] == []
    aged(store, young, PATIENCE + 1)
    assert len(found(store)) == len(store.list())


@pytest.mark.parametrize("young", PAIRS[0])
def test_a_part_with_one_young_file_stays_whole(store: Storage, young: str) -> None:
    aged(store, young, 3599)
    assert {file.path for file in found(store) if file.path.startswith("parts/")} == {*PAIRS[1]}


def test_a_sweep_that_ends_after_any_file_leaves_no_part_without_keys_and_no_model_without_weights(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, files = Storage.delete, found(store)
    for stop in range(len(files) + 1):
        storage = Storage(tmp_path / f"{stop}")
        for file in files:
            storage.write(file.path, b"x")
        left: Iterator[int] = iter(range(stop))  # each step is one thread's

        def ended(self: Storage, path: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError("the storage is gone")
            delete(self, path)

        monkeypatch.setattr(Storage, "delete", ended)
        if stop < len(files):
            with pytest.raises(OSError, match="the storage is gone"):
                sweep(storage, files, undisturbed=lambda: True)
        else:
            sweep(storage, files, undisturbed=lambda: True)
        there = set(storage.list())
        assert len(there) == len(files) - stop
        assert all(keys in there for index, keys in PAIRS if index in there)
        assert WEIGHTS in there or not there.intersection(KNOWN_BY)
