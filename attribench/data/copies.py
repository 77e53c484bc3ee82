"""Equal images among the train images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Copies:
    """Which of some images are equal. Each is compared once, and counted as often as it comes: copies score alike.

    (A convolution's last bits may depend on where in a batch an image stands.)

    Args:
        first: indices of the distinct images, int64.
        which: of every image, its index in ``first``.
        number: of every distinct image, how often it comes, float64.
    """

    first: Tensor
    which: Tensor
    number: Tensor

    def distinct(self, images: Tensor) -> Tensor:
        """One of each of the images this was made of."""
        return images if len(self.first) == len(self.which) else images[self.first]

    @classmethod
    def of(cls, images: Tensor) -> Copies:
        """Compare by content."""
        numbers: dict[bytes, int] = {}
        first: list[int] = []
        which: list[int] = []
        for index, image in enumerate(images.detach()):
            content = (image + 0.0).contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes()  # −0 + 0 is 0
            which.append(numbers.setdefault(hashlib.sha256(content).digest(), len(first)))
            if which[-1] == len(first):
                first.append(index)
        places = torch.tensor(which, dtype=torch.int64, device=images.device)
        number = torch.bincount(places, minlength=len(first)).to(torch.float64)
        return cls(torch.tensor(first, dtype=torch.int64, device=images.device), places, number)
