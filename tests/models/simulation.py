"""N ranks in one process: splits a global batch, joins outputs and sums as the training loop would.

Each rank is a copy of the method, so that a rank that keeps other statistics than its neighbours is found.
"""

import copy
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from cmh_models.method import Batch, Everyone, HashMethod, Progress

START = Progress(epoch=0, step=0, total_steps=10)


@dataclass(frozen=True)
class Step:
    """What one optimiser step saw, the same for any number of ranks."""

    loss: Tensor
    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]
    method: HashMethod  # with the statistics of after the step; no weight has moved


def simulate(
    method: HashMethod, batch: Batch, ranks: int, *, progress: Progress = START, tell_rows: bool = True
) -> Step:
    """Run one step of `ranks` ranks on a global batch and return loss, gradients and statistics.

    Args:
        tell_rows: methods learn the size of the global batch, by which they choose among equal ways.
    """
    copies = [copy.deepcopy(method) for _ in range(ranks)]
    rows = len(batch["image"])
    assert rows % ranks == 0, f"{rows} rows cannot be shared by {ranks} ranks"
    share = rows // ranks
    for each in copies:
        each.global_rows = rows if tell_rows else None
    parts = [
        {name: value[r * share : (r + 1) * share] for name, value in batch.items()} for r in range(ranks)
    ]
    outputs = [rank(part, progress) for rank, part in zip(copies, parts, strict=True)]
    gathered = {name: torch.cat([output[name] for output in outputs]) for name in copies[0].gathers}
    everyone = [Everyone(gathered, start=r * share) for r in range(ranks)]
    local = [rank.sums(output) for rank, output in zip(copies, outputs, strict=True)]
    sums = {name: reduce(add, (each[name] for each in local)) for name in local[0]}

    with torch.no_grad():
        for rank, seen in zip(copies, everyone, strict=True):
            rank.update_statistics(seen, sums)
    for rank in copies[1:]:
        for name, buffer in rank.named_buffers():
            assert torch.equal(buffer, copies[0].get_buffer(name)), f"{name} differs between ranks"

    losses = [
        rank.loss(output, seen, sums, progress)
        for rank, output, seen in zip(copies, outputs, everyone, strict=True)
    ]
    terms = {}
    for name in losses[0]:
        count = sum(each[name].denominator for each in losses)
        terms[name] = sum(each[name].numerator for each in losses) / (count if count != 0 else 1)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    gradients = {
        name: sum(
            (g for rank in copies if (g := rank.get_parameter(name).grad) is not None),
            torch.zeros_like(weight),
        )
        for name, weight in method.named_parameters()
    }
    return Step(loss.detach(), {k: v.detach() for k, v in terms.items()}, gradients, copies[0])


def assert_equal_steps(one: Step, other: Step, *, relative: float = 1e-9) -> None:
    """Compare two steps: each difference relative to the largest element of its tensor."""
    scale = max(float(value.abs()) for value in one.terms.values())
    assert abs(float(one.loss - other.loss)) <= relative * scale
    for name, gradient in one.gradients.items():
        bound = relative * max(float(gradient.abs().max()), 1e-12)
        assert float((gradient - other.gradients[name]).abs().max()) <= bound, f"gradient of {name}"
    for name, buffer in one.method.named_buffers():
        same = other.method.get_buffer(name)
        finite = torch.isfinite(buffer)
        assert torch.equal(buffer[~finite], same[~finite]), name
        assert torch.allclose(buffer[finite].double(), same[finite].double(), rtol=relative, atol=1e-12), name
