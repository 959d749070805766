import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.corpus import pictures, resizing
from pipeline.corpus.decode import DecodeLimits, InputRecipe, decode_image
from pipeline.corpus.pictures import FORMATS, decode_picture


def saved(pixels: np.ndarray, kind: str = "PNG", *, mode: str | None = None, **options: int) -> bytes:
    picture = Image.fromarray(pixels)
    stream = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], 2).astype(
        np.uint8
    )


def decode(data: bytes, size: int = 16, *, crop: bool = False) -> np.ndarray:
    return decode_picture(data, size, crop=crop, max_pixels=10**7)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_a_square_of_rgb(kind: str) -> None:
    pixels = decode(saved(gradient(40, 30), kind))
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8


def test_a_picture_of_the_size_asked_for_comes_back_as_it_is() -> None:
    pixels = gradient(16, 16)
    np.testing.assert_array_equal(decode(saved(pixels)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (31, 17), (32, 32), (33, 64), (63, 65), (257, 130)])
@pytest.mark.parametrize("crop", [False, True])
def test_any_size_decodes_and_the_same_bytes_give_the_same_pixels(
    kind: str, size: tuple[int, int], crop: bool
) -> None:
    data = saved(gradient(*size), kind)
    first = decode(data, crop=crop)
    assert first.shape == (16, 16, 3)
    np.testing.assert_array_equal(first, decode(bytearray(data), crop=crop))


@pytest.mark.parametrize("crop", [False, True])
def test_a_scaled_decode_stays_near_the_full_one(crop: bool) -> None:
    pixels = gradient(640, 417)
    from_jpeg = decode(saved(pixels, "JPEG", quality=95), crop=crop).astype(int)
    from_png = decode(saved(pixels, "PNG"), crop=crop).astype(int)
    assert np.abs(from_jpeg - from_png).mean() < 1.5


