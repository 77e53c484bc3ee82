"""Reads the ground truth of dattri's benchmarks, which is kept in two tensors.

``target_values_lds.pt`` is ``(num_subsets, num_queries)``: the negated loss on each test sample, averaged over the models
retrained on a subset. ``indices_lds.pt`` is ``(num_subsets, subset_size)``: the positions of a subset's samples in the train
set. How many train samples there are is in neither.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attribench.errors import DataError
from attribench.truth.published.imported import ImportedTruth


def read_dattri(folder: Path, *, num_train: int | None = None) -> ImportedTruth:
    """Return the ground truth in ``folder``, with the test samples as query set ``"validation"``.

    It is averaged over seeds already and knows no noise draws and no timesteps: these axes have length 1. Target values are
    turned back into losses.

    Args:
        folder: holds ``indices_lds.pt`` and ``target_values_lds.pt``.
        num_train: the number of train samples; may be left out where every one is in some subset.

    Raises:
        DataError: a file is missing, damaged or holds anything but a tensor, or the tensors do not fit each other or
            ``num_train``.
    """
    values_file, indices_file = folder / "target_values_lds.pt", folder / "indices_lds.pt"
    values, indices = _read_matrix(values_file), _read_matrix(indices_file)
    if not values.is_floating_point() or not values.isfinite().all():
        raise DataError(f"{values_file} does not hold finite target values, (num_subsets, num_queries).")
    if indices.dtype not in (torch.int32, torch.int64) or indices.min() < 0:
        raise DataError(f"{indices_file} does not hold indices, which are integers from 0, (num_subsets, subset_size).")
    num_subsets, num_queries = values.shape
    if len(indices) != num_subsets:
        raise DataError(f"{values_file} is of {num_subsets} subsets, but {indices_file.name} of {len(indices)}.")
    positions = indices.long().numpy()
    needed = int(positions.max()) + 1
    if num_train is None:
        num_train = len(np.unique(positions))
        if num_train < needed:
            raise DataError(
                f"{indices_file}: of the first {needed} train samples some are in no subset; give num_train."
            )
    if num_train < needed:
        raise DataError(f"{indices_file} holds the index {needed - 1}, which {num_train} train samples do not reach.")
    masks = np.zeros((num_subsets, num_train), np.bool_)
    np.put_along_axis(masks, positions, True, axis=1)
    if (masks.sum(axis=1) < positions.shape[1]).any():
        raise DataError(f"{indices_file} holds an index twice in one subset.")
    return ImportedTruth(
        masks=masks,
        train_indices=np.arange(num_train),
        losses={"validation": -_kept(values).numpy().reshape(num_subsets, 1, 1, 1, num_queries)},
        query_indices={"validation": np.arange(num_queries)},
        subsets=tuple(range(num_subsets)),
        seeds=(0,),
        draws=(0,),
        bands=(range(0),),
    )


def _kept(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _read_matrix(file: Path) -> Tensor:
    if not file.is_file():
        raise DataError(f"There is no file {file}.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"asks for {name[1]}, which is no tensor" if name else "is no file of a tensor, or is damaged or cut short"
        )
        raise DataError(f"{file} {why}.") from error
    if not isinstance(content, Tensor) or content.ndim != 2 or not content.numel():
        raise DataError(f"{file} does not hold a matrix.")
    if content.layout is not torch.strided or content.is_meta or content.is_quantized:
        raise DataError(f"{file} does not hold a plain matrix, but a sparse, quantized or empty one.")
    if content.numel() * content.element_size() > file.stat().st_size:  # one row, repeated without end
        raise DataError(f"{file} holds fewer values than it says.")
    return content.detach()
