"""Scalars reach MLflow and W&B where their packages are; a missing package is said before training."""

import importlib.util
from pathlib import Path

import pytest

from jobs.config import load_config
from jobs.training.plan import plan_run
from jobs.training.trackers import check_trackers, trackers
from tests.jobs.training import overrides, run

HERE = "resources.workers=0"


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed (extra `track`)")


def test_a_tracker_that_is_unknown_or_not_installed_is_said_before_training(
    scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"run\.trackers names 'mlfow'; known: mlflow, wandb"):
        run(scenes, tmp_path, HERE, "run.trackers=[mlfow]")
    for name in ("mlflow", "wandb"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(ValueError, match=f"names {name}, which is not installed here"):
                check_trackers((name,))
    assert not list(tmp_path.iterdir())


@needs("mlflow")
def test_mlflow_holds_the_curve_of_a_run_and_goes_on_with_it(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # no database is needed for one test
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    run(scenes, tmp_path / "runs", HERE, "run.trackers=[mlflow]", "train.log_every=1")
    run(scenes, tmp_path / "runs", HERE, "run.trackers=[mlflow]", "train.log_every=1", "train.epochs=3")
    (found,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("hashfleet").experiment_id])
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 19))
    assert found.data.params["method.name"] == "jdsh"


@needs("wandb")
def test_wandb_takes_a_run_without_a_network(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run(scenes, tmp_path / "runs", HERE, "run.trackers=[wandb]", "train.log_every=1")
    assert list(tmp_path.glob("wandb/offline-run-*/run-run.wandb"))


@pytest.mark.ray
def test_scalars_are_ray_metrics_on_a_cluster(ray_cluster: str, scenes: Path, tmp_path: Path) -> None:
    plan = plan_run(load_config(None, overrides(scenes, tmp_path, "resources.workers=1"), {}))
    with trackers(plan) as tell:
        tell(3, {"loss": 0.5, "map@50": 0.25})
