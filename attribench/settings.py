"""The sections of a configuration, typed. No heavy imports: the command line reads them for its help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from attribench.errors import UsageError

#: The query sets of a run, in the order tables show them.
QUERY_SETS = ("validation", "generation")

#: What a model can be trained with; Lightning's older names below mean the same.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
_OLDER_PRECISIONS = ("32", "bf16", "16", "64")

#: The layers that LoRA is trained in unless other ones are named: attention's projections, as D-TRAK and diffusers have it.
LORA_MODULES = ("to_q", "to_k", "to_v", "to_out.0")

#: The dropout of a network that is trained from scratch.
USUAL_DROPOUT = 0.1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class ModelSettings:
    """The denoising network: diffusers' ``UNet2DModel``, always with ``resnet_time_scale_shift="scale_shift"``.

    Args:
        block_out_channels: channels of each resolution level.
        layers_per_block: residual layers a level.
        down_block_types: one block type a level, on the way down.
        up_block_types: one block type a level, on the way up.
        attention_head_dim: channels of an attention head; none = one head.
        norm_num_groups: groups of the group normalisation.
        norm_eps: epsilon of the group normalisation.
        downsample_padding: padding of the down-sampling convolutions.
        flip_sin_to_cos: order of sine and cosine in the time embedding.
        freq_shift: frequency shift of the time embedding.
        dropout: probability of every dropout layer; none: 0.1, or with a base what that has itself.
        base: train LoRA on this pretrained network, which says by itself how it is built: a diffusers folder, or
            ``DATASET:PRESET``, a setting of this benchmark whose target model it is. None: train a network from scratch.
    """

    block_out_channels: list[int] = field(default_factory=list)
    down_block_types: list[str] = field(default_factory=list)
    up_block_types: list[str] = field(default_factory=list)
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    dropout: float | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        if self.dropout is None and self.base is None:
            object.__setattr__(self, "dropout", USUAL_DROPOUT)  # frozen
        _require(self.dropout is None or 0 <= self.dropout < 1, "--model.dropout must be in [0, 1).")
        if self.base is not None:
            self._check_nothing_but_base()
            return
        levels = len(self.block_out_channels)
        _require(levels > 0, "--model.block_out_channels is required, one number a level; or --model.base.")
        _require(
            len(self.down_block_types) == levels == len(self.up_block_types),
            f"--model.down_block_types and --model.up_block_types need one entry for each of the {levels} levels of "
            "--model.block_out_channels.",
        )
        _require(
            all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels),
            f"--model.block_out_channels {self.block_out_channels}: each must be a multiple of "
            f"--model.norm_num_groups {self.norm_num_groups}.",
        )

    def _check_nothing_but_base(self) -> None:
        _require(bool(self.base), "--model.base is empty: name a diffusers folder, or DATASET:PRESET.")
        for option in fields(self):
            default = option.default_factory() if option.default_factory is not MISSING else option.default
            if option.name not in ("base", "dropout") and getattr(self, option.name) != default:
                raise UsageError(f"--model.{option.name} with --model.base: the base says how the network is built.")

    @property
    def stated(self) -> dict[str, Any]:
        """The options as records have them: where a base lies is this machine's affair, what it is called is not."""
        if self.base is not None:
            return {"base": Path(self.base).name, "dropout": self.dropout}
        values = asdict(self)
        del values["base"]  # what was made before there were any keeps its name
        return values


