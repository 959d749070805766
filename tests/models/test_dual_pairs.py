"""Losses of pairs of a hard and a soft similarity, in any chunks, against a loop over pairs."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models.dual_pairs import DualPairs, dual_losses
from cmh_models.label_pairs import LabelSets
from tests import reference_hsidhn as reference

BITS = 8
OPTIONS: dict[str, Any] = {
    "kinds": ("hard", "soft"),
    "exclusive": False,
    "separate": True,
    "scale": 0.7,
    "chunk": 4,
}


def pairs_of(labels: torch.Tensor, columns: torch.Tensor, **options: Any) -> DualPairs:
    return DualPairs(LabelSets.of(labels), columns, **(OPTIONS | options))


def draw(seed: int, rows: int, columns: int, *, classes: int = 3) -> tuple[torch.Tensor, ...]:
    """Return codes of two sets of rows and of columns, and the labels of both; some rows have none."""
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.rand(2, n, BITS, generator=generator).double() * 2 - 1 for n in (rows, columns)]
    labels = [(torch.rand(n, classes, generator=generator) < 0.4).double() for n in (rows, columns)]
    return *codes, *labels


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 5),
    columns=st.integers(1, 7),
    kinds=st.sampled_from((("hard",), ("soft",), ("hard", "soft"))),
    exclusive=st.booleans(),
    separate=st.booleans(),
    chunk=st.integers(1, 8),
)
def test_sums_counts_and_gradients_equal_the_loop_over_pairs(
    seed: int, rows: int, columns: int, kinds: tuple, exclusive: bool, separate: bool, chunk: int
) -> None:
    own, others, labels, their = draw(seed, rows, columns)
    own.requires_grad_()
    others.requires_grad_()
    flags = {"exclusive": exclusive, "separate": separate}
    sums, counts = dual_losses(own, others, pairs_of(labels, their, kinds=kinds, chunk=chunk, **flags))
    expected, expected_counts = torch.zeros(sums.shape, dtype=torch.float64), np.zeros(counts.shape)
    for i, j in product(range(rows), range(columns)):
        similar = reference.similarity(labels[i].numpy(), their[j].numpy())
        for kind, number in reference.pair_classes(kinds, similar, **flags):
            expected_counts[kinds.index(kind), number] += 1
            for r, k in product(range(2), range(2)):
                product_ = (own[r, i] * others[k, j]).sum()
                loss = reference.pair_loss(kind, product_, similar=similar, scale=0.7, bits=BITS)
                where = torch.zeros_like(expected)
                where[r, k, kinds.index(kind), number] = 1
                expected = expected + where * loss
    assert np.array_equal(counts.numpy(), expected_counts)
    assert torch.allclose(sums, expected, rtol=1e-10, atol=1e-12)
    weights = torch.rand(sums.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((weights * sums).sum(), (own, others))
    theirs = torch.autograd.grad((weights * expected).sum(), (own, others), allow_unused=True)
    for gradient, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(gradient) if other is None else other
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-12)


def test_of_rows_with_one_label_each_no_pair_is_soft_where_a_pair_can_be_one_of_both() -> None:
    labels = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    codes = torch.zeros(1, 4, BITS, dtype=torch.float64)
    _, counts = dual_losses(codes, codes, pairs_of(labels, labels, exclusive=True))
    assert counts.tolist() == [[6, 10], [0, 0]]


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_products_stay_finite(value: float) -> None:
    codes = torch.full((1, 2, BITS), value, requires_grad=True)
    labels = torch.eye(2)
    sums, _ = dual_losses(codes, codes.detach(), pairs_of(labels, labels))
    sums.sum().backward()
    assert sums.isfinite().all()
    assert codes.grad is not None
    assert codes.grad.isfinite().all()


def test_memory_does_not_grow_with_the_columns() -> None:
    """No tensor of the graph is larger than codes: blocks are made again on the way back."""
    rows, columns = torch.zeros(1, 2, BITS, requires_grad=True), torch.zeros(1, 50, BITS)
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dual_losses(rows, columns, pairs_of(torch.ones(2, 3), torch.ones(50, 3)))
    assert max(saved) == columns.numel()
