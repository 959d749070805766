"""Charts as inline SVG: lines, bars and a square of shades. Colours and fonts come from the page's style.

Written by hand rather than with a plotting library: a page of them is a few kilobytes, looks the same
everywhere, needs no fonts, and its words stay words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

SHADES = 9


@dataclass(frozen=True)
class Series:
    """One line. `kind` is its class in the page's style, shared with its entry in the legend."""

    name: str
    kind: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    marks: tuple[tuple[int, str], ...] = ()  # points to name: position in x, and the words


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale with the places of its ticks."""

    title: str
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 at the first tick to 1 at the last."""
        first, last = self.ticks[0], self.ticks[-1]
        if self.log:
            first, last, value = (float(np.log(number)) for number in (first, last, value))
        return min(1.0, max(0.0, (value - first) / (last - first)))


@dataclass(frozen=True)
class Frame:
    """The size of a chart, and where the values of its axes lie in it."""

    x: Axis
    y: Axis
    width: int = 420
    height: int = 280
    left: int = 42
    right: int = 24
    top: int = 12
    bottom: int = 40

    def across(self, value: float) -> float:
        return self.left + self.x.place(value) * (self.width - self.left - self.right)

    def up(self, value: float) -> float:
        return self.height - self.bottom - self.y.place(value) * (self.height - self.top - self.bottom)

    def grid(self) -> str:
        """Draw the ticks of both axes and the title of the lower one."""
        low, end = self.height - self.bottom, self.width - self.right
        parts = []
        for tick in self.y.ticks:
            at = self.up(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="end" x="{self.left - 6}" y="{at + 4:.1f}">{_tick(tick)}</text>')
        for tick in self.x.ticks:
            at = self.across(tick)
            parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{low}" y2="{low + 4}"/>')
            parts.append(f'<text class="mid" x="{at:.1f}" y="{low + 17}">{_tick(tick)}</text>')
        middle, words = (self.left + end) / 2, escape(self.x.title)
        return "".join([*parts, f'<text class="mid" x="{middle}" y="{self.height - 5}">{words}</text>'])


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, title: str) -> Markup:
    """Draw lines over two axes.

    Args:
        title: what the chart shows, for those who cannot see it.
    """
    frame = Frame(x, y)
    body = [frame.grid()]
    for line in series:
        points = [(frame.across(a), frame.up(b)) for a, b in zip(line.x, line.y, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        body.append(f'<polyline class="line {escape(line.kind)}" points="{path}"/>')
        for position, words in line.marks:
            a, b = points[position]
            body.append(f'<circle class="dot {escape(line.kind)}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>')
            body.append(f'<text class="mark" x="{a + 6:.1f}" y="{b - 6:.1f}">{escape(words)}</text>')
    return _svg(frame.width, frame.height, body, title)


def bar_chart(values: np.ndarray, x: Axis, y: Axis, *, middle: float, title: str) -> Markup:
    """Draw a bar for each value, up or down from a middle line."""
    frame = Frame(x, y, height=180)
    base, step = frame.up(middle), frame.across(1) - frame.across(0)
    body = [frame.grid()]
    for position, value in enumerate(values):
        end = frame.up(float(value))
        left, top = frame.across(position), min(base, end)
        body.append(
            f'<rect class="bar" x="{left + step * 0.1:.2f}" y="{top:.2f}" width="{step * 0.8:.2f}" '
            f'height="{max(abs(end - base), 0.75):.2f}"><title>bit {position}: {value:.3f}</title></rect>'
        )
    ends = f'x1="{frame.left}" x2="{frame.width - frame.right}"'
    body.append(f'<line class="middle" {ends} y1="{base:.1f}" y2="{base:.1f}"/>')
    return _svg(frame.width, frame.height, body, title)


def shade_square(values: np.ndarray, *, title: str) -> Markup:
    """Draw the sizes, 0 to 1, of an (N, N) matrix as a square of shades, darker for more."""
    level = np.clip(np.round(np.abs(values) * SHADES), 0, SHADES).astype(int)
    body = [f'<rect class="paper" width="{len(values)}" height="{len(values)}"/>']
    for shade in range(1, SHADES + 1):
        cells = "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(level == shade))
        if cells:
            body.append(f'<path class="shade" fill-opacity="{shade / SHADES:.2f}" d="{cells}"/>')
    return _svg(len(values), len(values), body, title, kind="square")


def bit_square(bits: np.ndarray, *, differs: np.ndarray | None = None, title: str) -> Markup:
    """Draw one code as a grid, eight bits a row: 1 is dark; bits that differ from another code are framed."""
    side, rows = 10, len(bits) // 8
    body = []
    for position, bit in enumerate(bits):
        x, y = position % 8 * side, position // 8 * side
        kind = "one" if bit > 0 else "zero"
        body.append(
            f'<rect class="{kind}" x="{x + 0.5}" y="{y + 0.5}" width="{side - 1}" height="{side - 1}"/>'
        )
        if differs is not None and differs[position]:
            body.append(
                f'<rect class="differs" x="{x + 1.5}" y="{y + 1.5}" width="{side - 3}" height="{side - 3}"/>'
            )
    return _svg(8 * side, rows * side, body, title, kind="code")


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 and value == int(value) else f"{value:g}"


def _svg(width: int, height: int, body: Sequence[str], title: str, *, kind: str = "chart") -> Markup:
    # Every word in `body` was escaped where it was put in.
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}</svg>"
    )
