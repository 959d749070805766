"""Composing a scene: what stands where. Row n of seed s is a pure function of (s, n)."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

from pipeline.corpus.scenes.vocabulary import COLOURS, LABEL_NUMBER, PLACES, SHAPES, STYLES, TEXTURES, Place

MAX_LABELS = 6
HOME = 0.8
"""How often an object's shape, and its colour, are among those of the place."""
_STYLE_STEPS = tuple(accumulate(share for share, _ in STYLES.values()))
_PLACE_STEPS = tuple(accumulate(place.weight for place in PLACES))

T = TypeVar("T")


class Draws:
    """Random numbers of one row, drawn in bulk: single draws from numpy cost more than the drawing."""

    def __init__(self, seed: int, number: int) -> None:
        self.generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number))))
        self._units: list[float] = []

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        if not self._units:
            self._units = self.generator.random(128).tolist()
        return self._units.pop()

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self.unit() * len(options))]


@dataclass(frozen=True)
class Thing:
    """One object; positions and radius in shares of the picture's side, angle in radians."""

    shape: str
    colour: str
    texture: str | None
    size: str | None
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows and a caption may tell; the first thing is the main one."""

    place: Place
    things: tuple[Thing, ...]
    relation: str | None  # of the first thing to the second
    style: str  # of the picture as a whole; not a label

    def labels(self) -> list[int]:
        """Return the sorted numbers of 1 to 6 labels: the place, then what is most visible."""
        first = self.things[0]
        names: list[str | None] = [first.shape, first.texture, first.size, self.relation]
        if self.place.labelled:
            names.insert(0, self.place.name)
        if self.style not in ("grey", "sepia", "negative"):
            names.insert(2, first.colour)
        kept = [name for name in names if name is not None][:MAX_LABELS]
        return sorted(LABEL_NUMBER[name] for name in kept)


def compose(draws: Draws) -> Scene:
    """Draw a scene: a place, one to four things that often belong there, and how they stand."""
    place = PLACES[bisect(_PLACE_STEPS, draws.unit() * _PLACE_STEPS[-1])]
    count = 1 + bisect((0.42, 0.76, 0.94), draws.unit())
    relation = _relation(draws, count)
    spots = _spots(draws, count, relation)
    things = tuple(_thing(draws, place, spot, main=i == 0) for i, spot in enumerate(spots))
    style = tuple(STYLES)[bisect(_STYLE_STEPS, draws.unit() * _STYLE_STEPS[-1])]
    return Scene(place, things, relation, style)


def _relation(draws: Draws, count: int) -> str | None:
    if count == 4:
        return "crowd"
    if count == 1 or draws.chance(0.5):
        return None
    return ("beside", "above", "in front")[bisect((0.5, 0.8), draws.unit())]


def _spots(draws: Draws, count: int, relation: str | None) -> list[tuple[float, float]]:
    x, y = draws.between(0.3, 0.7), draws.between(0.4, 0.75)
    spots = [(x, y)]
    side = -1 if x > 0.5 else 1
    while len(spots) < count:
        if len(spots) == 1 and relation == "beside":
            spots.append((x + side * draws.between(0.35, 0.5), y + draws.between(-0.06, 0.06)))
        elif len(spots) == 1 and relation == "above":
            y = draws.between(0.25, 0.35)
            spots = [(x, y), (x + draws.between(-0.08, 0.08), y + draws.between(0.4, 0.5))]
        elif len(spots) == 1 and relation == "in front":
            spots.append((x + side * draws.between(0.1, 0.16), y - draws.between(0.06, 0.12)))
        else:
            spots.append((draws.between(0.1, 0.9), draws.between(0.2, 0.9)))
    return spots


def _thing(draws: Draws, place: Place, spot: tuple[float, float], *, main: bool) -> Thing:
    size = (None, "tiny", "huge")[bisect((0.78, 0.87), draws.unit())] if main else None
    low, high = {"tiny": (0.09, 0.12), "huge": (0.32, 0.42), None: (0.17, 0.26)}[size]
    if not main:
        low, high = 0.1, 0.18
    return Thing(
        shape=draws.pick((place.shapes if draws.chance(HOME) else ()) or tuple(SHAPES)),
        colour=draws.pick((place.colours if draws.chance(HOME) else ()) or tuple(COLOURS)),
        texture=draws.pick(tuple(TEXTURES)) if draws.chance(0.2) else None,
        size=size,
        x=spot[0],
        y=spot[1],
        radius=draws.between(low, high),
        angle=draws.between(-0.35, 0.35),
    )
