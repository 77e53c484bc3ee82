"""The method: influence in the local score machine, combined over timesteps and noise draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from attribench.computing.cost import compiling
from attribench.computing.precision import float64_device
from attribench.diffusion.noise import NUM_TIMESTEPS, sample_noise
from attribench.errors import AttribenchError, UsageError, nearest
from attribench.gradients.budget import shortage
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Queries
from attribench.methods.score_machine.machine import CUTS, ORDERS, MachineTask, Order, check_odd
from attribench.methods.score_machine.search import TIMESTEPS, search_machine
from attribench.methods.score_machine.stream import SumEngine, influences
from attribench.registry import register_method

ENGINES = ("fast", "reference")
WEIGHTINGS = ("epsilon", "uniform")

#: Influence of single tasks held at once: 64 MiB of float64.
_MAX_SCORES = 2**23


@register_method("score-machine")
class ScoreMachine(AttributionMethod):
    """Influence in the closed-form local score machine (arXiv 2412.20292): needs no model, and knows opponents.

    The machine denoises each pixel of the noised query by the mean of the pixels in the middle of all train patches, weighted
    by the posterior that the patch is what the query's was before the noise: the weights that NDA attributes by. A train
    image's score is by how much the machine's squared error on the query would grow without it, summed over pixels and
    averaged over timesteps and noise draws: positive for a proponent, negative for an opponent. All queries share the
    noise of a timestep, which is NDA's.

    The machine is published; its use for attribution is ours.

    Args:
        timesteps: diffusion timesteps, each in 0..999.
        patch_size: side of the patches, odd; one for all timesteps or one a timestep. May exceed the image; should grow with
            the timestep.
        order: ``first``, the influence to first order in a train image's share of the weights, or ``leave-one-out``, the exact
            difference. Where no other image has more than 2^-64 of a position's weight, the machine without it is taken to
            answer with the mean of all pixels that the position may match.
        timestep_weighting: ``epsilon`` multiplies a timestep's error by ᾱ/(1−ᾱ), which makes it that of the noise, the usual
            loss of a diffusion model; ``uniform`` takes the error of the image as it is.
        noise_draws: draws of noise a timestep to average over.
        flips: a train image comes mirrored as well, as a model trained with horizontal flips saw it; both go together.
        engine: how the sums over patches are computed: ``fast``, or ``reference``, in torch operations (which CUDA uses in
            either case); they agree up to rounding.

    Raises:
        UsageError: an option is out of range, or has neither one value nor one a timestep.
    """

    access = Access.DATA
    takes_latents = True
    search_from: ClassVar[Mapping[str, Sequence[int]]] = {"timesteps": TIMESTEPS}

    def __init__(
        self,
        timesteps: Sequence[int] = (300, 500),
        patch_size: int | Sequence[int] = (11, 21),
        order: Order = "first",
        timestep_weighting: Literal["epsilon", "uniform"] = "epsilon",
        noise_draws: int = 1,
        flips: bool = False,
        engine: Literal["fast", "reference"] = "fast",
    ) -> None:
        if not timesteps:
            raise UsageError("timesteps: at least one is needed.")
        for timestep in timesteps:
            if not 0 <= timestep < NUM_TIMESTEPS:
                raise UsageError(f"timesteps: each must lie in 0..{NUM_TIMESTEPS - 1}; got {timestep}.")
        sizes = patch_size if isinstance(patch_size, Sequence) else [patch_size] * len(timesteps)
        if len(sizes) != len(timesteps):
            raise UsageError(
                f"patch_size: {len(sizes)} values for {len(timesteps)} timesteps; give one for all, or one a timestep."
            )
        for size in sizes:
            check_odd(size)
        if noise_draws < 1:
            raise UsageError(f"noise_draws must be at least 1; got {noise_draws}.")
        for name, value, known in (
            ("order", order, ORDERS), ("timestep_weighting", timestep_weighting, WEIGHTINGS), ("engine", engine, ENGINES),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"Unknown {name} {value!r}.{nearest(value, known)} Known: {', '.join(known)}.")
        self._timesteps, self._sizes, self._order = list(timesteps), list(sizes), order
        self._weighting, self._noise_draws, self._flips, self._engine_name = (
            timestep_weighting,
            noise_draws,
            flips,
            engine,
        )
        self._engine: SumEngine | None = None

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the patch size of every timestep, which timesteps, and their weighting."""
        return search_machine(evaluate, options)

    def prepare(self, context: AttributionContext) -> None:
        """Choose the engine, and lay the mirror images beside the train images."""
        from attribench.methods.nda.engine.pixel_sums import CompiledSums, TorchSums, warm_up

        device = float64_device(context.device)  # which sharp weights need
        if device.type == "cuda" or self._engine_name == "reference":
            self._engine = TorchSums(device)
        else:
            with compiling():
                warm_up()
            self._engine = CompiledSums(cut=CUTS[self._order])
        self._train = self._compared(context.train_images)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``, signed; see the class."""
        if self._engine is None:
            raise AttribenchError("ScoreMachine is not prepared: call start(method, context) first.")
        num_train, copies = len(self.context.train), 2 if self._flips else 1
        images = queries.unit_range()
        weights = self._weights()
        together = max(1, _MAX_SCORES // (len(weights) * num_train))
        scores = torch.empty(len(images), num_train)
        with self.context.progress.task("weighing patches", len(images) * num_train, "query × train image") as progress:
            for begin in range(0, len(images), together):
                part = images[begin : begin + together]
                found = influences(
                    self._engine, [task for image in part for task in self._tasks(image)], self._train, self._order,
                    copies=copies, progress=lambda done: progress.advance(done / len(weights) / copies),
                )  # fmt: skip
                # Term by term: a matrix product's last bits would depend on where an image stands.
                total = torch.zeros(len(part), num_train, dtype=torch.float64)
                for weight, term in zip(weights, found.reshape(len(part), len(weights), -1).unbind(1), strict=True):
                    total += weight * term
                scores[begin : begin + together] = total
        return scores

    def _compared(self, images: Tensor) -> Tensor:
        """The train images, and with ``flips`` each one's mirror image after it.

        Raises:
            AttribenchError: the mirror images do not fit into memory.
        """
        if not self._flips:
            return images
        reason = shortage(
            "Train images with their mirror images", 2 * images.nbytes, torch.device("cpu"),
            remedy="Compare without --method.flips.",
        )  # fmt: skip
        if reason is not None:
            raise AttribenchError(reason)
        return torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)

    def _weights(self) -> list[float]:
        """Of every task of a query in its score."""
        share = 1.0 / (len(self._timesteps) * self._noise_draws)
        alpha_bars = [self.context.schedule.alpha_bar[timestep].item() for timestep in self._timesteps]
        weights = [alpha_bar / (1.0 - alpha_bar) if self._weighting == "epsilon" else 1.0 for alpha_bar in alpha_bars]
        return [weight * share for weight in weights for _ in range(self._noise_draws)]

    def _tasks(self, image: Tensor) -> list[MachineTask]:
        """What to ask for one query: every timestep and noise draw."""
        schedule, tasks = self.context.schedule, []
        for timestep, size in zip(self._timesteps, self._sizes, strict=True):
            for draw in range(self._noise_draws):
                noise = sample_noise(self.context.seed, "nda", timestep, draw, image.shape)  # NDA's
                noisy = schedule.add_noise(image, noise, timestep)
                tasks.append(MachineTask(image, noisy, schedule.alpha_bar[timestep].item(), size))
        return tasks
