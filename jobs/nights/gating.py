"""The gate of a night: hands samples to the checks of `pipeline.quality.gate`, and says what they found.

Its cost follows the samples, not the corpus.
"""

import logging
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from jobs.nights.gated_parts import Candidate, search_parts
from jobs.nights.gated_rows import encode_again
from jobs.nights.night import Night, Parent
from pipeline.quality import gate
from pipeline.quality.gate import Check, GateReport
from pipeline.releases.forgetting import forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.planning import Plan

log = logging.getLogger(__name__)

CANARY = ("map_i2t", "map_t2i")
"""Metrics by which the canary is judged."""


def refuse_new_model(night: Night, parent: Parent, *, accepted: bool) -> GateReport | None:
    """Refuse another tower than the parent's before any work is done, unless it is accepted."""
    changed = changed_sides(night, parent)
    if not changed or accepted:
        return None
    words = (
        f"the tower of {' and '.join(changed)} is another than that of release {parent.digest}: every code of"
        " it would change; pass --accept-new-model, or fill another store.channel and promote it"
    )
    return _told(GateReport((Check("model", "refused", words),)))


def changed_sides(night: Night, parent: Parent) -> list[str]:
    """Return the sides whose tower is not the parent's; none on a first night."""
    if parent.manifest is None:
        return []
    before = parent.manifest.recipe.fingerprints
    return sorted(side for side, mark in night.facts.fingerprints.items() if before.get(side) != mark)


def check_gate(night: Night, plan: Plan, parent: Parent, tables: Mapping[str, pa.Table]) -> GateReport:
    """Measure what a night would publish.

    Args:
        tables: of the candidate: every file that they name stands in the store.
    """
    candidate = Candidate(night, plan, parent, tables)
    changed = changed_sides(night, parent)
    rng, forgotten = candidate.rng(), forgotten_keys(Log(night.store))
    checks: list[Check] = []
    for side in candidate.sides:
        samples, codes = search_parts(candidate, side, rng=rng, forgotten=forgotten)
        checks.append(gate.check_recall(side, samples, candidate.limits))
        checks.append(gate.check_self_hits(side, samples, candidate.limits))
        checks += gate.check_bits(side, codes, candidate.limits)
    for side in candidate.sides:
        if parent.manifest is None or side in changed:
            why = "a first release" if parent.manifest is None else "a new model"
            words = f"{why}: there is nothing to compare with"
            checks += [Check(f"{name}, {side}", "skipped", words) for name in ("reused rows", "rows")]
            continue
        checks.append(gate.check_flips(side, *encode_again(candidate, side, rng=rng), candidate.limits))
        before, now = (_encoded(units, side) for units in (parent.units, tables["units"]))
        checks.append(gate.check_row_drop(side, before, now, candidate.limits))
    checks += gate.check_canary(_judge_canary(candidate), _canary_before(parent), candidate.limits)
    return _told(GateReport(tuple(checks)))


def _told(report: GateReport) -> GateReport:
    for line, check in zip(report.lines(), report.checks, strict=True):
        (log.warning if check.verdict == "refused" else log.info)("%s", line)
    return report


def _encoded(units: pa.Table, side: str) -> int:
    return pc.sum(units.filter(pc.equal(units["side"], side))["encoded"]).as_py() or 0


def _judge_canary(candidate: Candidate) -> dict[str, float] | None:
    """Judge the night's model on the canary pairs, by the queries and the retrieval rows that they name."""
    config, canary = candidate.night.config, candidate.limits.canary
    if canary is None:
        return None
    from jobs.judging.judgement import judge

    data = config.data.model_copy(update={"path": canary, "scenes": None})
    encode = config.encode.model_copy(update={"model": candidate.night.facts.digest})
    judged = judge(config.model_copy(update={"data": data, "encode": encode}))
    metrics = judged.evaluations["model"].metrics
    return {name: metrics[name] for name in CANARY}


def _canary_before(parent: Parent) -> dict[str, float] | None:
    """Return what the parent release noted of the canary; None on a first night."""
    if parent.manifest is None:
        return None
    checks = parent.manifest.notes.get("gate", {}).get("checks", [])
    return {
        check["name"].removeprefix("canary "): check["measured"]
        for check in checks
        if check["name"].startswith("canary map")
        and check["measured"] is not None
        and "," not in check["name"]
    }
