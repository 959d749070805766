"""Open a published release and search it: the search team's way in. Never imports torch or ray.

    release = Release.open("s3://bucket/store")
    hits = release.search(codes, k=10, direction="T2I")

Parts on a local disk are memory-mapped where they lie; those of a remote store are downloaded once into a
cache folder, checked against the release's sha256, and mapped from there. Forgotten keys are never shown.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.codes import BIT_ORDER
from pipeline.corpus.schema import sample_ids
from pipeline.releases.forgetting import NOTHING_FORGOTTEN, Forgotten, forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.manifest import (
    ManifestError,
    ReleaseManifest,
    ReleaseRecipe,
    check_store,
    read_release,
)
from pipeline.releases.storage import Storage, cache_folder
from pipeline.search import scan
from pipeline.search.approximate import search, within
from pipeline.search.families import Effort
from pipeline.search.opening import Opened, open_files
from pipeline.search.order import Nearest
from pipeline.search.parts import Part
from pipeline.search.quantisers import Quantiser
from pipeline.search.selection import (
    Selection,
    nearest_of,
    nearest_without,
    of_forgotten,
    of_keys,
    within_without,
)

if TYPE_CHECKING:
    from pipeline.search.encoders import QueryEncoder
    from pipeline.search.following import Following

Direction = Literal["T2I", "I2T"]
DIRECTIONS: dict[str, str] = {"T2I": "image", "I2T": "text"}
"""What is asked with and what is searched -> the side that is searched."""
QUERY_SIDES: dict[str, str] = {"T2I": "text", "I2T": "image"}
"""The same -> the side whose tower makes the codes of queries."""
_EFFORTS = tuple(field.name for field in fields(Effort))


@dataclass(frozen=True)
class Hits:
    """Answers in the order (distance, id, key): one row per query, nearest first."""

    distances: np.ndarray  # (Q, k) int32 Hamming distances
    ids: np.ndarray  # (Q, k) int64
    keys: list[list[str]]  # Q lists of k: the source's own names

    @property
    def counts(self) -> np.ndarray:
        """The (Q,) numbers of hits: below k where a filter, a hash or a graph left fewer."""
        return (self.ids >= 0).sum(axis=1)


@dataclass(frozen=True)
class Origin:
    """What made the codes of queries, as far as it is known: a code file's metadata says both."""

    fingerprint: str | None = None  # of the tower
    bit_order: str | None = None  # msb or lsb


