"""What a training rank asks of the place where it runs: under Ray Train, or in the job's own process."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jobs.training.plan import TrainingRun
from jobs.training.trackers import Sink, trackers
from pipeline.corpus.dataset import Decode, DecodeWithRay, decode_here
from pipeline.learning.checkpoint import CheckpointStore
from pipeline.learning.engine import local_device
from pipeline.learning.gather import rank
from pipeline.learning.journal import Bar, Journal


@dataclass(frozen=True)
class Surroundings:
    """Where a rank computes, whom it tells, and how it decodes."""

    device: str
    report: Callable[[Mapping[str, float], Path | None], None]
    decode: Decode
    bar: Bar | None  # None: JSON lines


def surroundings(plan: TrainingRun, *, bar: bool) -> Surroundings:
    """Return what a rank asks of the place where it runs: a Ray Train worker, or this process."""
    if plan.config.resources.workers:
        from ray.experimental import tqdm_ray

        from cluster.trainer import RayRank

        here = RayRank()
        return Surroundings(here.device, here.report, DecodeWithRay(), tqdm_ray.tqdm if bar else None)
    store = CheckpointStore(plan.storage, f"{plan.folder}/checkpoints")
    device = local_device(gpu=plan.config.resources.gpu)
    return Surroundings(device, store.report, decode_here, tqdm if bar else None)


@contextmanager
def journal(plan: TrainingRun, steps_per_epoch: int, start: int, *, bar: Bar | None) -> Iterator[Sink]:
    """Open the run's journal, and its trackers.

    To object storage its event files go at the ends of epochs, and when it is closed.
    """
    path = f"{plan.folder}/tensorboard"
    local = plan.storage.local(path)
    with tempfile.TemporaryDirectory() as temporary:
        total = plan.train.epochs * steps_per_epoch
        try:
            with Journal(local or Path(temporary), total, start=start, bar=bar) as note:
                if rank():
                    yield note
                    return
                with trackers(plan) as track:
                    epochs: set[float] = set()

                    def tell(step: int, scalars: Mapping[str, float]) -> None:
                        if local is None and epochs and scalars["epoch"] not in epochs:
                            note.flush()
                            plan.storage.upload_folder(Path(temporary), path)
                        epochs.add(scalars["epoch"])
                        note(step, scalars)
                        track(step, scalars)

                    yield tell
        finally:
            if local is None:
                plan.storage.upload_folder(Path(temporary), path)
