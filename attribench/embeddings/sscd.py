"""SSCD, a descriptor for copy detection (arXiv 2202.10261): built here, so that no TorchScript has to be run.

Architecture, pre-processing and the files' names are those of the authors' README and model definition: a ResNet-50 of
torchvision whose average pooling is generalised-mean pooling with exponent 3 over values of at least 1e-6, a linear layer
to 512 dimensions, length 1; images with the small edge resized to 288 pixels, ImageNet's mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attribench.embeddings.backbone import Transform
from attribench.embeddings.weights import WeightsMissingError, read_state_dict, why_not_loaded
from attribench.errors import AttribenchError

#: The published models with a ResNet-50 of torchvision; the first is the one that the authors recommend.
SSCD_NAMES = (
    "sscd_disc_mixup", "sscd_disc_advanced", "sscd_disc_blur",
    "sscd_imagenet_mixup", "sscd_imagenet_advanced", "sscd_imagenet_blur",
)  # fmt: skip

_URL = "https://dl.fbaipublicfiles.com/sscd-copy-detection/{}.torchvision.pt"
_DIMENSIONS, _EXPONENT, _SMALLEST, _EDGE = 512, 3.0, 1e-6, 288
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class GeneralizedMean(nn.Module):
    """(mean x³)^(1/3) over positions, of values that are at least 1e-6."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool ``(B, C, H, W)`` to ``(B, C)``."""
        return features.flatten(2).clamp(min=_SMALLEST).pow(_EXPONENT).mean(2).pow(1 / _EXPONENT)


@dataclass(frozen=True)
class Sscd:
    """One of :data:`SSCD_NAMES`.

    Args:
        name: the published model.
    """

    name: str = SSCD_NAMES[0]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"SSCD ({self.name})"

    @property
    def spec(self) -> Mapping[str, Any]:
        """What the embeddings depend on apart from weights and images: the same for all of them."""
        return {"architecture": "SSCD, ResNet-50"}

    def locate(self) -> Path:
        """The weights file among those of torch's hub; it is not downloaded, since nobody publishes its checksum.

        Raises:
            WeightsMissingError: it is not there.
        """
        url = _URL.format(self.name)
        path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        if path.is_file():
            return path
        raise WeightsMissingError(
            f"The weights of {self.label} are not in {path.parent}: download {url} to there, or to anywhere"
        )

    def load(self, weights: Path) -> tuple[nn.Module, Transform]:
        """Build the network, in float32 on the CPU and in evaluation mode, and its inference transform.

        Raises:
            AttribenchError: the file is damaged, holds more than weights, or does not fit the network.
        """
        from torchvision import transforms
        from torchvision.models import resnet50

        try:
            state = {key.removeprefix("backbone."): value for key, value in read_state_dict(weights).items()}
            with torch.random.fork_rng(devices=[]):
                network = resnet50(weights=None, num_classes=_DIMENSIONS)
            network.avgpool = GeneralizedMean()
            network.load_state_dict(state)
        except Exception as error:  # a damaged file can fail in any way
            raise AttribenchError(why_not_loaded(self.label, weights, error)) from error
        transform = transforms.Compose(
            [transforms.Resize(_EDGE), transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION)]
        )
        return network.eval(), transform

    def embed(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """The embeddings of pre-processed images ``(B, 3, H, W)``, of length 1."""
        return nn.functional.normalize(network(pixels))
