"""The table of methods: cells that are what the train job makes, that are done once, and see no query row."""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmh_models.artefact import from_pretrained
from jobs import benchmark_methods, train
from jobs.command import run_job
from jobs.config import load_config
from jobs.judging.cell_data import DataSet, in_fold, sibling_groups
from jobs.judging.cells import Asked, Cell, cell_config, cell_keys, codes_digest, relaxed_sets, run_cell
from pipeline.corpus.scenes import write_corpus
from pipeline.quality.protocol import JOINT, OWN
from pipeline.quality.results import MARKERS, readme_block, results_page

ROOT = Path(__file__).parents[2]
METHOD = "{name: jdsh, code_length: 16, feature_rounds: 2, moment_rounds: 2, threshold_rounds: 2}"
FEATURES = "{image: {name: features, hidden: 8}, text: {name: features, hidden: 8}}"
PIXELS = (
    "{image: {name: descriptor, image_size: 16, hidden: 8}, "
    "text: {name: bag, word_buckets: 64, pair_buckets: 0, hidden: 8}}"
)
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two sets, of features and of drawn pictures, and a recipe of 16 bits for each."""
    folder = tmp_path_factory.mktemp("methods")
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((120, 4))
    (folder / "data" / "small").mkdir(parents=True)
    columns = {
        "id": pa.array(range(120)),
        "image_features": pa.array((hidden @ rng.standard_normal((4, 9))).astype(np.float32).tolist()),
        "text_features": pa.array((hidden @ rng.standard_normal((4, 12))).astype(np.float32).tolist()),
        "labels": pa.array((hidden[:, :1] > 0).astype(np.int16).tolist()),
        "split": ["test" if row % 5 == 0 else "train" for row in range(120)],
    }
    pq.write_table(pa.table(columns), folder / "data" / "small" / "part.parquet", row_group_size=50)
    for split, start, rows in (("query", 0, 16), ("train", 16, 64)):
        write_corpus(folder / "data" / "drawn" / split, rows, 64, 3, start=start, split=split)
    for file in (folder / "data" / "drawn").glob("*/*.parquet"):
        shutil.move(file, folder / "data" / "drawn" / f"{file.parent.name}.parquet")
    (folder / "recipes").mkdir()
    for name, towers in (("small", FEATURES), ("drawn", PIXELS)):
        recipe = f"method: {METHOD}\ntowers: {towers}\ntrain: {{epochs: 2, global_batch_size: 16}}\n"
        (folder / "recipes" / f"{name}_jdsh_16.yaml").write_text(recipe)
    return folder


@pytest.fixture
def run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the job on the small sets: exit code, result line, stderr."""

    def run(*arguments: str, out: Path = tmp_path / "out") -> tuple[int, dict[str, Any], str]:
        own = ["--data", f"{world}/data", "--recipes", f"{world}/recipes", "--out", str(out), "--bits", "16"]
        code = run_job("benchmark_methods", benchmark_methods, [*own, "--set", f"run.dir={out}", *arguments])
        printed = capsys.readouterr()
        return code, json.loads(printed.out.splitlines()[-1]), printed.err

    return run


def asked_of(world: Path, out: Path, **others: Any) -> Asked:
    return Asked(world / "data", out, world / "recipes", **others)


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    return {coding: record[coding]["metrics"] for coding in (OWN, JOINT)}


def test_a_call_that_is_repeated_trains_nothing_again(run: Run) -> None:
    arguments = ("--sets", "small", "--methods", "jdsh", "ridge", "--seeds", "1", "2")
    code, line, _ = run(*arguments)
    assert code == 0 and line["counts"] == {"cells": 4}
    page = Path(line["outputs"]["page"])
    cells = {file: file.stat().st_mtime_ns for file in (page.parent / "cells").glob("*.json")}
    assert len(cells) == 4
    assert "JDSH" in page.read_text()
    again = run(*arguments)
    assert again[1]["metrics"] == line["metrics"]
    assert {file: file.stat().st_mtime_ns for file in cells} == cells
    more = run(*arguments, "--seeds", "1", "2", "3", "--only-done")
    assert more[1]["counts"] == {"cells": 4} and more[1]["metrics"] == line["metrics"]
    run(*arguments, "--set", "train.epochs=1")  # another recipe: other cells beside them
    assert len(list((page.parent / "cells").glob("*.json"))) > 4


