"""ArtBench-2: the paintings of two styles of ArtBench-10, which LoRA of Stable Diffusion is trained on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.data.decoding import Pixels, read_image
from attribench.data.reading import read_each
from attribench.datamodules._downloads import data_root
from attribench.datamodules._splits import Indices, check_range, choose
from attribench.errors import DataError

PAGE = "https://github.com/liaopeiyuan/artbench"
TABLE, PICTURES = "ArtBench-10.csv", "artbench-10-imagefolder"
STYLES = ("post_impressionism", "ukiyo_e")
SIDE = 256


def caption(style: str) -> str:
    """What a model is told of a style's paintings, as D-TRAK has it."""
    return f"a {style.replace('_', ' ')} painting"


@register_datamodule("artbench2")
class ArtBench2(AttributionDataModule):
    """ArtBench-10's post-impressionism and ukiyo-e, 256×256, told as "a ukiyo e painting": train images from its train part,
    queries from its test part.

    No painting goes into records or ground truths: not all are in the public domain (see `--galleries`).

    Args:
        root: folder that holds `artbench/ArtBench-10.csv` and `artbench/artbench-10-imagefolder`; by default
            `$ATTRIBENCH_DATA`, or else the user's cache folder.
        num_train: how many of the 10,000 train images to use, in class proportions.
        num_queries: how many of the 2,000 test images are queries, likewise.
        image_size: side of the images in pixels; less than 256 resizes them.
    """

    galleries = False

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 5000,
        num_queries: int = 1000,
        image_size: int = SIDE,
    ) -> None:
        super().__init__()
        check_range("num_train", num_train, 2)
        check_range("num_queries", num_queries, 2)
        check_range("image_size", image_size, 8, SIDE)
        self.root, self.num_train, self.num_queries, self.image_size = root, num_train, num_queries, image_size

    @property
    def label(self) -> str:
        return "artbench2"

    @property
    def prompts(self) -> tuple[str, ...]:
        """First ukiyo-e, then post-impressionism, as D-TRAK generates its images."""
        return tuple(caption(style) for style in reversed(STYLES))

    def load(self) -> tuple[ImageSet, ImageSet]:
        folder = self._folder
        table = _read_table(folder / TABLE)
        train, queries = (self._chosen(table, part) for part in ("train", "test"))
        return self._images(folder, table, train), self._images(folder, table, queries)

    def _chosen(self, table: pd.DataFrame, part: str) -> Indices:
        """Rows of the table, as the published splits choose them."""
        option = "num_train" if part == "train" else "num_queries"
        rows = np.flatnonzero(table["label"].isin(STYLES) & (table["split"] == part)).astype(np.int64)
        if not len(rows):
            raise DataError(f"{TABLE} has no images of {' and '.join(STYLES)} whose split is {part}.")
        labels = np.array([STYLES.index(style) for style in table["label"].iloc[rows]])
        return choose(rows, getattr(self, option), labels, option=option)

    def _images(self, folder: Path, table: pd.DataFrame, rows: Indices) -> ImageSet:
        chosen = table.iloc[rows]
        files = [folder / PICTURES / style / name for style, name in zip(chosen["label"], chosen["name"], strict=True)]
        pixels = read_each(files, self._decode, [str(file) for file in files], f"Take {PICTURES} again from {PAGE}.")
        return ImageSet(
            torch.from_numpy(np.stack(pixels)),
            tuple(f"artbench-{row}" for row in rows),
            torch.tensor([STYLES.index(style) for style in chosen["label"]]),
            tuple(caption(style) for style in chosen["label"]),
        )

    def _decode(self, file: Path) -> Pixels:
        return read_image(file, image_size=self.image_size)

    @property
    def _folder(self) -> Path:
        folder = data_root(self.root) / "artbench"
        missing = [name for name in (TABLE, PICTURES) if not (folder / name).exists()]
        if missing:
            raise DataError(
                f"ArtBench-10 is not complete in {folder}: {' and '.join(missing)} missing. Fetch the 256x256 ImageFolder "
                f"({PICTURES}.tar, to be unpacked) and the metadata ({TABLE}), linked from {PAGE}, and put them there; "
                "--data.root DIR names another place for the folder artbench."
            )
        return folder


def _read_table(path: Path) -> pd.DataFrame:
    """A row an image; its place is what the published splits choose by."""
    try:
        table = pd.read_csv(path, usecols=["name", "label", "split"], dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise DataError(f"{path} is not ArtBench-10's metadata ({text}). Take it again from {PAGE}.") from error
    odd = [name for name in table["name"] if "/" in name or "\\" in name or name in ("", ".", "..")]
    if odd:
        raise DataError(f"{path} names {odd[0]!r}, which is no file's name. Take it again from {PAGE}.")
    return table
