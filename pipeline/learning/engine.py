"""What turns a loss into a step: backward, the optimiser, precision, and the saved state of both.

Two engines with one face. `LocalEngine` is plain torch in one process. `DeepSpeedEngine` is DeepSpeed over
the ranks of the process group. The loop sees neither torch.distributed nor DeepSpeed.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cmh_models.method import Batch, HashMethod, HashOutput, Progress
from pipeline.learning.deepspeed_json import complete_json
from pipeline.learning.gather import rank, world_size

STATE = "engine"
"""Name of what the engine saves, inside a checkpoint."""


class EngineConfig(BaseModel):
    """How a step is made: the part of the `train` section that the engine reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    global_batch_size: int = Field(256, ge=1)
    micro_batch_size: int | None = Field(
        None, ge=1
    )  # rows of a rank that pass the networks at once; None: all
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)  # largest norm of the gradient; None leaves it alone
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over fp32 weights

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

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Run the networks on the local rows; floating outputs come back in at least fp32."""

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """Go back from a loss that is equal on all ranks and update the weights by the average gradient."""

    def accumulate(self, loss: Tensor) -> None:
        """Go back from a part of the loss: its gradient is added to that of the parts before it."""

    def update(self, learning_rate: float) -> None:
        """Update the weights by the average over ranks of the gradient that was added up."""

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        """Make the method's weights complete on every rank, for saving it as a model."""

    def save(self, folder: Path) -> None:
        """Write this rank's share of weights, buffers and optimiser state; called by all ranks."""

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, from a folder that holds the shares of all ranks."""


class LocalEngine:
    """One process, no process group: tests, notebooks, a laptop."""

    def __init__(self, method: HashMethod, config: EngineConfig, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.method = method.to(self.device)
        self._config = config
        self._optimiser = config.make_optimiser(method)

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            return _widened(self.method(batch, progress))

    def step(self, loss: Tensor, learning_rate: float) -> None:
        self.accumulate(loss)
        self.update(learning_rate)

    def accumulate(self, loss: Tensor) -> None:
        loss.backward()

    def update(self, learning_rate: float) -> None:
        _set_rate(self._optimiser, learning_rate)
        if self._config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self._config.clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def save(self, folder: Path) -> None:
        state = {"method": self.method.state_dict(), "optimiser": self._optimiser.state_dict()}
        torch.save(state, folder / f"{STATE}.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / f"{STATE}.pt", map_location=self.device, weights_only=True)
        self.method.load_state_dict(state["method"])
        self._optimiser.load_state_dict(state["optimiser"])


class DeepSpeedEngine:
    """DeepSpeed, ZeRO 0 to 3, over the ranks of the process group that stands already.

    Under ZeRO 3 weights are whole only inside the modules' own forward: a loss that reads weights directly
    cannot run there.
    """

    def __init__(
        self, method: HashMethod, config: EngineConfig, json: dict[str, Any], *, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        values = deepspeed_values(config, json)
        deepspeed = _import_deepspeed(self.device)
        self._engine, *_ = deepspeed.initialize(
            model=method.to(self.device),
            optimizer=config.make_optimiser(method),
            config=values,
            dist_init_required=False,
        )
        self.method = method
        self._parts = 0  # of the loss, gone back from since the last update

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        return _widened(self._engine(batch, progress))

    def step(self, loss: Tensor, learning_rate: float) -> None:
        self.accumulate(loss)
        self.update(learning_rate)

    def accumulate(self, loss: Tensor) -> None:
        # Parts of one loss are added, not averaged. Only the call after the last one makes a step.
        if self._parts:
            self._engine.step()
        self._engine.backward(loss, scale_wrt_gas=False)
        self._parts += 1

    def update(self, learning_rate: float) -> None:
        _set_rate(self._engine.optimizer, learning_rate)
        self._engine.step()
        self._parts = 0

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[None]:
        if self._engine.zero_optimization_stage() < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.method.parameters())):
            yield

    def save(self, folder: Path) -> None:
        (folder / STATE).mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=STATE, save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=STATE)
        if path is None:
            raise OSError(f"DeepSpeed found no state to load in {folder / STATE}")


def make_engine(
    method: HashMethod, config: EngineConfig, json: dict[str, Any], *, device: str = "cpu"
) -> Engine:
    """Return DeepSpeed's engine where a process group stands, else the local one."""
    if dist.is_available() and dist.is_initialized():
        return DeepSpeedEngine(method, config, json, device=device)
    return LocalEngine(method, config, device=device)


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


def local_device(*, gpu: bool) -> str:
    """Return the device of a run in one process.

    Raises:
        RuntimeError: a GPU is asked for and there is none.
    """
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("resources.gpu is true but torch sees no GPU here; set it to false")
    return "cuda" if gpu else "cpu"


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, quietly and without a compiler where it lets us."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it logs to stdout, which is for results
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    try:
        # On CPU, DeepSpeed compiles a shared-memory all-reduce at first use: 30 s and a C++ compiler, for
        # ranks that share a node. The table is private: without it we only start more slowly.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    except (AttributeError, TypeError):
        if rank() == 0:
            logging.getLogger(__name__).warning("DeepSpeed may compile C++ operators now; this takes a while")
    return deepspeed


def _set_rate(optimiser: Any, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def _widened(output: HashOutput) -> HashOutput:
    narrow = (torch.bfloat16, torch.float16)
    return {name: value.float() if value.dtype in narrow else value for name, value in output.items()}