def test_a_number_comes_with_its_protocol(world: Path, tmp_path: Path) -> None:
    data = DataSet.open(world / "data", "small")
    record = run_cell(Cell(data, "jdsh", 16, 7), asked_of(world, tmp_path))
    assert run_cell(Cell(data, "jdsh", 16, 7), asked_of(world, tmp_path)) == record
    for coding in (OWN, JOINT):
        protocol = record[coding]["protocol"]
        assert protocol["coding"] == coding
        assert (protocol["data"], protocol["data_digest"], protocol["seed"]) == ("small", data.digest, 7)
        assert (protocol["code_length"], protocol["cut_off"]) == (16, 50)
        assert (protocol["queries"], protocol["retrieval_rows"]) == (24, 96)
        assert "validation rows" in protocol["epochs"]
        assert protocol["split"]["query"] == ["query", "test"]
        ties = record[coding]["ties"]["map_i2t"]
        assert ties["lowest"] <= record[coding]["metrics"]["map_i2t"] <= ties["highest"]


def test_validation_numbers_do_not_know_the_query_rows(world: Path, tmp_path: Path) -> None:
    table = pq.read_table(world / "data" / "small" / "part.parquet")
    kept = table.filter(pa.compute.equal(table["split"], "train"))
    (tmp_path / "data" / "small").mkdir(parents=True)
    pq.write_table(kept, tmp_path / "data" / "small" / "part.parquet", row_group_size=50)
    found = []
    for root in (world, tmp_path):
        cell = Cell(DataSet.open(root / "data", "small"), "ridge", 16, 1)
        found.append(run_cell(cell, asked_of(world, tmp_path / root.name, fold=2)))
    assert numbers(found[0]) == numbers(found[1])
    assert found[0][OWN]["protocol"]["split"]["query"] == ["validation"]
    assert found[0][OWN]["protocol"]["queries"] == sum(in_fold(str(key), 2) for key in kept["id"].to_pylist())


def test_siblings_stand_on_one_side_of_a_fold(tmp_path: Path) -> None:
    (tmp_path / "icons").mkdir()
    names = [f"{base}-{n}" for base in ("bell", "car", "arrow", "cloud") for n in ("outline", "off")]
    columns = {"id": names, "image_features": [[0.0]] * 8, "text": names, "split": ["train"] * 8}
    pq.write_table(pa.table(columns), tmp_path / "icons" / "part.parquet")
    groups = sibling_groups(DataSet.open(tmp_path, "icons"))
    assert set(groups.values()) == {"bell", "car", "arrow", "cloud"}
    assert groups["bell-outline"] == groups["bell-off"]


