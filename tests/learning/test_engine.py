"""Engines: DeepSpeed goes on from what all ranks saved, at every ZeRO stage; clipping and optimisers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cmh_models.method import HashMethod
from pipeline.learning.checkpoint import Position, read_index
from pipeline.learning.engine import EngineConfig, LocalEngine, make_engine
from pipeline.learning.gather import gather_objects, rank
from pipeline.learning.resume import open_engine
from pipeline.learning.training import Hooks, TrainConfig, fit, seed_step
from tests.learning.ranks import Ranks
from tests.learning.small import Rows, Small

CONFIG = TrainConfig(epochs=2, global_batch_size=32, learning_rate=0.01, checkpoint_every_epochs=1)


def resume_on_a_rank(stage: int, folder: Path) -> tuple[list[float], list[float]]:
    """Train two epochs; then the second again from the checkpoint of the first, merged as Ray Train does."""
    json = {"zero_optimization": {"stage": stage}}
    merged = folder / f"stage-{stage}"

    def keep(metrics: dict[str, float], share: Path | None) -> None:
        if metrics["epoch"] == 1 and share is not None:
            shutil.copytree(share, merged, dirs_exist_ok=True)
            gather_objects(None)  # the shares of all ranks are there

    seed_step(3)
    engine = make_engine(Small(), CONFIG, json)
    undisturbed = fit(engine, Rows(96, 32), CONFIG, seed=3, hooks=Hooks(report=keep))
    seed_step(50 + rank())
    resumed = open_engine(Small(), CONFIG, json, folder=merged, facts={})
    assert resumed.position == Position(1, 3) and read_index(merged)["world_size"] == 2
    rest = fit(resumed.engine, Rows(96, 32), CONFIG, seed=3, start=resumed.position)
    return undisturbed.losses[3:], rest.losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    stage: int, ranks: Ranks, tmp_path: Path
) -> None:
    for undisturbed, resumed in ranks.call(resume_on_a_rank, stage, tmp_path):
        assert resumed == undisturbed


def steps(config: EngineConfig) -> HashMethod:
    seed_step(3)
    method = Small()
    fit(LocalEngine(method, config), Rows(32, 32), TrainConfig(**config.model_dump(), epochs=1), seed=3)
    return method


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", "inf"),
        ("clip", "nan"),
        ("weight_decay", "inf"),
        ("step_timeout", "inf"),
        ("global_batch_size", 1),
    ],
)
def test_a_setting_that_no_step_can_be_made_with_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        TrainConfig.model_validate({setting: value})


def test_clipping_bounds_the_step() -> None:
    free = EngineConfig(optimiser="sgd", learning_rate=1.0, momentum=0.0, global_batch_size=32)
    seed_step(3)
    before = torch.cat([weight.detach().flatten() for weight in Small().parameters()])
    for clip, expected in ((None, None), (1e-3, 1e-3)):
        method = steps(free.model_copy(update={"clip": clip}))
        after = torch.cat([weight.detach().flatten() for weight in method.parameters()])
        length = float((after - before).norm())
        assert length > 1e-2 if expected is None else length == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_every_optimiser_decays_weights_when_asked_to(optimiser: str) -> None:
    config = EngineConfig(optimiser=optimiser, weight_decay=0.5, learning_rate=0.01)  # type: ignore[arg-type]
    group = config.make_optimiser(Small()).param_groups[0]
    assert (group["weight_decay"], group["lr"]) == (0.5, 0.01)


def test_a_method_without_trainable_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable weights"):
        LocalEngine(Small().requires_grad_(False), CONFIG)


def test_checkpointed_activations_change_no_step() -> None:
    config = EngineConfig(global_batch_size=32)
    plain = steps(config).state_dict()
    sparing = steps(config.model_copy(update={"activation_checkpointing": True})).state_dict()
    for name, weight in plain.items():
        assert torch.equal(sparing[name], weight), name


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fp16 needs a GPU \(resources.gpu=true\); CPUs take bf16 or fp32"):
        LocalEngine(Small(), EngineConfig(precision="fp16"))


def trained(json: dict[str, Any]) -> tuple[bool, dict[str, torch.Tensor]]:
    seed_step(3)
    config = CONFIG.model_copy(update={"clip": 0.5, "micro_batch_size": 8})
    engine = make_engine(Small(), config, json)
    fit(engine, Rows(96, 32), config, seed=3)
    return engine._average is not None, engine.method.state_dict()


def test_gradients_averaged_in_a_buffer_that_stays_are_those_of_deepspeed(ranks: Ranks) -> None:
    for (ours, mine), (other, theirs) in zip(
        ranks.call(trained, {}), ranks.call(trained, {"prescale_gradients": False}), strict=True
    ):
        assert ours and not other
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
