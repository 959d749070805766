"""What scenes are made of: places, shapes, colours, textures, sizes and relations, and the words for them.

Data only. Each thing that can be a label has one entry; LABELS lists them all, and a label's number is its
place in that list.
"""

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """A background, and what tends to be found there."""

    name: str
    weight: float  # how common, before normalisation
    sky: Colour
    ground: Colour
    horizon: tuple[float, float]  # share of the height above the ground, from .. to
    pattern: str  # of the ground; see painting.PATTERNS
    phrases: tuple[str, ...]
    moods: tuple[str, ...]  # words that go with the place without naming it
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    labelled: bool = True


# fmt: off
PLACES = (
    Place("meadow", 16, (150, 195, 235), (95, 160, 70), (.25, .5), "blades",
          ("in a meadow", "on the grass", "in a field", "on a pasture", "on the lawn"),
          ("spring", "picnic", "fresh air", "summer day"),
          ("flower", "house", "kite", "tree"), ("yellow", "red", "pink", "white")),
    Place("beach", 14, (120, 190, 230), (230, 205, 150), (.35, .6), "grains",
          ("on the beach", "at the seaside", "on the sand", "by the shore"),
          ("holiday", "sunny", "salty breeze", "vacation"),
          ("ball", "kite", "tent", "boat"), ("orange", "yellow", "red", "blue")),
    Place("night", 12, (18, 22, 52), (30, 34, 60), (.7, .95), "sparks",
          ("at night", "under the stars", "at midnight", "in the dark", "after dark"),
          ("quiet", "dreamy", "late", "sleepless"),
          ("moon", "star", "house", "tent"), ("yellow", "white", "purple", "orange")),
    Place("sea", 11, (165, 205, 225), (35, 110, 150), (.1, .35), "waves",
          ("at sea", "on the water", "in the ocean", "on the waves"),
          ("sailing", "blue depth", "calm", "tide"),
          ("boat", "fish", "ring", "moon"), ("white", "red", "orange", "black")),
    Place("snow", 9, (205, 215, 230), (235, 240, 246), (.25, .5), "flakes",
          ("in the snow", "on the ice", "in winter", "in a blizzard"),
          ("cold", "frosty", "christmas", "freezing"),
          ("house", "tree", "star", "ball"), ("red", "green", "brown", "blue")),
    Place("wall", 8, (150, 75, 60), (165, 80, 62), (0, 0), "bricks",
          ("on a brick wall", "against the wall", "on the bricks", "in an alley"),
          ("graffiti", "urban", "street art", "downtown"),
          ("heart", "arrow", "star", "ring"), ("black", "white", "green", "pink")),
    Place("desert", 7, (240, 215, 170), (215, 150, 85), (.25, .5), "dunes",
          ("in the desert", "on the dunes", "in the sahara", "in dry land"),
          ("hot", "thirsty", "dusty", "caravan"),
          ("tent", "cross", "arrow", "box"), ("blue", "brown", "white", "purple")),
    Place("table", 7, (130, 85, 50), (150, 100, 58), (0, 0), "boards",
          ("on a table", "on the desk", "on wooden boards", "on a plank"),
          ("breakfast", "homework", "handmade", "cosy"),
          ("cup", "box", "flower", "fish"), ("blue", "white", "green", "red")),
    Place("forest", 6, (70, 105, 70), (40, 70, 38), (.5, .75), "trunks",
          ("in the forest", "in the woods", "among the trees", "deep in the jungle"),
          ("hike", "mossy", "wild", "mushroom season"),
          ("tree", "mushroom", "tent", "flower"), ("brown", "red", "orange", "green")),
    Place("sunset", 5, (245, 140, 70), (90, 45, 80), (.5, .8), "clouds",
          ("at sunset", "at dusk", "in the evening light", "as the sun goes down"),
          ("romantic", "golden hour", "warm", "farewell"),
          ("heart", "boat", "tree", "kite"), ("black", "purple", "pink", "blue")),
    Place("kitchen", 4, (200, 215, 205), (190, 210, 215), (0, 0), "tiles",
          ("in the kitchen", "on the tiles", "in the bathroom", "on a tiled floor"),
          ("clean", "cooking", "soap", "home"),
          ("cup", "mushroom", "fish", "ring"), ("green", "orange", "black", "yellow")),
    Place("page", 3, (245, 243, 235), (245, 243, 235), (0, 0), "lines",
          ("on a page", "on paper", "in a notebook", "on a white sheet"),
          ("sketch", "lesson", "diagram", "doodle"),
          ("cross", "arrow", "heart", "box"), ("black", "red", "purple", "brown")),
    Place("studio", 8, (165, 165, 170), (150, 150, 155), (.4, .8), "plain",
          ("on a plain background", "in a studio", "isolated", "cut out"),
          ("stock", "product shot", "clip art", "minimal"),
          (), (), labelled=False),
)

