"""The settings of a step, the engine's face to the loop, and what DeepSpeed is given."""

import contextlib
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cmh_models.method import SIDES, Batch, HashMethod, HashOutput, Progress
from pipeline.learning.deepspeed_json import complete_json
from pipeline.learning.gather import world_size

STATE = "engine"
"""Name of what the engine saves, inside a checkpoint."""
BUFFERS = "buffers.pt"
"""Beside DeepSpeed's own files: the method's buffers, by rank 0."""


class EngineConfig(BaseModel):
    """How a step is made: the part of the `train` section that the engine reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    global_batch_size: int = Field(256, ge=2)  # a pair has nothing to be compared with in a batch of its own
    micro_batch_size: int | None = Field(
        None, ge=1
    )  # rows of a rank that pass the networks at once; None: all
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)  # largest norm of the gradient; None leaves it alone
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast over fp32 weights; fp16: GPUs only
    activation_checkpointing: bool = False  # keep what goes into layers, compute the rest again going back

    @property
    def half(self) -> torch.dtype | None:
        """What the networks compute in where that is not single precision."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    def prepare(self, method: HashMethod, device: torch.device) -> HashMethod:
        """Return the method as a step of these settings wants it, on its device.

        Raises:
            ValueError: the device does not compute in the precision that is asked for.
        """
        if self.precision == "fp16" and device.type == "cpu":
            raise ValueError("train.precision fp16 needs a GPU (resources.gpu=true); CPUs take bf16 or fp32")
        if self.activation_checkpointing:
            for side in SIDES:
                getattr(method, side).checkpoint_activations()
        return method.to(device)

    def make_optimiser(self, method: HashMethod) -> torch.optim.Optimizer:
        """Return the optimiser of a method's trainable weights."""
        weights = [weight for weight in method.parameters() if weight.requires_grad]
        if not weights:
            raise ValueError("the method has no trainable weights: nothing to train")
        if self.optimiser == "sgd":
            return torch.optim.SGD(
                weights, self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        adam = torch.optim.AdamW if self.optimiser == "adamw" else torch.optim.Adam
        return adam(weights, self.learning_rate, weight_decay=self.weight_decay)


class Engine(Protocol):
    """A method, where it computes, and how it learns."""

    method: HashMethod
    device: torch.device
    kind: str  # what saved it: local, or zero-0 to zero-3

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Run the networks on the local rows; floating outputs come back in at least fp32."""

    def accumulate(self, loss: Tensor) -> None:
        """Go back from a loss that is equal on all ranks, or a part of it: gradients are added up."""

    def update(self, learning_rate: float) -> None:
        """Update the weights by the average over ranks of the gradient that was added up."""

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        """Make the method's weights complete on every rank, for saving it as a model."""

    def save(self, folder: Path) -> None:
        """Write this rank's share of weights, buffers and optimiser state; called by all ranks."""

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, from a folder that holds the shares of all ranks."""


def deepspeed_values(config: EngineConfig, json: dict[str, Any], ranks: int | None = None) -> dict[str, Any]:
    """Return what DeepSpeed is given: the user's JSON with our settings in it.

    Args:
        ranks: world size; None takes that of the process group.
    Raises:
        ValueError: the JSON contradicts the `train` section, or the ranks do not divide the global batch.
    """
    rows = local_rows(config.global_batch_size, ranks or world_size())
    pieces = piece_count(config, rows)
    params: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimiser == "sgd":
        params["momentum"] = config.momentum
    return complete_json(
        json,
        {
            "train_batch_size": config.global_batch_size,
            "train_micro_batch_size_per_gpu": rows // pieces,
            "gradient_accumulation_steps": pieces,
            "gradient_clipping": config.clip or 0.0,
        },
        precision=config.precision,
        optimiser={"type": config.optimiser, "params": params},
    )


def local_rows(global_batch_size: int, ranks: int) -> int:
    """Return the rows of one rank's share of the global batch.

    Raises:
        ValueError: the ranks do not divide it.
    """
    if global_batch_size % ranks:
        raise ValueError(
            f"train.global_batch_size must be a multiple of resources.workers, got {global_batch_size} rows "
            f"for {ranks} workers; the nearest that fits is {max(1, global_batch_size // ranks) * ranks}"
        )
    return global_batch_size // ranks


def piece_count(config: EngineConfig, rows: int) -> int:
    """Return into how many pieces the rows of a rank are cut.

    Raises:
        ValueError: the pieces would not be equal.
    """
    micro = config.micro_batch_size
    if micro is None or micro >= rows:
        return 1
    if rows % micro:
        raise ValueError(
            f"train.micro_batch_size must divide the rows of a rank, got {micro} for {rows} rows "
            f"(train.global_batch_size / resources.workers)"
        )
    return rows // micro
