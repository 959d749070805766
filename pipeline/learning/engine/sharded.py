"""The engine of several ranks: DeepSpeed over the process group that stands already."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmh_models.method import Batch, HashMethod, HashOutput, Progress
from pipeline.learning.engine.averaging import FlatAverage
from pipeline.learning.engine.config import BUFFERS, STATE, EngineConfig, deepspeed_values
from pipeline.learning.engine.local import set_rate, widened
from pipeline.learning.gather import rank

AVERAGING = {"communication_data_type", "gradient_predivide_factor", "prescale_gradients", "sparse_gradients"}
"""Keys of DeepSpeed's JSON that say how gradients are averaged: where one is given, DeepSpeed does it."""


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
        deepspeed = import_deepspeed(self.device)
        self._engine, *_ = deepspeed.initialize(
            model=config.prepare(method, self.device),
            optimizer=config.make_optimiser(method),
            config=values,
            dist_init_required=False,
        )
        self.method = method
        self.kind = f"zero-{self._engine.zero_optimization_stage()}"
        self._parts = 0  # of the loss, gone back from since the last update
        self._average: FlatAverage | None = None
        weights = [weight for weight in method.parameters() if weight.requires_grad]
        alike = len({weight.dtype for weight in weights}) == 1
        if self.kind == "zero-0" and alike and not AVERAGING & json.keys():
            self._engine.enable_backward_allreduce = False
            self._average = FlatAverage(weights)

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        return widened(self._engine(batch, progress))

    def accumulate(self, loss: Tensor) -> None:
        # Parts of one loss are added, not averaged. Only the call after the last one makes a step.
        if self._parts:
            self._engine.step()
        self._engine.backward(loss, scale_wrt_gas=False)
        self._parts += 1

    def update(self, learning_rate: float) -> None:
        set_rate(self._engine.optimizer, learning_rate)
        if self._average is not None:
            self._average()
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
        if rank() == 0:
            kept = self.method.state_dict().keys()  # a network may have buffers that belong to no state
            buffers = {name: value.cpu() for name, value in self.method.named_buffers() if name in kept}
            torch.save(buffers, folder / STATE / BUFFERS)

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=STATE)
        if path is None:
            raise OSError(f"DeepSpeed found no state to load in {folder / STATE}")


def import_deepspeed(device: torch.device) -> Any:
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
