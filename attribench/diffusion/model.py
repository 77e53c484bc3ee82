"""A diffusion model under attribution: all that the methods need to know of it, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from attribench.diffusion.inputs import ModelInputs, PixelInputs
from attribench.diffusion.latents import Autoencoder
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.parameters import is_lora
from attribench.diffusion.texts import TextEncoder
from attribench.errors import ModelError


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A network with what it works on: the :class:`~attribench.method.ModelProvider` of a model that somebody brings.

    Gradients are taken of the network's parameters that are not frozen, and where it carries a LoRA, of that alone.

    Attributes:
        name: what messages and pages call it.
        network: called with noisy images, timesteps and what ``inputs.conditions`` gives; what comes back has its prediction
            as ``sample``. In evaluation mode.
        schedule: how much noise there is at a timestep, and what the network predicts there.
        inputs: the space that noise is added in, and what the network is told.
        channels: of the images it takes: 1 or 3; None if it does not say.
        image_size: side of the square images it takes, in pixels; None if it does not say.
        num_classes: that it is told of; 0 for none.
        snapshots: load networks of the course of its training, in order.
        notes: what its user should know of how it was read, a sentence each.
        autoencoder: makes the latents that noise is added to; None for a model of pixels. ``channels`` and ``image_size`` are
            those of the images all the same.
        text: makes what the network is told of a caption; None for one that is told no text.
        kind: what its description says of these.
    """

    name: str
    network: nn.Module
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    inputs: ModelInputs = field(default_factory=PixelInputs)
    channels: int | None = None
    image_size: int | None = None
    num_classes: int = 0
    snapshots: Sequence[Callable[[], nn.Module]] = ()
    notes: Sequence[str] = ()
    autoencoder: Autoencoder | None = None
    text: TextEncoder | None = None
    kind: str = ""

    def target_model(self) -> nn.Module:
        """The network."""
        return self.network

    def checkpoints(self) -> Iterator[nn.Module]:
        """The networks of its training, one at a time.

        Raises:
            ModelError: there are none, or one cannot be read.
        """
        if not self.snapshots:
            raise ModelError(f"There are no checkpoints of {self.name}: name their folder with --checkpoints.")
        return (load() for load in self.snapshots)

    @property
    def description(self) -> str:
        """One line: how large it is, and what it predicts."""
        sizes = {name: parameter.numel() for name, parameter in self.network.named_parameters()}
        count, adapted = sum(sizes.values()), sum(size for name, size in sizes.items() if is_lora(name))
        what = {"epsilon": "the noise", "v_prediction": "v", "sample": "the image"}[self.schedule.prediction_type]
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        lora = f", {adapted:,} of them LoRA's" if adapted else ""
        return f"{self.name} ({count:,} parameters{lora}, predicts {what}{self.kind}{classes})"
