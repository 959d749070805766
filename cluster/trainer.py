"""Ranks on a Ray cluster, by Ray Train V2: start them, restart them, keep their checkpoints."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

CHECKPOINTS = "checkpoint_"
"""What the names of the folders begin with in which Ray Train keeps checkpoints, below the run's own."""


@dataclass(frozen=True)
class RankSettings:
    """How many ranks, with what, and where their checkpoints go: same name and storage resume a run."""

    workers: int
    cpus: float
    gpu: bool
    name: str
    storage_path: str
    filesystem: pyarrow.fs.FileSystem
    max_failures: int = 3  # times that ranks died and all start again
    start_attempts: int = 10  # of a minute each, when the cluster cannot give the ranks
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    returned: Any  # by rank 0
    kept: list[str]  # names of its checkpoints' folders, below its own


def run_ranks(
    worker: Callable[[dict[str, Any]], Any], argument: dict[str, Any], settings: RankSettings
) -> Ended:
    """Run a worker function on every rank.

    A rank that dies takes its group with it; the group starts again from the newest checkpoint.

    Raises:
        RuntimeError: it failed too often; says what the worker said last.
    """
    resources = {"CPU": settings.cpus} | ({"GPU": 1.0} if settings.gpu else {})
    trainer = (TorchTrainer if _has_dashboard() else _UnwatchedTrainer)(
        worker,
        train_loop_config=argument,
        torch_config=TorchConfig(backend="nccl" if settings.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, use_gpu=settings.gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=settings.name,
            storage_path=settings.storage_path,
            storage_filesystem=settings.filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=settings.start_attempts
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        words = _last_words(error)
        if "worker group startup timed out" in words:
            words = (
                f"the cluster did not give {settings.workers} ranks of {settings.cpus:g} CPUs"
                f"{' and a GPU' if settings.gpu else ''} each: a node is gone or busy; add nodes, lower "
                "resources.workers, or wait longer (resources.worker_timeout)"
            )
        raise RuntimeError(words) from error
    kept = [Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints or []]
    return Ended(result.return_value, kept)


def _has_dashboard() -> bool:
    return bool(ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url)


class _UnwatchedTrainer(TorchTrainer):
    """Without the watcher that clears up after a controller which died.

    It asks the dashboard, and fills the log with its complaints where none runs. A cluster without one is
    private to its driver, and takes the controller's remains with it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if "PlacementGroupCleaner" not in type(callback).__name__]


class RayRank:
    """What a rank of `run_ranks` may ask of its surroundings."""

    @property
    def device(self) -> str:
        """The device of this rank."""
        import ray.train.torch

        return str(ray.train.torch.get_device())

    def report(self, metrics: Mapping[str, float], folder: Path | None) -> None:
        """Report this rank's share of a checkpoint, and metrics with it; the shares of all ranks are merged.

        Without a checkpoint nothing is reported: every report holds all ranks up.
        """
        if folder is None:
            return
        # Ray Train writes every report to the log in full, under a name that its log level does not cover.
        logging.getLogger().setLevel(logging.WARNING)
        ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def _last_words(error: TrainingFailedError) -> str:
    """Return the last line of the rank that failed first, as far as can be told: its traceback is in the log.

    When one rank fails the others lose their connection to it: theirs are not the words to pass on.
    """
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    words = {rank: _last_line(failure) for rank, failure in sorted(failures.items())}
    if not words:
        return _last_line(error)
    own = [rank for rank, line in words.items() if "Connection" not in line and "NCCL" not in line]
    rank = own[0] if own else next(iter(words))
    return f"rank {rank}: {words[rank]}"


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
