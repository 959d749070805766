"""The training loop. It is handed its batches, engine and callbacks, and runs with or without a cluster.

One optimiser step sees one global batch: N ranks of B / N rows compute the same loss and the same gradient
as one rank of B rows. Random draws of a step come from (seed, step), never from the rank. The limit of that:
torch's own dropout draws by position in the local batch, so ranks repeat one another's masks and the result
depends on how many share a batch; cmh_models.dropout draws by row, and has no such limit.
"""

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cmh_models.method import SIDES, Batch, Everyone, HashMethod, HashOutput, Progress, Term
from pipeline.learning.checkpoint import START, Position, save_checkpoint
from pipeline.learning.engine import Engine, EngineConfig
from pipeline.learning.gather import all_gather, all_sum, gather_objects, rank
from pipeline.learning.monitor import Monitor
from pipeline.learning.pieces import Pieces


class TrainConfig(EngineConfig):
    """The `train` section: how long, how fast, how often."""

    epochs: int = Field(20, ge=1)
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate; cosine ends at 0
    warmup_steps: int = Field(0, ge=0)  # steps in which the learning rate rises to its full value
    statistics_steps: int | None = Field(
        None, ge=0
    )  # batches seen before the first; None: as the method asks
    log_every: int = Field(10, ge=1)  # steps
    checkpoint_every_epochs: int = Field(1, ge=0)  # 0: only at the end
    checkpoint_every_steps: int = Field(0, ge=0)  # inside an epoch too; 0: at the ends of epochs only
    export: Literal["last", "best"] = "last"  # which model a run ends in; best: by validation
    step_timeout: float | None = Field(
        None, gt=0
    )  # seconds; a longer step tells its stacks, and as long after that it ends its rank
    validate_every_epochs: int = Field(0, ge=0)  # 0: never

    def rate(self, step: int, total_steps: int) -> float:
        """Return the learning rate of a step, a pure function of its number."""
        rate = self.learning_rate * min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "cosine":
            rate *= 0.5 + 0.5 * float(np.cos(np.pi * step / total_steps))
        return rate


class Batches(Protocol):
    """The rows of this rank, in an order that every rank knows."""

    steps_per_epoch: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[dict[str, Any]]:
        """Yield local batches: `key`, `image`, `text` and, where asked for, `labels` (b, C)."""


def _nothing(*_: Any) -> None:
    return


@dataclass(frozen=True)
class Hooks:
    """What the loop tells, and to whom. All ranks call all of them."""

    log: Callable[[int, Mapping[str, float]], None] = _nothing  # (step, scalars), every `log_every` steps
    step: Callable[[int | None], None] = (
        _nothing  # a step begins (below 0: statistics); None: what follows is none
    )
    validate: Callable[[HashMethod], dict[str, float]] | None = None
    report: Callable[[Mapping[str, float], Path | None], None] = _nothing  # (metrics, this rank's checkpoint)
    facts: Mapping[str, Any] = field(default_factory=dict)  # kept in checkpoints: what a resume must share


SILENT = Hooks()


@dataclass(frozen=True)
class FitResult:
    """How a run ended."""

    position: Position
    metrics: dict[str, float]  # at the end of the last epoch; empty when there was nothing left to train
    losses: list[float]  # of every step of this call
    cost: dict[str, float]  # rows per second, and the shares of the time that parts of a step took


