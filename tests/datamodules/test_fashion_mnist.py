from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from idx_files import NAMES, IdxFiles, write_fashion
from PIL import Image
from sklearn.model_selection import train_test_split
from torchvision.datasets import FashionMNIST as Official

from attribench.datamodules import fashion_mnist
from attribench.datamodules.fashion_mnist import DEBIAN_FOLDER, FashionMnist
from attribench.errors import DataError, UsageError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def files(tmp_path: Path) -> IdxFiles:
    return write_fashion(tmp_path / "FashionMNIST" / "raw", gzipped=False)


def small(root: Path, **options: int) -> FashionMnist:
    return FashionMnist(root=root, **{"num_train": 20, "num_queries": 10, **options}, download=False)  # type: ignore[arg-type]


def test_splits_are_those_of_a_pandas_table_over_torchvision_s_data(files: IdxFiles, tmp_path: Path) -> None:
    data = small(tmp_path)
    for part, size, chosen in (("train", 20, data.train), ("test", 10, data.validation)):
        official = Official(tmp_path, train=part == "train")
        table = pd.DataFrame({"label": official.targets.numpy()})
        expected = train_test_split(table, train_size=size, random_state=42, stratify=table.label)[0]
        assert chosen.ids == tuple(f"fashion-mnist-{part}-{i}" for i in expected.index)
        assert chosen.labels is not None
        assert chosen.labels.tolist() == expected.label.tolist()
        assert torch.equal(chosen.images, official.data[expected.index, None])
        assert np.array_equal(official.data.numpy(), files.images[part])
    assert (data.label, data.stratify, data.licence) == ("fashion-mnist", True, "MIT, Zalando SE")


@pytest.mark.parametrize("gzipped", [True, False])
def test_files_may_be_gzipped_or_not_and_lie_in_the_root_itself(files: IdxFiles, tmp_path: Path, gzipped: bool) -> None:
    other = write_fashion(tmp_path / "loose", gzipped)
    assert small(other.folder).train.content_hash == small(tmp_path).train.content_hash


def test_less_than_28_pixels_is_resized_and_more_gets_a_black_border(files: IdxFiles, tmp_path: Path) -> None:
    full, half, framed = (small(tmp_path, image_size=size).train for size in (28, 14, 32))
    assert half.image_shape == (1, 14, 14)
    for image, resized in zip(full.images, half.images, strict=True):
        expected = Image.fromarray(image[0].numpy()).resize((14, 14), Image.Resampling.BILINEAR)
        assert np.array_equal(resized[0].numpy(), np.asarray(expected))
    assert torch.equal(framed.images[:, :, 2:30, 2:30], full.images)
    assert framed.images.sum() == full.images.sum()
    odd = small(tmp_path, image_size=31).train
    assert odd.image_shape == (1, 31, 31)
    assert torch.equal(odd.images[:, :, 1:29, 1:29], full.images)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, gzipped: bool) -> None:
    path = write_fashion(tmp_path / "x", gzipped).folder / (name + ".gz" * gzipped)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{path} .*[Tt]ake it again"):
        small(tmp_path / "x").load()


def test_a_file_that_ends_within_its_header_is_named(files: IdxFiles, tmp_path: Path) -> None:
    (files.folder / IMAGES).write_bytes(bytes((0, 0, 8, 3, 0, 0)))
    with pytest.raises(DataError, match=rf"{IMAGES} is no idx file"):
        small(tmp_path).load()


