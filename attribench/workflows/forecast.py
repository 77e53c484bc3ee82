"""What methods will take, said before they begin; and refused where it is not there, with the option that would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from humanize import naturalsize, precisedelta

from attribench.computing.progress import Progress
from attribench.configuration.resolution import MethodConfig
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.budget import shortage
from attribench.method import AttributionContext, AttributionMethod, Needs
from attribench.records.lds import row_name

#: What must be there beyond the memory that is said, as a share of it: measured peaks were up to an eighth above.
SPARE = 1 / 8

#: Seconds beyond which the option that saves time is named.
_LONG = 600.0

_FEWEST_DIMENSIONS = 64


@dataclass(frozen=True, eq=False)
class Planned:
    """A method that is about to begin, and what it may work with."""

    config: MethodConfig
    method: AttributionMethod
    context: AttributionContext


def forecast(methods: Sequence[Planned], num_queries: int, progress: Progress) -> None:
    """Say what each method takes, in memory, on disk and in time; methods that say nothing of it are passed over.

    Raises:
        UsageError: memory or disk is not there; the message names an option with which it would be.
    """
    for planned in methods:
        config, context = planned.config, planned.context
        needs = planned.method.needs(context, num_queries)
        if needs is None:
            continue
        name = row_name(config.name, config.changed)
        progress.message(f"{name} takes about {described(needs)}.{_time_saver(config, needs)}")
        reason = _shortage(name, needs, context)
        if reason is not None:
            raise UsageError(f"{reason} {_remedy(config, context, num_queries)}")


def described(needs: Needs) -> str:
    """In words."""
    sizes = [naturalsize(size, binary=True, format="%.1f") for size in (needs.memory, needs.disk)]
    return f"{sizes[0]} of memory, {sizes[1]} on disk and {time_words(needs.seconds)}"


def time_words(seconds: float) -> str:
    """A length of time, in words."""
    return precisedelta(round(seconds), minimum_unit="seconds", format="%d") if seconds >= 1 else "a second"


def _shortage(name: str, needs: Needs, context: AttributionContext) -> str | None:
    memory = round((1 + SPARE) * needs.memory)
    spared = shortage(f"{name}, with an eighth to spare,", memory, context.device)
    return spared or shortage(name, 0, context.device, needs.disk, context.store.root)


def _time_saver(config: MethodConfig, needs: Needs) -> str:
    timesteps = config.options.get("num_timesteps")
    if needs.seconds < _LONG or not isinstance(timesteps, int) or timesteps < 2:
        return ""
    return f" --method.num_timesteps {timesteps // 2}, in place of {timesteps}, takes about half the time."


def _remedy(config: MethodConfig, context: AttributionContext, num_queries: int) -> str:
    """An option with which it fits, if one is known."""
    dimensions = config.options.get("proj_dim")
    projected = config.options.get("projection") != "identity"
    while isinstance(dimensions, int) and projected and dimensions > _FEWEST_DIMENSIONS:
        dimensions //= 2
        try:
            needs = config.cls(**{**config.options, "proj_dim": dimensions}).needs(context, num_queries)
        except AttribenchError:
            break
        if needs is not None and _shortage("", needs, context) is None:
            return f"--method.proj_dim {dimensions} fits."
    if config.options.get("projection") == "identity":
        return "--method.projection auto stores less."
    if "proj_dim" not in config.options:
        return "Use fewer train images, or a method with --method.proj_dim, such as trak or dtrak."
    return "Use fewer train images."