class Release:
    """One published whole, open for searching. Safe to use from several threads."""

    def __init__(
        self,
        uri: str,
        digest: str,
        *,
        manifest: ReleaseManifest,
        opened: Opened,
        forgotten: Forgotten = NOTHING_FORGOTTEN,
    ) -> None:
        self.uri = uri
        self.digest = digest
        self.manifest = manifest
        self.forgotten = forgotten
        self._opened = opened
        self._encoders: dict[str, QueryEncoder] = {}
        self._parts = opened.parts
        self._hidden = {side: of_forgotten(parts, forgotten) for side, parts in opened.parts.items()}
        settings = {name: value for name, value in manifest.recipe.index.items() if name in _EFFORTS}
        self._effort = Effort(**settings)

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        channel: str = "main",
        *,
        digest: str | None = None,
        sides: Sequence[str] = ("image", "text"),
        cache: str | os.PathLike[str] | None = None,
        check: bool = False,
    ) -> "Release":
        """Open the newest release of a channel, or the one with a given digest.

        Args:
            uri: of the store: a local folder or s3://bucket/prefix.
            digest: of a release; the channel is not read then.
            sides: those that will be searched, a list: T2I searches `image`, I2T `text`.
            cache: folder for the parts of a remote store; by default `hashfleet` in the user's cache folder.
            check: read the parts of a local store in full and compare their sha256s; copies of a remote
                one's always are, when they are made.
        Raises:
            ValueError: a side is neither `image` nor `text`.
            ManifestError: no release is published, the store is of a newer format, or a file of the release
                is missing or is not the one that it names.
            OSError: the cache folder is full or cannot be written, or the store cannot be read.
        """
        sides = _sides(sides)
        storage = Storage(os.fspath(uri))
        check_store(storage)
        if digest is None:
            digest = Log(storage, channel).current_release()
            if digest is None:
                raise ManifestError(
                    f"{storage.where()}: nothing is published in channel {channel!r}; a nightly run does that"
                )
        manifest = read_release(storage, digest)
        folder = cache_folder("parts") if cache is None else Path(cache)
        opened = open_files(storage, manifest, sides=sides, cache=folder, check=check)
        return cls(
            storage.uri,
            digest,
            manifest=manifest,
            opened=opened,
            forgotten=forgotten_keys(Log(storage, channel)),
        )

    @staticmethod
    def follow(
        uri: str | os.PathLike[str], channel: str = "main", *, seconds: float = 30, **options: Any
    ) -> "Following":
        """Open the newest release of a channel and go over to each newer one, while queries are answered.

        Args:
            seconds: the log is looked at when a query comes, at most so often.
            options: as for `open`.
        """
        from pipeline.search.following import Following

        return Following(partial(Release.open, uri, channel, **options), channel, seconds=seconds)

    def hiding(self, forgotten: Forgotten) -> "Release":
        """Return this release, its files open once, with other keys hidden."""
        return Release(
            self.uri, self.digest, manifest=self.manifest, opened=self._opened, forgotten=forgotten
        )

    @property
    def recipe(self) -> ReleaseRecipe:
        """What the codes were made with: model, fingerprints, code length, index."""
        return self.manifest.recipe

    @property
    def code_length(self) -> int:
        return self.manifest.recipe.code_length

    def rows(self, side: str) -> int:
        """Return the number of codes of a side that can be found: forgotten keys do not count."""
        return sum(part.rows for part in self._parts[side]) - self._hidden[side].count

    def search(
        self,
        codes: np.ndarray,
        k: int = 10,
        direction: Direction = "T2I",
        *,
        keys: Collection[str] | Selection | None = None,
        origin: Origin | None = None,
    ) -> Hits:
        """Find the k codes nearest to each query, of those that the release's index looks at: BFlat at all.

        Args:
            codes: (Q, code_length / 8) uint8 packed codes, of the text tower for T2I, of the image tower
                for I2T.
            k: hits per query, at most the number of codes of the side.
            keys: only these are looked for; a selection (`select`) is looked up once for many searches of
                this release in this direction.
            origin: what made the codes; codes of another tower or bit order are refused.
        Returns:
            hits ordered by (distance, id, key), whatever the layout of the parts. Where `keys` or a BHash or
            BHNSW index leave fewer than k, the query has as many keys, and NO_DISTANCE and -1 follow.
        Raises:
            ValueError: an unknown direction, codes of another shape, type or origin, a selection of another
                release or side, or k out of range.
        """
        side = self._side(direction)
        self._check(codes, k, side=side)
        self._check_origin(origin, direction)
        parts = self._parts[side]
        ask = partial(_ask, parts, effort=self._effort, quantiser=self._opened.quantisers.get(side))
        if keys is None:
            found = nearest_without(parts, codes, int(k), hidden=self._hidden[side], ask=ask)
        else:
            chosen = self._chosen(keys, side)
            found = nearest_of(parts, codes, int(k), selection=chosen, ask=ask)
        return Hits(found.distances, found.ids, _keys(parts, found.part, found.row))

    def range_search(
        self,
        codes: np.ndarray,
        radius: int,
        direction: Direction = "T2I",
        *,
        keys: Collection[str] | Selection | None = None,
        origin: Origin | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Find every code at most `radius` away from each query; memory grows with their number.

        All codes are looked at, of a BHash index its candidates.

        Args:
            codes, direction, keys, origin: as for `search`.
            radius: Hamming distance, itself included.
        Returns:
            for each query the distances, ids and keys of its hits, ordered as those of `search`.
        Raises:
            TypeError, ValueError: as `search`; a radius that is no whole number from 0.
        """
        side = self._side(direction)
        self._check(codes, side=side)
        _check_whole("radius", radius)
        self._check_origin(origin, direction)
        parts = self._parts[side]
        found = within(parts, codes, int(radius), effort=self._effort)
        if keys is not None:
            found = within_without(found, self._chosen(keys, side).holds(found.part, found.row))
        elif self._hidden[side].count:
            found = within_without(found, ~self._hidden[side].holds(found.part, found.row))
        names = _keys(parts, found.part[None], found.row[None])[0]
        limits = pairwise(found.limits.tolist())
        return [(found.distances[a:b], found.ids[a:b], names[a:b]) for a, b in limits]

    def select(self, keys: Collection[str], direction: Direction = "T2I") -> Selection:
        """Look up the rows of some keys, to search among them more than once.

        Forgotten keys, and those that the release does not hold, select nothing; `count` says how many rows
        there are. Another release, or another direction, refuses it.

        Raises:
            TypeError: one string or an iterator instead of a collection, or a key that is no string.
        """
        return self._select(keys, self._side(direction))

    def _select(self, keys: Collection[str], side: str) -> Selection:
        # An iterator would be empty the second time: here, or in the caller's next search.
        listed = isinstance(keys, Collection) and not isinstance(keys, str)
        if not listed or not all(isinstance(key, str) for key in keys):
            raise TypeError(
                f"keys must be a collection of strings, the keys of the source, got {type(keys).__name__}"
            )
        names = list(dict.fromkeys(keys))
        found = of_keys(self._parts[side], names, sample_ids(names)).without(self._hidden[side])
        return replace(found, release=self.digest, side=side)

    def visible(self, side: str) -> list[tuple[Part, np.ndarray]]:
        """Return the parts of a side, and of each the rows that are not forgotten, ascending."""
        pairs = zip(self._parts[side], self._hidden[side].rows, strict=True)
        return [(part, np.delete(np.arange(part.rows), hidden)) for part, hidden in pairs]

    def exact(self, codes: np.ndarray, k: int, side: str) -> Nearest:
        """Find the k nearest codes of all that a side holds, whatever its index: rows of `visible` parts."""
        self._check(codes, k, side=side)
        parts = self._parts[side]
        return nearest_without(parts, codes, k, hidden=self._hidden[side], ask=partial(scan.nearest, parts))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return the (N, code_length / 8) packed codes of texts, for `search` in direction T2I.

        By the release's own text tower, without torch (extra `query`).

        Raises:
            ValueError: a text is empty or too large, or the tower takes no texts.
            ManifestError: the release carries no encoder.
        """
        return self.encoder("text").texts(texts)

    def encode_image(self, *pictures: bytes) -> np.ndarray:
        """Return the (N, code_length / 8) packed codes of pictures, for `search` in direction I2T.

        Args:
            pictures: the bytes of a file each: JPEG, PNG, WebP, GIF or BMP.
        Raises:
            ValueError: a picture cannot be decoded, or the tower takes no pictures.
            ManifestError: the release carries no encoder.
        """
        return self.encoder("image").pictures(pictures)

    def encoder(self, side: str) -> "QueryEncoder":
        """Return the tower of a side, opened on its first use."""
        if side not in self._encoders:
            from pipeline.search.encoders import open_encoder  # Pillow and onnxruntime are an extra

            self._encoders[side] = open_encoder(Storage(self.uri), self.recipe.model, side)
        return self._encoders[side]

    def _side(self, direction: str) -> str:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        side = DIRECTIONS[direction]
        if side not in self._parts:
            raise ValueError(f"{direction} searches side {side!r}, which was not opened; open it with sides=")
        return side

    def _chosen(self, keys: Collection[str] | Selection, side: str) -> Selection:
        if not isinstance(keys, Selection):
            return self._select(keys, side)
        if (keys.release, keys.side) != (self.digest, side):
            raise ValueError(
                f"the selection is of side {keys.side!r} of release {keys.release}, this is side {side!r} "
                f"of release {self.digest}; call select(keys, direction) again, on the release you search"
            )
        return keys.without(self._hidden[side])

    def _check_origin(self, origin: Origin | None, direction: str) -> None:
        if origin is None:
            return
        side = QUERY_SIDES[direction]
        wanted = self.recipe.fingerprints.get(side)
        if origin.fingerprint not in (None, wanted):
            raise ValueError(
                f"codes are of tower {origin.fingerprint}, release {self.digest} was made with {side} tower "
                f"{wanted}; encode the queries with the release's own model, {self.recipe.model}"
            )
        if origin.bit_order not in (None, BIT_ORDER):
            raise ValueError(
                f"codes have bit order {origin.bit_order!r}, those of release {self.digest} have "
                f"{BIT_ORDER!r}, the first bit most significant; pack them so"
            )

    def _check(self, codes: np.ndarray, k: int = 1, *, side: str) -> None:
        size = self.code_length // 8
        if not isinstance(codes, np.ndarray):
            raise TypeError(f"codes must be a numpy array, got {type(codes).__name__}")
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != size:
            raise ValueError(
                f"codes must be (queries, {size}) uint8 for the {self.code_length}-bit codes of release "
                f"{self.digest}, got {codes.shape} {codes.dtype}"
            )
        _check_whole("k", k)
        if not 1 <= k <= self.rows(side):
            raise ValueError(f"k must be within 1 and the {self.rows(side)} codes of side {side!r}, got {k}")


def _sides(sides: Sequence[str]) -> tuple[str, ...]:
    known, chosen = tuple(DIRECTIONS.values()), tuple(sides)
    if isinstance(sides, str) or not set(chosen) <= set(known):
        raise ValueError(f"sides must be a list of some of {', '.join(known)}, got {sides!r}")
    return chosen


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def _ask(
    parts: Sequence[Part], codes: np.ndarray, k: int, *, effort: Effort, quantiser: Quantiser | None
) -> Nearest:
    return search(parts, codes, k, effort=effort, quantiser=quantiser)


def _keys(parts: Sequence[Part], part: np.ndarray, row: np.ndarray) -> list[list[str]]:
    """Look up the keys of rows of parts, one part at a time."""
    keys = np.empty(part.shape, object)
    for number in np.unique(part[part >= 0]):
        mine = part == number
        keys[mine] = parts[number].keys["key"].take(pa.array(row[mine])).to_pylist()
    if (part >= 0).all():
        return keys.tolist()
    return [[key for key in line if key is not None] for line in keys.tolist()]
