"""NDA over a large train set in groups, as a cluster computes it, against one process that streams the same train set.

    python benchmarks/nda_groups.py --images 70000 --output results/benchmarks        # a few minutes
    python benchmarks/nda_groups.py --images 1000000 --queries 1                      # an hour or so on two cores
    python benchmarks/nda_groups.py --images 1000000 --address auto                   # on a Ray cluster

Random images of 16×16 pixels; three timesteps, patches of 5 and, at half resolution, of 6. Both compute the same scores: that
they are equal bit for bit is checked.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
    parser.add_argument("--images", type=int, default=70_000, help="more than 65,536: fewer are not computed in groups")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--address", help="of a Ray cluster; none: the groups one after the other, here")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = (3, options.side, options.side)
    pixels = torch.randint(0, 256, (options.images + options.queries, *shape), generator=generator, dtype=torch.uint8)
    names = tuple(map(str, range(len(pixels))))
    train = ImageSet(pixels[: options.images], names[: options.images])
    queries = Queries(pixels[options.images :], names[options.images :])
    with tempfile.TemporaryDirectory() as folder:
        alone, seconds_alone = scores(train, queries, Path(folder) / "alone", groups=False, address=None)
        grouped, seconds = scores(train, queries, Path(folder) / "groups", groups=True, address=options.address)
    row = {
        "train images": options.images,
        "queries": options.queries,
        "seconds of one process": round(seconds_alone, 1),
        "seconds in groups": round(seconds, 1),
        "the same bit for bit": torch.equal(alone, grouped),
    }
    print(row)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "nda_groups.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    if not row["the same bit for bit"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
