"""Upkeep of real stores: where a key is, back and forth between releases, and what gc may remove."""

import itertools
import os
import threading
import time
from pathlib import Path

import pytest

from cmh_models.artefact import artefact_digest, save_pretrained
from jobs.nights.leases import StoreLease
from jobs.nights.notes import NOTES, write_notes
from pipeline.encoding.encoder import encode_side
from pipeline.encoding.outcome import stored_table
from pipeline.encoding.units import find_codes
from pipeline.releases.heads import Entry, Log
from pipeline.releases.manifest import SCHEMAS, read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import named_files, verify
from tests.encoding.sources import good_rows, tiny_method
from tests.jobs.upkeep import World, call, copy_world
from tests.releases.small import taken


@pytest.fixture
def world(two_nights: World, tmp_path: Path) -> World:
    return copy_world(two_nights, tmp_path / "world")


def releases_of(world: World) -> list[str]:
    """The releases of the main channel, oldest first."""
    return list(Log(world.store).releases())[::-1]


def test_diff_names_what_the_second_night_changed(world: World) -> None:
    first, second = releases_of(world)
    code, result = call(world, "releases", "diff", first, second)
    assert code == 0
    counts = result["counts"]
    assert (counts["units_added"], counts["units_changed"], counts["units_removed"]) == (2, 2, 0)
    assert counts["units_same"] == 6  # two sides of three units
    assert result["recipe"] == []
    assert call(world, "releases", "diff", second, second)[1]["counts"]["units_same"] == 10
    assert call(world, "releases", "diff", first)[0] == 2


def test_explain_gives_row_code_and_part_of_an_encoded_key(world: World) -> None:
    code, result = call(world, "releases", "explain", "k1002")
    assert code == 0
    (text,) = (text for key, _, text in good_rows(1002, 1003))
    expected = encode_side(tiny_method(), "text", [text])[0].tobytes().hex()
    places = {place["side"]: place for place in result["places"]}
    assert set(places) == {"image", "text"}
    assert (places["text"]["unit"], places["text"]["row"], places["text"]["code"]) == (
        "1.parquet",
        2,
        expected,
    )
    assert result["outputs"]["model"] == artefact_digest(world.folder / "model")
    parts = {path.split("/")[1].split(".")[0] for path in world.store.list("parts")}
    assert places["image"]["part"] in parts
    assert Path(places["image"]["code_file"]).is_file()


@pytest.mark.parametrize(("key", "side"), [("truncated", "image"), ("empty-caption", "text")])
def test_explain_gives_the_reason_of_a_rejected_key(world: World, key: str, side: str) -> None:
    result = call(world, "releases", "explain", key)[1]
    (rejection,) = result["rejections"]
    assert (rejection["side"], rejection["unit"]) == (side, "bad.parquet")
    assert rejection["reason"]
    assert [place["side"] for place in result["places"]] == [{"image": "text", "text": "image"}[side]]
    assert call(world, "releases", "explain", "no such key")[1]["counts"] == {"places": 0, "rejections": 0}


def test_the_night_after_a_rollback_starts_from_what_it_went_back_to(world: World) -> None:
    first, second = releases_of(world)
    assert call(world, "releases", "rollback", "--dry-run")[1]["outputs"]["release"] == first
    assert world.current() == second
    assert call(world, "releases", "rollback")[1]["outputs"] == {"release": first, "was": second}
    assert world.current() == first
    code, night = call(world, "nightly")
    assert (code, night["outputs"]["release"], night["counts"]["rows_encoded"]) == (0, second, 0)
    assert call(world, "releases", "rollback", "0" * 32)[0] == 1
    assert call(world, "releases", "rollback", "../main")[0] == 2
    assert world.current() == second


def test_a_channel_is_promoted_in_one_entry(world: World) -> None:
    first, second = releases_of(world)
    Log(world.store, "trial").rollback(first, "operator")
    before = len(Log(world.store).history())
    code, result = call(world, "releases", "promote", "trial")
    assert (code, result["outputs"]) == (0, {"release": first, "was": second})
    history = Log(world.store).history()
    assert (len(history), history[-1].kind, history[-1].release) == (before + 1, "publish", first)
    assert call(world, "releases", "promote", "nothing")[0] == 1
    assert call(world, "releases", "promote", "main")[0] == 2


def test_codes_of_another_length_are_promoted_knowingly_or_not_at_all(world: World) -> None:
    before = world.current()
    save_pretrained(tiny_method(code_length=24), world.folder / "longer", card={})
    longer = (f"encode.model={world.folder / 'longer'}", "store.channel=longer")
    release = call(world, "nightly", settings=longer)[1]["outputs"]["release"]
    code, result = call(world, "releases", "promote", "longer")
    assert (code, world.current()) == (2, before)
    assert "codes of 24 bits" in result["error"]
    assert "--accept-new-length" in result["error"]
    assert call(world, "releases", "promote", "longer", "--accept-new-length")[0] == 0
    assert world.current() == release
    code, result = call(world, "nightly")
    assert (code, "holds codes of 24 bits" in result["error"]) == (2, True)
    assert call(world, "releases", "rollback")[0] == 0  # a way back is never closed
    assert world.current() == before


