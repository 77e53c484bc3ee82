"""What ``attribench status`` shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from humanize import naturalsize

from attribench.data import ImageSet
from attribench.store.artifacts import ArtifactStore
from attribench.truth.experiment import Experiment


def status_lines(experiment: Experiment) -> list[str]:
    """What of an experiment's ground truth is done and what is missing, then the sizes of all that is in the store.

    Looks only; trains and generates nothing.
    """
    store = experiment.store
    if experiment.bundle is not None:
        return [
            f"{experiment.label} in {store.root}: {len(experiment.train)} train images",
            f"  ground truth          {experiment.bundle.header.name} ({experiment.bundle.path}): nothing to retrain",
            *_disk_lines(store),
        ]
    if experiment.lacks_base():
        return [
            f"{experiment.label} in {store.root}: {len(experiment.train)} train images",
            f"  base                  missing ({experiment.settings.model.base}): all else is trained on it",
            *_disk_lines(store),
        ]
    jobs = [job for row in experiment.retrainings for job in row]
    target = experiment.target.find(store)
    missing = [job.name for job in jobs if job.find(store) is None]
    lines = [
        f"{experiment.label} in {store.root}: {len(experiment.train)} train images",
        f"  target model          {'done' if target else 'missing'}",
        f"  subset models         {len(jobs) - len(missing)} of {len(jobs)}{_some(missing)}",
        f"  losses on validation  {_losses(experiment, experiment.validation)}",
    ]
    spec = experiment.generation_spec(target) if target else None
    generated = store.find("generated", spec) if spec else None
    lines.append(f"  generated queries     {'done' if generated else 'missing'}")
    if generated:
        lines.append(f"  losses on generation  {_losses(experiment, experiment.generated_images(generated))}")
    return lines + _disk_lines(store)


def _disk_lines(store: ArtifactStore) -> list[str]:
    lines: list[str] = []
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for artifact in store.artifacts():
        counts[artifact.kind] += 1
        sizes[artifact.kind] += artifact.num_bytes
    if counts:
        lines.append(f"On disk (all data sets), {naturalsize(sum(sizes.values()), binary=True)}:")
        lines += [f"  {kind:<21} {counts[kind]:>5}  {naturalsize(sizes[kind], binary=True)}" for kind in sorted(counts)]
    for folder, meaning in (
        (".work", "unfinished, continued by the next run"),
        (".set-aside", "damaged, may be deleted"),
    ):
        size = _folder_size(store.root / folder)
        if size:
            lines.append(f"  {folder:<21}        {naturalsize(size, binary=True)} ({meaning})")
    return lines


def _losses(experiment: Experiment, queries: ImageSet) -> str:
    jobs = [job for row in experiment.loss_jobs(queries) for job in row]
    done = sum(job.find(experiment.store) is not None for job in jobs)
    return f"{done} of {len(jobs)}"


def _some(names: list[str], most: int = 3) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"  (missing: {'; '.join(names[:most])}{rest})"


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