@dataclass(frozen=True)
class TrainingSettings:
    """The training recipe: AdamW, linear warm-up then cosine decay, gradient clipping, no EMA.

    Args:
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: peak learning rate.
        weight_decay: AdamW's weight decay.
        warmup_fraction: share of the steps in which the rate rises linearly from 0.
        gradient_clip: largest norm of a gradient.
        horizontal_flip: mirror half of the images at random.
        num_checkpoints: models kept of the target's training, evenly spaced, the last one included.
        precision: Lightning's: ``32-true``, ``bf16-mixed``, ``16-mixed`` (needs a GPU) or ``64-true``.
        seed: root of the training seeds; the target model's own.
        lora_rank: rank of the LoRA that is trained on ``model.base``; 0: none, the whole network is trained.
        lora_alpha: LoRA's α, by which it counts α / rank; none: the rank.
        lora_modules: the layers that get a LoRA, linear ones and convolutions: their names or the ends of these, such as
            ``conv1``, with ``*`` for any text.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    warmup_fraction: float = 0.1
    gradient_clip: float = 1.0
    horizontal_flip: bool = True
    num_checkpoints: int = 4
    precision: str = "32-true"
    seed: int = 42
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_modules: list[str] = field(default_factory=lambda: list(LORA_MODULES))

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "--training.epochs must be at least 1.")
        _require(self.batch_size >= 1, "--training.batch_size must be at least 1.")
        _require(self.learning_rate > 0, "--training.learning_rate must be positive.")
        _require(0 <= self.warmup_fraction <= 1, "--training.warmup_fraction must be in [0, 1].")
        _require(self.gradient_clip > 0, "--training.gradient_clip must be positive.")
        _require(self.num_checkpoints >= 1, "--training.num_checkpoints must be at least 1.")
        _require(
            self.precision in PRECISIONS + _OLDER_PRECISIONS,
            f"--training.precision {self.precision!r} is not supported. Choose one of: {', '.join(PRECISIONS)}.",
        )
        _require(self.lora_rank >= 0, "--training.lora_rank must be at least 1, or 0 for none.")
        _require(self.lora_alpha is None or self.lora_alpha > 0, "--training.lora_alpha must be positive.")
        _require(bool(self.lora_modules), "--training.lora_modules names no layer.")
        if not self.lora_rank:
            _require(self.lora_alpha is None, "--training.lora_alpha is of no use without --training.lora_rank.")

    @property
    def stated(self) -> dict[str, Any]:
        """The options as records have them."""
        values = asdict(self)
        if self.lora_rank:
            return {**values, "lora_alpha": self.alpha}
        for option in ("lora_rank", "lora_alpha", "lora_modules"):  # what was made before there were any keeps its name
            del values[option]
        return values

    @property
    def alpha(self) -> float:
        """LoRA's α."""
        return float(self.lora_rank if self.lora_alpha is None else self.lora_alpha)


@dataclass(frozen=True)
class GenerationSettings:
    """The generated query set: DDIM; image i starts from a CPU generator seeded i.

    Args:
        num_images: images to generate.
        num_inference_steps: DDIM steps.
        eta: DDIM's η; 0 is deterministic.
        guidance: of models that are told a text, classifier-free guidance w: without the text, plus w times what the text
            changes; 1: none.
    """

    num_images: int = 1000
    num_inference_steps: int = 50
    eta: float = 0.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        _require(self.num_images >= 1, "--generation.num_images must be at least 1.")
        _require(1 <= self.num_inference_steps <= 1000, "--generation.num_inference_steps must be in 1…1000.")
        _require(0 <= self.eta <= 1, "--generation.eta must be in [0, 1].")
        _require(self.guidance >= 1, "--generation.guidance must be at least 1, which is none.")

    @property
    def stated(self) -> dict[str, Any]:
        """The options as records have them."""
        values = asdict(self)
        if self.guidance == 1.0:
            del values["guidance"]  # what was made before there was any keeps its name
        return values


@dataclass(frozen=True)
class GroundTruthSettings:
    """What the predictions are compared with: models retrained on random subsets, and their losses on the queries.

    Args:
        num_subsets: subsets, each drawn with ``random_state = seed + k``.
        num_seeds: training seeds a subset.
        subset_fraction: share of the train images in a subset.
        timestep_stride: losses are measured at every ``timestep_stride``-th of the 1000 timesteps.
        num_noise_draws: noise draws a timestep.
        seed: first ``random_state`` of the subsets, root of the loss noise.
    """

    num_subsets: int = 64
    num_seeds: int = 3
    subset_fraction: float = 0.5
    timestep_stride: int = 1
    num_noise_draws: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        _require(
            self.num_subsets >= 2,
            f"--ground_truth.num_subsets is {self.num_subsets}: a correlation over subsets needs at least 2.",
        )
        _require(
            self.num_subsets <= 16_000, "--ground_truth.num_subsets must be at most 16000: ranks are kept in 16 bits."
        )
        _require(self.num_seeds >= 1, "--ground_truth.num_seeds must be at least 1.")
        _require(0 < self.subset_fraction < 1, "--ground_truth.subset_fraction must be between 0 and 1.")
        _require(1 <= self.timestep_stride <= 1000, "--ground_truth.timestep_stride must be in 1…1000.")
        _require(self.num_noise_draws >= 1, "--ground_truth.num_noise_draws must be at least 1.")

    @property
    def timesteps(self) -> list[int]:
        """The timesteps at which losses are measured."""
        return list(range(0, 1000, self.timestep_stride))


