"""The model that did best in validation, kept beside the run while it trains."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from cmh_models.artefact import from_pretrained
from cmh_models.method import HashMethod
from jobs.training.plan import TrainingRun, keep_model
from pipeline.learning.engine import Engine
from pipeline.learning.gather import rank

SCORES = ("validation_map_i2t", "validation_map_t2i")
"""Their mean decides."""


class KeepBest:
    """The loop's `validate` hook: judges, and writes the model when it has never been better.

    What was best before a restart is remembered beside the model.
    """

    def __init__(
        self, plan: TrainingRun, engine: Engine, validate: Callable[[HashMethod], dict[str, float]]
    ) -> None:
        self._plan, self._engine, self._validate = plan, engine, validate
        self._best: float = (_noted(plan) or {"score": -1.0})["score"]

    def __call__(self, method: HashMethod) -> dict[str, float]:
        """Return the figures of the method as it stands."""
        metrics = self._validate(method)
        score = sum(metrics[name] for name in SCORES) / len(SCORES)
        if score > self._best:
            self._best = score
            with self._engine.whole_weights():
                if rank() == 0:
                    keep_model(method, self._plan, metrics, path=self._plan.best)
                    note = json.dumps({"score": score, **metrics}).encode()
                    self._plan.storage.write(_note(self._plan), note)
        return metrics


def best_model(plan: TrainingRun) -> tuple[HashMethod, dict[str, float]]:
    """Return the best model of a run, and what it reached in validation.

    Raises:
        ValueError: the run has not kept one.
    """
    noted = _noted(plan)
    if noted is None:
        raise ValueError(
            f"{plan.storage.where(plan.best)}: no best model is kept; set train.validate_every_epochs and "
            "data.split.validation"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "best"
        plan.storage.download_folder(plan.best, folder)
        return from_pretrained(folder), noted


def _note(plan: TrainingRun) -> str:
    return f"{plan.folder}/best.json"


def _noted(plan: TrainingRun) -> dict[str, float] | None:
    """Return score and metrics of the best model that a run has kept, None where it has none."""
    try:
        return dict(json.loads(plan.storage.read(_note(plan))))
    except FileNotFoundError:
        return None
