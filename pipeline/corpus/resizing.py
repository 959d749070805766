"""Pillow's bilinear resize, compiled: equal to the last bit, more than twice as fast.

Needs numba. The arithmetic is that of Pillow's own resampling of 8-bit pictures: a triangle as wide as the
scale, weights in 22 bits fixed point, rows first, rounded to 8 bits in between.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from PIL import Image

_BITS = 22
_HALF = np.uint32(1 << (_BITS - 1))
_SHIFT = np.uint32(_BITS)
_BYTE = np.uint32(255)
_LANES = 16  # rows that go through one vector register
_FEW = 4  # taps of a window that are held in registers: of all where the scale is up to 2


def _kernel(function: Callable) -> Any:
    """Compile on first use, without the GIL; cached on disk where a folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no writable folder, neither beside this file nor the user's
        return numba.njit(nogil=True)(function)


class _Weights(NamedTuple):
    """For each place of the output: where its window begins, how long it is, and what its members weigh."""

    first: np.ndarray
    taps: np.ndarray
    weight: np.ndarray  # (out, longest or _FEW) uint32: 0 after the last tap


def takes(width: int, height: int, size: int) -> bool:
    """Tell whether a picture is resampled rows first by Pillow too; tall ones are not."""
    return width >= size and height >= size and height - size <= 1.9 * (width - size)


@lru_cache(maxsize=1)
def equals_pillow() -> bool:
    """Tell whether this gives the pixels of the Pillow that is installed, on a few pictures."""
    for width, height, box in (
        (30, 24, (0.5, 0, 29, 24)),
        (50, 40, (0, 0, 50, 40)),
        (40, 50, (0, 5.3, 40, 45.1)),
        (33, 33, (0, 0, 33, 33)),
    ):
        noise = (np.arange(width * height * 4, dtype=np.uint64) ** 3 % 251).astype(np.uint8)
        pixels = noise.reshape(height, width, 4)
        picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
        expected = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR, box=box))
        if not np.array_equal(resize(pixels, 16, box), expected):
            return False
    return True


