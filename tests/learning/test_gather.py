"""Collectives over real ranks: values as in one process, gradients as autograd gives them there."""

from typing import Any

import torch

from pipeline.learning.gather import all_gather, all_sum, gather_objects, rank, world_size
from tests.learning.ranks import Ranks

RANKS, ROWS = 2, 4


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(RANKS, ROWS, 5, dtype=torch.float64, generator=generator)
    weights = torch.randn(RANKS, RANKS * ROWS, 5, dtype=torch.float64, generator=generator)
    return rows.requires_grad_(), weights


def loss_of(rank: int, everyone: torch.Tensor, total: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (everyone.sin() * weights[rank]).sum() + (rank + 1) * total.square().sum()


def on_a_rank() -> dict[str, Any]:
    rows, weights = draw()
    own = rows.detach()[rank()].clone().requires_grad_()
    everyone, total = all_gather(own), all_sum(own.sum(0))
    loss_of(rank(), everyone, total, weights).backward()
    return {
        "everyone": everyone.detach(),
        "gradient": own.grad,
        "flags": all_gather(own.detach()[:, 0] > 0),
        "half": all_gather(own.detach().to(torch.bfloat16)),
        "counts": all_sum(torch.tensor([rank(), 1])),
        "any": all_sum(own.detach()[:, 0] > 0),
        "objects": gather_objects({"rank": rank()}),
        "sizes": (rank(), world_size()),
    }


def test_collectives_have_the_values_and_gradients_of_one_process(ranks: Ranks) -> None:
    rows, weights = draw()
    everyone, total = rows.flatten(0, 1), rows.sum((0, 1))
    torch.stack([loss_of(r, everyone, total, weights) for r in range(RANKS)]).sum().backward()
    for number, found in enumerate(ranks.call(on_a_rank)):
        torch.testing.assert_close(found["everyone"], everyone.detach(), rtol=0, atol=0)
        torch.testing.assert_close(found["gradient"], rows.grad[number], rtol=1e-12, atol=0)
        assert found["flags"].tolist() == (everyone[:, 0] > 0).tolist()
        assert torch.equal(found["half"], everyone.detach().to(torch.bfloat16))
        assert found["counts"].tolist() == [0 + 1, 2]
        assert found["any"].tolist() == (rows[:, :, 0] > 0).sum(0).tolist()
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["sizes"] == (number, RANKS)


def test_without_a_process_group_everything_is_the_identity() -> None:
    tensor = torch.ones(2, 3, requires_grad=True)
    assert all_gather(tensor) is tensor and all_sum(tensor) is tensor
    assert (rank(), world_size(), gather_objects("x")) == (0, 1, ["x"])