def needed(store: Storage, digests: set[str]) -> set[str]:
    """What releases name, by reading them one by one: the oracle of gc."""
    paths = set()
    for digest in digests:
        manifest = read_release(store, digest)
        tables = {name: read_table(store, manifest, name) for name in SCHEMAS}
        paths |= {file.path for file in named_files(tables)} | {f"releases/{digest}.json"}
        paths |= {f"tables/{getattr(manifest, name).sha256}.parquet" for name in SCHEMAS}
    return paths


def swept(world: World, *arguments: str) -> tuple[int, dict[str, int]]:
    """Collect garbage, the newest included; return exit code and counts."""
    code, result = call(world, "releases", "gc", "--grace-hours", "0", *arguments)
    return code, result["counts"]


GARBAGE = ("codes", "rejects", "parts", "tables", "releases")


def test_gc_leaves_exactly_what_the_kept_releases_name(world: World) -> None:
    first, second = releases_of(world)
    models = set(world.store.list("models"))
    before = world.named_files()
    dry = call(world, "releases", "gc", "--keep", "1", "--grace-hours", "0", "--dry-run")[1]["counts"]
    assert world.named_files() == before
    assert dry["files_unneeded"] > 0
    result = call(world, "releases", "gc", "--keep", "1", "--grace-hours", "0")[1]["counts"]
    assert result["files_unneeded"] == dry["files_unneeded"]
    left = {path for folder in GARBAGE for path in world.store.list(folder)}
    assert left == needed(world.store, {second})
    assert set(world.store.list("models")) == models
    assert len(before) - len(world.named_files() & before) == dry["files_unneeded"]
    assert verify(world.store, second).faults == ()
    assert call(world, "releases", "rollback", first)[0] == 1
    assert call(world, "releases", "rollback")[0] == 1  # nothing is left to go back to
    assert call(world, "nightly")[1]["outputs"]["release"] == second


def test_gc_keeps_young_files_what_other_channels_need_and_the_newest_n(world: World) -> None:
    first, _ = releases_of(world)
    everything = world.named_files()
    assert call(world, "releases", "gc", "--keep", "1")[1]["counts"]["files_unneeded"] == 0
    assert swept(world, "--keep", "2")[1]["files_unneeded"] == 0
    Log(world.store, "trial").rollback(first, "operator")
    assert swept(world, "--keep", "1")[1]["files_unneeded"] == 0
    assert everything <= world.named_files()
    assert call(world, "releases", "gc", "--keep", "0")[0] == 2


def test_what_a_channel_has_made_without_publishing_stays_until_a_purge(world: World) -> None:
    fresh = ("store.channel=next",)
    for number in (7, 8, 9):
        world.write_unit(number)
    for left in (2, 1):
        night = call(world, "nightly", "--max-units", "1", settings=fresh)[1]
        assert (night["outputs"]["release"], night["counts"]["units_left"]) == (None, left)
    noted = set(world.store.list("codes")) - needed(world.store, {*releases_of(world)})
    assert len(noted) == 4
    assert call(world, "releases", "gc", "--keep", "1")[1]["counts"]["files_unneeded"] == 0  # they are young
    codes = [find_codes(path[len("codes/") : -len(".parquet")], world.store) for path in sorted(noted)]
    # As a night of many units does; gc then keeps them however old they are.
    noted_codes = stored_table(one for one in codes if one)
    write_notes(world.store, "next", noted_codes, before=NOTES.empty_table())
    assert swept(world, "--keep", "1")[0] == 0
    assert noted <= world.named_files()
    assert swept(world, "--keep", "1", "--purge")[0] == 0
    assert not noted & world.named_files()
    last = call(world, "nightly", settings=fresh)[1]
    assert last["status"] == "done"
    assert verify(world.store, last["outputs"]["release"]).faults == ()


@pytest.mark.parametrize("channel", ["main", "trial"])
def test_gc_waits_for_whoever_holds_a_lease(world: World, channel: str) -> None:
    before = world.named_files()
    log = Log(world.store, channel)
    lease = taken(log.acquire("another machine", 600))
    code, result = call(world, "releases", "gc", "--keep", "1", "--grace-hours", "0")
    assert (code, result["status"], result["holder"]) == (4, "locked", f"{channel}: another machine")
    assert before <= world.named_files()
    log.release(lease)
    assert swept(world, "--keep", "1")[0] == 0


def test_no_channel_starts_while_files_are_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    delete, tried = Storage.delete, list[int]()

    def watched(self: Storage, path: str) -> None:
        if path.startswith("releases/") and not tried:
            tried.append(call(world, "nightly", settings=("store.channel=fresh",))[0])
            tried.append(call(world, "nightly")[0])
        delete(self, path)

    monkeypatch.setattr(Storage, "delete", watched)
    assert swept(world, "--keep", "1")[0] == 0
    assert tried[0] == 4
    assert call(world, "nightly", settings=("store.channel=fresh",))[0] == 0


