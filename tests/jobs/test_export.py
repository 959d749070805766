"""The model of a run, from its newest checkpoint or from its best validation."""

import argparse
from pathlib import Path

import pytest

from cmh_models.artefact import artefact_digest
from jobs import export
from jobs.command import Result
from jobs.config import load_config
from tests.jobs.training import overrides, run

VALIDATED = (
    "data.split.validation=0.3",
    "train.validate_every_epochs=1",
    "train.global_batch_size=8",
    "resources.workers=0",
    "train.epochs=4",
)


def exported(scenes: Path, runs: Path, *others: str, best: bool = False, dry_run: bool = False) -> Result:
    config = load_config(None, overrides(scenes, runs, *others), {})
    return export.run(config, argparse.Namespace(best=best, dry_run=dry_run))


def test_the_newest_checkpoint_gives_the_model_that_the_run_ended_in(scenes: Path, tmp_path: Path) -> None:
    trained = run(scenes, tmp_path, "resources.workers=0")
    (tmp_path / "run" / "model").rename(tmp_path / "moved")
    made = exported(scenes, tmp_path, "resources.workers=0")
    assert made.outputs == trained.outputs
    assert artefact_digest(tmp_path / "run" / "model") == trained.outputs["digest"]


def test_the_best_model_is_kept_and_can_be_what_a_run_ends_in(scenes: Path, tmp_path: Path) -> None:
    last = run(scenes, tmp_path / "last", *VALIDATED)
    best = artefact_digest(tmp_path / "last" / "run" / "best")
    found = exported(scenes, tmp_path / "last", *VALIDATED, best=True)
    assert found.outputs["digest"] == best
    assert found.metrics["score"] >= (
        (last.metrics["validation_map_i2t"] + last.metrics["validation_map_t2i"]) / 2
    )
    ended = run(scenes, tmp_path / "best", *VALIDATED, "train.export=best")
    assert ended.outputs["digest"] == best
    assert ended.metrics["validation_map_i2t"] == found.metrics["validation_map_i2t"]


def test_a_run_without_a_checkpoint_or_a_best_model_says_so(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no complete checkpoint; train first"):
        exported(scenes, tmp_path)
    with pytest.raises(ValueError, match=r"no best model is kept; set train\.validate_every_epochs"):
        exported(scenes, tmp_path, best=True)
    with pytest.raises(ValueError, match=r"train\.export is best: set train\.validate_every_epochs"):
        run(scenes, tmp_path, "resources.workers=0", "train.export=best")


@pytest.mark.parametrize("best", [False, True])
def test_a_run_whose_corpus_is_gone_is_refused_and_no_corpus_is_drawn(tmp_path: Path, best: bool) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder; .* see data\.path"):
        exported(tmp_path / "scenes", tmp_path / "runs", "data.scenes={rows: 10}", best=best)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_exports_nothing(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path, "resources.workers=0")
    (tmp_path / "run" / "model").rename(tmp_path / "moved")
    assert exported(scenes, tmp_path, "resources.workers=0", dry_run=True).metrics["epoch"] == 2
    assert not (tmp_path / "run" / "model").exists()
