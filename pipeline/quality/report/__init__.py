"""A run told as one HTML page: what was found, how often it was right, what it took, what a night changed.

The page holds its pictures, charts and style and asks for nothing else, so it opens from a folder or a mail.
What is said comes in as plain values (`content.py`); nothing is measured here.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.codes import hamming, unpack
from pipeline.quality.profiles import Curves
from pipeline.quality.report.charts import (
    Axis,
    Series,
    bar_chart,
    bit_square,
    line_chart,
    shade_square,
)
from pipeline.quality.report.content import Bits, Example, Report, Score, Stage, Stored

SHARES = (0, 0.2, 0.4, 0.6, 0.8, 1)
ASKED = {"i2t": "Pictures look for captions", "t2i": "Texts look for pictures"}
METRICS = {
    "map_i2t": "picture asks, mAP@all",
    "map_t2i": "text asks, mAP@all",
    "map50_i2t": "picture asks, mAP@50",
    "map50_t2i": "text asks, mAP@50",
}
MARKED_RADII = 8
"""Radii are written beside a curve of 64 bits at every so many bits; at other lengths in proportion."""

_HERE = Path(__file__).parent


def render(report: Report) -> str:
    """Return the page as one HTML text."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "size": size, "seconds": seconds, "jpeg": jpeg}
    codes = {"picture": "picture_code", "caption": "caption_code", "other": "other_code"}
    return environment.get_template("page.html").render(
        report=report,
        nights=report.nights,
        changed=report.nights.nights[1].ledgers[0],
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        squares={name: _square(report.example, field) for name, field in codes.items()},
        distances={name: _distance(report.example, field) for name, field in codes.items()},
        lines=[(score.name, score.kind) for score in report.scores if score.name in report.curves],
        charts=curve_charts(report.scores, report.curves),
        spread=spread_chart(report.curves[report.scores[0].name]["t2i"], report.pair_distances),
        metric_names=METRICS,
        sides=[describe_bits(bits) for bits in report.bits],
        stages=place_stages(report.stages),
        sizes=compare_sizes(report.stored),
    )


def curve_charts(scores: Sequence[Score], curves: Mapping[str, Mapping[str, Curves]]) -> list[dict[str, Any]]:
    """Return four charts: precision over recall and over rank, in both directions."""
    drawn = {score.name: (score.kind, curves[score.name]) for score in scores if score.name in curves}
    charts = []
    for direction, words in ASKED.items():
        lines = [
            Series(
                name,
                kind,
                curve[direction].recall,
                curve[direction].precision,
                _radii(kind, curve[direction]),
            )
            for name, (kind, curve) in drawn.items()
        ]
        title = f"{words}: every radius"
        svg = line_chart(lines, Axis("recall", SHARES), Axis("precision", SHARES), title=title)
        note = "Precision over recall inside each radius r; a query that finds nothing counts as 0."
        charts.append({"title": title, "svg": svg, "note": note})
    for direction, words in ASKED.items():
        lines = [
            Series(name, kind, curve[direction].ranks, curve[direction].precision_at)
            for name, (kind, curve) in drawn.items()
        ]
        last = int(lines[0].x[-1])
        title = f"{words}: precision of the first N"
        ticks = tuple(10**power for power in range(len(str(last))) if 10**power < 0.6 * last)
        svg = line_chart(lines, Axis("N", (*ticks, last), log=True), Axis("precision", SHARES), title=title)
        charts.append({"title": title, "svg": svg, "note": "Mean share of relevant rows among the first N."})
    return charts


