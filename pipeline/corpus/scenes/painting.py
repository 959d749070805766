"""Painting a scene: integer arithmetic and Pillow, so that the same scene gives the same bytes."""

import io
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from pipeline.corpus.scenes.composition import Draws, Scene, Thing
from pipeline.corpus.scenes.vocabulary import COLOURS, Colour

SIDE = 64
_FINE = 2 * SIDE  # drawn at twice the size and reduced: smooth edges

Points = list[tuple[float, float]]


def paint(draws: Draws, scene: Scene) -> bytes:
    """Return the JPEG of a scene: background, things, sometimes an obstacle before them, light, noise."""
    picture = Image.fromarray(_background(draws, scene)).resize((_FINE, _FINE), Image.Resampling.NEAREST)
    for thing in reversed(scene.things):
        _draw_thing(draws, picture, thing)
    if draws.chance(0.3):
        _draw_obstacle(draws, picture, scene)
    pixels = _develop(_light(draws, np.asarray(picture.reduce(2))), scene.style)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(draws.between(60, 92)))
    return stream.getvalue()


def _background(draws: Draws, scene: Scene) -> np.ndarray:
    place = scene.place
    sky, ground = _vary(draws, place.sky, 30), _vary(draws, place.ground, 30)
    horizon = int(draws.between(*place.horizon) * SIDE)
    rows = np.empty((SIDE, 1, 3), dtype=np.int16)
    rows[:horizon, 0] = sky
    rows[horizon:, 0] = ground
    rows[:, 0] += (np.arange(SIDE, dtype=np.int16)[:, None] - SIDE // 2) * np.int16(draws.between(-3, 3)) // 8
    field = PATTERNS[place.pattern]
    top, left = int(draws.unit() * SIDE), int(draws.unit() * SIDE)
    pattern = field[top : top + SIDE, left : left + SIDE] * np.int16(draws.between(5, 12)) // 8
    if place.pattern != "sparks":  # stars belong to the sky
        pattern = np.where(np.arange(SIDE)[:, None] >= horizon, pattern, pattern // 8)
    return np.clip(rows + pattern[:, :, None], 0, 255).astype(np.uint8)


def _vary(draws: Draws, colour: Colour, spread: int) -> Colour:
    shift = draws.between(-spread, spread)  # mostly lighter or darker, a little of another hue
    r, g, b = (min(255, max(0, int(c + shift + draws.between(-spread, spread) / 2))) for c in colour)
    return r, g, b


def _draw_thing(draws: Draws, picture: Image.Image, thing: Thing) -> None:
    base = _vary(draws, COLOURS[thing.colour][0], 20)
    shades = {"main": base, "dark": _mix(base, 0.6, 0), "light": _mix(base, 0.5, 255)}
    shades |= {"wood": (105, 70, 40), "door": (45, 35, 35), "heart": (240, 205, 80)}
    pen = ImageDraw.Draw(picture)
    for shade, outline in OUTLINES[thing.shape]:
        points = _place(outline, thing)
        pen.polygon(points, fill=shades[shade])
        if shade == "main" and thing.texture is not None:
            mask = Image.new("L", picture.size)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            ink = shades["light"] if sum(base) < 330 else shades["dark"]
            picture.paste(ink, mask=ImageChops.multiply(mask, TEXTURE_MASKS[thing.texture]))


def _place(outline: Points, thing: Thing) -> Points:
    turn_x, turn_y = cos(thing.angle) * thing.radius * _FINE, sin(thing.angle) * thing.radius * _FINE
    left, top = thing.x * _FINE, thing.y * _FINE
    return [(left + x * turn_x - y * turn_y, top + x * turn_y + y * turn_x) for x, y in outline]


def _mix(colour: Colour, share: float, other: int) -> Colour:
    r, g, b = (int(c * share + other * (1 - share)) for c in colour)
    return r, g, b


def _draw_obstacle(draws: Draws, picture: Image.Image, scene: Scene) -> None:
    """Draw a post, a rail or a corner in the colour of the ground across the picture."""
    pen = ImageDraw.Draw(picture)
    ink = _vary(draws, scene.place.ground, 60)
    at, width = draws.between(0.1, 0.9) * _FINE, draws.between(0.06, 0.16) * _FINE
    kind = int(draws.unit() * 3)
    if kind == 0:
        pen.rectangle((at, 0, at + width, _FINE), fill=ink)
    elif kind == 1:
        pen.rectangle((0, at, _FINE, at + width), fill=ink)
    else:
        x = 0 if draws.chance(0.5) else _FINE
        pen.polygon([(x, _FINE), (abs(x - 4 * width), _FINE), (x, _FINE - 4 * width)], fill=ink)


def _light(draws: Draws, pixels: np.ndarray) -> np.ndarray:
    """Scale the channels, as day, dusk and lamps do, and add noise."""
    level = draws.between(0.6, 1.15)
    gains = np.array([128 * level * draws.between(0.88, 1.12) for _ in range(3)], dtype=np.int32)
    noise = np.frombuffer(draws.generator.bytes(pixels.size), dtype=np.int8).reshape(pixels.shape)
    amount = np.int32(draws.between(4, 24))
    return np.clip((pixels * gains + noise * amount) >> 7, 0, 255).astype(np.uint8)


def _develop(pixels: np.ndarray, style: str) -> np.ndarray:
    """Give the picture the style of its print."""
    if style in ("grey", "sepia"):
        grey = (pixels.astype(np.int32) @ np.array([77, 150, 29], dtype=np.int32)) >> 8
        tone = np.array([256, 256, 256] if style == "grey" else [250, 205, 150], dtype=np.int32)
        return ((grey[:, :, None] * tone) >> 8).astype(np.uint8)
    if style == "negative":
        return 255 - pixels
    if style == "dim":
        return (pixels // 4).astype(np.uint8)
    if style == "framed":
        framed = np.full_like(pixels, 240)
        framed[5:-10, 5:-5] = pixels[5:-10, 5:-5]
        return framed
    return pixels


def _regular(count: int, *, radius: float = 1.0, turn: float = 0.0, x: float = 0.0, y: float = 0.0) -> Points:
    steps = [turn + 2 * pi * i / count for i in range(count)]
    return [(x + radius * cos(a), y + radius * sin(a)) for a in steps]


def _oval(x: float, y: float, across: float, down: float) -> Points:
    return [(x + across * a, y + down * b) for a, b in _regular(20)]


def _star() -> Points:
    outer, inner = _regular(5, turn=-pi / 2), _regular(5, radius=0.42, turn=-pi / 2 + pi / 5)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _ring() -> Points:
    outer, inner = _regular(24), _regular(24, radius=0.55)
    return [*outer, outer[0], inner[0], *reversed(inner)]


def _crescent() -> Points:
    outer = [(cos(a), sin(a)) for a in (pi * (0.3 + 1.4 * i / 20) for i in range(21))]
    bite = [(0.45 + 0.82 * cos(a), 0.82 * sin(a)) for a in (pi * (1.58 - 1.16 * i / 20) for i in range(21))]
    return outer + bite


def _heart() -> Points:
    steps = [2 * pi * i / 28 for i in range(28)]
    return [
        (sin(a) ** 3, -(13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a)) / 16.5) for a in steps
    ]


# Each shape in a square from -1 to 1, y downwards: parts from back to front, each with its shade.
# fmt: off
OUTLINES: dict[str, list[tuple[str, Points]]] = {
    "ball": [("main", _regular(28)), ("light", _oval(-.35, -.4, .22, .16))],
    "box": [("main", [(-.85, -.85), (.85, -.85), (.85, .85), (-.85, .85)]),
            ("dark", [(-.85, -.45), (.85, -.45), (.85, -.3), (-.85, -.3)])],
    "tent": [("main", [(0, -.9), (1, .8), (-1, .8)]), ("door", [(0, -.1), (.3, .8), (-.3, .8)])],
    "star": [("main", _star())],
    "heart": [("main", _heart())],
    "ring": [("main", _ring())],
    "kite": [("wood", [(0, .6), (.25, 1.3), (.12, 1.3), (-.06, .6)]),
             ("main", [(0, -1), (.7, -.1), (0, .9), (-.7, -.1)]), ("dark", [(0, -1), (.08, -.1), (0, .9)])],
    "moon": [("main", _crescent())],
    "flower": [("wood", [(-.07, 0), (.07, 0), (.07, 1.3), (-.07, 1.3)]),
               *(("main", _regular(10, radius=.4, x=x, y=y)) for x, y in _regular(6, radius=.6)),
               ("heart", _regular(12, radius=.33))],
    "house": [("main", [(-.8, -.2), (.8, -.2), (.8, .9), (-.8, .9)]),
              ("dark", [(0, -1), (1, -.2), (-1, -.2)]),
              ("door", [(-.2, .3), (.2, .3), (.2, .9), (-.2, .9)])],
    "boat": [("wood", [(-.06, -.9), (.06, -.9), (.06, .3), (-.06, .3)]),
             ("main", [(-1, .3), (1, .3), (.65, .85), (-.65, .85)]),
             ("light", [(.12, -.85), (.85, .15), (.12, .15)]),
             ("light", [(-.12, -.6), (-.65, .15), (-.12, .15)])],
    "fish": [("main", _oval(-.15, 0, .8, .5)), ("dark", [(.5, 0), (1, -.5), (1, .5)]),
             ("door", _regular(8, radius=.1, x=-.6, y=-.1))],
    "tree": [("wood", [(-.14, .3), (.14, .3), (.14, 1), (-.14, 1)]),
             ("main", [(0, -1), (.5, -.35), (-.5, -.35)]), ("main", [(0, -.65), (.7, .1), (-.7, .1)]),
             ("main", [(0, -.25), (.85, .6), (-.85, .6)])],
    "cup": [("dark", [*_regular(16, radius=.45, x=.7), *reversed(_regular(16, radius=.25, x=.7))]),
            ("main", [(-.8, -.75), (.7, -.75), (.55, .8), (-.65, .8)]),
            ("dark", _oval(-.05, -.75, .75, .16))],
    "mushroom": [("light", [(-.25, 0), (.25, 0), (.35, .95), (-.35, .95)]),
                 ("main", [*((cos(a), .15 + sin(a)) for a in (pi * (1 + i / 16) for i in range(17)))])],
    "arrow": [("main", [(-1, -.25), (.2, -.25), (.2, -.7), (1, 0), (.2, .7), (.2, .25), (-1, .25)])],
    "cross": [("main", [(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1),
                        (-.3, .3), (-1, .3), (-1, -.3), (-.3, -.3)])],
}
# fmt: on


def _make_patterns() -> dict[str, np.ndarray]:
    """Return fields of brightness, (2 SIDE, 2 SIDE) int16, from which each background takes a window."""
    generator = np.random.Generator(np.random.Philox(7))
    y, x = np.mgrid[0 : 2 * SIDE, 0 : 2 * SIDE].astype(np.int16)

    def speckle(share: float) -> np.ndarray:
        return generator.random((2 * SIDE, 2 * SIDE)) < share

    def smooth(values: np.ndarray, across: int, down: int) -> np.ndarray:
        for axis, width in ((0, down), (1, across)):
            values = np.sum([np.roll(values, shift, axis=axis) for shift in range(width)], axis=0)
        return values

    coarse = smooth(generator.integers(-64, 65, (2 * SIDE, 2 * SIDE)), 12, 6)
    fields = {
        "blades": smooth(speckle(0.2) * 16, 1, 6) - 20,
        "grains": generator.integers(-14, 15, x.shape),
        "sparks": speckle(0.012) * 150 + smooth(speckle(0.003) * 150, 2, 2),
        "waves": np.abs((y * 2 + np.abs(x % 24 - 12) // 2) % 16 - 8) * 8 - 32,
        "flakes": np.minimum(smooth(speckle(0.012) * 60, 3, 3), 60) - 25,
        "bricks": np.where((y % 10 < 2) | ((x + y // 10 % 2 * 10) % 20 < 2), 60, -8),
        "dunes": np.abs((y + x // 2 + np.abs(x % 60 - 30) // 3) % 22 - 11) * 5 - 25,
        "boards": np.where(x % 18 < 2, -50, 0) + np.abs((x * 5 + y // 6) % 9 - 4) * 4,
        "trunks": np.where((x + x // 26 * 5) % 22 < 8, -30, 12) + np.abs(y % 6 - 3) * 2,
        "clouds": coarse // 12,
        "tiles": np.where((x % 16 < 2) | (y % 16 < 2), -55, (x // 16 + y // 16) % 2 * 20),
        "plain": generator.integers(-3, 4, x.shape),
        "lines": np.where(y % 9 < 1, -55, 0),
    }
    return {name: np.asarray(field, dtype=np.int16) for name, field in fields.items()}


def _make_texture_masks() -> dict[str, Image.Image]:
    y, x = np.mgrid[0:_FINE, 0:_FINE]
    masks = {
        "striped": (x + y) % 12 < 5,
        "dotted": (x % 12 - 6) ** 2 + (y % 12 - 6) ** 2 < 12,
        "checked": (x // 7 + y // 7) % 2 == 0,
    }
    return {name: Image.fromarray(mask.astype(np.uint8) * 255) for name, mask in masks.items()}


PATTERNS = _make_patterns()
TEXTURE_MASKS = _make_texture_masks()
