"""`hashfleet releases`: what an operator sees of a store."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.releases.addresses import code_path, model_path
from pipeline.releases.heads import Log
from pipeline.releases.manifest import create_store
from pipeline.releases.storage import Storage
from tests.releases.small import make_release, taken
from tests.releases.test_upkeep import CODE, MODEL, write_small_release


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A store with one published release, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    storage = Storage(tmp_path / "store")
    create_store(storage)
    log = Log(storage)
    log.publish(taken(log.acquire("night", 60)), write_small_release(storage))
    return storage


def releases(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the job; return exit code, result line and everything printed."""
    code = main(["releases", *arguments, "--set", "store.uri=store"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]), captured.out + captured.err


def test_list_and_show_name_the_current_release(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    current = Log(store).current_release()
    code, result, printed = releases(capsys, "list")
    assert (code, result["outputs"]["release"]) == (0, current)
    assert result["counts"] == {"entries": 2, "releases": 1}
    assert f"{current}      1      1  current" in printed
    code, result, printed = releases(capsys, "show")
    assert (code, result["counts"]["encoded_image"]) == (0, 3)
    assert '"code_length": 64' in printed


def test_verify_ends_with_code_1_when_a_file_is_harmed(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, _ = releases(capsys, "verify")
    assert (code, result["status"], result["counts"]["faults"]) == (0, "done", 0)
    store.write(f"{model_path(MODEL)}/config.json", b"[]")
    code, result, printed = releases(capsys, "verify")
    assert (code, result["counts"]["faults"]) == (1, 1)
    assert f"{model_path(MODEL)} is damaged: its files have digest" in printed
    store.write(f"{model_path(MODEL)}/config.json", b"{}")
    store.write(code_path(CODE), b"other")
    code, result, printed = releases(capsys, "verify", Log(store).current_release() or "")
    assert (code, result["status"]) == (1, "failed")
    assert f"{code_path(CODE)} has 5 bytes, the release names 5000" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("verify --keep 3 --purge", "--keep is an option of gc, not of verify; leave it out"),
        ("list --purge", "--purge is an option of gc, not of list; leave it out"),
        ("list --keep 0", "--keep is an option of gc, not of list; leave it out"),
        ("explain k1 --grace-hours 0", "--grace-hours is an option of gc, not of explain; leave it out"),
        (
            "rollback --accept-new-length",
            "--accept-new-length is an option of promote, not of rollback; leave",
        ),
        ("gc --keys-from keys.txt", "--keys-from is an option of forget, not of gc; leave it out"),
        ("gc --purge --keep 0", "--keep must be at least 1, the current release of every channel, got 0"),
        ("gc --grace-hours nan", "--grace-hours must be a number of hours from 0, got nan"),
        ("gc --grace-hours -1", "--grace-hours must be a number of hours from 0, got -1"),
        ("gc --grace-hours inf", "--grace-hours must be a number of hours from 0, got inf"),
        ("gc --purge --grace-hours 5", "--purge spares no young file, got --grace-hours 5 beside it"),
    ],
)
def test_an_option_that_would_be_ignored_and_a_number_that_is_none_are_refused(
    store: Storage, capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    before = store.list()
    code, result, _ = releases(capsys, *arguments.split())
    assert (code, told in result["error"]) == (2, True), result["error"]
    assert store.list() == before
    assert releases(capsys, "gc", "--keep", "1", "--grace-hours", "0", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("steps", "currents"),
    [
        ("A B C < < <", "A B C B A !"),
        ("A B A < <", "A B A B A"),  # published again, with equal content
        ("A B B < <", "A B B A !"),
        ("A B C < C < <", "A B C B C B A"),  # the next night made the bad one again
        ("A B C D <B E < <", "A B C D B E B A"),
        ("A B C <A <", "A B C A !"),
        ("A B C <A <C < <", "A B C A C A !"),
        ("A B C D < <B <", "A B C D C B A"),
        ("A B C -B < <", "A B C C A !"),  # gc has removed it
        ("A B A -B <", "A B A A !"),
    ],
)
def test_every_rollback_goes_further_back(
    store: Storage, capsys: pytest.CaptureFixture[str], steps: str, currents: str
) -> None:
    """A letter is published, < rolls back, <X to X, -X removes X; where nothing is left to go back to: !"""
    names = {letter: make_release(store, number) for number, letter in enumerate("ABCDE")}
    letters = {digest: letter for letter, digest in names.items()}
    log, channel = Log(store, "trial"), ("--set", "store.channel=trial")
    seen = []
    for step in steps.split():
        kind, name = step.rstrip("ABCDE"), names.get(step[-1])
        code = 0
        if kind == "<":
            code = releases(capsys, "rollback", *([name] if name else []), *channel)[0]
        elif kind == "-":
            store.delete(f"releases/{name}.json")
        else:
            log.promote(name or "", "night")
        seen.append("!" if code == 1 else letters[log.current_release() or ""])
    assert " ".join(seen) == currents


def test_an_empty_folder_and_an_unpublished_channel_are_said(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, _ = releases(capsys, "show", "--set", "store.channel=trial")
    assert (code, "nothing is published in channel 'trial'" in result["error"]) == (1, True)
    store.delete("store.json")
    code, result, _ = releases(capsys, "list")
    assert (code, "is no store" in result["error"]) == (1, True)
