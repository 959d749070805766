"""Where a run's scalars go: TensorBoard always; a progress bar where somebody looks, JSON lines elsewhere."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from pipeline.learning.gather import rank

Bar = Callable[..., Any]
"""Makes a progress bar as tqdm does: `total` and `desc`; `update`, `set_description` and `close`."""


class Journal:
    """Writes on rank 0; elsewhere it does nothing. A context manager, callable as the loop's `log` hook.

    Args:
        folder: for TensorBoard's event files.
        total_steps: steps of the whole run.
        start: steps done before; what an earlier attempt wrote beyond them is hidden.
        bar: makes a progress bar; None prints JSON lines to stderr.
    """

    def __init__(self, folder: Path, total_steps: int, *, start: int = 0, bar: Bar | None = None) -> None:
        self._writer: SummaryWriter | None = None
        self._bar: Any = None
        self._done, self._total = 0, total_steps
        if rank() == 0:
            self._writer = SummaryWriter(str(folder), purge_step=start)
            self._bar = bar(total=total_steps, desc="train") if bar is not None else None
            self._advance(start)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._bar is not None:
            self._bar.close()

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Note the scalars of a step."""
        if self._writer is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        if self._bar is not None:
            if "loss" in scalars:
                self._bar.set_description(f"epoch {scalars['epoch']} loss {scalars['loss']:.4f}")
            self._advance(step)
            return
        line = {"step": step, "of": self._total} | {name: _short(value) for name, value in scalars.items()}
        # Not print(): Ray Train shows what a worker prints a second time, as a record of its own log.
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()

    def flush(self) -> None:
        """Write to the event files what was noted so far."""
        if self._writer is not None:
            self._writer.flush()

    def _advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._done)
        self._done = step


def _short(value: float) -> float:
    return float(f"{value:.5g}") if isinstance(value, float) else value
