"""What baselines take from a model: fresh weights, its own moments, its fixed features."""

import torch

from cmh_models import build_method
from pipeline.encoding.baselines import untrained
from tests.jobs.models import TOWERS


def test_the_untrained_network_keeps_the_moments_and_draws_weights_from_the_seed_alone() -> None:
    method = build_method({"name": "jdsh", "code_length": 16}, TOWERS)
    with torch.no_grad():
        method.image.standardiser.mean += 3
    before = torch.random.get_rng_state()
    first, again, other = (untrained(method, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.image.standardiser.mean, method.image.standardiser.mean)
    weights = [torch.cat([p.flatten() for p in one.parameters()]) for one in (first, again, other, method)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
