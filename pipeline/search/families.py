"""The index families, by FAISS's own factory strings, and what each of them promises.

    BFlat                 every code is looked at
    BIVF<n>               the codes of the `nprobe` nearest of n inverted lists are
    BIVF<n>_HNSW<m>       the same; the lists are found by a graph over their centroids
    BHNSW<m>              a graph over the codes
    BHash<b>              codes whose first b bits differ from the query's in at most `nflip`
    BHash<t>x<b>          multi-index hashing: the same for one at least of t pieces of b bits each

Flat, IVF and hash families answer in the order (distance, id, key) over the rows they look at, and which
rows those are follows from the codes alone: parts, insertion order and threads change nothing. A BHNSW file
answers the same every time; other parts of the same codes may answer otherwise.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["flat", "ivf", "hnsw", "hash", "multihash"]

KNOWN = "BFlat, BIVF<n>, BIVF<n>_HNSW<m>, BHNSW<m>, BHash<b>, BHash<t>x<b>"
_PATTERNS: dict[Kind, re.Pattern[str]] = {
    "flat": re.compile(r"BFlat"),
    "ivf": re.compile(r"BIVF([1-9]\d*)(?:_HNSW([1-9]\d*))?"),
    "hnsw": re.compile(r"BHNSW([1-9]\d*)"),
    "hash": re.compile(r"BHash([1-9]\d*)"),
    "multihash": re.compile(r"BHash([1-9]\d*)x([1-9]\d*)"),
}
_MOST_LISTS = 1 << 24
_MOST_BITS = 62  # of a hash that FAISS keeps in one word


@dataclass(frozen=True)
class Effort:
    """How much of an index a search looks at; a family uses the one that is its own."""

    nprobe: int = 16  # BIVF: lists that a query visits
    nflip: int = 1  # BHash: bits of a hash in which a row may differ
    ef_search: int = 64  # BHNSW: nodes that a query keeps in sight


@dataclass(frozen=True)
class Family:
    """A factory string, taken apart."""

    recipe: str
    kind: Kind
    lists: int = 0  # inverted lists, or hash tables
    neighbours: int = 0  # of a graph
    bits: int = 0  # of a hash

    @property
    def has_quantiser(self) -> bool:
        return self.kind == "ivf"

    def check_fits(self, code_length: int) -> None:
        """Check that codes of a length can be indexed so.

        Raises:
            ValueError: they are shorter than what is hashed of them.
        """
        hashed = self.bits * max(1, self.lists)
        if hashed > code_length:
            raise ValueError(
                f"index.recipe {self.recipe} hashes {hashed} bits, codes have {code_length}; hash fewer"
            )


def parse_recipe(recipe: str) -> Family:
    """Take a factory string apart.

    Raises:
        ValueError: it names no family that is built here.
    """
    for kind, pattern in _PATTERNS.items():
        found = pattern.fullmatch(recipe)
        if found is None:
            continue
        numbers = [int(number or 0) for number in found.groups()]
        family = _family(recipe, kind, numbers)
        if family.lists > _MOST_LISTS or family.bits > _MOST_BITS:
            break
        return family
    raise ValueError(f"unknown index recipe {recipe!r}; known: {KNOWN}")


def _family(recipe: str, kind: Kind, numbers: list[int]) -> Family:
    match kind:
        case "flat":
            return Family(recipe, kind)
        case "ivf":
            return Family(recipe, kind, lists=numbers[0], neighbours=numbers[1])
        case "hnsw":
            return Family(recipe, kind, neighbours=numbers[0])
        case "hash":
            return Family(recipe, kind, bits=numbers[0])
        case "multihash":
            return Family(recipe, kind, lists=numbers[0], bits=numbers[1])