def test_crop_takes_the_central_square() -> None:
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255
    assert (decode(saved(pixels), 20, crop=True) == 255).all()
    assert (decode(saved(pixels), 20) == 0).any()


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (101, 75), (77, 301), (64, 64)])
def test_crop_is_the_chain_that_scales_the_shorter_side_and_cuts_the_longer(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    scaled = tuple(int(16 * side / min(size)) for side in size)
    left, top = (round((side - 16) / 2) for side in scaled)
    chain = Image.fromarray(pixels).resize(scaled, Image.Resampling.BILINEAR)
    wanted = np.asarray(chain.crop((left, top, left + 16, top + 16))).astype(int)
    assert np.abs(decode(saved(pixels), crop=True) - wanted).mean() <= 0.05


def test_transparent_pixels_are_white() -> None:
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    assert (decode(saved(clear), 8) == 255).all()
    assert (decode(saved(clear, "WEBP", lossless=1), 8) == 255).all()


def test_sixteen_bits_keep_their_upper_eight() -> None:
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    np.testing.assert_array_equal(decode(saved(deep), 8)[:, :, 0], deep >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert decode(saved(gradient(16, 16), kind, mode=mode)).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_picture_is_an_error_unless_nothing_of_the_picture_is_missing(kind: str) -> None:
    data = saved(gradient(64, 64), kind)
    whole = decode(data, 64)
    # PNG and GIF end in a trailer that carries no pixels.
    cuts = [*range(0, len(data) - 24, len(data) // 24), *range(len(data) - 24, len(data))]
    outcomes = []
    for cut in cuts:
        try:
            outcomes.append(np.array_equal(decode(data[:cut], 64), whole))
        except ValueError as error:
            assert str(error).startswith(("truncated image: ", "damaged image: ", "not an image: ", "empty"))
    assert all(outcomes) and len(outcomes) < 24


def test_a_truncated_jpeg_is_named_so_even_where_half_pictures_were_allowed() -> None:
    data = saved(gradient(64, 64), "JPEG")
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with pytest.raises(ValueError, match=r"^truncated image: "):
            decode(data[: len(data) // 2])
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("data", [b"x", b"not a picture at all", b"%PDF-1.4 ...", bytes(4096)])
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    with pytest.raises(ValueError, match=f"^not an image: expected JPEG, .*; got {len(data)} bytes"):
        decode(data)


def test_a_format_that_is_not_listed_is_not_an_image() -> None:
    with pytest.raises(ValueError, match=r"^not an image: "):
        decode(saved(gradient(8, 8), "TIFF"))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    data = saved(np.zeros((100, 101), dtype=np.uint8))
    assert decode_picture(data, 8, crop=False, max_pixels=10_100).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"^image too large: must have at most 10099 pixels, got 101 x 100"):
        decode_picture(data, 8, crop=False, max_pixels=10_099)


def test_a_decompression_bomb_is_refused() -> None:
    # 100,000 x 100,000 grey pixels announced in 70 bytes: what counts is that none is ever allocated.
    def part(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + name + body + check

    side = (100_000).to_bytes(4, "big")
    bomb = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", side + side + b"\x08\x00\x00\x00\x00")
    bomb += part(b"IDAT", zlib.compress(b"\x00")) + part(b"IEND", b"")
    with pytest.raises(ValueError, match=r"^image too large: "):
        decode(bomb)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "^empty image: "), (b"y" * 101, "^image too large: must have at most 100 bytes, got 101")],
)
def test_the_bytes_are_limited(data: bytes, message: str) -> None:
    recipe = InputRecipe(image_size=8, limits=DecodeLimits(max_image_bytes=100))
    with pytest.raises(ValueError, match=message):
        decode_image(data, recipe)


def test_pictures_need_a_size() -> None:
    with pytest.raises(TypeError, match="image_size must be set"):
        decode_image(b"...", InputRecipe())


def flip(position: int, value: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        at = position % len(data)
        return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]

    return damage


@given(st.sampled_from(FORMATS), st.integers(0, 5000), st.integers(1, 255))
def test_damage_gives_a_picture_or_a_reason_but_nothing_else(kind: str, position: int, value: int) -> None:
    damaged = flip(position, value)(saved(gradient(24, 24), kind))
    try:
        assert decode(damaged).shape == (16, 16, 3)
    except ValueError as error:
        assert str(error).split(":")[0] in {
            "not an image",
            "image too large",
            "truncated image",
            "damaged image",
        }


def plain_and_fast(data: bytes, size: int, *, crop: bool) -> list[object]:
    """Decode by Pillow alone, by simplejpeg, and with the compiled resize too; an error is its text."""
    outcomes: list[object] = []
    for decoder, warm_up in ((None, 10**9), (simplejpeg, 10**9), (simplejpeg, 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pictures, "simplejpeg", decoder)
            patch.setattr(pictures, "WARM_UP", warm_up)
            try:
                outcomes.append(decode(data, size, crop=crop).tolist())
            except ValueError as error:
                outcomes.append(str(error))
    return outcomes


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    square=st.integers(1, 40),
    crop=st.booleans(),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.integers(20, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    cut=st.one_of(st.none(), st.integers(2, 4000)),
    seed=st.integers(0, 2**31),
)
def test_a_jpeg_has_the_same_pixels_or_the_same_error_with_and_without_the_extra_fast(
    size, square, crop, mode, quality, subsampling, progressive, cut, seed
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    options = {"quality": quality, "progressive": progressive}
    if mode == "RGB":
        options["subsampling"] = subsampling
    data = saved(pixels, "JPEG", mode=mode, **options)[:cut]
    plain, *fast = plain_and_fast(data, square, crop=crop)
    assert fast == [plain, plain]


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("crop", [False, True])
def test_a_photograph_is_scaled_while_it_is_decoded_by_both_decoders_alike(factor: int, crop: bool) -> None:
    for width, height in ((64 * factor, 64 * factor), (90 * factor + 3, 64 * factor + 5)):
        data = saved(gradient(width, height), "JPEG", quality=90)
        plain, *fast = plain_and_fast(data, 32, crop=crop)
        assert fast == [plain, plain]


@given(st.integers(0, 5000), st.integers(1, 255))
def test_a_damaged_jpeg_ends_alike_with_and_without_the_extra_fast(position: int, value: int) -> None:
    plain, *fast = plain_and_fast(flip(position, value)(saved(gradient(48, 40), "JPEG")), 16, crop=False)
    assert fast == [plain, plain]


def test_the_compiled_resize_is_used_and_takes_a_tall_picture_to_pillow() -> None:
    assert resizing.equals_pillow()
    assert resizing.takes(500, 375, 224) and resizing.takes(375, 500, 224)
    assert not resizing.takes(100, 300, 64) and not resizing.takes(30, 30, 64)
