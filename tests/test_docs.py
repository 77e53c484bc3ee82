"""The pages of docs/ run: their Python blocks, one after the other, are tests; the commands and options they show exist."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import pytest
import yaml

from attribench import cli
from attribench.commands.truths import VERBS
from attribench.commands.work import PLANS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
#: Words that may follow a command and have options of their own.
FURTHER = {"ground-truth": tuple(VERBS), "work": PLANS, "jobs": PLANS}
INCLUDED = re.compile(r"^--8<--\n(.*)\n--8<--$", re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}[^\n]*\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


@functools.cache
def help_of(*command: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert cli.main([*command, "--help"]) == 0
    return output.getvalue()


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = INCLUDED.sub(lambda match: (ROOT / match[1]).read_text("utf-8"), "\n".join(blocks(page, "python")))
    exec(compile(source, page, "exec"), {"__name__": Path(page).stem})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_commands_and_options_exist(page: str) -> None:
    for line in "".join(blocks(page, "console")).replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), line
        if program != "attribench" or words[0].startswith("-"):
            continue
        assert words[0] in {command.name for command in cli.COMMANDS}, line
        for option in re.findall(r"--[\w-]+(?:\.\w+)?", " ".join(words[1:])):
            own = option.startswith(("--method.", "--data."))  # of a plug-in: they depend on which
            verb = words[1:2] if words[1] in FURTHER.get(words[0], ()) else []
            assert own or re.search(rf"{option}\b", help_of(words[0], *verb)), line


def test_every_page_can_be_reached() -> None:
    def pages(entries: list[dict[str, object]]) -> list[object]:
        values = [value for entry in entries for value in entry.values()]
        return [page for value in values for page in (pages(value) if isinstance(value, list) else [value])]

    assert sorted(map(str, pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))) == PAGES
