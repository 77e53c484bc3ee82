"""What can be known to be wrong before models are trained, said before."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from attribench.configuration.options import typed
from attribench.configuration.resolution import MethodConfig
from attribench.errors import UsageError
from attribench.method import Access, AttributionMethod
from attribench.records.lds import row_name
from attribench.store.code import method_hash
from attribench.store.json_values import json_value
from attribench.truth.experiment import Experiment
from attribench.workflows.pieces import access_of
from attribench.workflows.scoring import make_context, reason_to_skip, require

Method = tuple[MethodConfig, AttributionMethod]


def instances(configs: Sequence[MethodConfig]) -> list[Method]:
    """Every method with its options, not started.

    Raises:
        UsageError: options that a method refuses, or that no record can hold.
        AttribenchError: a method does not declare what it looks at.
    """
    found = []
    for config in configs:
        access_of(config.cls)
        json_value(config.options, "method")
        # Of the source as it is now, not as it may be when the models are trained.
        method_hash(config.cls)  # type: ignore[arg-type]
        found.append((config, config.cls(**config.options)))
    return found


def check_names(configs: Sequence[MethodConfig]) -> None:
    """Refuse methods whose rows, and records, would have one name.

    Raises:
        UsageError: there are such methods.
    """
    names = Counter(row_name(config.name, config.changed) for config in configs)
    for name, count in names.items():
        if count > 1:
            classes = {
                f"{c.cls.__module__}.{c.cls.__qualname__}" for c in configs if row_name(c.name, c.changed) == name
            }
            raise UsageError(
                f"{count} methods are called {name!r} ({', '.join(sorted(classes))}): run them apart with other --results, "
                "or name one by a YAML file of another name, with a line such as 'method: my_module.MyMethod'."
            )


def without_refused(methods: Sequence[Method], experiment: Experiment, skipped: dict[str, str]) -> list[Method]:
    """The methods but those that, as is known early, cannot run here; their reasons are put into ``skipped``.

    Raises:
        UsageError: two methods of one name.
    """
    check_names([config for config, _ in methods])
    kept = []
    for config, method in methods:
        reason = None
        if _known_early(config, experiment):
            reason = reason_to_skip(method, make_context(experiment, method, config))
        if reason is None:
            kept.append((config, method))
        else:
            skipped[row_name(config.name, config.changed)] = reason
    return kept


def require_early(methods: Sequence[Method], experiment: Experiment) -> None:
    """Insist that methods can run here, as far as is known early.

    Raises:
        UsageError: one cannot; with its reason.
    """
    for config, method in methods:
        if _known_early(config, experiment):
            require(method, config.name, make_context(experiment, method, config))


def _known_early(config: MethodConfig, experiment: Experiment) -> bool:
    """Of methods that look at models, what they say may depend on these, which may not be there yet."""
    return access_of(config.cls) == Access.DATA or not experiment.has_model


def check_grid(config: MethodConfig) -> None:
    """Make every combination of a method's search space, without what the caller set, once.

    Raises:
        UsageError: the method refuses one of them.
    """
    space: dict[str, Sequence[Any]] = {k: v for k, v in config.cls.search_space.items() if k not in config.fixed}
    for values in itertools.product(*space.values()):
        options = {**config.options, **dict(zip(space, values, strict=True))}
        config.cls(**typed(config.cls, "method", options))
