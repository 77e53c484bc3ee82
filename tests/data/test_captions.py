"""Captions from files: whose they are, and what is said of those that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from attribench.data.captions import folder_captions, given_captions
from attribench.data.sources import read_source
from attribench.diffusion.inputs import all_captions
from attribench.errors import DataError
from attribench.store.artifacts import ArtifactStore

NAMES = ("1.png", "2.png", "sub/3.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "train"


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_captions_at_all(folder: Path) -> None:
    assert folder_captions(folder, NAMES) == (None, set())


def test_text_files_beside_the_images(folder: Path) -> None:
    for name, text in (("1.txt", "a cat\n"), ("2.txt", ""), ("sub/3.txt", "\ufeffa dög"), ("other.txt", "no image")):
        (folder / name).write_text(text, "utf-8")
    captions, used = folder_captions(folder, NAMES)
    assert captions == ("a cat", "", "a dög")
    assert used == {"1.txt", "2.txt", "sub/3.txt"}
    (folder / "2.txt").unlink()
    captions, _ = folder_captions(folder, NAMES)
    assert captions == ("a cat", None, "a dög")
    (folder / "1.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"1\.txt cannot be read"):
        folder_captions(folder, NAMES)


def test_metadata_of_imagefolder(folder: Path) -> None:
    lines(folder / "metadata.jsonl", {"file_name": "1.png", "text": "one"}, {"file_name": "2.png", "text": "two"})
    lines(folder / "sub" / "metadata.jsonl", {"file_name": "3.png", "text": "three"})
    (folder / "1.txt").write_text("not this")
    captions, used = folder_captions(folder, NAMES)
    assert captions == ("one", "two", "three")
    assert used == {"metadata.jsonl", "sub/metadata.jsonl"}


def test_metadata_without_captions_says_nothing(folder: Path) -> None:
    lines(folder / "metadata.jsonl", {"file_name": "1.png", "label": 3})
    (folder / "1.txt").write_text("one")
    assert folder_captions(folder, NAMES)[0] == ("one", None, None)


@pytest.mark.parametrize("inside", [True, False])
def test_a_csv_file(folder: Path, inside: bool) -> None:
    place = folder if inside else folder.parent
    prefix = "" if inside else "train/"
    file = place / "captions.csv"
    rows = [("1.png", "a cat, sitting"), ("2.png", 'a "dog"\nand a line'), ("sub/3.png", ""), ("4.png", "of no image")]
    text = "".join(f'{prefix}{name},"{caption.replace(chr(34), chr(34) * 2)}"\n' for name, caption in rows[:2])
    file.write_text("file_name,caption\n" + text + f"{prefix}sub/3.png,\n{prefix}4.png,of no image\n")
    captions, used = folder_captions(folder, NAMES, file)
    assert captions == ("a cat, sitting", 'a "dog"\nand a line', None)
    assert used == ({"captions.csv"} if inside else set())


def test_names_in_a_file_elsewhere_are_paths_in_the_folder_or_from_the_file(folder: Path) -> None:
    file = lines(folder.parent / "c.jsonl", *({"file_name": name, "caption": name[0]} for name in NAMES))
    assert folder_captions(folder, NAMES, file)[0] == ("1", "2", "s")
    absolute = lines(folder.parent / "d.jsonl", *({"image": str(folder / name), "whatever": name[0]} for name in NAMES))
    assert folder_captions(folder, NAMES, absolute)[0] == ("1", "2", "s")


def test_a_file_of_the_train_images_is_not_taken_for_queries_of_the_same_names(folder: Path) -> None:
    """Generated images are often called like train images; only a path from the file leads to them."""
    file = lines(folder.parent / "c.jsonl", {"file_name": "1.png", "caption": "of the train image"})
    assert folder_captions(folder, NAMES, file, of_folder=False)[0] is None
    file = lines(file, {"file_name": "1.png", "caption": "no"}, {"file_name": "train/2.png", "caption": "yes"})
    assert folder_captions(folder, NAMES, file, of_folder=False)[0] == (None, "yes", None)


def test_null_is_missing_and_the_empty_text_is_a_caption(folder: Path) -> None:
    rows = ({"file_name": "1.png", "caption": None}, {"file_name": "2.png", "caption": ""}, {"file_name": "sub/3.png"})
    file = lines(folder / "captions.jsonl", *rows)
    assert folder_captions(folder, NAMES, file)[0] == (None, "", None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", '{"file_name": "1.png"', "line 1: "),
        ("c.jsonl", "[1]\n", "line 1: no JSON object"),
        ("c.jsonl", '{"caption": "a"}\n', r"without the name of an image \(file_name\); it has caption"),
        ("c.jsonl", '{"file_name": "1.png", "caption": 3}\n', "the caption of 1.png is no text"),
        (
            "c.jsonl",
            '{"file_name": "1.png", "caption": "a"}\n{"file_name": "1.png", "caption": "b"}',
            "two captions for 1.png",
        ),
        ("c.txt", "1.png a cat", r"captions are read from \.csv \(with a header\) and \.jsonl"),
        ("none.csv", None, "There is no file of captions"),
    ],
)
def test_one_line_for_files_that_are_wrong(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        folder_captions(folder, NAMES, folder / name)


def test_some_captions_are_an_error_that_names_the_others() -> None:
    names = tuple(f"{number}.png" for number in range(6))
    assert all_captions(None, names) == ("",) * 6
    assert all_captions(tuple("abcdef"), names) == tuple("abcdef")
    assert all_captions(("",) * 6, names) == ("",) * 6
    with pytest.raises(DataError, match=r"4 of 6 train images have no caption \(1\.png, 2\.png, 3\.png, …\)"):
        all_captions(("a", None, None, None, None, ""), names, "train images")


def test_captions_in_memory() -> None:
    assert given_captions({"2.png": "two"}, NAMES, "queries") == (None, "two", None)
    assert given_captions(["a", "b", "c"], NAMES, "queries") == ("a", "b", "c")
    with pytest.raises(DataError, match="2 captions for 3 queries"):
        given_captions(["a", "b"], NAMES, "queries")
    with pytest.raises(DataError, match="is a int, no text"):
        given_captions(["a", "b", 3], NAMES, "queries")  # type: ignore[list-item]


def test_captions_come_with_items_also_where_some_have_none(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    items = [{"image": picture, "text": "a"}, {"image": picture, "caption": ""}, {"image": picture, "text": None}]
    read = read_source(items, 4, ArtifactStore(tmp_path)).images
    assert read.captions == ("a", "", None)
    assert read[1:].captions == ("", None)
    assert read.select([2, 0]).captions == (None, "a")
    bare = read_source(items[2:], 4, ArtifactStore(tmp_path)).images
    assert bare.captions is None
    assert read[2:].content_hash != bare.content_hash


def test_lines_of_json_end_where_json_says(folder: Path) -> None:
    """Texts may hold what other formats end a line with."""
    texts = ("a\u2028b", "c\u0085d", "e\u2029f")
    rows = [
        json.dumps({"file_name": name, "text": text}, ensure_ascii=False)
        for name, text in zip(NAMES, texts, strict=True)
    ]
    (folder / "metadata.jsonl").write_bytes("\r\n".join([*rows, ""]).encode())
    captions, _ = folder_captions(folder, NAMES)
    assert captions == texts
