"""The log of D5: one winner per number, one publish per fence, and no reliance on clocks but for expiry."""

import json

import pytest

from pipeline.releases.addresses import release_path
from pipeline.releases.heads import UPKEEP_LOG, Log, channels
from pipeline.releases.manifest import ManifestError, read_release
from pipeline.releases.storage import Storage
from tests.releases.small import Clock, make_release, taken


def test_a_channel_starts_empty_and_shows_what_was_published(log: Log) -> None:
    assert log.newest() is None
    assert log.current_release() is None
    assert log.history() == []
    releases = [make_release(log.storage, number) for number in range(3)]
    for release in releases:
        entry = log.publish(taken(log.acquire("night", 60)), release)
        assert log.newest() == entry
        assert Log(log.storage).current_release() == release
    assert [entry.kind for entry in log.history()] == ["acquire", "publish"] * 3
    assert [entry.seq for entry in log.history()] == list(range(1, 7))
    assert [path for path in log.storage.list("heads") if path.endswith(".json")] == [
        f"heads/main/{seq:012d}.json" for seq in range(1, 7)
    ]


def test_channels_do_not_know_each_other(storage: Storage) -> None:
    main, trial = Log(storage), Log(storage, "trial")
    lease = taken(main.acquire("a", 60))
    release = make_release(storage, 1)
    trial.publish(taken(trial.acquire("b", 60)), release)
    assert main.current_release() is None
    main.publish(lease, release)
    with pytest.raises(ValueError, match="a channel is named by"):
        Log(storage, "../main")


def test_a_held_lease_is_not_taken_until_it_is_given_back_or_over(log: Log, clock: Clock) -> None:
    first = taken(log.acquire("first", 60))
    assert log.acquire("second", 60) is None
    log.release(first)
    second = taken(log.acquire("second", 60))
    assert second.fence > first.fence
    clock.now += 59.9
    assert log.acquire("third", 60) is None
    clock.now += 0.1
    assert log.acquire("third", 60) is not None


def test_whoever_does_not_know_whether_it_holds_the_lease_gives_back_only_its_own(log: Log) -> None:
    log.give_back("first")
    assert log.newest() is None
    taken(log.acquire("first", 60))
    log.give_back("second")
    assert log.acquire("second", 60) is None
    log.give_back("first")
    assert log.acquire("second", 60) is not None
    count = len(log.history())
    log.give_back("first")
    assert len(log.history()) == count


def test_a_writer_that_slept_past_its_lease_cannot_publish(log: Log, clock: Clock) -> None:
    release = make_release(log.storage, 1)
    lease = taken(log.acquire("sleeper", 60))
    clock.now += 61
    with pytest.raises(RuntimeError, match="the lease of sleeper ended 1 s ago; run again"):
        log.publish(lease, release)
    taken(log.acquire("other", 60))
    clock.now -= 61  # even by a clock that says otherwise
    with pytest.raises(RuntimeError, match="the lease of sleeper is over, other has taken the next one"):
        log.publish(lease, release)
    with pytest.raises(RuntimeError, match="is over"):
        log.renew(lease, 60)
    log.release(lease)
    assert [entry.kind for entry in log.history()] == ["acquire", "acquire"]
    assert log.current_release() is None