def spread_chart(curves: Curves, pair_distances: np.ndarray) -> Markup:
    """Draw how the distances of pairs, of related rows and of unrelated rows are spread."""
    length = len(curves.related) - 1
    own = np.bincount(pair_distances, minlength=length + 1) / len(pair_distances)
    shares = {"bad": curves.unrelated, "model": curves.related, "floats": own}
    lines = [Series(kind, kind, np.arange(length + 1), share) for kind, share in shares.items()]
    ticks = tuple(range(0, length + 1, max(1, length // 8)))
    top = _round_up(max(float(share.max()) for share in shares.values()))
    title = "Distances of pairs, of related and of unrelated rows"
    return line_chart(lines, Axis("Hamming distance", ticks), Axis("share", (0, top)), title=title)


def describe_bits(bits: Bits) -> dict[str, Any]:
    """Return the charts and figures of one side's bits."""
    others = np.abs(bits.correlation[~np.eye(len(bits.correlation), dtype=bool)])
    health = bits.health
    return {
        "title": f"{bits.side.capitalize()} codes",
        "bars": bar_chart(
            bits.ones,
            Axis("bits; height: share of rows in which it is 1", (0, len(bits.ones))),
            Axis("share of ones", (0, 0.5, 1)),
            middle=0.5,
            title=f"Share of ones of each {bits.side} bit",
        ),
        "square": shade_square(bits.correlation, title=f"Correlation of {bits.side} bits"),
        "facts": [
            ("mean imbalance", f"{health['balance']:.3f}"),
            ("largest imbalance", f"{health['worst_balance']:.3f}"),
            ("entropy", f"{health['entropy']:.3f}"),
            ("dead bits", f"{health['dead_bits']:.0f}"),
            ("mean correlation", f"{others.mean() if len(others) else 0.0:.3f}"),
            ("largest correlation", f"{others.max(initial=0):.3f}"),
            ("collisions", f"{100 * health['collisions']:.1f} %"),
            ("rows sharing a code", number(bits.sharing)),
        ],
    }


def place_stages(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return the stages with their place on a common time line, in per cent."""
    total = sum(stage.seconds for stage in stages) or 1.0
    placed, start = [], 0.0
    for stage in stages:
        rate = number(round(stage.rows / stage.seconds)) if stage.rows and stage.seconds else "–"
        place = {"left": 100 * start / total, "width": 100 * stage.seconds / total, "rate": rate}
        placed.append(vars(stage) | place)
        start += stage.seconds
    return placed


def compare_sizes(stored: Sequence[Stored]) -> list[dict[str, Any]]:
    """Return what a million items take, with bars in per cent of the largest."""
    largest = max(line.per_item for line in stored)
    return [
        vars(line) | {"million": line.per_item * 1e6, "width": 100 * line.per_item / largest}
        for line in stored
    ]


def number(value: float) -> str:
    """Write a whole number with its thousands apart."""
    return f"{value:,.0f}"


def size(count: float) -> str:
    """Write a number of bytes in decimal units."""
    if not count:
        return "0"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 99.5 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("the loop returns")


def seconds(value: float) -> str:
    """Write a time in seconds, or in minutes and seconds from two minutes on."""
    return f"{value:.0f} s" if value < 120 else f"{value // 60:.0f} min {value % 60:.0f} s"


def jpeg(data: bytes) -> str:
    """Return a picture as part of the page."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _round_up(value: float) -> float:
    """Return the next number with one digit that counts."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(np.ceil(value / power) * power)


def _radii(kind: str, curves: Curves) -> tuple[tuple[int, str], ...]:
    """Name some radii on the model's own curve."""
    length = len(curves.recall) - 1
    step = max(1, length * MARKED_RADII // 64)
    inside = [radius for radius in range(step, length, step) if 0.02 < curves.recall[radius] < 0.97]
    return tuple((radius, f"r = {radius}") for radius in inside) if kind == "model" else ()


def _square(example: Example, field: str) -> Markup:
    code = getattr(example, field)
    bits = unpack(code[None])[0]
    differs = None if field == "picture_code" else bits != unpack(example.picture_code[None])[0]
    return bit_square(bits, differs=differs, title=f"{len(bits)} bits: {code.tobytes().hex()}")


def _distance(example: Example, field: str) -> int:
    return int(hamming(example.picture_code[None], getattr(example, field)[None])[0, 0])
