"""What the site takes from the program when it is built, so that it cannot go stale, and a check that it needs no network."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable

from mkdocs.exceptions import PluginError

from attribench import cli
from attribench.commands.parsing import print_options
from attribench.commands.truths import VERBS
from attribench.registry import METHODS

# Sphinx's roles in docstrings, as they look after Markdown: the last part of the name is what a reader wants to see.
_ROLE = re.compile(r":(?:class|meth|func|attr|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>")
_OUTSIDE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def _printed(show: Callable[..., object], *arguments: object) -> str:
    """What ``show`` prints, a hundred columns wide."""
    output = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(output):
        failed = show(*arguments)
    if failed:
        raise PluginError(f"{show.__name__}{arguments} ends with {failed}")
    return output.getvalue().strip()


def commands() -> str:
    """``attribench --help`` and ``attribench COMMAND --help`` of every command, folded."""
    parts = [f"```text\n{_printed(cli.main, ['--help'])}\n```"]
    for command in cli.COMMANDS:
        verbs = [[], *([verb] for verb in VERBS if command.name == "ground-truth")]
        text = "\n\n".join(_printed(cli.main, [command.name, *verb, "--help"]) for verb in verbs)
        body = "\n".join(f"    {line}".rstrip() for line in ["```text", *text.splitlines(), "```"])
        parts.append(
            f'## {command.name}\n\n{command.summary[0].upper()}{command.summary[1:]}.\n\n??? note "Options"\n\n{body}'
        )
    return "\n\n".join(parts)


def methods() -> str:
    """Every built-in method: what it does, what it looks at, its options."""
    parts = []
    for entry in METHODS.entries():
        if entry.cls is None:
            raise PluginError(f"The method {entry.name} cannot be imported: {entry.error}")
        options = _printed(print_options, {"method": entry.cls})
        options = options.partition("\n")[2] or "(no options)"  # its first line is the summary again
        looks_at = entry.cls.access.name.lower()
        parts.append(f"## {entry.name}\n\n{entry.summary}\n\nLooks at: {looks_at}.\n\n```text\n{options}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in ``{{ commands }}`` and ``{{ methods }}``."""
    for mark, make in (("{{ commands }}", commands), ("{{ methods }}", methods)):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_page_content(html: str, **_: object) -> str:
    """Show what docstrings refer to as code."""
    return _ROLE.sub(r"<code>\1</code>", html)


def on_post_page(output: str, **_: object) -> str:
    """Refuse a page that would load something from another host."""
    if found := _OUTSIDE.search(output):
        raise PluginError(f"The site must need no network, but a page loads {found[0]}")
    return output
