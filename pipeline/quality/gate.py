"""The gate before a release: what would be published is measured on samples, and refused if it is not good.

Every check is a pure function of arrays, counts and the limits, and ends in one line of words. A check that
has nothing to compare with is skipped, and says so: nothing passes in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.quality.metrics import ann_recall, bit_health

Verdict = Literal["passed", "refused", "skipped"]


class GateConfig(BaseModel):
    """What is sampled, and the limits. A value at its limit passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: int = Field(default=2, ge=1)  # index parts per side that are searched, built in this night first
    queries: int = Field(default=64, ge=1)  # per part
    k: int = Field(default=10, ge=1)  # hits per query
    min_recall: float = Field(default=0.9, ge=0, le=1)  # of the index against exact search, ties as hits
    min_self_hit: float = Field(default=0.95, ge=0, le=1)  # stored codes that find themselves at distance 0
    min_rows: int = Field(default=100, ge=1)  # fewer sampled codes say nothing of their bits
    max_balance: float = Field(default=0.95, ge=0, le=1)  # mean over bits of |mean of the bit in {-1, +1}|
    max_dead_bits: float = Field(default=0.5, ge=0, le=1)  # share of the bits that are equal in all rows
    max_collisions: float = Field(default=0.999, ge=0, le=1)  # share of rows whose code another row has
    reused_units: int = Field(default=2, ge=0)  # per side, whole and changed ones: rows encoded again
    max_flips: int = Field(default=0, ge=0)  # bits of those that may differ
    max_row_drop: float = Field(default=0.2, ge=0, le=1)  # share of a side's codes that may be gone
    canary: str | None = None  # labelled pairs, with a split of their own, that the model is judged on
    min_canary_map: float = Field(default=0.0, ge=0, le=1)  # mAP@all of either direction
    max_canary_drop: float = Field(default=0.05, ge=0, le=1)  # of it since the parent release


@dataclass(frozen=True)
class Check:
    """One check and how it ended; `words` say what was measured, what is asked, and what to do."""

    name: str
    verdict: Verdict
    words: str
    measured: float | None = None


@dataclass(frozen=True)
class GateReport:
    """All checks of one candidate."""

    checks: tuple[Check, ...]

    @property
    def refused(self) -> bool:
        """Tell whether any check refused."""
        return any(check.verdict == "refused" for check in self.checks)

    def lines(self) -> list[str]:
        """Return a line for each check."""
        return [f"gate: {check.verdict:<7} {check.name}: {check.words}" for check in self.checks]

    def as_json(self) -> dict[str, Any]:
        """Return the report as it stands in run.json and in the notes of the release."""
        return {"refused": self.refused, "checks": [asdict(check) for check in self.checks]}


@dataclass(frozen=True)
class PartSample:
    """What was asked of one index part, and the truth from the code files that it was built from."""

    found: np.ndarray  # (Q, k) distances from the index
    exact: np.ndarray  # (Q, k) distances of the k nearest codes
    self_found: np.ndarray  # (S,) bool: stored codes that came back under their own key at distance 0


def check_recall(side: str, samples: Sequence[PartSample], limits: GateConfig) -> Check:
    """Compare what the index finds with an exact search of the same rows; a tie with the last hit counts."""
    asked = [sample for sample in samples if sample.found.size]
    if not asked:
        return Check(f"recall, {side}", "skipped", "the side has no code")
    try:
        weights = [sample.found.size for sample in asked]
        recall = float(np.average([ann_recall(one.found, one.exact) for one in asked], weights=weights))
    except ValueError as error:
        words = f"{error}; delete the parts of this night and run again"
        return Check(f"recall, {side}", "refused", words, 0.0)
    queries = sum(len(sample.found) for sample in asked)
    return _at_least(
        f"recall, {side}",
        recall,
        limits.min_recall,
        f"of the {asked[0].found.shape[1]} nearest codes, {queries} queries in {len(asked)} part(s)",
        "raise the effort of the index, take another recipe, or retrain its quantiser (gate.min_recall)",
    )


def check_self_hits(side: str, samples: Sequence[PartSample], limits: GateConfig) -> Check:
    """Ask for stored codes: each must come back under its own key at distance 0."""
    asked = sum(len(sample.self_found) for sample in samples)
    if not asked:
        return Check(f"self-hit, {side}", "skipped", "the side has no code")
    share = sum(int(sample.self_found.sum()) for sample in samples) / asked
    return _at_least(
        f"self-hit, {side}",
        share,
        limits.min_self_hit,
        f"of {asked} stored codes find themselves at distance 0",
        "the parts are not of these codes: delete the parts of this night and run again (gate.min_self_hit)",
    )


