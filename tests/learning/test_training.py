"""The loop: one global batch gives one loss and one gradient, however many ranks share it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.learning.engine import make_engine
from pipeline.learning.training import TrainConfig, fit, seed_step
from tests.learning.ranks import run_ranks
from tests.learning.small import BareEngine, Rows, Small

CONFIG = TrainConfig(epochs=2, global_batch_size=64, learning_rate=0.05, log_every=2)


def train_in_float64() -> tuple[list[float], list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    seed_step(3)
    engine = BareEngine(Small().double())
    result = fit(engine, Rows(192, 64), CONFIG, seed=3)
    return result.losses, engine.gradients, engine.method.state_dict()


def test_two_ranks_have_the_loss_and_gradient_of_one_in_float64(tmp_path: Path) -> None:
    losses, gradients, state = train_in_float64()
    assert len(losses) == 6
    for their_losses, their_gradients, their_state in run_ranks(train_in_float64, 2, tmp_path):
        np.testing.assert_allclose(their_losses, losses, rtol=1e-9)
        for mine, theirs in zip(gradients, their_gradients, strict=True):
            for name, gradient in mine.items():
                assert (theirs[name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name
        assert their_state["rounds"] == state["rounds"] == 6 + Small.statistics_rounds
        torch.testing.assert_close(their_state["mean"], state["mean"], rtol=1e-9, atol=0)


RATE = 1024.0  # so large that a step's change of the weights is its gradient to the last digit


def deepspeed_step(stage: int) -> tuple[float, dict[str, torch.Tensor]]:
    seed_step(3)
    step = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": RATE, "epochs": 1}
    config = CONFIG.model_copy(update=step)
    engine = make_engine(Small(), config, {"zero_optimization": {"stage": stage}})
    before = whole(engine)
    result = fit(engine, Rows(64, 64), config, seed=3)
    return result.losses[0], {name: (before[name] - after) / RATE for name, after in whole(engine).items()}


def whole(engine: Any) -> dict[str, torch.Tensor]:
    with engine.whole_weights():
        return {name: weight.detach().clone() for name, weight in engine.method.named_parameters()}


def deepspeed_stages() -> list[tuple[float, dict[str, torch.Tensor]]]:
    return [deepspeed_step(stage) for stage in range(4)]


@pytest.mark.slow
def test_deepspeed_over_two_ranks_has_the_loss_and_gradient_of_one_at_every_zero_stage(
    tmp_path: Path,
) -> None:
    loss, gradients = deepspeed_step(0)
    for stages in run_ranks(deepspeed_stages, 2, tmp_path):
        for stage, (their_loss, theirs) in enumerate(stages):
            assert abs(their_loss - loss) <= 1e-5 * abs(loss), stage
            for name, gradient in gradients.items():
                assert (theirs[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), (stage, name)
