"""``attribench work`` and ``attribench jobs``: many independent processes that share the work of one folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attribench.commands.parsing import configured, new_parser, runtime_of
from attribench.errors import UsageError

if TYPE_CHECKING:
    from attribench.configuration.resolution import Config
    from attribench.settings import Runtime

#: What there is to share, by the command it is the expensive part of.
PLANS = ("ground-truth", "counterfactual", "removals")


def work(arguments: list[str]) -> int:
    plan, rest = _plan(arguments)
    parser = new_parser(
        "work",
        "One of several processes that share the expensive part of a command over one folder: it does the jobs of its shard, "
        f"then helps with what is left. attribench work PLAN --help, with PLAN one of {', '.join(PLANS)} (default: the first). "
        "Afterwards the command itself finds everything done.",
    )
    parser.add_argument("--shard", type=str, default="1/1", help="Which of how many processes this is, as 1/8 … 8/8.")
    given = _configured(parser, plan, rest)
    if given is None:
        return 0
    options, config, _ = given

    from attribench.computing.progress import terminal_progress
    from attribench.settings import Shard

    runtime = replace(runtime_of(options), shard=Shard.parse(options.shard))
    _DO[plan](config, runtime, options, terminal_progress())
    print(f"Shard {runtime.shard}: all is done. attribench {plan} with the same options shows it.")
    return 0


def jobs(arguments: list[str]) -> int:
    plan, rest = _plan(arguments)
    parser = new_parser(
        "jobs",
        "Print how to share the expensive part of a command among independent processes over one folder: a script for sbatch, "
        f"or the commands alone. attribench jobs PLAN --help, with PLAN one of {', '.join(PLANS)} (default: the first).",
    )
    parser.add_argument("--shards", type=int, default=8, help="How many processes.")
    parser.add_argument(
        "--format", type=str, default="slurm", help="slurm: a script for sbatch; list: a command a line."
    )
    given = _configured(parser, plan, rest)
    if given is None:
        return 0
    options, config, _ = given
    if options.format not in ("slurm", "list"):
        raise UsageError(f"--format {options.format}: slurm or list.")
    if options.shards < 1:
        raise UsageError(f"--shards {options.shards}: at least one process is needed.")
    runtime = runtime_of(options)
    if runtime.executor != "local":
        raise UsageError(
            f"--executor {runtime.executor}: jobs is for clusters without it. With it, run attribench {plan} itself."
        )

    from attribench.workflows.cluster_scripts import SCORES, Allotment, command_lines, slurm_script

    passed = _without(rest, ("--shards", "--format", "--workdir"))
    allotment = Allotment.of(config, runtime)
    commands = command_lines(plan, passed, runtime, options.shards)
    if plan != PLANS[0]:
        print(SCORES, file=sys.stderr)
    print("\n".join(commands) if options.format == "list" else slurm_script(plan, config, allotment, commands))
    return 0


def _plan(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in PLANS:
            raise UsageError(f"There is no plan {arguments[0]!r}. Known: {', '.join(PLANS)}.")
        return arguments[0], arguments[1:]
    return PLANS[0], arguments


def _configured(parser: Any, plan: str, arguments: list[str]) -> tuple[Any, Config, dict[str, str]] | None:
    if plan == "removals":
        from attribench.commands.removals import add_removal_options

        add_removal_options(parser)
    with_methods = plan != "ground-truth"
    return configured(parser, arguments, methods=with_methods, truth=with_methods)


def _without(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """The arguments that go on to each process."""
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, _ = argument.partition("=")
        if name not in options:
            kept.append(argument)
        elif not equals and rest:
            rest.pop(0)
    return kept


def _ground_truth(config: Config, runtime: Runtime, options: Any, progress: Any) -> None:
    from attribench.workflows.opening import open_experiment

    open_experiment(config, runtime, progress).prepare()


def _counterfactual(config: Config, runtime: Runtime, options: Any, progress: Any) -> None:
    from attribench.workflows.counterfactual import retrain

    retrain(config, runtime, progress)


def _removals(config: Config, runtime: Runtime, options: Any, progress: Any) -> None:
    from attribench.commands.removals import settings_of
    from attribench.workflows.removals import retrain

    retrain(config, settings_of(options), runtime, progress)


_DO: dict[str, Callable[[Config, Runtime, Any, Any], None]] = dict(
    zip(PLANS, (_ground_truth, _counterfactual, _removals), strict=True)
)
