"""The command line: finds the command, runs it, and turns what goes wrong into a line and an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from attribench.computing.terminal import accept_any_character
from attribench.errors import AttribenchError, UsageError, nearest


@dataclass(frozen=True)
class Command:
    """A command's name, its line in the overview, and the function that runs it: ``module:function``.

    The function takes the rest of the arguments and returns the exit code. Its module is imported when it is asked for.
    """

    name: str
    summary: str
    function: str

    def run(self, arguments: list[str]) -> int:
        """Run it."""
        module, _, name = self.function.partition(":")
        code: int = getattr(importlib.import_module(f"attribench.commands.{module}"), name)(arguments)
        return code


COMMANDS = (
    Command("run", "retrain, attribute and score methods by LDS; prints and records the table", "runs:run"),
    Command("counterfactual", "retrain without each query's top images, regenerate, compare", "runs:counterfactual"),
    Command("removals", "the same for groups of queries, with controls: a curve, an area, a test", "removals:removals"),
    Command("attribute", "your own folders: which of these images shaped those", "attribute:attribute"),
    Command("score", "scores computed by other code, from a file: their row in the table", "runs:score"),
    Command("explain", "where in the picture a query's top images come in: heat maps", "runs:explain"),
    Command("known-answers", "what a method can see: copies, mirrored, pasted, …", "known_answers:known_answers"),
    Command(
        "attributability", "is there anything to attribute: images against seeds", "attributability:attributability"
    ),
    Command("tune", "choose a method's options on validation queries", "runs:tune"),
    Command("sweep", "how an option of a method moves its LDS", "runs:sweep"),
    Command("ground-truth", "only train the models and measure their losses", "truths:ground_truth"),
    Command("work", "one of several processes that share the work of a folder", "work:work"),
    Command("jobs", "print a script that starts such processes on a cluster", "work:jobs"),
    Command("status", "what is done, what is missing, sizes on disk", "runs:status"),
    Command("list", "methods, data sets and presets", "reports:list_"),
    Command("table", "print a table from records: terminal, markdown, latex, csv", "reports:table"),
    Command("report", "one self-contained HTML page of all records", "reports:report"),
    Command("figures", "draw every figure that records allow", "reports:figures"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failure, 2 for a wrong call, 130 when interrupted."""
    accept_any_character()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        return _dispatch(given)
    except AttribenchError as error:
        if debug:
            raise
        print(f"attribench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("attribench: interrupted; run the same command again to go on where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or "no message"
        print(f"attribench: {type(error).__name__}: {text[:500]} (run with --debug for the traceback)", file=sys.stderr)
        return 1


def _dispatch(given: list[str]) -> int:
    commands = {command.name: command for command in COMMANDS}
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0 if given else 2
    if given[0] == "--version":
        from attribench import __version__

        print(f"attribench {__version__}")
        return 0
    command = commands.get(given[0])
    if command is None:
        raise UsageError(f"Unknown command {given[0]!r}.{nearest(given[0], commands)} See attribench --help.")
    return command.run(given[1:])


def _overview() -> str:
    lines = [
        "attribench: which training images shaped a diffusion model's output, and which method to trust for the answer.",
        "",
        "usage: attribench COMMAND [options]      (attribench COMMAND --help explains one)",
        "",
        *[f"  {command.name:<16} {command.summary}" for command in COMMANDS],
        "",
        "  --debug          with any command: show the traceback of an error",
        "  --version        show the version",
        "",
        "Start with: attribench run --method nda --dataset digits",
    ]
    return "\n".join(lines)
