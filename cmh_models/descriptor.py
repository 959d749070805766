"""A classical picture descriptor, computed with torch from uint8 pixels. Nothing in it is learnt.

Three parts: mean colours on a grid, histograms of gradient directions in cells, and a colour histogram.
All sums are over whole numbers that single precision holds exactly (pictures up to 496 pixels a side), so a
row's description is the same in any batch and in any order of summation.
"""

import math

import torch
from torch import Tensor

GRID = 6
CELLS = 4
DIRECTIONS = 8
COLOURS = 64
DESCRIPTOR_VERSION = 1
SLICE_VALUES = 1 << 21
"""On a CPU so many pixel values are described at once: what is made of more of them falls out of the caches,
and its memory goes back to the system after each pass."""


def width_of(cells: int = CELLS) -> int:
    """Return the number of features of a description."""
    return GRID * GRID * 3 + cells * cells * DIRECTIONS + COLOURS


WIDTH = width_of()


def describe_pixels(pixels: Tensor, cells: int = CELLS) -> Tensor:
    """Describe pictures.

    Args:
        pixels: (B, S, S, 3) uint8, S at least 8.
        cells: of gradient directions, to a side of the picture.
    Returns:
        (B, width_of(cells)) float32, about 0 to 1.
    """
    # Autocast would round the sums to half precision.
    with torch.autocast(pixels.device.type, enabled=False):
        if pixels.device.type != "cpu" or torch.compiler.is_exporting():
            return _describe(pixels, cells)
        if not len(pixels):
            return pixels.new_zeros((0, width_of(cells)), dtype=torch.float32)
        count = max(1, SLICE_VALUES // math.prod(pixels.shape[1:]))
        return torch.cat([_describe(part, cells) for part in pixels.split(count)])


def _describe(pixels: Tensor, cells: int) -> Tensor:
    values = pixels.float()
    return torch.cat([_colour_grid(values), _directions(values, cells), _colour_shares(pixels)], dim=1)


def _colour_grid(values: Tensor) -> Tensor:
    batch, height, width, _ = values.shape
    members = _cell_members(height, GRID, values.device)
    rows = members @ values.reshape(batch, height, width * 3)
    sums = members @ rows.reshape(batch * GRID, width, 3)
    pixels = members.sum(1)
    counts = 255 * pixels[:, None] * pixels[None, :]
    return (sums.reshape(batch, GRID, GRID, 3) / counts[..., None]).reshape(batch, -1)


def _cell_members(size: int, cells: int, device: torch.device) -> Tensor:
    """Return (cells, size): 1 where a position belongs to a cell; cells are of almost equal width."""
    return torch.nn.functional.one_hot(_cell_of(size, cells, device), cells).float().T


def _cell_of(size: int, cells: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device) * cells // size


def _directions(values: Tensor, cells: int) -> Tensor:
    """Return per cell the gradient magnitude in each of eight directions, square-rooted."""
    grey = values[..., 0] + values[..., 1] + values[..., 2]
    dx = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    dy = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    magnitude = (dx * dx + dy * dy).sqrt_().round_()
    # The octant by three comparisons: several times faster than an arc tangent.
    right, down = dx > 0, dy > 0
    octant = _bits(right, down, dx.abs_() > dy.abs_())
    batch, height, width = magnitude.shape
    cell = _cell_of(height, cells, grey.device)[:, None] * cells + _cell_of(width, cells, grey.device)
    index = (cell * DIRECTIONS) + octant
    bins = magnitude.new_zeros(batch, cells * cells * DIRECTIONS)
    bins.scatter_add_(1, index.reshape(batch, -1), magnitude.reshape(batch, -1))
    pixels_of_a_cell = height * width / cells**2
    return (bins / (765 * pixels_of_a_cell)).sqrt()


def _bits(high: Tensor, middle: Tensor, low: Tensor) -> Tensor:
    """Return the number that three booleans spell."""
    if torch.compiler.is_exporting():  # ONNX shifts no bytes
        return 4 * high.long() + 2 * middle.long() + low.long()
    return (high.byte() << 2) | (middle.byte() << 1) | low.byte()


def _colour_shares(pixels: Tensor) -> Tensor:
    """Return the square-rooted shares of 64 colours, four levels of each channel."""
    level = pixels.long() // 64 if torch.compiler.is_exporting() else pixels >> 6
    red, green, blue = level.unbind(-1)
    joined = 16 * red + 4 * green + blue if torch.compiler.is_exporting() else red << 4 | green << 2 | blue
    index = joined.reshape(len(pixels), -1).long()
    bins = torch.zeros(len(pixels), COLOURS, device=pixels.device)
    bins.scatter_add_(1, index, torch.ones_like(index, dtype=bins.dtype))
    return (bins / index.shape[1]).sqrt()
