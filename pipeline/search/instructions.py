"""Processor instructions that numba has no name for, written in LLVM's language. Needs numba (extra `fast`).

They become part of the kernels that use them, and numba looks at the file of a kernel only to see whether
what it keeps compiled is stale: `kernels` and `ranking` hold the digest of this file, which a test compares.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 32  # rows per test; 64 is no faster with AVX-512 and slower with AVX2, which has half the registers

_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)


def instruction(function: Callable) -> Any:
    """Make a function that writes LLVM instructions callable from kernels."""
    return intrinsic(function)


@instruction
def popcount(_typing: Any, word: Any) -> Any:
    """Count the one bits of a 64-bit word."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), build


@instruction
def load_word(_typing: Any, address: Any) -> Any:
    """Load 8 bytes, aligned or not: the codes in a FAISS file are not."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _I64.as_pointer()), align=1)

    return types.uint64(types.int64), build


@instruction
def load_byte(_typing: Any, address: Any) -> Any:
    """Load one byte."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = builder.load(builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return builder.zext(byte, _I64)

    return types.uint64(types.int64), build


@instruction
def load_entry(_typing: Any, address: Any, entry: Any) -> Any:
    """Load an entry of an int64 array by its address, so that one kernel can look into any number of them."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        array = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load(builder.gep(array, [arguments[1]]), align=1)

    return types.int64(types.int64, types.int64), build


@instruction
def test_rows(_typing: Any, planes: Any, words: Any, stride: Any, query: Any, limit: Any) -> Any:
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
def distance_at(_typing: Any, planes: Any, words: Any, stride: Any, query: Any) -> Any:
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
