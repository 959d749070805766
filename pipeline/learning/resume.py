"""An engine that goes on where a checkpoint stands, on as many ranks and with the ZeRO stage of today.

The same engine on as many ranks reads back what it wrote. ZeRO's shares of another number of ranks go
through DeepSpeed's universal form, on this node. Where that does not reach (plain torch to DeepSpeed, ZeRO 3
to 2, an optimiser other than Adam) weights and buffers go on and the optimiser starts fresh; the log says so.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmh_models.method import HashMethod
from pipeline.learning.checkpoint import INDEX, START, Position, check_facts, read_index
from pipeline.learning.engine import Engine, EngineConfig, engine_kind, make_engine
from pipeline.learning.engine.conversion import saved_buffers, saved_weights, to_universal
from pipeline.learning.gather import rank, world_size
from pipeline.learning.once import made_once

log = logging.getLogger(__name__)

SAME, UNIVERSAL, WEIGHTS = "same", "universal", "weights"


@dataclass(frozen=True)
class Resumed:
    """An engine, where it stands, and what was measured there."""

    engine: Engine
    position: Position = START
    metrics: dict[str, float] = field(default_factory=dict)


def way(index: Mapping[str, Any], config: EngineConfig, kind: str, ranks: int) -> str:
    """Return how a checkpoint reaches an engine.

    Args:
        index: of the checkpoint.
        kind: of the engine that goes on, on so many ranks.
    """
    old, sharded = index["engine"], kind not in ("local", "zero-0")
    if old == kind and (index["world_size"] == ranks or not sharded):
        return SAME
    families = ({"zero-1", "zero-2"}, {"zero-3"})
    together = any({old, kind} <= family for family in families)
    return UNIVERSAL if together and config.optimiser != "sgd" else WEIGHTS


def open_engine(
    method: HashMethod,
    config: EngineConfig,
    json: dict[str, Any],
    *,
    folder: Path | None,
    facts: Mapping[str, Any],
    device: str = "cpu",
) -> Resumed:
    """Return an engine that goes on from a checkpoint, or a fresh one where there is none.

    Args:
        json: the `deepspeed` section.
        folder: a complete checkpoint.
        facts: what the checkpoint must share with this run.
    Raises:
        OSError: the checkpoint is not complete.
        ValueError: it belongs to another run: says what differs.
    """
    if folder is None:
        return Resumed(make_engine(method, config, json, device=device))
    index = read_index(folder)
    check_facts(index, facts)
    how = way(index, config, engine_kind(json), world_size())
    if how == UNIVERSAL:
        name = f"universal {folder} {(folder / INDEX).read_text()}"
        with made_once(name, lambda target: to_universal(folder, target)) as (converted, error):
            if converted is not None:
                settings = json | {"checkpoint": json.get("checkpoint", {}) | {"load_universal": True}}
                engine = make_engine(method, config, settings, device=device)
                engine.load(converted)
                _load_buffers(engine.method, folder)
            else:
                _tell(f"DeepSpeed cannot convert its checkpoint ({error})")
                how = WEIGHTS
    if how == WEIGHTS:
        _tell(
            f"checkpoint of {index['world_size']} x {index['engine']}: weights go on, the optimiser is fresh"
        )
        method.load_state_dict(saved_weights(folder, index["engine"]))
        engine = make_engine(method, config, json, device=device)
    elif how == SAME:
        engine = make_engine(method, config, json, device=device)
        engine.load(folder)
    return Resumed(engine, Position(index["epoch"], index["step"]), index["metrics"])


def _load_buffers(method: HashMethod, folder: Path) -> None:
    buffers = dict(method.named_buffers())
    for name, value in saved_buffers(folder).items():
        buffers[name].copy_(value)


def _tell(message: str) -> None:
    if rank() == 0:
        log.warning("%s", message)
