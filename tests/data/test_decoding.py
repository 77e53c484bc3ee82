from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from attribench.data import decoding as images
from attribench.data.decoding import fit_square, open_image, open_square, read_image, read_images
from attribench.errors import DataError


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path: Path, suffix: str) -> None:
    pixels = noise(5, 7)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path), pixels.transpose(2, 0, 1))


def test_jpeg_is_read_even_under_another_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(8, 8)).save(path, "JPEG")
    assert np.array_equal(read_image(path), np.asarray(Image.open(path)).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = noise(4, 6)
    # What a camera stores for each orientation value, after the EXIF standard's table (0th row, 0th column).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(read_image(path), upright.transpose(2, 0, 1))


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    rgba = noise(6, 6, 4)
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    alpha = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_image(tmp_path / "a.png").transpose(1, 2, 0) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA"])
def test_other_forms_of_transparency(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    grey = np.array([[10, 200]], dtype=np.uint8)
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
        image.putpalette([10, 10, 10, 200, 200, 200])
        image.save(path, transparency=0)
    elif mode == "LA":
        Image.merge("LA", [Image.fromarray(grey), Image.fromarray(np.array([[0, 255]], dtype=np.uint8))]).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path, transparency=10 if mode == "L" else (10, 10, 10))
    assert read_image(path, channels="grey").tolist() == [[[255, 200]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}", channels="auto").tolist() == [[[0, 0, 1, 1, 128, 255]]]


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1600, 65535 // 5]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=1600)
    assert read_image(tmp_path / "a.png", channels="grey").tolist() == [[[255, 51]]]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    # (255 - C)(255 - K) / 255: cyan, black, white, half grey
    ink = np.array([[[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.repeat(np.repeat(ink, 8, axis=0), 8, axis=1), "CMYK").save(path)
    expected = [[0, 255, 255], [0, 0, 0], [255, 255, 255], [127, 127, 127]]
    assert np.abs(read_image(path)[:, 4, 4::8].T.astype(int) - expected).max() <= (2 if suffix == "jpg" else 0)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for suffix in ("gif", "png", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
        assert read_image(tmp_path / f"a.{suffix}")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_camera_s_multi_picture_file_gives_its_first_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert np.abs(read_image(tmp_path / "a.jpg")[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 2


def test_bilevel_and_palette(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png", channels="auto").tolist() == [[[255, 0]]]
    Image.new("RGB", (3, 3), (1, 2, 3)).convert("P").save(tmp_path / "p.gif")
    assert np.abs(read_image(tmp_path / "p.gif")[:, 1, 1].astype(int) - [1, 2, 3]).max() <= 26


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: 32-bit pixels have no agreed range"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("height", "width", "size"), [(64, 128, 32), (96, 64, 16), (33, 33, 33), (20, 20, 40)])
def test_resizing_agrees_with_torchvision(height: int, width: int, size: int) -> None:
    image = Image.fromarray(noise(height, width))
    expected = Compose([Resize(size), CenterCrop(size)])(image)
    assert np.array_equal(np.asarray(fit_square(image, size)), np.asarray(expected))


def test_a_picture_of_the_right_size_is_cropped_without_blur() -> None:
    pixels = noise(8, 11)
    assert np.array_equal(np.asarray(fit_square(Image.fromarray(pixels), 8)), pixels[:, 1:9])


def test_an_extreme_shape_needs_no_huge_picture_in_between() -> None:
    assert fit_square(Image.new("RGB", (60_000, 2), "red"), 64).size == (64, 64)


def test_grey_only_if_every_picture_is(tmp_path: Path) -> None:
    grey, color = noise(4, 4, 1), noise(4, 4)
    Image.fromarray(grey).save(tmp_path / "l.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(color).save(tmp_path / "color.png")
    paths = [tmp_path / name for name in ("l.png", "rgb.png", "color.png")]
    assert np.array_equal(read_images(paths[:2]), np.stack([grey[None]] * 2))
    assert read_images(paths).shape == (3, 3, 4, 4)
    assert read_images(paths[:2], channels="RGB").shape == (2, 3, 4, 4)
    luma = color @ [0.299, 0.587, 0.114]
    forced = read_images(paths, channels="grey")
    assert np.array_equal(forced[0], grey[None])
    assert np.abs(forced[2, 0] - luma).max() <= 1


def test_differing_sizes_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, size in zip(paths, [(4, 5), (4, 5), (6, 5)], strict=True):
        Image.new("RGB", size).save(path)
    with pytest.raises(DataError, match=r"0\.png is 4x5 and .*2\.png is 6x5 .*--data\.image_size"):
        read_images(paths)
    assert read_images(paths, image_size=3).shape == (3, 1, 3, 3)


def test_all_unreadable_files_are_counted_and_three_named(tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(good, "PNG")
    damaged = {
        "a.png": good.getvalue()[:200],
        "b.jpg": b"",
        "c.gif": b"GIF89a but not really",
        "d.webp": os.urandom(50),
        "e.tif": b"II*\0\xff\xff\xff\xff",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.png").write_bytes(good.getvalue())
    names = [*damaged, "good.png", "gone.png"]
    with pytest.raises(DataError) as caught:
        read_images([tmp_path / name for name in names], names=names)
    message = str(caught.value)
    assert message.startswith("6 of 7 images cannot be read (a.png: ")
    assert "b.jpg: " in message
    assert "c.gif: " in message
    assert "and 3 more" in message
    assert "good.png" not in message


def test_one_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"An image cannot be read \(.*gone\.png: No such file"):
        read_image(tmp_path / "gone.png")


def test_postscript_is_never_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("Ghostscript was called"))
    with pytest.raises(DataError, match="not an image attribench can read"):
        read_image(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"a\.png: refused as a decompression bomb: .*10000 pixels.* limit of 2000"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("maxval", [1, 31, 255, 1023, 65535])
@pytest.mark.parametrize("magic", ["P2", "P5", "P3", "P6"])
def test_netpbm_is_scaled_by_its_largest_value(tmp_path: Path, magic: str, maxval: int) -> None:
    channels = 1 if magic in ("P2", "P5") else 3
    values = np.random.default_rng(maxval).integers(0, maxval + 1, (3, 4, channels))
    values[0, 0], values[0, 1] = 0, maxval
    header = f"{magic}\n# a comment\n4 3\n{maxval}\n".encode()
    plain = " ".join(str(value) for value in values.ravel()).encode()
    packed = values.astype(">u1" if maxval < 256 else ">u2").tobytes()
    (tmp_path / "a.pnm").write_bytes(header + (plain if magic in ("P2", "P3") else packed))
    expected = np.broadcast_to(255 * values / maxval, (3, 4, 3)).transpose(2, 0, 1)
    assert np.abs(read_image(tmp_path / "a.pnm") - expected).max() <= 1


@pytest.mark.parametrize("content", [b"P1\n3 1\n1 0 1", b"P4\n3 1\n\xa0"])
def test_bitmaps_of_netpbm(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pbm").write_bytes(content)  # 1 is black
    assert read_image(tmp_path / "a.pbm", channels="grey").tolist() == [[[0, 255, 0]]]


def test_float_maps_of_netpbm_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))
    with pytest.raises(DataError, match="32-bit pixels have no agreed range"):
        read_image(tmp_path / "a.pgm")


def test_an_icon_gives_its_largest_picture_on_white(tmp_path: Path) -> None:
    Image.fromarray(noise(32, 32)).save(tmp_path / "a.ico", sizes=[(16, 16), (32, 32)])
    assert np.array_equal(read_image(tmp_path / "a.ico"), noise(32, 32).transpose(2, 0, 1))
    Image.new("RGBA", (16, 16), (10, 20, 30, 0)).save(tmp_path / "clear.ico")
    assert (read_image(tmp_path / "clear.ico") == 255).all()


def png(width: int, bits: int, color_type: int, row: bytes, transparent: bytes = b"") -> bytes:
    """A PNG of one row, after the standard."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, 0b01000000, 0, [255, 255]),
        (2, 0b01100000, 1, [255, 170]),
        (4, 0x5A, 5, [255, 170]),
        (4, 0x5A, 9, [85, 170]),
    ],
)
def test_transparent_values_of_few_bits(
    tmp_path: Path, bits: int, row: int, transparent: int, expected: list[int]
) -> None:
    (tmp_path / "a.png").write_bytes(png(2, bits, 0, bytes([row]), struct.pack(">H", transparent)))
    assert read_image(tmp_path / "a.png", channels="grey").tolist() == [[expected]]


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 3), dtype=np.uint16)
    row = values.astype(">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(4, 16, 2, row))
    assert np.abs(read_image(tmp_path / "a.png")[:, 0].T - values / 257).max() <= 1
    (tmp_path / "a.png").write_bytes(png(4, 16, 2, row, transparent=row[:6]))
    with pytest.raises(DataError, match=r"16-bit colour with one transparent colour \(tRNS\)"):
        read_image(tmp_path / "a.png")


def odd_image(kind: str) -> Image.Image:
    if kind == "I;16":
        return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (90, 61), dtype=np.uint16))
    if kind == "P":
        return Image.fromarray(noise(90, 61)).quantize(64)
    return Image.fromarray(noise(90, 61, len(kind)), kind)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [5, 32, 61, 100])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "CMYK", "P", "I;16"])
def test_conversion_in_strips_gives_the_very_pixels(
    kind: str, size: int, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    file = io.BytesIO()
    odd_image(kind).save(file, "TIFF" if kind == "CMYK" else "PNG", exif=exif)
    expected = np.asarray(fit_square(open_image(file), size))
    monkeypatch.setattr(images, "_STRIP", 200)
    assert np.array_equal(np.asarray(open_square(file, size)), expected)


@pytest.mark.parametrize("shape", [(3000, 2), (2, 3000), (1, 1)])
def test_extreme_shapes_in_strips(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(*shape)).save(file, "PNG")
    expected = np.asarray(fit_square(open_image(file), 8))
    monkeypatch.setattr(images, "_STRIP", 100)
    assert np.array_equal(np.asarray(open_square(file, 8)), expected)


def test_large_jpegs_are_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    smooth = Image.fromarray(noise(6, 6)).resize((640, 480), Image.Resampling.BICUBIC)
    smooth.save(file, "JPEG", quality=95)
    whole = np.asarray(fit_square(open_image(file), 16)).astype(int)
    monkeypatch.setattr(images, "_LARGE_JPEG", 1000)
    monkeypatch.setattr(images, "_to_rgb", lambda image, levels: sizes.append(image.size) or image)
    sizes: list[tuple[int, int]] = []
    reduced = np.asarray(open_square(file, 16)).astype(int)
    assert sizes == [(160, 120)]  # an eighth would be less than four times 16
    assert np.abs(reduced - whole).max() <= 6
    assert np.abs(reduced - whole).mean() <= 1


def test_a_large_picture_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    Image.new("RGBA", (3000, 3000), (10, 200, 30, 128)).save(tmp_path / "a.png", compress_level=1)
    code = (
        "import resource, sys; from pathlib import Path; from attribench.data.decoding import read_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); read_image(Path(sys.argv[1]), image_size=32); print(peak() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    pixels = 3000 * 3000 * 4 / 1024
    assert int(ran.stdout) < 1.5 * pixels
