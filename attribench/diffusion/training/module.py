"""The LightningModule that trains a denoising network."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from attribench.computing.seeding import derive_seed
from attribench.data import to_unit_range
from attribench.diffusion.examples import target_of
from attribench.diffusion.noise import NUM_TIMESTEPS, NoiseSchedule
from attribench.errors import AttribenchError
from attribench.settings import TrainingSettings

#: Latents, those of the mirrored images if these are needed, and what the network is told of each.
Batch = tuple[Tensor, Tensor | None, dict[str, Tensor]]

#: Where a checkpoint says how its network is built.
CONFIG_KEY = "network_config"


class DiffusionModule(L.LightningModule):
    """Epsilon prediction with the protocol's recipe.

    All randomness of a step (flips, timesteps, noise, dropout) comes from (seed, step), so a training resumed from a
    checkpoint goes on exactly as if it had never stopped.

    Args:
        network: an epsilon-predicting ``UNet2DModel``.
        settings: the recipe.
        total_steps: optimizer steps of the whole training, for the learning-rate schedule.
        seed: this model's training seed.
        schedule: how much noise there is at a timestep, and what is predicted there; None: DDPM's, and the noise.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        total_steps: int,
        seed: int,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.total_steps = total_steps
        self.seed = seed
        self.schedule = schedule or NoiseSchedule()
        self.register_buffer("alpha_bar", self.schedule.alpha_bar, persistent=False)
        # A pretrained base is not kept with every unfinished LoRA; whoever goes on with it brings the same one.
        self._frozen = [f"network.{name}" for name, value in network.named_parameters() if not value.requires_grad]
        self.strict_loading = not self._frozen

    def training_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """The mean squared error of what is predicted on a batch of uint8 images ``(B, C, H, W)``, or of latents."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "step", self.global_step))
        torch.manual_seed(derive_seed(self.seed, "dropout", self.global_step))
        images, mirrored, told = (to_unit_range(batch), None, {}) if isinstance(batch, Tensor) else batch
        if self.settings.horizontal_flip:
            flip = torch.rand(len(images), generator=generator) < 0.5
            other = images.flip(-1) if mirrored is None else mirrored
            images = torch.where(flip.to(images.device)[:, None, None, None], other, images)
        timesteps = torch.randint(NUM_TIMESTEPS, (len(images),), generator=generator).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        alpha_bar = self.alpha_bar[timesteps][:, None, None, None]  # type: ignore[index]
        noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise
        predicted = self.network(noisy, timesteps, **told).sample
        loss = torch.nn.functional.mse_loss(predicted, target_of(self.schedule, images, noise, alpha_bar))
        if not torch.isfinite(loss):
            raise AttribenchError(
                f"The training diverged: the loss at step {self.global_step} is {loss.item()}. Lower --training.learning_rate."
            )
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how the network is built, so that the checkpoint is a model by itself; of LoRA, leave out the base."""
        if self._frozen:
            for name in self._frozen:
                del checkpoint["state_dict"][name]
            return
        config = dict(getattr(self.network, "config", {}))
        checkpoint[CONFIG_KEY] = {key: value for key, value in config.items() if not key.startswith("_")}

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then cosine decay to zero."""
        from diffusers.optimization import get_cosine_schedule_with_warmup

        trained = [value for value in self.network.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay)
        warmup = int(self.settings.warmup_fraction * self.total_steps)
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
