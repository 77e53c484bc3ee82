"""Files as those of ArtBench-10, a few of each style and part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

OTHERS = ("baroque", "realism")
STYLES = ("post_impressionism", "ukiyo_e")


def write_artbench(root: Path, num_train: int = 12, num_test: int = 4) -> pd.DataFrame:
    """Write ``artbench/ArtBench-10.csv`` and the pictures, 256×256 JPEG; styles and parts are mixed, as in the real table.

    Args:
        num_train: of each style.
        num_test: likewise.
    """
    folder = root / "artbench"
    rows = []
    for style in (*OTHERS, *STYLES):
        for number in range(num_train + num_test):
            split = "test" if number % 4 == 3 and number // 4 < num_test else "train"
            rows.append({"name": f"somebody_{style}-{number}.jpg", "label": style, "split": split})
    table = pd.DataFrame(rows)
    table = table.assign(artist="somebody", url="", is_public_domain=True, length=800, width=600)
    table["cifar_index"] = np.arange(len(table))[::-1]
    columns = ["name", "artist", "url", "is_public_domain", "length", "width", "label", "split", "cifar_index"]
    for number, row in table.iterrows():
        place = folder / "artbench-10-imagefolder" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(place / row["name"], quality=95)
    table[columns].to_csv(folder / "ArtBench-10.csv", index=False)
    return table
