"""Memory that is stated before the work, against the measured peak, for models of three sizes.

    python benchmarks/own_model_memory.py
    python benchmarks/own_model_memory.py --sizes small --methods dtrak ekfac

Every line is a process of its own: a model that nobody trained, random images, and `attribench attribute`'s own steps, what is
stated first. The peak is what the process allocates while gradients, kernel and scores are computed, beside what it held
before. On a GPU it is the GPU's, and the process's.

Of the sizes of latents, the denoiser is told a text and carries a LoRA, which gradients are of; `encoding` is the
autoencoder's work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from attribench import AttributionContext, ImageSet, Queries, load_method
from attribench.computing.cost import measure
from attribench.computing.progress import silent_progress
from attribench.diffusion.inputs import LatentInputs
from attribench.diffusion.latents import Autoencoder, Latents
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.parameters import trainable
from attribench.method import score, start
from attribench.store.artifacts import ArtifactStore
from attribench.store.shared import SharedStore


@dataclass(frozen=True)
class Size:
    """A model, images, and what makes methods with a projection quick enough to be tried on a CPU."""

    channels: int
    side: int
    widths: tuple[int, ...]
    num_train: int
    num_queries: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatentSize(Size):
    """A pipeline on latents: ``side`` and ``channels`` are the images'."""

    code_widths: tuple[int, ...] = (32, 64, 64)
    rank: int = 8
    tokens: int = 32


SIZES = {
    "small": Size(1, 8, (16, 32), 1500, 64, {"num_timesteps": 10}),
    "medium": Size(3, 16, (32, 64, 64), 400, 16, {"num_timesteps": 2, "projection": "basic", "proj_dim": 1024}),
    "large": Size(3, 32, (64, 128, 128), 100, 8, {"num_timesteps": 1, "projection": "basic", "proj_dim": 512}),
    "wide": Size(3, 16, (48, 96), 200, 16, {"num_timesteps": 3, "projection": "basic", "proj_dim": 512}),
    "latent": LatentSize(3, 64, (64, 128), 300, 16, {"num_timesteps": 4}),
    "latent-large": LatentSize(
        3,
        128,
        (128, 256),
        64,
        8,
        {"num_timesteps": 2, "projection": "basic", "proj_dim": 512},
        (64, 128, 128, 128),
        16,
        77,
    ),
}

#: Those of the table that is shown; the others are there to check the estimate with what it was not made with.
SHOWN = ("small", "medium", "large", "latent", "latent-large")


def network(size: Size) -> UNet2DModel:
    levels = len(size.widths)
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size.side,
        in_channels=size.channels,
        out_channels=size.channels,
        layers_per_block=1,
        block_out_channels=size.widths,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
    ).eval()


def latent_model(size: LatentSize) -> DiffusionModel:
    """With a LoRA in all attention, and captions of which every second one differs."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    levels, encoder = len(size.widths), len(size.code_widths)
    unet = UNet2DConditionModel(
        sample_size=size.side // 2 ** (encoder - 1),
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=size.widths,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
    )
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    inject_adapter_in_model(LoraConfig(r=size.rank, target_modules=targets, init_lora_weights=False), unet)
    code = AutoencoderKL(
        block_out_channels=size.code_widths,
        down_block_types=("DownEncoderBlock2D",) * encoder,
        up_block_types=("UpDecoderBlock2D",) * encoder,
        layers_per_block=2,
        norm_num_groups=8,
    )
    count = (size.num_train + size.num_queries) // 2 + 1
    inputs = LatentInputs({str(i): i for i in range(count)}, torch.randn(count, size.tokens, 64), "random")
    snapshots = [lambda: unet, lambda: unet]
    return DiffusionModel(
        "random", unet.eval(), inputs=inputs, snapshots=snapshots, autoencoder=Autoencoder(code.eval())
    )


def encoding(size: LatentSize) -> dict[str, Any]:
    """The autoencoder's part of :func:`compare`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    code = latent_model(size).autoencoder
    assert code is not None
    pixels = torch.randint(0, 256, (size.num_train, size.channels, size.side, size.side), dtype=torch.uint8)
    images = ImageSet(pixels, tuple(map(str, range(size.num_train))))
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        latents = Latents(code, store, device)
        needs = latents.needs(images)
        assert needs is not None
        with measure(device) as cost:
            latents.of(images, silent_progress)
        disk = sum(artifact.num_bytes for artifact in store.artifacts())
    return {
        "parameters": sum(parameter.numel() for parameter in code.module.parameters()),
        "stated": needs.memory, "measured": cost.peak_bytes, "stated_disk": needs.disk, "disk": disk,
        "stated_seconds": needs.seconds, "seconds": cost.seconds, "device": str(device),
    }  # fmt: skip


