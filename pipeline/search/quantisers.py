"""The coarse quantiser of a release: centroids that say in which inverted list a code lies.

A release has one per side, an input of its parts as the code files are: all parts share it, so which lists a
query visits does not depend on the layout. It is a plain FAISS file named by the digest of its bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from pipeline.releases.addresses import digest_bytes, quantiser_path
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.families import Family
from pipeline.search.parts import Part
from pipeline.search.scan import nearest

MOST_TRAINING_CODES = 64
"""Per list; what training costs grows with it and with the square of the lists."""
TRAINING_BYTES = 33
"""Memory of training per byte of code: the code, and its bits as floats."""
_BLOCK = 1 << 18  # rows assigned at once


@dataclass(frozen=True)
class Quantiser:
    """Centroids, open for use. Safe to use from several threads."""

    index: Any  # faiss.IndexBinaryFlat or faiss.IndexBinaryHNSW
    digest: str

    @property
    def lists(self) -> int:
        return int(self.index.ntotal)

    @property
    def code_size(self) -> int:
        return int(self.index.code_size)

    @cached_property
    def centroids(self) -> Part:
        """The centroids as a flat part, whose row n is list n."""
        flat = faiss.downcast_IndexBinary(self.index.storage) if self._is_graph else self.index
        return Part(flat, pa.table({"id": np.arange(self.lists)}))

    @property
    def _is_graph(self) -> bool:
        return isinstance(self.index, faiss.IndexBinaryHNSW)

    def nearest_lists(self, codes: np.ndarray, n: int, *, threads: int | None = None) -> np.ndarray:
        """Return the (Q, n) lists nearest to each code, by (distance, list).

        A graph may miss some of them. A code for which it gives fewer than n is held against all centroids.
        """
        if not self._is_graph or n >= self.lists:
            return nearest([self.centroids], codes, n, threads=threads).row
        found = self.index.search(codes, n)[1]
        short = (found < 0).any(axis=1)
        if short.any():
            found[short] = nearest([self.centroids], codes[short], n, threads=threads).row
        return found

    def assign(self, codes: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 list in which each code lies."""
        blocks = [codes[start : start + _BLOCK] for start in range(0, len(codes), _BLOCK)]
        return np.concatenate(
            [np.empty(0, np.int64), *(self.nearest_lists(block, 1)[:, 0] for block in blocks)]
        )


def train_quantiser(codes: np.ndarray, family: Family, *, seed: int) -> bytes:
    """Find the centroids of a family's lists by k-means over bits, and return the FAISS file.

    Args:
        codes: (N, S) uint8: a sample of what will be indexed; 64 a list are enough.
    Raises:
        ValueError: fewer codes than lists.
    """
    if len(codes) < family.lists:
        raise ValueError(
            f"index.recipe {family.recipe} needs at least {family.lists} codes to train its lists, got "
            f"{len(codes)}; name fewer lists, or BFlat"
        )
    bits = 8 * codes.shape[1]
    trained = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, family.lists)
    trained.cp.seed = seed % (1 << 31)
    trained.cp.min_points_per_centroid = 1  # whether there are enough of them, the gate finds
    trained.train(np.ascontiguousarray(codes))
    flat: Any = faiss.downcast_IndexBinary(trained.quantizer)
    centroids = faiss.vector_to_array(flat.xb).reshape(-1, codes.shape[1])
    index: Any
    if family.neighbours:
        index = faiss.IndexBinaryHNSW(bits, family.neighbours)
        with one_thread():
            index.add(centroids)
    else:
        index = faiss.IndexBinaryFlat(bits)
        index.add(centroids)
    return faiss.serialize_index_binary(index).tobytes()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use one thread only: it then builds the same graph from the same codes every time."""

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def load_quantiser(data: bytes) -> Quantiser:
    """Open the bytes of a quantiser.

    Raises:
        ValueError: they are none.
    """
    try:
        index = faiss.deserialize_index_binary(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise ValueError("FAISS cannot read it") from error
    if not isinstance(index, faiss.IndexBinaryFlat | faiss.IndexBinaryHNSW) or not index.ntotal:
        raise ValueError(f"it is a {type(index).__name__} of {index.ntotal} codes, no set of centroids")
    return Quantiser(index, digest_bytes(data))


def keep_quantiser(data: bytes, storage: Storage) -> str:
    """Put a quantiser into a store and return its digest."""
    digest = digest_bytes(data)
    storage.create(quantiser_path(digest), data)
    return digest


def open_quantiser(digest: str, storage: Storage) -> Quantiser:
    """Open a quantiser of a store.

    Raises:
        ManifestError: it is missing or damaged.
    """
    path = quantiser_path(digest)
    mend = "restore it, or roll back"
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise ManifestError(
            f"{storage.where(path)} is missing: the release's coarse quantiser; {mend}"
        ) from error
    if digest_bytes(data) != digest:
        raise ManifestError(f"{storage.where(path)} is damaged: its digest is {digest_bytes(data)}; {mend}")
    try:
        return load_quantiser(data)
    except ValueError as error:
        raise ManifestError(f"{storage.where(path)}: {error}; {mend}") from error
