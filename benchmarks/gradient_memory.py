"""Peak memory of gradient features, at several numbers of images: it should not grow with them.

    python benchmarks/gradient_memory.py --images 500 1000 2000

Every size runs in a process of its own. The peak is the process's largest resident set while features are computed, above
what it held before, images included; the model is digits' of preset small, untrained, since weights do not matter here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from attribench import Access, AttributionContext, ImageSet
from attribench.computing.cost import measure
from attribench.diffusion.network import build_network
from attribench.diffusion.noise import NoiseSchedule
from attribench.gradients.features import GradientFeatures
from attribench.gradients.options import FeatureOptions
from attribench.gradients.per_sample import num_parameters
from attribench.settings import ModelSettings
from attribench.store.artifacts import ArtifactStore


class Untrained:
    """The network of ``configs/datasets/digits.yaml``."""

    def target_model(self) -> nn.Module:
        settings = ModelSettings(
            block_out_channels=[16, 32],
            down_block_types=["DownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "UpBlock2D"],
            layers_per_block=1,
            norm_num_groups=8,
            norm_eps=1e-6,
            attention_head_dim=None,
        )
        torch.manual_seed(0)
        return build_network(settings, (1, 8, 8)).eval()

    def checkpoints(self) -> Iterator[nn.Module]:
        return iter([self.target_model()])


def compute(num_images: int, timesteps: int, projection: str, proj_dim: int) -> dict[str, float]:
    """Compute features of so many random images in a store of their own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.randint(0, 256, (num_images, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = ImageSet(pixels, tuple(f"image-{i}" for i in range(num_images)))
    with tempfile.TemporaryDirectory() as folder:
        context = AttributionContext(
            images, NoiseSchedule(), device, 42, ArtifactStore(Path(folder)), Access.MODEL, Untrained()
        )
        features = GradientFeatures(context, FeatureOptions("loss", timesteps, projection, proj_dim))  # type: ignore[arg-type]
        model = context.target_model()
        started = time.perf_counter()
        with measure(device) as cost:
            found = features.of(model, images)
        return {
            "images": num_images,
            "parameters": num_parameters(model),
            "seconds": round(time.perf_counter() - started, 1),
            "peak_mib": round(cost.peak_bytes / 2**20, 1),
            "feature_mib": round(4 * found.num_samples * found.dimensions / 2**20, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--timesteps", type=int, default=1)
    parser.add_argument("--projection", default="identity")
    parser.add_argument("--proj-dim", type=int, default=512)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        [images] = options.images
        print(json.dumps(compute(images, options.timesteps, options.projection, options.proj_dim)))
        return
    for images in options.images:
        command = [sys.executable, __file__, "--in-this-process", "--images", str(images)]
        command += ["--timesteps", str(options.timesteps), "--projection", options.projection]
        print(subprocess.check_output([*command, "--proj-dim", str(options.proj_dim)], text=True), end="", flush=True)


if __name__ == "__main__":
    main()
