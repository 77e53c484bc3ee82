"""How long 192 retrainings take with so many workers, which fail so often: a simulation with measured times of jobs.

    python benchmarks/scaling.py --measure 6 --output results/benchmarks    # first measures six models here: some minutes
    python benchmarks/scaling.py --job-seconds 3600 --output results/benchmarks

A job is a training with the losses measured after it. Each worker takes the next job when it has done one. Failures come at
random, at a constant rate a worker: what the job did since its last checkpoint is lost, the job goes on with the next free
worker, and the failed one comes back after a while. Before each job there is what giving it out costs. Means of 200 runs.

Times are measured in processor time on one thread, so that other work on the machine does not show.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

WORKERS = (1, 8, 16, 32, 64, 96, 192)
#: Failures a worker and day.
RATES = (0.0, 1.0, 24.0)


@dataclass(frozen=True)
class Terms:
    """What a run is subject to; all times in seconds.

    Args:
        rate: failures a worker and second.
        checkpoint: between two checkpoints.
        overhead: before each job.
        restart: what a job that goes on elsewhere takes before it is where it was.
        repair: until a worker that failed is back.
    """

    rate: float
    checkpoint: float = 60.0
    overhead: float = 0.1
    restart: float = 10.0
    repair: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """A simulated run.

    Attributes:
        makespan: seconds until all is done.
        failures: of workers at work.
        repeated: seconds of work that were done twice.
    """

    makespan: float
    failures: int
    repeated: float


def simulate(jobs: Sequence[float], workers: int, terms: Terms, generator: random.Random) -> Outcome:
    """One run.

    Args:
        jobs: seconds of each.
    """
    waiting = deque((seconds, False) for seconds in jobs)
    free = [(0.0, number) for number in range(workers)]
    heapq.heapify(free)
    returned: list[tuple[float, float]] = []  # when a failed job can begin again, and what is left of it
    makespan, failures, repeated = 0.0, 0, 0.0
    while waiting or returned:
        now, worker = heapq.heappop(free)
        if returned and (not waiting or returned[0][0] <= now):
            at, left = heapq.heappop(returned)
            now, again = max(now, at), True
        else:
            left, again = waiting.popleft()
        begin = now + terms.overhead + (terms.restart if again else 0.0)
        until = generator.expovariate(terms.rate) if terms.rate else float("inf")
        end = begin + left
        if now + until >= end:
            makespan = max(makespan, end)
            heapq.heappush(free, (end, worker))
            continue
        worked = max(0.0, now + until - begin)
        kept = worked // terms.checkpoint * terms.checkpoint
        failures, repeated = failures + 1, repeated + worked - kept
        heapq.heappush(returned, (now + until, left - kept))
        heapq.heappush(free, (now + until + terms.repair, worker))
    return Outcome(makespan, failures, repeated)


def table(jobs: Sequence[float], terms: Terms, runs: int, seed: int) -> list[dict[str, object]]:
    """A row for each number of workers and rate of failures."""
    rows: list[dict[str, object]] = []
    for a_day in RATES:
        for workers in WORKERS:
            generator = random.Random(f"{seed} {a_day} {workers}")
            mine = replace(terms, rate=a_day / 86400)
            found = [simulate(jobs, workers, mine, generator) for _ in range(runs if a_day else 1)]
            makespan = statistics.fmean(outcome.makespan for outcome in found)
            rows.append({
                "failures a worker and day": a_day,
                "workers": workers,
                "hours": round(makespan / 3600, 4),
                "share of the ideal": round(sum(jobs) / workers / makespan, 3),
                "failures a run": round(statistics.fmean(outcome.failures for outcome in found), 2),
                "hours done twice": round(statistics.fmean(outcome.repeated for outcome in found) / 3600, 3),
            })  # fmt: skip
    return rows


def measured(count: int) -> list[float]:
    """Processor seconds of so many of digits' retrainings of preset small, with their losses on the validation queries."""
    import torch

    from attribench.computing.progress import silent_progress
    from attribench.configuration.resolution import resolve
    from attribench.settings import Runtime
    from attribench.truth.jobs import save_images
    from attribench.workflows.opening import open_experiment

    torch.set_num_threads(1)
    config = resolve("digits", "small", [], {})
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        experiment = open_experiment(config, Runtime(workdir=folder, accelerator="cpu", workers=1), silent_progress)
        save_images(experiment.store, experiment.train)
        save_images(experiment.store, experiment.validation)
        losses = [job for row in experiment.loss_jobs(experiment.validation) for job in row]
        for job in losses[: count + 1]:
            begin = time.process_time()
            job.run(experiment.store, experiment.runtime, lambda units: None)  # trains its model first
            seconds.append(time.process_time() - begin)
    return seconds[1:]  # the first one imports, too


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """Times and shares of the ideal, a line for each number of workers."""
    longest = max(float(str(row["hours"])) for row in rows)
    unit, factor = ("h", 1) if longest > 24 else ("min", 60)
    lines = [
        "| workers | " + " | ".join(_named(rate) for rate in RATES) + " |",
        "|---:|" + "---:|" * len(RATES),
    ]
    for workers in WORKERS:
        of = [row for row in rows if row["workers"] == workers]
        cells = [
            f"{factor * float(str(row['hours'])):.1f} {unit} ({100 * float(str(row['share of the ideal'])):.0f} %)"
            for row in of
        ]
        lines.append(f"| {workers} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(rate: float) -> str:
    return (
        "no failures" if not rate else "one a day" if rate == 1 else "one an hour" if rate == 24 else f"{rate:g} a day"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=192)
    parser.add_argument("--measure", type=int, default=0, help="measure so many jobs here, and repeat their times")
    parser.add_argument("--times", help="such as were measured before, as 25.7,24.4")
    parser.add_argument("--job-seconds", type=float, default=3600.0, help="where none are measured; ±10 %% at random")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the measured times")
    parser.add_argument("--checkpoint", type=float, default=60.0)
    parser.add_argument("--overhead", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    if options.measure:
        times = [options.scale * seconds for seconds in measured(options.measure)]
        print("measured:", ",".join(f"{seconds:.1f}" for seconds in times), "s")
    elif options.times:
        times = [options.scale * float(seconds) for seconds in options.times.split(",")]
    else:
        times = [options.job_seconds * generator.uniform(0.9, 1.1) for _ in range(options.jobs)]
    jobs = [times[number % len(times)] for number in range(options.jobs)]
    rows = table(jobs, Terms(0.0, options.checkpoint, options.overhead), options.runs, options.seed)
    total = sum(jobs)
    print(f"{len(jobs)} jobs of {min(jobs):.0f} to {max(jobs):.0f} s, {total / 3600:.1f} h in all\n")
    print(markdown(rows))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        name = "scaling.csv" if options.measure or options.times else "scaling_assumed.csv"
        with (options.output / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