def compare(size: Size, name: str) -> dict[str, Any]:
    """What is stated, and what is measured, in bytes and seconds."""
    if name == "encoding":
        assert isinstance(size, LatentSize)
        return encoding(size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = size.num_train + size.num_queries
    ids = tuple(map(str, range(count)))
    if isinstance(size, LatentSize):
        side = size.side // 2 ** (len(size.code_widths) - 1)
        captions = tuple(str(i // 2) for i in range(count))
        everything = ImageSet(torch.randn(count, 4, side, side), ids, captions=captions, latent=True)
        model = latent_model(size)
    else:
        pixels = torch.randint(0, 256, (count, size.channels, size.side, size.side), dtype=torch.uint8)
        everything, unet = ImageSet(pixels, ids), network(size)
        model = DiffusionModel("random", unet, snapshots=[lambda: unet, lambda: unet])
    train, queries = everything[: size.num_train], Queries.of(everything[size.num_train :], "queries")
    cls = load_method(name)
    known = cls.__init__.__code__.co_varnames
    method = cls(**{key: value for key, value in size.options.items() if key in known})
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        context = AttributionContext(
            train, model.schedule, device, 42, store, cls.access, model, shared=SharedStore(store.scoped("shared")),
            inputs=model.inputs,
        )  # fmt: skip
        needs = method.needs(context, len(queries))
        assert needs is not None
        with measure(device) as cost:
            start(method, context)
            for begin in range(0, len(queries), 64):
                score(method, queries[begin : begin + 64])
        disk = sum(artifact.num_bytes for artifact in store.scoped("shared").artifacts())
    return {
        "parameters": sum(parameter.numel() for parameter in trainable(model.network).values()),
        "stated": needs.memory, "measured": cost.peak_bytes, "stated_disk": needs.disk, "disk": disk,
        "stated_seconds": needs.seconds, "seconds": cost.seconds, "device": str(device),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SHOWN))
    parser.add_argument("--methods", nargs="+", default=["dtrak", "gradient", "ekfac"])
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(compare(SIZES[options.sizes[0]], options.methods[0])))
        return
    print(
        "| size | parameters | train images | method | stated MiB | measured MiB | stated / measured | disk MiB | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        latent = isinstance(SIZES[size], LatentSize)
        for method in [*options.methods, *(["encoding"] if latent and "encoding" not in options.methods else [])]:
            if method == "encoding" and not latent:
                continue
            command = [sys.executable, __file__, "--in-this-process", "--sizes", size, "--methods", method]
            found = json.loads(subprocess.check_output(command, text=True))
            stated, measured = found["stated"] / 2**20, found["measured"] / 2**20
            cells = [
                size, f"{found['parameters']:,}", SIZES[size].num_train, method, f"{stated:.0f}", f"{measured:.0f}",
                f"{stated / measured:.2f}", f"{found['stated_disk'] / 2**20:.0f} / {found['disk'] / 2**20:.0f}",
                f"{found['stated_seconds']:.0f} / {found['seconds']:.0f}",
            ]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
