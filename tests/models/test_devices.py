"""Methods and devices: nothing is made on a device that a step did not name, and a GPU computes the same."""

from typing import Any

import numpy as np
import pytest
import torch

from cmh_models import build_method
from cmh_models.method import SIDES, Batch, HashMethod, Progress
from tests.models.simulation import Step, simulate

ROWS, WIDTH, CLASSES = 32, 12, 4
METHODS: dict[str, dict[str, Any]] = {
    "jdsh": {"name": "jdsh"},
    "jdsh, classes of pairs": {"name": "jdsh", "pair_means": "separate"},
    "jdsh, moments of the batch": {"name": "jdsh", "similarity": {"moments": "batch"}},
    "djsrh": {"name": "djsrh"},
    "dbrc": {"name": "dbrc"},
    "hsidhn": {"name": "hsidhn"},
    "dscmh": {"name": "dscmh", "classes": CLASSES},
}
FEATURES = {side: {"name": "features", "width": WIDTH, "hidden": 8, "dropout": 0.2} for side in SIDES}
TOWERS: dict[str, dict[str, Any]] = {
    "features": FEATURES,
    "descriptor": {"image": {"name": "descriptor", "image_size": 32}, "text": {"name": "bag"}},
    "cnn": {"image": {"name": "cnn", "image_size": 32}, "text": {"name": "bag"}},
}


def made(method: str, towers: str, device: str = "cpu") -> tuple[HashMethod, Batch]:
    """Return a method, and a batch of drawn rows for it."""
    torch.manual_seed(0)
    built = build_method(METHODS[method] | {"code_length": 16}, TOWERS[towers]).to(device).train()
    rng = np.random.default_rng(0)
    rows: dict[str, Any] = {side: rng.random((ROWS, WIDTH), np.float32) for side in SIDES}
    if towers != "features":
        rows["image"] = rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8)
        rows["text"] = [f"a red boat {number % 5}" for number in range(ROWS)]
    batch = {side: built.collate(side, rows[side]).to(device) for side in SIDES}
    labels = torch.as_tensor(rng.random((ROWS, CLASSES)) < 0.5, dtype=torch.float32, device=device)
    return built, batch | {"labels": labels}


def step(method: HashMethod, batch: Batch, number: int) -> Step:
    """Run a step of one rank; the next one goes on from its statistics."""
    return simulate(method, batch, 1, progress=Progress(0, number, 100))


@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_makes_nothing_on_a_device_of_its_own(method: str, towers: str) -> None:
    built, batch = made(method, towers)
    for number in range(built.statistics_rounds + 2):
        # What is made without a device lands on "meta", and cannot be mixed with the batch.
        with torch.device("meta"):
            found = step(built, batch, number)
        assert found.loss.device.type == "cpu"
        built = found.method
    assert {buffer.device.type for buffer in built.buffers()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_computes_the_loss_and_the_gradient_of_the_cpu(method: str, towers: str) -> None:
    (here, batch), (there, moved) = made(method, towers), made(method, towers, "cuda")
    for number in range(here.statistics_rounds + 2):
        one, other = step(here, batch, number), step(there, moved, number)
        torch.testing.assert_close(other.loss.cpu(), one.loss, rtol=1e-4, atol=1e-6)
        here, there = one.method, other.method
    for name, gradient in one.gradients.items():
        error = (other.gradients[name].cpu() - gradient).norm() / gradient.norm().clamp_min(1e-12)
        assert float(error) < 1e-3, name
