"""The engine of one process: plain torch, no process group."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmh_models.method import Batch, HashMethod, HashOutput, Progress
from pipeline.learning.engine.config import STATE, EngineConfig


class LocalEngine:
    """One process, no process group: tests, notebooks, a laptop."""

    kind = "local"

    def __init__(self, method: HashMethod, config: EngineConfig, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.method = config.prepare(method, self.device)
        self._config = config
        self._optimiser = config.make_optimiser(method)
        # Gradients of fp16 would vanish: they are scaled up, and down again before the weights move.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        half = self._config.half
        with torch.autocast(self.device.type, half or torch.bfloat16, enabled=half is not None):
            return widened(self.method(batch, progress))

    def accumulate(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def update(self, learning_rate: float) -> None:
        set_rate(self._optimiser, learning_rate)
        self._scaler.unscale_(self._optimiser)
        if self._config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self._config.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
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


def local_device(*, gpu: bool) -> str:
    """Return the device of a run in one process.

    Raises:
        RuntimeError: a GPU is asked for and there is none.
    """
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("resources.gpu is true but torch sees no GPU here; set it to false")
    return "cuda" if gpu else "cpu"


def set_rate(optimiser: Any, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def widened(output: HashOutput) -> HashOutput:
    narrow = (torch.bfloat16, torch.float16)
    return {name: value.float() if value.dtype in narrow else value for name, value in output.items()}
