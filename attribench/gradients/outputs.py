"""The model outputs f whose gradients are features: those that D-TRAK compared (arXiv 2311.00500, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError, nearest

ModelOutput = Literal["loss", "weighted-loss", "mean-squared-l2-norm", "mean", "l1-norm", "l2-norm", "linf-norm"]

#: f of (prediction, what was to be predicted, loss weight of the timestep), each of one sample; a scalar.
OutputFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

OUTPUTS: dict[ModelOutput, OutputFunction] = {
    "loss": lambda predicted, noise, weight: (predicted - noise).square().mean(),
    "weighted-loss": lambda predicted, noise, weight: weight * (predicted - noise).square().mean(),
    "mean-squared-l2-norm": lambda predicted, noise, weight: predicted.square().mean(),
    "mean": lambda predicted, noise, weight: predicted.mean(),
    "l1-norm": lambda predicted, noise, weight: predicted.abs().sum(),
    "l2-norm": lambda predicted, noise, weight: torch.linalg.vector_norm(predicted),
    "linf-norm": lambda predicted, noise, weight: predicted.abs().max(),
}


def output_function(name: str) -> OutputFunction:
    """The scalar function of one sample's ε_θ(x_t, t), noise ε and loss weight w_t.

    ======================== =========================
    ``loss``                 mean((ε_θ − ε)²)
    ``weighted-loss``        w_t · mean((ε_θ − ε)²)
    ``mean-squared-l2-norm`` mean(ε_θ²), D-TRAK's own
    ``mean``                 mean(ε_θ)
    ``l1-norm``              Σ \\|ε_θ\\|
    ``l2-norm``              √Σ ε_θ²
    ``linf-norm``            max \\|ε_θ\\|
    ======================== =========================

    Means and sums run over pixels and channels. Of a network that predicts v or the image in place of the noise, ε_θ is what
    it predicts, and ε what it should.

    Raises:
        UsageError: there is no such output.
    """
    known = get_args(ModelOutput)
    if name not in known:
        raise UsageError(f"Unknown model output {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return OUTPUTS[name]  # type: ignore[index]


def loss_weights(schedule: NoiseSchedule) -> Tensor:
    """w_t = β_t / (2 α_t (1 − ᾱ_t)), float32 ``(1000,)``.

    The weight of a timestep's squared error in the variational bound when the reverse process has variance β_t
    (equation 12 of arXiv 2006.11239). An error δ of v is one of √ᾱ_t δ of the noise, an error δ of the image one of
    √(ᾱ_t / (1 − ᾱ_t)) δ: their weights are the squares of these times as large. So they are finite where ᾱ_t = 0 (β rescaled
    to zero terminal SNR), where no image can be found from the noise, and its weight is infinite.
    """
    alpha_bar = schedule.alpha_bar.double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    alpha = alpha_bar / before
    shared = (1 - alpha) / (2 * (1 - alpha_bar))
    if schedule.prediction_type == "v_prediction":
        return (shared * before).float()  # ᾱ_t / α_t = ᾱ_{t−1}
    if schedule.prediction_type == "sample":
        return (shared * before / (1 - alpha_bar)).float()
    return ((1 - alpha) / (2 * alpha * (1 - alpha_bar))).float()
