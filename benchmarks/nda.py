"""Speed and memory of NDA's fast engine, against two evaluations by convolution, in one process, alternating.

    python benchmarks/nda.py --output results/benchmarks        # about an hour on two cores
    python benchmarks/nda.py --quick --output build/benchmark
    python benchmarks/nda.py --device cuda --output results/benchmarks

The peers: ``all pairs`` convolves every train image with every patch of the query, padding included, as NDA was
published; ``convolution`` is this project's readable reference (``--method.engine convolution``), which already leaves out
the pairs of patches that cannot match, 99 of 100 for large patches. Each runs at its best batch size, found beforehand, and
all pairs also in its best form: as a convolution, or as a product with the unfolded images. Times are milliseconds a
(query, train image, timestep); compilation, and laying out the train images (once for all queries), are reported apart.
A profile shows where the engine's time goes.

Images are crops of scikit-learn's two sample photographs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import multiprocessing
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.computing.cost import own_bytes
from attribench.diffusion.noise import NoiseSchedule
from attribench.method import score, start
from attribench.methods.nda import NDA, patch_influence
from attribench.methods.nda.engine._simd import BYTES
from attribench.methods.nda.engine.compiled import Engine, available_cores, warm_up
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import Normaliser, finish
from attribench.methods.nda.engine.stream import score_tasks
from attribench.methods.nda.engine.torch_engine import TorchEngine
from attribench.methods.nda.task import PatchTask
from attribench.store.artifacts import ArtifactStore

T = TypeVar("T")

TOP_K = 100
SCALES = ((3, 1), (7, 1), (15, 1), (21, 1), (14, 2), (22, 2))
TIMESTEPS = (100, 300, 500)
MEGABYTE = 2**20
BATCH_MEMORY = tuple(megabytes * MEGABYTE for megabytes in (32, 128, 512))
BATCHES = (1, 4, 16)


@dataclass
class Row:
    """A line of the table; times in milliseconds a (query, train image, timestep)."""

    size: int
    patch_size: int
    downsample: int
    timestep: int
    num_train: int
    threads: int
    engine: float
    layout: float
    convolution: float = math.nan
    all_pairs: float = math.nan
    largest_difference: float = math.nan

    @property
    def ratios(self) -> tuple[float, float]:
        """How many times faster the engine is than either peer."""
        return self.convolution / self.engine, self.all_pairs / self.engine


def photographs(count: int, size: int, seed: int = 0) -> Tensor:
    """uint8 crops ``(count, 3, size, size)``, at three magnifications."""
    generator = np.random.default_rng(seed)
    images: list[NDArray[np.uint8]] = load_sample_images().images
    crops = np.empty((count, 3, size, size), np.uint8)
    for crop in crops:
        image, zoom = images[generator.integers(len(images))], int(generator.integers(1, 4))
        y, x = (int(generator.integers(0, length - size * zoom)) for length in image.shape[:2])
        crop[:] = image[y : y + size * zoom : zoom, x : x + size * zoom : zoom].transpose(2, 0, 1)
    return torch.from_numpy(crops)


def task_of(image: Tensor, timestep: int, patch_size: int, downsample: int, seed: int = 0) -> PatchTask:
    """A noisy query."""
    schedule = NoiseSchedule()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    noisy = schedule.add_noise(image / 127.5 - 1, noise, timestep)
    return PatchTask(noisy, schedule.alpha_bar[timestep].item(), patch_size, TOP_K, downsample)


def all_pairs(task: PatchTask, train: Tensor, batch: int, unfolded: bool) -> Tensor:
    """Every patch of the padded query against every patch of the padded train images, as published.

    ``unfolded``: by a matrix product with the unfolded images, else by convolution.
    """
    pad, scale = (task.patch_size - 1) // 2, 2.0 * (1.0 - task.alpha_bar)

    def maps(images: Tensor) -> Tensor:
        padded = F.pad(images, [pad] * 4, value=10.0)
        return padded if task.downsample == 1 else F.avg_pool2d(padded, 2, stride=1) * 2

    size, step = task.patch_size // task.downsample, task.downsample
    query = maps(task.noisy_query[None])
    kernels = F.unfold(query, size, dilation=step)[0].T.reshape(-1, len(query[0]), size, size)
    own = kernels.square().sum((1, 2, 3))[:, None]
    ones = torch.ones_like(kernels[:1])
    best, peak, total = [], torch.full_like(own[:, 0], -math.inf), torch.zeros_like(own[:, 0])
    for first in range(0, len(train), batch):
        candidates = maps(train[first : first + batch] * math.sqrt(task.alpha_bar))
        if unfolded:
            products = kernels.flatten(1) @ F.unfold(candidates, size, dilation=step)
        else:
            products = F.conv2d(candidates, kernels, dilation=step).flatten(2)
        norms = F.conv2d(candidates.square(), ones, dilation=step).flatten(2)
        logits = -(own - 2 * products + norms) / scale
        top = torch.maximum(peak, logits.amax((0, 2)))
        total = total * (peak - top).exp() + (logits - top[:, None]).exp().sum((0, 2))
        peak = top
        best.append(logits.topk(min(task.top_k, logits.shape[2])).values)
    weights = (torch.cat(best) - peak[:, None]).exp() / total[:, None]
    return weights.sum((1, 2))


class Bench:
    """Times the evaluations on one device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.engines: dict[int, Engine] = {}

    def engine(self, threads: int) -> Engine | TorchEngine:
        """One for all measurements: its threads and work space stay."""
        if self.device.type != "cpu":
            return TorchEngine(self.device)
        return self.engines.setdefault(threads, Engine(threads))

    def seconds(self, call: Callable[[], object]) -> float:
        """Wall-clock time of a call, to its end on the device."""
        begin = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def row(self, task: PatchTask, train: Tensor, timestep: int, threads: int, peers: int, published: int) -> Row:
        """Alternate engine and peers; the peers see the first ``peers`` and ``published`` train images (0: left out)."""
        torch.set_num_threads(threads)
        engine, layout = self.engine(threads), TrainLayout(train)
        first = self.seconds(lambda: engine.partial(task, layout))
        images = (train[: max(peers, published)] / 127.5 - 1).to(self.device)
        on_device = PatchTask(
            task.noisy_query.to(self.device), task.alpha_bar, task.patch_size, task.top_k, task.downsample
        )

        def convolution(memory: int, count: int = peers) -> Tensor:
            return patch_influence(
                on_device.noisy_query, images[:count], task.alpha_bar, task.patch_size, task.top_k, task.downsample,
                memory_limit=memory,
            )  # fmt: skip

        def pairs(form: tuple[int, bool], count: int = published) -> Tensor:
            return all_pairs(on_device, images[:count], *form)

        memory = self._best(BATCH_MEMORY, lambda option: convolution(option, min(peers, 128))) if peers else 0
        forms = list(itertools.product(BATCHES, (False, True)))
        form = self._best(forms, lambda option: pairs(option, min(published, 32))) if published else forms[0]
        times: dict[str, list[float]] = {"engine": [], "convolution": [], "all pairs": []}
        repeats = self.repeats if train.shape[-1] <= 32 else min(self.repeats, 2)
        for _ in range(repeats):
            times["engine"].append(self.seconds(lambda: finish(engine.partial(task, layout))) / len(train))
            if peers:
                times["convolution"].append(self.seconds(lambda: convolution(memory)) / peers)
            if published:
                times["all pairs"].append(self.seconds(lambda: pairs(form)) / published)
        median = {name: 1e3 * statistics.median(values) for name, values in times.items() if values}
        difference = math.nan
        if peers:
            scores, expected = finish(engine.partial(task, TrainLayout(train[:peers]))), convolution(memory).cpu()
            difference = ((scores - expected).abs().max() / expected.max()).item()
        return Row(
            train.shape[-1], task.patch_size, task.downsample, timestep, len(train), threads, median["engine"],
            max(0.0, 1e3 * first / len(train) - median["engine"]), median.get("convolution", math.nan),
            median.get("all pairs", math.nan), difference,
        )  # fmt: skip

    def _best(self, options: Sequence[T], call: Callable[[T], object]) -> T:
        call(options[0])
        return min(options, key=lambda option: self.seconds(lambda: call(option)))

    def profile(self, task: PatchTask, train: Tensor) -> tuple[float, float, float]:
        """Milliseconds of one thread for distances alone, for the weights on top, and for the k largest on top."""
        engine, layout, positions = Engine(1), TrainLayout(train), task.num_positions
        known = engine.partial(task, layout).normaliser
        unreachable = Normaliser(
            np.full(positions, 1e6), np.full(positions, 1e6)
        )  # no candidate comes near: none is weighed
        calls = (
            lambda: engine.normalisers([task], layout, [unreachable]),
            lambda: engine.normalisers([task], layout, [known]),
            lambda: engine.partials([task], layout, 0, [known]),
        )
        times = [1e3 * min(self.seconds(call) for _ in range(self.repeats)) / len(train) for call in calls]
        return times[0], max(0.0, times[1] - times[0]), max(0.0, times[2] - times[1])


