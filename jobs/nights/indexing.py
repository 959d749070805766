"""Which index the night builds: what its parent release settles, what is measured or trained, the plan."""

import logging
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.nights.night import Night, Parent
from pipeline.codes import code_size
from pipeline.search.families import parse_recipe
from pipeline.search.indexing import AUTO, SETTINGS, IndexConfig
from pipeline.search.part_plans import PartsPlan, share_memory
from pipeline.search.quantisers import MOST_TRAINING_CODES, TRAINING_BYTES, keep_quantiser, train_quantiser
from pipeline.search.sampling import sample_codes

log = logging.getLogger(__name__)

LINES = 20
"""So many parts of a plan are printed one by one; the rest is counted."""


def settle_index(night: Night, parent: Parent) -> Night:
    """Take from the parent release what it settles: the recipe that was chosen for it, and its quantisers.

    A chosen recipe is kept while the towers and the targets are the same, a quantiser while the tower and
    the recipe are; `index.retrain` asks for both anew.
    """
    earlier = parent.manifest.recipe if parent.manifest else None
    if earlier is None or night.index.retrain:
        return night
    same = {side for side, name in night.facts.fingerprints.items() if earlier.fingerprints.get(side) == name}
    index = night.index
    if index.recipe == AUTO:
        if earlier.index.get("auto") != _targets(index) or len(same) < len(night.facts.fingerprints):
            return night
        kept = {name: earlier.index[name] for name in ("recipe", *SETTINGS.values()) if name in earlier.index}
        index, auto = index.model_copy(update=kept), {"auto": _targets(index)}
    else:
        auto = {}
    kept_quantisers = {
        side: digest
        for side, digest in earlier.quantisers.items()
        if side in same and earlier.index.get("recipe") == index.recipe
    }
    return replace(night, index=index, auto=auto, quantisers=kept_quantisers)


def prepare_index(night: Night, units: pa.Table, parent: Parent) -> tuple[Night, dict[str, Any]]:
    """Choose the recipe if it is asked for and not settled, and train the quantisers that are missing.

    Args:
        units: table `units` of the next release, whose code files stand in the store.
    Returns:
        the night with its index settled, and what is worth noting in the release.
    Raises:
        ValueError: no recipe is small or fast enough, or there are fewer codes than lists to train.
    """
    notes: dict[str, Any] = {}
    if night.index.recipe == AUTO:
        night, notes = _choose(night, units)
    elif night.auto and parent.manifest and "index" in parent.manifest.notes:
        notes = {"index": parent.manifest.notes["index"]}  # what was measured goes with what it chose
    family = parse_recipe(night.index.recipe)
    family.check_fits(night.facts.code_length)
    if not family.has_quantiser:
        return night, notes
    quantisers = dict(night.quantisers)
    for side, rows in _rows_by_side(units).items():
        if side not in quantisers and rows:
            quantisers[side] = _train(night, units, side)
    return replace(night, quantisers=quantisers), notes


def plan_builds(night: Night, plan: PartsPlan, *, at_once: int = 1) -> tuple[PartsPlan, int]:
    """Share the memory out among the builds of parts, and say what is built, before it is.

    Returns:
        the plan with the memory of each build, and how many may run at once, `at_once` at most.
    Raises:
        ValueError: the memory is too small for one of them.
    """
    if night.index.recipe != AUTO:
        memory, size = night.index.max_memory, code_size(night.facts.code_length)
        plan, at_once = share_memory(plan, max_memory=memory, code_size=size, at_once=at_once)
    for part in plan.parts.slice(0, LINES).to_pylist():
        log.info(
            "build %-5s part %d: %d rows of %d units, %d bytes of code files, %d bytes of memory",
            *(part[name] for name in ("side", "ordinal", "rows", "units", "code_bytes")),
            plan.memory,
        )
    if len(plan) > LINES:
        log.info("... and %d more", len(plan) - LINES)
    if len(plan):
        log.info("%d parts to build, %d rows, %d at once", len(plan), plan.rows, at_once)
    return plan, at_once


def _targets(index: IndexConfig) -> dict[str, Any]:
    return {"recall": index.target_recall, "ms": index.target_ms, "bytes": index.target_bytes}


def _rows_by_side(units: pa.Table) -> dict[str, int]:
    sides = sorted(pc.unique(units["side"]).to_pylist())
    return {
        side: pc.sum(units.filter(pc.equal(units["side"], side))["encoded"]).as_py() or 0 for side in sides
    }


def _choose(night: Night, units: pa.Table) -> tuple[Night, dict[str, Any]]:
    """Measure the side with most codes, ask it with the other side's codes, and settle for one recipe."""
    from pipeline.search.tuning import Targets, candidates, choose, draw_sample, measure, table_lines

    index, rows = night.index, _rows_by_side(units)
    side = max(rows, key=lambda name: rows[name])
    others = [name for name in rows if name != side]
    wanted = min(index.sample_rows, index.max_memory // (8 * code_size(night.facts.code_length) + 64))
    codes = sample_codes(units, side, night.store, rows=wanted, seed=index.quantiser_seed)
    asked = (
        sample_codes(units, others[0], night.store, rows=wanted, seed=1 + index.quantiser_seed)
        if others
        else codes[:0]
    )
    sample = draw_sample(codes, asked, rows=rows[side], seed=index.quantiser_seed)
    log.info("index.recipe auto: measuring %d of %d codes of side %s", len(sample.codes), rows[side], side)
    recipes = candidates(rows[side], len(sample.codes), night.facts.code_length)
    trials = measure(sample, recipes, seed=index.quantiser_seed)
    targets = Targets(index.target_recall, index.target_ms, index.target_bytes)
    chosen = choose(trials, targets, rows=rows[side], measured=len(sample.codes))
    for line in table_lines(trials, chosen):
        log.info("%s", line)
    setting = dict([chosen.setting.split("=")]) if chosen.setting else {}
    update = {"recipe": chosen.recipe} | {name: int(value) for name, value in setting.items()}
    notes = {
        "side": side,
        "codes_measured": len(sample.codes),
        "codes": rows[side],
        "queries": f"{len(sample.queries)} {sample.held_out}",
        "chosen": asdict(chosen),
        "trials": [asdict(trial) for trial in trials],
    }
    settled = replace(
        night, index=index.model_copy(update=update), auto={"auto": _targets(index)}, quantisers={}
    )
    return settled, {"index": notes}


def _train(night: Night, units: pa.Table, side: str) -> str:
    """Train the quantiser of a side on a sample that fits the memory, and keep it in the store."""
    family, size = parse_recipe(night.index.recipe), code_size(night.facts.code_length)
    fitting = night.index.max_memory // (2 * TRAINING_BYTES * size)
    rows = min(MOST_TRAINING_CODES * family.lists, fitting)
    codes = sample_codes(units, side, night.store, rows=rows, seed=night.index.quantiser_seed)
    log.info("training %d lists of side %s on %d codes", family.lists, side, len(codes))
    try:
        data = train_quantiser(codes, family, seed=night.index.quantiser_seed)
    except ValueError as error:
        raise ValueError(f"side {side}: {error}") from error
    digest = keep_quantiser(data, night.store)
    log.info("quantiser %s of side %s", digest, side)
    return digest
