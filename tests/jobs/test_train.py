"""The train job in one process: what it writes, goes on from, and refuses."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmh_models.artefact import artefact_digest, from_pretrained
from cmh_models.method import SIDES
from jobs import train
from jobs.config import load_config
from jobs.training.plan import plan_run
from jobs.training.surroundings import journal
from pipeline.codes import pack
from pipeline.corpus.scenes import write_corpus
from pipeline.releases.storage import Storage
from tests.jobs.training import overrides, run
from tests.s3 import BUCKET

HERE = "resources.workers=0"


def write_features(folder: Path, rows: int = 40, *, width: int = 6) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(4)
    table = {
        "key": [f"k{n}" for n in range(rows)],
        "image_features": list(draw.standard_normal((rows, width)).astype(np.float32)),
        "text_features": list(draw.standard_normal((rows, 5)).astype(np.float32)),
        "labels": [[n % 4] for n in range(rows)],
    }
    pq.write_table(pa.table(table), folder / "features.parquet")
    return folder


FEATURES = ("towers.image={name: features, hidden: 8}", "towers.text={name: features, hidden: 8}")


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    runs = tmp_path_factory.mktemp("runs")
    return runs, run(scenes, runs, HERE, "run.name=first")


def test_training_writes_a_model_that_encodes_both_sides(trained: tuple[Path, Any]) -> None:
    runs, result = trained
    assert result.outputs["model"] == str(runs / "first" / "model")
    assert artefact_digest(runs / "first" / "model") == result.outputs["digest"]
    method = from_pretrained(runs / "first" / "model")
    images = method.collate("image", np.zeros((2, 16, 16, 3), np.uint8))
    assert method.encode("image", images).shape == (2, 16)
    assert result.counts == {"rows": 96, "steps": 12, "steps_now": 12, "rows_replaced": 0}
    assert {"loss", "image_entropy", "text_dead_bits"} <= set(result.metrics)
    assert list((runs / "first" / "train" / "tensorboard").glob("events*"))
    assert "| loss |" in (runs / "first" / "model" / "README.md").read_text()


def test_two_runs_of_one_seed_give_the_same_model_and_byte_equal_codes(
    trained: tuple[Path, Any], scenes: Path
) -> None:
    runs, result = trained
    again = run(scenes, runs, HERE, "run.name=second")
    assert again.outputs["digest"] == result.outputs["digest"]
    inputs = {
        "image": np.arange(4 * 768, dtype=np.uint8).reshape(4, 16, 16, 3),
        "text": ["a", "b c", "d", "e"],
    }
    codes = []
    for name in ("first", "second"):
        method = from_pretrained(runs / name / "model")
        with torch.no_grad():
            codes.append(
                [pack(method.encode(s, method.collate(s, inputs[s])).numpy()).tobytes() for s in SIDES]
            )
    assert codes[0] == codes[1]
    other = run(scenes, runs, HERE, "run.name=third", "run.seed=1")
    assert other.outputs["digest"] != result.outputs["digest"]


def test_the_same_name_goes_on_where_it_stood_and_ends_like_one_long_run(
    scenes: Path, tmp_path: Path
) -> None:
    whole = run(scenes, tmp_path, HERE, "run.name=whole", "train.epochs=4")
    first = run(scenes, tmp_path, HERE, "run.name=parts")
    second = run(scenes, tmp_path, HERE, "run.name=parts", "train.epochs=4")
    assert (second.counts["steps"], second.counts["steps_now"]) == (24, 12)
    assert first.outputs["digest"] != second.outputs["digest"] == whole.outputs["digest"]
    nothing = run(scenes, tmp_path, HERE, "run.name=parts", "train.epochs=4")
    assert nothing.counts["steps_now"] == 0
    assert nothing.outputs["digest"] == second.outputs["digest"]
    assert nothing.metrics["loss"] == second.metrics["loss"]


def test_outputs_on_object_storage_are_those_of_a_local_run(
    trained: tuple[Path, Any], scenes: Path, s3_server: str
) -> None:
    _, result = trained
    uri = f"s3://{BUCKET}/train-runs"
    there = run(scenes, uri, HERE, "run.name=first")
    assert there.outputs == {"model": f"{uri}/first/model", "digest": result.outputs["digest"]}
    files = Storage(uri).list("first")
    assert "first/model/config.json" in files and any("tensorboard/events" in file for file in files)
    assert run(scenes, uri, HERE, "run.name=first").counts["steps_now"] == 0


def test_given_features_are_trained_on_and_their_widths_filled_in(tmp_path: Path) -> None:
    source = write_features(tmp_path / "source")
    result = run(source, tmp_path, HERE, *FEATURES)
    towers = json.loads((Path(result.outputs["model"]) / "config.json").read_text())["towers"]
    assert (towers["image"]["width"], towers["text"]["width"]) == (6, 5)


def test_validation_judges_pairs_that_are_not_trained_on(scenes: Path, tmp_path: Path) -> None:
    settings = ("data.split.validation=0.3", "train.validate_every_epochs=1", "train.global_batch_size=8")
    result = run(scenes, tmp_path, HERE, *settings)
    assert 50 < result.counts["rows"] < 85
    assert 0 < result.metrics["validation_map_i2t"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.global_batch_size=97"], r"96 pairs to train on .* train\.global_batch_size is 97; .* 96"),
        (["data.split.train=[nothing]"], r"0 pairs to train on \(rows left out: 96 other split\)"),
        (["method.code_length=20"], "multiple of 8, got 20"),
        (["method.name=jdhs"], "unknown method 'jdhs'; known: .*jdsh"),
        (["train.epoch=3"], r"unknown key '.*epoch'; known: .*epochs"),
        (["train.epochs=0"], "epochs"),
        (["towers.image={name: features}"], "towers.image is 'features' but column 'image' holds pixels"),
        (["data.columns.text=captions"], "no column 'captions'.*found: "),
        (["train.validate_every_epochs=1"], r"data\.split\.validation"),
        (["resources.workers=3"], "16 rows for 3 workers; the nearest that fits is 15"),
        (["resources.workers=2", "deepspeed.train_batch_size=8"], r"deepspeed\.train_batch_size is 8 .* 16"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    settings: list[str], message: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(scenes, tmp_path, HERE, *settings)
    assert not list(tmp_path.iterdir())


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises((ValueError, OSError)):
        run(tmp_path / "source", tmp_path / "runs", HERE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"resources\.gpu is true but torch sees no GPU"):
        run(scenes, tmp_path, HERE, "resources.gpu=true")


def test_a_width_that_the_rows_do_not_have_is_refused(tmp_path: Path) -> None:
    source = write_features(tmp_path / "source")
    with pytest.raises(
        ValueError, match=r"towers\.text\.width is 9 but rows of 'text_features' have 5 features"
    ):
        run(source, tmp_path / "runs", HERE, FEATURES[0], "towers.text={name: features, width: 9}")


def test_other_settings_do_not_go_on_from_a_checkpoint_of_the_same_name(
    trained: tuple[Path, Any], scenes: Path, tmp_path: Path
) -> None:
    runs, result = trained
    other = tmp_path / "other"
    write_corpus(other, 96, 32, 8, split="train")
    for setting, told in (
        ("train.global_batch_size=8", r"train\.global_batch_size was 16, is 8"),
        ("method.code_length=32", r"method\.code_length was 16, is 32"),
        ("towers.text={name: bag, word_buckets: 64, pair_buckets: 0}", r"towers\.text\.hidden was 8, is 512"),
        ("run.seed=5", r"run\.seed was 0, is 5"),
        ("train.learning_rate=0.5", r"train\.learning_rate was 0\.001, is 0\.5"),
        ("train.precision=bf16", r"train\.precision was fp32, is bf16"),
        ("data.limits.max_pixels=9999", r"data\.limits\.max_pixels was 50000000, is 9999"),
        (f"data.path={other}", r"names and sizes of the files of data\.path \(digest\) was \w+, is \w+"),
    ):
        with pytest.raises(ValueError, match=rf"cannot go on from the checkpoint of this run: {told}; keep"):
            run(scenes, runs, HERE, "run.name=first", setting, dry_run=True)
    with pytest.raises(ValueError, match=r"train\.epochs is 1 but run 'first' has done 2: set it to as many"):
        run(scenes, runs, HERE, "run.name=first", "train.epochs=1")
    with pytest.raises(ValueError, match=r"first exists and run\.resume is false"):
        run(scenes, runs, HERE, "run.name=first", "run.resume=false")
    assert artefact_digest(runs / "first" / "model") == result.outputs["digest"]


def test_a_source_that_was_moved_and_settings_that_no_step_depends_on_go_on(
    trained: tuple[Path, Any], scenes: Path, tmp_path: Path
) -> None:
    runs, result = trained
    shutil.copytree(runs / "first", tmp_path / "first")
    moved = shutil.copytree(scenes, tmp_path / "moved")
    again = run(moved, tmp_path, HERE, "run.name=first", "train.log_every=1", "train.micro_batch_size=8")
    assert again.counts["steps_now"] == 0 and again.outputs["digest"] == result.outputs["digest"]


def test_validation_without_labels_is_refused_before_a_step(tmp_path: Path) -> None:
    source = write_features(tmp_path / "source")
    table = pq.read_table(source / "features.parquet")
    none = pa.array([None] * len(table), pa.list_(pa.int64()))
    pq.write_table(table.set_column(3, "labels", none), source / "features.parquet")
    settings = ("train.validate_every_epochs=1", "data.split.validation=0.3")
    with pytest.raises(ValueError, match=r"judges by labels, and no pair that .* keeps out has any: name"):
        run(source, tmp_path / "runs", HERE, *FEATURES, *settings)


def test_event_files_reach_object_storage_before_a_run_ends(scenes: Path, s3_server: str) -> None:
    uri = f"s3://{BUCKET}/journal-runs"
    plan = plan_run(load_config(None, overrides(scenes, uri, HERE), {}))
    with journal(plan, 6, 0, bar=None) as note:
        note(5, {"epoch": 0, "loss": 1.0})
        assert not Storage(uri).list("run/train/tensorboard")
        note(10, {"epoch": 1, "loss": 0.5})
        (kept,) = Storage(uri).files("run/train/tensorboard")
    (closed,) = Storage(uri).files("run/train/tensorboard")
    assert 0 < kept.size < closed.size


def test_half_a_checkpoint_is_passed_over(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(scenes, tmp_path, HERE, "run.name=whole", "train.epochs=3")
    run(scenes, tmp_path, HERE, "train.epochs=2")
    (tmp_path / "run/train/checkpoints/step-000000000012/engine.pt").write_bytes(b"half")
    found = run(scenes, tmp_path, HERE, "train.epochs=3")
    assert found.counts["steps_now"] == 12
    assert found.outputs["digest"] == whole.outputs["digest"]
    assert "step-000000000012 is not a complete checkpoint: 1 of 1 files" in caplog.text


def test_more_ranks_than_this_machine_has_are_refused_before_ray_starts(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.runtime.is_own", lambda: True)
    monkeypatch.setattr("cluster.runtime.connect", lambda: pytest.fail("Ray was started"))
    with pytest.raises(RuntimeError, match=r"the run asks for 1600 CPUs and the cluster has \d+: lower"):
        run(scenes, tmp_path, "resources.workers=16", "resources.cpus_per_worker=100")


def test_a_dry_run_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    assert run(scenes, tmp_path, HERE, dry_run=True).counts == {"rows": 96}
    drawn = run(tmp_path / "none", tmp_path, HERE, "data.scenes={rows: 10}", dry_run=True)
    assert drawn.status == "done" and not list(tmp_path.iterdir())


def labelled(source: Path, runs: Path, *others: str) -> Any:
    general = [setting for setting in overrides(source, runs, HERE) if not setting.startswith("method.")]
    settings = [*general, *FEATURES, "method.name=dscmh", "method.code_length=16", *others]
    return train.run(load_config(None, settings, {}), argparse.Namespace(dry_run=False))


def test_a_method_that_learns_from_labels_is_told_their_number(tmp_path: Path) -> None:
    source = write_features(tmp_path / "source")
    result = labelled(source, tmp_path)
    assert json.loads((Path(result.outputs["model"]) / "config.json").read_text())["method"]["classes"] == 4
    with pytest.raises(ValueError, match=r"method\.classes is 3 but the highest label is 3"):
        labelled(source, tmp_path, "method.classes=3", "run.name=few")
    assert labelled(source, tmp_path, "method.classes=6", "run.name=many").status == "done"
