"""A classical picture descriptor, computed with torch from uint8 pixels. Nothing in it is learnt.

Three parts: mean colours on a grid, histograms of gradient directions in cells, and a colour histogram.
"""

import torch
from torch import Tensor

GRID = 6
CELLS = 4
DIRECTIONS = 8
COLOUR_LEVELS = 4
WIDTH = GRID * GRID * 3 + CELLS * CELLS * DIRECTIONS + COLOUR_LEVELS**3
DESCRIPTOR_VERSION = 1


def describe_pixels(pixels: Tensor) -> Tensor:
    """Describe pictures; a row does not depend on the others of its batch.

    Args:
        pixels: (B, H, W, 3) uint8, H and W at least 6.
    Returns:
        (B, WIDTH) float32 in [0, 1].
    """
    colours = pixels.float() / 255
    return torch.cat([_colour_grid(colours), _directions(colours), _colour_histogram(pixels)], dim=1)


def _pool(size: int, cells: int, device: torch.device) -> Tensor:
    """Return the (cells, size) matrix that averages `size` positions into cells of almost equal width."""
    cell = torch.arange(size, device=device) * cells // size
    member = torch.nn.functional.one_hot(cell, cells).float().T
    return member / member.sum(1, keepdim=True)


def _colour_grid(colours: Tensor) -> Tensor:
    batch, height, width, _ = colours.shape
    rows = _pool(height, GRID, colours.device) @ colours.reshape(batch, height, -1)
    columns = _pool(width, GRID, colours.device) @ rows.reshape(batch * GRID, width, 3)
    return columns.reshape(batch, -1)


def _directions(colours: Tensor) -> Tensor:
    """Return per cell the share of gradient magnitude in each of eight directions, square-rooted."""
    grey = colours.mean(3)
    batch, height, width = grey.shape
    dx = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    dy = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    magnitude = torch.hypot(dx, dy)
    # The octant from three comparisons: several times faster than an arc tangent.
    octant = (dx > 0).long() * 4 + (dy > 0).long() * 2 + (dx.abs() > dy.abs()).long()
    row_cell = torch.arange(height - 2, device=grey.device) * CELLS // (height - 2)
    column_cell = torch.arange(width - 2, device=grey.device) * CELLS // (width - 2)
    cell = row_cell[:, None] * CELLS + column_cell[None, :]
    index = (cell * DIRECTIONS)[None] + octant
    bins = grey.new_zeros(batch, CELLS * CELLS * DIRECTIONS)
    bins.scatter_add_(1, index.reshape(batch, -1), magnitude.reshape(batch, -1))
    return (bins * (CELLS * CELLS / ((height - 2) * (width - 2)))).sqrt()


def _colour_histogram(pixels: Tensor) -> Tensor:
    """Return the square-rooted shares of 64 colours."""
    batch = len(pixels)
    level = (pixels >> 6).long()
    index = ((level[..., 0] * COLOUR_LEVELS + level[..., 1]) * COLOUR_LEVELS + level[..., 2]).reshape(
        batch, -1
    )
    bins = torch.zeros(batch, COLOUR_LEVELS**3, device=pixels.device)
    bins.scatter_add_(1, index, torch.ones((), device=pixels.device).expand_as(index))
    return (bins / index.shape[1]).sqrt()
