"""Do decoys hold what they promise on real images? Clothes, new digits and copies of digits, judged among digits.

    python benchmarks/decoys.py --output results/benchmarks      # some minutes; needs Fashion-MNIST

1,200 of scikit-learn's digits are the train images. Queries that were not made of any: 500 clothes of Fashion-MNIST at the
digits' size, and 97 other digits; and 100 noisy copies of train images. Decoys are a tenth of the train images that is set
apart, or 500 other digits. Written: for how many queries anything stands out at 5 % false discovery, and of the copies how
often the copied image does.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from attribench.computing.progress import silent_progress
from attribench.configuration.files import dataset_config
from attribench.configuration.resolution import method_config
from attribench.datamodules.fashion_mnist import FashionMnist
from attribench.records.answers import Attributed
from attribench.settings import Runtime
from attribench.workflows.attribution import attribute
from attribench.workflows.decoys import DecoyRequest
from attribench.workflows.own_images import Request

NUM_TRAIN, NUM_DECOYS, NUM_CLOTHES, NUM_COPIES, NOISE = 1200, 500, 500, 100, 8.0
KINDS = {"clothes": "500 clothes", "new": "97 new digits", "copy": "100 noisy copies of train images"}


def write(folder: Path, images: dict[str, NDArray[np.float64]]) -> None:
    """One PNG an image."""
    folder.mkdir()
    for name, image in images.items():
        Image.fromarray(np.rint(image).clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")


def prepare(folder: Path, root: str | None) -> None:
    """The folders ``train``, ``queries`` and ``unseen``."""
    digits = load_digits().images * (255 / 16)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(digits))
    clothes = FashionMnist(root=root, num_train=10, num_queries=NUM_CLOTHES, image_size=8, download=root is None)
    train, unseen, new = np.split(digits[order], [NUM_TRAIN, NUM_TRAIN + NUM_DECOYS])
    copied = generator.choice(NUM_TRAIN, NUM_COPIES, replace=False)
    write(folder / "train", {str(number): image for number, image in enumerate(train)})
    write(folder / "unseen", {str(number): image for number, image in enumerate(unseen)})
    queries = {
        f"clothes-{n}": image.numpy().astype(np.float64) for n, image in enumerate(clothes.validation.images[:, 0])
    }
    queries |= {f"new-{n}": image for n, image in enumerate(new)}
    queries |= {f"copy-{n}": train[n] + generator.normal(0, NOISE, train[n].shape) for n in copied}
    write(folder / "queries", queries)


def judged(result: Attributed) -> dict[str, tuple[int, int, int]]:
    """For each kind of query how many there are, for how many anything stands out, and how many copies' own image does."""
    judgement = result.judgement
    assert judgement is not None
    names = {name: number for number, name in enumerate(result.train.ids)}
    found = {}
    for kind in KINDS:
        count = hit = own = 0
        for query, name in enumerate(result.queries.ids):
            if not name.startswith(f"{kind}-"):
                continue
            original = names.get(name.removeprefix("copy-"))
            if kind == "copy" and original is None:
                continue  # it was set apart
            stands_out = judgement.stands_out(query)
            count, hit, own = count + 1, hit + bool(stands_out), own + (original in stands_out)
        found[kind] = (count, hit, own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder for the table")
    parser.add_argument("--root", type=str, default=None, help="folder with Fashion-MNIST (default: it is downloaded)")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.root)
        for method in ("pixel-cosine", "nda"):
            # NDA with the board's patch sizes for images of this size.
            config = method_config(method, dataset_config("digits"), "board", {})
            for source, words in (("auto", "a tenth, set apart"), (str(folder / "unseen"), "500 other digits")):
                request = Request(
                    folder / "train", folder / "queries", top=1, image_size=8, heat_maps=0, decoys=DecoyRequest(source)
                )
                runtime = Runtime(workdir=str(folder / "runs"), accelerator="cpu")
                (answer,) = attribute(request, [config], runtime, silent_progress)
                for kind, (count, hit, own) in judged(answer).items():
                    rows.append((method, KINDS[kind], words, count, hit, own if kind == "copy" else ""))
                    print(*rows[-1], sep=", ", flush=True)
    header = ("method", "queries", "decoys", "queries judged", "anything stands out", "the copied image does")
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "decoys.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
    title = f"# Decoys: {NUM_TRAIN} digits for train images, 5 % false discovery\n\n"
    (options.output / "decoys.md").write_text(title + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
