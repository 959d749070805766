"""The night's index: a quantiser that stays, a recipe that is chosen once, memory that is kept to."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from cmh_models.artefact import save_pretrained
from jobs import build_index, nightly
from jobs.command import Result
from jobs.nights import stages
from pipeline.releases.addresses import part_path, quantiser_path
from pipeline.releases.manifest import ReleaseManifest, read_release, read_table
from pipeline.releases.storage import Storage
from pipeline.releases.upkeep import verify
from pipeline.search.indexing import IndexConfig
from pipeline.search.part_plans import plan_release_parts
from pipeline.search.retrieval import Release
from tests.encoding.sources import many_rows, tiny_method, write_rows
from tests.jobs.nights import run, settings


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    for number in range(3):
        add_unit(tmp_path, number)
    save_pretrained(tiny_method(), tmp_path / "model", card={})
    return tmp_path


def add_unit(world: Path, number: int) -> None:
    rows = many_rows(100 * number, 100 * (number + 1))
    write_rows(world / "source" / f"{number}.parquet", rows, row_group_size=50)


def night(world: Path, *others: str, job: Any = nightly, **arguments: Any) -> Result:
    gate = ("gate.min_rows=1000000", "gate.min_recall=0", "gate.min_self_hit=0")  # of an untrained model
    own = ("index.part_boundary=1", *gate, *others)
    overrides = settings(world / "source", world / "store", world / "model", *own)
    return run(overrides, job=job, **arguments)


def manifest(world: Path, result: Result) -> ReleaseManifest:
    return read_release(Storage(world / "store"), result.outputs["release"])


def test_a_quantiser_is_trained_once_named_by_the_release_and_covered_by_its_parts(world: Path) -> None:
    lists = ("index.recipe=BIVF8", "index.nprobe=3")
    store = Storage(world / "store")
    first = night(world, *lists)
    named = manifest(world, first).recipe
    assert named.index == {"recipe": "BIVF8", "part_boundary": 1, "nprobe": 3}
    assert set(named.quantisers) == {"image", "text"}
    assert all(store.exists(quantiser_path(digest)) for digest in named.quantisers.values())
    assert night(world, *lists).outputs["release"] == first.outputs["release"]
    add_unit(world, 3)
    second = night(world, *lists)
    assert manifest(world, second).recipe.quantisers == named.quantisers
    assert (second.counts["parts_built"], second.counts["parts_reused"]) == (2, 6)
    trained = night(world, *lists, "index.retrain=true", "index.quantiser_seed=7")
    others = manifest(world, trained).recipe.quantisers
    changed = [side for side in ("image", "text") if others[side] != named.quantisers[side]]
    assert "text" in changed
    assert trained.counts["parts_built"] == 4 * len(changed)
    release = Release.open(world / "store")
    code = release._parts["text"][0].codes_of([0])
    assert release.search(code, 400, "I2T").keys[0] == [key for _, _, key in everything(release, code)]


def everything(release: Release, code: Any) -> list[tuple[int, int, str]]:
    distances, ids, keys = release.range_search(code, release.code_length, "I2T")[0]
    return list(zip(distances.tolist(), ids.tolist(), keys, strict=True))


def test_build_index_mends_a_part_with_the_quantiser_of_the_release(world: Path) -> None:
    lists = ("index.recipe=BIVF8",)
    first = night(world, *lists)
    store = Storage(world / "store")
    parts = read_table(store, manifest(world, first), "parts").to_pylist()
    whole = store.read(part_path(parts[0]["part"]))
    store.delete(part_path(parts[0]["part"]))
    assert night(world, *lists, job=build_index).counts == {"parts_built": 1, "parts_reused": 5}
    assert store.read(part_path(parts[0]["part"])) == whole


def test_a_recipe_is_chosen_once_and_kept_until_something_else_is_asked_for(world: Path) -> None:
    first = night(world, "index.recipe=auto", "index.target_recall=0.9")
    made = manifest(world, first)
    table = made.notes["index"]["trials"]
    assert {line["recipe"] for line in table} >= {"BFlat"}
    assert made.notes["index"]["queries"].endswith("codes of the other side")
    assert made.recipe.index["recipe"] == made.notes["index"]["chosen"]["recipe"]
    assert made.recipe.index["auto"] == {"recall": 0.9, "ms": None, "bytes": None}
    again = night(world, "index.recipe=auto", "index.target_recall=0.9")
    assert again.outputs["release"] == first.outputs["release"]
    add_unit(world, 3)
    second = night(world, "index.recipe=auto", "index.target_recall=0.9")
    assert manifest(world, second).recipe.index == made.recipe.index
    assert manifest(world, second).notes["index"] == made.notes["index"]
    parts = plan_release_parts(
        read_table(Storage(world / "store"), made, "units"), IndexConfig.from_release(made.recipe.index)
    )
    assert len(parts) == 6
    small = night(world, "index.recipe=auto", "index.target_bytes=100000")
    assert manifest(world, small).notes["index"]["codes"] == 400
    assert Release.open(world / "store").rows("image") == 400


def test_what_cannot_be_built_is_refused_before_it_is(world: Path) -> None:
    with pytest.raises(ValueError, match=r"side image: index.recipe BIVF999 needs at least 999 codes"):
        night(world, "index.recipe=BIVF999")
    with pytest.raises(ValueError, match=r"index.target_bytes is 10, the smallest index of 300 codes takes"):
        night(world, "index.recipe=auto", "index.target_bytes=10")
    with pytest.raises(
        ValueError, match=r"--max-memory must be bytes, or a number with KiB, .* got '1 apple'"
    ):
        night(world, max_memory="1 apple")
    with pytest.raises(ValueError, match=r"index.max_memory: .* greater than or equal to 67108864"):
        night(world, max_memory="1MiB")
    assert night(world, max_memory="64MiB").status == "done"


def test_the_plan_is_said_before_anything_is_built(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        night(world, "index.part_boundary=1", max_memory="512MiB")
    lines = [record.message for record in caplog.records if record.message.startswith(("build ", "6 parts"))]
    assert lines[0].startswith("build image part 0: 100 rows of 1 units, ")
    assert lines[0].endswith(f" bytes of code files, {512 << 20} bytes of memory")
    assert lines[-1] == "6 parts to build, 600 rows, 1 at once"


@pytest.mark.ray
def test_parts_built_by_tasks_of_the_cluster_are_those_that_this_process_builds(
    world: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = night(world, "index.recipe=BIVF8")
    shutil.rmtree(world / "store" / "parts")
    monkeypatch.setattr(stages, "MANY_ROWS", 1)
    assert night(world, "index.recipe=BIVF8", job=build_index).counts["parts_built"] == 6
    assert not verify(Storage(world / "store"), here.outputs["release"]).faults