def check_bits(side: str, codes: np.ndarray, limits: GateConfig) -> list[Check]:
    """Look at how the bits of a sample of codes are used: balance, dead bits, collisions."""
    if len(codes) < limits.min_rows:
        words = f"{len(codes)} codes are too few to judge bits by, gate.min_rows is {limits.min_rows}"
        return [Check(f"bits, {side}", "skipped", words)]
    health, bits = bit_health(codes), 8 * codes.shape[1]
    mend = "the model has collapsed or its inputs have changed: look at the source, or train again"
    return [
        _at_most(f"{name}, {side}", value, limit, what, f"{mend} (gate.{setting})")
        for name, value, limit, what, setting in (
            ("balance", health["balance"], limits.max_balance, "mean bias of a bit", "max_balance"),
            (
                "dead bits",
                health["dead_bits"] / bits,
                limits.max_dead_bits,
                f"of {bits} bits never change",
                "max_dead_bits",
            ),
            (
                "collisions",
                health["collisions"],
                limits.max_collisions,
                f"of {len(codes)} codes stand more than once",
                "max_collisions",
            ),
        )
    ]


def check_flips(side: str, flips: int, rows: int, limits: GateConfig) -> Check:
    """Compare reused codes with what their rows give today.

    Args:
        flips: bits that differ; all bits of a row that has no code any more.
        rows: rows compared.
    """
    if not rows:
        return Check(f"reused rows, {side}", "skipped", "no row of the sample is reused")
    verdict: Verdict = "passed" if flips <= limits.max_flips else "refused"
    words = f"{flips} bits differ in {rows} reused rows encoded again, {limits.max_flips} may"
    if verdict == "refused":
        words += "; another library or kind of machine gives other codes: run where the parent was made, or"
        words += (
            " fill a new channel, or raise gate.max_flips; where data.columns.updated is used, see whether"
        )
        words += " its tokens change with their rows"
    return Check(f"reused rows, {side}", verdict, words, float(flips))


def check_row_drop(side: str, before: int, now: int, limits: GateConfig) -> Check:
    """Compare the number of codes with that of the parent release."""
    drop = max(0.0, 1 - now / before) if before else 0.0
    return _at_most(
        f"rows, {side}",
        drop,
        limits.max_row_drop,
        f"of the codes are gone ({before} before, {now} now)",
        "see whether the source is whole; if it is meant, --set gate.max_row_drop=1 for one night",
    )


def check_canary(
    measured: Mapping[str, float] | None, before: Mapping[str, float] | None, limits: GateConfig
) -> list[Check]:
    """Judge the mAP of the canary pairs, by itself and against the parent's.

    Args:
        measured: mAP by direction; None where no canary is set.
        before: what the parent release noted, None where there is nothing to compare with.
    """
    if measured is None:
        return [Check("canary", "skipped", "gate.canary names no labelled pairs")]
    checks = []
    for name, value in sorted(measured.items()):
        mend = "the model is worse than asked: train again, or lower gate.min_canary_map"
        checks.append(
            _at_least(f"canary {name}", value, limits.min_canary_map, "mAP@all of the canary pairs", mend)
        )
        if before is None or name not in before:
            checks.append(Check(f"canary {name}, drop", "skipped", "no parent release to compare with"))
            continue
        what = f"lost since the parent release ({before[name]:.3f} before, {value:.3f} now)"
        mend = "keep the old model, or raise gate.max_canary_drop"
        drop = max(0.0, before[name] - value)
        checks.append(_at_most(f"canary {name}, drop", drop, limits.max_canary_drop, what, mend))
    return checks


def _at_least(name: str, value: float, limit: float, what: str, mend: str) -> Check:
    if value >= limit:
        return Check(name, "passed", f"{value:.4g} {what}, at least {limit:g} asked", value)
    return Check(name, "refused", f"{value:.4g} {what}, at least {limit:g} asked; {mend}", value)


def _at_most(name: str, value: float, limit: float, what: str, mend: str) -> Check:
    if value <= limit:
        return Check(name, "passed", f"{value:.4g} {what}, at most {limit:g} allowed", value)
    return Check(name, "refused", f"{value:.4g} {what}, at most {limit:g} allowed; {mend}", value)
