"""The user's DeepSpeed JSON and our config: one owner per setting."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.learning.deepspeed_json import read_json, zero_stage
from pipeline.learning.engine import EngineConfig, check_sections, deepspeed_values

CONFIG = EngineConfig(global_batch_size=64, learning_rate=0.01, optimiser="adamw", clip=1.0)

HUGGING_FACE = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}},
    "scheduler": "auto",
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
}


def test_auto_takes_our_setting_or_else_the_default_of_deepspeed() -> None:
    values = deepspeed_values(CONFIG, HUGGING_FACE, 2)
    assert values["train_batch_size"] == 64
    assert values["train_micro_batch_size_per_gpu"] == 32
    assert values["gradient_clipping"] == 1.0
    assert values["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert "optimizer" not in values and "bf16" not in values and "scheduler" not in values


def test_auto_may_stand_for_a_whole_section() -> None:
    given = read_json({"optimizer": "auto", "bf16": "auto", "zero_optimization": "auto"})
    assert "zero_optimization" not in deepspeed_values(CONFIG, given, 2)
    assert zero_stage({"zero_optimization": {"stage": "auto"}}) == 0


def test_equal_settings_may_be_repeated() -> None:
    given = {"train_batch_size": 64, "optimizer": {"type": "adamw", "params": {"lr": 0.01}}}
    assert deepspeed_values(CONFIG, given, 1)["train_batch_size"] == 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_batch_size": 128}, "deepspeed.train_batch_size is 128 but the train section makes it 64"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu is 8 .* 32"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2 .* 1"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5 .* 1.0"),
        ({"bf16": {"enabled": True}}, "deepspeed.bf16.enabled is True but train.precision is fp32"),
        ({"fp16": {"enabled": True}}, "deepspeed.fp16.enabled"),
        ({"optimizer": {"type": "SGD"}}, "deepspeed.optimizer.type is sgd but train.optimiser is adamw"),
        ({"optimizer": {"params": {"lr": 1.0}}}, r"optimizer\.params\.lr is 1.0 .* 0.01"),
        ({"optimizer": {"params": {"amsgrad": True}}}, "amsgrad is not a setting of ours"),
        ({"scheduler": {"type": "WarmupLR"}}, "train.schedule"),
        (
            {"zero_optimisation": {"stage": 2}},
            "zero_optimisation: .* did you mean zero_optimization",
        ),
        ({"zero_optimization": 2}, "deepspeed.zero_optimization must be a mapping, got 2"),
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization\.stage must be 0, 1, 2 or 3, got 4"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled is true but train.precision is fp32"),
        ({"torch_autocast": True}, "deepspeed.torch_autocast must be a mapping, got True"),
        ({"zero_optimization": {"stage": "two"}}, r"zero_optimization\.stage must be .*, got 'two'"),
    ],
)
def test_a_contradiction_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepspeed_values(CONFIG, given, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"zero_optimization": {"stage": 2, "overlap_com": True}},
            r"zero_optimization\.overlap_com: .* did you mean overlap_comm\?",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "large"}},
            r"zero_optimization\.reduce_bucket_size: .*integer.*, got 'large'",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            r"zero_optimization\.offload_optimizer\.devise: .* did you mean device\?",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "disk"}}},
            r"zero_optimization\.offload_optimizer\.device: .* got 'disk'",
        ),
        ({"bf16": {"enable": True}}, r"deepspeed\.bf16\.enable: .* did you mean enabled\?"),
        ({"fp16": {"loss_scale": "big"}}, r"deepspeed\.fp16\.loss_scale: .* got 'big'"),
        ({"optimizer": {"typ": "Adam"}}, r"deepspeed\.optimizer\.typ: .* did you mean type\?"),
        ({"flops_profiler": {"profile_steps": 3}}, r"flops_profiler\.profile_steps: .* mean profile_step\?"),
        ({"activation_checkpointing": {"whatever": 3}}, r"activation_checkpointing\.whatever: .* remove it"),
        ({"comms_logger": True}, r"deepspeed\.comms_logger must be a mapping, got True"),
        ({"nebula": {"enabled": True}}, "deepspeed: DeepSpeed does not take this JSON: Nebula"),
        ({"checkpoint": {"tag_validation": "maybe"}}, "deepspeed: DeepSpeed does not take this JSON"),
    ],
)
def test_a_slip_inside_a_section_is_told_by_its_dotted_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        check_sections(given, deepspeed_values(CONFIG, given, 2))
    assert "\n" not in str(told.value)


def test_a_sound_json_passes_in_all_its_sections() -> None:
    given = HUGGING_FACE | {
        "fp16": {"enabled": "auto", "loss_scale_window": 100},
        "flops_profiler": {"enabled": False, "profile_step": 2},
        "comms_logger": {"enabled": False},
        "checkpoint": {"tag_validation": "Ignore"},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": "auto"}},
    }
    check_sections(given, deepspeed_values(CONFIG, given, 2))


@pytest.mark.parametrize(("half", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_half_is_autocast_and_may_not_be_switched_off_in_the_json(half: str, dtype: str) -> None:
    config = CONFIG.model_copy(update={"precision": half})
    assert deepspeed_values(config, {half: {"enabled": True}}, 2)["torch_autocast"]["dtype"] == dtype
    with pytest.raises(ValueError, match=rf"{half}\.enabled is false but train\.precision is {half}"):
        deepspeed_values(config, {half: {"enabled": False}}, 2)
    assert deepspeed_values(config, {"torch_autocast": {"enabled": True, "dtype": dtype}}, 2)
    with pytest.raises(ValueError, match=rf"torch_autocast\.enabled is false but train\.precision is {half}"):
        deepspeed_values(config, {"torch_autocast": {"enabled": False}}, 2)
    with pytest.raises(ValueError, match=r"torch_autocast\.dtype is float64 but"):
        deepspeed_values(config, {"torch_autocast": {"dtype": "float64"}}, 2)


def test_a_global_batch_that_the_ranks_do_not_divide_names_the_nearest_that_fits() -> None:
    with pytest.raises(ValueError, match=r"64 rows for 3 workers; the nearest that fits is 63"):
        deepspeed_values(CONFIG, {}, 3)


def test_the_json_may_be_a_path(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(HUGGING_FACE))
    assert read_json(str(file)) == read_json(HUGGING_FACE) == HUGGING_FACE


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot read"), ("{", "not JSON"), ("[]", "a JSON object")]
)
def test_a_path_that_holds_no_json_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(str(file))
