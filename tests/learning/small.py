"""A small method that uses every part of the contract at once, its batches, and a bare engine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmh_models.method import Batch, Everyone, HashMethod, HashOutput, Progress, SideNetwork, Term
from pipeline.learning.gather import rank, world_size
from tests.models.fakes import CLASSES, WIDTH


class Head(SideNetwork):
    def __init__(self, code_length: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, code_length))

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        return self.layers(inputs)

    def collate(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=self.layers[0].weight.dtype)


class Small(HashMethod):
    """Pairs over the global batch, decorrelation through summed moments, and a running mean."""

    gathers: ClassVar[tuple[str, ...]] = ("image", "text", "labels")
    statistics_rounds = 2
    mean: Tensor

    def __init__(self, code_length: int = 16) -> None:
        super().__init__()
        self.code_length = code_length
        self.image, self.text = Head(code_length), Head(code_length)
        self.register_buffer("mean", torch.zeros(code_length))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        return {
            "image": torch.tanh(self.image(batch["image"])),
            "text": torch.tanh(self.text(batch["text"])),
            "labels": batch["labels"],
        }

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        return {
            "cross": output["image"].T @ output["text"],
            "image": output["image"].sum(0),
            "rows": torch.tensor(float(len(output["image"]))),
        }

    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        self.mean.mul_(0.9).add_(0.1 * sums["image"] / sums["rows"])
        self.rounds += 1

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        image, labels = output["image"], everyone["labels"].to(output["image"].dtype)
        similar = (output["labels"].to(image.dtype) @ labels.T > 0).to(image.dtype)
        logits = image @ everyone["text"].T / 4
        pairs = nn.functional.binary_cross_entropy_with_logits(logits, similar, reduction="sum")
        own = (output["text"] - everyone["text"][everyone.start : everyone.start + len(image)]).abs().max()
        assert own == 0, "the local rows do not stand where `start` says"
        local = torch.tensor(float(len(image)))
        cross = sums["cross"] / sums["rows"] - torch.eye(self.code_length, dtype=image.dtype)
        return {
            "pairs": Term(pairs, torch.tensor(float(logits.numel()))),
            "cross": Term(local * cross.square().mean(), local),
            "mean": Term(((image - self.mean) * image).sum(), local),
            "nothing": Term(image.sum() * 0, torch.tensor(0.0)),
        }


class Rows:
    """Drawn rows in a fixed order: each rank gets its part of every global batch."""

    def __init__(self, rows: int, global_batch_size: int, seed: int = 5) -> None:
        draw = np.random.default_rng(seed)
        self.columns = {
            "key": np.array([f"row-{n}" for n in range(rows)], dtype=object),
            "image": draw.standard_normal((rows, WIDTH)),
            "text": draw.standard_normal((rows, WIDTH)),
            "labels": (draw.random((rows, CLASSES)) < 0.4).astype(np.float32),
        }
        self.global_batch_size = global_batch_size
        self.steps_per_epoch = rows // global_batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[dict[str, Any]]:
        share = self.global_batch_size // world_size()
        for step in range(first_step, self.steps_per_epoch):
            start = step * self.global_batch_size + rank() * share
            yield {name: column[start : start + share] for name, column in self.columns.items()}


class BareEngine:
    """Averages gradients over the ranks by hand and keeps them: what any data-parallel engine does."""

    kind = "bare"

    def __init__(self, method: HashMethod, learning_rate: float = 0.1) -> None:
        self.method, self.device = method, torch.device("cpu")
        self.gradients: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        dtype = next(self.method.parameters()).dtype
        floats = {name: value.to(dtype) for name, value in batch.items() if value.is_floating_point()}
        return self.method(batch | floats, progress)

    def accumulate(self, loss: Tensor) -> None:
        self.losses.append(loss.item())
        loss.backward()

    def update(self, learning_rate: float) -> None:
        found = {}
        for name, weight in self.method.named_parameters():
            if weight.grad is None:
                continue
            if world_size() > 1:
                dist.all_reduce(weight.grad)
            weight.grad /= world_size()
            found[name] = weight.grad.clone()
            weight.data -= learning_rate * weight.grad
        self.gradients.append(found)
        self.method.zero_grad()

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def save(self, folder: Path) -> None:
        torch.save(self.method.state_dict(), folder / f"rank-{rank()}.pt")

    def load(self, folder: Path) -> None:
        self.method.load_state_dict(torch.load(folder / f"rank-{rank()}.pt", weights_only=True))