@dataclass(frozen=True)
class CounterfactualSettings:
    """What happens without a query's strongest proponents: models retrained without them, and what they generate.

    Args:
        num_queries: generated images to explain, drawn as published (``random_state = 42``); at most all.
        num_removed: train images removed: the highest-scored ones of each query.
        num_seeds: retrainings of each set, with other training seeds than the target model's.
        target_seed: give the first retraining of each set the target model's own seed, as published; it then begins as
            the target model did, so its images stay nearer to the original than the control's do.
    """

    num_queries: int = 60
    num_removed: int = 1000
    num_seeds: int = 3
    target_seed: bool = False

    def __post_init__(self) -> None:
        _require(self.num_queries >= 2, "--counterfactual.num_queries must be at least 2.")
        _require(self.num_removed >= 1, "--counterfactual.num_removed must be at least 1.")
        _require(self.num_seeds >= 1, "--counterfactual.num_seeds must be at least 1.")


@dataclass(frozen=True)
class RemovalSettings:
    """What happens to a group of queries without its strongest train images: one retraining a row, group, number and seed.

    Args:
        asked: ``generation``: groups of generated images that are alike; ``class``: of held-out images of one class, of which
            all its train images are known to be right; ``copies``: of held-out images that are copied into the train set first.
        num_groups: groups; the other groups' queries are each one's controls.
        group_size: queries a group.
        num_removed: how many train images are removed, ascending; none: what suits the question.
        num_seeds: retrainings of each.
        num_copies: of each image, for ``copies``.
    """

    asked: str = "generation"
    num_groups: int = 5
    group_size: int = 5
    num_removed: tuple[int, ...] = ()
    num_seeds: int = 2
    num_copies: int = 8

    def __post_init__(self) -> None:
        known = ("generation", "class", "copies")
        _require(self.asked in known, f"--ask {self.asked!r} is not one of {', '.join(known)}.")
        _require(self.num_groups >= 2, "--groups must be at least 2: the other groups are the controls.")
        _require(self.group_size >= 1, "--group-size must be at least 1.")
        _require(self.num_seeds >= 1, "--seeds must be at least 1.")
        _require(self.num_copies >= 2, "--copies must be at least 2.")
        ascend = list(self.num_removed) == sorted(set(self.num_removed)) and min(self.num_removed, default=1) >= 1
        _require(ascend, f"--removed {list(self.num_removed)}: numbers must ascend, from 1 at least.")


