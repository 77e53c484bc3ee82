"""Files of D-TRAK's layout, written here, read again and compared with what pickle and numpy make of them in float64."""

import itertools
import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dtrak_layout import INDICES, LOSSES, write, write_losses

from attribench.errors import DataError, UsageError
from attribench.truth.published.dtrak_files import read_dtrak
from attribench.truth.published.imported import ImportedTruth

TRAIN = [907, 12, 45321, 3, 30000, 8, 77, 5, 41, 2000, 600, 9]  # rows of the data set, in no order
VALIDATION = [71, 5, 900, 33, 2, 8, 1]


@dataclass(frozen=True)
class Written:
    """A folder and what was written to it; ``shape`` is (subsets, seeds, draws)."""

    folder: Path
    subsets: list[list[int]]
    shape: tuple[int, int, int]

    def losses_file(self, subset: int, seed: int, draw: int, kind: str) -> Path:
        return self.folder / LOSSES / f"ddpm-sub-{subset}-{seed}" / f"e-{draw}-{kind}.pkl"

    def subset_file(self, subset: int) -> Path:
        return self.folder / INDICES / "lds-val" / f"sub-idx-{subset}.pkl"


def write_truth(folder: Path, shape: tuple[int, int, int]) -> Written:
    generator = np.random.default_rng(0)
    written = Written(folder, [generator.choice(TRAIN, 6, replace=False).tolist() for _ in range(shape[0])], shape)
    write(folder / INDICES / "idx-train.pkl", TRAIN)
    write(folder / INDICES / "idx-val.pkl", VALIDATION)
    write(folder / INDICES / "lds-test" / "sub-idx-0.pkl", [1])  # of no interest
    for subset, indices in enumerate(written.subsets):
        write(written.subset_file(subset), indices)
    for cell, kind in itertools.product(cells(shape), ("val", "gen")):
        losses = generator.gamma(2, 0.01, (1000, 7)).astype(np.float32)
        write_losses(written.losses_file(*cell, kind), losses, as_lists=cell == (2, 1, 0))
    return written


