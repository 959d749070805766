"""The label network of DSCMH: from label vectors to codes that carry their semantics, and back."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

LabelHead = Literal["code", "hidden"]


class LabelNetwork(nn.Module):
    """Linear layers with ReLU, a code, and a head that says which labels are set."""

    def __init__(self, classes: int, hidden: tuple[int, ...], code_length: int, *, head: LabelHead) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = classes
        for width in hidden:
            layers += [nn.Linear(before, width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.code = nn.Linear(before, code_length)
        self.reads = head
        self.head = nn.Linear(code_length if head == "code" else before, classes)

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (U, L) relaxed codes and (U, C) logits of the labels, of (U, C) label vectors."""
        # Targets of other networks: in full precision where training itself runs in half.
        with torch.autocast(labels.device.type, enabled=False):
            hidden = self.body(labels)
            codes = torch.tanh(self.code(hidden))
            return codes, self.head(codes if self.reads == "code" else hidden)


def class_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (U,) cross-entropies of label vectors, averaged over the classes."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def freeze(network: nn.Module) -> None:
    """Turn weights into buffers: no optimiser moves them, not even by momentum or decay."""
    for module in network.modules():
        for name, weight in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, None if weight is None else weight.detach())


def fit_frozen(
    network: LabelNetwork,
    sets: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    rate: float,
) -> None:
    """Train a frozen label network on distinct label sets, by Adam.

    Every rank does the same on the same sets and needs to hear of no other; so it costs no exchange.

    Args:
        sets: (U, C) label vectors.
        objective: the loss of (U, L) codes and (U, C) logits.
    """
    trained = {name: value.clone().requires_grad_() for name, value in network.named_buffers()}
    optimiser = torch.optim.Adam(trained.values(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            objective(*functional_call(network, trained, (sets,))).backward()
            optimiser.step()
    for name, value in network.named_buffers():
        value.copy_(trained[name].detach())
