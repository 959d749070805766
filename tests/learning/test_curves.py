"""Fifty steps of one global batch run alike on 1, 2 and 4 ranks and with ZeRO 0 to 3.

Tolerance: every loss within 1e-4 of the one-rank run's, relative; fp32 sums in another order are what is
left, and fifty steps of Adam let them grow. TEST_LONG=1 (`make test-long`) runs every stage on every world
size.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from cmh_models import build_method
from cmh_models.method import SIDES
from pipeline.learning.engine import make_engine
from pipeline.learning.training import TrainConfig, fit, seed_step
from tests.learning.ranks import FourRanks, Ranks, SoloRank
from tests.learning.small import Rows
from tests.models.fakes import WIDTH

STEPS = 50
CONFIG = TrainConfig(epochs=10, global_batch_size=32, learning_rate=0.01, checkpoint_every_epochs=0)


def curve(stage: int, micro: int | None = None) -> list[float]:
    """Return the losses of fifty steps of JDSH with dropout."""
    tower = {"name": "features", "width": WIDTH, "hidden": 16, "dropout": 0.2}
    seed_step(3)
    method = build_method({"name": "jdsh", "code_length": 16}, {side: dict(tower) for side in SIDES})
    config = CONFIG.model_copy(update={"micro_batch_size": micro})
    engine = make_engine(method, config, {"zero_optimization": {"stage": stage}})
    return fit(engine, Rows(160, 32), config, seed=3).losses


EVERY = (*range(4), "pieces")
"""What a group of ranks runs in the long form: each ZeRO stage, and ZeRO 2 in pieces of 4 rows."""
SHORT = {1: (0,), 2: (1, 3), 4: (2,)}
"""The short form has every stage and every world size once."""


def curves(forms: tuple[int | str, ...]) -> list[list[float]]:
    return [curve(2, 4) if form == "pieces" else curve(int(form)) for form in forms]


@pytest.mark.slow
def test_the_loss_curve_depends_on_neither_world_size_nor_zero_stage(
    solo: SoloRank, ranks: Ranks, tmp_path: Path
) -> None:
    forms = dict.fromkeys(SHORT, EVERY) if os.environ.get("TEST_LONG") else SHORT
    expected = solo.call(curves, (0,))[0][0]
    assert len(expected) == STEPS and expected[-1] < expected[0]
    four = FourRanks(tmp_path)
    try:
        for size, group in ((1, solo), (2, ranks), (4, four)):
            for answer in group.call(curves, forms[size]):
                for form, losses in zip(forms[size], answer, strict=True):
                    np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg=f"{size} ranks, {form}")
    finally:
        four.close()
