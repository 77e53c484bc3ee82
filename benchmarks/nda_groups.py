"""NDA over a large train set in groups, as a cluster computes it, against one process that streams the same train set.

    python benchmarks/nda_groups.py --output results/benchmarks                       # a few minutes on two cores
    python benchmarks/nda_groups.py --images 1000000 --side 16                        # half an hour
    python benchmarks/nda_groups.py --images 1000000 --address auto                   # on a Ray cluster

Random images of 8×8 pixels, or as many as are asked for; three timesteps, patches of 5 and, at half resolution, of 6. Both
compute the same scores: that they are equal bit for bit is checked.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribench import AttributionContext, ImageSet, Queries
from attribench.computing.progress import silent_progress
from attribench.diffusion.noise import NoiseSchedule
from attribench.method import Access, score, start
from attribench.methods.nda import NDA
from attribench.settings import RayOptions, Runtime
from attribench.store.artifacts import Artifact, ArtifactStore
from attribench.store.parts import Distribute, Part
from attribench.truth.executors import make_executor
from attribench.truth.part_jobs import PartJob


class _Bar:
    def advance(self, amount: float = 1.0) -> None:
        pass


def distribute(store: ArtifactStore, address: str | None) -> Distribute:
    """Parts one after the other in this process, or on a cluster."""
    options = RayOptions(address=address or "auto")
    executor = "local" if address is None else "ray"
    runtime = Runtime(workdir=str(store.root), accelerator="cpu", workers=1, executor=executor, ray=options)

    def done(parts: Sequence[Part], description: str) -> list[Artifact]:
        jobs = [PartJob(part) for part in parts]
        make_executor(jobs, store, runtime, silent_progress).run(jobs, _Bar())
        return [artifact for job in jobs if (artifact := job.find(store)) is not None]

    return done


def scores(
    train: ImageSet, queries: Queries, folder: Path, *, groups: bool, address: str | None
) -> tuple[Tensor, float]:
    """Scores, and the seconds that they took."""
    store = ArtifactStore(folder)
    context = AttributionContext(
        train, NoiseSchedule(), torch.device("cpu"), 0, store.scoped("methods/NDA"), Access.DATA,
        distribute=distribute(store, address) if groups else None,
    )  # fmt: skip
    method = NDA([100, 300, 500], 5, 6)
    begin = time.perf_counter()
    start(method, context)
    found = score(method, queries)
    return found, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[70_000, 1_000_000], help="more than 65,536: fewer make no groups"
    )
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--address", help="of a Ray cluster; none: the groups one after the other, here")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for count in options.images:
        rows.append(compare(count, options.queries, options.side, options.address))
        print(rows[-1], flush=True)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "nda_groups.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if not all(row["the same bit for bit"] for row in rows):
        raise SystemExit(1)


def compare(num_train: int, num_queries: int, side: int, address: str | None) -> dict[str, Any]:
    """A row of the table."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, side, side)
    pixels = torch.randint(0, 256, (num_train + num_queries, *shape), generator=generator, dtype=torch.uint8)
    names = tuple(map(str, range(len(pixels))))
    train = ImageSet(pixels[:num_train], names[:num_train])
    queries = Queries(pixels[num_train:], names[num_train:])
    with tempfile.TemporaryDirectory() as folder:
        alone, seconds_alone = scores(train, queries, Path(folder) / "alone", groups=False, address=None)
        grouped, seconds = scores(train, queries, Path(folder) / "groups", groups=True, address=address)
    return {
        "train images": num_train,
        "pixels": f"{side}×{side}",
        "queries": num_queries,
        "seconds of one process": round(seconds_alone, 1),
        "seconds in groups": round(seconds, 1),
        "the same bit for bit": torch.equal(alone, grouped),
    }


if __name__ == "__main__":
    main()
