"""What ``attribench status`` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from humanize import naturalsize

from attribench.data import ImageSet
from attribench.store.artifacts import ArtifactStore
from attribench.store.journal import Journal
from attribench.truth.experiment import Experiment
from attribench.truth.jobs import Job

#: Processes that are named, those that made most first.
_SHOWN = 12


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
    if not experiment.plan():
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
    measured = [job for row in experiment.loss_jobs(experiment.validation) for job in row]
    if generated:
        images = experiment.generated_images(generated)
        lines.append(f"  losses on generation  {_losses(experiment, images)}")
        measured += [job for row in experiment.loss_jobs(images) for job in row]
    return [*lines, *_at_work(store, [experiment.target, *jobs, *measured]), *_disk_lines(store)]


def _at_work(store: ArtifactStore, jobs: Sequence[Job]) -> list[str]:
    """Who made how much of it, and is at what now."""
    claimed = list(store.makers())
    names = {
        store.claim_name(*output): job.name for job in jobs if claimed and (output := job.output(store)) is not None
    }
    now: dict[str, list[str]] = {}
    others: dict[str, Counter[str]] = {}
    for claim, who in claimed:
        named = now.setdefault(who, [])
        if claim in names:
            named.append(names[claim])
        else:
            others.setdefault(who, Counter())[claim.rpartition("-")[0]] += 1
    for who, kinds in others.items():  # of another plan (counterfactual, removals), a method, or another data set
        now[who] += [f"{count} of {kind}" for kind, count in sorted(kinds.items())]
    lines = [f"  {who}: {', '.join(found)}" for who, found in sorted(now.items())]
    made = Counter(entry.doer for entry in Journal(store.root).entries())
    lines = ["At work (all data sets):", *lines] if lines else []
    if made:
        shown = made.most_common(_SHOWN)
        lines += [f"Made by {len(made)} process{'es' if len(made) > 1 else ''} (all data sets):"]
        lines += [f"  {doer}: {count}" for doer, count in shown]
        if len(made) > len(shown):
            lines.append(f"  and {len(made) - len(shown)} more: {made.total() - sum(count for _, count in shown)}")
    return lines


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
