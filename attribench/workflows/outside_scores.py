"""Scores that other code computed, read from a file and filed as a row beside the methods' own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribench.computing.progress import Progress
from attribench.configuration.resolution import Config
from attribench.errors import DataError, UsageError, nearest
from attribench.method import real_scores
from attribench.records.files import load_attachment
from attribench.records.lds import QuerySetResult, Record, load_records, save_record
from attribench.settings import QUERY_SETS, Runtime
from attribench.truth.experiment import Experiment
from attribench.workflows.evaluation import Evaluation
from attribench.workflows.opening import lds_description, open_experiment
from attribench.workflows.scoring import versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The formats that are read, by suffix.
FORMATS = (".npy", ".npz", ".parquet")


def score_files(
    config: Config, files: Mapping[str, Path], name: str, runtime: Runtime, results: Path, progress: Progress
) -> tuple[Record, Path]:
    """Evaluate scores from files by LDS, and file the record under ``results``.

    What the method looked at, what it cost and what it was tuned on is not known, and the record says so. Where a row of
    the same name and setting has the other query set, it keeps it, and ``progress`` says so.

    Args:
        files: a file for each query set, see :func:`read_scores`.
        name: the row's.

    Raises:
        UsageError: no such query set; the name is that of a method that was run here.
        DataError: a file is not readable, or its scores do not fit.
    """
    for query_set in files:
        if query_set not in QUERY_SETS:
            raise UsageError(
                f"Unknown --query-set {query_set!r}.{nearest(query_set, QUERY_SETS)} Known: {', '.join(QUERY_SETS)}."
            )
    experiment = open_experiment(config, runtime, progress)
    scores = {
        query_set: read_scores(path, experiment.query_ids(query_set), experiment.train.ids)
        for query_set, path in files.items()
    }
    identity = lds_description(config, experiment)
    earlier = _earlier(results, experiment.label, identity["setting_hash"], name)
    experiment.prepare()
    parts = {query_set: Evaluation.reported(experiment, query_set) for query_set in scores}
    found = {query_set: part.evaluate(scores[query_set], by_band=True) for query_set, part in parts.items()}
    tensors: dict[str, Tensor] = {}
    shown = experiment.train if config.files_images else None
    for query_set, part in parts.items():
        tensors.update(part.attached(scores[query_set], shown))
    if earlier is not None:
        kept = _kept(earlier, experiment, found)
        beside = load_attachment(earlier, results) or {}
        tensors.update(
            {
                key: value
                for key, value in beside.items()
                if key.partition(".")[0] in kept and (config.files_images or ".gallery." not in key)
            }
        )
        found.update(kept)
        for query_set in kept:
            progress.message(f"{name}: its {query_set} scores of {earlier.created} stay in the row.")
    record = Record(
        **identity,
        method=name,
        method_class="",
        options={},
        access="UNKNOWN",
        tuned_on="unknown",
        versions=versions(),
        hardware={},
        results={query_set: found[query_set] for query_set in QUERY_SETS if query_set in found},
        cost=None,
    )
    return save_record(record, results, tensors, progress)


def read_scores(path: Path, query_ids: Sequence[str], train_ids: Sequence[str]) -> Tensor:
    """Read scores from a file.

    ``.npy``: an array ``(num_queries, num_train)``. ``.npz``: the same as ``scores``, and optionally the names of its rows and
    columns as ``query_ids`` and ``train_ids``, which then decide the order. ``.parquet``: a row a score, with columns
    ``query``, ``train``, ``score``, in any order.

    Args:
        query_ids: the query set's, in order.
        train_ids: the train images', in order.

    Returns:
        float32 or float64 ``(num_queries, num_train)``; see :func:`attribench.method.real_scores`.

    Raises:
        UsageError: another format.
        DataError: it cannot be read, or its shape, ids or values do not fit; names the difference.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: scores are read from {', '.join(FORMATS)} files.")
    array, rows, columns = _parquet(path) if path.suffix == ".parquet" else _numpy(path)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise DataError(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}; expected numbers of shape "
            f"({len(query_ids)}, {len(train_ids)}): queries × train images."
        )
    order = [
        _order(path, what, given, ids)
        for what, given, ids in (("query", rows, query_ids), ("train", columns, train_ids))
    ]
    expected = (len(query_ids), len(train_ids))
    if array.shape != expected:
        turned = " It is the transpose: save scores.T." if array.shape == expected[::-1] else ""
        raise DataError(f"{path} has shape {array.shape}; expected {expected}: queries × train images.{turned}")
    for axis, indices in enumerate(order):
        if indices is not None:
            array = array.take(indices, axis)
    unknown = array.dtype.kind == "u" or array.dtype.itemsize > 8  # to torch
    native = array.astype("float64" if unknown else array.dtype.newbyteorder("="), copy=True)
    scores = real_scores(torch.from_numpy(native))
    if not torch.isfinite(scores).all():
        query, image = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise DataError(
            f"{path} is {scores[query, image]} for query {query_ids[query]!r} and train image {train_ids[image]!r}: every "
            "score must be a finite number."
        )
    return scores


