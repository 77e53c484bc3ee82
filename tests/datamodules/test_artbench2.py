from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from artbench_files import write_artbench
from PIL import Image
from sklearn.model_selection import train_test_split

from attribench.datamodules.artbench2 import ArtBench2
from attribench.errors import AttribenchError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_artbench(folder)
    return folder


@pytest.fixture(scope="module")
def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "artbench" / "ArtBench-10.csv")


def test_images_are_chosen_as_published(root: Path, table: pd.DataFrame) -> None:
    """Rows of the table by scikit-learn, stratified, as D-TRAK's notebook chooses them."""
    data = ArtBench2(root, num_train=10, num_queries=4)
    styles = table[table["label"].isin(["post_impressionism", "ukiyo_e"])]
    for images, part, size in ((data.train, "train", 10), (data.validation, "test", 4)):
        rows = styles[styles["split"] == part]
        chosen = train_test_split(rows, train_size=size, random_state=42, stratify=rows["label"])[0]
        assert images.ids == tuple(f"artbench-{index}" for index in chosen.index)
        words = {"post_impressionism": "a post impressionism painting", "ukiyo_e": "a ukiyo e painting"}
        assert images.captions == tuple(words[label] for label in chosen["label"])
        assert images.labels is not None
        assert images.labels.tolist() == [int(label == "ukiyo_e") for label in chosen["label"]]
    assert not set(data.train.ids) & set(data.validation.ids)
    assert data.prompts == ("a ukiyo e painting", "a post impressionism painting")
    assert (data.label, data.stratify, data.galleries, data.licence) == ("artbench2", True, False, None)


def test_pixels_are_the_files(root: Path, table: pd.DataFrame) -> None:
    data = ArtBench2(root, num_train=10, num_queries=4)
    assert data.train.image_shape == (3, 256, 256)
    for name, image in zip(data.validation.ids, data.validation.images, strict=True):
        row = table.loc[int(name.removeprefix("artbench-"))]
        file = root / "artbench" / "artbench-10-imagefolder" / row["label"] / row["name"]
        assert (np.asarray(Image.open(file)).transpose(2, 0, 1) == image.numpy()).all()
    assert ArtBench2(root, num_train=10, num_queries=4, image_size=16).train.image_shape == (3, 16, 16)


def test_what_is_missing_is_said_with_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"not complete in .*artbench: ArtBench-10\.csv and artbench-10-imagefolder missing"
    ):
        ArtBench2(tmp_path).load()
    write_artbench(tmp_path, 3, 1)
    for file in (tmp_path / "artbench" / "artbench-10-imagefolder" / "ukiyo_e").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"ukiyo_e-\d\.jpg.*Take artbench-10-imagefolder again"):
        ArtBench2(tmp_path, num_train=4, num_queries=2).load()
    csv = tmp_path / "artbench" / "ArtBench-10.csv"
    content = csv.read_text()
    csv.write_text(content.replace("somebody_ukiyo_e-1.jpg", "../../secret.jpg"))
    with pytest.raises(DataError, match=r"names '\.\./\.\./secret\.jpg', which is no file's name"):
        ArtBench2(tmp_path, num_train=4, num_queries=2).load()
    csv.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"is not ArtBench-10's metadata"):
        ArtBench2(tmp_path).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 1}, "num_train must be at least 2"),
        ({"image_size": 512}, "image_size must be between 8 and 256"),
        ({"num_train": 99, "num_queries": 4}, "num_train is 99, but there are only"),
    ],
)
def test_impossible_sizes_are_refused(root: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(AttribenchError, match=message):
        ArtBench2(root, **options).load()
