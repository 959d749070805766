"""The demo on a small corpus: the page tells what ran, and the nights' books balance."""

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import demo
from jobs.cli import main
from jobs.command import run_job
from jobs.demonstration.source import BREAKS, MARK, Folders, change, clear, draw
from pipeline.corpus.scenes import row as scene
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.search.retrieval import Release

ROWS = 600


def source_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_the_second_night_finds_one_per_cent_new_and_some_changed_deleted_and_broken(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    assert draw(folders, 1600) == 1600 + 200 + 800
    before = {row["key"]: row for row in source_rows(folders.corpus)}
    edits = change(folders, 1600)
    rows = source_rows(folders.corpus)
    after = {row["key"]: row for row in reversed(rows)}
    assert {one.what: one.rows for one in edits.changes} == {
        "new": 10,
        "broken": len(BREAKS),
        "new caption": 2,
        "new picture": 2,
        "deleted": 2,
    }
    assert len(rows) == 1600 - 2 + 16
    assert [row["key"] for row in edits.deleted] == [key for key in before if key not in after]
    changed = {
        name: [key for key in before if key in after and before[key][name] != after[key][name]]
        for name in ("text", "image", "labels")
    }
    assert {name: len(keys) for name, keys in changed.items()} == {"text": 2, "image": 2, "labels": 0}
    assert not set(changed["text"]) & set(changed["image"])
    assert after["s1-000001600"]["image"] == scene(1, 1600)["image"]


def test_the_same_rows_change_in_the_same_way_every_time(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        folders = Folders(tmp_path / name)
        draw(folders, 160)
        change(folders, 160)
        made.append(source_rows(folders.corpus))
    assert made[0] == made[1]


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and was not made by the demo; name another folder"):
        clear(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    own = clear(tmp_path / "demo")
    (own.root / "old").touch()
    clear(tmp_path / "demo")
    assert [file.name for file in own.root.iterdir()] == [MARK]


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job("demo", demo, ["--dir", str(tmp_path / "demo"), "--dry-run"]) == 0
    assert "would draw 8000 pairs" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.fixture(scope="module")
def ran(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Run the demo on few rows with little training: folder and result."""
    folder = tmp_path_factory.mktemp("demo")
    settings = ["train.epochs=2", "train.global_batch_size=64", "resources.workers=0"]
    args = argparse.Namespace(dir=str(folder), rows=ROWS, set=settings, dry_run=False)
    return folder, demo.run(demo.load_config(), args)


@pytest.fixture(scope="module")
def page(ran: tuple[Path, Any]) -> str:
    return (ran[0] / "index.html").read_text(encoding="utf-8")


def words_of(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())


@pytest.mark.ray
@pytest.mark.slow
def test_the_page_has_every_section_and_fetches_nothing(page: str) -> None:
    assert re.findall(r'<section id="(\w+)">', page) == [
        "codes",
        "found",
        "scores",
        "curves",
        "bits",
        "timeline",
        "nights",
        "storage",
        "next",
    ]
    assert not re.search(r"https?:|@import|url\(|<script|<link|<iframe", page)
    assert all(found.startswith("data:image/jpeg;base64,") for found in re.findall(r'src="([^"]*)"', page))
    words = words_of(page)
    for name in ("JDSH", "JDSH as floats", "CCA, 32 bits", "CCA, best length", "untrained", "random"):
        assert name in words
    assert words.count("the caption of a held-out picture") == 3
    assert words.count("put together by rule") == 2
    assert len(re.findall(r"<small>a held-out picture</small>", page)) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_hits_are_marked_by_the_labels_that_they_share_and_misses_as_misses(
    ran: tuple[Path, Any], page: str
) -> None:
    folder, _ = ran
    labels = {row["key"]: set(row["labels"]) for row in source_rows(folder / "corpus") if row["key"]}
    first = pq.read_table(sorted((folder / "heldout" / "query").glob("*.parquet"))[0]).to_pylist()[0]
    asked = page[page.index('class="asked"') : page.index('class="asked"', page.index('class="asked"') + 1)]
    verdicts = re.findall(r'<li class="hit( miss)?"><img alt="([^"]+)"', asked)
    assert len(verdicts) == 8
    for miss, key in verdicts:
        assert bool(miss) == (not labels[key] & set(first["labels"]))
    assert asked.count(">miss</span>") == sum(bool(miss) for miss, _ in verdicts)


@pytest.mark.ray
@pytest.mark.slow
def test_the_books_of_every_night_balance_and_the_page_tells_them(ran: tuple[Path, Any], page: str) -> None:
    folder, result = ran
    counts = result.counts
    assert counts["rows_read"] == counts["rows_encoded"] == 2 * ROWS
    assert counts["third_night_rows_encoded"] == 0
    total = len(source_rows(folder / "corpus"))
    kinds = r" \+ ".join(rf"([\d,]+) {kind}" for kind in ("encoded", "reused", "rejected", "absent"))
    told = re.findall(rf"(\w+) side , ([\d,]+) rows = {kinds}", words_of(page))
    assert [side for side, *_ in told] == ["picture", "caption"]
    for (_, *numbers), side, rejected in zip(told, ("image", "text"), (5, 3), strict=True):
        rows, encoded, reused, refused, absent = (int(number.replace(",", "")) for number in numbers)
        assert rows == total == encoded + reused + refused + absent
        assert encoded == counts[f"second_night_rows_encoded_{side}"]
        assert (refused, absent) == (rejected, 0)
        assert 0 < encoded < total / 4
    store = Storage(folder / "store")
    release = read_release(store, result.outputs["release"])
    units = read_table(store, release, "units")
    assert pc.sum(units["rejected"]).as_py() == 8
    for reason in ("truncated image", "not an image", "image too large", "empty text", "missing key"):
        assert reason in words_of(page)


@pytest.mark.ray
@pytest.mark.slow
def test_a_deleted_row_is_shown_as_found_before_and_gone_after(ran: tuple[Path, Any], page: str) -> None:
    folder, result = ran
    nights = page[page.index('id="nights"') : page.index('id="storage"')]
    own = re.findall(r'class="own">distance 0, (\S+): the row itself', nights)
    assert len(own) == 1
    assert own[0] not in [row["key"] for row in source_rows(folder / "corpus")]
    release = Release.open(folder / "store", digest=result.outputs["release"])
    assert f"{own[0]} is at none of all {release.rows('image')} ranks" in words_of(nights)


@pytest.mark.ray
@pytest.mark.slow
def test_the_result_line_has_metrics_baselines_and_seconds(ran: tuple[Path, Any]) -> None:
    _, result = ran
    assert set(result.metrics) == {"map_i2t", "map_t2i", "map50_i2t", "map50_t2i"}
    for name in ("random", "untrained", "cca"):
        assert result.details["baselines"][name]["code_length"] == 64
        assert {"map_i2t", "map_t2i"} <= result.details["baselines"][name].keys()
    assert result.details["baselines"]["cca_32"]["code_length"] == 32
    assert list(result.details["stages"]) == [
        "corpus",
        "train",
        "first night",
        "change",
        "second night",
        "third night",
        "evaluate",
        "search",
    ]
    json.dumps(result.details)


@pytest.mark.ray
@pytest.mark.slow
def test_the_commands_to_try_next_work_as_they_stand(
    ran: tuple[Path, Any], page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        line.replace("&#34;", '"').replace("&#39;", "'") for line in re.findall(r"<pre>(.*?)</pre>", page)
    ]
    assert [shlex.split(line)[1] for line in lines] == ["search", "train", "check_data"]
    short = {"train": ["--set", "train.epochs=1", "--set", "resources.workers=0"]}
    for line in lines:
        program, job, *arguments = shlex.split(line)
        assert program == ".venv/bin/hashfleet"
        extra = [*short.get(job, []), "--set", f"run.dir={ran[0]}/again"]
        assert main([job, *arguments, *extra]) == 0, capsys.readouterr().err