def peak_memory(num_train: int, tasks: int, queue: multiprocessing.Queue[tuple[float, float]]) -> None:
    """In a process of its own: peak memory of its own above what is there once the train images are, MB; and seconds."""
    train = photographs(256, 32).repeat(-(-num_train // 256), 1, 1, 1)[:num_train].contiguous()
    queries = photographs(tasks, 32, seed=1)
    work = [task_of(query, 500, 21, 1) for query in queries]
    engine = Engine()
    score_tasks(engine, work[:1], train[:64])
    process, stop = psutil.Process(), threading.Event()
    before = peak = own_bytes(process)

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, own_bytes(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    score_tasks(engine, work, train)
    elapsed = time.perf_counter() - begin
    stop.set()
    watcher.join()
    queue.put(((peak - before) / MEGABYTE, elapsed / tasks))


def published_task(train: Tensor, query: Tensor, threads: int) -> float:
    """Seconds to score one query with NDA's default options: five timesteps, two scales; compilation not included."""
    torch.set_num_threads(threads)
    method = NDA()
    store = ArtifactStore(Path(tempfile.mkdtemp()))
    images = ImageSet(train, tuple(str(number) for number in range(len(train))))
    start(method, AttributionContext(images, NoiseSchedule(), torch.device("cpu"), 0, store, Access.DATA))
    begin = time.perf_counter()
    score(method, Queries(query[None], ("query",)))
    return time.perf_counter() - begin


def memory_table(counts: Sequence[int], tasks: int) -> list[tuple[int, float, float]]:
    """(train images, peak MB, seconds a task) for each count."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for count in counts:
        queue: multiprocessing.Queue[tuple[float, float]] = context.Queue()
        process = context.Process(target=peak_memory, args=(count, tasks, queue))
        process.start()
        megabytes, seconds = queue.get()
        process.join()
        rows.append((count, megabytes, seconds))
        print(f"N = {count}: {megabytes:.0f} MB above the data, {seconds:.2f} s a task", flush=True)
    return rows


def processor() -> str:
    """What Linux calls the processor, or its architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


Profile = tuple[int, int, int, tuple[float, float, float]]


def write(
    output: Path,
    rows: Sequence[Row],
    whole: Sequence[tuple[int, int, float]],
    memory: Sequence[tuple[int, float, float]],
    profiles: Sequence[Profile],
    compiled: float,
    device: str,
) -> None:
    """The table as Markdown and CSV, and the figure."""
    output.mkdir(parents=True, exist_ok=True)
    name = "nda" if device == "cpu" else f"nda-{device}"
    columns = [column.name for column in fields(Row)]
    with (output / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, "ratio_convolution", "ratio_all_pairs"])
        table.writerows([*(getattr(row, column) for column in columns), *row.ratios] for row in rows)
    lines = [
        f"# NDA: the fast engine against convolution, on {device}",
        "",
        f"{processor()}, {available_cores()} cores, vectors of {BYTES} bytes. Milliseconds a (query, train image, "
        f"timestep); medians. First call (compilation, or loading from the disk's cache): {compiled:.1f} s.",
        "",
        "| image | P | t | N | threads | engine | layout, once | convolution | ratio | all pairs | ratio | difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scale = f"{row.patch_size}{' low' if row.downsample == 2 else ''}"
        numbers = [row.engine, row.layout, row.convolution, row.ratios[0], row.all_pairs, row.ratios[1]]
        shown = [f"{x:.4f}" for x in numbers[:2]] + ["–" if math.isnan(x) else f"{x:.3g}" for x in numbers[2:]]
        difference = "–" if math.isnan(row.largest_difference) else f"{row.largest_difference:.1e}"
        lines.append(
            f"| {row.size} | {scale} | {row.timestep} | {row.num_train} | {row.threads} | {' | '.join(shown)} | {difference} |"
        )
    if whole:
        lines += ["", "One query with NDA's default options (five timesteps, two scales), all cores:", ""]
        lines += ["| image | N | seconds |", "|---|---|---|"]
        lines += [f"| {size} | {count} | {seconds:.1f} |" for size, count, seconds in whole]
    if memory:
        lines += ["", "| N | peak memory above the data, MB | seconds a task (P = 21, t = 500) |", "|---|---|---|"]
        lines += [f"| {count} | {megabytes:.0f} | {seconds:.2f} |" for count, megabytes, seconds in memory]
    if profiles:
        lines += [
            "",
            "Where the engine's time goes: one thread, 32×32, N = 512, milliseconds a (query, train image).",
            "",
        ]
        lines += ["| P | t | distances | weights | k largest |", "|---|---|---|---|---|"]
        for patch_size, downsample, timestep, times in profiles:
            parts = " | ".join(f"{milliseconds:.3f}" for milliseconds in times)
            lines.append(f"| {patch_size}{' low' if downsample == 2 else ''} | {timestep} | {parts} |")
    (output / f"{name}.md").write_text("\n".join(lines) + "\n")
    figure(output / f"{name}.png", rows, memory)


def figure(path: Path, rows: Sequence[Row], memory: Sequence[tuple[int, float, float]]) -> None:
    """Ratios by scale and timestep, time against N, and peak memory against N."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(11, 3.8), layout="constrained")
    ratios, time_axes, memory_axes = plot.subplots(1, 3, width_ratios=[1.6, 1, 0.8])
    peers = [row for row in rows if not math.isnan(row.all_pairs)]
    largest = max((row.num_train for row in peers), default=0)
    peers = [row for row in peers if row.num_train == largest]
    labels = list(dict.fromkeys(scale_name(row) for row in peers))
    for index, timestep in enumerate(TIMESTEPS):
        chosen = [row for row in peers if row.timestep == timestep]
        places = [labels.index(scale_name(row)) + 0.27 * (index - 1) for row in chosen]
        colour = ("#0072B2", "#D55E00", "#009E73")[index]
        ratios.bar(places, [row.ratios[1] for row in chosen], 0.25, color=colour, alpha=0.45)
        ratios.bar(places, [row.ratios[0] for row in chosen], 0.25, color=colour, label=f"t = {timestep}")
    ratios.set(
        xticks=range(len(labels)), xticklabels=labels, yscale="log", ylabel="times slower than the engine",
        title=f"convolution without dead pairs (dark) and of all pairs (light), N = {largest:,}",
    )  # fmt: skip
    below = {"frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    ratios.legend(ncols=3, **below)
    most = max((row.threads for row in rows), default=1)
    small = [row for row in rows if row.size == min(other.size for other in rows)]
    small = [row for row in small if row.timestep == 300 and row.threads == most]
    for scale in dict.fromkeys(scale_name(row) for row in small):
        line = sorted((row for row in small if scale_name(row) == scale), key=lambda row: row.num_train)
        time_axes.plot(
            [row.num_train for row in line],
            [row.engine for row in line],
            "o-",
            markersize=3,
            label=scale.replace("\n", " "),
        )
    time_axes.set(xlabel="train images", xscale="log", yscale="log", title="t = 300")
    time_axes.set_ylabel("ms a (query, train image, timestep)")
    time_axes.legend(fontsize=7, ncols=3, **below)
    if memory:
        memory_axes.plot([m[0] for m in memory], [m[1] for m in memory], "o-", markersize=4)
        memory_axes.set(xlabel="train images", xscale="log", ylim=(0, None), title="P = 21, t = 500")
        memory_axes.set_ylabel("peak memory above the data, MiB")
    for axes in (ratios, time_axes, memory_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
    for suffix in ("png", "svg"):
        plot.savefig(path.with_suffix(f".{suffix}"), dpi=150)


def scale_name(row: Row) -> str:
    """``"P = 7"``, with the resolution where it is low."""
    return f"P = {row.patch_size}" + ("\nlow" if row.downsample == 2 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder for table and figure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="default: 1 and all cores")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="image sizes")
    parser.add_argument("--num-train", type=int, nargs="+", default=[64, 1024, 5000], help="N")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory against N")
    parser.add_argument("--quick", action="store_true", help="few cases, once: minutes")
    options = parser.parse_args()
    cores = available_cores()
    threads = options.threads or ([1] if options.device == "cuda" or cores == 1 else [1, cores])
    device = torch.device(options.device)
    if options.quick:
        options.sizes, options.num_train, options.repeats, threads = [32], [1024], 3, threads[-1:]
    bench = Bench(device, options.repeats)
    compiled = warm_up()
    print(f"first call: {compiled:.1f} s", flush=True)
    rows: list[Row] = []
    largest = max(options.num_train)
    for size, count in itertools.product(options.sizes, sorted(options.num_train, reverse=True)):
        train, query = photographs(count, size), photographs(1, size, seed=1)[0]
        for (patch_size, downsample), timestep, number in itertools.product(SCALES, TIMESTEPS, threads):
            if size > 32 and (count < largest or number < threads[-1] or timestep != 300):
                continue  # large images: all cores, the largest N and one timestep only
            task = task_of(query, timestep, patch_size, downsample)
            peers = min(count, 128 if options.quick else 1024) if size == 32 and number == threads[-1] else 0
            published = min(count, 16 if options.quick else 64) if peers else 0
            row = bench.row(task, train, timestep, number, peers, published)
            rows.append(row)
            ratios = "  ".join(f"{ratio:.1f}" for ratio in row.ratios)
            print(
                f"{size}×{size} P={patch_size}/{downsample} t={timestep} N={count} threads={number}: engine "
                f"{row.engine:.4f} ms, convolution {row.convolution:.2f}, all pairs {row.all_pairs:.2f}; ratios {ratios}",
                flush=True,
            )
    whole: list[tuple[int, int, float]] = []
    if device.type == "cpu":
        for size, count in itertools.product(options.sizes, sorted(options.num_train)):
            whole.append(
                (size, count, published_task(photographs(count, size), photographs(1, size, seed=1)[0], threads[-1]))
            )
            print(f"{size}×{size} N={count}: one query, five timesteps, two scales: {whole[-1][2]:.1f} s", flush=True)
    memory: list[tuple[int, float, float]] = []
    if device.type == "cpu" and not options.no_memory:
        memory = memory_table((500, 5000) if options.quick else (500, 5000, 50000), tasks=4 if options.quick else 16)
    profiles: list[Profile] = []
    if device.type == "cpu":
        train, query = photographs(512, 32), photographs(1, 32, seed=1)[0]
        for (patch_size, downsample), timestep in itertools.product(SCALES, TIMESTEPS):
            task = task_of(query, timestep, patch_size, downsample)
            profiles.append((patch_size, downsample, timestep, bench.profile(task, train)))
    write(options.output, rows, whole, memory, profiles, compiled, options.device)


if __name__ == "__main__":
    main()