def fit(
    engine: Engine,
    batches: Batches,
    config: TrainConfig,
    *,
    seed: int = 0,
    start: Position = START,
    hooks: Hooks = SILENT,
) -> FitResult:
    """Train a method from a position to the end of its epochs.

    Args:
        start: where a checkpoint stood that the engine has loaded; the data plan goes on from there.
    Raises:
        ValueError: a network cannot be trained over ranks.
        FloatingPointError: the loss is no longer finite; weights are those of the step before.
    """
    method, step = engine.method, start.step
    total_steps = config.epochs * batches.steps_per_epoch
    method.train()
    method.global_rows = config.global_batch_size
    refuse_batch_norm(method)
    if step == 0:
        collect_statistics(engine, batches, config.statistics_steps, total_steps, begin=hooks.step)
    else:
        hooks.step(step)
    monitor = Monitor(method.code_length, config.global_batch_size)
    rows_at_once = config.micro_batch_size or config.global_batch_size
    losses: list[float] = []
    metrics: dict[str, float] = {}

    def keep(position: Position, metrics: Mapping[str, float]) -> None:
        hooks.step(position.step)
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            save_checkpoint(engine, Path(folder), position, facts=hooks.facts, metrics=metrics)
            hooks.step(None)  # storage that is away is waited for: that is no step that hangs
            hooks.report(metrics, Path(folder))

    for epoch in range(start.epoch, config.epochs):
        first_step = step - epoch * batches.steps_per_epoch
        for rows in monitor.timed(batches.epoch(epoch, first_step)):
            progress = Progress(epoch, step, total_steps)
            hooks.step(step)
            seed_step(seed, step)
            pieces = Pieces(engine, rows_at_once, partial(seed_step, seed, step))

            # Forward on the local rows, then everything that the loss may know of the others.
            output = pieces.forward(to_batch(method, rows, engine.device), progress)
            monitor.lap("forward")
            sums = {name: all_sum(local) for name, local in method.sums(output).items()}
            everyone = gather_outputs(method, output)
            monitor.lap("gather")
            with torch.no_grad():
                method.update_statistics(everyone, sums)

            # The loss of the global batch, equal on all ranks, and one step on its gradient.
            terms = over_ranks(method.loss(output, everyone, sums, progress))
            values = finite_values(terms, output, rows, progress)
            monitor.lap("loss")
            pieces.backward(torch.stack(list(terms.values())).sum(), config.rate(step, total_steps))
            monitor.lap("step")

            step += 1
            losses.append(sum(values.values()))
            monitor.add(values, output)
            if step % config.log_every == 0 or step == total_steps:
                scalars = {"epoch": epoch, "learning_rate": config.rate(step - 1, total_steps)}
                hooks.log(step, monitor.read() | scalars)
            inside = step % batches.steps_per_epoch != 0
            if inside and config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
                keep(Position(epoch, step), {"epoch": epoch, "step": step, "loss": losses[-1]})
                hooks.step(step)  # the wait for the next rows counts again

        # The end of an epoch: judge, then keep.
        position, last = Position(epoch + 1, step), epoch + 1 == config.epochs
        metrics = {"epoch": epoch + 1, "step": step, "loss": losses[-1], **monitor.latest}
        if hooks.validate is not None and _due(config.validate_every_epochs, epoch, last):
            hooks.step(None)
            judged = validated(method, hooks.validate)
            hooks.log(step, {"epoch": epoch} | judged)
            metrics |= judged
        if _due(config.checkpoint_every_epochs, epoch, last):
            keep(position, metrics)
        else:
            hooks.report(metrics, None)
        hooks.step(step)
    hooks.step(None)
    return FitResult(Position(config.epochs, step), metrics, losses, monitor.cost())


def collect_statistics(
    engine: Engine,
    batches: Batches,
    steps: int | None,
    total_steps: int,
    *,
    begin: Callable[[int], None] = _nothing,
) -> None:
    """Show the method some batches before the first step, so that its moments and thresholds exist.

    They are the first batches of the run, over again where these are too few; all are trained on later.
    Each is told as a step below 0 that begins.
    """
    method = engine.method
    rounds = method.statistics_rounds if steps is None else steps
    progress = Progress(0, 0, total_steps)
    again = itertools.chain.from_iterable(batches.epoch(0) for _ in itertools.count())
    begin(-rounds)
    for left, rows in zip(range(rounds, 0, -1), again, strict=False):
        begin(-left)
        with torch.no_grad():
            output = engine.forward(to_batch(method, rows, engine.device), progress)
            sums = {name: all_sum(local) for name, local in method.sums(output).items()}
            method.update_statistics(gather_outputs(method, output), sums)


