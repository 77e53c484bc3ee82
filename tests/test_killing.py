"""A run killed or interrupted at any moment goes on and ends in the same record; two runs side by side share the work.

Every run is a forked child of one small script that has imported everything and computed nothing, so that a kill costs
no second start. The child sends itself a signal at the n-th call of a function: by default SIGKILL, so that nothing can
be caught or cleaned up.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DRIVER = """
import importlib, json, os, signal, sys
import attribench.workflows.counterfactual, attribench.reporting.tables
import sklearn.datasets, sklearn.model_selection, diffusers
from attribench.cli import main

def kill_at(target, number, before, signal_number):
    path, name = target.rsplit(".", 1)
    owner_path, _, owner_name = path.rpartition(":")
    owner = getattr(importlib.import_module(owner_path), owner_name) if owner_path else importlib.import_module(path)
    original, calls = getattr(owner, name), [0]
    def wrapper(*arguments, **options):
        calls[0] += 1
        if calls[0] == number and before:
            os.kill(os.getpid(), signal_number)
        result = original(*arguments, **options)
        if calls[0] == number:
            os.kill(os.getpid(), signal_number)
        return result
    setattr(owner, name, wrapper)

def log_trainings(file):
    import attribench.diffusion.training.loop as training
    original = training._fit
    def wrapper(*arguments):
        with open(file, "a") as log:
            log.write("a training\\n")
        original(*arguments)
    training._fit = wrapper

def fork(arguments, plan, log, number, errors):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
        if errors:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        if plan:
            kill_at(*plan, number)
        if log:
            log_trainings(log)
        os._exit(main(arguments))
    return child

for line in sys.stdin:
    order = json.loads(line)
    how = [order.get("kill"), order.get("log"), order.get("signal", signal.SIGKILL), order.get("errors")]
    children = [fork(arguments, *how) for arguments in order["runs"]]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""

# (function, which call, kill before or after it)
MOMENTS = [
    ("attribench.store.artifacts:Staging.save_bytes", 1, False),  # the first payload file is written, nothing else
    ("attribench.store.artifacts:Staging.save_bytes", 5, True),
    ("attribench.store.artifacts:ArtifactStore._write_manifest", 2, True),  # payload complete, no manifest
    ("attribench.store.artifacts:ArtifactStore._write_manifest", 3, False),  # all written, not renamed
    ("attribench.store.artifacts.sync_folder", 4, True),
    (
        "attribench.diffusion.training.module:DiffusionModule.training_step",
        3,
        True,
    ),  # inside the target model's training
    (
        "attribench.diffusion.training.module:DiffusionModule.training_step",
        11,
        False,
    ),  # inside a subset model's training
    ("attribench.diffusion.losses.sample_noise", 20, True),
    ("attribench.diffusion.trajectory.exact_float32", 2, True),
    ("attribench.workflows.pieces.score", 2, False),  # scores computed, not stored
    ("attribench.diffusion.training.unfinished.atomic_write", 2, False),  # a checkpoint of the target model is kept
    ("attribench.workflows.benchmark.save_record", 1, True),
]


@pytest.fixture(scope="module")
def driver() -> Any:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        def order(**message: Any) -> list[int]:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = "table"
            while not line.startswith("[") and line:  # the runs print their tables to the same stream
                line = process.stdout.readline()
            codes: list[int] = json.loads(line)
            return codes

        yield order
        assert process.stdin
        process.stdin.close()
        process.stdout.close() if process.stdout else None
        process.kill()


def arguments(folder: Path, command: str = "run") -> list[str]:
    more = [] if command == "ground-truth" else ["--method", "nda", "--results", str(folder / "results")]
    return [command, *more, "--dataset", "digits", "--preset", "smoke", "--workdir", str(folder / "runs"),
            "--accelerator", "cpu", "--workers", "1", "--checkpoint_seconds", "0"]  # fmt: skip


def record(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results").rglob("*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    for measured in ("cost", "created"):  # the clock's, not the computation's
        del content[measured]
    return content


@pytest.fixture(scope="module")
def undisturbed(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert driver(runs=[arguments(folder)]) == [0]
    return record(folder)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0].rpartition('.')[2]}-{moment[1]}")
