"""Reads the ground truth that D-TRAK's authors published, in the layout that their code writes.

Below the folder of a data set (``CIFAR2``, say), with ``5000-0.5`` for its setting (number of train images, share kept)::

    data/indices/5000-0.5/idx-train.pkl               the train images: rows of the data set's own train split (CelebA: of all)
    data/indices/5000-0.5/idx-val.pkl                 the validation queries: rows of its test split (CelebA: of all)
    data/indices/5000-0.5/lds-val/sub-idx-{k}.pkl     the images of subset k: rows as in idx-train.pkl, not positions in it
    saved/5000-0.5/lds-val/ddpm-sub-{k}-{seed}/e-{draw}-{val,gen}.pkl    losses of the model trained on subset k

Index files are lists of ``int``. A file of losses is a list over batches of queries; each batch is a list over the 1000
timesteps of float32 arrays ``(batch,)``, or one array ``(1000, batch)``. Losses are mean squared errors: higher is worse.
Generated query i is the image ``saved/5000-0.5/gen/{i}.png``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attribench.computing.progress import Progress, silent_progress
from attribench.errors import DataError, UsageError
from attribench.truth.published.imported import ImportedTruth, Indices
from attribench.truth.published.safe_pickle import read_plain_pickle

NUM_TIMESTEPS = 1000
_SUFFIXES = {"validation": "val", "generation": "gen"}
_LOSS_FILE = re.compile(r"ddpm-sub-([0-9]{1,4})-([0-9]{1,4})/e-([0-9]{1,4})-(val|gen)\.pkl")


def read_dtrak(
    folder: Path,
    *,
    setting: str | None = None,
    num_bands: int = 10,
    complete_only: bool = False,
    progress: Progress = silent_progress,
    accept: Callable[[Mapping[str, Indices]], object] = lambda indices: None,
) -> ImportedTruth:
    """Return the ground truth below ``folder``, holding one file of losses in memory at a time.

    Which query sets, subsets, seeds and noise draws there are is taken from the names of the files. Every combination must
    be there, for every subset up to the highest number. That the highest ones are absent altogether cannot be seen here:
    compare ``subsets`` with what was published (64).

    Args:
        folder: the folder of one data set, which holds ``saved`` and ``data``.
        setting: the name below ``saved`` and ``data/indices``; may be left out where there is but one.
        num_bands: how many bands of equal width the 1000 timesteps are averaged in.
        complete_only: leave out the subsets of which a file is missing, rather than refuse.
        progress: shows how many files are read.
        accept: given the indices of the train images (``"train"``) and of ``"validation"`` before any losses are read,
            which takes minutes; it may raise.

    Raises:
        UsageError: 1000 is no multiple of ``num_bands``, or there are several settings and none is named.
        DataError: a file is missing, damaged or not of this layout, contradicts another, or asks for more than data (see
            :func:`~attribench.truth.published.safe_pickle.read_plain_pickle`).
    """
    if num_bands < 1 or NUM_TIMESTEPS % num_bands:
        raise UsageError(f"{NUM_TIMESTEPS} timesteps cannot be divided into {num_bands} bands of equal width.")
    layout = _find_layout(folder, setting or _only_setting(folder))
    subsets = _subsets_to_read(layout, complete_only)
    train = _read_indices(layout.index_file("idx-train"))
    masks = np.stack([_read_mask(layout.subset_file(subset), train) for subset in subsets])
    queries: dict[str, Indices] = {}
    if "validation" in layout.query_sets:
        queries["validation"] = _read_indices(layout.index_file("idx-val"))
    accept({"train": train, **queries})
    losses: dict[str, npt.NDArray[np.float32]] = {}
    cells = list(itertools.product(subsets, layout.seeds, layout.draws))
    with progress.task("Reading losses", len(cells) * len(layout.query_sets)) as task:
        for query_set in layout.query_sets:
            means = []
            for cell in cells:
                file = layout.loss_file(query_set, *cell)
                means.append(_read_band_means(file, num_bands))
                found = means[-1].shape[1]
                # How many queries were generated is said by nothing but the losses.
                expected = len(queries.setdefault(query_set, np.arange(found)))
                if found != expected:
                    raise DataError(f"{file} holds losses on {found} queries, where {expected} are expected.")
                task.advance()
            shape = (len(subsets), len(layout.seeds), len(layout.draws), num_bands, -1)
            losses[query_set] = np.stack(means).reshape(shape)
    width = NUM_TIMESTEPS // num_bands
    bands = tuple(range(start, start + width) for start in range(0, NUM_TIMESTEPS, width))
    return ImportedTruth(masks, train, losses, queries, subsets, layout.seeds, layout.draws, bands)


def generated_files(folder: Path, setting: str | None = None) -> list[Path]:
    """The images of the generated queries, from the first up to where one is missing; none where they were not published.

    Args:
        folder: as in :func:`read_dtrak`.
        setting: likewise.
    """
    images = folder / "saved" / (setting or _only_setting(folder)) / "gen"
    numbered = (images / f"{number}.png" for number in itertools.count())
    return list(itertools.takewhile(Path.is_file, numbered))


@dataclass(frozen=True)
class _Layout:
    """Where the files of one setting are, and which models and losses their names speak of."""

    folder: Path
    setting: str
    query_sets: tuple[str, ...]
    subsets: tuple[int, ...]
    seeds: tuple[int, ...]
    draws: tuple[int, ...]

    def index_file(self, name: str) -> Path:
        return self.folder / "data" / "indices" / self.setting / f"{name}.pkl"

    def subset_file(self, subset: int) -> Path:
        return self.index_file(f"lds-val/sub-idx-{subset}")

    def loss_file(self, query_set: str, subset: int, seed: int, draw: int) -> Path:
        model = self.folder / "saved" / self.setting / "lds-val" / f"ddpm-sub-{subset}-{seed}"
        return model / f"e-{draw}-{_SUFFIXES[query_set]}.pkl"

    def files_of(self, subset: int) -> list[Path]:
        cells = itertools.product(self.query_sets, [subset], self.seeds, self.draws)
        return [self.subset_file(subset), *(self.loss_file(*cell) for cell in cells)]


def _only_setting(folder: Path) -> str:
    settings = sorted(models.parent.name for models in folder.glob("saved/*/lds-val"))
    if not settings:
        raise DataError(f"{folder} holds no saved/*/lds-val: give the folder of one data set, such as D-TRAK's CIFAR2.")
    if len(settings) > 1:
        raise UsageError(f"{folder} holds several settings: say which of {', '.join(settings)} to read.")
    return settings[0]


def _find_layout(folder: Path, setting: str) -> _Layout:
    models = folder / "saved" / setting / "lds-val"
    names = (path.relative_to(models).as_posix() for path in models.glob("ddpm-sub-*-*/e-*-*.pkl"))
    found = [match.groups() for match in map(_LOSS_FILE.fullmatch, names) if match]
    if not found:
        raise DataError(f"{models} holds no losses, which would be files such as ddpm-sub-0-0/e-0-val.pkl.")
    subsets, seeds, draws, suffixes = (set(values) for values in zip(*found, strict=True))
    return _Layout(
        folder,
        setting,
        query_sets=tuple(name for name, suffix in _SUFFIXES.items() if suffix in suffixes),
        subsets=tuple(range(max(map(int, subsets)) + 1)),
        seeds=tuple(sorted(map(int, seeds))),
        draws=tuple(sorted(map(int, draws))),
    )


def _subsets_to_read(layout: _Layout, complete_only: bool) -> tuple[int, ...]:
    missing = {subset: [file for file in layout.files_of(subset) if not file.is_file()] for subset in layout.subsets}
    complete = tuple(subset for subset in layout.subsets if not missing[subset])
    absent = [file for files in missing.values() for file in files]
    if absent and not (complete_only and complete):
        raise DataError(
            f"{layout.folder} lacks {len(absent)} files, the first of them {absent[0].relative_to(layout.folder)}; "
            f"{len(complete)} of {len(layout.subsets)} subsets are complete."
        )
    return complete


def _read_indices(file: Path) -> Indices:
    values = read_plain_pickle(file)
    if type(values) is not list or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise DataError(f"{file} is no list of indices, which are integers from 0.")
    indices = np.array(values, np.int64)
    if not len(indices) or len(np.unique(indices)) < len(indices):
        raise DataError(f"{file} holds {'an index twice' if len(indices) else 'no index'}.")
    return indices


def _read_mask(file: Path, train: Indices) -> npt.NDArray[np.bool_]:
    indices = _read_indices(file)
    foreign = np.setdiff1d(indices, train)
    if len(foreign):
        raise DataError(
            f"{file} holds {len(foreign)} indices that idx-train.pkl lacks, the first of them {foreign[0]}."
        )
    return np.isin(train, indices)


def _read_band_means(file: Path, num_bands: int) -> npt.NDArray[np.float32]:
    """The losses in a file, averaged in float64 over each band: ``(num_bands, num_queries)``."""
    batches = read_plain_pickle(file)
    if type(batches) is not list or not batches:
        raise DataError(f"{file} is no list of batches of losses.")
    unread = file.stat().st_size
    means = []
    for number, batch in enumerate(batches):
        steps = _timesteps(batch)
        if steps is None:
            raise DataError(f"{file}: batch {number} is not {NUM_TIMESTEPS} timesteps of float32 losses.")
        unread -= sum(step.nbytes for step in steps)
        if unread < 0:  # one array, listed over and over
            raise DataError(f"{file} lists more losses than it holds.")
        means.append(np.stack(steps).reshape(num_bands, -1, len(steps[0])).mean(axis=1, dtype=np.float64))
    result = np.concatenate(means, axis=1).astype(np.float32)
    if not np.isfinite(result).all():
        raise DataError(f"{file} holds losses that are NaN or infinite.")
    return result


def _timesteps(batch: object) -> list[npt.NDArray[np.float32]] | None:
    """A batch as arrays ``(batch,)``, one a timestep, or ``None`` if it is not of the layout."""
    if not isinstance(batch, list) and not (isinstance(batch, np.ndarray) and batch.ndim == 2):
        return None
    if len(batch) != NUM_TIMESTEPS:
        return None
    steps = list(batch)
    of_losses = all(isinstance(step, np.ndarray) and step.dtype == np.float32 and step.ndim == 1 for step in steps)
    return steps if of_losses and len(steps[0]) and len({len(step) for step in steps}) == 1 else None
