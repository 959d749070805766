"""What baselines take from a model: fresh weights, its own moments, its fixed features."""

from typing import Any

import numpy as np
import torch

from cmh_models import build_method
from pipeline.corpus.decode import Pairs
from pipeline.encoding.baselines import describe_pairs, untrained
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


def test_words_that_are_left_out_as_rare_are_no_features() -> None:
    towers = {
        "image": {"name": "features", "width": 2},
        "text": {"name": "bag", "word_buckets": 32, "rarest": 0.5},
    }
    method = build_method({"name": "jdsh", "code_length": 16}, towers)
    texts = ["red boat", "red fish", "red rain", "blue rain"]
    pairs = Pairs(texts, np.arange(4), np.arange(4), np.ones((4, 2), np.float32), texts, None, {})
    assert describe_pairs(method, pairs)["text"].shape == (4, 32), "before any row was counted"
    network: Any = method.text
    network.standardiser.update(network.standardiser.sums(network.describe(method.collate("text", texts))))
    described = describe_pairs(method, pairs)["text"]
    assert described.shape == (4, 2), "red in three rows of four, rain in two"
    assert (described != 0).all()
