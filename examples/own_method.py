"""A method of one's own: checked by the conformance suite, then run beside a built-in one.

python examples/own_method.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from attribench import Access, AttributionContext, AttributionMethod, Queries, register_method
from attribench.cli import main
from attribench.testing import check_method


@register_method("contrast")
class Contrast(AttributionMethod):
    """Train images with as much contrast as the query are its proponents.

    Args:
        sharpness: how fast a score falls with the difference in contrast.
    """

    access = Access.DATA
    search_space: ClassVar[Mapping[str, Sequence[float]]] = {"sharpness": [0.5, 1.0, 2.0]}  # for attribench tune

    def __init__(self, sharpness: float = 1.0) -> None:
        self.sharpness = sharpness

    def prepare(self, context: AttributionContext) -> None:
        self.train_contrast = context.train.unit_range().flatten(1).std(dim=1)

    def attribute(self, queries: Queries) -> torch.Tensor:
        contrast = queries.unit_range().flatten(1).std(dim=1)
        return torch.exp(-self.sharpness * (contrast[:, None] - self.train_contrast[None, :]).abs())


if __name__ == "__main__":
    check_method(Contrast)
    raise SystemExit(main(["run", "--method", "contrast,random", "--dataset", "digits", "--preset", "smoke"]))