def cells(shape: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    subsets, seeds, draws = map(range, shape)
    return itertools.product(subsets, seeds, draws)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_truth(tmp_path_factory.mktemp("published"), (6, 2, 3))


@pytest.fixture(scope="module")
def truth(published: Written) -> ImportedTruth:
    return read_dtrak(published.folder)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A small one, to be damaged."""
    return write_truth(tmp_path / "CIFAR2", (3, 1, 2))


def read_independently(written: Written, kind: str) -> Any:
    """Losses in float64, ``(num_subsets, num_seeds, num_draws, 1000, num_queries)``."""
    losses = np.empty((*written.shape, 1000, 7))
    for cell in cells(written.shape):
        losses[cell] = np.concatenate(pickle.loads(written.losses_file(*cell, kind).read_bytes()), axis=-1)
    return losses


@pytest.mark.parametrize(("query_set", "kind"), [("validation", "val"), ("generation", "gen")])
def test_losses_equal_an_independent_reading(
    published: Written, truth: ImportedTruth, query_set: str, kind: str
) -> None:
    losses = read_independently(published, kind)
    bands = np.stack([losses[..., start : start + 100, :].mean(axis=-2) for start in range(0, 1000, 100)], axis=-2)
    assert truth.losses[query_set].dtype == np.float32
    np.testing.assert_allclose(truth.losses[query_set], bands, rtol=6e-8)  # half a unit in the last place of float32
    # Averaged over bands, draws and seeds it is the output of the published evaluation: (subsets, queries).
    outputs = truth.losses[query_set].mean(axis=(1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(outputs, losses.mean(axis=(1, 2, 3)), rtol=6e-8)


def test_masks_follow_the_order_of_the_train_images(published: Written, truth: ImportedTruth) -> None:
    assert truth.masks.dtype == np.bool_
    np.testing.assert_array_equal(truth.masks, [[index in subset for index in TRAIN] for subset in published.subsets])


def test_axes_are_named(truth: ImportedTruth) -> None:
    np.testing.assert_array_equal(truth.train_indices, TRAIN)
    np.testing.assert_array_equal(truth.query_indices["validation"], VALIDATION)
    np.testing.assert_array_equal(truth.query_indices["generation"], range(7))
    assert (truth.subsets, truth.seeds, truth.draws) == ((0, 1, 2, 3, 4, 5), (0, 1), (0, 1, 2))
    assert list(itertools.chain(*truth.bands)) == list(range(1000))


@pytest.mark.parametrize("num_bands", [1, 4])
def test_other_numbers_of_bands(written: Written, num_bands: int) -> None:
    found = read_dtrak(written.folder, num_bands=num_bands).losses["validation"]
    means = read_independently(written, "val").reshape(*written.shape, num_bands, -1, 7).mean(axis=-2)
    np.testing.assert_allclose(found, means, rtol=6e-8)


def test_bands_are_averaged_in_float64(written: Written) -> None:
    losses = np.full((1000, 7), 1e-8, np.float32)
    losses[0] = 1.0  # in float32, 1 + 1e-8 is 1
    write_losses(written.losses_file(0, 0, 0, "val"), losses)
    found = read_dtrak(written.folder).losses["validation"][0, 0, 0, 0]
    np.testing.assert_allclose(found, (1 + 99 * np.float64(np.float32(1e-8))) / 100, rtol=6e-8)


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    write(tmp_path / INDICES / "idx-train.pkl", TRAIN)
    losses = np.ones((1000, 400), np.float32)
    for subset in range(10):
        write(tmp_path / INDICES / "lds-val" / f"sub-idx-{subset}.pkl", TRAIN[:6])
        write_losses(tmp_path / LOSSES / f"ddpm-sub-{subset}-0" / "e-0-gen.pkl", losses, batch_size=100)
    tracemalloc.start()
    try:
        read_dtrak(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * losses.nbytes  # a file, what was read of it, and the ten means


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read_dtrak(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_counted_and_the_first_is_named(written: Written) -> None:
    written.losses_file(0, 0, 1, "gen").unlink()
    written.losses_file(2, 0, 0, "val").unlink()
    written.subset_file(2).unlink()
    message = refusal(written.folder)
    assert f"lacks 3 files, the first of them {LOSSES}/ddpm-sub-0-0/e-1-gen.pkl" in message
    assert "1 of 3 subsets are complete" in message


def test_complete_subsets_alone(written: Written) -> None:
    whole = read_dtrak(written.folder)
    written.losses_file(1, 0, 1, "gen").unlink()
    part = read_dtrak(written.folder, complete_only=True)
    assert part.subsets == (0, 2)
    np.testing.assert_array_equal(part.masks, whole.masks[[0, 2]])
    for query_set in ("validation", "generation"):
        np.testing.assert_array_equal(part.losses[query_set], whole.losses[query_set][[0, 2]])


def test_a_subset_without_any_file_is_missing(written: Written) -> None:
    for draw, kind in itertools.product(range(2), ("val", "gen")):
        written.losses_file(1, 0, draw, kind).unlink()
    assert "lacks 4 files" in refusal(written.folder)


def test_no_complete_subset(written: Written) -> None:
    for subset in range(3):
        written.subset_file(subset).unlink()
    assert "0 of 3 subsets are complete" in refusal(written.folder, complete_only=True)


def test_one_query_set_is_enough(written: Written) -> None:
    for cell in cells(written.shape):
        written.losses_file(*cell, "val").unlink()
    (written.folder / INDICES / "idx-val.pkl").unlink()
    assert list(read_dtrak(written.folder).losses) == ["generation"]


def test_missing_index_files_are_named(written: Written) -> None:
    for name in ("idx-val.pkl", "idx-train.pkl"):
        (written.folder / INDICES / name).unlink()
        assert f"There is no file {written.folder / INDICES / name}" in refusal(written.folder)


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no saved/*/lds-val" in refusal(tmp_path)
    (tmp_path / LOSSES / "ddpm-sub-0-0").mkdir(parents=True)
    assert f"{tmp_path / LOSSES} holds no losses" in refusal(tmp_path)
    (tmp_path / LOSSES / "ddpm-sub-0-0" / "e-1-t-1000-val.pkl").touch()  # another evaluation
    assert f"{tmp_path / LOSSES} holds no losses" in refusal(tmp_path)


def test_several_settings(written: Written) -> None:
    (written.folder / "saved" / "5000-0.1" / "lds-val").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"several settings: say which of 5000-0\.1, 5000-0\.5"):
        read_dtrak(written.folder)
    assert read_dtrak(written.folder, setting="5000-0.5").subsets == (0, 1, 2)


@pytest.mark.parametrize("num_bands", [0, -10, 3])
def test_bands_of_unequal_width(tmp_path: Path, num_bands: int) -> None:
    with pytest.raises(UsageError, match=f"cannot be divided into {num_bands} bands"):
        read_dtrak(tmp_path, num_bands=num_bands)


def good() -> Any:
    return np.ones((1000, 7), np.float32)


SHARED = np.ones((1000, 100), np.float32)
WRONG_LOSSES = {
    "no list": ({"losses": good()}, "no list of batches"),
    "no batch": ([], "no list of batches"),
    "timesteps": ([good()[:999]], "batch 0 is not 1000 timesteps"),
    "other type": ([good(), good().astype("f8")], "batch 1 is not 1000 timesteps of float32"),
    "numbers": ([[0.5] * 1000], "batch 0 is not"),
    "ragged": ([[np.ones(7 - step % 2, np.float32) for step in range(1000)]], "batch 0 is not"),
    "one axis": ([good()[:, 0]], "batch 0 is not"),
    "three axes": ([good()[:, None]], "batch 0 is not"),
    "no query": ([good()[:, :0]], "batch 0 is not"),
    "NaN": ([np.where(np.arange(7) == 3, np.nan, good()).astype(np.float32)], "NaN or infinite"),
    "infinite": ([good() * np.float32(np.inf)], "NaN or infinite"),
    "fewer queries": ([good()[:, :6]], "holds losses on 6 queries, where 7 are expected"),
    "more queries": ([good(), good()], "holds losses on 14 queries, where 7 are expected"),
    "one array many times": ([SHARED] * 1000, "more losses than it holds"),
    "one step many times": ([[SHARED[0]] * 1000], "more losses than it holds"),
}


@pytest.mark.parametrize("kind", ["val", "gen"])
@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_wrong_losses_are_refused_by_file(written: Written, name: str, kind: str) -> None:
    content, complaint = WRONG_LOSSES[name]
    file = written.losses_file(1, 0, 1, kind)
    write(file, content)
    message = refusal(written.folder)
    assert message.startswith(str(file))
    assert complaint in message


WRONG_INDICES = {
    "no list": (tuple(TRAIN[:6]), "no list of indices"),
    "floats": ([1.0, 2.0], "no list of indices"),
    "truth values": ([True, False], "no list of indices"),
    "nested": ([[1], [2]], "no list of indices"),
    "negative": ([3, -1], "no list of indices"),
    "huge": ([3, 2**63], "no list of indices"),
    "empty": ([], "no index"),
    "twice": ([3, 9, 3], "an index twice"),
    "foreign": ([3, 9, 10, 11], "holds 2 indices that idx-train.pkl lacks, the first of them 10"),
}


@pytest.mark.parametrize("name", WRONG_INDICES)
def test_wrong_indices_are_refused_by_file(written: Written, name: str) -> None:
    content, complaint = WRONG_INDICES[name]
    file = written.subset_file(2)
    write(file, content)
    message = refusal(written.folder)
    assert message.startswith(str(file))
    assert complaint in message


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


def test_hostile_files_are_refused_wherever_they_are(written: Written, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    indices = [written.folder / INDICES / f"idx-{name}.pkl" for name in ("train", "val")]
    for file in [*indices, written.subset_file(2), written.losses_file(2, 0, 1, "gen")]:
        content = file.read_bytes()
        write(file, [Bomb(mark)])
        assert f"{file} asks for" in refusal(written.folder)
        file.write_bytes(content)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()
