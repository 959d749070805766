"""`hashfleet status`: how old what readers see is, whoever is at work, and how the last run failed."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.config import Config, load_config
from jobs.nights.remembering import remember
from pipeline.releases.heads import Log
from pipeline.releases.manifest import create_store
from pipeline.releases.storage import Storage
from tests.releases.small import make_release, taken

DAY = 86400.0


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.chdir(tmp_path)
    local = request.param == "local"
    root = str(tmp_path / "store") if local else f"{request.getfixturevalue('s3_server')}/{tmp_path.name}"
    create_store(Storage(root))
    return Storage(root)


def config(store: Storage) -> Config:
    return load_config(None, [f"store.uri={store.uri}"], {})


def publish(store: Storage, *, ago: float, number: int = 1) -> str:
    """Publish a release as if so many seconds had passed since."""
    log = Log(store, clock=lambda: time.time() - ago)
    release = make_release(store, number)
    log.publish(taken(log.acquire("night", 60)), release)
    return release


def status(
    store: Storage, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = main(["status", *arguments, "--set", f"store.uri={store.uri}"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]), printed.out + printed.err


def line(release: str | None, *, status: str = "done", **others: Any) -> dict[str, Any]:
    return {"job": "nightly", "status": status, "outputs": {"release": release}} | others


def test_a_release_ages_from_its_publishing(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    release = publish(store, ago=2 * DAY)
    code, result, _ = status(store, capsys)
    assert (code, result["outputs"]["release"]) == (0, release)
    assert 2 * DAY <= result["metrics"]["age_seconds"] < 2 * DAY + 600
    assert status(store, capsys, "--max-age", "49h")[0] == 0
    code, result, printed = status(store, capsys, "--max-age", "47h")
    assert (code, result["status"]) == (1, "failed")
    assert "was last up to date 2.0 d ago, --max-age is 47h" in printed


def test_a_night_that_found_nothing_to_change_makes_the_release_young_again(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    release = publish(store, ago=2 * DAY)
    remember(config(store), line(release))
    code, result, _ = status(store, capsys, "--max-age", "1h")
    assert code == 0
    assert result["metrics"]["age_seconds"] < 600
    publish(store, ago=DAY, number=2)  # what the run confirmed is no longer current
    assert status(store, capsys, "--max-age", "1h")[0] == 1


def test_the_last_failure_stays_told_after_a_good_run(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    release = publish(store, ago=DAY)
    remember(config(store), line(None, status="failed", error="12 of 13 rows rejected"))
    remember(config(store), line(release))
    main_channel = status(store, capsys)[1]["channels"]["main"]
    assert (main_channel["last_run"]["status"], main_channel["last_run"]["error"]) == ("done", None)
    assert main_channel["last_failure"]["error"] == "12 of 13 rows rejected"
    remember(config(store), line(None, status="refused"))
    remember(config(store), line(None, status="locked"))
    assert status(store, capsys)[1]["channels"]["main"]["last_run"]["status"] == "refused"


def test_a_live_lease_is_told_and_one_that_is_over_is_not(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    taken(Log(store).acquire("machine 7", 600))
    taken(Log(store, "trial", clock=lambda: time.time() - 700).acquire("machine 8", 600))
    code, result, printed = status(store, capsys)
    assert code == 0
    assert result["channels"]["main"]["lease_holder"] == "machine 7"
    assert 500 < result["channels"]["main"]["lease_left_seconds"] <= 600
    assert result["channels"]["trial"]["lease_holder"] is None
    assert "at work: machine 7" in printed


def test_no_release_is_too_old_for_any_age_and_a_wrong_age_is_a_usage_error(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(store, capsys)[0] == 0
    assert status(store, capsys, "--max-age", "9d")[0] == 1
    for wrong in ("soon", "-1h", "0", ""):
        assert status(store, capsys, f"--max-age={wrong}")[0] == 2


def test_a_damaged_memory_is_passed_over(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    publish(store, ago=0)
    store.write("runs/main/last.json", b"{}")
    code, result, _ = status(store, capsys)
    assert (code, result["channels"]["main"]["last_run"]) == (0, None)
