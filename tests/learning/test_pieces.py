"""A batch cut into pieces has the loss and gradient of the whole: each method, on ranks, each ZeRO stage."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.method import SIDES, Batch, HashMethod, HashOutput, Progress
from pipeline.learning.engine import EngineConfig, LocalEngine, deepspeed_values, make_engine
from pipeline.learning.training import TrainConfig, fit, seed_step
from tests.learning.ranks import Ranks
from tests.learning.small import BareEngine, Rows, Small
from tests.models.fakes import CLASSES, FAKES, WIDTH

WHOLE = TrainConfig(epochs=2, global_batch_size=64, learning_rate=0.05)
CUT = WHOLE.model_copy(update={"micro_batch_size": 8})


def method(name: str, **options: Any) -> Callable[[], HashMethod]:
    tower = {"name": "features", "width": WIDTH, "hidden": 8, "dropout": 0.3}
    settings = {"name": name, "code_length": 16, **options}
    return lambda: build_method(settings, {side: dict(tower) for side in SIDES})


METHODS: dict[str, Callable[[], HashMethod]] = {
    **FAKES,
    "small": Small,
    "jdsh": method("jdsh"),
    "dbrc": method("dbrc"),
    "dscmh": method("dscmh", classes=CLASSES),
    "hsidhn": method("hsidhn"),
}


def train(name: str, config: TrainConfig) -> tuple[list[float], BareEngine]:
    seed_step(3)
    engine = BareEngine(METHODS[name]().double())
    return fit(engine, Rows(192, 64), config, seed=3).losses, engine


def check(whole: tuple[list[float], BareEngine], cut: tuple[list[float], BareEngine], name: str) -> None:
    np.testing.assert_allclose(cut[0], whole[0], rtol=1e-9, err_msg=name)
    for mine, other in zip(whole[1].gradients, cut[1].gradients, strict=True):
        assert mine.keys() == other.keys()
        for weight, gradient in mine.items():
            assert (other[weight] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), (name, weight)
    for buffer, value in whole[1].method.named_buffers():
        torch.testing.assert_close(cut[1].method.get_buffer(buffer), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_pieces_have_the_loss_and_gradient_of_the_whole_in_float64(name: str) -> None:
    check(train(name, WHOLE), train(name, CUT), name)


def train_all(config: TrainConfig) -> dict[str, tuple[list[float], BareEngine]]:
    return {name: train(name, config) for name in METHODS}


def test_pieces_on_two_ranks_have_the_loss_and_gradient_of_one_rank_and_no_pieces(ranks: Ranks) -> None:
    alone = train_all(WHOLE)
    for theirs in ranks.call(train_all, CUT):
        for name in METHODS:
            check(alone[name], theirs[name], name)


RATE = 1024.0  # so large that a step's change of the weights is its gradient to the last digit


def deepspeed_steps(stage: int, micro: int | None) -> dict[str, torch.Tensor]:
    seed_step(3)
    changes = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": RATE, "epochs": 1}
    config = WHOLE.model_copy(update=changes | {"micro_batch_size": micro})
    engine = make_engine(Small(), config, {"zero_optimization": {"stage": stage}})
    with engine.whole_weights():
        before = {name: weight.detach().clone() for name, weight in engine.method.named_parameters()}
    fit(engine, Rows(64, 64), config, seed=3)
    with engine.whole_weights():
        return {name: (before[name] - w.detach()) / RATE for name, w in engine.method.named_parameters()}


def both(stage: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return deepspeed_steps(stage, None), deepspeed_steps(stage, 8)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_adds_the_gradients_of_pieces_up(stage: int, ranks: Ranks) -> None:
    for whole, cut in ranks.call(both, stage):
        for name, gradient in whole.items():
            assert gradient.abs().max() > 0
            assert (cut[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_several_steps_of_pieces_end_in_the_same_weights_with_a_real_optimiser() -> None:
    found = []
    for config in (WHOLE, CUT):
        seed_step(3)
        trained = Small()
        fit(LocalEngine(trained, config), Rows(192, 64), config, seed=3)
        found.append(torch.cat([weight.detach().flatten() for weight in trained.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_pieces_that_do_not_divide_the_rows_of_a_rank_are_refused() -> None:
    config = EngineConfig(global_batch_size=64, micro_batch_size=12)
    with pytest.raises(
        ValueError, match=r"micro_batch_size must divide the rows of a rank, got 12 for 32 rows"
    ):
        deepspeed_values(config, {}, 2)
    values = deepspeed_values(EngineConfig(global_batch_size=64, micro_batch_size=8), {}, 2)
    assert (values["train_micro_batch_size_per_gpu"], values["gradient_accumulation_steps"]) == (8, 4)


class Scalar(Small):
    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        return super().forward(batch, progress) | {"slope": torch.ones(3)}


class Mean(Small):
    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        output = super().forward(batch, progress)
        return output | {"mean": output["image"].mean()}


def test_a_number_that_depends_on_the_rows_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"output 'mean' of the method is one number and depends on the rows"
    ):
        fit(LocalEngine(Mean(), CUT), Rows(64, 64), CUT)


def test_an_output_that_is_not_one_row_per_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"output 'slope' of the method has 24 rows for 64 of the batch"):
        fit(LocalEngine(Scalar(), CUT), Rows(64, 64), CUT)
