"""What stands inside the sections of DeepSpeed's JSON, looked at by DeepSpeed's own settings classes.

Before a rank starts: there a slip would come after Ray has started, in many lines, or be passed over, where
DeepSpeed ignores a name or our config owns the section.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from pipeline.learning.deepspeed_json import without_auto
from pipeline.learning.engine.sharded import import_deepspeed

NAMES = {
    "checkpoint": ("tag_validation", "load_universal", "use_node_local_storage", "parallel_write"),
    "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    "optimizer": ("type", "params", "legacy_fusion"),
    "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
}
"""Of sections for which DeepSpeed has no class, as its documentation lists them."""


def check_sections(given: dict[str, Any], values: dict[str, Any]) -> None:
    """Check the sections of the user's JSON.

    Args:
        given: the JSON as the user wrote it; its top level is checked already.
        values: what `deepspeed_values` makes of it.
    Raises:
        ValueError: DeepSpeed has no such key, or takes no such value: by its dotted name.
    """
    if given.keys() <= {"zero_optimization"} and given.get("zero_optimization", {}).keys() <= {"stage"}:
        return  # nothing is left to be wrong, and DeepSpeed takes a while to import
    import_deepspeed(torch.device("cpu"))
    from deepspeed.runtime.config import DeepSpeedConfig

    classes, names = _classes(), _names()
    for section, inside in without_auto(given).items():
        if section in classes:
            _check_by_class(section, inside, classes[section])
        elif section in names:
            _check_mapping(section, inside)
            for key in inside:
                if key not in names[section]:
                    raise ValueError(_unknown(f"deepspeed.{section}.{key}", names[section]))
    rows = values["train_micro_batch_size_per_gpu"] * values["gradient_accumulation_steps"]
    try:
        DeepSpeedConfig(values | {"train_batch_size": rows})  # no rank is there yet: it counts one
    except Exception as error:  # it asserts, and looks into what may be of any type
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"deepspeed: DeepSpeed does not take this JSON: {told[-1].strip()}") from error


def _classes() -> dict[str, type[BaseModel]]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "bf16": DeepSpeedBF16Config,
        "comms_logger": CommsLoggerConfig,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization": DeepSpeedZeroConfig,
    }


def _names() -> dict[str, tuple[str, ...]]:
    """Return the keys of sections whose class takes any: its attributes are called as they are."""
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.activation_checkpointing.config import DeepSpeedActivationCheckpointingConfig

    return NAMES | {
        "activation_checkpointing": tuple(vars(DeepSpeedActivationCheckpointingConfig({}))),
        "flops_profiler": tuple(vars(DeepSpeedFlopsProfilerConfig({}))),
    }


def _check_by_class(section: str, inside: Any, settings: type[BaseModel]) -> None:
    _check_mapping(section, inside)
    try:
        settings(**inside)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        name = ".".join(["deepspeed", section, *place])
        if first["type"] == "extra_forbidden":
            raise ValueError(_unknown(name, _fields(settings, place[:-1]))) from error
        raise ValueError(f"{name}: {first['msg']}, got {first['input']!r}") from error


def _check_mapping(section: str, inside: Any) -> None:
    if not isinstance(inside, dict):
        raise ValueError(f"deepspeed.{section} must be a mapping, got {inside!r}")


def _fields(settings: type[BaseModel], place: list[str]) -> list[str]:
    """Return the fields of a class, or of the class of one of its fields."""
    if not place:
        return list(settings.model_fields)
    field = settings.model_fields.get(place[0])
    inside = getattr(field and field.annotation, "__args__", (field and field.annotation,))
    models = [kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return _fields(models[0], place[1:]) if models else []


def _unknown(name: str, known: Iterable[str]) -> str:
    key = name.rpartition(".")[2]
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"{name}: DeepSpeed has no such key" + (f"; did you mean {close[0]}?" if close else "; remove it")
