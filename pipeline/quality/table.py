"""The table of methods from the records of its cells: means and spreads over seeds, and what must be said."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from pipeline.quality.protocol import JOINT, OWN
from pipeline.quality.published import BARS, BITS, WIKI_I2T, WIKI_RIVALS, WIKI_T2I

METHODS = {
    "jdsh": "JDSH",
    "dbrc": "DBRC",
    "hsidhn": "HSIDHN (reconstruction)",
    "dscmh": "DSCMH (reconstruction)",
    "djsrh": "DJSRH",
    "random": "random codes",
    "cca": "CCA",
    "cca_best": "CCA, best length",
    "cmfh": "CMFH",
    "ridge": "ridge on label codes",
}
"""Names as shown, in the order of the table."""
SUPERVISED = ("hsidhn", "dscmh", "ridge")
BASELINES = ("random", "cca", "cca_best", "cmfh", "ridge")
METRICS = ("map_i2t", "map_t2i", "map50_i2t", "map50_t2i")
_OF_ONE = ("code_length", "regulariser", "unit", "validation_map", "rows", "steps")

Row = dict[str, Any]


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return one row per set, method and code length: each metric's mean and spread over the seeds.

    Spread is the largest less the smallest. Lowest, highest and stable are the means over seeds of what ties
    could make of the number, and of ties in the order of ids.
    """
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["data"], record["method"], record["bits"]), []).append(record)
    rows = []
    for (data, method, bits), seeds in groups.items():
        row: Row = {"data": data, "method": method, "bits": bits}
        row["seeds"] = sorted(record["seed"] for record in seeds)
        if "absent" in seeds[0]:
            rows.append(row | {"absent": seeds[0]["absent"]})
            continue
        row["seconds"] = round(mean(record["seconds"] for record in seeds), 1)
        row["recipe"] = seeds[0]["recipe"]
        row["commits"] = sorted({record["commit"] for record in seeds})
        row |= {name: sorted({record[name] for record in seeds}) for name in _OF_ONE if name in seeds[0]}
        for coding in (OWN, JOINT):
            row[coding] = {name: _over_seeds([record[coding] for record in seeds], name) for name in METRICS}
        row["protocol"] = {k: v for k, v in seeds[0][OWN]["protocol"].items() if k not in ("seed", "coding")}
        rows.append(row)
    return rows


def find(rows: Sequence[Row], data: str, method: str, bits: int) -> Row | None:
    """Return a row of the table that holds numbers."""
    found = (row for row in rows if (row["data"], row["method"], row["bits"]) == (data, method, bits))
    return next((row for row in found if "absent" not in row), None)


def pair(row: Row | None, coding: str = OWN, *, metric: str = "map", of: str = "mean") -> str:
    """Return I2T / T2I of a row, three digits each."""
    if row is None:
        return "–"
    return " / ".join(digits(row[coding][f"{metric}_{way}"][of]) for way in ("i2t", "t2i"))


def digits(value: float) -> str:
    """Return a share with three digits and no leading zero."""
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def notes(rows: Sequence[Row], bits: int = 32) -> list[str]:
    """Say which method loses to which baseline, and which stays below its bar, by own towers and mAP@all."""
    told = _below_published(rows)
    for row in rows:
        if row["bits"] != bits or row["method"] in BASELINES or "absent" in row:
            continue
        name = f"{METHODS.get(row['method'], row['method'])} on {row['data']}"
        for baseline in BASELINES:
            told += _losses(name, row, find(rows, row["data"], baseline, bits), baseline)
        told += _below_bar(name, row)
    return told


def _below_published(rows: Sequence[Row]) -> list[str]:
    """Compare with published rows of Wiki: one joint code for a pair, mAP@50, ties in stable order."""
    told = []
    for method, paper in WIKI_RIVALS.items():
        for way, published in (("i2t", WIKI_I2T), ("t2i", WIKI_T2I)):
            found = [find(rows, "wiki", method, bits) for bits in BITS]
            below = [
                (bits, own, theirs)
                for row, bits, theirs in zip(found, BITS, published[paper], strict=True)
                if row is not None and (own := row[JOINT][f"map50_{way}"]["stable"]) < theirs
            ]
            if below:
                lengths, own, theirs = (", ".join(map(_shown, values)) for values in zip(*below, strict=True))
                told.append(
                    f"{METHODS[method]} on wiki at {lengths} bits, joint code, {way.upper()} mAP@50: {own}; "
                    f"below the {theirs} published for {paper}"
                )
    return told


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else digits(value)


def _losses(name: str, row: Row, other: Row | None, baseline: str) -> list[str]:
    """Name the directions in which a baseline does better; without labels none that has them is a rival."""
    if other is None or (baseline in SUPERVISED and row["method"] not in SUPERVISED):
        return []
    return [
        f"{name}, {way.upper()}: {digits(own)}, below {METHODS[baseline]} ({digits(theirs)})"
        for way in ("i2t", "t2i")
        if (own := row[OWN][f"map_{way}"]["mean"]) < (theirs := other[OWN][f"map_{way}"]["mean"])
    ]


def _below_bar(name: str, row: Row) -> list[str]:
    bar = BARS.get((row["data"], row["method"]))
    if bar is None:
        return []
    return [
        f"{name}, {way.upper()}: {digits(own)}, below the bar of {digits(least)} set before measuring"
        for way, least in zip(("i2t", "t2i"), bar, strict=True)
        if round(own := row[OWN][f"map_{way}"]["mean"], 3) < least
    ]


def _over_seeds(judged: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    values = [one["metrics"][name] for one in judged]
    summary = {"mean": mean(values), "spread": max(values) - min(values)}
    summary |= {
        tie: mean(one["ties"][name][tie] for one in judged) for tie in ("lowest", "stable", "highest")
    }
    return {key: round(value, 5) for key, value in summary.items()}
