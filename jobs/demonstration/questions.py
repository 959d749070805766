"""What the demo asks its release, by rules that were fixed before any answer was seen.

Texts: the captions of the first held-out pairs, and a sentence for each of the corpus's commonest places
(its first colour, shape and phrase). Pictures: those of the held-out pairs after them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmh_models.method import HashMethod
from pipeline.codes import hamming
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.scenes import LABELS
from pipeline.corpus.scenes.vocabulary import COLOURS, LABEL_NUMBER, PLACES, SHAPES
from pipeline.corpus.sides import decode_image
from pipeline.encoding.encoder import encode_side
from pipeline.quality.evaluation import CodedPairs
from pipeline.quality.profiles import pair_distances
from pipeline.quality.report.content import Example, Hit, Question
from pipeline.search.retrieval import Release

CAPTIONS, SENTENCES, PICTURES = 3, 2, 2
PICTURES_SHOWN, CAPTIONS_SHOWN = 8, 6


@dataclass(frozen=True)
class Corpus:
    """The source as it is now, to show what a key stands for."""

    folder: Path

    def rows(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of some keys; of rows with one key the first."""
        table = pq.read_table(self.folder, filters=pc.field("key").isin(list(keys)))
        return {row["key"]: row for row in reversed(table.to_pylist())}

    def share_relevant(self, labels: Sequence[int]) -> float:
        """Return the share of rows that have one of these labels."""
        column = pq.read_table(self.folder, columns=["labels"])["labels"].to_pylist()
        return float(np.mean([bool(set(labels) & set(row)) for row in column]))


def ask(release: Release, method: HashMethod, *, corpus: Path, held_out: Path) -> list[Question]:
    """Ask the five texts and the two pictures."""
    source, first = Corpus(corpus), _first_rows(held_out, CAPTIONS + PICTURES)
    questions = []
    for row in first[:CAPTIONS]:
        text = {"text": row["text"], "labels": row["labels"], "origin": "the caption of a held-out picture"}
        questions.append(_ask_text(release, method, source, text))
    for place in PLACES[:SENTENCES]:
        shape, colour = place.shapes[0], place.colours[0]
        words = f"{COLOURS[colour][1][0]} {SHAPES[shape][0]} {place.phrases[0]}"
        labels = [LABEL_NUMBER[name] for name in (place.name, shape, colour)]
        text = {"text": f"{'an' if words[0] in 'aeiou' else 'a'} {words}", "labels": labels}
        questions.append(_ask_text(release, method, source, text | {"origin": "put together by rule"}))
    for row in first[CAPTIONS:]:
        questions.append(_ask_picture(release, method, source, row))
    return questions


def typical_example(held_out: Path, query: CodedPairs) -> Example:
    """Return the held-out pair of middling distance, and a caption that shares no label with it.

    Of the captions without a common label it is again the one of middling distance.
    """
    own = _middle(np.arange(len(query.keys)), pair_distances(query))
    strangers = [n for n, row in enumerate(query.labels) if not set(row) & set(query.labels[own])]
    picture = query.codes["image"][own]
    other = _middle(np.array(strangers), hamming(picture[None], query.codes["text"][strangers])[0])
    rows = Corpus(held_out / "query").rows([query.keys[own], query.keys[other]])
    return Example(
        rows[query.keys[own]]["image"],
        picture,
        rows[query.keys[own]]["text"],
        query.codes["text"][own],
        rows[query.keys[other]]["text"],
        query.codes["text"][other],
    )


def _middle(positions: np.ndarray, distances: np.ndarray) -> int:
    return int(positions[np.argsort(distances, kind="stable")[(len(positions) - 1) // 2]])


def encode_picture(method: HashMethod, data: bytes) -> np.ndarray:
    """Return the (1, S) code of an encoded picture."""
    pixels = decode_image(data, InputRecipe(image_size=method.image_size))[None]
    return encode_side(method, "image", pixels)


def hits_of(
    keys: Sequence[str], distances: np.ndarray, *, source: Corpus, labels: Sequence[int]
) -> list[Hit]:
    """Return what was found as it is to be shown."""
    rows, hits = source.rows(keys), []
    for key, distance in zip(keys, distances.tolist(), strict=True):
        row = rows[key]
        shared = tuple(LABELS[label] for label in row["labels"] if label in labels)
        hits.append(Hit(key, distance, shared, picture=row["image"], text=row["text"]))
    return hits


def _ask_text(release: Release, method: HashMethod, source: Corpus, row: dict[str, Any]) -> Question:
    code = encode_side(method, "text", [row["text"]])
    found = release.search(code, min(PICTURES_SHOWN, release.rows("image")), "T2I")
    hits = hits_of(found.keys[0], found.distances[0], source=source, labels=row["labels"])
    return Question(
        origin=row["origin"],
        labels=tuple(LABELS[label] for label in row["labels"]),
        hits=hits,
        chance=source.share_relevant(row["labels"]),
        text=row["text"],
    )


def _ask_picture(release: Release, method: HashMethod, source: Corpus, row: dict[str, Any]) -> Question:
    code = encode_picture(method, row["image"])
    found = release.search(code, min(CAPTIONS_SHOWN, release.rows("text")), "I2T")
    hits = hits_of(found.keys[0], found.distances[0], source=source, labels=row["labels"])
    return Question(
        origin="a held-out picture",
        labels=tuple(LABELS[label] for label in row["labels"]),
        hits=hits,
        chance=source.share_relevant(row["labels"]),
        picture=row["image"],
    )


def _first_rows(held_out: Path, count: int) -> list[dict[str, Any]]:
    first = sorted((held_out / "query").glob("*.parquet"))[0]
    return list(pq.read_table(first).slice(0, count).to_pylist())
