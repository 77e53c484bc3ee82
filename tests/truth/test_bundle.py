"""Ground truth as a file: the same numbers elsewhere with nothing retrained, and nothing read that is not whole."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from attribench.cli import main
from attribench.errors import BundleError
from attribench.records.lds import load_records
from attribench.store.files import canonical, digest_text
from attribench.truth.bundle import Bundle
from attribench.truth.ground_truth import Band, GroundTruth, band_means, bands_of

pytestmark = pytest.mark.slow

SMOKE = ("--dataset", "digits", "--preset", "smoke")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a work directory, a bundle exported from it, and the records of a run there."""
    folder = tmp_path_factory.mktemp("made")
    place = ("--workdir", str(folder / "runs"))
    assert main(["ground-truth", "export", *SMOKE, *place, "--out", str(folder / "smoke.truth")]) == 0
    assert main(["run", "--method", "pixel,gradient,gas", *SMOKE, *place, "--results", str(folder / "results")]) == 0
    return folder


def test_elsewhere_it_gives_the_same_record_with_nothing_trained(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("train_network", "denoising_losses"):
        monkeypatch.setattr(f"attribench.truth.jobs.{work}", lambda *_, **__: pytest.fail("made anew"))
    monkeypatch.setattr("attribench.truth.generation.generate_images", lambda *_, **__: pytest.fail("made anew"))
    place = ("--workdir", str(tmp_path / "runs"), "--results", str(tmp_path / "results"))
    assert main(["ground-truth", "import", str(made / "smoke.truth"), "--workdir", str(tmp_path / "runs")]) == 0
    assert main(["run", "--method", "pixel,gradient,gas", "--ground-truth", "smoke", *place]) == 0
    here, there = (load_records(folder / "results") for folder in (tmp_path, made))
    assert [record.method for record in here] == ["gas", "gradient", "pixel"]
    for ours, theirs in zip(here, there, strict=True):
        assert (ours.ground_truth, theirs.ground_truth) == ("smoke", "")
        apart = {"created", "cost", "ground_truth"}
        assert ours.model_dump(exclude=apart) == theirs.model_dump(exclude=apart)


def test_what_it_holds_is_what_the_store_holds(made: Path) -> None:
    bundle = Bundle(made / "smoke.truth")
    losses = []
    for folder in sorted((made / "runs" / "losses").iterdir()):
        spec = json.loads((folder / "spec.json").read_text())
        if spec["queries"] == bundle.header.query_sets["validation"].content:
            losses.append(load((folder / "losses.safetensors").read_bytes())["losses"].double().mean(dim=(0, 1)))
    found = bundle.ground_truth("validation").outputs
    expected = torch.stack(losses)
    order = torch.cdist(found, expected).argmin(dim=1)  # the store names its models by hashes
    assert sorted(order.tolist()) == list(range(len(found)))
    torch.testing.assert_close(found, expected[order], rtol=1e-6, atol=0)


def test_the_model_is_as_diffusers_reads_it(made: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    with zipfile.ZipFile(made / "smoke.truth") as archive:
        archive.extractall(tmp_path)
        folders = sorted(Path(name).parent.as_posix() for name in archive.namelist() if name.endswith("config.json"))
    assert len(folders) == 2
    for folder in folders:
        network = UNet2DModel.from_pretrained(tmp_path / folder)
        weights = load((tmp_path / folder / "diffusion_pytorch_model.safetensors").read_bytes())
        assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    Bundle(tmp_path).verify()  # the unpacked folder is a bundle too


def test_its_models_can_be_retrained(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["ground-truth", "verify", str(made / "smoke.truth"), "--retrain", "1", "--workdir", str(tmp_path)]
    assert main(call) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert "all" in said[0]
    assert [line.rpartition(": ")[2] for line in said[1:]] == ["losses bit for bit the stored ones"] * 2


@pytest.mark.parametrize("options", [("--training.epochs", "3"), ("--preset", "small")])
def test_its_settings_stay(made: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--method", "pixel", "--ground-truth", str(made / "smoke.truth"), *options]) == 2
    assert options[0] in capsys.readouterr().err


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    """A change of the header that its checksum is made to fit again."""

    def apply(files: dict[str, bytes]) -> None:
        body = json.loads(files["bundle.json"])
        del body["checksum"]
        change(body)
        files["bundle.json"] = canonical({**body, "checksum": digest_text(canonical(body))}).encode()

    return apply


def flipped(name: str) -> Callable[[dict[str, bytes]], None]:
    def apply(files: dict[str, bytes]) -> None:
        content = bytearray(files[name])
        content[-1] ^= 1
        files[name] = bytes(content)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped("generation.losses.safetensors"), r"generation.losses.safetensors does not match its checksum"),
        (flipped("bundle.json"), r"bundle.json"),
        (lambda files: files.pop("masks.safetensors"), r"masks.safetensors is missing"),
        (lambda files: files.update({"more.txt": b"x"}), r"more.txt is not listed"),
        (lambda files: files.update({"../more.txt": b"x"}), r"'../more.txt' leads out"),
        (header(lambda body: body.update(format=2)), r"format 2; this attribench reads format 1"),
        (header(lambda body: body.update(name="../x")), r"not valid: name"),
        (header(lambda body: body.update(surprise=1)), r"not valid: surprise"),
        (header(lambda body: body["query_sets"]["validation"].update(truth="0")), r"validation.* are not those"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(
    made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], message: str
) -> None:
    damaged = rewritten(made / "smoke.truth", tmp_path / "damaged.truth", change)
    with pytest.raises(BundleError, match=message):
        Bundle(damaged).verify()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_refused(made: Path, tmp_path: Path, share: float) -> None:
    content = (made / "smoke.truth").read_bytes()
    (tmp_path / "cut.truth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match=r"cut\.truth"):
        Bundle(tmp_path / "cut.truth").verify()


def test_another_data_set_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["run", "--method", "pixel", "--ground-truth", str(made / "smoke.truth"), "--data.num_train", "59"]
    assert main(call) == 1
    assert "is of other train images" in capsys.readouterr().err


def test_bands_average_what_they_hold() -> None:
    timesteps = [0, 20, 90, 100, 950]
    losses = torch.from_numpy(np.random.default_rng(0).random((2, 5, 3), dtype=np.float32))
    bands = bands_of(timesteps)
    assert bands == [Band(0, 100, 3), Band(100, 200, 1), Band(900, 1000, 1)]
    means = band_means(losses, timesteps)
    expected = np.stack([losses[:, :3].double().mean(1), losses[:, 3].double(), losses[:, 4].double()], axis=1)
    np.testing.assert_allclose(means.double(), expected, rtol=1e-7)
    truth = GroundTruth(torch.ones(1, 4, dtype=torch.bool), means[None, None], bands)
    np.testing.assert_allclose(truth.draws[0, 0], losses.double().mean(dim=1), rtol=1e-7)
    assert truth.restrict([0], [2, 0]).by_band.shape == (1, 1, 2, 3, 2)
    assert truth.restrict([0], [0]).hash.startswith(truth.restrict([0], [0]).hash.partition("/")[0])
