from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attribench import AttributionContext, AttributionMethod, ImageSet, Queries
from attribench.configuration.resolution import MethodConfig
from attribench.data import folders
from attribench.diffusion.noise import NoiseSchedule
from attribench.embeddings import image_embedder as embeddings
from attribench.gradients import ekfac, features, residuals, trajectories
from attribench.method import Access
from attribench.registry import METHODS
from attribench.store import code as identity
from attribench.store.artifacts import ArtifactStore
from attribench.workflows.scoring import Scoring

PARENT = """
import torch
from attribench import Access, AttributionMethod
{helper}

class Parent(AttributionMethod):
    access = Access.DATA

    def attribute(self, queries):
        brightness = queries.unit_range().mean((1, 2, 3))[:, None] - self.context.train.unit_range().mean((1, 2, 3))
        return {sign}brightness.abs()
"""
CHILD = """
from {module} import Parent


class Child(Parent):
    pass
"""

Load = Callable[[dict[str, str]], type[AttributionMethod]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes modules, and gives the class ``Child`` as a new process would see it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(sources: dict[str, str]) -> type[AttributionMethod]:
        for name, source in sources.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(source)
            module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        found: type[AttributionMethod] = importlib.import_module("stale_child").Child
        return found

    return write


def parent(sign: str = "-", helper: str = "") -> str:
    return PARENT.format(sign=sign, helper=helper)


def test_a_child_of_an_edited_parent_is_scored_anew(load: Load, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (7, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train, queries = ImageSet(pixels[:5], tuple("abcde")), Queries(pixels[5:], ("x", "y"))

    def scores(cls: type[AttributionMethod]) -> torch.Tensor:
        store = ArtifactStore(tmp_path / "runs")
        context = AttributionContext(train, NoiseSchedule(), torch.device("cpu"), 0, store.scoped("m"), Access.DATA)
        return Scoring(store, cls(), MethodConfig("child", cls, {}), context).scores({"q": queries})["q"]

    child = CHILD.format(module="stale_parent")
    before = scores(load({"stale_parent.py": parent(), "stale_child.py": child}))
    after = scores(load({"stale_parent.py": parent(""), "stale_child.py": child}))
    assert torch.equal(after, -before)
    assert before.abs().min() > 0


@pytest.mark.parametrize(
    ("files", "edited"),
    [
        ({"stale_parent.py": parent(helper="import stale_helper")}, "stale_helper.py"),
        ({"stale_parent.py": parent(helper="import stale_tools.deep")}, "stale_tools/deep.py"),
        ({"stale_plugin/__init__.py": "", "stale_plugin/parent.py": parent()}, "stale_plugin/other.py"),
        # Folders without __init__.py.
        ({"stale_loose/parent.py": parent(helper="import stale_loose.other")}, "stale_loose/other.py"),
        ({"stale_loose/parent.py": parent(helper="from . import other")}, "stale_loose/other.py"),
        ({"stale_loose/parent.py": parent(helper="from .other import VALUE")}, "stale_loose/other.py"),
    ],
)
def test_what_the_modules_import_from_beside_them_counts(load: Load, files: dict[str, str], edited: str) -> None:
    if "/" in edited and "loose" not in edited:
        files = {f"{edited.partition('/')[0]}/__init__.py": "", **files}
    module = next(name for name in files if name.endswith("parent.py")).removesuffix(".py").replace("/", ".")
    sources = {edited: "VALUE = 1", **files, "stale_child.py": CHILD.format(module=module)}
    first = identity.method_hash(load(sources))
    assert identity.method_hash(load(sources)) == first
    assert identity.method_hash(load({**sources, edited: "VALUE = 1  # one\n"})) == first
    assert identity.method_hash(load({**sources, edited: "VALUE = 2"})) != first
    unrelated = {**sources, "stale_unrelated.py": "VALUE = 1"}
    assert identity.method_hash(load(unrelated)) == first


def test_a_method_beside_the_built_in_ones_does_not_touch_them() -> None:
    trak, renormalized = METHODS.load("trak"), METHODS.load("renormalized-influence")
    files = {path.name for path in identity._with_imported([Path(str(sys.modules[trak.__module__].__file__))])}
    assert files == {"trak.py"}
    assert identity.method_hash(trak) != identity.method_hash(renormalized)
    nda = identity._with_imported([Path(str(sys.modules[METHODS.load("nda").__module__].__file__))])
    assert {"_kernels.py", "method.py", "task.py"} <= {path.name for path in nda}


def test_a_class_whose_source_is_unknown_is_never_taken_for_another() -> None:
    namespace: dict[str, type] = {}
    exec("class Typed: ...", {"__name__": "nowhere"}, namespace)  # as in an interactive session
    exec("class Typed: ...", {"__name__": "nowhere"}, namespace2 := dict[str, type]())
    assert identity.method_hash(namespace["Typed"]) != identity.method_hash(namespace2["Typed"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gradients/ridge.py", True),
        ("method.py", True),
        ("diffusion/noise.py", True),
        ("diffusion/trajectory.py", True),
        ("reporting/tables.py", False),
        ("commands/runs.py", False),
        ("diffusion/training/loop.py", False),  # the weights of models enter instead
        ("diffusion/training/tuning.py", False),  # likewise
        ("diffusion/pretrained/pipelines.py", False),
        ("diffusion/latents.py", False),  # the latents enter instead
        ("diffusion/texts.py", True),  # of embeddings, the text encoder alone enters, not what was made with it
    ],
)
def test_an_edit_of_attribench_counts_where_it_can_change_a_score(tmp_path: Path, name: str, changes: bool) -> None:
    copy = tmp_path / "attribench"
    shutil.copytree(identity.ROOT, copy)
    assert identity.computing_hash(copy) == identity.computing_hash()
    identity.computing_hash.cache_clear()
    with (copy / name).open("a") as file:
        file.write("\nSIGN = -1\n")
    assert (identity.computing_hash(copy) != identity.computing_hash()) == changes


def test_comments_docstrings_and_layout_do_not_count() -> None:
    first = b'"""What."""\ndef f(a):\n    """Doc."""\n    return a + 1  # one\n'
    assert identity.essence(first) == identity.essence(b"def f(a):\n\n    return (a\n  + 1)\n")
    assert identity.essence(first) != identity.essence(first.replace(b"+ 1", b"- 1"))
    assert identity.essence(b"not python") != identity.essence(b"not python either")


def reached(file: Path) -> set[str]:
    """What a module of attribench imports of attribench, directly or not, by file relative to the package."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        names = [name.split(".")[1:] for name in identity._imported(waiting.pop()) if name.startswith("attribench.")]
        paths = [identity.ROOT.joinpath(*parts) for parts in names]
        candidates = {*(path.with_suffix(".py") for path in paths), *(path / "__init__.py" for path in paths)}
        new = {path for path in candidates - found if path.is_file()}
        found |= new
        waiting += new
    return {path.relative_to(identity.ROOT).as_posix() for path in found}


def test_nothing_that_a_method_reaches_is_left_out() -> None:
    files = [identity.ROOT / "method.py", *identity._files(identity._methods())]
    counted = {path.relative_to(identity.ROOT).as_posix() for path in identity.computing_files()}
    assert set().union(*map(reached, files)) <= counted


#: What is imported for its messages, its books and its bars, and decides no number.
BESIDE = {
    "computing/__init__.py", "computing/cost.py", "computing/others.py", "computing/progress.py", "data/__init__.py",
    "diffusion/__init__.py", "embeddings/__init__.py", "errors.py", "gradients/__init__.py", "gradients/budget.py",
    "gradients/needs.py", "method.py", "store/__init__.py", "store/artifacts.py", "store/claims.py", "store/code.py",
    "computing/memory.py", "store/files.py", "store/journal.py", "store/parts.py", "store/shared.py",
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "decisive"),
    [
        ("gradients/features.py", features.DECISIVE),
        ("gradients/residuals.py", residuals._DECISIVE),
        ("gradients/ekfac.py", ekfac._DECISIVE),
        ("gradients/trajectories.py", trajectories._DECISIVE),
        ("embeddings/image_embedder.py", embeddings._DECISIVE),
        ("data/folders.py", {*folders._DECISIVE, "data/image_sets.py"}),
    ],
)
def test_what_decides_a_stored_thing_is_named_in_full(file: str, decisive: set[str]) -> None:
    assert {file, *reached(identity.ROOT / file)} - BESIDE - set(decisive) == set()