@pytest.mark.parametrize("settings", [(), ("towers.image.cells=6",)])
def test_pictures_described_once_give_the_numbers_of_pictures_described_in_every_step(
    world: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    cell = Cell(DataSet.open(world / "data", "drawn"), "jdsh", 16, 1)
    asked = (asked_of(world, tmp_path, described=way, overrides=settings) for way in (True, False))
    cached, full = (run_cell(cell, each) for each in asked)
    assert numbers(cached) == numbers(full)
    assert cached["key"] != full["key"]


@pytest.mark.parametrize("method", ["jdsh", "ridge"])
def test_cells_of_pictures_described_otherwise_are_others(world: Path, tmp_path: Path, method: str) -> None:
    cell = Cell(DataSet.open(world / "data", "drawn"), method, 16, 1)
    settings: tuple[tuple[str, ...], ...] = ((), ("towers.image.cells=4",), ("towers.image.cells=6",))
    asked = [asked_of(world, tmp_path, overrides=each) for each in settings]
    coarse, named, fine = (cell_keys(cell, cell_config(cell, each), each)[0] for each in asked)
    assert coarse == named != fine


def test_ridge_starts_from_the_features_of_dscmh_and_cca_from_those_of_jdsh(
    world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "recipes", tmp_path / "recipes")
    settings = (world / "recipes" / "small_jdsh_16.yaml").read_text()
    found = {}
    for number in range(2):
        asked = replace(asked_of(world, tmp_path / "out"), recipes=tmp_path / "recipes")
        for method in ("ridge", "cca"):
            config = cell_config(Cell(DataSet.open(world / "data", "small"), method, 16, 1), asked)
            found[method, number] = config.towers["image"].get("scaling")
        supervised = settings.replace("name: jdsh", "name: dscmh").replace(
            "image: {name: features", "image: {scaling: centre, name: features"
        )
        assert "scaling: centre" in supervised
        (tmp_path / "recipes" / "small_dscmh_16.yaml").write_text(supervised)
    assert found == {("ridge", 0): None, ("cca", 0): None, ("ridge", 1): "centre", ("cca", 1): None}


def test_a_baseline_that_has_no_such_length_is_said_to_be_absent(run: Run) -> None:
    code, line, printed = run("--sets", "small", "--methods", "cca", "cca_best", "random", "cmfh")
    assert code == 0
    assert "CCA has no 16 bits between sides of 9 and 12 features" in printed
    table = json.loads((Path(line["outputs"]["page"]).parent / "results.json").read_text())["table"]
    lengths = {row["method"]: row.get("code_length") for row in table}
    assert lengths["cca"] is None and lengths["cca_best"][0] in (8, 9) and lengths["cmfh"] == [16]


def test_what_does_not_fit_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    code, line, _ = run("--sets", "large")
    assert code == 2 and "no set 'large' (a folder of .parquet files); found: drawn, small" in line["error"]
    code, line, _ = run("--sets", "small", "--methods", "dbrc")
    assert code == 2 and "no recipe small_dbrc_16.yaml" in line["error"]
    (tmp_path / "README.md").write_text("nothing")
    code, line, _ = run("--sets", "small", "--readme", str(tmp_path / "README.md"))
    assert code == 2 and MARKERS[0] in line["error"]


def test_the_readme_holds_what_the_table_says_between_its_markers(run: Run, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    _, line, _ = run("--sets", "small", "--methods", "ridge", "--readme", str(readme))
    results = json.loads((Path(line["outputs"]["page"]).parent / "results.json").read_text())
    assert readme.read_text() == f"before\n{readme_block(results)}\nafter\n"


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    results, readme = ROOT / "docs" / "results.json", (ROOT / "README.md").read_text()
    table = json.loads(results.read_text())
    assert readme_block(table) in readme
    assert results_page(table) == results.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=[pytest.mark.ray, pytest.mark.slow])], ids=["in process", "ray"]
)
def test_a_cell_gives_the_codes_of_the_train_job(
    workers: int, world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if workers:
        request.getfixturevalue("ray_cluster")
    data = DataSet.open(world / "data", "small")
    record = run_cell(Cell(data, "jdsh", 16, 3), asked_of(world, tmp_path / "cells"))
    settings = [
        f"data.path={world}/data/small",
        f"run.dir={tmp_path}/runs",
        "run.seed=3",
        f"resources.workers={workers}",
        "resources.cpus_per_worker=0.5",
    ]
    config = load_config(str(world / "recipes" / "small_jdsh_16.yaml"), settings, {})
    trained = train.run(config, argparse.Namespace(dry_run=False))
    method = from_pretrained(Path(trained.outputs["model"]))
    query, retrieval = relaxed_sets(method, cell_config(Cell(data, "jdsh", 16, 3), asked_of(world, tmp_path)))
    assert codes_digest(query, retrieval) == record["codes"]
