"""The published numbers are those of their sources, cell by cell."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from attribench.configuration.options import option_defaults
from attribench.configuration.resolution import all_methods, dataset_config, method_config
from attribench.reporting.formats import latex_escape
from attribench.reporting.published import Erratum, footnote_mark, load_published
from attribench.settings import QUERY_SETS

#: The cells that the authors of D-TRAK published in their own evaluation, beside the repository.
EVALUATION = Path(__file__).parents[2].parent / "shared" / "published" / "dtrak_table.md"
SHORT = {"(dot)": "dot", "(cosine)": "cos", "Relative influence": "Relative Inf.", "Renormalized influence": "Renorm. Inf.",
         "Empirical": "Emp.", ", K = 100": " K100", " models": "", ", ": " "}  # fmt: skip

PUBLISHED = load_published()
OURS, THEIRS = PUBLISHED.sources


def read_evaluation() -> dict[str, dict[str, list[str | None]]]:
    """Row → data set → (validation, generation)."""
    lines = [line for line in EVALUATION.read_text("utf-8").splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    datasets = [name.lower() for name in table[0][1:]]
    rows: dict[str, dict[str, list[str | None]]] = {}
    for name, *cells in table[2:]:
        pairs = {key: [None if part == "–" else part.replace("±", " ± ") for part in cell.split(" / ")]
                 for key, cell in zip(datasets, cells, strict=True)}  # fmt: skip
        rows[name] = {key: pair for key, pair in pairs.items() if pair != [None]}
    return rows


def name_there(name: str, rows: dict[str, dict[str, list[str | None]]]) -> str:
    for ours, theirs in SHORT.items():
        name = name.replace(ours, theirs)
    return name if name in rows else f"{name} K10"


@pytest.mark.skipif(not EVALUATION.is_file(), reason="needs the table of D-TRAK's evaluation beside the repository")
def test_every_cell_of_the_evaluation_is_here_and_no_other() -> None:
    rows = read_evaluation()
    assert {name_there(name, rows): dict(cells) for name, cells in OURS.cells.items()} == rows
    assert sum(len(pair) for cells in rows.values() for pair in cells.values()) == 2 * (30 * 5 - 8 * 2)
    nda = re.findall(
        r"(\S+±\S+) / (\d+\.\d+±\d+\.\d+)", EVALUATION.read_text("utf-8").split("NDA's rows")[1].split("|")[0]
    )
    for dataset, pair in zip(("cifar2", "cifar10", "celeba"), nda, strict=True):
        assert THEIRS.cells["NDA"][dataset] == [cell.replace("±", " ± ") for cell in pair]


def test_every_cell_is_a_mean_and_its_deviation_and_belongs_to_a_row() -> None:
    assert "e2a0c2e" in OURS.where
    assert "2510.14269" in THEIRS.where
    names = [method.name for method in PUBLISHED.methods]
    assert len(names) == len(set(names)) == 31
    for source in PUBLISHED.sources:
        assert set(source.cells) <= set(names)
        for cells in source.cells.values():
            for cell in (cell for pair in cells.values() for cell in pair if cell is not None):
                assert re.fullmatch(r"-?\d+\.\d\d ± \d\.\d\d", cell)
    assert all(cells.keys() == {"cifar2", "cifar10", "celeba"} for cells in THEIRS.cells.values())


def test_wherever_the_sources_differ_an_erratum_says_why_and_nowhere_else() -> None:
    differ = {
        (method, dataset, query_set)
        for method, dataset, query_set in product(THEIRS.cells, ("cifar2", "cifar10", "celeba"), QUERY_SETS)
        if method in OURS.cells and OURS.text(method, dataset, query_set) != THEIRS.text(method, dataset, query_set)
    }
    told = {(name, e.dataset, e.query_set) for e in PUBLISHED.errata for name in e.methods}
    assert differ == told
    for method, dataset, query_set in differ:
        cell = PUBLISHED.cell(method, dataset, query_set)
        assert cell is not None
        assert (cell.source, bool(cell.mark)) == (OURS, True)


def test_what_the_errata_say_is_so() -> None:
    for name in ("Gradient (dot)", "Gradient (cosine)", "TracInCP", "GAS"):
        printed, deviation = (THEIRS.text(name, "cifar10", "generation") or "").split(" ± ")
        assert printed == (OURS.text(f"{name}, K = 100", "cifar10", "validation") or "").split(" ± ")[0]
        assert deviation == (OURS.text(name, "cifar10", "generation") or "").split(" ± ")[1]
    for name in ("Raw pixel (dot)", "Raw pixel (cosine)"):
        assert (OURS.text(name, "celeba", "generation") or "").startswith("-4.")
        assert (THEIRS.text(name, "celeba", "generation") or "").startswith("4.")


def test_rows_are_named_as_our_tables_name_them() -> None:
    known, base = all_methods()[0], dataset_config("cifar2")
    for method in PUBLISHED.methods:
        if method.row is None:
            continue
        name, _, changed = method.row.partition("[")
        assert name in known
        cls = method_config(name, base, "paper", {}).cls
        assert cls.access.name == "DATA" if method.looks_at == "data" else cls.access.name != "DATA"
        assert changed in ("", "num_timesteps=100]")
        assert bool(changed) == method.name.endswith("K = 100")
        assert not changed or option_defaults(cls)["num_timesteps"] == 10


@pytest.mark.parametrize("dataset", ["cifar2", "cifar10", "celeba"])
def test_a_named_configuration_stands_for_a_row_where_it_is_the_same(dataset: str) -> None:
    base, known = dataset_config(dataset), all_methods()[0]
    hundred = [method for method in PUBLISHED.methods if method.also]
    assert len(hundred) == 9
    for method in hundred:
        ((name, _),) = method.also.items()
        assert name in known
        assert method.row is not None
        plain, _, changed = method.row.partition("[")
        assert changed == "num_timesteps=100]"
        ours, theirs = (
            method_config(*row) for row in ((name, base, "paper", {}), (plain, base, "paper", {"num_timesteps": 100}))
        )
        assert (ours.cls, ours.options) == (theirs.cls, theirs.options)
        assert method.is_also(name, ours.options)
        assert not method.is_also(name, {**ours.options, "noise_draws": 10})
        assert not method.is_also(name, {**ours.options, "f": "mean"}) or "f" not in ours.options
        assert not method.is_also(plain, ours.options)


def test_there_is_a_mark_for_every_erratum() -> None:
    assert [footnote_mark(number) for number in (0, 1, 2, 3, 9, 11)] == ["¹", "²", "³", "⁴", "¹⁰", "¹²"]
    errata = [Erratum("cifar2", "validation", [method.name], "wrong") for method in PUBLISHED.methods[:11]]
    published = replace(PUBLISHED, errata=errata)
    for number in (3, 10):
        cell = published.cell(errata[number].methods[0], "cifar2", "validation")
        assert cell is not None
        assert cell.mark == footnote_mark(number)
    assert sum(note.startswith(("⁴ ", "¹¹ ")) for note in published.notes(["cifar2"])) == 2
    assert latex_escape("1.0⁴") == "1.0$^4$"
