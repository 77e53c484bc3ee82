"""Finding image files: by name, by content, and without waiting or giving up."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attribench.data.files import find_images, list_images, natural_key
from attribench.errors import DataError


def test_natural_order() -> None:
    names = ["img10.png", "img9.png", "b/1.png", "Img2.png", "img010.png", "a/20.png", "a/3.png", "img.png"]
    assert sorted(names, key=lambda name: (natural_key(name), name)) == [
        "a/3.png", "a/20.png", "b/1.png", "Img2.png", "img9.png", "img010.png", "img10.png", "img.png",
    ]  # fmt: skip


def test_listing_is_recursive_and_leaves_out_hidden_and_other_files(tmp_path: Path) -> None:
    kept = ["10.PNG", "9.jpg", "deep/er/x.webp", "deep/y.tiff"]
    for name in [*kept, "._9.jpg", ".cache/z.png", "__MACOSX/9.jpg", "captions.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert listed == ["9.jpg", "10.PNG", "deep/er/x.webp", "deep/y.tiff"]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").touch()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert list_images(folder) == [folder / "linked" / "a.png"]


def test_pictures_in_foreign_formats_are_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "1.HEIC", "2.heic", "3.heic", "4.avif"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"4 pictures .* cannot read \(1\.HEIC: a format.*2\.heic.*and 1 more"):
        list_images(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*absent"):
        list_images(tmp_path / "absent")


def encoded(file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, file_format, **options)
    return buffer.getvalue()


READABLE = {
    "JPEG": encoded("JPEG"), "PNG": encoded("PNG"), "GIF": encoded("GIF"), "WEBP": encoded("WEBP"), "BMP": encoded("BMP"),
    "TIFF": encoded("TIFF"), "BigTIFF": encoded("TIFF", big_tiff=True), "PPM": encoded("PPM"), "ICO": encoded("ICO"),
    "PGM": b"P5 # by a microscope\n2 1 1023\n\0\1\0\2", "PBM": b"P4\n1 1\n\0",
}  # fmt: skip


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("name", ["no-suffix", "photo.jpg.bak", "photo.heic", "scan.dat"])
def test_content_decides_where_the_name_does_not(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(READABLE[kind])
    assert find_images(tmp_path).images == [tmp_path / name]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pgm", "ppm", "ico", "JPG"])
def test_names_of_images_need_no_content(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    assert find_images(tmp_path).images == [tmp_path / f"a.{suffix}"]


@pytest.mark.parametrize(
    "content",
    [b"", b"BMW, and other makes of car: a list", b"P5 is a paper format", b"GIF, a format", b"II. Introduction"],
)
def test_text_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    found = find_images(tmp_path)
    assert (found.images, found.left_out, found.others) == ([], {}, [tmp_path / "notes"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no-suffix", b"\0\0\0\x1cftypheic"), ("b", b"\0\0\0\x1cftypavif"), ("c", b"8BPS\0\1"), ("d.SVG", b"<svg/>"),
        ("e.nef", READABLE["TIFF"]), ("f", b"\0\0\0\x0cJXL \r\n\x87\n"), ("g", b"P7\nWIDTH 1"),
    ],
)  # fmt: skip
def test_foreign_formats_are_named_by_suffix_or_content(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert find_images(tmp_path).left_out == {
        tmp_path / name: "a format attribench does not read; convert it to PNG or JPEG"
    }


def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        listener.bind("socket.jpg")
        os.chdir(here)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    found = find_images(tmp_path)
    assert found.images == []
    reasons = {path.name: reason for path, reason in found.left_out.items()}
    for name in ("pipe", "pipe.png", "socket.jpg", "device.png"):
        assert reasons.pop(name) == "not a regular file (a pipe, socket or device)"
    assert reasons == {"broken.png": "No such file or directory", "loop.png": "Too many levels of symbolic links"}


def test_a_folder_without_permission_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    original = os.scandir

    def guarded(path: str | Path) -> Iterator[os.DirEntry[str]]:  # permissions do not bind the superuser
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find_images(tmp_path)
    assert found.images == [tmp_path / "open" / "a.png"]
    assert found.left_out == {tmp_path / "shut": "the folder cannot be read: Permission denied"}
    with pytest.raises(DataError, match=r"shut: the folder cannot be read: Permission denied"):
        list_images(tmp_path)
    with pytest.raises(DataError, match=r"The folder .*shut cannot be read: Permission denied"):
        find_images(tmp_path / "shut")