def test_a_rollback_during_gc_finds_its_release_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = releases_of(world)
    delete, done = Storage.delete, list[Entry]()

    def watched(self: Storage, path: str) -> None:
        if path.startswith("releases/") and not done:
            done.append(Log(world.store).rollback(first, "operator"))
        delete(self, path)

    monkeypatch.setattr(Storage, "delete", watched)
    code, result = call(world, "releases", "gc", "--keep", "1", "--grace-hours", "0")
    assert (code, "a rollback or another run came between" in result["error"]) == (1, True)
    assert world.current() == first
    assert verify(world.store, first).faults == ()


def test_a_rollback_never_points_at_what_gc_has_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rollback has found its release; before it appends, gc removes that and looks whether it may."""
    first, second = releases_of(world)
    found, removed, done = threading.Event(), threading.Event(), list[Exception]()
    undisturbed, append = StoreLease.undisturbed, Log._create

    def slow(self: Log, entry: Entry) -> bool:
        if entry.kind == "rollback" and not found.is_set():
            found.set()
            assert removed.wait(60)
        return append(self, entry)

    def roll_back() -> None:
        try:
            Log(world.store).rollback(first, "operator")
        except Exception as error:
            done.append(error)

    operator = threading.Thread(target=roll_back)

    def checked(self: StoreLease) -> bool:
        quiet = undisturbed(self)
        removed.set()
        operator.join(60)
        return quiet

    delete = Storage.delete

    def watched(self: Storage, path: str) -> None:
        if path.startswith("releases/"):
            operator.start()
            assert found.wait(60)
        delete(self, path)

    monkeypatch.setattr(Log, "_create", slow)
    monkeypatch.setattr(StoreLease, "undisturbed", checked)
    monkeypatch.setattr(Storage, "delete", watched)
    assert swept(world, "--keep", "1")[0] == 0
    assert "is missing: there is no release" in str(done[0])
    assert (world.current(), releases_of(world)) == (second, [first, second])
    assert verify(world.store, second).faults == ()


def test_a_release_whose_manifest_is_young_stays_whole(world: World) -> None:
    first, _ = releases_of(world)
    long_ago = time.time() - 30 * 86400
    for folder in GARBAGE:
        for path in world.store.list(folder):
            os.utime(world.folder / "store" / path, (long_ago, long_ago))
    os.utime(world.folder / "store" / "releases" / f"{first}.json")
    assert call(world, "releases", "gc", "--keep", "1")[1]["counts"]["files_unneeded"] == 0
    assert verify(world.store, first).faults == ()
    os.utime(world.folder / "store" / "releases" / f"{first}.json", (long_ago, long_ago))
    assert call(world, "releases", "gc", "--keep", "1")[1]["counts"]["files_unneeded"] > 0
    assert call(world, "releases", "rollback", first)[0] == 1


def test_a_gc_that_is_ended_anywhere_leaves_whole_files_and_is_run_again(
    two_nights: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delete = Storage.delete
    for stop in itertools.count():
        world = copy_world(two_nights, tmp_path / f"{stop}")
        second = world.current() or ""
        left = [4 * stop]

        def broken(self: Storage, path: str, left: list[int] = left) -> None:
            if not path.startswith("heads/"):
                if not left[0]:
                    raise OSError("the storage is gone")
                left[0] -= 1
            delete(self, path)

        monkeypatch.setattr(Storage, "delete", broken)
        code, _ = call(world, "releases", "gc", "--keep", "1", "--grace-hours", "0")
        monkeypatch.setattr(Storage, "delete", delete)
        assert verify(world.store, second).faults == ()
        assert swept(world, "--keep", "1")[0] == 0
        kept = {path for folder in GARBAGE for path in world.store.list(folder)}
        assert kept == needed(world.store, {second})
        if code == 0:
            assert stop > 1
            return


def test_retried_units_are_read_again_once(world: World) -> None:
    before = world.current()
    dry = call(world, "releases", "retry-rejects", "--dry-run")[1]["counts"]
    assert call(world, "nightly")[1]["counts"]["rows_read"] == 0
    assert (
        call(world, "releases", "retry-rejects")[1]["counts"]
        == dry
        == {"units_retried": 2, "rows_rejected": 12}
    )
    night = call(world, "nightly")[1]
    assert night["counts"]["units_encoded"] == 1
    assert night["outputs"]["release"] != before
    again = call(world, "nightly")[1]
    assert (again["outputs"], again["counts"]["rows_read"]) == ({"release": night["outputs"]["release"]}, 0)
    assert swept(world, "--keep", "1")[0] == 0
    assert call(world, "nightly")[1]["counts"]["rows_read"] == 0


def test_list_tells_when(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(world, "releases", "list")[1]["counts"]["releases"] == 2
    newest = Log(world.store).newest()
    assert newest is not None
    assert 0 <= time.time() - newest.at < 3600
