"""Compiled kernels of the exact scan. Needs numba (extra `fast`).

A block of rows is rewritten as planes: plane w holds the 64-bit word w of each of its codes, so that one
vector instruction meets the same word of many rows. The last word of a code is padded with zeros, as that
of the query is. A test of LANES rows costs three instructions a vector and yields one bit per row; rows that
pass it are rare, and only they are looked at one by one.

Kernels release the GIL and share nothing, so callers run them in threads of their own. They call nothing
compiled in other files, whose changes numba's cache would not see.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from pipeline.search.ranking import PART, Candidates, compiled, inlined, instruction

LANES = 32  # rows per test; 64 is no faster with AVX-512 and slower with AVX2, which has half the registers
BLOCK_BYTES = 16 << 10  # planes of one block: half of a first-level cache of 32 KiB
FEW = 8  # queries; for no more than that, copying codes of one word onto cache lines does not pay

_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)
_ONE = np.uint64(1)


class _Block(NamedTuple):
    """Rows of a part as planes. All are numbers: arrays would be reference-counted on the way."""

    planes: int  # address of (words, stride) uint64; what stands past `rows` is left over
    words: int
    stride: int
    place: int  # of the first row
    rows: int


@instruction
def _popcount(_typing: Any, word: Any) -> Any:
    """Count the one bits of a 64-bit word."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), build


@instruction
def _load_word(_typing: Any, address: Any) -> Any:
    """Load 8 bytes, aligned or not: the codes in a FAISS file are not."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _I64.as_pointer()), align=1)

    return types.uint64(types.int64), build


@instruction
def _test(_typing: Any, planes: Any, words: Any, stride: Any, query: Any, limit: Any) -> Any:
    """Return a mask whose bit i is set where row i, counted from address `planes`, is nearer than `limit`.

    Written as LLVM vectors, so that nothing depends on what a loop vectoriser makes of it; LLVM turns them
    into what the processor has: vpopcntq, or tables of half bytes.
    """

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        *where, limit = arguments
        near = builder.icmp_unsigned("<", _distances(builder, _VECTOR, where), _splat(builder, limit))
        return builder.zext(builder.bitcast(near, ir.IntType(LANES)), _I64)

    return types.uint64(*[types.int64] * 5), build


@instruction
def _distance(_typing: Any, planes: Any, words: Any, stride: Any, query: Any) -> Any:
    """Return the distance of the row at address `planes` from the query at address `query`."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _distances(builder, _I64, arguments)

    return types.int64(*[types.int64] * 4), build


def _distances(builder: Any, kind: Any, where: Any) -> Any:
    """Return the distance of one row, or those of LANES rows, as `kind` is a word or a vector."""
    planes, words, stride, query = where
    name = "llvm.ctpop.i64" if kind is _I64 else f"llvm.ctpop.v{LANES}i64"
    ctpop = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
    rows = builder.inttoptr(planes, _I64.as_pointer())
    wanted = builder.inttoptr(query, _I64.as_pointer())

    def distances(word: Any) -> Any:
        place = builder.bitcast(builder.gep(rows, [builder.mul(word, stride)]), kind.as_pointer())
        bits = builder.load(builder.gep(wanted, [word]))
        bits = bits if kind is _I64 else _splat(builder, bits)
        return builder.call(ctpop, [builder.xor(builder.load(place, align=1), bits)])

    total = cgutils.alloca_once_value(builder, distances(_I64(0)))
    with cgutils.for_range(builder, words, start=_I64(1)) as loop:
        builder.store(builder.add(builder.load(total), distances(loop.index)), total)
    return builder.load(total)


