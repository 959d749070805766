"""The loop: one global batch gives one loss and one gradient, however many ranks share it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cmh_models import build_method
from cmh_models.method import SIDES, Batch, HashMethod, HashOutput, Progress
from pipeline.codes import pack
from pipeline.learning.checkpoint import Position
from pipeline.learning.engine import LocalEngine, make_engine
from pipeline.learning.training import FitResult, Hooks, TrainConfig, fit, refuse_batch_norm, seed_step
from tests.learning.ranks import Ranks
from tests.learning.small import BareEngine, Rows, Small
from tests.models.fakes import FAKES, WIDTH

CONFIG = TrainConfig(epochs=2, global_batch_size=64, learning_rate=0.05, log_every=2)


def jdsh() -> HashMethod:
    towers = {side: {"name": "features", "width": WIDTH, "hidden": 8} for side in SIDES}
    return build_method({"name": "jdsh", "code_length": 16}, towers)


METHODS: dict[str, Callable[[], HashMethod]] = {**FAKES, "small": Small, "jdsh": jdsh}


def train_in_float64() -> dict[str, BareEngine]:
    engines = {}
    for name, make in METHODS.items():
        seed_step(3)
        engines[name] = BareEngine(make().double())
        fit(engines[name], Rows(192, 64), CONFIG, seed=3)
    return engines


def test_two_ranks_have_the_loss_and_gradient_of_one_in_float64(ranks: Ranks) -> None:
    alone = train_in_float64()
    for theirs in ranks.call(train_in_float64):
        for name, engine in alone.items():
            assert len(engine.losses) == 6
            np.testing.assert_allclose(theirs[name].losses, engine.losses, rtol=1e-9, err_msg=name)
            for mine, other in zip(engine.gradients, theirs[name].gradients, strict=True):
                for weight, gradient in mine.items():
                    largest = gradient.abs().max()
                    assert (other[weight] - gradient).abs().max() <= 1e-9 * largest, (name, weight)
            for buffer, value in engine.method.named_buffers():
                other = theirs[name].method.get_buffer(buffer)
                torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-12, msg=f"{name}: {buffer}")


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


def test_every_zero_stage_over_two_ranks_has_the_loss_and_gradient_of_one(ranks: Ranks) -> None:
    loss, gradients = deepspeed_step(0)
    for stages in ranks.call(deepspeed_stages):
        for stage, (their_loss, theirs) in enumerate(stages):
            assert abs(their_loss - loss) <= 1e-5 * abs(loss), stage
            for name, gradient in gradients.items():
                assert (theirs[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), (stage, name)


CODES = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))


def train_locally(config: TrainConfig = CONFIG, **options: Any) -> tuple[FitResult, Small]:
    seed_step(3)
    method = Small()
    return fit(LocalEngine(method, config), Rows(192, 64), config, seed=3, **options), method


def packed_codes(method: HashMethod) -> bytes:
    with torch.no_grad():
        return b"".join(pack(method.encode(side, CODES).numpy()).tobytes() for side in SIDES)


def test_two_runs_of_one_seed_are_bitwise_equal() -> None:
    (first, method), (second, again) = train_locally(), train_locally()
    assert first.losses == second.losses
    assert packed_codes(method) == packed_codes(again)
    for name, value in method.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def deepspeed_codes(stage: int) -> bytes:
    seed_step(3)
    engine = make_engine(Small(), CONFIG, {"zero_optimization": {"stage": stage}})
    fit(engine, Rows(192, 64), CONFIG, seed=3)
    with engine.whole_weights():
        return packed_codes(engine.method)


def test_two_runs_of_one_seed_on_two_ranks_give_byte_equal_codes(ranks: Ranks) -> None:
    for stage in (0, 2):
        first, second = ranks.call(deepspeed_codes, stage), ranks.call(deepspeed_codes, stage)
        assert first == second
        assert first[0] == first[1]


def test_training_lowers_the_loss_and_reports_health_of_both_sides() -> None:
    lines: list[tuple[int, dict[str, float]]] = []
    config = CONFIG.model_copy(update={"epochs": 8})
    result, _ = train_locally(
        config, hooks=Hooks(log=lambda step, scalars: lines.append((step, dict(scalars))))
    )
    assert np.mean(result.losses[-3:]) < np.mean(result.losses[:3]) - 0.1
    assert [step for step, _ in lines] == list(range(2, 25, 2))
    for name in (
        "loss_pairs",
        "image_balance",
        "text_entropy",
        "image_dead_bits",
        "learning_rate",
        "data_wait",
    ):
        assert name in lines[-1][1]
    assert lines[-1][1]["loss"] == pytest.approx(sum(result.losses[-2:]) / 2)
    assert result.metrics["epoch"] == 8 and result.position == Position(8, 24)


class Explodes(Small):
    """Breaks in the fourth forward pass of training, by one row."""

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        output = super().forward(batch, progress)
        if progress.step == 3:
            output["image"] = torch.where(
                torch.arange(len(output["image"]))[:, None] == 5, torch.nan, output["image"]
            )
        return output


def test_a_loss_that_is_not_finite_stops_with_term_step_and_row_keys() -> None:
    engine = LocalEngine(Explodes(), CONFIG)
    with pytest.raises(FloatingPointError) as caught:
        fit(engine, Rows(192, 64), CONFIG)
    assert "loss term pairs is nan, cross is nan, mean is nan" in str(caught.value)
    assert "at step 3 (epoch 1); rows whose codes are not finite: row-5;" in str(caught.value)
    for weight in engine.method.parameters():
        assert torch.isfinite(weight).all()


def keys_of_an_explosion() -> str:
    try:
        fit(BareEngine(Explodes()), Rows(192, 64), CONFIG)
    except FloatingPointError as error:
        return str(error)
    return ""


def test_every_rank_names_the_rows_of_all_ranks(ranks: Ranks) -> None:
    first, second = ranks.call(keys_of_an_explosion)
    assert first == second
    assert "row-5, row-37;" in first


def test_a_batch_norm_in_training_mode_is_refused_and_a_frozen_one_is_not() -> None:
    method = Small()
    method.image.layers.insert(1, nn.BatchNorm1d(16))
    with pytest.raises(ValueError, match=r"image\.layers\.1 is a BatchNorm in training mode"):
        refuse_batch_norm(method.train())
    refuse_batch_norm(method.eval())


def test_collapsing_codes_are_said_in_words(caplog: pytest.LogCaptureFixture) -> None:
    method = Small()
    with torch.no_grad():
        method.text.layers[2].bias.fill_(30.0)
    fit(LocalEngine(method, CONFIG), Rows(64, 64), CONFIG.model_copy(update={"epochs": 1}))
    assert "text codes are collapsing: 16 of 16 bits had one value in all of the last 64 rows" in caplog.text
    assert "image codes" not in caplog.text


def test_statistics_are_collected_before_the_first_step_however_few_batches_there_are() -> None:
    method = Small()
    config = CONFIG.model_copy(update={"epochs": 1, "statistics_steps": 5})
    fit(LocalEngine(method, config), Rows(128, 64), config)
    assert method.rounds == 5 + 2


def test_the_learning_rate_is_a_pure_function_of_the_step() -> None:
    config = TrainConfig(learning_rate=2.0, warmup_steps=3, schedule="cosine")
    assert [config.rate(step, 100) for step in range(2)] == [0.5, pytest.approx(1.0, rel=1e-3)]
    assert config.rate(50, 100) == pytest.approx(1.0)
    assert config.rate(99, 100) < 0.01
    assert TrainConfig(learning_rate=2.0).rate(77, 100) == 2.0


def test_validation_sees_the_network_as_search_will_and_goes_back_to_training() -> None:
    modes = []

    def validate(method: HashMethod) -> dict[str, float]:
        modes.append(method.training)
        return {"map_i2t": 0.5}

    config = CONFIG.model_copy(update={"validate_every_epochs": 1})
    result, method = train_locally(config, hooks=Hooks(validate=validate))
    assert modes == [False, False] and method.training
    assert result.metrics["map_i2t"] == 0.5


def test_the_clock_of_a_step_stands_still_only_while_a_checkpoint_goes_to_its_place() -> None:
    told: list[Any] = []

    def report(metrics: Mapping[str, float], folder: Path | None) -> None:
        told.append("kept" if folder else "told")

    config = CONFIG.model_copy(update={"checkpoint_every_steps": 2})
    train_locally(config, hooks=Hooks(step=told.append, report=report))
    inside, last = [2, None, "kept", 2], [3, None, "kept", 3]
    assert told[:3] == [-2, -2, -1]  # batches shown before the first step, and the wait for the first
    assert told[3:13] == [0, 1, *inside, 2, *last[:3]]
    assert told[13:] == [3, 3, 4, None, "kept", 4, 4, 5, 6, None, "kept", 6, None]


def test_bf16_computes_in_bf16_and_keeps_weights_and_statistics_in_fp32() -> None:
    config = CONFIG.model_copy(update={"precision": "bf16"})
    result, method = train_locally(config)
    assert result.losses[0] != train_locally()[0].losses[0]
    assert result.losses == pytest.approx(train_locally()[0].losses, abs=0.05)
    assert {value.dtype for value in [*method.parameters(), method.mean]} == {torch.float32}
