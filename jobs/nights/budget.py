"""How much of the work one run may take on: until a time, or so many units."""

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Budget:
    """Limits of a run; beyond them no unit is started, and those in flight are finished."""

    deadline: float | None = None  # by `clock`
    max_units: int | None = None
    clock: Callable[[], float] = time.monotonic

    def is_over(self) -> bool:
        """Tell whether the time is up."""
        return self.deadline is not None and self.clock() >= self.deadline

    def left(self, started: int) -> int | None:
        """Return how many units may still be started; None without a limit."""
        return None if self.max_units is None else max(0, self.max_units - started)


NO_LIMIT = Budget()


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Take the limits of one run as arguments."""
    parser.add_argument(
        "--deadline",
        metavar="MINUTES|HH:MM",
        help="start no further unit after so many minutes, or after the next HH:MM by this machine's clock",
    )
    parser.add_argument("--max-units", type=int, metavar="N", help="encode so many units at most")


def budget(args: argparse.Namespace, *, now: datetime | None = None) -> Budget:
    """Read the limits from the arguments.

    Raises:
        ValueError: an argument is neither a number of minutes nor a time of day, or not positive.
    """
    units, text = getattr(args, "max_units", None), getattr(args, "deadline", None)
    if units is not None and units < 1:
        raise ValueError(f"--max-units must be at least 1, got {units}")
    if text is None:
        return Budget(max_units=units)
    return Budget(time.monotonic() + _seconds(text, now or datetime.now()), units)


def _seconds(text: str, now: datetime) -> float:
    """Return how long it is until a deadline."""
    if found := _CLOCK.fullmatch(text):
        then = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
        return (then - now if then > now else then + timedelta(days=1) - now).total_seconds()
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 < minutes < float("inf"):
        raise ValueError(f"--deadline takes a number of minutes or a time of day like 05:30, got {text!r}")
    return 60 * minutes
