"""Decoding one picture: whole or not at all, and the same bytes always to the same pixels.

Pillow reads the header, decides what is wrong with a picture, and decodes what is not a sound JPEG. With the
extra `fast` (simplejpeg, numba) a sound JPEG is decoded and resized faster and to the very same pixels: no
code depends on it. Equal pixels across machines need the same libjpeg. A fault is a ValueError whose message
reads "reason: detail", the reason being one of a few short classes to count by.
"""

import io
import itertools
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # the extra `fast` is not installed
    simplejpeg = None

WARM_UP = 500
"""So many pictures of a process are resized by Pillow: loading the compiled resize would take longer."""

_decoded = itertools.count()

Resize = Callable[[np.ndarray, int, tuple[float, float, float, float]], np.ndarray]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pictures we read. A shorter list of parsers is a smaller surface for hostile bytes."""

# Pillow's own, laxer pixel limit warns about what `max_pixels` decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_picture(data: bytes | memoryview, size: int, *, crop: bool, max_pixels: int) -> np.ndarray:
    """Decode a picture to a square of uint8 RGB; animations give their first frame.

    The whole picture is scaled to the square, or with `crop` its largest central square. One bilinear
    filter with antialiasing; a JPEG of at least twice the size asked for is first decoded at 1/2, 1/4 or 1/8
    (libjpeg's scaled decode: much faster on photographs, and repeatable). Transparency lies on white;
    stored orientation is not applied.

    Returns:
        (size, size, 3) uint8.
    Raises:
        ValueError: "not an image", "image too large", "truncated image" or "damaged image".
    """
    # Some library in the process may have asked for half-decoded pictures; we never want them.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height <= max_pixels:
                return _to_square(picture, data, size, crop=crop)
            found = f"{picture.width} x {picture.height}"
    except UnidentifiedImageError:
        raise ValueError(f"not an image: expected {', '.join(FORMATS)}; got {_peek(data)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image too large: must have at most {max_pixels} pixels: {error}") from error
    except MemoryError:  # our trouble, not the picture's
        raise
    except Exception as error:  # Pillow's parsers raise whatever a hostile file leads them to
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ValueError(f"{reason} image: {type(error).__name__}: {error}") from error
    raise ValueError(f"image too large: must have at most {max_pixels} pixels, got {found}")


def _peek(data: bytes | memoryview) -> str:
    return f"{len(data)} bytes that begin with {bytes(data[:8])!r}"


def _to_square(picture: Image.Image, data: bytes | memoryview, size: int, *, crop: bool) -> np.ndarray:
    width, height = picture.size
    if picture.format == "JPEG":
        picture.draft(None, (2 * size, 2 * size))  # None keeps the mode
    (left, right), (top, bottom) = (
        _span(width, height, size, crop=crop),
        _span(height, width, size, crop=crop),
    )
    # The box is in pixels of the full picture; a scaled decode divides it, exactly, by its factor.
    factor = _draft_factor(width, picture.width)
    box = (left / factor, top / factor, right / factor, bottom / factor)
    pixels = _decode_jpeg(data, picture)
    resize = None if pixels is None else _compiled_resize(*picture.size, size)
    if pixels is not None and resize is not None:
        return resize(pixels, size, box)
    rgb = _to_rgb(picture) if pixels is None else Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
    if rgb.size != (size, size) or box != (0, 0, size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(rgb)


def _span(length: int, other: int, size: int, *, crop: bool) -> tuple[float, float]:
    """Return from where to where one dimension is kept.

    The crop is the one that follows from scaling the shorter side to `size` and cutting whole pixels off the
    longer one, as torchvision and the towers trained with it do; half a pixel off would show.
    """
    if not crop or length <= other:
        return 0.0, float(length)
    scaled = int(size * length / other)
    first = round((scaled - size) / 2)
    return first * length / scaled, (first + size) * length / scaled


def _draft_factor(full: int, decoded: int) -> int:
    """Return by what a scaled decode has divided the sides; libjpeg rounds the decoded size up."""
    return next(factor for factor in (1, 2, 4, 8) if -(-full // factor) == decoded)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits: keep the upper 8, where Pillow would clip
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _decode_jpeg(data: bytes | memoryview, picture: Image.Image) -> np.ndarray | None:
    """Return the (H, W, 4) pixels of a sound JPEG, scaled as by Pillow; None where Pillow has to decide."""
    if simplejpeg is None or picture.format != "JPEG" or picture.mode not in ("RGB", "L"):
        return None
    width, height = picture.size
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGBX", min_width=width, min_height=height)
    except ValueError:  # any complaint at all: truncated, damaged, or of a kind that it does not know
        return None
    return pixels if pixels.shape == (height, width, 4) else None


def _compiled_resize(width: int, height: int, size: int) -> Resize | None:
    """Return the compiled resize where it is to be used; the first pictures of a process do without."""
    if next(_decoded) < WARM_UP:
        return None
    resizing = _resizing()
    return resizing.resize if resizing and resizing.takes(width, height, size) else None


@lru_cache(maxsize=1)
def _resizing() -> Any:
    try:
        from pipeline.corpus import resizing  # numba takes a second to load
    except ImportError:
        return None
    return resizing if resizing.equals_pillow() else None