def _splat(builder: Any, value: Any) -> Any:
    """Return a vector with `value` in every lane."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    one_lane = builder.insert_element(nothing, value, ir.IntType(32)(0))
    return builder.shuffle_vector(one_lane, nothing, ir.VectorType(ir.IntType(32), LANES)([0] * LANES))


@compiled
def open_part(candidates: Candidates) -> int:
    """Make ready for the next part, drop what can no longer be an answer; return the most entries left."""
    most = 0
    for query in range(candidates.filled.shape[0]):
        distances, places, cut = candidates.distances[query], candidates.places[query], candidates.cut[query]
        end = 0
        for entry in range(candidates.filled[query]):
            distance, place = distances[entry], places[entry]
            distances[end], places[end] = distance, place
            end += distance <= cut
        candidates.start[query] = candidates.filled[query] = end
        candidates.ties[query] = candidates.nearer[query] > 0 or cut < candidates.counts.shape[1] - 1
        most = max(most, end)
    return most


@compiled
def search_part(codes: Any, span: Any, queries: Any, candidates: Candidates, k: int) -> None:
    """Note which rows `first <= row < stop` of a part may belong to the k nearest of every query.

    Args:
        codes: (N, S) uint8, C-contiguous, read-only.
        span: the part's number, first, stop.
        queries: (Q, ceil(S / 8)) uint64.
        candidates: with room for 2k + 1 rows, or for all of the span.
    """
    part, start, stop = span
    planes = _new_planes(queries.shape[1])
    for first in range(start, stop, planes.shape[1]):
        block = _fill(planes, codes, (part, first, stop), queries.shape[0] <= FEW)
        for query in range(queries.shape[0]):
            words = _address(queries) + 8 * query * block.words
            at = _skip(block, 0, words, candidates.cut[query] + candidates.ties[query])
            if at < block.rows:
                _note(block, at, words, (candidates, query), k)


@compiled
def count_within(codes: Any, span: Any, queries: Any, limit: int, counts: Any) -> None:
    """Add to `counts` (Q,) how many rows of the span are nearer than `limit`."""
    part, start, stop = span
    planes = _new_planes(queries.shape[1])
    for first in range(start, stop, planes.shape[1]):
        block = _fill(planes, codes, (part, first, stop), queries.shape[0] <= FEW)
        for query in range(queries.shape[0]):
            words = _address(queries) + 8 * query * block.words
            for at in range(0, block.rows, LANES):
                counts[query] += _popcount(_near(block, at, words, limit))


@compiled
def collect_within(codes: Any, span: Any, queries: Any, limit: int, output: Any) -> None:
    """Write the rows nearer than `limit` to `output`: (Q,) next positions, distances, places."""
    positions, distances, places = output
    part, start, stop = span
    planes = _new_planes(queries.shape[1])
    for first in range(start, stop, planes.shape[1]):
        block = _fill(planes, codes, (part, first, stop), queries.shape[0] <= FEW)
        for query in range(queries.shape[0]):
            words = _address(queries) + 8 * query * block.words
            at = _skip(block, 0, words, limit)
            while at < block.rows:
                near = _near(block, at, words, limit)
                while near:
                    row = at + _lowest(near)
                    near &= near - _ONE
                    distances[positions[query]] = _row_distance(block, row, words)
                    places[positions[query]] = block.place + row
                    positions[query] += 1
                at = _skip(block, at + LANES, words, limit)


@compiled
def _address(array: Any) -> Any:
    """Return where an array starts; signed, as the sum of a signed and an unsigned number is a float."""
    return np.int64(array.ctypes.data)


@compiled
def _new_planes(words: int) -> Any:
    """Return (words, rows of a block) uint64 that start on a cache line, so that no vector crosses two."""
    rows = max(LANES, BLOCK_BYTES // 8 // words // LANES * LANES)
    room = np.empty(words * rows + 8, np.uint64)
    start = -(_address(room) // 8) % 8
    return room[start : start + words * rows].reshape(words, rows)


@compiled
def _fill(planes: Any, codes: Any, span: Any, few: bool) -> Any:
    """Turn rows of a part into planes, as many as there are and fit."""
    part, first, stop = span
    rows, size = min(planes.shape[1], stop - first), codes.shape[1]
    address, place = _address(codes) + first * size, part << PART | first
    if few and size == 8 and rows == planes.shape[1]:
        return _Block(address, 1, rows, place, rows)
    for word in range(size // 8):
        for row in range(rows):
            planes[word, row] = _load_word(address + row * size + 8 * word)
    tail = size % 8
    if tail:
        end = _address(codes) + codes.size
        mask = (_ONE << np.uint64(8 * tail)) - _ONE
        for row in range(rows):
            last = address + (row + 1) * size - tail
            if last + 8 <= end:
                planes[size // 8, row] = _load_word(last) & mask
            else:  # a whole word would pass the end of the codes
                value = np.uint64(0)
                for byte in range(tail):
                    value |= np.uint64(codes[first + row, size - tail + byte]) << np.uint64(8 * byte)
                planes[size // 8, row] = value
    return _Block(_address(planes), planes.shape[0], planes.shape[1], place, rows)


@compiled
def _skip(block: Any, at: int, query: int, limit: int) -> int:
    """Return where the next row nearer than `limit` is tested, from `at` on, or the end of the planes.

    This loop is where the time goes: it stands alone, so that it has the registers for itself.
    """
    while at < block.stride and not _test(block.planes + 8 * at, block.words, block.stride, query, limit):
        at += LANES
    return at


@compiled
def _near(block: Any, at: int, query: int, limit: int) -> Any:
    """Return the mask of the rows from `at` on that are nearer than `limit`, none past the block's end."""
    near = _test(block.planes + 8 * at, block.words, block.stride, query, limit)
    if block.rows - at < LANES:
        near &= (_ONE << np.uint64(block.rows - at)) - _ONE
    return near


