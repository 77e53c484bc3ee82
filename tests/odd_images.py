"""A folder with images of every kind that can be handled, and of every kind that cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    width, height = size
    bands = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if bands == 1 else values, mode)


def write_odd_images(folder: Path) -> None:
    """One file of every kind that can be handled, and of every kind that cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    noise((50, 40)).save(folder / "plain.jpg", quality=95)
    noise((1, 1)).save(folder / "tiny.png")
    noise((20, 30), "CMYK").save(folder / "cmyk.jpg")
    noise((20, 20), "RGBA").save(folder / "transparent.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (20, 20), dtype=np.uint16)).save(folder / "sixteen.png")
    rotated = noise((30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to see it upright
    rotated.save(folder / "rotated.png", exif=exif)
    noise((20, 20), seed=1).save(
        folder / "animated.gif", save_all=True, append_images=[noise((20, 20), seed=2), noise((20, 20), seed=3)]
    )
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "plain.jpg").read_bytes()[:200])
    (folder / "phone.heic").write_bytes(b"\0" * 64)
    (folder / "notes.txt").write_text("no image at all, and no business of ours")
    (folder / ".hidden.png").write_bytes(b"")


HANDLED = ["animated.gif", "cmyk.jpg", "plain.jpg", "rotated.png", "sixteen.png", "tiny.png", "transparent.png"]
SKIPPED = ["cut.png", "empty.png", "phone.heic", "text.jpg"]
