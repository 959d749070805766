"""Forgotten keys stay hidden: through races, publishes and rollbacks, in every channel."""

import threading

import numpy as np
import pyarrow as pa
import pytest

from pipeline.corpus.schema import sample_ids
from pipeline.releases.addresses import table_path
from pipeline.releases.forgetting import Forgotten, forget, forgotten_keys
from pipeline.releases.heads import FORGOTTEN_LOG, Log
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from tests.releases.small import make_release, taken


def hide(log: Log, *keys: str) -> None:
    forget(log, keys, ids=sample_ids(keys), owner="operator")


def test_a_store_without_forgotten_keys_hides_nothing(log: Log) -> None:
    assert len(forgotten_keys(log)) == 0
    assert forgotten_keys(log).rows(np.arange(3), pa.array(["a", "b", "c"])).tolist() == []
    assert log.storage.list() == []


def test_keys_stay_forgotten_in_every_channel_through_publishes_and_rollbacks(log: Log) -> None:
    release = make_release(log.storage, 1)
    lease = taken(log.acquire("night", 60))
    hide(log, "a", "b")
    log.publish(lease, release)
    hide(log, "c")
    log.rollback(release, "operator")
    for channel in ("main", "trial"):
        found = forgotten_keys(Log(log.storage, channel))
        assert [key in found for key in ("a", "b", "c", "d")] == [True, True, True, False]
        assert len(found) == 3


def test_forgetting_what_is_forgotten_writes_nothing(log: Log) -> None:
    hide(log, "a", "b")
    before = log.storage.list()
    assert forget(log, ["b"], ids=sample_ids(["b"]), owner="operator") is None
    assert log.storage.list() == before


def test_two_who_forget_at_once_lose_neither_key(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    create, others = Storage.create, Log(Storage(log.storage.uri))

    def slow(self: Storage, path: str, data: bytes) -> bool:
        if path.startswith("heads/"):
            monkeypatch.setattr(Storage, "create", create)
            hide(others, "quick")
        return create(self, path, data)

    monkeypatch.setattr(Storage, "create", slow)
    hide(log, "slow")
    found = forgotten_keys(log)
    assert "slow" in found
    assert "quick" in found


def test_many_who_forget_at_once_lose_no_key(log: Log) -> None:
    keys = [f"key {n}" for n in range(8)]
    threads = [threading.Thread(target=hide, args=(Log(Storage(log.storage.uri)), key)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = forgotten_keys(log)
    assert all(key in found for key in keys)


def test_the_list_of_forgotten_keys_does_not_hold_them(log: Log) -> None:
    hide(log, "a-secret-key")
    for path in log.storage.list():
        assert b"a-secret-key" not in log.storage.read(path)


def test_rows_are_found_by_id_and_told_apart_by_key(log: Log) -> None:
    hide(log, "x", "y", "elsewhere")
    found = forgotten_keys(log)
    keys = sorted(["w", "x", "y", "z"], key=lambda key: int(sample_ids([key])[0]))
    ids = sample_ids(keys)
    doubled = np.repeat(ids, 2)  # another key of the same id
    stands = [key for key in keys for key in (f"not {key}", key)]
    rows = found.rows(doubled, pa.chunked_array([pa.array(stands, pa.large_string())]))
    assert [stands[row] for row in rows] == [key for key in keys if key in ("x", "y")]
    assert found.mask(["w", "x", None]).tolist() == [False, True, False]
    assert Forgotten().mask(["x"]).tolist() == [False]


def test_a_lost_or_changed_list_is_an_error_and_shows_nothing(log: Log) -> None:
    hide(log, "a")
    newest = Log(log.storage, FORGOTTEN_LOG).newest()
    assert newest is not None
    path = table_path(newest.forgotten or "")
    kept = log.storage.read(path)
    log.storage.write(path, kept[:-1])
    with pytest.raises(ManifestError, match="is damaged: its sha256 is"):
        forgotten_keys(log)
    log.storage.delete(path)
    with pytest.raises(ManifestError, match="is missing: the forgotten keys of the store"):
        forgotten_keys(log)
