"""The handwritten digits that the base of ``digits-lora`` is trained on."""

from __future__ import annotations

from attribench import register_datamodule
from attribench.datamodules.digits import Digits


@register_datamodule("digits-base")
class DigitsBase(Digits):
    """The handwritten digits 0 to 4 of scikit-learn, 8×8 grey: what the base of digits-lora knows.

    Args:
        num_train: how many train images to choose.
        num_queries: how many validation queries to choose from the rest.
    """

    classes = (0, 1, 2, 3, 4)

    @property
    def label(self) -> str:
        return "digits-base"