def test_a_killed_run_ends_in_the_same_record(
    driver: Any, undisturbed: dict[str, Any], tmp_path: Path, moment: tuple[str, int, bool]
) -> None:
    assert driver(runs=[arguments(tmp_path)], kill=moment) == [-9], "the run was to be killed"
    for manifest in (tmp_path / "runs").rglob("manifest.json"):
        if not manifest.parent.name.startswith("."):
            assert set(json.loads(manifest.read_text())["files"]) <= {file.name for file in manifest.parent.iterdir()}
    assert driver(runs=[arguments(tmp_path)]) == [0]
    assert record(tmp_path) == undisturbed
    assert not list((tmp_path / "runs").rglob("*.tmp")), "leftovers are cleared"


@pytest.mark.parametrize(
    "moment",
    [
        ("attribench.diffusion.training.module:DiffusionModule.training_step", 3, True),
        ("attribench.diffusion.losses.sample_noise", 20, True),
        ("attribench.workflows.pieces.score", 2, False),
    ],
    ids=["training", "losses", "scoring"],
)
def test_ctrl_c_ends_a_run_with_130_and_a_line_and_it_goes_on(
    driver: Any, undisturbed: dict[str, Any], tmp_path: Path, moment: tuple[str, int, bool]
) -> None:
    errors = tmp_path / "errors"
    assert driver(runs=[arguments(tmp_path)], kill=moment, signal=signal.SIGINT, errors=str(errors)) == [130]
    said = errors.read_text()
    assert said.endswith("attribench: interrupted; run the same command again to go on where it stopped.\n")
    assert "Traceback" not in said
    assert not list((tmp_path / "runs").rglob("*.tmp")), "what was being written is cleared"
    assert driver(runs=[arguments(tmp_path)]) == [0]
    assert record(tmp_path) == undisturbed


@pytest.mark.parametrize("call", [3, 4], ids=["inside a training", "in its last step"])
def test_sigterm_ends_a_training_as_it_ends_any_program(
    driver: Any, undisturbed: dict[str, Any], tmp_path: Path, call: int
) -> None:
    """As schedulers send it: neither put off to the next model nor answered with exit code 0."""
    moment = ("attribench.diffusion.training.module:DiffusionModule.training_step", call, False)
    assert driver(runs=[arguments(tmp_path)], kill=moment, signal=signal.SIGTERM) == [-signal.SIGTERM]
    assert not list((tmp_path / "runs" / "models").glob("*/manifest.json"))
    assert driver(runs=[arguments(tmp_path)]) == [0]
    assert record(tmp_path) == undisturbed


@pytest.fixture(scope="module")
def undisturbed_counterfactual(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("counterfactual")
    assert driver(runs=[arguments(folder, "counterfactual")]) == [0]
    return all_records(folder)


@pytest.mark.parametrize(
    "moment",
    [
        (
            "attribench.diffusion.training.module:DiffusionModule.training_step",
            20,
            True,
        ),  # inside a model without proponents
        ("attribench.truth.generation:GenerateJob.spec", 3, False),
        ("attribench.records.files.atomic_write", 3, True),  # the control's record is filed, the method's is not
    ],
    ids=["training", "generating", "filing"],
)
def test_a_killed_counterfactual_ends_in_the_same_records(
    driver: Any, undisturbed_counterfactual: dict[str, Any], tmp_path: Path, moment: tuple[str, int, bool]
) -> None:
    assert driver(runs=[arguments(tmp_path, "counterfactual")], kill=moment) == [-9], "the run was to be killed"
    assert driver(runs=[arguments(tmp_path, "counterfactual")]) == [0]
    assert all_records(tmp_path) == undisturbed_counterfactual


def all_records(folder: Path) -> dict[str, Any]:
    found = {}
    for path in (folder / "results").rglob("*.json"):
        content = json.loads(path.read_text())
        del content["created"], content["clip_missing"]  # the clock's; an error's text
        found[path.name] = content
    assert {"control.json", "nda.json"} == set(found)
    return found


def test_two_runs_side_by_side_train_no_model_twice(driver: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert driver(runs=[arguments(tmp_path, "ground-truth")] * 2, log=str(log)) == [0, 0]
    models = [folder for folder in (tmp_path / "runs" / "models").iterdir() if not folder.name.startswith(".")]
    assert len(models) == 5
    assert len(log.read_text().splitlines()) == 5, "the target and four subset models, each once"
