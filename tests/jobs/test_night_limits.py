"""A night that does not get to the end, one that only looks, and units that are parts of a file."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmh_models.artefact import save_pretrained
from jobs import encode, nightly
from jobs.config import load_config
from jobs.nights import stages
from jobs.nights.budget import Budget, budget
from jobs.nights.night import Parent, open_night, plan
from jobs.nights.notes import find_noted, read_notes, write_notes
from jobs.nights.progress import Progress, duration
from pipeline.encoding.codefile import Ledger
from pipeline.encoding.decoding import Source
from pipeline.encoding.outcome import stored_table
from pipeline.encoding.units import StoredCodes, StoredFile, UnitReport, UnitWork, open_unit
from pipeline.releases.forgetting import NOTHING_FORGOTTEN
from pipeline.releases.heads import Log
from pipeline.releases.manifest import read_release, read_table
from pipeline.releases.storage import SourceFile, Storage
from pipeline.search.retrieval import Release
from tests.encoding.sources import FEATURES, tiny_method
from tests.jobs.feature_nights import feature_settings, write_model, write_unit
from tests.jobs.nights import content, run


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A model, and six units of four rows."""
    write_model(tmp_path / "model")
    for n in range(6):
        write_unit(tmp_path / "source" / f"{n}.parquet", range(4 * n, 4 * n + 4))
    return tmp_path


def stale_units(folder: Path) -> set[str]:
    store = Storage(folder / "store")
    units = read_table(store, read_release(store, str(Log(store).current_release())), "units")
    return {row["path"] for row in units.to_pylist() if row["stale"]}


def test_a_first_night_in_pieces_publishes_once_and_what_one_night_would(world: Path) -> None:
    overrides = feature_settings(world)
    for started, left in ((2, 4), (2, 2)):
        result = run(overrides, max_units=2)
        assert (result.status, result.outputs["release"]) == ("done", None)
        assert (result.counts["units_encoded"], result.counts["units_left"]) == (started, left)
        assert Log(Storage(world / "store")).current_release() is None
    last = run(overrides, max_units=2)
    assert (last.counts["units_encoded"], last.counts["units_left"]) == (2, 0)
    assert last.outputs == run(feature_settings(world, store="other")).outputs
    assert content(world / "store") == content(world / "other")


def test_units_left_over_keep_their_codes_as_stale_until_a_later_night(world: Path) -> None:
    overrides = feature_settings(world)
    run(overrides)
    for n in (1, 3, 4):
        write_unit(world / "source" / f"{n}.parquet", range(100 * n, 100 * n + 5))
    second = run(overrides, max_units=1)
    assert (second.counts["units_encoded"], second.counts["units_left"]) == (1, 2)
    assert stale_units(world) == {"3.parquet", "4.parquet"}
    assert Release.open(world / "store").rows("image") == 3 * 4 + 5 + 4 + 4
    third = run(overrides)
    assert third.counts["units_encoded"] == 2
    assert stale_units(world) == set()
    assert third.outputs == run(feature_settings(world, store="other")).outputs


def test_a_new_model_fills_its_channel_over_several_nights_while_main_goes_on(world: Path) -> None:
    first = run(feature_settings(world))
    method = tiny_method(FEATURES, seed=1)
    save_pretrained(method, world / "next", card={})
    trial = feature_settings(world, f"encode.model={world / 'next'}", "store.channel=trial")
    assert run(trial, max_units=4).outputs["release"] is None
    published = run(trial, max_units=4).outputs["release"]
    store = Storage(world / "store")
    assert Log(store).current_release() == first.outputs["release"]
    assert Log(store, "trial").current_release() == published is not None


