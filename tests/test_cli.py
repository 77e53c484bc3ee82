"""The command line as a person meets it: what it prints, and the exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from attribench.cli import main
from attribench.records.files import load_attachment
from attribench.records.lds import load_records
from attribench.registry import METHODS

SMOKE = ["--dataset", "digits", "--preset", "smoke", "--accelerator", "cpu", "--workers", "1"]

CONFIGS = Path(__file__).parents[1] / "configs" / "methods"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished smoke run of three methods."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder, "nda,pixel,random") == 0
    return folder


def run(folder: Path, methods: str, *more: str, dataset: list[str] = SMOKE) -> int:
    return main(
        [
            "run",
            "--method",
            methods,
            *dataset,
            "--workdir",
            str(folder / "runs"),
            "--results",
            str(folder / "results"),
            *more,
        ]
    )


def write_images(folder: Path, mode: str, sizes: list[tuple[int, int]]) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for index, (width, height) in enumerate(sizes):
            shape = (height, width) if mode == "L" else (height, width, 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(folder / part / f"{index:02}.png")
    return folder


def test_help_lists_the_commands_without_loading_torch() -> None:
    code = (
        "import sys; from attribench.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'lightning', 'diffusers', 'open_clip', 'sklearn', 'pandas', 'ray'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("run", "ground-truth", "status", "list", "table"):
        assert f"  {command} " in done.stdout


def test_a_run_prints_the_table_and_files_a_record_a_method(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {record.method: record for record in load_records(finished / "results")}
    assert set(records) == {"nda", "pixel", "random"}
    for record in records.values():
        assert set(record.results) == {"validation", "generation"}
        assert (record.dataset, record.preset, record.overrides) == ("digits", "smoke", {})
        for result in record.results.values():
            assert result.interval.low <= result.lds <= result.interval.high
            assert len(result.per_query) == len(result.query_ids)
    assert main(["table", "--dataset", "digits", "--results", str(finished / "results")]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("nda", "pixel", "random", "preset smoke"))


def test_a_second_run_reuses_everything_and_leaves_the_records_as_they_are(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in (finished / "results").rglob("*.json")}
    for name in (
        "attribench.truth.jobs.train_network",
        "attribench.truth.jobs.denoising_losses",
        "attribench.truth.generation.generate_images",
        "attribench.workflows.scoring.start",
    ):
        monkeypatch.setattr(name, lambda *arguments, **options: pytest.fail("computed again"))
    assert run(finished, "nda,pixel,random") == 0
    assert {path: path.read_bytes() for path in (finished / "results").rglob("*.json")} == before


@pytest.mark.slow
def test_all_runs_every_method_and_lists_the_others_with_the_reason(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(finished / "hub"))
    assert run(finished, "all") == 0
    printed = capsys.readouterr().out
    recorded = {record.method for record in load_records(finished / "results")}
    for name in METHODS.names():
        configured = {path.stem for path in CONFIGS.glob("*.yaml") if f"method: {name}\n" in path.read_text("utf-8")}
        rows = configured or {name}
        assert rows & recorded or any(f"{row} was skipped: " in printed for row in rows), name
    assert {"pixel-dot", "pixel-cosine", "nda", "random"} <= recorded
    for record in load_records(finished / "results"):
        own = record.method.startswith("journey-trak")
        assert set(record.results) == ({"generation"} if own else {"validation", "generation"})
        assert set(record.undefined) == ({"validation"} if own else set())
    said = re.search(r"on which they are not defined: ([^:]*): they were not sampled", " ".join(printed.split()))
    assert said is not None
    assert set(said[1].split(", ")) == {"journey-trak", "journey-trak-converged"}


def test_galleries_false_files_no_images(finished: Path, tmp_path: Path) -> None:
    def gallery(results: Path) -> bool:
        (record,) = [record for record in load_records(results) if record.method == "pixel"]
        return any("gallery" in name for name in load_attachment(record, results) or {})

    assert run(finished, "pixel", "--galleries", "false", "--results", str(tmp_path)) == 0
    assert gallery(finished / "results")
    assert not gallery(tmp_path)


def test_an_edited_option_is_a_row_of_its_own(finished: Path) -> None:
    assert run(finished, "nda", "--method.top_k", "3") == 0
    assert "nda[top_k=3]" in {record.method for record in load_records(finished / "results")}


@pytest.mark.parametrize(
    ("style", "mark"), [("markdown", "| nda |"), ("latex", r"\bottomrule"), ("csv", "table,method")]
)
def test_table_formats(finished: Path, capsys: pytest.CaptureFixture[str], style: str, mark: str) -> None:
    assert main(["table", "--format", style, "--results", str(finished / "results")]) == 0
    assert mark in capsys.readouterr().out


def test_status_tells_what_is_done_and_what_is_missing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["status", *SMOKE, "--workdir", str(finished / "runs")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "target model          done" in printed
    assert "subset models         4 of 4" in printed
    assert main([*arguments, "--ground_truth.num_subsets", "6"]) == 0
    assert "subset models         4 of 6  (missing: model of subset 4" in capsys.readouterr().out


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["run", *SMOKE, "--method", "nda", "--method.top_k", "7", "--training.epochs", "3", "--print_config"]) == 0
    )
    text = capsys.readouterr().out
    content = yaml.safe_load(text)
    assert (content["method"]["top_k"], content["training"]["epochs"]) == (7, 3)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["run", "--config", str(file), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == content


@pytest.mark.parametrize("name", ["Trip: Rome", "[x]", "null", "# z", "1e3", "~", "2026-01-01"])
def test_names_and_paths_are_taken_as_they_stand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--dataset", "image-folder", "--preset", "smoke", "--method", "pixel", "--data.root", name]
    assert main(["run", *arguments, "--data.name", name, "--results", name, "--workdir", name, "--print_config"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["data"] | {"root": name, "name": name} == yaml.safe_load(text)["data"]
    Path(name).write_text(text)
    assert main(["run", "--config", name, "--print_config"]) == 0
    assert capsys.readouterr().out == text


def test_help_of_run_shows_the_options_of_method_and_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--method", "nda", "--dataset", "image-folder", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--method.top_k", "--data.root", "--training.epochs", "--ground_truth.num_subsets", "--workdir"):
        assert option in printed


def test_list_shows_methods_data_sets_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("nda", "pixel", "random", "pixel-dot", "digits", "cifar2", "celeba", "image-folder", "paper"):
        assert name in printed
    assert "BROKEN" not in printed


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_images_of_mixed_sizes(tmp_path: Path, mode: str) -> None:
    folder = write_images(tmp_path / "photos", mode, [(20, 17), (16, 30), (40, 40), (18, 18)] * 3)
    dataset = ["--dataset", "image-folder", "--data.root", str(folder), "--data.image_size", "16", "--preset", "smoke"]
    assert run(tmp_path, "nda,pixel,random", "--accelerator", "cpu", dataset=dataset) == 0
    records = load_records(tmp_path / "results")
    assert {record.dataset for record in records} == {"photos"}
    assert records[0].image_shape == [1 if mode == "L" else 3, 16, 16]
    assert records[0].overrides == {"data.image_size": 16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "Did you mean 'run'"),
        (["run", "--method", "ndaa"], "Did you mean 'nda'"),
        (["run", "--dataset", "digitz"], "Did you mean 'digits'"),
        (["run", "--presett", "small"], "Unknown option --presett. Did you mean '--preset'"),
        (["run", "--method", "nda", "--method.topk", "3"], "Did you mean 'top_k'"),
        (["run", "--protocol", "loose"], "--protocol: expected one of 'standard', 'strict', got 'loose'"),
        (["run", "--method.engine", "slow"], "--method.engine: expected one of 'fast', 'convolution', got 'slow'"),
        (["attribute", "--channels", "blue"], "--channels: expected one of 'auto', 'RGB', 'grey', got 'blue'"),
        (["run", "--training.epochs", "many"], "--training.epochs: expected int, got 'many'"),
        (["run", "--training.epochs"], "--training.epochs needs a value"),
        (["run", "--workers", "x"], "--workers: expected int"),
        (["run", "--ground_truth.num_subsets", "1"], "at least 2"),
        (["run", "--accelerator", "abacus", "--preset", "smoke"], "Unknown --accelerator 'abacus'"),
        (["run", "--method", ","], "--method is empty"),
        (["table", "--format", "latx", "--results", "nowhere"], "Did you mean 'latex'"),
        (["table", "--results", "nowhere"], "Run attribench run first"),
        (["run", "--dataset", "image-folder", "--preset", "smoke"], "--data.root is required"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == [], "a wrong call leaves nothing behind"


def folder_without_images(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        (folder / part / "notes.txt").write_text("no image")


def folder_with_a_broken_image(folder: Path) -> None:
    write_images(folder, "L", [(16, 16)] * 6)
    (folder / "train" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "There is no folder"),
        (folder_without_images, "holds no images"),
        (folder_with_a_broken_image, "03.png"),
        (lambda folder: write_images(folder, "L", [(16, 16), (20, 20)]), "--data.image_size"),
    ],
)
def test_bad_data_is_one_or_two_lines_and_exit_code_1(
    make: object, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make(tmp_path / "data")  # type: ignore[operator]
    dataset = ["--dataset", "image-folder", "--data.root", str(tmp_path / "data"), "--preset", "smoke"]
    assert run(tmp_path, "pixel", dataset=dataset) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "results").exists()


def test_an_unexpected_error_is_one_line_and_a_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("attribench.workflows.benchmark.open_experiment", fail)
    assert run(tmp_path, "pixel") == 1
    assert "ZeroDivisionError: by zero" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "pixel", "--debug")


def test_records_say_what_they_were_made_with(finished: Path) -> None:
    content = json.loads((finished / "results/records/digits/smoke/pixel.json").read_text())
    assert content["settings"]["ground_truth"]["num_subsets"] == 4
    assert content["options"] == {"similarity": "cosine"}
    assert {"torch", "diffusers", "attribench"} <= set(content["versions"])
    assert content["cost"]["seconds_per_query"] > 0
    assert content["hardware"]["device"] == "cpu"