@compiled
def _row_distance(block: Any, row: int, query: int) -> int:
    return _distance(block.planes + 8 * row, block.words, block.stride, query)


@compiled
def _lowest(mask: Any) -> int:
    """Return the place of the lowest bit that is set."""
    return _popcount(~mask & (mask - _ONE))


@inlined
def _note(block: Any, at: int, words: int, line: Any, k: int) -> None:
    """Note the rows up to the cut, from `at` on; k of them bring it down to the k-th distance.

    Args:
        words: address of the query.
        line: candidates, and the number of the query in them.
    """
    candidates, query = line
    counts, cut, nearer = candidates.counts[query], candidates.cut[query], candidates.nearer[query]
    distances, places = candidates.distances[query], candidates.places[query]
    ties, end = candidates.ties[query], candidates.filled[query]
    while at < block.rows:
        near = _near(block, at, words, cut + ties)
        while near:
            row = at + _lowest(near)
            near &= near - _ONE
            distance = _row_distance(block, row, words)
            if end == places.size:
                end, missing = _compact(candidates, query, cut, k)
                ties = min(ties, missing)
            if distance >= cut + ties:
                continue
            distances[end], places[end] = distance, block.place + row
            counts[distance] += 1
            nearer += distance < cut
            end += 1
            while nearer >= k:
                cut -= 1
                nearer -= counts[cut]
                ties = candidates.ties[query]
        at = _skip(block, at + LANES, words, cut + ties)
    candidates.cut[query], candidates.nearer[query], candidates.filled[query] = cut, nearer, end


@compiled
def _compact(candidates: Any, query: int, cut: int, k: int) -> Any:
    """Keep the first k rows of this part up to the cut; return the new end, and how many k is short of."""
    distances, places, end = candidates.distances[query], candidates.places[query], candidates.start[query]
    missing = k
    for entry in range(end, places.size):
        missing -= distances[entry] < cut
    for entry in range(end, places.size):
        distance, place = distances[entry], places[entry]
        if distance < cut or (distance == cut and missing > 0):
            missing -= distance == cut
            distances[end], places[end] = distance, place
            end += 1
    return end, missing
