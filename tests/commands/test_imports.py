"""Published ground truth as files of the true layout, imported and used by commands, against an independent reading."""

from __future__ import annotations

import csv
import io
import itertools
import pickle
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cifar_files import CifarFiles, write_cifar
from dtrak_layout import INDICES, LOSSES, write, write_losses
from PIL import Image
from scipy.stats import spearmanr

from attribench.cli import main
from attribench.data import ImageSet
from attribench.datamodules.cifar2 import Cifar2
from attribench.datamodules.digits import Digits
from attribench.records.lds import load_records
from attribench.truth.bundle import Bundle

SHAPE = (6, 2, 3)  # subsets, seeds, draws
CELLS = list(itertools.product(*map(range, SHAPE)))
NUM_TRAIN, NUM_QUERIES, NUM_GENERATED = 24, 10, 5


@dataclass(frozen=True)
class Published:
    """A made-up CIFAR-10 and D-TRAK's files on it; indices are in another order than the data module's."""

    cifar: CifarFiles
    folder: Path
    train: list[int]
    validation: list[int]
    subsets: list[list[int]]
    generated: Any

    @property
    def options(self) -> list[str]:
        sizes = ["--data.num_train", str(NUM_TRAIN), "--data.num_queries", str(NUM_QUERIES)]
        return ["--dataset", "cifar2", "--data.root", str(self.cifar.root), *sizes]

    def import_(self, out: Path, *more: str, folder: Path | None = None) -> int:
        place = ["--out", str(out), "--workdir", str(out.parent / "runs")]
        return main(["ground-truth", "import-dtrak", str(folder or self.folder), *self.options, *place, *more])

    def losses(self, kind: str) -> Any:
        """float64 ``(subsets, seeds, draws, 1000, queries)``, in the published order."""
        files = [self.folder / LOSSES / f"ddpm-sub-{k}-{s}/e-{d}-{kind}.pkl" for k, s, d in CELLS]
        found = np.stack([np.concatenate(pickle.loads(file.read_bytes()), axis=-1) for file in files])
        return found.reshape(*SHAPE, 1000, -1).astype(np.float64)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    generator = np.random.default_rng(0)
    labels = [generator.permutation(np.arange(count) % 10) for count in (300, 200)]
    with pytest.MonkeyPatch.context() as patch:
        cifar = write_cifar(tmp_path_factory.mktemp("cifar"), labels[0], labels[1], patch)
        data = Cifar2(cifar.root, NUM_TRAIN, NUM_QUERIES)
        train, validation = (
            generator.permutation([int(name.rpartition("-")[2]) for name in images.ids]).tolist()
            for images in (data.train, data.validation)
        )
        folder = tmp_path_factory.mktemp("published") / "CIFAR2"
        subsets = [generator.choice(train, NUM_TRAIN // 2, replace=False).tolist() for _ in range(SHAPE[0])]
        write(folder / INDICES / "idx-train.pkl", train)
        write(folder / INDICES / "idx-val.pkl", validation)
        for subset, indices in enumerate(subsets):
            write(folder / INDICES / "lds-val" / f"sub-idx-{subset}.pkl", indices)
        for (k, s, d), (kind, count) in itertools.product(CELLS, (("val", NUM_QUERIES), ("gen", NUM_GENERATED))):
            losses = generator.gamma(2, 0.01, (1000, count)).astype(np.float32)
            write_losses(folder / LOSSES / f"ddpm-sub-{k}-{s}" / f"e-{d}-{kind}.pkl", losses)
        generated = generator.integers(0, 256, (NUM_GENERATED, 32, 32, 3), dtype=np.uint8)
        for number, image in enumerate(generated):
            path = folder / "saved/5000-0.5/gen" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
        yield Published(cifar, folder, train, validation, subsets, generated)


@dataclass(frozen=True)
class Imported:
    """A bundle and what the import printed."""

    path: Path
    printed: str


@pytest.fixture(scope="module")
def imported(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    path = tmp_path_factory.mktemp("imported") / "cifar2.truth"
    with redirect_stdout(io.StringIO()) as printed:
        assert published.import_(path) == 0
    return Imported(path, printed.getvalue())


def numbers(names: tuple[str, ...]) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in names]


def expected_masks(published: Published, data: Cifar2) -> Any:
    return np.array([[number in subset for number in numbers(data.train.ids)] for subset in published.subsets])


def data_of(published: Published) -> Cifar2:
    return Cifar2(published.cifar.root, NUM_TRAIN, NUM_QUERIES)


def order(published: Published, query_set: str) -> list[int]:
    """Where the data set's queries are in the published order."""
    if query_set == "generation":
        return list(range(NUM_GENERATED))
    return [published.validation.index(number) for number in numbers(data_of(published).validation.ids)]


@pytest.mark.parametrize(("query_set", "kind"), [("validation", "val"), ("generation", "gen")])
def test_masks_and_losses_equal_an_independent_reading(
    published: Published, imported: Imported, query_set: str, kind: str
) -> None:
    truth = Bundle(imported.path).ground_truth(query_set)
    np.testing.assert_array_equal(truth.masks, expected_masks(published, data_of(published)))
    losses = published.losses(kind)[..., order(published, query_set)]
    assert truth.by_band.dtype == torch.float32
    assert truth.by_band.shape == (6, 2, 1, 1, losses.shape[-1])
    np.testing.assert_allclose(truth.losses, losses.mean(axis=(2, 3)), rtol=2e-7)


def test_it_says_what_it_is(published: Published, imported: Imported) -> None:
    bundle = Bundle(imported.path)
    bundle.verify()
    header, data = bundle.header, data_of(published)
    assert (header.name, header.dataset, header.preset) == ("cifar2", "cifar2", "paper")
    assert (header.checkpoints, header.train_images) == ([], False)
    assert header.train_hash == data.train.content_hash
    assert header.query_sets["validation"].content == data.validation.content_hash
    np.testing.assert_array_equal(bundle.queries("generation").images.permute(0, 2, 3, 1), published.generated)
    assert header.settings["ground_truth"]["num_subsets"] == header.overrides["ground_truth.num_subsets"] == 6
    assert "ground_truth.subset_fraction" not in header.overrides


def lds(published: Published, query_set: str, kind: str) -> float:
    """Cosine of raw pixels against the published losses, by SciPy."""
    data = data_of(published)
    queries = torch.from_numpy(published.generated).permute(0, 3, 1, 2)
    pixels = [
        (images.double() / 127.5 - 1).flatten(1).numpy()
        for images in (data.train.images, data.validation.images if query_set == "validation" else queries)
    ]
    train, asked = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in pixels)
    predicted = (asked @ train.T) @ expected_masks(published, data).T.astype(float)
    losses = published.losses(kind).mean(axis=(1, 2, 3))[:, order(published, query_set)]
    return float(np.mean([spearmanr(predicted[i], -losses[:, i])[0] for i in range(len(asked))]))


@pytest.mark.parametrize(("query_set", "kind"), [("validation", "val"), ("generation", "gen")])
def test_the_self_test_is_the_lds_of_raw_pixels(
    published: Published, imported: Imported, query_set: str, kind: str
) -> None:
    line = next(line for line in imported.printed.splitlines() if f"pixel-cosine, {query_set}" in line)
    assert f": {100 * lds(published, query_set, kind):.1f} [" in line
    known = {"validation": "7.87 ± 0.57", "generation": "5.44 ± 0.57"}[query_set]
    assert line.endswith(f"published {known}")


def test_methods_that_look_at_a_model_are_skipped(
    published: Published, imported: Imported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["run", "--ground-truth", str(imported.path), *published.options, "--workdir", str(tmp_path / "runs")]
    call += ["--results", str(tmp_path / "results"), "--method"]
    assert main([*call, "pixel,gradient,gas"]) == 0
    printed = capsys.readouterr().out
    for name in ("gradient", "gas"):
        assert f"{name} was skipped: it looks at the target model, and this ground truth holds no model." in printed
    (record,) = load_records(tmp_path / "results")
    for query_set, kind in (("validation", "val"), ("generation", "gen")):
        assert record.results[query_set].lds == pytest.approx(lds(published, query_set, kind), abs=1e-9)
    assert not (tmp_path / "runs" / "models").exists()
    assert main([*call, "gradient"]) == 1


def test_what_needs_a_model_is_refused(
    published: Published, imported: Imported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, place = str(imported.path), ["--workdir", str(tmp_path / "runs")]
    given = ["--ground-truth", truth, *published.options, *place, "--results", str(tmp_path)]
    sizes = ["--counterfactual.num_removed", "3", "--counterfactual.num_queries", "2"]
    for call in (
        ["counterfactual", "--method", "pixel", *given, *sizes],
        ["tune", "--method", "gas", *given],
        ["ground-truth", "verify", truth, "--retrain", "1", *place],
    ):
        assert main(call) == 2
        assert "no model" in capsys.readouterr().err


def test_without_images_generated_queries_are_left_out(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(published.folder, tmp_path / "CIFAR2")
    (folder / "saved/5000-0.5/gen/3.png").unlink()
    out = tmp_path / "cifar2.truth"
    assert published.import_(out, folder=folder) == 0
    assert "losses on 5 of them, and 3 images" in capsys.readouterr().err
    assert Bundle(out).query_sets == ("validation",)
    place = ["--workdir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    given = ["--ground-truth", str(out), *published.options, *place]
    assert main(["run", "--method", "random", *given]) == 0
    assert "—" in capsys.readouterr().out
    assert main(["sweep", "--method", "random", "--vary", "seed=[1]", *given]) == 0
    assert "LDS×100 validation" in capsys.readouterr().out


def test_bands_are_kept_if_asked_for(published: Published, tmp_path: Path) -> None:
    assert published.import_(tmp_path / "cifar2.truth", "--bands", "4", "--name", "by-band") == 0
    bundle = Bundle(tmp_path / "cifar2.truth")
    assert bundle.header.name == "by-band"
    losses = published.losses("val")[..., order(published, "validation")].mean(axis=2).reshape(6, 2, 4, 250, -1)
    np.testing.assert_allclose(bundle.ground_truth("validation").by_band[:, :, 0], losses.mean(axis=3), rtol=2e-7)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


@pytest.mark.parametrize("name", [f"{LOSSES}/ddpm-sub-3-1/e-2-gen.pkl", f"{INDICES}/idx-val.pkl"])
def test_a_hostile_file_is_refused_by_name(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = shutil.copytree(published.folder, tmp_path / "CIFAR2")
    write(folder / name, [Bomb(tmp_path / "mark")])
    assert published.import_(tmp_path / "cifar2.truth", folder=folder) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("attribench:"))
    assert f"{folder / name} asks for " in line
    assert "Path.mkdir" in line
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "cifar2.truth").exists()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--data.num_train", "26"], 1, "train images are not the data set's: 24 are published and 26 in the data set"),
        (["--data.num_queries", "8"], 1, "validation images are not the data set's: 10 are published"),
        (["--data.image_size", "16"], 1, "0.png is of shape (3, 32, 32), the train images are of (3, 16, 16)"),
        (["--ground_truth.num_subsets", "32"], 2, "--ground_truth.num_subsets 32: the files have 6"),
        (["--setting", "5000-0.1"], 1, "5000-0.1"),
        (["--name", "a/b"], 2, "--name 'a/b'"),
        (["--bands", "3"], 2, "3 bands"),
    ],
)
def test_what_does_not_fit_is_told(
    published: Published,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    message: str,
) -> None:
    assert published.import_(tmp_path / "cifar2.truth", *more) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cifar2.truth").exists()


def test_folder_and_file_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("import-dtrak", "import-dattri"):
        assert main(["ground-truth", verb, "--dataset", "cifar2"]) == 2
        assert "--out FILE are needed" in capsys.readouterr().err
        assert main(["ground-truth", verb, "--help"]) == 0
        assert "--data.num_train" in capsys.readouterr().out


def test_dattri(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Digits(num_train=60, num_queries=12)
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(60, generator=generator)[:30] for _ in range(5)])
    values = -torch.rand(5, 12, generator=generator, dtype=torch.float64)
    torch.save(indices, tmp_path / "indices_lds.pt")
    torch.save(values, tmp_path / "target_values_lds.pt")
    out = tmp_path / "ours.truth"
    options = ["--dataset", "digits", "--preset", "smoke", "--workdir", str(tmp_path / "runs")]
    options += ["--data.num_train", "60", "--data.num_queries", "12"]
    assert main(["ground-truth", "import-dattri", str(tmp_path), "--out", str(out), *options]) == 0
    assert "pixel-dot, validation" in capsys.readouterr().out
    bundle = Bundle(out)
    bundle.verify()
    truth = bundle.ground_truth("validation")
    assert truth.masks.tolist() == [[number in row for number in range(60)] for row in indices.tolist()]
    assert torch.equal(truth.outputs, -values)
    assert torch.equal(bundle.train().images, data.train.images)
    run = ["run", "--method", "pixel", "--ground-truth", str(out), "--workdir", str(tmp_path / "runs")]
    assert main([*run, "--dataset", "digits", "--results", str(tmp_path / "results")]) == 0
    (record,) = load_records(tmp_path / "results")
    assert list(record.results) == ["validation"]


def shown(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    """By set, id and pixels in the order of the index."""
    found: dict[str, list[tuple[str, Any]]] = {}
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            with Image.open(folder / row["file"]) as image:
                found.setdefault(row["set"], []).append((row["id"], np.asarray(image).transpose(2, 0, 1)))
    return found


def test_images_that_the_file_does_not_hold_come_from_the_data_set(
    published: Published, imported: Imported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    call = ["ground-truth", "show", str(imported.path), "--workdir", str(tmp_path), "--images", str(folder)]
    root = ["--data.root", str(published.cifar.root)]
    assert main([*call, *root]) == 0
    data, found = data_of(published), shown(folder)
    generated = ImageSet(
        torch.from_numpy(published.generated.transpose(0, 3, 1, 2)),
        tuple(f"generation-{number}" for number in range(NUM_GENERATED)),
    )
    expected = {"train": data.train, "validation": data.validation, "generation": generated}
    assert list(found) == list(expected)
    for name, images in expected.items():
        assert [image_id for image_id, _ in found[name]] == list(images.ids)
        np.testing.assert_array_equal(np.stack([pixels for _, pixels in found[name]]), images.images)
    capsys.readouterr()
    assert main([*call, *root]) == 2
    assert f"--images {folder} is not empty" in capsys.readouterr().err
    elsewhere = ["--images", str(tmp_path / "other"), "--data.num_train", "26"]
    assert main([*call, *root, *elsewhere]) == 1
    assert "is of other train images" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_without_a_folder_it_says_what_it_holds(
    imported: Imported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ground-truth", "show", str(imported.path), "--workdir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for part in ("cifar2, preset paper", "validation: 10 queries", "target model: not held"):
        assert part in printed
    assert main(["ground-truth", "show", "nothing", "--workdir", str(tmp_path)]) == 2
    assert "There is no ground truth 'nothing'" in capsys.readouterr().err
