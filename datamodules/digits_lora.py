"""The handwritten digits that LoRA is trained on, beside a base that has never seen one of them."""

from __future__ import annotations

from attribench import register_datamodule
from attribench.datamodules.digits import Digits


@register_datamodule("digits-lora")
class DigitsLora(Digits):
    """The handwritten digits 5 to 9 of scikit-learn, 8×8 grey, for LoRA on a model of the digits 0 to 4.

    Args:
        num_train: how many train images to choose.
        num_queries: how many validation queries to choose from the rest.
    """

    classes = (5, 6, 7, 8, 9)

    @property
    def label(self) -> str:
        return "digits-lora"
