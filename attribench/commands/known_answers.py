"""``attribench known-answers``: what a method can see and what it cannot."""

from __future__ import annotations

import json

from attribench.commands.parsing import (
    add_runtime_options,
    method_names,
    new_parser,
    options_of_method,
    parse,
    print_options,
    runtime_of,
    split_dotted,
)
from attribench.commands.writable import writable_file
from attribench.errors import UsageError


def known_answers(arguments: list[str]) -> int:
    parser = new_parser(
        "known-answers",
        "Ask methods about pictures whose relations are known: copies, mirrored, shifted, darker and pasted ones, shapes that "
        "are in the train set or not. Prints a table of what each can see.",
    )
    parser.add_argument("--method", type=str, default="nda", help="Method, or several separated by commas: names, import "
                        "paths (my_package.MyMethod), YAML files; all = every one that can run.")  # fmt: skip
    parser.add_argument("--model", action="store_true", help="Train a small model, for methods that look at one; they are "
                        "left out otherwise.")  # fmt: skip
    parser.add_argument("--format", type=str, default="terminal", help="terminal, markdown, latex or csv.")
    parser.add_argument("--out", type=str, help="A JSON file for all numbers.")
    add_runtime_options(parser)
    own, dotted = split_dotted(arguments)

    from attribench.configuration.files import DatasetConfig
    from attribench.configuration.resolution import method_config
    from attribench.reporting.formats import FORMATS

    options = parse(parser, [argument for argument in own if argument not in ("-h", "--help")])
    if options.format not in FORMATS:
        raise UsageError(f"Unknown --format {options.format!r}. Known: {', '.join(FORMATS)}.")
    names, broken = method_names(options.method)
    changed = options_of_method(names, dotted)
    configs = [method_config(name, DatasetConfig("", "", {}, {}, {}), "", changed) for name in names]
    if "-h" in own or "--help" in own:
        print(parser.format_help().rstrip())
        if len(configs) == 1:
            print_options({"method": configs[0].cls})
        return 0

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.formats import render
    from attribench.reporting.known_answers import known_answers_table
    from attribench.store.files import atomic_write
    from attribench.workflows.known_answers import known_answers as ask

    out = writable_file("--out", options.out) if options.out else None
    asked = ask(configs, runtime_of(options), terminal_progress(), train_model=options.model)
    if asked.answers:
        print(render([known_answers_table(asked.answers)], options.format).rstrip())
    if out:
        content = [one.model_dump(mode="json") for one in asked.answers]
        atomic_write(out, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    for name, reason in {**asked.skipped, **broken}.items():
        print(f"{name} was left out: {reason}")
    return 0 if asked.answers else 1
