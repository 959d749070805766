"""Open a published release and search it: the search team's way in. Never imports torch or ray.

    release = Release.open("s3://bucket/store")
    hits = release.search(codes, k=10, direction="T2I")

Parts on a local disk are memory-mapped where they lie; those of a remote store are downloaded once into a
cache folder, checked against the release's sha256, and mapped from there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.releases.heads import Log
from pipeline.releases.manifest import (
    ManifestError,
    ReleaseManifest,
    ReleaseRecipe,
    check_store,
    read_release,
    read_table,
)
from pipeline.releases.storage import Storage
from pipeline.search.approximate import search, within
from pipeline.search.families import Effort
from pipeline.search.parts import Part, PartsOpening, cache_folder, open_part
from pipeline.search.quantisers import Quantiser, open_quantiser

Direction = Literal["T2I", "I2T"]
DIRECTIONS: dict[str, str] = {"T2I": "image", "I2T": "text"}
"""What is asked with and what is searched -> the side that is searched."""
_EFFORTS = tuple(field.name for field in fields(Effort))


@dataclass(frozen=True)
class Hits:
    """Answers in the order (distance, id, key): one row per query, nearest first."""

    distances: np.ndarray  # (Q, k) int32 Hamming distances
    ids: np.ndarray  # (Q, k) int64
    keys: list[list[str]]  # Q lists of k: the source's own names


class Release:
    """One published whole, open for searching. Safe to use from several threads."""

    def __init__(
        self,
        uri: str,
        digest: str,
        *,
        manifest: ReleaseManifest,
        parts: Mapping[str, Sequence[Part]],
        quantisers: Mapping[str, Quantiser] | None = None,
    ) -> None:
        self.uri = uri
        self.digest = digest
        self.manifest = manifest
        self._parts = {side: [part for part in opened if part.rows] for side, opened in parts.items()}
        self._quantisers = dict(quantisers or {})
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
            sides: those that will be searched; T2I searches `image`, I2T `text`.
            cache: folder for the parts of a remote store; by default `hashfleet` in the user's cache folder.
            check: read the parts of a local store in full and compare their sha256s; copies of a remote
                one's always are, when they are made.
        Raises:
            ManifestError: no release is published, the store is of a newer format, or a file of the release
                is missing or is not the one that it names.
            OSError: the cache folder is full or cannot be written, or the store cannot be read.
        """
        storage = Storage(os.fspath(uri))
        check_store(storage)
        if digest is None:
            digest = Log(storage, channel).current_release()
            if digest is None:
                raise ManifestError(
                    f"{storage.where()}: nothing is published in channel {channel!r}; a nightly run does that"
                )
        manifest = read_release(storage, digest)
        rows = [row for row in read_table(storage, manifest, "parts").to_pylist() if row["side"] in sides]
        opening = PartsOpening(
            code_length=manifest.recipe.code_length,
            cache=cache_folder() if cache is None else Path(cache),
            recipe=manifest.recipe.index.get("recipe", "BFlat"),
            check=check,
        )
        parts: dict[str, list[Part]] = {side: [] for side in sides}
        for row in rows:
            parts[row["side"]].append(open_part(storage, row, opening))
        quantisers = {
            side: open_quantiser(name, storage)
            for side, name in manifest.recipe.quantisers.items()
            if parts.get(side)
        }
        return cls(storage.uri, digest, manifest=manifest, parts=parts, quantisers=quantisers)

    @property
    def recipe(self) -> ReleaseRecipe:
        """What the codes were made with: model, fingerprints, code length, index."""
        return self.manifest.recipe

    @property
    def code_length(self) -> int:
        return self.manifest.recipe.code_length

    def rows(self, side: str) -> int:
        """Return the number of codes of a side."""
        return sum(part.rows for part in self._parts[side])

    def search(self, codes: np.ndarray, k: int = 10, direction: Direction = "T2I") -> Hits:
        """Find the k codes nearest to each query, of those that the release's index looks at: BFlat at all.

        Args:
            codes: (Q, code_length / 8) uint8 packed codes, of the text tower for T2I, of the image tower
                for I2T.
            k: hits per query, at most the number of codes of the side.
        Returns:
            hits ordered by (distance, id, key), whatever the layout of the parts. Where a BHash or BHNSW
                index finds fewer than k, the query has as many keys, and NO_DISTANCE and -1 follow.
        Raises:
            ValueError: an unknown direction, codes of another shape or type, or k out of range.
        """
        side = self._side(direction)
        self._check(codes, k, side=side)
        parts = self._parts[side]
        found = search(parts, codes, int(k), effort=self._effort, quantiser=self._quantisers.get(side))
        return Hits(found.distances, found.ids, _keys(parts, found.part, found.row))

    def range_search(
        self, codes: np.ndarray, radius: int, direction: Direction = "T2I"
    ) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Find every code at most `radius` away from each query; memory grows with their number.

        All codes are looked at, of a BHash index its candidates.

        Args:
            codes, direction: as for `search`.
            radius: Hamming distance, itself included.
        Returns:
            for each query the distances, ids and keys of its hits, ordered as those of `search`.
        Raises:
            ValueError: as `search`; a radius below 0.
        """
        side = self._side(direction)
        self._check(codes, 1, side=side)
        parts = self._parts[side]
        found = within(parts, codes, int(radius), effort=self._effort)
        keys = _keys(parts, found.part[None], found.row[None])[0]
        limits = pairwise(found.limits.tolist())
        return [(found.distances[a:b], found.ids[a:b], keys[a:b]) for a, b in limits]

    def _side(self, direction: str) -> str:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        side = DIRECTIONS[direction]
        if side not in self._parts:
            raise ValueError(f"{direction} searches side {side!r}, which was not opened; open it with sides=")
        return side

    def _check(self, codes: np.ndarray, k: int, *, side: str) -> None:
        size = self.code_length // 8
        if not isinstance(codes, np.ndarray):
            raise TypeError(f"codes must be a numpy array, got {type(codes).__name__}")
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != size:
            raise ValueError(
                f"codes must be (queries, {size}) uint8 for the {self.code_length}-bit codes of release "
                f"{self.digest}, got {codes.shape} {codes.dtype}"
            )
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise TypeError(f"k must be a whole number, got {k!r}")
        if not 1 <= k <= self.rows(side):
            raise ValueError(f"k must be within 1 and the {self.rows(side)} codes of side {side!r}, got {k}")


def _keys(parts: Sequence[Part], part: np.ndarray, row: np.ndarray) -> list[list[str]]:
    """Look up the keys of rows of parts, one part at a time."""
    keys = np.empty(part.shape, object)
    for number in np.unique(part[part >= 0]):
        mine = part == number
        keys[mine] = parts[number].keys["key"].take(pa.array(row[mine])).to_pylist()
    if (part >= 0).all():
        return keys.tolist()
    return [[key for key in line if key is not None] for line in keys.tolist()]
