"""Tensors as dattri's benchmarks keep them, written here and read again."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attribench.errors import DataError
from attribench.truth.published.dattri_files import read_dattri

INDICES = torch.tensor([[4, 0, 2], [1, 2, 3], [5, 1, 0], [2, 5, 4]])  # of six train samples
VALUES = -torch.rand(4, 5, generator=torch.Generator().manual_seed(0))  # negated losses on five test samples


def write(folder: Path, values: object = VALUES, indices: object = INDICES) -> Path:
    torch.save(values, folder / "target_values_lds.pt")
    torch.save(indices, folder / "indices_lds.pt")
    return folder


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read_dattri(folder, **options)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_losses_and_masks(tmp_path: Path) -> None:
    truth = read_dattri(write(tmp_path))
    losses = truth.losses["validation"]
    assert losses.dtype == np.float32
    assert losses.shape == (4, 1, 1, 1, 5)
    np.testing.assert_array_equal(losses[:, 0, 0, 0], [[-value for value in row] for row in VALUES.tolist()])
    np.testing.assert_array_equal(truth.masks, [[n in row for n in range(6)] for row in INDICES.tolist()])
    np.testing.assert_array_equal(truth.train_indices, range(6))
    np.testing.assert_array_equal(truth.query_indices["validation"], range(5))
    assert (truth.subsets, truth.seeds, truth.draws, truth.bands) == ((0, 1, 2, 3), (0,), (0,), (range(0),))


def test_float64_stays(tmp_path: Path) -> None:
    values = VALUES.double() + 1e6 + 1e-3 * torch.arange(VALUES.numel(), dtype=torch.float64).view(VALUES.shape)
    losses = read_dattri(write(tmp_path, values=values)).losses["validation"]
    np.testing.assert_array_equal(losses.reshape(VALUES.shape), -values.numpy())


def test_train_samples_in_no_subset(tmp_path: Path) -> None:
    truth = read_dattri(write(tmp_path), num_train=8)
    assert truth.masks.shape == (4, 8)
    assert not truth.masks[:, 6:].any()
    write(tmp_path, indices=INDICES + 1)
    assert "some are in no subset; give num_train" in refusal(tmp_path)
    write(tmp_path, indices=INDICES * 2**50)  # too many to make masks of
    assert "some are in no subset; give num_train" in refusal(tmp_path)


def test_too_few_train_samples(tmp_path: Path) -> None:
    assert "holds the index 5, which 5 train samples do not reach" in refusal(write(tmp_path), num_train=5)


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "integer values": ({"values": INDICES}, "finite target values"),
    "NaN": ({"values": VALUES.where(VALUES.ne(VALUES.max()), torch.nan)}, "finite target values"),
    "complex": ({"values": VALUES.to(torch.complex64)}, "finite target values"),
    "no matrix": ({"values": VALUES[0]}, "does not hold a matrix"),
    "nothing": ({"values": VALUES[:, :0]}, "does not hold a matrix"),
    "no tensor": ({"indices": INDICES.tolist()}, "does not hold a matrix"),
    "sparse": ({"values": VALUES.to_sparse()}, "sparse"),
    "without values": ({"values": VALUES.to("meta")}, "sparse"),
    "expanded": ({"values": torch.zeros(1, 1).expand(2**20, 2**20)}, "fewer values than it says"),
    "float indices": ({"indices": INDICES.float()}, "does not hold indices"),
    "negative indices": ({"indices": INDICES - 1}, "does not hold indices"),
    "subsets": ({"indices": INDICES[:3]}, "is of 4 subsets, but indices_lds.pt of 3"),
    "twice": ({"indices": torch.cat([INDICES, INDICES[:, :1]], 1)}, "an index twice"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_refused_by_file(tmp_path: Path, name: str) -> None:
    change, complaint = WRONG[name]
    assert complaint in refusal(write(tmp_path, **change))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path)
    write(tmp_path)
    content = (tmp_path / "indices_lds.pt").read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2]):
        (tmp_path / "indices_lds.pt").write_bytes(damaged)
        assert "damaged or cut short" in refusal(tmp_path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_hostile_files_are_refused_by_name(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    write(tmp_path, indices=Bomb(mark))
    assert f"{tmp_path / 'indices_lds.pt'} asks for {os.mkdir.__module__}.mkdir" in refusal(tmp_path)
    assert not mark.exists()
    torch.load(tmp_path / "indices_lds.pt", weights_only=False)
    assert mark.exists()
