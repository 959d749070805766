"""What baselines need of a model: the same networks untrained, and the fixed features it starts from."""

from typing import Any

import numpy as np
import torch

from cmh_models import build_method
from cmh_models.method import HashMethod
from pipeline.corpus.decode import Pairs
from pipeline.corpus.schema import SIDES, Side


def untrained(method: HashMethod, seed: int) -> HashMethod:
    """Return the same networks with fresh weights; moments of the data and what is not trained stay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_method(method.spec["method"], method.spec["towers"])
    frozen = {name: weight for name, weight in method.named_parameters() if not weight.requires_grad}
    fresh.load_state_dict(dict(method.named_buffers()) | frozen, strict=False)
    return fresh.eval()


@torch.inference_mode()
def describe_pairs(method: HashMethod, pairs: Pairs) -> dict[Side, np.ndarray]:
    """Return the (N, D) standardised fixed features of both sides, which similarity targets are made of.

    Words that a tower leaves out as too rare are no features: nothing but zeros would stand there.
    """
    features: dict[Side, np.ndarray] = {}
    for side in SIDES:
        network: Any = getattr(method, side)
        described = network.describe(method.collate(side, getattr(pairs, side)))
        standardised = network.standardise(described).float().numpy()
        features[side] = standardised[:, network.standardiser.is_common().numpy()]
    return features
