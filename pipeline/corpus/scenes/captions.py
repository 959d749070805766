"""Writing a caption: a small grammar with synonyms that omits much and adds what is beside the point."""

from pipeline.corpus.scenes.composition import Draws, Scene, Thing
from pipeline.corpus.scenes.vocabulary import (
    ASIDES,
    COLOURS,
    OPENINGS,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    VAGUE,
)


def write_caption(draws: Draws, scene: Scene) -> str:
    """Return a caption of a scene; about a third of what could be said is not."""
    first, *others = scene.things
    parts = []
    where = draws.pick(scene.place.phrases) if draws.chance(0.6) else ""
    where_first = draws.chance(0.2)
    if where_first and where:
        parts.append(where)
    if draws.chance(0.4):
        parts.append(draws.pick(OPENINGS))
    parts.append(_noun_phrase(draws, first))
    if others and draws.chance(0.7):
        parts += _second(draws, scene, others)
    if where and not where_first:
        parts.append(where)
    if draws.chance(0.4):
        parts.append(draws.pick(scene.place.moods))
    if draws.chance(0.35):
        parts.append(draws.pick(ASIDES))
    if scene.style != "plain" and draws.chance(0.75):
        parts.append(draws.pick(STYLES[scene.style][1]))
    if draws.chance(0.08):  # misleading on purpose: words are not proof
        parts.append(f"like the {draws.pick(tuple(COLOURS))} {draws.pick(tuple(SHAPES))}")
    return " ".join(parts)


def _second(draws: Draws, scene: Scene, others: list[Thing]) -> list[str]:
    if scene.relation == "crowd":
        return [draws.pick(RELATIONS["crowd"])]
    known = scene.relation is not None and draws.chance(0.7)
    joint = (
        draws.pick(RELATIONS[scene.relation or "beside"]) if known else draws.pick(("and", "with", "plus"))
    )
    words = [joint, _noun_phrase(draws, others[0])]
    if len(others) > 1 and draws.chance(0.5):
        words += ["and", _noun_phrase(draws, others[1])]
    return words


def _noun_phrase(draws: Draws, thing: Thing) -> str:
    before, after = [], ""
    if thing.size is not None and draws.chance(0.7):
        before.append(draws.pick(SIZES[thing.size]))
    if thing.texture is not None and draws.chance(0.65):
        word = draws.pick(TEXTURES[thing.texture])
        if word.startswith("with "):
            after = f" {word}"
        else:
            before.append(word)
    if draws.chance(0.6):
        before.append(draws.pick(COLOURS[thing.colour][1]))
    noun = draws.pick(VAGUE) if draws.chance(0.15) else draws.pick(SHAPES[thing.shape])
    words = " ".join([*before, noun])
    article = "an" if words[0] in "aeio" and not words.startswith("one") else "a"
    return f"{article} {words}{after}"
