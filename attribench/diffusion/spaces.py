"""The space that the benchmark's models work in: pixels, or latents, with what a text encoder makes of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.computing.progress import silent_progress
from attribench.data import ImageSet
from attribench.diffusion.examples import Examples
from attribench.diffusion.inputs import LatentInputs, ModelInputs, PixelInputs
from attribench.diffusion.latents import Autoencoder, Latents
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.trajectory import to_pixels
from attribench.settings import GenerationSettings
from attribench.store.artifacts import ArtifactStore

Report = Callable[[float], None]


class Space(Protocol):
    """What is between images and a network, and how it samples."""

    @property
    def schedule(self) -> NoiseSchedule:
        """How much noise there is at a timestep, and what a network predicts there."""

    @property
    def inputs(self) -> ModelInputs:
        """How images enter, for methods that look at the model."""

    def seen(self, images: ImageSet) -> ImageSet:
        """Images as methods that look at the model are given them."""

    def examples(self, images: ImageSet, mirrored: bool = False) -> Examples:
        """Images as training and losses take them.

        Args:
            mirrored: training mirrors some of them.
        """


@dataclass(frozen=True)
class PixelSpace:
    """Noise is added to pixels, and networks are told nothing."""

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule()

    @property
    def inputs(self) -> ModelInputs:
        return PixelInputs()

    def seen(self, images: ImageSet) -> ImageSet:
        return images

    def examples(self, images: ImageSet, mirrored: bool = False) -> Examples:
        return Examples(images.images)


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Noise is added to latents, and networks are told a text.

    Args:
        autoencoder: makes latents, and pixels of these.
        inputs: what the network is told of captions.
        schedule: the pipeline's.
        scheduler: its configuration, for sampling.
        store: where latents are kept.
        device: that computes.
    """

    autoencoder: Autoencoder
    inputs: LatentInputs
    schedule: NoiseSchedule
    scheduler: dict[str, Any]
    store: ArtifactStore
    device: torch.device

    def seen(self, images: ImageSet) -> ImageSet:
        found = Latents(self.autoencoder, self.store.scoped("shared"), self.device).of(images, silent_progress)
        return self.inputs.seen(found)

    def examples(self, images: ImageSet, mirrored: bool = False) -> Examples:
        found = self.seen(images)
        flipped = None
        if mirrored:
            flipped = self.seen(ImageSet(images.images.flip(-1), images.ids, images.labels, images.captions)).images
        return Examples(found.images, flipped, self.inputs.conditions(found))

    def generate(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        captions: Sequence[str],
        image_shape: tuple[int, int, int],
        settings: GenerationSettings,
        batch_size: int,
        report: Report = lambda passes: None,
    ) -> Tensor:
        """Sample an image a seed with DDIM, told a caption, as Stable Diffusion's pipeline does.

        Args:
            seeds: image i starts from noise of a CPU generator seeded ``seeds[i]``, whatever its batch.
            captions: one a seed.
            image_shape: of the images, in pixels.
            report: called with the number of images × steps just done.

        Returns:
            uint8 ``(len(seeds), C, H, W)``.
        """
        network, batches = network.to(self.device), []
        self.autoencoder.module.to(self.device)
        for begin in range(0, len(seeds), batch_size):
            some = slice(begin, begin + batch_size)
            latents = self._sampled(network, seeds[some], captions[some], image_shape, settings, report)
            step = self.autoencoder.batch(max(image_shape[1:]), self.device)
            batches += [to_pixels(self._decoded(piece)) for piece in torch.split(latents, step)]
        return torch.cat(batches)

    @torch.no_grad()
    def _sampled(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        captions: Sequence[str],
        image_shape: tuple[int, int, int],
        settings: GenerationSettings,
        report: Report,
    ) -> Tensor:
        from diffusers import DDIMScheduler

        told, untold = self._told(captions), self._told([""] * len(captions))
        _, height, width = image_shape
        shape = (self.autoencoder.channels, height // self.autoencoder.factor, width // self.autoencoder.factor)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sample = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)
        scheduler = DDIMScheduler.from_config(self.scheduler)
        scheduler.set_timesteps(settings.num_inference_steps)
        for timestep in scheduler.timesteps:
            with exact_float32():
                at = timestep.to(self.device)
                predicted = network(sample, at, **told).sample
                if settings.guidance != 1.0:
                    without = network(sample, at, **untold).sample
                    predicted = without + settings.guidance * (predicted - without)
            noise = None
            if settings.eta > 0:
                noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)
            sample = scheduler.step(predicted, timestep, sample, eta=settings.eta, variance_noise=noise).prev_sample
            report(float(len(seeds)))
        return sample

    def _told(self, captions: Sequence[str]) -> dict[str, Tensor]:
        if self.inputs.embeddings is None:
            return {}
        rows = [self.inputs.captions[caption] for caption in captions]
        return {"encoder_hidden_states": self.inputs.embeddings[rows].to(self.device)}

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> Tensor:
        module: Any = self.autoencoder.module
        scaling, shift = (module.config.get(name) for name in ("scaling_factor", "shift_factor"))
        with exact_float32():
            pixels: Tensor = module.decode(latents / (1.0 if scaling is None else scaling) + (shift or 0.0)).sample
        return pixels
