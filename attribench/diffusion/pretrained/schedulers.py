"""Noise schedules and prediction types, as diffusers' schedulers have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from attribench.diffusion.noise import NoiseSchedule, PredictionType
from attribench.diffusion.pretrained.foreign_files import first_line, quiet, read_json
from attribench.errors import ModelError

SCHEDULER_FILE = "scheduler_config.json"

#: What a scheduler may be called in place of a path: the defaults of diffusers' DDPMScheduler.
DDPM = "ddpm"


def read_schedule(source: object) -> NoiseSchedule:
    """Noise schedule and prediction type from a diffusers scheduler, its configuration's folder or file, or ``"ddpm"``.

    Raises:
        ModelError: there is no such configuration, or it is of a kind without ᾱ (flow matching), or of other than 1000 steps.
    """
    import diffusers

    if source == DDPM:
        return NoiseSchedule()
    if isinstance(source, str | Path):
        path = Path(source)
        path = path / SCHEDULER_FILE if path.is_dir() else path
        if not path.is_file():
            raise ModelError(
                f"There is no scheduler at {source}: a folder with {SCHEDULER_FILE}, or {DDPM!r}, is needed."
            )
        config = read_json(path)
        name = config.get("_class_name", "")
        kind: Any = getattr(diffusers, str(name), None)
        known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin) and hasattr(kind, "from_config")
        if not known:
            raise ModelError(f"{path} names no scheduler that diffusers has: _class_name is {name!r}.")
        try:
            with quiet():
                source = kind.from_config(config)
        except Exception as error:  # schedulers raise what they like of options that make no sense
            raise ModelError(f"{path} cannot be used: {first_line(error)}") from error
    name = type(source).__name__
    alpha_bar = getattr(source, "alphas_cumprod", None)
    kinds = get_args(PredictionType)
    own: Any = getattr(source, "config", None)
    predicted: Any = getattr(own, "prediction_type", "epsilon")
    if not isinstance(alpha_bar, Tensor) or getattr(own, "use_flow_sigmas", False):
        raise ModelError(
            f"{name} has no noise schedule of the kind that attribench knows (alphas_cumprod): flow matching and "
            "variance-exploding models are not supported."
        )
    if predicted not in kinds:
        raise ModelError(f"{name}: the prediction type {predicted!r} is not known; known: {', '.join(kinds)}.")
    usual = len(NoiseSchedule().alpha_bar)
    if alpha_bar.shape != (usual,):
        raise ModelError(f"{name} has {len(alpha_bar)} train timesteps; attribench works with models of {usual}.")
    return NoiseSchedule(alpha_bar, predicted)


def schedule_beside(folder: Path, asked: Path) -> NoiseSchedule:
    """The scheduler beside a network: in the pipeline's folder, in the network's own, or where training scripts leave it.

    Args:
        folder: of the network.
        asked: what the caller named.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    for place in (asked / "scheduler", asked, folder, folder.parent / "scheduler"):
        if (place / SCHEDULER_FILE).is_file():
            return read_schedule(place)
    raise ModelError(
        f"{asked} holds a model, but not how its noise was scheduled (scheduler/{SCHEDULER_FILE}): name a folder that does "
        f"with --scheduler, or --scheduler {DDPM} for the defaults of DDPMScheduler."
    )
