"""Input that cannot be trained on or judged is refused in one line, before anything is trained."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import train
from jobs.config import load_config
from jobs.judging.cell_data import DataSet
from jobs.judging.cells import Asked, Cell, run_cell
from jobs.training.plan import plan_run

ROWS = 40
FEATURES = "towers.image={name: features, hidden: 8}", "towers.text={name: features, hidden: 8}"


def write(folder: Path, name: str = "part", *, widths: tuple[int, int] = (6, 5), **changed: Any) -> Path:
    """Write a file of features, with some columns changed."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "id": [f"{name}-{row}" for row in range(ROWS)],
        "image_features": rng.standard_normal((ROWS, widths[0])).tolist(),
        "text_features": rng.standard_normal((ROWS, widths[1])).tolist(),
        "labels": [[row % 3] for row in range(ROWS)],
        "split": ["test" if row % 4 == 0 else "train" for row in range(ROWS)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in (columns | changed).items() if value is not None}
    pq.write_table(pa.table(kept), folder / f"{name}.parquet")
    return folder


def plan(folder: Path, method: str = "jdsh") -> None:
    settings = [f"data.path={folder}", f"run.dir={folder}/runs", f"method.name={method}", *FEATURES]
    plan_run(load_config(None, [*settings, "train.global_batch_size=8", "resources.workers=0"], {}))


def refused(folder: Path, method: str = "jdsh") -> str:
    with pytest.raises(ValueError) as caught:
        plan(folder, method)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_changed_is_taken(tmp_path: Path) -> None:
    plan(write(tmp_path / "data"))
    plan(tmp_path / "data", "dscmh")


def test_a_source_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    assert "nowhere: no such file or folder; expected .parquet files; see data.path" in refused(
        tmp_path / "nowhere"
    )
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet file: an empty corpus; see data.path" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    "wrong",
    [
        "train.epohcs=3",
        "method.alhpa=1",
        "towers.image={name: nothing}",
        "train.export=best",
        "run.trackers=[teletype]",
    ],
)
def test_what_training_would_refuse_is_refused_before_the_corpus_is_drawn_and_by_a_dry_run(
    tmp_path: Path, wrong: str
) -> None:
    settings = [f"data.path={tmp_path}/scenes", f"run.dir={tmp_path}/runs", "data.scenes={rows: 10}"]
    config = load_config(None, [*settings, "method.name=jdsh", "resources.workers=0", wrong], {})
    told = []
    for dry_run in (True, False):
        with pytest.raises(ValueError) as caught:
            train.run(config, argparse.Namespace(dry_run=dry_run))
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["dscmh", "hsidhn"])
def test_a_supervised_method_without_labels_names_the_file_or_the_method(tmp_path: Path, method: str) -> None:
    assert "part.parquet: no column 'labels', which the method needs" in refused(
        write(tmp_path / "none", labels=None), method
    )
    empty = write(tmp_path / "empty", labels=pa.array([[]] * ROWS, pa.list_(pa.int16())))
    assert f"method '{method}' learns from labels, but no row has any" in refused(empty, method)


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    negative = write(tmp_path / "negative", labels=[[row - 1] for row in range(ROWS)])
    assert "part.parquet: labels must not be negative, got -1" in refused(negative, "dscmh")
    huge = write(tmp_path / "huge", labels=[[row, 2_000_000_000] for row in range(ROWS)])
    assert "part.parquet: the highest label is 2000000000" in refused(huge, "dscmh")


def test_features_of_another_width_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", "a")
    write(folder, "b", widths=(7, 5))
    assert "b.parquet: image features have width 7, those of" in refused(folder)
    ragged = [[0.5] * (6 if row % 2 else 4) for row in range(ROWS)]
    assert "wrong feature width" in refused(write(tmp_path / "rows", image_features=ragged))


def test_nan_among_features_is_named(tmp_path: Path) -> None:
    values = np.ones((ROWS, 5))
    values[7, 2] = np.nan
    told = refused(write(tmp_path / "nan", text_features=values.tolist()))
    assert "1 of the first 30 rows to train on cannot be: 1 feature not finite" in told
    assert "part.parquet" in told


def cell(folder: Path, tmp_path: Path, *overrides: str) -> dict[str, Any]:
    recipe = tmp_path / "recipes" / f"{folder.name}_jdsh_8.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(
        "method: {name: jdsh, feature_rounds: 1, moment_rounds: 1, threshold_rounds: 1}\n"
        "towers: {image: {name: features, hidden: 4}, text: {name: features, hidden: 4}}\n"
        "train: {epochs: 1, global_batch_size: 8}\n"
    )
    asked = Asked(folder.parent, tmp_path / "out", recipe.parent, overrides)
    return run_cell(Cell(DataSet.open(folder.parent, folder.name), "jdsh", 8, 1), asked)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"split": ["train"] * ROWS},
            "no query rows among 40: column 'split' must hold one of query",
        ),
        ({"split": ["test"] * ROWS}, "has no retrieval rows among 40"),
        (
            {"labels": [[]] * 4 + [[1]] * 36, "split": ["test"] * 4 + ["train"] * 36},
            "none of 4 query rows",
        ),
        (
            {"id": ["one", *map(str, range(38)), "one"]},
            "1 of 10 queries are in the retrieval",
        ),
    ],
    ids=["no queries", "no retrieval rows", "no labels", "a query in its own retrieval set"],
)
def test_what_could_not_be_judged_is_refused_before_training(
    changed: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.judging.cells.fit", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=message):
        cell(write(tmp_path / "data", **changed), tmp_path)


def test_a_wrong_option_of_a_method_is_named_with_its_section_and_source(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    with pytest.raises(ValueError, match=r"^--set: unknown key 'method\.alhpa'; known: .*code_length"):
        cell(folder, tmp_path, "method.alhpa=1")


def test_a_query_in_its_own_retrieval_set_is_judged_when_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", id=["one", *map(str, range(38)), "one"])
    record = cell(folder, tmp_path, "evaluate.allow_overlap=true")
    assert record["own towers"]["protocol"]["queries_in_retrieval_set"] == 1
