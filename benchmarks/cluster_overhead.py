"""What giving out a job costs: jobs that do nothing, by each executor, on this machine.

    python benchmarks/cluster_overhead.py --jobs 200 --output results/benchmarks      # a minute or two; needs attribench[ray]

A job writes one number into the store: claim, artifact with checksums and fsync, journal. The executors take turns; each has
its workers started by some jobs that do not count. ms a job: wall-clock time of all, divided by their number; and the same of
a single job, from being given out to being known as done.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from attribench.computing.progress import silent_progress
from attribench.settings import RayOptions, Runtime
from attribench.store.artifacts import Artifact, ArtifactStore, Spec
from attribench.truth.executors import Executor, InProcessExecutor, ProcessExecutor
from attribench.truth.jobs import Report
from attribench.truth.resources import Memory


@dataclass(frozen=True)
class Nothing:
    """Writes its number."""

    number: int

    @property
    def name(self) -> str:
        return f"nothing {self.number}"

    @property
    def cost(self) -> float:
        return 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def unfinished(self) -> str | None:
        return None

    @property
    def spec(self) -> Spec:
        return {"number": self.number}

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        return Memory(2**20)

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return []

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        return "nothing", self.spec

    def find(self, store: ArtifactStore) -> Artifact | None:
        return store.find("nothing", self.spec)

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        return store.get_or_create("nothing", self.spec, lambda s: s.save_json("number", self.number), wait=False)


class _Bar:
    def advance(self, amount: float = 1.0) -> None:
        pass


def executor(name: str, store: ArtifactStore, workers: int) -> Executor:
    """By name."""
    runtime = Runtime(workdir=str(store.root), accelerator="cpu")
    if name == "in this process":
        return InProcessExecutor(store, runtime, silent_progress)
    if name == "worker processes":
        return ProcessExecutor(store, runtime, silent_progress, workers)
    from attribench.truth.cluster.executor import RayExecutor

    options = RayOptions(address="local", carry=name == "Ray, carried")
    return RayExecutor(store, Runtime(workdir=str(store.root), accelerator="cpu", ray=options), silent_progress)


def measure(name: str, jobs: int, workers: int) -> tuple[float, float]:
    """ms a job of many, and of one."""
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        mine = executor(name, store, workers)
        warming = [Nothing(-1 - number) for number in range(4 * workers)]
        if name != "worker processes":  # whose pool is made anew by each call
            mine.run(warming, _Bar())
        begin = time.perf_counter()
        mine.run([Nothing(number) for number in range(jobs)], _Bar())
        many = (time.perf_counter() - begin) / jobs
        ones = []
        for number in range(jobs, jobs + 5):
            begin = time.perf_counter()
            mine.run([Nothing(number)], _Bar())
            ones.append(time.perf_counter() - begin)
        return 1000 * many, 1000 * statistics.median(ones)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sockets = tempfile.mkdtemp(prefix="r", dir="/tmp")  # whose paths must be short
    os.environ |= {"RAY_TMPDIR": sockets, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import ray

    ray.init(
        "local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20
    )
    names = ("in this process", "worker processes", "Ray", "Ray, carried")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    try:
        for _ in range(options.rounds):
            for name in names:
                found[name].append(measure(name, options.jobs, options.workers))
    finally:
        ray.shutdown()
        shutil.rmtree(sockets, ignore_errors=True)
    rows = [
        {
            "executor": name,
            "workers": 1 if name == "in this process" else options.workers,
            "ms a job": round(statistics.median(many for many, _ in values), 2),
            "ms of one job": round(statistics.median(one for _, one in values), 1),
        }
        for name, values in found.items()
    ]
    for row in rows:
        print(row)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "cluster_overhead.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
