"""A ground truth on a Ray cluster whose workers, nodes and command are killed at random: is anything lost, or done twice?

    python benchmarks/cluster_kills.py --kills 20 --driver-kills 2 --output results/benchmarks      # some minutes

Three raylets of one CPU each on this machine, with separate processes; SIGKILL hits a worker, or with a chance of a third a
raylet, in place of which a new node joins. The command itself is killed and started again now and then. What is in the store
at the end is compared with what one process makes without any of this.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from attribench.store.artifacts import ArtifactStore
from attribench.store.journal import Journal

KINDS = ("models", "losses", "generated")


class Killed:
    """A cluster, the command that runs on it, and what was done to both.

    Args:
        command: the command, without where it runs.
        folder: its work directory.
    """

    def __init__(self, command: Sequence[str], folder: Path, generator: random.Random) -> None:
        from ray.cluster_utils import Cluster

        self._generator, self.kills = generator, Counter[str]()
        self._cluster = Cluster()
        self._head = self._add(include_dashboard=False)
        self._others = [self._add(), self._add()]
        place = ["--executor", "ray", "--ray.address", self._cluster.address, "--workdir", str(folder)]
        self._command, self._log = [*command, *place], folder.with_suffix(".log")
        self._driver = self._start()

    def running(self) -> bool:
        """Whether the command still runs.

        Raises:
            SystemExit: it failed.
        """
        code = self._driver.poll()
        if code:
            raise SystemExit(f"The command failed with {code}:\n{self._log.read_text()[-2000:]}")
        return code is None

    def kill_something(self) -> bool:
        """Kill a worker or a raylet; False if there was none to kill."""
        if self._generator.random() < 1 / 3:
            node = self._generator.choice(self._others)
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
            self._others.remove(node)
            self._cluster.remove_node(node, allow_graceful=False)
            self._others.append(self._add())
            self.kills["raylet"] += 1
            return True
        workers = self._workers()
        if not workers:
            return False
        self._generator.choice(workers).kill()
        self.kills["worker"] += 1
        return True

    def kill_driver(self) -> None:
        """Kill the command, and start it again."""
        self._driver.kill()
        self._driver.wait()
        self.kills["command"] += 1
        self._driver = self._start()

    def end(self) -> None:
        """Stop everything."""
        self._driver.kill()
        self._driver.wait()
        self._cluster.shutdown()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log)

    def _add(self, **options: Any) -> Any:
        for attempt in range(3):  # a busy machine may take longer to start a node than Ray waits
            try:
                return self._cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **options)
            except Exception:
                if attempt == 2:
                    raise
                time.sleep(5.0)
        return None

    def _workers(self) -> list[psutil.Process]:
        """Worker processes that are at a job."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in (self._head, *self._others)]
        found = []
        for raylet in raylets:
            try:
                children = [(child, " ".join(child.cmdline())) for child in psutil.Process(raylet).children()]
                found += [child for child, name in children if re.match("ray::(model|target|losses)", name)]
            except psutil.Error:
                continue
        return found


def measure(kills: int, driver_kills: int, epochs: int, pause: float, seed: int, carry: bool) -> dict[str, object]:
    """Run both, and compare."""
    generator = random.Random(seed)
    command = [sys.executable, "-m", "attribench", "ground-truth", "--dataset", "digits", "--preset", "smoke",
               "--accelerator", "cpu", "--training.epochs", str(epochs), "--checkpoint_seconds", "0.5"]  # fmt: skip
    sockets = tempfile.mkdtemp(prefix="r", dir="/tmp")  # whose paths must be short
    os.environ |= {"RAY_TMPDIR": sockets, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as folder:
        alone, killed_folder = Path(folder) / "alone", Path(folder) / "killed"
        started = time.monotonic()
        subprocess.run([*command, "--workers", "1", "--workdir", str(alone)], check=True, capture_output=True)
        seconds_alone, started = time.monotonic() - started, time.monotonic()
        killed = Killed([*command, "--ray.carry", str(carry).lower()], killed_folder, generator)
        try:
            driver_at = set(generator.sample(range(1, kills), driver_kills))
            done, began = 0, time.monotonic()
            while killed.running() and time.monotonic() - began < 3600:
                if done < kills and killed.kill_something():
                    done += 1
                    if done in driver_at:
                        killed.kill_driver()
                time.sleep(generator.uniform(0.2, 2 * pause) if done < kills else 0.2)
        finally:
            killed.end()
            shutil.rmtree(sockets, ignore_errors=True)
        return {
            "kills of workers": killed.kills["worker"],
            "kills of raylets": killed.kills["raylet"],
            "kills of the command": killed.kills["command"],
            "seconds": round(time.monotonic() - started, 1),
            "seconds of one process without kills": round(seconds_alone, 1),
            **compared(alone, killed_folder),
        }


def compared(alone: Path, killed: Path) -> dict[str, object]:
    """Whether two stores hold the same, and how often anything of the second was begun and made."""
    digests = [
        {f"{a.kind}/{a.key}": a.digest for a in ArtifactStore(folder).artifacts() if a.kind in KINDS}
        for folder in (alone, killed)
    ]
    entries = [entry for entry in Journal(killed).entries() if entry.kind in KINDS]
    made = Counter((entry.kind, entry.key) for entry in entries)
    return {
        "artifacts": len(digests[0]),
        "the same bit for bit": digests[0] == digests[1],
        "lost": len(digests[0].keys() - digests[1].keys()),
        "made twice": sum(count - 1 for count in made.values()),
        "begun again": sum(entry.attempt - 1 for entry in entries),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of workers and raylets")
    parser.add_argument("--driver-kills", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--carry", action="store_true", help="without a shared folder")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    row = measure(options.kills, options.driver_kills, options.epochs, options.pause, options.seed, options.carry)
    for name, value in row.items():
        print(f"{name}: {value}")
    if options.output is not None:
        name = f"cluster_kills{'_carried' if options.carry else ''}.csv"
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    if not row["the same bit for bit"] or row["made twice"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
