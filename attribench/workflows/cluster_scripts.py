"""Scripts that start many processes on a cluster without Ray, with the resources that the model's size asks for."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap

from humanize import naturalsize

from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config
from attribench.settings import Runtime
from attribench.truth.jobs import Job
from attribench.truth.resources import Memory, image_bytes
from attribench.workflows.opening import open_experiment

#: What nobody can count who has not seen the methods at work.
SCORES = (
    "Scores that are not in the store yet are computed by one process while the others wait for it, --lock_timeout at most. "
    "What memory the methods take for that is not counted: raise it, or begin with one process (sbatch --array=1) and start "
    "the others when its scores are there."
)
_ENDED = (
    "A task that is ended by its time limit, a preemption or a node's death loses what it did since its last checkpoint; "
    "others take its work over. Submit the script again until all is done: what is done is found."
)


@dataclass(frozen=True)
class Allotment:
    """What each process is given.

    Attributes:
        cores: CPU cores.
        memory: bytes.
        gpus: 0 or 1.
        gpu_memory: bytes of it that are needed.
        reason: what that comes from, in words.
    """

    cores: int
    memory: int
    gpus: int
    gpu_memory: int
    reason: str

    @classmethod
    def of(cls, config: Config, runtime: Runtime) -> Allotment:
        """For the ground truth's models, which those of other plans are like. What methods need for scores is not in it.

        ``--accelerator gpu`` or ``cuda`` asks for a GPU: whether there is one is not looked at, since scripts are written
        where there often is none.
        """
        cuda = runtime.accelerator in ("gpu", "cuda")
        experiment = open_experiment(config, replace(runtime, accelerator="cpu"), silent_progress)
        experiment.plan()
        target = experiment.target
        losses = experiment.loss_jobs(experiment.validation)[0][0]
        jobs: list[Job] = [target, losses]
        needs = [job.memory(runtime, cuda=cuda) for job in jobs]
        side_by_side = runtime.workers or (runtime.workers_per_gpu if cuda else 1)
        host, device = max(need.host for need in needs), max(need.device for need in needs)
        # With several workers the process that gives out the work is one more; it reads the images and computes nothing.
        images = image_bytes(len(experiment.train) + len(experiment.validation), experiment.train.image_shape)
        parent = Memory.of(0.0, images, cuda=cuda).host if side_by_side > 1 else 0
        count = sum(len(row) for row in experiment.retrainings) + 1
        size = target.size(runtime)
        reason = (
            f"{count} models of {size.parameters:,} parameters. A training with batches of {target.training.batch_size} takes "
            f"{_size(needs[0].host)} of memory{f' and {_size(needs[0].device)} on the GPU' if cuda else ''}, losses in "
            f"batches of {runtime.evaluation_batch} take {_size(needs[1].host)}"
            f"{f' and {_size(needs[1].device)}' if cuda else ''}; {side_by_side} at a time"
            f"{f', and {_size(parent)} for the process that gives them out' if parent else ''}."
        )
        return cls(side_by_side, host * side_by_side + parent, int(cuda), device * side_by_side, reason)


def command_lines(plan: str, options: Sequence[str], runtime: Runtime, shards: int) -> list[str]:
    """The command of each process, to be run anywhere that sees the work directory.

    Args:
        options: the caller's own.
    """
    folder = str(Path(runtime.workdir).absolute())
    workers = [] if runtime.workers or runtime.accelerator in ("gpu", "cuda") else ["--workers", "1"]
    return [
        shlex.join(
            ["attribench", "work", plan, "--shard", f"{number}/{shards}", *options, *workers, "--workdir", folder]
        )
        for number in range(1, shards + 1)
    ]


def slurm_script(plan: str, config: Config, allotment: Allotment, commands: Sequence[str]) -> str:
    """A script for ``sbatch``: an array with a task for each command."""
    count = len(commands)
    scores = [] if plan == "ground-truth" else [SCORES]
    one = commands[0].replace(f"--shard 1/{count}", f'--shard "$SLURM_ARRAY_TASK_ID/{count}"', 1)
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=attribench-{config.dataset}-{plan}",
        f"#SBATCH --array=1-{count}",
        "#SBATCH --ntasks=1",
        f"#SBATCH --cpus-per-task={allotment.cores}",
        f"#SBATCH --mem={math.ceil(allotment.memory / 2**20)}M",
        *(["#SBATCH --gpus-per-task=1"] if allotment.gpus else []),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=attribench-%A_%a.log",
        *wrap(" ".join([allotment.reason, *scores, _ENDED]), 100, initial_indent="# ", subsequent_indent="# "),
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",  # what is given as a relative path is meant from here
        "export OMP_NUM_THREADS=1",
        f"exec srun {one}",
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return naturalsize(count, binary=True, format="%.1f")
