"""Images and a model that are read together, and made to fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from attribench import ImageSet
from attribench.api import own_method_config
from attribench.computing.progress import silent_progress
from attribench.diffusion.model import DiffusionModel
from attribench.errors import UsageError
from attribench.settings import Runtime
from attribench.workflows.own_images import OwnImages, Request, check_methods, open_images

PIXELS = torch.randint(0, 256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def unet(**options: Any) -> UNet2DModel:
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(8, 1, 1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, **blocks, **options)


def opened(folder: Path, model: object, **given: Any) -> OwnImages:
    images = {"train": PIXELS[:3], "queries": PIXELS[3:], **given}
    return open_images(
        Request(**images, model=model, scheduler="ddpm"),
        Runtime(workdir=str(folder), accelerator="cpu"),
        silent_progress,
    )


class Moved(UNet2DModel):  # type: ignore[misc]
    """Its weights become other tensors when it is sent to a device, as those of any network that is sent to a GPU."""

    def to(self, *_: Any, **__: Any) -> Moved:
        return self.double() if self.dtype == torch.float32 else self.float()


def test_a_model_that_was_moved_to_its_device_still_has_gradients(tmp_path: Path) -> None:
    model = opened(tmp_path, Moved(**dict(unet().config.items()))).model
    assert model is not None
    parameters = list(model.network.parameters())
    assert not any(parameter.is_inference() for parameter in parameters)
    assert all(parameter.detach().requires_grad_().requires_grad for parameter in parameters)


def test_queries_in_subfolders_have_classes_where_train_images_come_with_theirs(tmp_path: Path) -> None:
    for name, image in zip(("0", "2"), PIXELS, strict=False):
        (tmp_path / "queries" / name).mkdir(parents=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "queries" / name / "a.png")
    train = ImageSet(PIXELS[:3], tuple("abc"), torch.tensor([1, 1, 0]))
    own = opened(tmp_path / "runs", unet(num_class_embeds=3), train=train, queries=tmp_path / "queries")
    assert own.train.images.labels is not None
    assert own.train.images.labels.tolist() == [1, 1, 0]
    assert own.queries.images.labels is not None
    assert own.queries.images.labels.tolist() == [0, 2]


def test_checkpoints_may_come_with_a_model_in_memory() -> None:
    network = unet()
    configs = [own_method_config("tracincp", {})]
    check_methods(Request(PIXELS, PIXELS, model=DiffusionModel("own", network, snapshots=[lambda: network])), configs)
    with pytest.raises(UsageError, match="--checkpoints"):
        check_methods(Request(PIXELS, PIXELS, model=DiffusionModel("own", network)), configs)