def test_no_more_rows_are_in_flight_than_allowed_but_always_a_unit(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_unit(world / "source" / "3.parquet", range(100, 120))
    seen: list[list[int]] = []
    encode_all = stages._Encoder.encode

    def watched(self: stages._Encoder, works: list[UnitWork]) -> Iterator[UnitReport]:
        seen.append([work.rows for work in works])
        return encode_all(self, works)

    monkeypatch.setattr(stages._Encoder, "encode", watched)
    monkeypatch.setattr(stages, "OPENED", 2)
    limited = run(feature_settings(world, "encode.rows_in_flight=9"))
    assert seen == [[4, 4], [4], [20], [4, 4]]
    assert limited.outputs == run(feature_settings(world, store="other")).outputs
    assert seen[4:] == [[4, 4, 4, 20, 4, 4]]
    late = run(feature_settings(world, "encode.rows_in_flight=9", store="late"), deadline="0.00001")
    assert late.counts["units_left"] == 6


def test_a_refused_unit_before_a_large_one_does_not_end_the_night(world: Path) -> None:
    pq.write_table(pa.table({"something": ["else"]}), world / "source" / "!.parquet")
    night = run(feature_settings(world, "encode.rows_in_flight=3", "encode.max_refused_units=1"))
    assert (night.status, night.counts["units_encoded"], night.counts["units_refused"]) == ("done", 6, 1)


def test_no_unit_is_started_after_the_deadline(world: Path) -> None:
    overrides = feature_settings(world)
    late = run(overrides, deadline="0.00001")
    assert (late.counts["units_encoded"], late.counts["units_left"]) == (0, 6)
    assert run(overrides, job=encode, deadline="60").counts["units_left"] == 0
    assert run(overrides).counts["rows_read"] == 0


@pytest.mark.ray
def test_units_in_flight_at_the_deadline_are_finished_by_the_cluster(
    ray_cluster: str, tmp_path: Path
) -> None:
    from jobs.nights.actors import encode_units_by_actors, join_cluster

    write_model(tmp_path / "model")
    for n in range(12):
        write_unit(tmp_path / "source" / f"{n:02d}.parquet", range(50 * n, 50 * n + 50))
    overrides = feature_settings(tmp_path, "resources.encoders=1")
    ticks = iter(range(1000))
    night = open_night(load_config(None, overrides, {}), argparse.Namespace())
    units = groupby(plan(night, Parent()).encode.to_pylist(), key=stages._place)
    works = [open_unit(stages._work(night, list(rows)), night.source) for _, rows in units]
    night.keep_model()
    join_cluster(night)
    limit = Budget(deadline=3, clock=lambda: next(ticks))
    reports = list(encode_units_by_actors(night, works, budget=limit, forgotten=NOTHING_FORGOTTEN))
    assert 0 < len(reports) < 12
    assert all(not report.error and report.files.keys() == {"image", "text"} for report in reports)
    rest = run(overrides)
    # Encoders finish units that nobody waits for any more: their code files stand, and are found.
    assert 0 < rest.counts["units_encoded"] <= 12 - len(reports)
    assert rest.outputs == run(feature_settings(tmp_path, store="other")).outputs


@pytest.mark.ray
def test_many_code_files_of_an_ended_run_are_read_by_tasks_and_found_all(
    ray_cluster: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(feature_settings(world), job=encode)
    night = open_night(load_config(None, feature_settings(world), {}), argparse.Namespace())
    wanted = plan(night, Parent())
    here = stages.find_code_files(night, wanted)
    for name, value in (("MANY_FILES", 3), ("MANY_READS", 3), ("READS", 5)):
        monkeypatch.setattr(stages, name, value)
    assert stages.find_code_files(night, wanted) == here
    assert len(here) == 12


def test_what_an_earlier_night_made_is_noted_and_not_read_again(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MANY_FILES", 3)
    overrides = feature_settings(world)
    run(overrides, max_units=4)
    notes = world / "store" / "hints" / "main.parquet"
    assert notes.exists()
    made = list((world / "store" / "codes").iterdir())
    kept = {file: file.read_bytes() for file in made}
    for file in made:
        file.write_bytes(b"who reads this is led astray")
    wanted = plan(open_night(load_config(None, overrides, {}), argparse.Namespace()), Parent())
    second = stages.encode_units(
        open_night(load_config(None, overrides, {}), argparse.Namespace()), wanted, budget=Budget(max_units=1)
    )
    made_now = second.standing["made"].to_pylist()
    assert (made_now.count(False), made_now.count(True), len(second.left)) == (8, 2, 1)
    for file, data in kept.items():
        file.write_bytes(data)
    made[0].unlink()  # a note without its file is worth nothing
    last = run(overrides)
    assert last.counts["units_encoded"] == 2
    assert not notes.exists()
    assert last.outputs == run(feature_settings(world, store="other")).outputs


def test_damaged_notes_are_passed_over(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    one = StoredCodes(
        "1" * 32, Ledger(3, 1, 1, 1, {"why": 1}), StoredFile("a" * 64, 5), StoredFile("b" * 64, 6)
    )
    two = StoredCodes("2" * 32, Ledger(3, 3, 0, 0), StoredFile("c" * 64, 7))
    for codes in (one, two):
        write_notes(store, "main", stored_table([codes]), before=read_notes(store, "main"))
    noted = read_notes(store, "main")
    assert find_noted(noted, ["1" * 32, "2" * 32, "3" * 32]) == noted == stored_table([one, two])
    file = tmp_path / "hints" / "main.parquet"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-9], b"no notes"):
        file.write_bytes(damaged)
        assert len(read_notes(store, "main")) == 0


@pytest.mark.ray
def test_progress_is_a_metric_of_ray(ray_cluster: str) -> None:
    from jobs.nights.actors import gauges

    gauges("test")(Progress(4).figures())  # a figure without a gauge would be an error


def test_one_row_changed_in_each_unit_is_one_row_encoded_in_each(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for n in range(10):
        write_unit(tmp_path / "source" / f"{n}.parquet", range(5 * n, 5 * n + 5))
    run(feature_settings(tmp_path))
    for n in range(10):
        write_unit(tmp_path / "source" / f"{n}.parquet", [*range(5 * n, 5 * n + 4), 1000 + n])
    counts = run(feature_settings(tmp_path)).counts
    assert (counts["rows_encoded_image"], counts["rows_encoded_text"]) == (10, 10)
    assert (counts["rows_read"], counts["rows_reused"]) == (100, 80)


def test_a_deadline_is_minutes_or_a_time_of_day() -> None:
    now = datetime(2026, 1, 1, 22, 30)
    for text, seconds in (("90", 5400), ("23:00", 1800), ("22:30", 86400), ("5:30", 7 * 3600), ("0.5", 30)):
        found = budget(argparse.Namespace(deadline=text), now=now).deadline
        assert found is not None
        assert found - time.monotonic() == pytest.approx(seconds, abs=5)
    assert budget(argparse.Namespace()) == Budget()
    for text in ("25:00", "soon", "-1", "0", "inf", "nan"):
        with pytest.raises(ValueError, match="a number of minutes or a time of day"):
            budget(argparse.Namespace(deadline=text))
    with pytest.raises(ValueError, match="--max-units must be at least 1, got 0"):
        budget(argparse.Namespace(max_units=0))


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    """Return content and time of every file below a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        str(file.relative_to(folder)): (
            hashlib.sha256(file.read_bytes()).hexdigest(),
            file.stat().st_mtime_ns,
        )
        for file in files
    }


def test_a_dry_run_writes_nothing_at_all_and_tells_what_and_why(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run(feature_settings(world), dry_run=True)
    assert "time: unknown" in caplog.text
    assert not (world / "store").exists()
    run(feature_settings(world))
    write_unit(world / "source" / "1.parquet", range(9))
    write_unit(world / "source" / "new.parquet", range(50, 52))
    (world / "source" / "5.parquet").unlink()
    before = everything(world)
    caplog.clear()
    for job in (nightly, encode):
        planned = run(feature_settings(world), job=job, dry_run=True)
        assert everything(world) == before
    assert planned.counts["units_total"] == 6
    size = (world / "source" / "1.parquet").stat().st_size
    assert f"encode image 1.parquet (changed unit, {size} bytes, 4 rows before)" in caplog.text
    assert "encode text  new.parquet (new unit, " in caplog.text
    assert "drop         5.parquet (no longer in the source)" in caplog.text
    assert "about 4 rows, and those of 1 units that no release knows; 15 requests before parts" in caplog.text
    assert "time: about" in caplog.text


def test_one_per_cent_of_the_units_changed_means_just_those_are_encoded(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for n in range(100):
        write_unit(tmp_path / "source" / f"{n:02d}.parquet", [n])
    overrides = feature_settings(tmp_path, "index.part_boundary=10")
    first = run(overrides)
    before = content(tmp_path / "store")
    write_unit(tmp_path / "source" / "42.parquet", [1042])
    second = run(overrides)
    assert (second.counts["units_encoded"], second.counts["rows_encoded"]) == (1, 2)
    made = [path for path in content(tmp_path / "store").keys() - before.keys() if path.startswith("codes/")]
    assert len(made) == 2
    assert second.counts["parts_built"] == 2, "one part a side is touched"
    assert second.counts["parts_built"] + second.counts["parts_reused"] == first.counts["parts_built"]
    assert second.metrics.keys() >= {"encode_seconds", "parts_seconds", "encode_bytes"}


def test_a_large_file_is_units_of_row_groups_and_gives_the_same_answers(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_unit(tmp_path / "source" / "large.parquet", range(40), row_group_size=4)
    write_unit(tmp_path / "source" / "small.parquet", range(100, 104))
    size = (tmp_path / "source" / "small.parquet").stat().st_size
    whole = run(feature_settings(tmp_path, store="whole"))
    limit = f"data.unit_bytes={size}"
    cut = run(feature_settings(tmp_path, limit))
    assert whole.counts["units_total"] == 2
    assert cut.counts["units_total"] == cut.counts["units_encoded"] > 3
    assert cut.counts["rows_read"] == whole.counts["rows_read"] == 88
    assert answers(tmp_path / "store") == answers(tmp_path / "whole")
    assert run(feature_settings(tmp_path, limit)).outputs["release"] == cut.outputs["release"]
    again = run(feature_settings(tmp_path))  # without the limit its ranges stay: nothing of it has changed
    assert (again.outputs["release"], again.counts["units_encoded"]) == (cut.outputs["release"], 0)
    write_unit(tmp_path / "source" / "large.parquet", range(44), row_group_size=4)
    grown = run(feature_settings(tmp_path, limit))
    assert Release.open(tmp_path / "store").rows("text") == 48
    assert grown.outputs == run(feature_settings(tmp_path, limit, store="other")).outputs


def test_a_large_file_whose_footer_cannot_be_read_is_refused_and_keeps_its_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model")
    write_unit(tmp_path / "source" / "large.parquet", range(40), row_group_size=4)
    write_unit(tmp_path / "source" / "small.parquet", range(100, 104))
    size = (tmp_path / "source" / "small.parquet").stat().st_size
    overrides = feature_settings(tmp_path, f"data.unit_bytes={size}", "encode.max_refused_units=1")
    run(overrides)
    write_unit(tmp_path / "source" / "large.parquet", range(44), row_group_size=4)
    read, failures = Source.open, [OSError("the storage is away")]

    def fails_once(self: Source, unit: SourceFile) -> pq.ParquetFile:
        if unit.path == "large.parquet" and failures:
            raise failures.pop()
        return read(self, unit)

    monkeypatch.setattr(Source, "open", fails_once)
    refused = run(overrides)
    assert refused.details["refused"] == {"large.parquet": "OSError: the storage is away"}
    assert (refused.counts["units_refused"], refused.counts["rows_read"]) == (1, 0)
    assert stale_units(tmp_path) == {"large.parquet"}
    assert Release.open(tmp_path / "store").rows("text") == 44
    mended = run(overrides)
    assert (mended.counts["units_refused"], stale_units(tmp_path)) == (0, set())
    assert mended.outputs == run(feature_settings(tmp_path, f"data.unit_bytes={size}", store="other")).outputs


def answers(store: Path) -> list[list[str]]:
    queries = np.random.default_rng(0).integers(0, 256, (3, 2), dtype=np.uint8)
    return Release.open(store).search(queries, k=20, direction="T2I").keys


def test_progress_counts_what_stands_and_writes_its_file_whole(tmp_path: Path) -> None:
    progress = Progress(4, Storage(tmp_path), "run.json", "nightly")
    told: list[float] = []
    progress.also = lambda figures: told.append(figures["units_done"])
    progress.stands(1)
    file = StoredFile("0" * 64, 1)
    report = UnitReport(
        SourceFile("a", 1, "x"), {"text": StoredCodes("0" * 32, Ledger(7, 7, 0, 0), file)}, place=("a", None)
    )
    progress.saw(report)
    line = json.loads((tmp_path / "run.json").read_text())
    assert (line["job"], line["status"], line["counts"]["units_done"]) == ("nightly", "running", 2)
    assert line["counts"]["rows_done"] == 7
    progress.saw(report)
    assert told == [2], "told once in a while, not for every unit"
    figures = progress.figures()
    assert figures["units_done"] == 3
    assert figures["seconds_left"] > 0
    assert [duration(seconds) for seconds in (40, 600, 9000)] == ["40 s", "10 min", "2.5 h"]