def test_another_magic_number_is_refused(files: IdxFiles, tmp_path: Path) -> None:
    for name, content in ((IMAGES, (files.folder / LABELS).read_bytes()), (LABELS, b"<html>not found</html>")):
        kept = (files.folder / name).read_bytes()
        (files.folder / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is no idx file of unsigned bytes with [13] axes: it begins"):
            small(tmp_path).load()
        (files.folder / name).write_bytes(kept)


def test_a_gz_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path / "x", gzipped=True).folder
    (folder / f"{LABELS}.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=rf"{LABELS}\.gz cannot be read"):
        small(folder).load()


def test_images_and_labels_must_belong_together(files: IdxFiles, tmp_path: Path) -> None:
    (files.folder / LABELS).write_bytes((files.folder / LABELS.replace("train", "t10k")).read_bytes())
    with pytest.raises(DataError, match=rf"{IMAGES} holds 60 images, but .*{LABELS} 40 labels"):
        small(tmp_path).load()


def test_images_of_another_size_are_refused(files: IdxFiles, tmp_path: Path) -> None:
    content = bytearray((files.folder / IMAGES).read_bytes())
    content[8:16] = bytes((0, 0, 0, 14, 0, 0, 0, 56))
    (files.folder / IMAGES).write_bytes(content)
    with pytest.raises(DataError, match="holds images of 56x14, but Fashion-MNIST's are 28x28"):
        small(tmp_path).load()


@pytest.mark.parametrize("download", [True, False])
def test_what_to_fetch_and_where_to_put_it(tmp_path: Path, no_network: list[str], download: bool) -> None:
    with pytest.raises(DataError) as caught:
        FashionMnist(root=tmp_path, download=download).load()
    message = str(caught.value)
    for archive, md5 in Official.resources:
        assert f"{archive} (MD5 {md5})" in message
    for part in ("--data.root", "dataset-fashion-mnist", str(tmp_path / "FashionMNIST" / "raw")):
        assert part in message
    assert ("Network is unreachable" if download else "switched off") in message
    assert bool(no_network) == download
    assert "\n" not in message


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path, asked: list[str]) -> None:
    """Let every address lead to the folder's file of that name."""

    def opened(request: object, *args: object, **kwargs: object) -> io.BytesIO:
        asked.append(Path(getattr(request, "full_url", str(request))).name)
        response = io.BytesIO((folder / asked[-1]).read_bytes())
        response.headers = {}  # type: ignore[attr-defined]
        response.length = len(response.getvalue())  # type: ignore[attr-defined]
        response.url = getattr(request, "full_url", str(request))  # type: ignore[attr-defined]
        return response

    monkeypatch.setattr("urllib.request.urlopen", opened)


def test_missing_files_are_fetched_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_fashion(tmp_path / "source", gzipped=True)
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(source.folder.iterdir())]
    monkeypatch.setattr(Official, "resources", sums)
    there = write_fashion(tmp_path / "root" / "FashionMNIST" / "raw", gzipped=False).folder
    (there / IMAGES).unlink()
    asked: list[str] = []
    serve(monkeypatch, source.folder, asked)
    data = FashionMnist(root=tmp_path / "root", num_train=20, num_queries=10)
    assert data.train.content_hash == small(source.folder).train.content_hash
    assert set(asked) == {f"{IMAGES}.gz"}

    (source.folder / f"{IMAGES}.gz").write_bytes(gzip.compress(b"something else"))
    (there / f"{IMAGES}.gz").unlink()
    with pytest.raises(DataError, match=rf"not complete in {there}, and fetching failed: .*corrupted"):
        FashionMnist(root=tmp_path / "root", num_train=20, num_queries=10).load()


def test_debian_s_folder_is_found_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    monkeypatch.setenv("ATTRIBENCH_DATA", str(tmp_path / "empty"))
    debian = write_fashion(tmp_path / "debian", gzipped=True)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", debian.folder)
    found = FashionMnist(num_train=20, num_queries=10)
    assert found.train.content_hash == small(debian.folder).train.content_hash
    with pytest.raises(DataError):  # a folder that was named is the one that is meant
        FashionMnist(root=tmp_path / "elsewhere").load()


def test_debian_s_files_are_the_whole_data_set() -> None:
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip(f"needs Debian's package dataset-fashion-mnist (no {DEBIAN_FOLDER})")
    for part, count in (("train", 60_000), ("test", 10_000)):
        images, labels = fashion_mnist._read_part(DEBIAN_FOLDER, NAMES[part])
        assert images.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * 10
    data = FashionMnist(root=DEBIAN_FOLDER, num_train=100, num_queries=50, image_size=16)
    assert (len(data.train), len(data.validation), data.train.image_shape) == (100, 50, (1, 16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 61}, "num_train is 61, but there are only 60"),
        ({"num_train": 9}, "num_train cannot be 9: .* between 10 and 50 images, or all 60"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"image_size": 33}, "image_size must be between 1 and 32, not 33"),
    ],
)
def test_impossible_options_are_refused(files: IdxFiles, tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(tmp_path, **options).load()
