"""Which of these images shaped those? Two folders are enough; without arguments, two folders of digits are made.

    python examples/own_folders.py [TRAIN QUERIES OUT]

The same from a shell: attribench attribute --train TRAIN --queries QUERIES --out OUT --top 3
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

from attribench.cli import main


def write_digits(folder: Path, start: int, count: int) -> None:
    """Write scikit-learn's digits from number ``start`` on as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(load_digits().images[start : start + count], start):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"digit-{number:03}.png")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        train, queries, out = map(Path, sys.argv[1:])
    else:
        train, queries, out = (Path("own-folders") / name for name in ("train", "queries", "answer"))
        write_digits(train, 0, 60)
        write_digits(queries, 100, 2)
    folders = ["--train", str(train), "--queries", str(queries), "--out", str(out)]
    if code := main(["attribute", *folders, "--method", "pixel", "--top", "3"]):
        raise SystemExit(code)
    print(pd.read_parquet(out / "scores.parquet").to_string(index=False))
    print(f"With pictures: {out / 'report.html'}")