def resize(pixels: np.ndarray, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Resize a part of a picture to a square.

    Args:
        pixels: (H, W, 4) uint8, C-contiguous; the fourth value is not looked at.
        box: left, top, right and bottom of the part, in pixels.
    Returns:
        (size, size, 3) uint8.
    """
    height, width, _ = pixels.shape
    squared = np.empty((size, size, 3), np.uint8)
    across = _weights(width, box[0], box[2], size)
    down = _weights(height, box[1], box[3], size)
    _resample(pixels.reshape(height, -1).view(np.uint32), across, down, squared)
    return squared


@lru_cache(maxsize=1024)  # photographs come in few sizes
def _weights(length: int, start: float, stop: float, out: int) -> _Weights:
    # Pillow takes the box as 32-bit floats and goes on in 64 bits.
    low, high = np.float32(start), np.float32(stop)
    scale = float(high - low) / out
    reach = max(scale, 1.0)
    centre = float(low) + (np.arange(out) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + reach + 0.5).astype(np.int64), length) - first
    member = np.arange(max(_FEW, int(count.max())))
    distance = np.abs((member + first[:, None] - centre[:, None] + 0.5) * (1.0 / reach))
    weight = np.where((distance < 1.0) & (member < count[:, None]), 1.0 - distance, 0.0)
    total = np.zeros(out)
    for column in weight.T:  # in Pillow's order: sums of floats depend on it
        total += column
    weight = (0.5 + weight / total[:, None] * (1 << _BITS)).astype(np.uint32)
    return _Weights(first.astype(np.int32), count.astype(np.int32), weight)


@_kernel
def _resample(pixels, across, down, squared):  # type: ignore[no-untyped-def]
    """Resample (H, W) pixels of four bytes, across and then down."""
    size = len(down.first)
    top = down.first[0]
    rows = down.first[size - 1] + down.taps[size - 1] - top
    between = np.empty((rows, size), np.uint32)
    _resample_across(pixels[top : top + rows], across, between)
    flat = between.view(np.uint8)
    line = np.empty(4 * size, np.uint32)
    for y in range(size):
        line[:] = _HALF
        for k in range(down.taps[y]):
            weight, row = down.weight[y, k], flat[down.first[y] - top + k]
            for i in range(4 * size):
                line[i] += np.uint32(row[i]) * weight
        for x in range(size):
            for channel in range(3):
                squared[y, x, channel] = line[4 * x + channel] >> _SHIFT


@_kernel
def _resample_across(pixels, across, between):  # type: ignore[no-untyped-def]
    """Resample rows, several at a time: turned by 90 degrees, their values fill a vector register."""
    rows, size = between.shape
    left = across.first[0]
    width = across.first[size - 1] + across.taps[size - 1] - left
    turned = np.zeros((width + _FEW, _LANES), np.uint32)
    mixed = np.empty((size, _LANES), np.uint32)
    for start in range(0, rows, _LANES):
        held = min(_LANES, rows - start)
        for lane in range(held):
            _spread(pixels[start + lane, left : left + width], turned.reshape(-1), lane)
        for x in range(size):
            first = across.first[x] - left
            if across.taps[x] <= _FEW:
                _mix_few(turned[first : first + _FEW], across.weight[x], mixed[x])
            else:
                _mix(turned[first : first + across.taps[x]], across.weight[x], mixed[x])
        for lane in range(held):
            _collect(mixed.reshape(-1), lane, between[start + lane])


# Numbers without a sign in `_spread` and `_collect`: Python's places from the end are then not asked about.


@_kernel
def _spread(row, turned, lane):  # type: ignore[no-untyped-def]
    """Write a row to every _LANES-th place."""
    at = np.uint64(lane)
    for value in row:
        turned[at] = value
        at += np.uint64(_LANES)


@_kernel
def _collect(mixed, lane, row):  # type: ignore[no-untyped-def]
    """Read a row from every _LANES-th place."""
    at = np.uint64(lane)
    for x in range(len(row)):
        row[x] = mixed[at]
        at += np.uint64(_LANES)


@_kernel
def _mix_few(columns, weight, out):  # type: ignore[no-untyped-def]
    """Weigh _FEW columns of pixels: their sums never leave the registers, which takes half the time."""
    first, second, third, fourth = columns[0], columns[1], columns[2], columns[3]
    w, x, y, z = weight[0], weight[1], weight[2], weight[3]
    for lane in range(_LANES):
        a, b, c, d = first[lane], second[lane], third[lane], fourth[lane]
        pixel = np.uint32(0)
        for shift in (np.uint32(0), np.uint32(8), np.uint32(16)):
            total = (a >> shift & _BYTE) * w + (b >> shift & _BYTE) * x
            total += (c >> shift & _BYTE) * y + (d >> shift & _BYTE) * z
            pixel |= (_HALF + total >> _SHIFT) << shift
        out[lane] = pixel


@_kernel
def _mix(columns, weight, out):  # type: ignore[no-untyped-def]
    """Weigh any number of columns of pixels."""
    sums = np.empty((3, _LANES), np.uint32)
    sums[:] = _HALF
    for k in range(len(columns)):
        for lane in range(_LANES):
            value = columns[k, lane]
            sums[0, lane] += (value & _BYTE) * weight[k]
            sums[1, lane] += (value >> np.uint32(8) & _BYTE) * weight[k]
            sums[2, lane] += (value >> np.uint32(16) & _BYTE) * weight[k]
    for lane in range(_LANES):
        pixel = sums[0, lane] >> _SHIFT | (sums[1, lane] >> _SHIFT) << np.uint32(8)
        out[lane] = pixel | (sums[2, lane] >> _SHIFT) << np.uint32(16)
