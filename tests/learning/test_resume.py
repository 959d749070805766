"""A run goes on with another number of ranks or another ZeRO stage; what cannot go on is said."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.learning.checkpoint import Position, read_index, save_checkpoint
from pipeline.learning.engine import EngineConfig, make_engine
from pipeline.learning.gather import gather_objects
from pipeline.learning.resume import SAME, UNIVERSAL, WEIGHTS, open_engine, way
from pipeline.learning.training import Hooks, TrainConfig, fit, seed_step
from tests.learning.ranks import Ranks, SoloRank
from tests.learning.small import Rows, Small

CONFIG = TrainConfig(epochs=2, global_batch_size=32, learning_rate=0.01, checkpoint_every_epochs=1)


def zero(stage: int) -> dict[str, dict[str, int]]:
    return {"zero_optimization": {"stage": stage}}


def train(stage: int, folder: Path) -> list[float]:
    """Train two epochs and keep the checkpoint of the first, merged as Ray Train does; return the losses."""

    def keep(metrics: dict[str, float], share: Path | None) -> None:
        if metrics["epoch"] == 1 and share is not None:
            shutil.copytree(share, folder, dirs_exist_ok=True)
            gather_objects(None)  # the shares of all ranks are there

    seed_step(3)
    engine = make_engine(Small(), CONFIG, zero(stage))
    return fit(engine, Rows(96, 32), CONFIG, seed=3, hooks=Hooks(report=keep)).losses


def go_on(stage: int, folder: Path) -> list[float]:
    seed_step(50)
    found = open_engine(Small(), CONFIG, zero(stage), folder=folder, facts={})
    assert found.position == Position(1, 3)
    return fit(found.engine, Rows(96, 32), CONFIG, seed=3, start=found.position).losses


@pytest.mark.parametrize(("saved", "today"), [(0, 0), (1, 1), (1, 2), (2, 2), (3, 3)])
def test_two_ranks_go_on_as_one_and_one_rank_as_two(
    saved: int, today: int, ranks: Ranks, solo: SoloRank, tmp_path: Path
) -> None:
    undisturbed = ranks.call(train, saved, tmp_path / "two")[0]
    assert solo.call(go_on, today, tmp_path / "two")[0] == pytest.approx(undisturbed[3:], rel=1e-5)
    again = solo.call(train, saved, tmp_path / "one")[0]
    assert again == pytest.approx(undisturbed, rel=1e-5)
    for losses in ranks.call(go_on, today, tmp_path / "one"):
        assert losses == pytest.approx(undisturbed[3:], rel=1e-5)


@pytest.mark.parametrize(("saved", "today"), [(3, 1), (2, 3), (2, 0), (0, 2)])
def test_weights_and_buffers_go_on_where_the_optimiser_cannot(
    saved: int, today: int, ranks: Ranks, tmp_path: Path
) -> None:
    undisturbed = ranks.call(train, saved, tmp_path)[0]
    for losses in ranks.call(go_on, today, tmp_path):
        assert losses[0] == pytest.approx(undisturbed[3], rel=1e-5)  # before a step: weights and buffers
        assert losses[1:] != pytest.approx(undisturbed[4:], rel=1e-5)  # after it: the optimiser was fresh


def test_deepspeeds_weights_go_on_without_deepspeed_and_the_log_says_what_is_lost(
    ranks: Ranks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in (0, 2, 3):
        folder = tmp_path / str(stage)
        undisturbed = ranks.call(train, stage, folder)[0]
        with caplog.at_level(logging.WARNING):
            assert go_on(0, folder)[0] == pytest.approx(undisturbed[3], rel=1e-5)
        assert f"checkpoint of 2 x zero-{stage}: weights go on, the optimiser is fresh" in caplog.text


def save_local(folder: Path) -> None:
    folder.mkdir()
    seed_step(3)
    save_checkpoint(make_engine(Small(), CONFIG, {}), folder, Position(1, 3), facts={}, metrics={})


def weights_of(folder: Path) -> torch.Tensor:
    seed_step(50)
    engine = open_engine(Small(), CONFIG, zero(1), folder=folder, facts={}).engine
    return torch.cat([weight.detach().flatten() for weight in engine.method.parameters()])


def test_a_run_of_one_process_goes_on_under_deepspeed(ranks: Ranks, tmp_path: Path) -> None:
    save_local(tmp_path / "local")
    seed_step(3)
    expected = torch.cat([weight.detach().flatten() for weight in Small().parameters()])
    for weights in ranks.call(weights_of, tmp_path / "local"):
        assert torch.equal(weights, expected)


def test_the_way_is_chosen_by_engine_ranks_and_optimiser() -> None:
    adam, sgd = EngineConfig(), EngineConfig(optimiser="sgd")
    index = {"engine": "zero-2", "world_size": 4}
    assert way(index, adam, "zero-2", 4) == SAME
    assert way(index, adam, "zero-2", 2) == UNIVERSAL
    assert way(index, adam, "zero-1", 4) == UNIVERSAL
    assert way(index, sgd, "zero-2", 2) == WEIGHTS
    assert way(index, adam, "zero-3", 4) == WEIGHTS
    assert way({"engine": "zero-0", "world_size": 4}, adam, "zero-0", 2) == SAME
    assert way({"engine": "local", "world_size": 1}, adam, "zero-0", 2) == WEIGHTS


def test_a_checkpoint_names_its_engine(tmp_path: Path) -> None:
    save_local(tmp_path / "local")
    assert read_index(tmp_path / "local")["engine"] == "local"
