"""Speed of gradient features before projection, against functorch and against trak's own featurisation, in one process.

    python benchmarks/gradients.py --output results/benchmarks      # a few minutes
    python benchmarks/gradients.py --images 16 --timesteps 10 --rounds 1

The peers: ``functorch`` maps the gradient of one sample at one timestep over batches of samples, timestep after timestep;
``trak`` is ``TRAKer.featurize`` without projection, its model output the mean over a sample's timesteps. All take the same
gradients of the same network, that of digits' preset small, with the same noise, and are checked to agree. They take turns;
times are medians over the rounds, on a CPU in seconds of processor time on one thread, so that other work on the machine
shows less. Each peer runs at the batch size that is best for it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from gradient_memory import Untrained
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import NoOpProjector

from attribench.data import to_unit_range
from attribench.diffusion.noise import NoiseSchedule, sample_noise_batch
from attribench.gradients.options import equidistant
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import layerwise_bytes, num_parameters, summed_gradients

SEED = 42
FUNCTORCH_BATCHES = (4, 16, 64, 256)
TRAK_BATCHES = (4, 16, 64)


def noised(images: Tensor, timesteps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Noisy images and noise, ``(N, K, C, H, W)`` each."""
    ids, clean, schedule = [str(i) for i in range(len(images))], to_unit_range(images), NoiseSchedule()
    noise = [sample_noise_batch(SEED, ids, timestep, 0, clean.shape[1:]) for timestep in timesteps]
    noisy = [schedule.add_noise(clean, one, timestep) for one, timestep in zip(noise, timesteps, strict=True)]
    return torch.stack(noisy, 1), torch.stack(noise, 1)


def ours(network: nn.Module, images: Tensor, timesteps: Sequence[int], device: torch.device) -> Tensor:
    """This project's."""
    ids, terms = [str(i) for i in range(len(images))], [(timestep, 0) for timestep in timesteps]
    row_bytes = layerwise_bytes(network, images.shape[1:], device)
    function, schedule = output_function("loss"), NoiseSchedule()
    total = summed_gradients(network, images, ids, terms, function, SEED, schedule, device, row_bytes)
    return total / len(timesteps)


def functorch(network: nn.Module, images: Tensor, timesteps: Sequence[int], device: torch.device, batch: int) -> Tensor:
    """A loop over batches and timesteps."""

    def loss(parameters: Mapping[str, Tensor], noisy: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        predicted: Tensor = functional_call(network, dict(parameters), (noisy[None], timestep[None])).sample[0]
        return (predicted - noise).square().mean()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, None))
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    noisy, noise = (values.to(device) for values in noised(images, timesteps))
    result = torch.zeros(len(images), num_parameters(network), device=device)
    for begin in range(0, len(images), batch):
        some = slice(begin, begin + batch)
        for k, timestep in enumerate(timesteps):
            found = gradients(parameters, noisy[some, k], noise[some, k], torch.tensor(timestep, device=device))
            result[some] += torch.cat([gradient.flatten(1) for gradient in found.values()], 1)
    return result / len(timesteps)


class MeanLoss(AbstractModelOutput):  # type: ignore[misc]
    """The loss of a sample, averaged over its timesteps, for trak."""

    def __init__(self) -> None:
        pass

    @staticmethod
    def get_output(
        model: nn.Module,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        noisy: Tensor,
        noise: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        predicted: Tensor = functional_call(model, (dict(weights), dict(buffers)), (noisy, timesteps)).sample
        return (predicted - noise).square().mean()

    @staticmethod
    def get_out_to_loss_grad(model: nn.Module, weights: object, buffers: object, batch: Sequence[Tensor]) -> Tensor:
        return torch.ones(len(batch[0]), 1)


def trak(network: nn.Module, images: Tensor, timesteps: Sequence[int], device: torch.device, batch: int) -> Tensor:
    """``TRAKer.featurize``, unprojected, in float32."""
    noisy, noise = (values.to(device) for values in noised(images, timesteps))
    steps = torch.tensor(timesteps, device=device).expand(len(images), -1)
    length = num_parameters(network)
    projector = NoOpProjector(length, length, 0, None, device)
    options = {"projector": projector, "proj_dim": length, "use_half_precision": False, "logging_level": 50}
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(network, MeanLoss(), len(images), folder, device=device, **options)
        traker.load_checkpoint(network.state_dict(), 0)
        for begin in range(0, len(images), batch):
            some = slice(begin, begin + batch)
            traker.featurize((noisy[some], noise[some], steps[some]), num_samples=len(images[some]))
        # trak divides by the square root of the number of parameters
        found: Tensor = torch.from_numpy(traker.saver.current_store["grads"][:]).clone() * traker.normalize_factor
    return found


def seconds(work: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """How long it takes, and what comes out."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    found = work().cpu()
    return clock() - started, found


def compare(num_images: int, num_timesteps: int, rounds: int, device: torch.device) -> dict[str, float]:
    """One line of the table."""
    network = Untrained().target_model().to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 1, 8, 8), generator=generator, dtype=torch.uint8)
    timesteps = equidistant(num_timesteps)
    contenders: dict[str, list[Callable[[], Tensor]]] = {
        "ours": [lambda: ours(network, images, timesteps, device)],
        "functorch": [
            lambda batch=batch: functorch(network, images, timesteps, device, batch)  # type: ignore[misc]
            for batch in FUNCTORCH_BATCHES
        ],
        "trak": [
            lambda batch=batch: trak(network, images, timesteps, device, batch)  # type: ignore[misc]
            for batch in TRAK_BATCHES
        ],
    }
    times: dict[str, list[list[float]]] = {name: [[] for _ in forms] for name, forms in contenders.items()}
    reference: Tensor | None = None
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(rounds):
            for name, forms in contenders.items():
                for form, durations in zip(forms, times[name], strict=True):
                    duration, found = seconds(form, device)
                    durations.append(duration)
                    reference = found if reference is None else reference
                    error = float(((found - reference).norm(dim=1) / reference.norm(dim=1)).max())
                    if error > 1e-5:
                        raise RuntimeError(f"{name} differs from ours by {error:.1e}.")
    passes = num_images * num_timesteps
    best = {name: min(map(statistics.median, forms)) / passes * 1000 for name, forms in times.items()}
    ratios = {f"{name}_ratio": round(best[name] / best["ours"], 2) for name in ("functorch", "trak")}
    return {"images": num_images, "timesteps": num_timesteps, **{k: round(v, 3) for k, v in best.items()}, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for gradients.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("milliseconds a pass (sample and timestep), and how many times longer than ours")
    for timesteps in options.timesteps:
        rows.append(compare(options.images, timesteps, options.rounds, torch.device(options.device)))
        print(rows[-1], flush=True)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "gradients.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
