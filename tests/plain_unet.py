"""A diffusion model as anybody trains one: images from a folder, diffusers, forty lines, and nothing of attribench.

    python plain_unet.py FOLDER STEPS PREDICTION_TYPE

FOLDER holds ``train``; ``model`` (a pipeline) and ``checkpoints`` are written beside it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image


def main(folder: Path, steps: int, prediction_type: str) -> None:
    pictures = [Image.open(path).convert("RGB") for path in sorted((folder / "train").rglob("*.png"))]
    images = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=images.shape[-1],
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    for step in range(1, steps + 1):
        noise, timesteps = torch.randn_like(images), torch.randint(1000, (len(images),))
        noisy = scheduler.add_noise(images, noise, timesteps)
        velocity = scheduler.get_velocity(images, noise, timesteps)
        target = {"epsilon": noise, "v_prediction": velocity, "sample": images}[prediction_type]
        torch.nn.functional.mse_loss(unet(noisy, timesteps).sample, target).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (steps // 2, steps):
            unet.save_pretrained(folder / "checkpoints" / f"checkpoint-{step}")
    DDPMPipeline(unet, scheduler).save_pretrained(folder / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
