"""Where else a run's scalars go: Ray's metrics on a cluster; MLflow and W&B where `run.trackers` names them.

MLflow and W&B are extras, imported when asked for, and configured by their own environment variables
(MLFLOW_TRACKING_URI, WANDB_MODE, ...). A run that goes on writes on into the same record.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jobs.training.plan import TrainingRun

Sink = Callable[[int, Mapping[str, float]], None]
"""Takes the scalars of a step."""


@contextmanager
def trackers(plan: TrainingRun) -> Iterator[Sink]:
    """Open what a run wants to be tracked by; on rank 0 only.

    Raises:
        ValueError: a tracker is asked for and its package is not installed.
    """
    with ExitStack() as open_ones:
        opened = [open_ones.enter_context(OPENERS[name](plan)) for name in plan.config.run.trackers]
        sinks: list[Sink] = [*opened, *([_ray_metrics(plan)] if plan.config.resources.workers else [])]

        def tell(step: int, scalars: Mapping[str, float]) -> None:
            for sink in sinks:
                sink(step, scalars)

        yield tell


def _ray_metrics(plan: TrainingRun) -> Sink:
    """Return a sink that shows scalars as Ray metrics `hashfleet_train_*`, tagged with the run's name."""
    from cluster.metrics import run_gauges

    show = run_gauges(
        plan.config.run.name, prefix="hashfleet_train", describe=lambda name: f"{name} of the last log window"
    )
    return lambda step, scalars: show({"step": step, **scalars})


@contextmanager
def _mlflow(plan: TrainingRun) -> Iterator[Sink]:
    mlflow = _imported("mlflow", "mlflow-skinny")
    mlflow.set_experiment("hashfleet")
    note = f"{plan.folder}/mlflow"
    known = plan.storage.read(note).decode() if plan.storage.exists(note) else None
    with mlflow.start_run(run_id=known, run_name=None if known else plan.config.run.name) as run:
        if known is None:
            plan.storage.write(note, run.info.run_id.encode())
            mlflow.log_params(_flat(plan.config.model_dump(mode="json")))
        yield lambda step, scalars: mlflow.log_metrics(dict(scalars), step=step)


@contextmanager
def _wandb(plan: TrainingRun) -> Iterator[Sink]:
    wandb = _imported("wandb", "wandb")
    name = plan.config.run.name
    settings = plan.config.model_dump(mode="json")
    run = wandb.init(project="hashfleet", name=name, id=name, resume="allow", config=settings)
    try:
        yield lambda step, scalars: run.log(dict(scalars), step=step)
    finally:
        run.finish()


OPENERS: dict[str, Callable[[TrainingRun], Any]] = {"mlflow": _mlflow, "wandb": _wandb}


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that every tracker is known and installed.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if name not in OPENERS:
            raise ValueError(f"run.trackers names {name!r}; known: {', '.join(OPENERS)}")
        _imported(name, {"mlflow": "mlflow-skinny"}.get(name, name))


def _imported(module: str, package: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise ValueError(
            f"run.trackers names {module}, which is not installed here ({error}): pip install {package}"
        ) from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name, as short texts: MLflow takes nothing else."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)[:500]
    return flat
