"""The gate of a night: good nights pass; bad ones end with exit code 3, and nothing is published then."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmh_models.artefact import save_pretrained
from pipeline.corpus.scenes import write_corpus
from pipeline.encoding.codefile import parquet_bytes
from pipeline.releases.addresses import code_path, sha256
from pipeline.releases.heads import Log
from pipeline.releases.manifest import SCHEMAS, read_release, read_table, write_release
from tests.encoding.sources import tiny_method
from tests.jobs.upkeep import ROWS, World, call, copy_world
from tests.releases.small import taken


@pytest.fixture
def world(two_nights: World, tmp_path: Path) -> World:
    return copy_world(two_nights, tmp_path / "world")


def checks(result: dict) -> dict[str, dict]:
    return {check["name"]: check for check in result["gate"]["checks"]}


def test_an_ordinary_night_passes_and_its_release_keeps_the_report(world: World) -> None:
    world.write_unit(4)
    code, result = call(world, "nightly")
    assert code == 0
    found = checks(result)
    for side in ("image", "text"):
        for name in ("recall", "self-hit", "reused rows", "rows"):
            assert found[f"{name}, {side}"]["verdict"] == "passed", found
        assert found[f"recall, {side}"]["measured"] == 1
        assert found[f"reused rows, {side}"]["measured"] == 0
    assert found["canary"]["verdict"] == "skipped"
    manifest = read_release(world.store, result["outputs"]["release"])
    assert manifest.notes["gate"] == result["gate"]


def test_a_first_night_lists_its_comparisons_as_skipped(world: World) -> None:
    code, result = call(world, "nightly", settings=("store.channel=fresh",))
    assert code == 0
    found = checks(result)
    assert {found[f"{name}, image"]["verdict"] for name in ("reused rows", "rows")} == {"skipped"}
    assert "a first release" in found["rows, text"]["words"]


def test_bits_are_judged_over_a_whole_small_side_however_few_parts_are_searched(world: World) -> None:
    judged = ("gate.min_rows=1", "gate.max_balance=1", "gate.max_dead_bits=1", "gate.parts=1")
    code, result = call(world, "nightly", settings=("store.channel=fresh", *judged))
    assert code == 0
    units = read_table(world.store, read_release(world.store, result["outputs"]["release"]), "units")
    for side in ("image", "text"):
        rows = sum(unit["encoded"] for unit in units.to_pylist() if unit["side"] == side)
        words = checks(result)[f"collisions, {side}"]["words"]
        assert f" of {rows} codes stand more than once" in words
        assert "in 1 part(s)" in checks(result)[f"recall, {side}"]["words"]


def test_another_model_needs_to_be_accepted_before_any_work_is_done(world: World) -> None:
    save_pretrained(tiny_method(seed=5), world.folder / "other", card={})
    other = (f"encode.model={world.folder / 'other'}",)
    before, files = world.current(), world.named_files()
    code, result = call(world, "nightly", settings=other)
    assert (code, result["status"], list(checks(result))) == (3, "refused", ["model"])
    assert world.current() == before
    assert {path for path in world.named_files() - files if not path.startswith(("heads/", "runs/"))} == set()
    code, result = call(world, "nightly", "--accept-new-model", settings=other)
    assert code == 0
    assert "a new model" in checks(result)["reused rows, image"]["words"]
    assert world.current() != before


def test_a_shrunken_source_is_refused_and_passes_when_it_is_meant(world: World) -> None:
    before = world.current()
    (world.source / "0.parquet").unlink()
    (world.source / "2.parquet").unlink()
    code, result = call(world, "nightly")
    assert (code, result["status"]) == (3, "refused")
    assert checks(result)["rows, image"]["verdict"] == "refused"
    assert world.current() == before
    newest = Log(world.store).newest()
    assert newest is not None
    assert newest.kind == "release"  # the lease is given back
    assert call(world, "status")[1]["channels"]["main"]["last_failure"]["error"] == "the gate refused"
    assert call(world, "nightly", settings=("gate.max_row_drop=1",))[0] == 0


@pytest.mark.parametrize("changed", [False, True], ids=["of units as they were", "of a changed unit"])
def test_codes_that_their_rows_do_not_give_any_more_are_refused(world: World, changed: bool) -> None:
    """As when a library was updated: the parent's codes are whole, but not what would be made today."""
    store, current = world.store, world.current() or ""
    manifest = read_release(store, current)
    tables = {name: read_table(store, manifest, name) for name in SCHEMAS}
    rows = tables["units"].to_pylist()
    for unit in rows:
        if (unit["path"] == "1.parquet") != changed:
            continue
        table = pq.read_table(pa.BufferReader(store.read(code_path(unit["code"]))))
        flipped = [bytes([code[0] ^ 1]) + code[1:] for code in table["code"].to_pylist()]
        column = table.column_names.index("code")
        table = table.set_column(column, table.schema.field("code"), pa.array(flipped, pa.binary(2)))
        data = parquet_bytes(table)
        store.write(code_path(unit["code"]), data)
        unit |= {"code_sha256": sha256(data), "code_bytes": len(data)}
    tables["units"] = pa.Table.from_pylist(rows, schema=SCHEMAS["units"])
    log = Log(store)
    log.publish(taken(log.acquire("test", 60)), write_release(store, manifest.recipe, tables=tables))
    world.write_unit(1, rows=ROWS + 9)
    code, result = call(world, "nightly", settings=("gate.min_self_hit=0", "gate.min_recall=0"))
    assert code == 3
    check = checks(result)["reused rows, text"]
    assert (check["verdict"], check["measured"] > 0) == ("refused", True)


def test_a_collapsed_model_is_refused(world: World) -> None:
    method = tiny_method(seed=1)
    for parameter in method.parameters():
        parameter.data.zero_()
    save_pretrained(method, world.folder / "collapsed", card={})
    code, result = call(
        world,
        "nightly",
        settings=(f"encode.model={world.folder / 'collapsed'}", "store.channel=trial", "gate.min_rows=20"),
    )
    assert code == 3
    assert checks(result)["dead bits, image"]["verdict"] == "refused"
    assert Log(world.store, "trial").current_release() is None


def test_the_canary_is_judged_and_compared_with_the_parent(world: World) -> None:
    for split, start in (("query", 0), ("train", 24)):
        write_corpus(world.folder / "canary", 24, 24, 3, start=start, split=split)
    canary = (f"gate.canary={world.folder / 'canary'}",)
    world.write_unit(4)
    first = call(world, "nightly", settings=canary)[1]
    found = checks(first)
    assert found["canary map_i2t"]["verdict"] == "passed"
    assert found["canary map_i2t, drop"]["verdict"] == "skipped"
    world.write_unit(5)
    second = checks(call(world, "nightly", settings=canary)[1])
    assert second["canary map_t2i, drop"]["measured"] == 0
    assert second["canary map_t2i"]["measured"] == found["canary map_t2i"]["measured"]
    world.write_unit(6)
    assert call(world, "nightly", settings=(*canary, "gate.min_canary_map=1"))[0] == 3


def test_the_samples_are_the_same_whenever_a_night_is_tried(world: World) -> None:
    world.write_unit(4)
    strict = ("gate.min_recall=1", "gate.max_balance=0", "gate.min_rows=10")
    first = call(world, "nightly", settings=strict)[1]
    assert first["status"] == "refused"
    again = call(world, "nightly", settings=strict)[1]
    assert again["gate"] == first["gate"]
    assert again["counts"]["rows_encoded"] == 0  # what was made has stayed
    assert np.isclose(checks(first)["recall, image"]["measured"], 1)
