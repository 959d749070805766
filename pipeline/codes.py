"""Hash codes: packing, unpacking and Hamming distance. The one definition of a hash code; numpy only.

A bit is ``value >= 0``; eight bits share a byte, the first bit in its most significant place.
"""

import numpy as np

BIT_ORDER = "msb"
PACKER_VERSION = 2
"""Part of the address of every code file: goes up when codes or the content hashes beside them change."""
_PACK_BLOCK = 1 << 18  # values, a multiple of 8


def check_code_length(code_length: int) -> int:
    """Return `code_length` when it is a positive multiple of 8.

    Raises:
        ValueError: it is not.
    """
    if code_length <= 0 or code_length % 8:
        raise ValueError(f"code_length must be a positive multiple of 8, got {code_length}")
    return code_length


def code_size(code_length: int) -> int:
    """Return the bytes of one packed code."""
    return check_code_length(code_length) // 8


def pack(values: np.ndarray) -> np.ndarray:
    """Pack relaxed or hash codes into bytes, eight bits per byte, first bit most significant.

    Args:
        values: (N, L) real; L a multiple of 8; bit = (value >= 0), so 0 counts as +1.
    Returns:
        (N, L // 8) uint8.
    Raises:
        ValueError: L is not a multiple of 8, or a value is NaN.
    """
    if values.ndim != 2:
        raise ValueError(f"codes must have shape (N, L), got {values.shape}")
    check_code_length(values.shape[1])
    # Packing the flattened comparison is twice as fast as axis=1 and the same, as L is whole bytes. A block
    # is looked at twice, the second time in a cache.
    flat = np.ravel(values)
    packed = np.empty(flat.size // 8, np.uint8)
    for start in range(0, flat.size, _PACK_BLOCK):
        block = flat[start : start + _PACK_BLOCK]
        if _has_nan(block):
            rows = np.flatnonzero(np.isnan(values).any(axis=1))
            raise ValueError(
                f"codes must not be NaN; {len(rows)} of {len(values)} rows are, first at {rows[0]}"
            )
        packed[start // 8 : (start + len(block)) // 8] = np.packbits(block >= 0)
    return packed.reshape(len(values), values.shape[1] // 8)


def _has_nan(values: np.ndarray) -> bool:
    if values.dtype in (np.float32, np.float64):
        # A sum of squares is NaN exactly when one of them is: infinities of one sign add up to infinity.
        return bool(np.isnan(values @ values))
    return bool(np.issubdtype(values.dtype, np.floating) and np.isnan(values).any())


def unpack(packed: np.ndarray) -> np.ndarray:
    """Return the (N, L) int8 hash codes in {-1, +1} of (N, L // 8) uint8 packed ones."""
    _check_packed(packed)
    return np.unpackbits(packed, axis=1).view(np.int8) * np.int8(2) - np.int8(1)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the (Q, N) Hamming distances between two sets of packed codes.

    Args:
        a: (Q, S) uint8.
        b: (N, S) uint8.
    Returns:
        (Q, N) uint16, in [0, 8 S]. Needs memory for Q x N x 2 bytes: call it in blocks.
    Raises:
        ValueError: the code sizes differ, or an array is not packed codes.
    """
    _check_packed(a)
    _check_packed(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"codes must have equal length, got {a.shape[1] * 8} and {b.shape[1] * 8} bits")
    words_a, words_b = _as_words(a), _as_words(b)
    distances = np.zeros((len(a), len(b)), dtype=np.uint16)
    for word in range(words_a.shape[1]):
        distances += np.bitwise_count(words_a[:, word, None] ^ words_b[None, :, word])
    return distances


def _as_words(packed: np.ndarray) -> np.ndarray:
    """View packed codes as the widest unsigned integers that divide their size."""
    width = next(w for w in (8, 4, 2, 1) if packed.shape[1] % w == 0)
    return np.ascontiguousarray(packed).view(f"u{width}")


def _check_packed(packed: np.ndarray) -> None:
    if packed.ndim != 2 or packed.dtype != np.uint8:
        raise ValueError(f"packed codes must be (N, bytes) uint8, got {packed.shape} {packed.dtype}")
