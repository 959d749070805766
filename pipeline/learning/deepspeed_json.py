"""DeepSpeed's standard JSON, completed by our settings. Pure: reads one file at most, knows no DeepSpeed.

One owner per setting: batch size, precision, clipping and the optimiser come from the `train` section. In
the JSON they may be missing, "auto", or equal; anything else is refused by name. An "auto" elsewhere takes
DeepSpeed's default.
"""

import difflib
import json
from pathlib import Path
from typing import Any

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}
PRECISIONS = tuple(AUTOCAST)
SECTIONS = ("zero_optimization", "optimizer", "torch_autocast", *PRECISIONS)
STAGES = (0, 1, 2, 3)
KEYS = (
    "activation_checkpointing",
    "checkpoint",
    "comms_logger",
    "communication_data_type",
    "flops_profiler",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "prescale_gradients",
    "scheduler",
    "steps_per_print",
    "torch_autocast",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
    *PRECISIONS,
)
"""The usual ones. DeepSpeed passes over a key that it does not know: one that looks like these is a slip."""


def read_json(section: dict[str, Any] | str) -> dict[str, Any]:
    """Return the `deepspeed` section: the mapping itself, or that of the JSON file it names.

    Raises:
        ValueError: no such file, or it does not hold a JSON object.
    """
    if not isinstance(section, str):
        return _without_auto_sections(section)
    try:
        values = json.loads(Path(section).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"deepspeed: cannot read {section}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"deepspeed: {section} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"deepspeed: {section} must hold a JSON object, got {type(values).__name__}")
    return _without_auto_sections(values)


def _without_auto_sections(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in SECTIONS or value != "auto"}


def complete_json(
    given: dict[str, Any], ours: dict[str, Any], *, precision: str, optimiser: dict[str, Any]
) -> dict[str, Any]:
    """Fill our settings into DeepSpeed's JSON.

    Args:
        given: the JSON as the user wrote it.
        ours: top-level keys that our config owns (batch sizes, clipping), with their values.
        precision: "fp32", "bf16" or "fp16"; the halves are autocast over fp32 weights: statistics stay fp32.
        optimiser: `type` and the `params` that our config owns; the JSON may repeat them, no more.
    Returns:
        What `deepspeed.initialize` takes, beside a ready torch optimiser.
    Raises:
        ValueError: the JSON contradicts our config.
    """
    _check_names(given)
    values = {key: value for key, value in given.items() if key not in ("optimizer", *PRECISIONS)}
    for key, value in ours.items():
        _agree(f"deepspeed.{key}", given.get(key, "auto"), value)
    _check_precision(given, precision)
    _check_optimiser(given.get("optimizer", {}), optimiser)
    if given.get("scheduler", "auto") != "auto":
        raise ValueError("deepspeed.scheduler is not used: set train.schedule and remove it from the JSON")
    values = without_auto(values) | ours
    # We hand over a torch.optim optimiser: DeepSpeed's own would need a compiler at start.
    values.setdefault("zero_allow_untested_optimizer", True)
    values.setdefault("steps_per_print", 2**31)
    if precision in AUTOCAST:
        values["torch_autocast"] = {"enabled": True, "dtype": AUTOCAST[precision]} | values.get(
            "torch_autocast", {}
        )
    return values


def _check_names(given: dict[str, Any]) -> None:
    for key in given:
        close = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.85)
        if close and key not in KEYS:
            raise ValueError(f"deepspeed.{key}: DeepSpeed has no such key; did you mean {close[0]}?")
    for key in SECTIONS:
        if not isinstance(given.get(key, {}), dict):
            raise ValueError(f"deepspeed.{key} must be a mapping, got {given[key]!r}")
    stage = zero_stage(given)
    if isinstance(stage, bool) or stage not in STAGES:
        raise ValueError(f"deepspeed.zero_optimization.stage must be 0, 1, 2 or 3, got {stage!r}")


def zero_stage(given: dict[str, Any]) -> Any:
    """Return the ZeRO stage that a user's JSON asks for, as it stands there."""
    stage = given.get("zero_optimization", {}).get("stage", "auto")
    return 0 if stage == "auto" else stage


def _check_precision(given: dict[str, Any], precision: str) -> None:
    for name in PRECISIONS:
        enabled = given.get(name, {}).get("enabled", "auto")
        if enabled not in ("auto", False) and name != precision:
            raise ValueError(f"deepspeed.{name}.enabled is {enabled} but train.precision is {precision}")
        if enabled is False and name == precision:
            raise ValueError(f"deepspeed.{name}.enabled is false but train.precision is {precision}")
    autocast = without_auto(given.get("torch_autocast", {}))
    if autocast.get("enabled", precision in AUTOCAST) != (precision in AUTOCAST):
        enabled = str(autocast["enabled"]).lower()
        raise ValueError(f"deepspeed.torch_autocast.enabled is {enabled} but train.precision is {precision}")
    if precision in AUTOCAST:
        _agree("deepspeed.torch_autocast.dtype", autocast.get("dtype", "auto"), AUTOCAST[precision])


def _check_optimiser(given: dict[str, Any], optimiser: dict[str, Any]) -> None:
    if (name := str(given.get("type", "auto")).lower()) not in ("auto", optimiser["type"]):
        raise ValueError(f"deepspeed.optimizer.type is {name} but train.optimiser is {optimiser['type']}")
    for key, value in given.get("params", {}).items():
        if key not in optimiser["params"] and value != "auto":
            raise ValueError(f"deepspeed.optimizer.params.{key} is not a setting of ours: remove it")
        _agree(f"deepspeed.optimizer.params.{key}", value, optimiser["params"].get(key))


def _agree(name: str, given: Any, ours: Any) -> None:
    if given == "auto" or given == ours:
        return
    raise ValueError(f"{name} is {given} but the train section makes it {ours}: remove it or make them agree")


def without_auto(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without those that are "auto", at any depth."""
    return {
        key: without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not (isinstance(value, str) and value == "auto")
    }
