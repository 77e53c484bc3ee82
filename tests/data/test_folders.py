"""A user's folder, with everything that folders of images hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_images import HANDLED, SKIPPED, noise, write_odd_images
from PIL import Image

from attribench.data import folders
from attribench.data.decoding import fit_square, open_image, open_square, to_pixels
from attribench.data.folders import read_folder, same_channels
from attribench.errors import DataError
from attribench.store.artifacts import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def test_every_kind_is_handled_or_skipped_by_name(tmp_path: Path, store: ArtifactStore) -> None:
    write_odd_images(tmp_path / "odd")
    found = read_folder(tmp_path / "odd", 16, store)
    assert list(found.images.ids) == HANDLED
    assert sorted(found.skipped) == SKIPPED
    assert all(found.skipped.values())
    assert found.images.image_shape == (3, 16, 16)
    for name, pixels in zip(found.images.ids, found.images.images, strict=True):
        expected = to_pixels(fit_square(open_image(tmp_path / "odd" / name), 16))
        assert torch.equal(pixels, torch.from_numpy(expected)), name


def test_an_image_turned_by_its_exif_tag_stands_upright(tmp_path: Path, store: ArtifactStore) -> None:
    folder = tmp_path / "turned"
    folder.mkdir()
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(half).save(folder / "a.png", exif=exif)
    image = read_folder(folder, 16, store).images.images[0, 0]
    assert (image[:8] == 255).all()  # upright, it is the upper one
    assert (image[8:] == 0).all()


def test_grey_unless_there_is_colour(tmp_path: Path, store: ArtifactStore) -> None:
    for name, mode in (("grey", "L"), ("colour", "RGB")):
        (tmp_path / name).mkdir()
        noise((20, 20), mode).save(tmp_path / name / "a.png")
    grey, colour = (read_folder(tmp_path / name, 8, store) for name in ("grey", "colour"))
    assert (grey.images.image_shape[0], colour.images.image_shape[0]) == (1, 3)
    assert read_folder(tmp_path / "grey", 8, store, channels="RGB").images.image_shape[0] == 3
    luma = read_folder(tmp_path / "colour", 8, store, channels="grey").images.images
    assert luma.shape[1] == 1
    for first, second in (same_channels(grey, colour), same_channels(colour, grey)[::-1]):
        assert first.images.image_shape == second.images.image_shape == (3, 8, 8)
        assert torch.equal(first.images.images[:, 2], grey.images.images[:, 0])
    assert same_channels(grey, grey) == (grey, grey)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: folder.mkdir(), r"holds no images \(\.jpg"),
        (lambda folder: (folder.mkdir(), (folder / "a.heic").write_bytes(b"x")), r"holds no images that.*a\.heic"),
        (
            lambda folder: (folder.mkdir(), (folder / "a.png").write_bytes(b"x")),
            r"None of the 1 images.*a\.png: not an image",
        ),
    ],
)
def test_a_folder_without_images_is_a_clear_error(
    make: Callable[[Path], Any], message: str, tmp_path: Path, store: ArtifactStore
) -> None:
    make(tmp_path / "folder")
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path / "folder", 8, store)


def many(folder: Path, count: int) -> None:
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        noise((9, 9), seed=number).save(folder / "sub" / f"{number}.png")


def test_a_stopped_call_goes_on_after_the_last_chunk(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path / "many", 10)
    monkeypatch.setattr(folders, "CHUNK", 4)
    opened: list[str] = []
    stop_at = 6

    def watched(path: Path, size: int) -> Image.Image:
        if len(opened) == stop_at:
            raise KeyboardInterrupt
        opened.append(path.name)
        return open_square(path, size)

    monkeypatch.setattr(folders, "open_square", watched)
    with pytest.raises(KeyboardInterrupt):
        read_folder(tmp_path / "many", 8, store)
    opened.clear()
    stop_at = 100
    found = read_folder(tmp_path / "many", 8, store)
    assert sorted(opened) == [f"{n}.png" for n in range(4, 10)]  # the first chunk is there
    assert found.images.ids == tuple(f"sub/{n}.png" for n in range(10))
    opened.clear()
    again = read_folder(tmp_path / "many", 8, store)
    assert opened == []
    assert torch.equal(again.images.images, found.images.images)
    assert not list((tmp_path / "store" / ".work").rglob("*.npz"))


def test_a_changed_file_is_decoded_anew(tmp_path: Path, store: ArtifactStore) -> None:
    many(tmp_path / "many", 3)
    before = read_folder(tmp_path / "many", 8, store)
    noise((9, 9), seed=99).save(tmp_path / "many" / "sub" / "1.png")
    after = read_folder(tmp_path / "many", 8, store)
    assert torch.equal(before.images.images[0], after.images.images[0])
    assert not torch.equal(before.images.images[1], after.images.images[1])
    assert before.images.content_hash != after.images.content_hash


def test_writing_into_the_images_does_not_reach_the_file(tmp_path: Path, store: ArtifactStore) -> None:
    many(tmp_path / "many", 2)
    found = read_folder(tmp_path / "many", 8, store)
    kept = found.images.images.clone()
    found.images.images.zero_()
    assert torch.equal(read_folder(tmp_path / "many", 8, store).images.images, kept)


def test_files_are_found_by_content_and_odd_ones_are_named(tmp_path: Path, store: ArtifactStore) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    noise((20, 20)).save(folder / "no-suffix", "PNG")
    noise((20, 20)).save(folder / "a.jfif", "JPEG")
    noise((20, 20)).save(folder / "b.ppm")
    os.mkfifo(folder / "pipe.png")
    for name in (b"\xff.png", b"\xff.heic", b"\xff.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")
    found = read_folder(folder, 8, store)
    assert found.images.ids == ("a.jfif", "b.ppm", "no-suffix")
    assert found.skipped == {
        "pipe.png": "not a regular file (a pipe, socket or device)",
        r"'\udcff.png'": "its name is not UTF-8",
        r"'\udcff.heic'": "a format attribench does not read; convert it to PNG or JPEG",
    }
    assert found.others == (r"'\udcff.txt'",)


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "others"])
def test_damaged_unfinished_work_is_decoded_again(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        noise((9, 9), seed=number).save(folder / f"{number}.png")
    whole = read_folder(folder, 8, ArtifactStore(tmp_path / "undisturbed")).images

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            read_folder(folder, 8, store)
    (chunk,) = store.root.rglob("0.npz")
    content = bytearray(chunk.read_bytes())
    if damage == "bit":
        content[len(content) // 3] ^= 1
    chunk.write_bytes({"empty": b"", "cut": content[: len(content) // 2]}.get(damage, bytes(content)))
    if damage == "others":
        np.savez(chunk, pixels=np.zeros((1, 3, 8, 8), np.uint8), names=np.array(["x.png"]), reasons=np.array([""]))
    found = read_folder(folder, 8, store).images
    assert found.ids == whole.ids
    assert torch.equal(found.images, whole.images)
