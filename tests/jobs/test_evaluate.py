"""The evaluation job on drawn scenes: what it measures, beside which baselines, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from jobs.command import run_job
from pipeline.corpus.scenes import write_corpus
from pipeline.encoding.encoder import encode_side
from tests.jobs.models import save_model

Evaluate = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, 60 train rows, and 12 query and 30 retrieval rows of another seed."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(folder / "model")
    write_corpus(folder / "train", 60, 60, 1, split="train")
    for split, start, count in (("query", 0, 12), ("retrieval", 12, 30)):
        write_corpus(folder / "heldout" / split, count, 15, 2, start=start, split=split)
    return folder


@pytest.fixture
def run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Return a function that runs the job with some settings: exit code, result line, stderr."""

    def run(*settings: str) -> tuple[int, dict[str, Any], str]:
        own = (f"encode.model={world}/model", f"data.path={world}/heldout", f"run.dir={tmp_path}")
        flags = [flag for setting in (*own, *settings) for flag in ("--set", setting)]
        code = run_job("evaluate", evaluate, flags)
        printed = capsys.readouterr()
        return code, json.loads(printed.out.splitlines()[-1]), printed.err

    return run


def test_both_directions_are_measured_with_their_definitions_in_words(run: Evaluate) -> None:
    code, line, printed = run()
    assert code == 0
    assert set(line["metrics"]) == {"map_i2t", "map_t2i", "map50_i2t", "map50_t2i"}
    assert all(0 < value < 1 for value in line["metrics"].values())
    assert line["counts"] == {"rows_read": 42, "rows_left_out": 0, "queries": 12, "retrieval_rows": 30}
    assert line["protocol"]["code_length"] == 16
    assert "mAP@all: all retrieval rows ranked by Hamming distance" in printed
    assert "the divisor is the number of relevant rows among them" in printed
    assert run()[1]["metrics"] == line["metrics"]


def test_the_codes_judged_are_those_that_encoding_gives(run: Evaluate, world: Path) -> None:
    health = run()[1]["bits"]["text"]
    texts = pq.read_table(world / "heldout" / "retrieval", columns=["text"])["text"].to_pylist()
    codes = encode_side(save_model(world / "model"), "text", texts)
    assert health["distinct_codes"] == len(np.unique(codes, axis=0))


def test_baselines_are_judged_on_the_same_rows_at_the_same_length(run: Evaluate, world: Path) -> None:
    code, line, printed = run("evaluate.baselines=true", f"evaluate.train={world}/train")
    assert code == 0
    assert set(line["baselines"]) == {"random", "untrained", "cca", "cca_best"}
    for name in ("random", "untrained", "cca"):
        assert line["baselines"][name]["code_length"] == 16
        assert {"map_i2t", "map_t2i"} <= line["baselines"][name].keys()
        assert f"{name} " in printed
    # An untrained network of the same seed as the model, which was never trained, is the model.
    assert line["baselines"]["untrained"]["map_i2t"] == line["metrics"]["map_i2t"]


def test_baselines_without_rows_to_learn_from_say_how_to_give_them(run: Evaluate) -> None:
    code, line, _ = run("evaluate.baselines=true")
    assert code == 2
    assert "has no train rows among 42" in line["error"]


def test_rows_for_baselines_that_are_not_there_are_missed_before_the_model_is_looked_for(
    run: Evaluate,
) -> None:
    code, line, _ = run("evaluate.baselines=true", "evaluate.train=nowhere", "encode.model=nowhere")
    assert code == 2
    assert "nowhere: no such file or folder; expected .parquet files; see evaluate.train" in line["error"]


def test_rows_that_are_in_query_and_retrieval_set_are_refused_unless_asked_for(run: Evaluate) -> None:
    both = "data.split.retrieval=[query, retrieval]"
    code, line, _ = run(both)
    assert (code, "12 of 12 queries are in the retrieval set" in line["error"]) == (2, True)
    code, line, _ = run(both, "evaluate.allow_overlap=true")
    assert (code, line["protocol"]["queries_in_retrieval_set"]) == (0, 12)


def test_a_source_without_query_rows_or_labels_or_model_is_refused_by_name(
    run: Evaluate, world: Path, tmp_path: Path
) -> None:
    code, line, _ = run(f"data.path={world}/train")
    assert (code, "has no query rows among 60 (left out: none)" in line["error"]) == (2, True)
    (tmp_path / "bare").mkdir()
    table = pq.read_table(world / "train").drop_columns(["labels"])
    pq.write_table(table, tmp_path / "bare" / "a.parquet")
    code, line, _ = run(f"data.path={tmp_path}/bare")
    assert (code, "a.parquet: no column 'labels' to judge by; found: " in line["error"]) == (2, True)
    table = pq.read_table(world / "heldout")
    labels = pa.nulls(table.num_rows, table.schema.field("labels").type)
    table = table.set_column(table.schema.get_field_index("labels"), "labels", labels)
    pq.write_table(table, tmp_path / "bare" / "a.parquet")
    code, line, _ = run(f"data.path={tmp_path}/bare")
    assert (code, "none of 12 queries has a label" in line["error"]) == (2, True)
    (tmp_path / "bare" / "a.parquet").unlink()
    for missing in (f"{tmp_path}/bare", f"{tmp_path}/nowhere"):
        code, line, _ = run(f"data.path={missing}")
        assert (code, line["error"].startswith(missing)) == (2, True)
    code, line, _ = run("encode.model=null")
    assert (code, "encode.model is not set" in line["error"]) == (2, True)


def test_a_source_that_the_model_does_not_take_is_named_with_what_it_takes(
    run: Evaluate, tmp_path: Path
) -> None:
    row = {"key": ["a"], "image_features": [[1.0]], "text": ["a"], "labels": [[1]], "split": ["query"]}
    (tmp_path / "features").mkdir()
    pq.write_table(pa.table(row), tmp_path / "features" / "a.parquet")
    code, line, _ = run(f"data.path={tmp_path}/features")
    assert code == 2
    assert "a.parquet: column 'image_features' holds features, the image tower of the model" in line["error"]


def test_rows_that_cannot_be_decoded_are_left_out_and_counted(
    run: Evaluate, world: Path, tmp_path: Path
) -> None:
    rows = [
        row
        for split in ("query", "retrieval")
        for row in pq.read_table(world / "heldout" / split).to_pylist()
    ]
    rows[3]["image"], rows[20]["text"] = b"no picture", None
    schema = pq.read_schema(next((world / "heldout" / "query").glob("*.parquet")))
    (tmp_path / "some").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "some" / "a.parquet")
    counts = run(f"data.path={tmp_path}/some")[1]["counts"]
    assert counts == {"rows_read": 42, "rows_left_out": 2, "queries": 11, "retrieval_rows": 29}
