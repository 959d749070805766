"""Pretrained networks under DeepSpeed: ZeRO, bf16, pieces and checkpointed activations together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmh_models import build_method
from cmh_models.pretrained import fill_settings, load_weights
from cmh_models.towers import TowersConfig
from pipeline.learning.engine import make_engine
from pipeline.learning.training import TrainConfig, fit, seed_step
from tests.learning.ranks import Ranks
from tests.learning.small import Rows
from tests.models.backbones import write_image_folder, write_text_folder

pytest.importorskip("transformers", reason="the extra `backbones` is not installed")
pytestmark = pytest.mark.slow

STEPS, BATCH = 3, 8
CONFIG = TrainConfig(epochs=1, global_batch_size=BATCH, learning_rate=0.01)
TEXTS = ("a red boat", "two houses at night", "fish", "a blue fish at night")


class Pairs(Rows):
    """Rows of pictures and texts."""

    def __init__(self) -> None:
        super().__init__(STEPS * BATCH, BATCH)
        rows = STEPS * BATCH
        pixels = np.random.default_rng(6).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
        self.columns |= {"image": pixels, "text": np.array(TEXTS * (rows // len(TEXTS)), dtype=object)}


def train(root: Path, stage: int, changed: dict[str, Any]) -> list[float]:
    """Return the losses of a short run from the published weights."""
    given: dict[str, Any] = {
        side: {"name": "transformers", "model": str(root / side), "hidden": 8} for side in ("image", "text")
    }
    given["text"]["max_tokens"] = 8
    config = TowersConfig.model_validate(given)
    towers = {
        side: fill_settings(getattr(config, side), side, root / side).model_dump(mode="json")
        for side in given
    }
    seed_step(1)
    rounds = {"feature_rounds": 1, "moment_rounds": 1, "threshold_rounds": 1}
    method = build_method({"name": "jdsh", "code_length": 16, **rounds}, towers)
    for side in given:
        load_weights(method, side, root / side)
    train_config = CONFIG.model_copy(update=changed)
    engine = make_engine(method, train_config, {"zero_optimization": {"stage": stage}})
    return fit(engine, Pairs(), train_config, seed=3).losses


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_image_folder(folder / "image")
    write_text_folder(folder / "text")
    return folder


SPARING = {"activation_checkpointing": True, "micro_batch_size": 2}


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_train_pretrained_towers_as_one_process_does(root: Path, ranks: Ranks, stage: int) -> None:
    alone = train(root, 0, {})
    for losses in ranks.call(train, root, stage, SPARING):
        np.testing.assert_allclose(losses, alone, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_bf16_of_two_ranks_is_near_single_precision(root: Path, ranks: Ranks, stage: int) -> None:
    alone = train(root, 0, {})
    for losses in ranks.call(train, root, stage, {"precision": "bf16", **SPARING}):
        assert np.abs(np.subtract(losses, alone)).max() < 0.05 * np.abs(alone).max()
        assert losses != alone