_Read = tuple["NDArray[Any]", list[str] | None, list[str] | None]


def _numpy(path: Path) -> _Read:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            return found, None, None
        with found:
            if "scores" not in found:
                raise DataError(f"{path} has no array 'scores'; it has: {', '.join(found) or 'none'}.")
            ids = [
                [str(i) for i in found[key].tolist()] if key in found else None for key in ("query_ids", "train_ids")
            ]
            return found["scores"], ids[0], ids[1]
    except DataError:
        raise
    except Exception as error:  # numpy names no set of errors for damaged files
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _parquet(path: Path) -> _Read:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except Exception as error:  # those of the engine, of the file system, of damaged files
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [name for name in ("query", "train", "score") if name not in table.columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; expected columns query, train, score.")
    double = table.duplicated(["query", "train"])
    if double.any():
        query, train = next(zip(table["query"][double], table["train"][double], strict=True))
        raise DataError(f"{path} has two scores for query {query!r} and train image {train!r}.")
    rows, columns = table["query"].unique(), table["train"].unique()
    if len(table) != len(rows) * len(columns):
        there = set(zip(table["query"], table["train"], strict=True))
        query, train = next(pair for pair in itertools.product(rows, columns) if pair not in there)
        raise DataError(f"{path} has no score for query {query!r} and train image {train!r}.")
    wide = table.pivot(index="query", columns="train", values="score")
    return wide.to_numpy(), [str(i) for i in wide.index], [str(i) for i in wide.columns]


def _order(path: Path, what: str, given: list[str] | None, ids: Sequence[str]) -> NDArray[np.intp] | None:
    """Where in the file each image's scores are; None where the file does not say."""
    import numpy as np

    if given is None:
        return None
    where = {name: number for number, name in enumerate(given)}
    unknown, missing = sorted(where.keys() - set(ids)), [name for name in ids if name not in where]
    if unknown or missing or len(where) != len(given):
        wrong = f"a {what} id twice"
        if unknown or missing:
            wrong = f"{what} id {unknown[0]!r}, which is not known" if unknown else f"no {what} id {missing[0]!r}"
        raise DataError(f"{path} has {wrong}; it has {len(given)} {what} ids, and this data set {len(ids)}.")
    return np.array([where[name] for name in ids])


def _earlier(results: Path, dataset: str, setting: str, name: str) -> Record | None:
    """The row that has this name already.

    Raises:
        UsageError: it is a method's that was run here.
    """
    for record in load_records(results, [dataset]):
        if (record.setting_hash, record.method, record.protocol) == (setting, name, "standard"):
            if record.access != "UNKNOWN":
                raise UsageError(
                    f"--name {name}: {results} has a row of {record.method_class} called so; choose another."
                )
            return record
    return None


def _kept(earlier: Record, experiment: Experiment, found: Mapping[str, QuerySetResult]) -> dict[str, QuerySetResult]:
    """The results of an earlier row on other query sets, where they rest on the same ground truth."""
    return {
        query_set: result
        for query_set, result in earlier.results.items()
        if query_set not in found and result.ground_truth_hash == experiment.ground_truth(query_set).hash
    }
