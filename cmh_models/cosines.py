"""What methods share that give codes the cosines of fixed features: relaxed codes, unit codes, targets."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cmh_models.method import Batch, HashOutput, Progress
from cmh_models.towers import Described, fixed

Slope = Literal["sqrt", "constant"]


def cosine_outputs(
    networks: dict[str, Described], batch: Batch, *, slope: float, precision: torch.dtype | None = None
) -> HashOutput:
    """Return, of each side, relaxed codes and `_unit`, `_described` and `_target`.

    `_unit` are the relaxed codes and `_target` the standardised descriptions, each row of length 1.

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
        output[f"{side}_unit"] = functional.normalize(output[side])
        output[f"{side}_described"] = described
        output[f"{side}_target"] = functional.normalize(scaled)
    return output


def slope_of(schedule: Slope, progress: Progress) -> float:
    """Return the slope of tanh: sqrt(epoch + 1), as DJSRH and JDSH publish it, or 1."""
    return (progress.epoch + 1) ** 0.5 if schedule == "sqrt" else 1.0
