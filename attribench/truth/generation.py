"""The unit of work beside a training: generate some images again with a retrained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attribench.computing.device import resolve_device, single_thread
from attribench.diffusion.recipes import SAMPLING, recipe
from attribench.diffusion.sampling import generate_images
from attribench.diffusion.spaces import LatentSpace, PixelSpace
from attribench.errors import ArtifactError
from attribench.settings import GenerationSettings, Runtime
from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging
from attribench.truth.base import Base
from attribench.truth.jobs import Report, TrainJob
from attribench.truth.resources import Memory, image_bytes


def prompts_of(seeds: Sequence[int], prompts: Sequence[str], num_images: int) -> list[str]:
    """The prompt of each generated image, by generator seed: one block of the ``num_images`` images a prompt, in order."""
    return (
        [prompts[min(seed * len(prompts) // num_images, len(prompts) - 1)] for seed in seeds]
        if prompts
        else [""] * len(seeds)
    )


@dataclass(frozen=True)
class GenerateJob:
    """Generate images with a retrained model, each from its own generator seed.

    Args:
        trained: the job that trained the model.
        seeds: generator seeds; image ``i`` of the generated queries has seed ``i``.
        generation: how to sample; the number of images is that of the seeds.
    """

    trained: TrainJob
    seeds: tuple[int, ...]
    generation: GenerationSettings

    @property
    def name(self) -> str:
        return f"images of the {self.trained.name}"

    @property
    def cost(self) -> float:
        return float(len(self.seeds) * self.generation.num_inference_steps)

    def spec(self, model: Artifact) -> dict[str, Any]:
        """Bound to the weights themselves."""
        sampling = {"num_inference_steps": self.generation.num_inference_steps, "eta": self.generation.eta}
        spec = {"model": model.key, "weights": model.digest, "seeds": self.seeds, **sampling, **recipe(SAMPLING)}
        base = self.trained.base
        if base is None or not base.prompts:
            return spec
        # Which prompt an image has depends on how many there are.
        told = {"prompts": base.prompts, "num_images": self.generation.num_images, "guidance": self.generation.guidance}
        return {**spec, **told}

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.trained.name,)

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        size, images = self.trained.size(runtime), image_bytes(len(self.seeds), self.trained.image_shape)
        return Memory.of(size.evaluating, size.weights + 5 * images, cuda=cuda)  # as bytes and as floats

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return self.trained.outcome

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        model = self.trained.find(store)
        return None if model is None else ("regenerated", self.spec(model))

    @property
    def unfinished(self) -> str | None:
        return None

    def find(self, store: ArtifactStore) -> Artifact | None:
        model = self.trained.find(store)
        return None if model is None else store.find("regenerated", self.spec(model))

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        model = self.trained.run(store, runtime, lambda units: None, worker)  # only if it was set aside meanwhile

        def build(staging: Staging) -> None:
            device = resolve_device(runtime.accelerator, worker)
            with single_thread(device):
                network, shape = self.trained.load(store), self.trained.image_shape
                batch, base = runtime.evaluation_batch, self.trained.base
                space = PixelSpace() if base is None else base.space(store, device)
                if isinstance(space, LatentSpace):
                    prompts = prompts_of(self.seeds, base.prompts if base else (), self.generation.num_images)
                    images = space.generate(network, self.seeds, prompts, shape, self.generation, batch, report)
                else:
                    images = generate_images(network, self.seeds, shape, self.generation, device, batch, report)
            staging.save_tensors("images", {"images": images})

        return store.get_or_create("regenerated", self.spec(model), build, wait=False)

    def load(self, store: ArtifactStore) -> Tensor:
        """uint8 ``(len(seeds), C, H, W)``.

        Raises:
            ArtifactError: they have not been generated.
        """
        artifact = self.find(store)
        if artifact is None:
            raise ArtifactError(f"The {self.name} are not in {store.root}; run the same command again.")
        return artifact.load_tensors("images")["images"]


@dataclass(frozen=True)
class QueriesJob:
    """Generate the query set that the target model is asked about; image ``i`` from generator seed ``i``.

    Args:
        trained: the job that trained the target model.
        generation: how many, and how to sample.
    """

    trained: TrainJob
    generation: GenerationSettings

    @property
    def name(self) -> str:
        return f"{self.generation.num_images} images of the {self.trained.name}"

    @property
    def cost(self) -> float:
        return float(self.generation.num_images * self.generation.num_inference_steps)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.trained.name,)

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        size, images = (
            self.trained.size(runtime),
            image_bytes(self.generation.num_images, self.trained.image_shape),
        )
        return Memory.of(size.evaluating, size.weights + 5 * images, cuda=cuda)  # as bytes and as floats

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return self.trained.outcome

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        model = self.trained.find(store)
        return None if model is None else ("generated", queries_spec(model, self.generation, self.trained.base))

    @property
    def unfinished(self) -> str | None:
        return None

    def find(self, store: ArtifactStore) -> Artifact | None:
        output = self.output(store)
        return None if output is None else store.find(*output)

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        model = self.trained.run(store, runtime, lambda units: None, worker)  # only if it was set aside meanwhile

        def build(staging: Staging) -> None:
            device = resolve_device(runtime.accelerator, worker)
            with single_thread(device):
                network, shape, seeds = (
                    self.trained.load(store),
                    self.trained.image_shape,
                    range(self.generation.num_images),
                )
                batch, base = runtime.evaluation_batch, self.trained.base
                space = PixelSpace() if base is None else base.space(store, device)
                if isinstance(space, LatentSpace):
                    prompts = prompts_of(seeds, base.prompts if base else (), self.generation.num_images)
                    images = space.generate(network, list(seeds), prompts, shape, self.generation, batch, report)
                else:
                    images = generate_images(network, list(seeds), shape, self.generation, device, batch, report)
            staging.save_tensors("images", {"images": images})

        return store.get_or_create(
            "generated", queries_spec(model, self.generation, self.trained.base), build, wait=False
        )


def queries_spec(target: Artifact, generation: GenerationSettings, base: Base | None) -> dict[str, Any]:
    """Specification of the generated queries; bound to the target model's weights, and to its prompts where it has some."""
    spec = {"model": target.key, "weights": target.digest, **generation.stated, **recipe(SAMPLING)}
    return {**spec, "prompts": base.prompts} if base is not None and base.prompts else spec
