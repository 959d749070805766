"""What turns a loss into a step: backward, the optimiser, precision, and the saved state of both.

Two engines with one face. `LocalEngine` is plain torch in one process. `DeepSpeedEngine` is DeepSpeed over
the ranks of the process group. The loop sees neither torch.distributed nor DeepSpeed.
"""

from typing import Any

import torch.distributed as dist

from cmh_models.method import HashMethod
from pipeline.learning.deepspeed_json import zero_stage
from pipeline.learning.engine.checking import check_sections
from pipeline.learning.engine.config import (
    STATE,
    Engine,
    EngineConfig,
    deepspeed_values,
    local_rows,
    piece_count,
)
from pipeline.learning.engine.local import LocalEngine, local_device
from pipeline.learning.engine.sharded import DeepSpeedEngine

__all__ = [
    "STATE",
    "DeepSpeedEngine",
    "Engine",
    "EngineConfig",
    "LocalEngine",
    "check_sections",
    "deepspeed_values",
    "engine_kind",
    "local_device",
    "local_rows",
    "make_engine",
    "piece_count",
]


def engine_kind(json: dict[str, Any]) -> str:
    """Return the kind of the engine that `make_engine` makes here."""
    if dist.is_available() and dist.is_initialized():
        return f"zero-{zero_stage(json)}"
    return "local"


def make_engine(
    method: HashMethod, config: EngineConfig, json: dict[str, Any], *, device: str = "cpu"
) -> Engine:
    """Return DeepSpeed's engine where a process group stands, else the local one."""
    if dist.is_available() and dist.is_initialized():
        return DeepSpeedEngine(method, config, json, device=device)
    return LocalEngine(method, config, device=device)