SHAPES: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere", "disc"),
    "box": ("box", "square", "crate"),
    "tent": ("tent", "triangle", "wigwam"),
    "star": ("star", "pentagram"),
    "heart": ("heart", "valentine"),
    "ring": ("ring", "hoop", "donut"),
    "kite": ("kite", "diamond"),
    "moon": ("moon", "crescent"),
    "flower": ("flower", "blossom", "daisy"),
    "house": ("house", "hut", "cabin"),
    "boat": ("boat", "ship", "yacht"),
    "fish": ("fish", "trout"),
    "tree": ("tree", "pine", "fir"),
    "cup": ("cup", "mug"),
    "mushroom": ("mushroom", "toadstool"),
    "arrow": ("arrow", "pointer"),
    "cross": ("cross", "plus sign"),
}

COLOURS: dict[str, tuple[Colour, tuple[str, ...]]] = {
    "red": ((205, 40, 40), ("red", "crimson", "scarlet")),
    "orange": ((240, 140, 30), ("orange", "tangerine")),
    "yellow": ((245, 220, 60), ("yellow", "lemon", "golden")),
    "green": ((50, 155, 65), ("green", "emerald")),
    "blue": ((45, 90, 205), ("blue", "azure", "cobalt")),
    "purple": ((130, 60, 165), ("purple", "violet")),
    "pink": ((240, 140, 180), ("pink", "rosy")),
    "brown": ((120, 75, 40), ("brown", "chestnut")),
    "white": ((245, 245, 245), ("white", "pale")),
    "black": ((25, 25, 28), ("black", "dark")),
}

TEXTURES: dict[str, tuple[str, ...]] = {
    "striped": ("striped", "stripy", "with stripes"),
    "dotted": ("dotted", "spotted", "with dots"),
    "checked": ("checked", "chequered", "with checks"),
}

SIZES: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny", "little", "small"),
    "huge": ("huge", "giant", "large", "big"),
}

RELATIONS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over", "higher than"),
    "beside": ("beside", "next to", "near"),
    "in front": ("in front of", "covering", "hiding"),
    "crowd": ("with several others", "among many things", "in a crowd"),
}

# How a picture was printed: seen and told, but never a label. Much of what picture and caption share is
# beside the point of a search, and a linear correlation takes it for the point.
STYLES: dict[str, tuple[float, tuple[str, ...]]] = {
    "plain": (60, ()),
    "grey": (11, ("black and white", "monochrome", "grey tones")),
    "sepia": (9, ("sepia", "vintage", "antique print")),
    "framed": (10, ("framed", "with a border", "polaroid")),
    "negative": (5, ("negative", "inverted", "x-ray look")),
    "dim": (5, ("underexposed", "candlelight", "badly lit")),
}

OPENINGS = ("photo of", "a picture of", "here is", "look at", "image:", "i saw", "painting of",
            "another view of")
ASIDES = ("taken on monday", "by anna", "number seven", "for sale", "please share", "my favourite", "so nice",
          "good morning", "from my phone", "no filter", "best of the year", "untitled", "see comments",
          "first try", "sent by tom", "version two", "seen last week", "what do you think")
VAGUE = ("thing", "object", "something", "shape", "one")
# fmt: on

LABELS: tuple[str, ...] = (
    *(place.name for place in PLACES if place.labelled),
    *SHAPES,
    *COLOURS,
    *TEXTURES,
    *SIZES,
    *RELATIONS,
)
"""The names of the labels, in the order of their numbers."""
LABEL_NUMBER = {name: number for number, name in enumerate(LABELS)}