def test_a_writer_frozen_between_look_and_write_finds_its_number_taken(
    log: Log, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make_release(log.storage, 1)
    lease = taken(log.acquire("sleeper", 60))
    other = Log(log.storage, clock=clock)
    create = Storage.create

    def slow(self: Storage, path: str, data: bytes) -> bool:
        monkeypatch.setattr(Storage, "create", create)
        clock.now += 61
        assert other.acquire("other", 60) is not None
        return self.create(path, data)

    log.storage.creates_once()
    monkeypatch.setattr(Storage, "create", slow)
    with pytest.raises(RuntimeError, match="other has taken the next one"):
        log.publish(lease, release)
    assert log.current_release() is None


def test_a_lease_publishes_once(log: Log) -> None:
    lease = taken(log.acquire("night", 60))
    log.publish(lease, make_release(log.storage, 1))
    with pytest.raises(RuntimeError, match="was ended by publish of night"):
        log.publish(lease, make_release(log.storage, 2))
    log.release(lease)
    assert len(log.history()) == 2
    assert log.acquire("next", 60) is not None


def test_a_renewed_lease_lives_on_under_its_fence(log: Log, clock: Clock) -> None:
    lease = taken(log.acquire("night", 60))
    clock.now += 50
    renewed = log.renew(lease, 60)
    clock.now += 50
    assert renewed.fence == lease.fence
    assert log.acquire("other", 60) is None
    log.publish(lease, make_release(log.storage, 1))


def test_a_rollback_points_back_and_ends_the_lease_of_a_run_under_way(log: Log) -> None:
    old, new = (make_release(log.storage, number) for number in (1, 2))
    for release in (old, new):
        log.publish(taken(log.acquire("night", 60)), release)
    lease = taken(log.acquire("night", 60))
    log.rollback(old, "operator")
    assert log.current_release() == old
    with pytest.raises(RuntimeError, match="was ended by rollback of operator"):
        log.publish(lease, new)


def test_forgotten_keys_survive_publishes_and_rollbacks_and_disturb_no_lease(log: Log) -> None:
    release = make_release(log.storage, 1)
    table = next(path for path in log.storage.list("tables")).removeprefix("tables/").removesuffix(".parquet")
    lease = taken(log.acquire("night", 60))
    log.forget(table, "operator")
    log.publish(lease, release)
    log.rollback(release, "operator")
    newest = log.newest()
    assert newest is not None
    assert newest.forgotten == table
    with pytest.raises(ManifestError, match="is missing: write the table first"):
        log.forget("e" * 64, "operator")


def test_promoting_is_one_entry_that_ends_a_lease_and_releases_are_told_newest_first(log: Log) -> None:
    first, second = (make_release(log.storage, number) for number in (1, 2))
    log.publish(taken(log.acquire("night", 60)), first)
    lease = taken(log.acquire("night", 60))
    entry = log.promote(second, "operator")
    assert (entry.seq, entry.kind, log.current_release()) == (4, "publish", second)
    with pytest.raises(RuntimeError, match="was ended by publish of operator"):
        log.publish(lease, first)
    log.rollback(first, "operator")
    log.acquire("night", 60)
    assert list(log.releases()) == [first, second]
    pointed = log.pointed()
    assert pointed is not None
    assert (pointed.seq, pointed.kind) == (5, "rollback")
    assert Log(log.storage, "trial").pointed() is None
    assert channels(log.storage) == ["main"]


def test_no_new_channel_takes_a_lease_while_files_are_removed(log: Log) -> None:
    log.release(taken(log.acquire("night", 60)))
    upkeep = Log(log.storage, UPKEEP_LOG, clock=log._clock)
    lease = taken(upkeep.acquire("operator", 60))
    trial = Log(log.storage, "trial", clock=log._clock)
    assert trial.acquire("night", 60) is None
    assert trial.acquire("night", 60, is_gone=lambda holder: holder == "operator") is not None
    assert log.acquire("night", 60) is not None  # a known channel is kept by its own lease
    pointed = Log(log.storage, "pointed", clock=log._clock)
    pointed.promote(make_release(log.storage, 1), "operator")  # known to nobody who looked before
    assert pointed.acquire("night", 60) is None
    assert (
        pointed.acquire("operator", 60, cleaning=True) is not None
    )  # whoever removes files takes every lease
    upkeep.release(lease)
    assert channels(log.storage) == ["main", "pointed", "trial"]


def test_a_missing_release_is_neither_published_nor_rolled_back_to(log: Log) -> None:
    lease = taken(log.acquire("night", 60))
    for point in (lambda: log.publish(lease, "7" * 32), lambda: log.rollback("7" * 32, "operator")):
        with pytest.raises(ManifestError, match=f"there is no release {'7' * 32}"):
            point()
    log.publish(lease, make_release(log.storage, 1))


@pytest.mark.parametrize("hint", [None, b"2", b"999", b"garbage", b"-3", b""])
def test_the_newest_entry_is_found_whatever_the_hint_says(log: Log, hint: bytes | None) -> None:
    for number in range(9):
        log.release(taken(log.acquire(f"night {number}", 60)))
        expected = 2 * number + 2
        if hint is None:
            log.storage.delete("heads/main/CURRENT")
        else:
            log.storage.write("heads/main/CURRENT", hint)
        newest = log.newest()
        assert newest is not None
        assert newest.seq == expected


def test_an_entry_whose_answer_was_lost_is_known_as_our_own(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Storage.create
    release = make_release(log.storage, 1)
    log.storage.creates_once()

    def refused(self: Storage, path: str, data: bytes) -> bool:
        create(self, path, data)
        return False  # as when a client sends again what had arrived

    def broken(self: Storage, path: str, data: bytes) -> bool:
        create(self, path, data)
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(Storage, "create", refused)
    lease = taken(log.acquire("night", 60))
    monkeypatch.setattr(Storage, "create", broken)
    log.publish(lease, release)
    assert log.current_release() == release
    assert len(log.history()) == 2


def test_a_write_that_never_arrived_is_an_error(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Storage, path: str, data: bytes) -> bool:
        raise ConnectionError("reset by peer")

    log.storage.creates_once()
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "create", broken)
        with pytest.raises(ConnectionError, match="reset by peer"):
            log.acquire("night", 60)
    assert log.acquire("night", 60) is not None


def test_a_storage_that_overwrites_is_refused(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Storage, path: str, data: bytes) -> bool:
        self.write(path, data)
        return True

    monkeypatch.setattr(Storage, "create", careless)
    with pytest.raises(OSError, match="this storage overwrites a file that is there"):
        log.acquire("night", 60)
    assert log.storage.list() == []
    lease = taken(log.acquire("the only one", 60, single_writer=True))
    assert log.acquire("night", 60, single_writer=True) is None
    log.publish(lease, release := make_release(log.storage, 1))
    assert log.current_release() == release


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{half", "Invalid JSON"),
        (
            b'{"seq": 1, "kind": "acquire", "owner": "x", "nonce": "n", "release": "../../x"}',
            "release String",
        ),
        (b'{"seq": 1, "kind": "steal", "owner": "x", "nonce": "n"}', "kind Input should be"),
        (b'{"seq": 5, "kind": "acquire", "owner": "x", "nonce": "n"}', "seq must be 1, got 5"),
    ],
)
def test_a_damaged_entry_is_named(log: Log, content: bytes, message: str) -> None:
    log.storage.write("heads/main/000000000001.json", content)
    with pytest.raises(ManifestError, match=rf"heads/main/000000000001\.json: {message}"):
        log.newest()


def test_a_gap_in_the_history_is_named(log: Log) -> None:
    for _ in range(2):
        log.release(taken(log.acquire("night", 60)))
    log.storage.delete("heads/main/000000000002.json")
    with pytest.raises(ManifestError, match=r"000000000002\.json is missing"):
        log.history()


def test_a_head_that_names_a_missing_release_is_said(storage: Storage) -> None:
    log = Log(storage)
    release = make_release(storage, 1)
    log.publish(taken(log.acquire("night", 60)), release)
    document = json.loads(storage.read("heads/main/000000000002.json"))
    assert document["release"] == release
    storage.delete(release_path(release))
    with pytest.raises(ManifestError, match=f"there is no release {release} in this store"):
        read_release(storage, log.current_release() or "")
