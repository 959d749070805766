"""DeepSpeed's standard JSON, completed by our settings. Pure: reads one file at most, knows no DeepSpeed.

One owner per setting: batch size, precision, clipping and the optimiser come from the `train` section. In
the JSON they may be missing, "auto", or equal; anything else is refused by name. An "auto" elsewhere takes
DeepSpeed's default.
"""

import json
from pathlib import Path
from typing import Any

AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}
PRECISIONS = tuple(AUTOCAST)


def read_json(section: dict[str, Any] | str) -> dict[str, Any]:
    """Return the `deepspeed` section: the mapping itself, or that of the JSON file it names.

    Raises:
        ValueError: no such file, or it does not hold a JSON object.
    """
    if not isinstance(section, str):
        return section
    try:
        values = json.loads(Path(section).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"deepspeed: cannot read {section}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"deepspeed: {section} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"deepspeed: {section} must hold a JSON object, got {type(values).__name__}")
    return values


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
    values = {key: value for key, value in given.items() if key not in ("optimizer", *PRECISIONS)}
    for key, value in ours.items():
        _agree(f"deepspeed.{key}", given.get(key, "auto"), value)
    _check_precision(given, precision)
    _check_optimiser(given.get("optimizer", {}), optimiser)
    if given.get("scheduler", "auto") != "auto":
        raise ValueError("deepspeed.scheduler is not used: set train.schedule and remove it from the JSON")
    values = _without_auto(values) | ours
    # We hand over a torch.optim optimiser: DeepSpeed's own would need a compiler at start.
    values.setdefault("zero_allow_untested_optimizer", True)
    values.setdefault("steps_per_print", 2**31)
    if precision in AUTOCAST:
        values["torch_autocast"] = {"enabled": True, "dtype": AUTOCAST[precision]} | values.get(
            "torch_autocast", {}
        )
    return values


def _check_precision(given: dict[str, Any], precision: str) -> None:
    for name in PRECISIONS:
        enabled = given.get(name, {}).get("enabled", "auto")
        if enabled not in ("auto", False) and name != precision:
            raise ValueError(f"deepspeed.{name}.enabled is {enabled} but train.precision is {precision}")
        if enabled is False and name == precision:
            raise ValueError(f"deepspeed.{name}.enabled is false but train.precision is {precision}")


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


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not (isinstance(value, str) and value == "auto")
    }
