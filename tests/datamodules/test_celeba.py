from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from attribench.datamodules.celeba import CelebA
from attribench.errors import DataError, UsageError

# The official partition in the official format; attribench takes no file with another MD5 sum than CelebA's own.
LAST_TRAIN, LAST_VALIDATION, LAST = 162_770, 182_637, 202_599
LAYOUT = "".join(f"{i:06d}.jpg {(i > LAST_TRAIN) + (i > LAST_VALIDATION)}\r\n" for i in range(1, LAST + 1)).encode()


def picture(index: int, size: tuple[int, int] = (178, 218)) -> bytes:
    """A JPEG that differs by index: coloured ramps."""
    rng = np.random.default_rng(index)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`celeba/` with the partition file, and no pictures yet."""
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_bytes(LAYOUT)
    return tmp_path


def chosen(data: CelebA) -> list[int]:
    train, validation = data.indices()
    return [*train.tolist(), *validation.tolist()]


def put_pictures(data: CelebA, root: Path) -> None:
    for index in chosen(data):
        (root / "celeba" / "img_align_celeba" / f"{index + 1:06d}.jpg").write_bytes(picture(index))


def test_indices_are_the_published_ones(root: Path) -> None:
    train, validation = CelebA(root=root).indices()
    assert train[:5].tolist() == [48803, 28992, 118843, 86803, 153263]
    assert validation[:5].tolist() == [167013, 179842, 176165, 167714, 180120]
    assert (len(train), len(validation)) == (5000, 1000)
    assert train.max() < LAST_TRAIN <= validation.min() <= validation.max() < LAST_VALIDATION


def test_only_the_chosen_pictures_are_read_in_order_cropped_and_resized(root: Path) -> None:
    data = CelebA(root=root, num_train=6, num_queries=3)
    put_pictures(data, root)
    assert (*data.train.ids, *data.validation.ids) == tuple(f"celeba-{i}" for i in chosen(data))
    assert data.train.labels is None
    assert (data.label, data.stratify) == ("celeba", False)
    reference = Compose([CenterCrop(140), Resize(64, interpolation=InterpolationMode.BILINEAR)])
    # torchvision's own reader, on the same files
    official = torchvision.datasets.CelebA.__new__(torchvision.datasets.CelebA)
    official.root, official.transform, official.target_type = str(root), reference, []
    official.filename = [f"{i + 1:06d}.jpg" for i in chosen(data)]
    pixels = [*data.train.images, *data.validation.images]
    for position, image in enumerate(pixels):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(official[position][0]))


def test_the_zip_is_read_without_unpacking(root: Path) -> None:
    data = CelebA(root=root, num_train=4, num_queries=2, image_size=16)
    put_pictures(data, root)
    unpacked = data.train
    folder = root / "celeba" / "img_align_celeba"
    with zipfile.ZipFile(root / "celeba" / "img_align_celeba.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"img_align_celeba/{file.name}")
            file.unlink()
    folder.rmdir()
    zipped = CelebA(root=root, num_train=4, num_queries=2, image_size=16)
    assert zipped.train.content_hash == unpacked.content_hash
    assert not folder.exists()


def test_missing_pictures_are_named(root: Path) -> None:
    data = CelebA(root=root, num_train=5, num_queries=2)
    put_pictures(data, root)
    lost = root / "celeba" / "img_align_celeba" / f"{chosen(data)[1] + 1:06d}.jpg"
    lost.unlink()
    with pytest.raises(DataError, match=rf"1 of 7 images cannot be read \(.*{lost.name}: No such file"):
        data.load()


def test_pictures_that_are_not_the_aligned_ones_are_refused(root: Path) -> None:
    data = CelebA(root=root, num_train=2, num_queries=1)
    put_pictures(data, root)
    other = root / "celeba" / "img_align_celeba" / f"{chosen(data)[0] + 1:06d}.jpg"
    other.write_bytes(picture(0, (409, 687)))
    with pytest.raises(DataError, match="409x687, but aligned pictures are 178x218"):
        data.load()


def test_a_truncated_zip_is_an_error_that_names_it(root: Path) -> None:
    (root / "celeba" / "img_align_celeba").rmdir()
    (root / "celeba" / "img_align_celeba.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"img_align_celeba\.zip cannot be opened"):
        CelebA(root=root, num_train=2, num_queries=1).load()


def test_damage_within_the_zip_names_the_picture(root: Path) -> None:
    data = CelebA(root=root, num_train=2, num_queries=1)
    names = [f"{index + 1:06d}.jpg" for index in chosen(data)]
    (root / "celeba" / "img_align_celeba").rmdir()
    path = root / "celeba" / "img_align_celeba.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names[:2]:
            archive.writestr(f"img_align_celeba/{name}", picture(0))
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # within the first picture
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=rf"2 of 3 .*{names[0]}: damaged .*{names[2]}: damaged or missing in the zip"):
        data.load()


def test_a_changed_partition_file_is_refused(root: Path) -> None:
    (root / "celeba" / "list_eval_partition.txt").write_bytes(LAYOUT.replace(b" 0\r\n", b" 1\r\n", 1))
    with pytest.raises(DataError, match="is not CelebA's official file"):
        CelebA(root=root).indices()


@pytest.mark.parametrize("download", [True, False])
def test_what_to_fetch_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", fail)
    with pytest.raises(DataError) as caught:
        CelebA(root=tmp_path, download=download).load()
    message = str(caught.value)
    for part in ("list_eval_partition.txt", "img_align_celeba.zip", "00d2c5bc6d35e252742224ab0c1e8fcb", "--data.root"):
        assert part in message
    assert str(tmp_path / "celeba") in message
    assert ("no network at all" if download else "switched off") in message
    assert "\n" not in message


def test_only_missing_files_are_fetched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CelebA(root=root, num_train=2, num_queries=1)
    indices = chosen(data)
    (root / "celeba" / "img_align_celeba").rmdir()
    fetched = []

    def fetch(drive_id: str, folder: str, name: str, md5: str) -> None:
        fetched.append(name)
        with zipfile.ZipFile(Path(folder, name), "w") as archive:
            for index in indices:
                archive.writestr(f"img_align_celeba/{index + 1:06d}.jpg", picture(index))

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", fetch)
    assert len(data.train) == 2
    assert fetched == ["img_align_celeba.zip.part"]


def test_a_download_of_a_wrong_sum_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(drive_id: str, folder: str, name: str, md5: str) -> None:
        Path(folder, name).write_bytes(b"a page that asks to try again later")
        raise RuntimeError("File not found or corrupted.")  # as torchvision: the file stays

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", fetch)
    for _ in range(2):  # the second time it is missing still
        with pytest.raises(DataError, match=r"CelebA is not complete .*corrupted"):
            CelebA(root=tmp_path).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 162_771}, "num_train is 162771, but there are only 162770"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"image_size": 141}, "image_size must be between 1 and 140"),
    ],
)
def test_impossible_options_are_refused(root: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CelebA(root=root, **options).indices()  # type: ignore[arg-type]