def to_batch(method: HashMethod, rows: Mapping[str, Any], device: torch.device) -> Batch:
    """Turn decoded rows into the tensors that the networks take."""
    batch: Batch = {side: method.collate(side, rows[side]).to(device) for side in SIDES}
    if "labels" in rows:
        batch["labels"] = torch.as_tensor(rows["labels"], dtype=torch.float32, device=device)
    return batch


def gather_outputs(method: HashMethod, output: HashOutput) -> Everyone:
    """Return what the method asks to see of all ranks, and where the local rows stand in it."""
    gathered = {name: all_gather(output[name]) for name in method.gathers}
    return Everyone(gathered, start=rank() * len(output["image"]))


def over_ranks(terms: Mapping[str, Term]) -> dict[str, Tensor]:
    """Return each term of the global batch: sum of numerators / sum of denominators.

    A term that nothing in the global batch belongs to (denominator 0) counts 0.
    """
    numerators = all_sum(torch.stack([term.numerator for term in terms.values()]))
    counts = all_sum(torch.stack([term.denominator.detach().to(numerators) for term in terms.values()]))
    means = numerators / torch.where(counts == 0, 1, counts)
    return dict(zip(terms, means.unbind(), strict=True))


def finite_values(
    terms: Mapping[str, Tensor], output: HashOutput, rows: Mapping[str, Any], progress: Progress
) -> dict[str, float]:
    """Return the terms as numbers.

    Raises:
        FloatingPointError: one is not finite; names it, the step, and the rows, over all ranks, whose codes
            are not finite (the whole batch when all codes are).
    """
    values = dict(zip(terms, torch.stack(list(terms.values())).detach().tolist(), strict=True))
    wrong = [f"{name} is {value}" for name, value in values.items() if not np.isfinite(value)]
    if not wrong:
        return values
    codes = torch.cat([output[side].detach() for side in SIDES], dim=1)
    broken = (~torch.isfinite(codes).all(dim=1)).cpu().numpy()
    keys = np.asarray(rows["key"], dtype=object)
    found = gather_objects((keys[broken].tolist(), keys.tolist()))
    suspects = [key for own, _ in found for key in own]
    told = suspects or [key for _, everything in found for key in everything]
    raise FloatingPointError(
        f"loss term {', '.join(wrong)} at step {progress.step} (epoch {progress.epoch}); "
        f"{'rows whose codes are not finite' if suspects else 'codes are finite; rows of the batch'}: "
        f"{', '.join(map(str, told[:8]))}{f' and {len(told) - 8} more' if len(told) > 8 else ''}; "
        "lower train.learning_rate, set train.clip, or look at these rows"
    )


def validated(method: HashMethod, validate: Callable[[HashMethod], dict[str, float]]) -> dict[str, float]:
    """Judge the method as search will use it, and go back to training."""
    method.eval()
    try:
        with torch.no_grad():
            return validate(method)
    finally:
        method.train()


def refuse_batch_norm(method: HashMethod) -> None:
    """Refuse batch statistics that one rank would take over its own rows alone.

    Raises:
        ValueError: a BatchNorm is in training mode and not synchronised.
    """
    for name, module in method.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        if batch_norm and not isinstance(module, nn.SyncBatchNorm):
            raise ValueError(
                f"{name} is a BatchNorm in training mode: it would see the rows of one rank only, and the "
                "loss would depend on the number of ranks; freeze it, use SyncBatchNorm, or another norm"
            )


def seed_step(seed: int, step: int = -1) -> None:
    """Set every random generator from (seed, step); step -1 is what comes before training."""
    state = int(np.random.SeedSequence([seed % 2**64, step + 1]).generate_state(1)[0])
    random.seed(state)
    # Towers from elsewhere may draw from numpy's old global generator.
    np.random.seed(state)  # noqa: NPY002
    torch.manual_seed(state)


def _due(every: int, epoch: int, last: bool) -> bool:
    return last or (every > 0 and (epoch + 1) % every == 0)
