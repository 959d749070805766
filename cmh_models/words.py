"""From a text to token ids: words and pairs of neighbouring words, hashed. No vocabulary is learnt or stored.

Ids: 0 is padding; 1 .. word_buckets are words; the pair buckets follow.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

TOKENISER_VERSION = 1
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=1 << 16)
def _bucket(token: str, buckets: int) -> int:
    # CRC-32 is the same on every machine and in every process, which Python's hash() is not.
    return zlib.crc32(token.encode()) % buckets


def words_of(text: str, max_words: int) -> list[str]:
    """Return the case-folded words of a text, at most `max_words`."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())[:max_words]


def token_ids(texts: Sequence[str], word_buckets: int, *, pair_buckets: int, max_words: int) -> np.ndarray:
    """Hash texts into padded token ids.

    Args:
        pair_buckets: 0 leaves the pairs of neighbouring words out.
    Returns:
        (B, T) int64; each row first words, then pairs, then zeros; T is that of the longest text, at least 1.
    """
    rows = []
    for text in texts:
        words = words_of(text, max_words)
        row = [1 + _bucket(word, word_buckets) for word in words]
        if pair_buckets:
            first = 1 + word_buckets
            row += [first + _bucket(f"{a} {b}", pair_buckets) for a, b in pairwise(words)]
        rows.append(row)
    ids = np.zeros((len(rows), max(1, *map(len, rows)) if rows else 1), dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return ids
