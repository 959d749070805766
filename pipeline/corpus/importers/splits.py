"""Which set each imported row belongs to: in order of the rows, as papers split them, or by key."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.corpus.schema import sample_ids

REST = "rest"


@dataclass(frozen=True)
class Split:
    """A parsed rule: names with the share of each, all of it counts of rows or all of it shares of keys."""

    names: tuple[str, ...]
    bounds: tuple[float, ...]  # where each name's part ends; the last is infinite if it takes the rest
    by_key: bool

    @property
    def rows(self) -> float:
        """How many rows the rule has room for."""
        return float("inf") if self.by_key else self.bounds[-1]

    def of(self, keys: Sequence[str], *, first_row: int) -> list[str]:
        """Return the set of each row; `first_row` counts the rows kept before."""
        if self.by_key:
            places = sample_ids(keys) / 2.0**63
        else:
            places = np.arange(first_row, first_row + len(keys), dtype=np.float64)
        return [self.names[i] for i in np.searchsorted(self.bounds, places, side="right")]


def parse_split(rule: str) -> Split:
    """Read a rule: `train`, `query=2000,train=10000,retrieval=rest` or `query=5%,train=rest`.

    Counts take the rows in their order; shares go by the key, so that a row stays in its set whatever is
    imported beside it.

    Raises:
        ValueError: the rule is none of these, or shares come to more than 100 %.
    """
    if "=" not in rule:
        rule = f"{rule}={REST}"
    parts = [part.strip().partition("=") for part in rule.split(",")]
    names = tuple(name for name, _, _ in parts)
    amounts = [amount for _, _, amount in parts]
    given = amounts[:-1] if amounts[-1] == REST else amounts
    shares = [amount.endswith("%") for amount in given]
    try:
        sizes = [float(amount.removesuffix("%")) for amount in given]
    except ValueError:
        raise _wrong(rule, "an amount is no number") from None
    if not all(names) or len(set(names)) < len(names):
        raise _wrong(rule, "names must be given and differ")
    if any(shares) and not all(shares):
        raise _wrong(rule, "counts and shares do not mix")
    if any(size <= 0 for size in sizes) or not (any(shares) or all(size.is_integer() for size in sizes)):
        raise _wrong(rule, "amounts must be positive and counts whole")
    bounds = np.cumsum(sizes) / (100 if any(shares) else 1)
    if any(shares) and (bounds[-1] > 1 + 1e-9 or (len(given) == len(parts) and bounds[-1] < 1 - 1e-9)):
        raise _wrong(rule, f"shares come to {100 * bounds[-1]:g} %")
    ends = [float(bound) for bound in bounds]
    if len(given) < len(parts):
        ends.append(float("inf"))
    elif any(shares):
        ends[-1] = float("inf")
    return Split(names, tuple(ends), any(shares))


def _wrong(rule: str, why: str) -> ValueError:
    return ValueError(
        f"--split must be NAME, NAME=ROWS,...,NAME={REST} or NAME=5%,...,NAME={REST}, got {rule!r}: {why}"
    )