@dataclass(frozen=True)
class Settings:
    """One experimental setting: all that decides what is measured but the data."""

    model: ModelSettings
    training: TrainingSettings = field(default_factory=TrainingSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    ground_truth: GroundTruthSettings = field(default_factory=GroundTruthSettings)
    counterfactual: CounterfactualSettings = field(default_factory=CounterfactualSettings)

    def __post_init__(self) -> None:
        rank, base = self.training.lora_rank, self.model.base
        _require(not rank or base is not None, "--training.lora_rank needs --model.base: a pretrained network.")
        _require(bool(rank) or base is None, "--model.base needs --training.lora_rank: LoRA is what is trained on it.")

    @classmethod
    def of(cls, values: Mapping[str, Mapping[str, Any]]) -> Settings:
        """The settings that plain values describe, section by section.

        Raises:
            UsageError: an unknown section or option, or a value that is refused.
        """
        kinds: dict[str, type[Any]] = {
            "model": ModelSettings,
            "training": TrainingSettings,
            "generation": GenerationSettings,
            "ground_truth": GroundTruthSettings,
            "counterfactual": CounterfactualSettings,
        }
        try:
            sections: dict[str, Any] = {name: kinds[name](**options) for name, options in values.items()}
            return cls(**sections)
        except (KeyError, TypeError) as error:
            raise UsageError(f"These are no settings that this attribench knows: {error}.") from error

    def without(self, section: str) -> dict[str, Any]:
        """All sections but one, as plain values: LDS has nothing to do with ``counterfactual``, nor the other way round."""
        return {name: value for name, value in self.stated.items() if name != section}

    @property
    def stated(self) -> dict[str, Any]:
        """All sections as plain values, as records have them."""
        stated = {"model": self.model.stated, "training": self.training.stated, "generation": self.generation.stated}
        return {**asdict(self), **stated}


@dataclass(frozen=True)
class Shard:
    """Which part of all jobs a process does first; then it helps with the others.

    Args:
        number: from 1.
        count: how many processes there are.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"2/8"``.

        Raises:
            UsageError: it is something else.
        """
        parts = text.split("/")
        _require(
            len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts)
            and 1 <= int(parts[0]) <= int(parts[1]),
            f"--shard {text}: expected which of how many, as 1/8 … 8/8.",
        )  # fmt: skip
        return cls(int(parts[0]), int(parts[1]))

    def order(self, count: int) -> list[int]:
        """Numbers from 0 below ``count``: first its own, one in every ``self.count``; then the others, last ones first."""
        own = range(self.number - 1, count, self.count)
        return [*own, *(number for number in reversed(range(count)) if number not in own)]


@dataclass(frozen=True)
class RayOptions:
    """The cluster of ``--executor ray``.

    Args:
        address: which cluster: auto, the one that runs here; HOST:PORT; or local, one of this machine alone.
        gpus_per_job: GPUs a job where nodes have any; 0.5: two jobs share one.
        cpus_per_job: CPUs that a job takes of its node; it computes with one thread.
        carry: for nodes that do not share the work directory: Ray carries what jobs read and make.
    """

    address: str = "auto"
    gpus_per_job: float = 1.0
    cpus_per_job: float = 1.0
    carry: bool = False

    def __post_init__(self) -> None:
        gpus = self.gpus_per_job
        _require(
            0 <= gpus <= 1 or gpus == int(gpus), f"--ray.gpus_per_job {gpus}: a share of one GPU, or a whole number."
        )
        _require(self.cpus_per_job > 0, f"--ray.cpus_per_job {self.cpus_per_job} must be positive.")


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute; never changes a result.

    Args:
        workdir: the artifact store.
        accelerator: Lightning's accelerator: auto, cpu, gpu, …
        devices: Lightning's devices, e.g. ``auto``, ``1`` or ``0,1``.
        executor: where jobs run: local, in processes of this machine; or ray, on the nodes of a Ray cluster.
        workers: processes that train models side by side; 0 = one a CPU core, or as many a GPU as the next option says.
        workers_per_gpu: processes that share a GPU, for models too small to fill it.
        evaluation_batch: images a forward pass when losses are measured or images generated.
        checkpoint_seconds: how often an unfinished training is saved, so that a kill loses no more.
        lock_timeout: seconds to wait for another process that makes the same artifact.
        dead_after: seconds without a sign of life after which a process on another machine counts as dead, and its work is
            taken over.
        shard: which jobs come first.
        ray: the cluster, with ``executor`` ray.
    """

    workdir: str = "runs"
    accelerator: str = "auto"
    devices: str = "auto"
    executor: str = "local"
    workers: int = 0
    workers_per_gpu: int = 1
    evaluation_batch: int = 256
    checkpoint_seconds: float = 60.0
    lock_timeout: float = 6 * 3600.0
    dead_after: float = 120.0
    shard: Shard = field(default_factory=Shard, metadata={"option": False})
    ray: RayOptions = field(default_factory=RayOptions, metadata={"option": False})

    def __post_init__(self) -> None:
        _require(self.executor in ("local", "ray"), f"--executor {self.executor}: local or ray.")
        _require(self.workers >= 0, "--workers must be at least 0.")
        _require(self.workers_per_gpu >= 1, "--workers_per_gpu must be at least 1.")
        _require(self.dead_after >= 20, "--dead_after must be at least 20: a sign of life comes every 5 seconds.")
        _require(self.evaluation_batch >= 1, "--evaluation_batch must be at least 1.")
