"""TIFF layouts: right to a grey level, or refused by the name of the tag."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from tiff_files import tiff

from attribench.data.decoding import open_image
from attribench.errors import DataError

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
HEIGHT, WIDTH = 3, 6


def random_values(bits: int, samples: int = 1) -> NDArray[np.int64]:
    values = np.random.default_rng(bits).integers(0, 2**bits, (HEIGHT, WIDTH, samples))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def unit(values: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    return values / (2**bits - 1)


def decoded(content: bytes) -> NDArray[np.float64]:
    """``(height, width, 3)``, from 0 to 255."""
    return np.asarray(open_image(io.BytesIO(content))).astype(np.float64)


def reason(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        open_image(io.BytesIO(content))
    return str(caught.value)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_grey_of_every_depth_is_right_or_refused_by_name(
    bits: int, photometric: int, order: str, deflate: bool
) -> None:
    values = random_values(bits)
    content = tiff(values, bits, photometric, order=order, deflate=deflate)
    readable = bits in (1, 2, 4, 8) or (bits == 16 and (photometric, order) != (WHITE_IS_ZERO, ">"))
    if readable or (bits, photometric, order) == (12, BLACK_IS_ZERO, "<"):
        expected = 255 * (unit(values, bits) if photometric == BLACK_IS_ZERO else 1 - unit(values, bits))
        assert np.abs(decoded(content) - expected).max() <= 1
    else:
        name = ("WhiteIsZero", "BlackIsZero")[photometric]
        assert f"PhotometricInterpretation {photometric} {name}, BitsPerSample {bits}," in reason(content)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("photometric", [RGB, CMYK])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colour_of_every_depth_is_right_or_refused_by_name(
    bits: int, photometric: int, planes: bool, order: str, deflate: bool
) -> None:
    values = random_values(bits, 3 if photometric == RGB else 4)
    content = tiff(values, bits, photometric, order=order, deflate=deflate, planes=planes)
    expected = 255 * unit(values, bits)
    if photometric == CMYK:
        expected = (255 - expected[..., :3]) * (255 - expected[..., 3:]) / 255
    if bits == 16 and planes and not deflate:
        assert "16-bit samples lie in separate planes (PlanarConfiguration 2)" in reason(content)
    elif bits in (8, 16):  # CMYK multiplies two channels that may each be one off
        assert np.abs(decoded(content) - expected).max() <= (1 if photometric == RGB else 2)
    else:
        assert str(bits) in reason(content)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["unknown", "premultiplied", "alpha"])
def test_a_fourth_sample(bits: int, kind: int) -> None:
    values = random_values(bits, 4)
    if kind == 1:
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    colours, alpha = np.split(255 * unit(values, bits), [3], axis=-1)
    expected = {0: colours, 1: colours + 255 - alpha, 2: (colours * alpha + 255 * (255 - alpha)) / 255}[kind]
    tolerance = 1 if bits == 8 else 3  # of 16 bits the upper 8 are read, in colour and alpha
    assert np.abs(decoded(tiff(values, bits, RGB, extra=(kind,))) - expected).max() <= tolerance


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_with_16_bit_colours_are_read_and_with_8_bit_colours_refused(bits: int, deflate: bool) -> None:
    values = random_values(bits)
    colours = np.random.default_rng(1).integers(0, 256, (3, 2**bits))
    content = tiff(values, bits, PALETTE, deflate=deflate, tags={320: (colours * 257).ravel().tolist()})
    assert np.array_equal(decoded(content), colours.T[values[..., 0]])
    assert "ColorMap" in reason(tiff(values, bits, PALETTE, deflate=deflate, tags={320: colours.ravel().tolist()}))


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize(
    ("bits", "sample_format", "name"),
    [(8, 2, "signed"), (16, 2, "signed"), (32, 2, "signed"), (16, 3, "floating point"), (32, 3, "floating point"),
     (64, 3, "floating point"), (32, 1, "BitsPerSample")],
)  # fmt: skip
def test_values_without_an_agreed_range_are_refused(
    bits: int, sample_format: int, name: str, photometric: int, deflate: bool
) -> None:
    values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    message = reason(tiff(values, bits, photometric, sample_format=sample_format, deflate=deflate))
    assert message.startswith(f"{bits}-bit pixels have no agreed range (")
    assert name in message


def test_ycbcr_without_subsampling_and_uncompressed_with_it() -> None:
    values = random_values(8, 3)
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0)
    expected = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], axis=-1
    ).clip(0, 255)
    assert np.abs(decoded(tiff(values, 8, YCBCR, tags={530: [1, 1]})) - expected).max() <= 1
    for tags in ({530: [2, 2]}, {}):  # 2, 2 is what the standard assumes without the tag
        assert "YCbCrSubSampling" in reason(tiff(values, 8, YCBCR, tags=tags))


def test_lab_greys() -> None:
    lightness = np.array([[[0, 0, 0], [128, 0, 0], [255, 0, 0]]])
    grey = 255 * (1.055 * ((50.2 + 16) / 116) ** (3 / 2.4) - 0.055)  # the middle one's, through sRGB's curve
    assert np.abs(decoded(tiff(lightness, 8, LAB))[0] - [[0] * 3, [grey] * 3, [255] * 3]).max() <= 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tiff(random_values(8), 8, None), "no PhotometricInterpretation"),
        (tiff(random_values(8), 8, 32803), "PhotometricInterpretation 32803"),
        (tiff(random_values(8), 8, WHITE_IS_ZERO, reverse_bits=True), "FillOrder"),
        (tiff(random_values(8, 2), 8, BLACK_IS_ZERO, extra=(2,), planes=True, deflate=True), "PlanarConfiguration"),
        (tiff(random_values(8, 4), 8, RGB, extra=(1,), planes=True), "PlanarConfiguration"),
        (tiff(random_values(16, 2), 16, BLACK_IS_ZERO, extra=(2,)), "BitsPerSample 16, 16"),
    ],
    ids=["none", "raw", "reversed", "planes-la", "planes-premultiplied", "grey-alpha-16"],
)
def test_other_layouts_are_refused_by_name(content: bytes, named: str) -> None:
    assert named in reason(content)


@pytest.mark.parametrize("bits", [1, 4])
def test_reversed_bits_are_honoured(bits: int) -> None:
    values = random_values(bits)
    content = tiff(values, bits, WHITE_IS_ZERO, reverse_bits=True)
    assert np.abs(decoded(content) - 255 * (1 - unit(values, bits))).max() <= 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_file_is_not_taken_for_an_odd_one() -> None:
    assert reason(b"II*\0\xff\xff\xff\xff") == "not an image attribench can read, or its beginning is damaged"
