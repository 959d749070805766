"""What methods share that give codes the cosines of fixed features: relaxed codes, unit codes, targets."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from cmh_models.method import Batch, HashOutput, Progress
from cmh_models.towers import Described, fixed

Slope = Literal["sqrt", "constant"]


def cosine_outputs(
    networks: dict[str, Described], batch: Batch, *, slope: float, precision: torch.dtype | None = None
) -> HashOutput:
    """Return relaxed codes, `_described` and `_target` of each side, and `units`, the codes of both.

    `_target` are standardised descriptions, rows of length 1. `units` is (b, 2L): image and text codes, each
    of length 1.

    Args:
        slope: of tanh.
        precision: of targets and relaxed codes; None takes that of the descriptions.
    """
    output: HashOutput = {}
    for side, network in networks.items():
        with fixed(batch[side]):
            described = network.describe(batch[side])
            scaled = network.standardise(described)
            scaled = scaled if precision is None else scaled.to(precision)
        values: Tensor = network(batch[side], described)
        output[side] = torch.tanh(slope * values.to(scaled.dtype))
        output[f"{side}_described"] = described
        output[f"{side}_target"] = functional.normalize(scaled)
    output["units"] = unit_codes(output["image"], output["text"])
    return output


def unit_codes(image: Tensor, text: Tensor) -> Tensor:
    """Return (b, 2L): the codes of both sides beside each other, each scaled to length 1."""
    units: Tensor = _UnitCodes.apply(image, text)
    return units


class _UnitCodes(torch.autograd.Function):
    """One node of the graph in place of the ten that scaling two arrays would make."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor) -> Tensor:
        both = torch.stack([image, text], dim=1)
        lengths = torch.linalg.vector_norm(both, dim=2, keepdim=True).clamp_min_(1e-12)
        units = both.div_(lengths)
        ctx.save_for_backward(units, lengths)
        return units.flatten(1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        units, lengths = ctx.saved_tensors
        drawn = outer[0].view_as(units)
        along = (units * drawn).sum(2, keepdim=True)
        return torch.addcmul(drawn, units, along, value=-1).div_(lengths).unbind(1)


def slope_of(schedule: Slope, progress: Progress) -> float:
    """Return the slope of tanh: sqrt(epoch + 1), as DJSRH and JDSH publish it, or 1."""
    return (progress.epoch + 1) ** 0.5 if schedule == "sqrt" else 1.0
