"""A small model as an artefact folder, and the corpus it fits: what the job tests share."""

from pathlib import Path

import torch

from cmh_models import build_method
from cmh_models.artefact import save_pretrained
from cmh_models.method import HashMethod

TOWERS = {
    "image": {"name": "descriptor", "image_size": 16, "hidden": 8},
    "text": {"name": "bag", "word_buckets": 64, "pair_buckets": 0, "hidden": 8},
}


def save_model(folder: Path, *, code_length: int = 16, seed: int = 0) -> HashMethod:
    """Write an untrained JDSH model as an artefact and return it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = build_method({"name": "jdsh", "code_length": code_length}, TOWERS).eval()
    save_pretrained(method, folder, card={})
    return method
