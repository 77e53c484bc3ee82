"""What somebody brings to be attributed: images, and perhaps a model, read and made to fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.configuration.resolution import MethodConfig
from attribench.data import ImageSet
from attribench.data.decoding import Channels
from attribench.data.files import some
from attribench.data.folders import Folder, same_channels
from attribench.data.sources import folder_labels, read_source
from attribench.diffusion.digests import model_digest
from attribench.diffusion.inputs import LatentInputs, known_labels
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.pretrained.foreign_files import first_line
from attribench.diffusion.pretrained.models import load_model
from attribench.errors import ModelError, UsageError
from attribench.gradients.features import model_spec
from attribench.gradients.per_sample import Example, told_rows
from attribench.method import Access, AttributionContext, Queries
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore
from attribench.store.files import canonical, digest_text
from attribench.store.shared import SharedStore
from attribench.workflows.decoys import DecoyRequest, Pool
from attribench.workflows.model_space import GivenCaptions, ModelSpace, check_decoys, in_model_space, with_captions
from attribench.workflows.pieces import access_of

#: Root of the noise; the seed of the benchmark's target model.
_SEED = 42

#: What methods that compare images can be given.
Space = Literal["pixel", "latent"]

#: What messages call the images.
_CALLED = {"train": "train images", "queries": "queries", "decoys": "decoys"}

#: What a grey model's images are read as, and an RGB model's.
_CHANNELS: dict[int, Channels] = {1: "grey", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for.

    Args:
        train: the train images: a folder's path, or what else :func:`attribench.data.sources.read_source` takes.
        queries: the images to explain, likewise.
        top: train images a query to report, 0 for all.
        image_size: side of the square all images are brought to, in pixels; None: the model's, or 32.
        channels: ``RGB``, ``grey``, or ``auto``: the model's, or grey if no image has colour.
        heat_maps: for how many of a query's train images to show where the score comes from.
        model: the model that was trained on the train images, see :func:`attribench.diffusion.pretrained.models.load_model`.
        scheduler: its noise schedule, if it does not bring it, likewise.
        checkpoints: the folder of its training's checkpoints, likewise.
        lora: the file of its LoRA, likewise.
        captions: of the train images, for a model that is told a text: a CSV or JSONL file, a mapping from names, or one an
            image; None: those in ``metadata.jsonl`` or text files beside the images, or those that come with them. A file may
            hold the queries' too, by paths from its own folder.
        query_captions: of the queries, likewise.
        space: what methods that compare images are given: ``pixel``, or ``latent``, what the model's autoencoder makes of the
            images, with the model's noise schedule.
        decoys: what to judge the ranking against; None for nothing.
    """

    train: object
    queries: object
    top: int = 20
    image_size: int | None = None
    channels: Channels = "auto"
    heat_maps: int = 20
    model: object = None
    scheduler: object = None
    checkpoints: str | Path | None = None
    decoys: DecoyRequest | None = None
    lora: str | Path | None = None
    captions: GivenCaptions = None
    query_captions: GivenCaptions = None
    space: Space = "pixel"

    def __post_init__(self) -> None:
        if self.top < 0:
            raise UsageError("--top must be 0 (all) or more.")
        if self.heat_maps < 0:
            raise UsageError("--heat-maps must be 0 or more.")
        if self.image_size is not None and self.image_size < 2:
            raise UsageError("--image-size must be at least 2.")
        belongings = {"--checkpoints": self.checkpoints, "--scheduler": self.scheduler, "--lora": self.lora,
                      "--captions": self.captions, "--query-captions": self.query_captions}  # fmt: skip
        given = next((name for name, value in belongings.items() if value is not None), None)
        if self.model is None and given is not None:
            raise UsageError(f"{given} belongs to a model: name that with --model.")
        if self.space not in get_args(Space):
            raise UsageError(f"--space must be pixel or latent; got {self.space!r}.")
        if self.model is None and self.space == "latent":
            raise UsageError("--space latent: latents are those of a model's autoencoder: name that with --model.")


def check_methods(request: Request, configs: Sequence[MethodConfig]) -> None:
    """Insist that there is all that the methods look at.

    Raises:
        UsageError: a method looks at a model, its checkpoints or retrained models, and there are none.
    """
    for config in configs:
        access = access_of(config.cls)
        if access >= Access.RETRAINED:
            raise UsageError(f"{config.name} is given models retrained on subsets, and there are none here.")
        if access >= Access.MODEL and request.model is None:
            raise UsageError(
                f"{config.name} looks at a model, and there is none here: name it with --model, or use a method that compares "
                "images, such as nda, pixel or clip."
            )
        if access >= Access.CHECKPOINTS and request.checkpoints is None and not getattr(request.model, "snapshots", ()):
            raise UsageError(
                f"{config.name} looks at checkpoints of the model's training: name their folder with --checkpoints."
            )
        if access < Access.MODEL and request.space == "latent" and not config.cls.takes_latents:
            raise UsageError(
                f"{config.name} compares pictures, and cannot be given latents: leave out --space latent, or use nda, "
                "nda-plus, score-machine or pixel."
            )


@dataclass(frozen=True, eq=False)
class OwnImages:
    """Images that fit each other, and the model if there is one.

    Attributes:
        train: the train images, with labels where the model is told classes.
        queries: the images to explain, likewise.
        pool: the train images that are ranked, and what is scored beside them.
        space: what methods that look at a model on latents are given in place of these; None for other models, and where no
            method is given any.
        compared: what methods that compare images are given.
        model: None if there is none.
        store: where everything is kept.
        device: where to compute.
    """

    train: Folder
    queries: Folder
    pool: Pool
    space: ModelSpace | None
    compared: Space
    model: DiffusionModel | None
    store: ArtifactStore
    device: torch.device
    progress: Progress

    def context(self, config: MethodConfig) -> AttributionContext:
        """What a method may work with. One that compares images is not given the model, nor its noise schedule."""
        access, own = access_of(config.cls), self.store.scoped(f"methods/{config.cls.__qualname__}")
        common = {"device": self.device, "seed": _SEED, "store": own, "access": access, "progress": self.progress}
        if access < Access.MODEL and self.model is not None and (latents := self._latents) is not None:
            given = replace(latents.train, captions=None)
            return AttributionContext(given, self.model.schedule, inputs=LatentInputs(), **common)  # type: ignore[arg-type]
        if access < Access.MODEL or self.model is None:
            pixels = replace(self.pool.everything, captions=None)
            return AttributionContext(pixels, NoiseSchedule(), **common)  # type: ignore[arg-type]
        return AttributionContext(
            self.pool.everything if self.space is None else self.space.train,
            self.model.schedule,
            models=self.model,
            shared=SharedStore(self.store.scoped("shared")),
            inputs=self.model.inputs,
            **common,  # type: ignore[arg-type]
        )

    @property
    def _latents(self) -> ModelSpace | None:
        """What methods that compare images are given in place of pixels, if that was asked for."""
        return self.space if self.compared == "latent" else None

    def asked(self, access: Access) -> Queries:
        """The queries as a method gets them.

        Noise is a function of an image's name. A query and a train image of one name would share it, and look alike to a
        model for no other reason: for methods that look at one, queries have names of their own.
        """
        space = self.space if access >= Access.MODEL else self._latents
        images = self.queries.images if space is None else space.queries
        if access >= Access.MODEL:
            images = replace(images, ids=tuple(f"query: {name}" for name in images.ids))
        else:
            images = replace(images, captions=None)
        return Queries.of(images, "queries")

    def weights(self, context: AttributionContext) -> str | None:
        """Identifies the model that a method looks at, with its checkpoints if it looks at these; None if at none.

        Of a method that compares latents, the noise schedule.
        """
        if context.models is None:
            return digest_text(canonical(context.schedule.spec)) if context.train.latent else None
        parts = [canonical(model_spec(context, context.target_model()))]
        if context.access >= Access.CHECKPOINTS:
            parts += [model_digest(model) for model in context.checkpoints()]
        return digest_text("".join(parts))


def open_images(request: Request, runtime: Runtime, progress: Progress, looked_at: bool = True) -> OwnImages:
    """Read the model first, which says what size the images are to have, then the images.

    Args:
        looked_at: whether any method looks at the model.

    Raises:
        UsageError: options that contradict the model, or too few decoys.
        ModelError: the model cannot be read, or cannot be run on such images.
        DataError: images that cannot be read, or do not fit the model.
    """
    device = resolve_device(runtime.accelerator)
    store = ArtifactStore(
        Path(runtime.workdir),
        lock_timeout=runtime.lock_timeout,
        report=progress.message,
        dead_after=runtime.dead_after,
    )
    model = None
    if request.model is not None:
        model = load_model(request.model, request.scheduler, request.checkpoints, request.lora)
        progress.message(f"The model: {model.description}.")
        for note in model.notes:
            progress.message(note)
        if model.autoencoder is None and request.space == "latent":
            raise UsageError(f"--space latent: {model.name} works on pixels.")
        if model.text is None and (request.captions is not None or request.query_captions is not None):
            raise UsageError(f"--captions: {model.name} is told no text.")
    size, channels = _image_size(request, model), _channels(request, model)
    told = model is not None and model.text is not None

    def read(name: str, source: object, wanted: Channels = channels, side: int | None = size) -> Folder:
        found = read_source(source, side, store, channels=wanted, progress=progress, name=name)
        if told:
            given, about = request.captions, name == "train"
            if name == "queries" and request.query_captions is not None:
                given, about = request.query_captions, True
            found = with_captions(found, source, None if name == "decoys" else given, _CALLED[name], about)
        _report(found, source if isinstance(source, str | Path) else name, progress)
        return found

    train, queries = same_channels(read("train", request.train), read("queries", request.queries))
    if model is not None and model.num_classes:
        train, queries = _labelled(request, model, train, queries, progress)

    def decoys(folder: Path, of_train: Channels) -> Folder:
        height, width = train.images.image_shape[1:]
        if height != width:
            raise UsageError(
                f"--decoys {folder}: pictures become squares, and the train images are of {height}×{width}."
            )
        found = read("decoys", folder, of_train, width)
        if told:
            check_decoys(train.images, found.images)
        if model is None or not model.num_classes:
            return found
        known = train.images.ids if isinstance(request.train, str | Path) else ()
        _, labels, _ = folder_labels(known, found.images.ids, model.num_classes, "decoys")
        return replace(found, images=replace(found.images, labels=labels))

    pool = Pool.of(train.images, request.decoys, decoys, progress, trained=model is not None)
    space = None
    if model is not None and model.autoencoder is not None and (looked_at or request.space == "latent"):
        model, space = in_model_space(model, pool.everything, queries.images, store, device, progress)
    if model is not None and (looked_at or model.autoencoder is None):
        _try_out(model, pool.everything if space is None else space.train, device)
    return OwnImages(train, queries, pool, space, request.space, model, store, device, progress)


def _image_size(request: Request, model: DiffusionModel | None) -> int | None:
    own, asked = model.image_size if model else None, request.image_size
    if model is not None and model.autoencoder is not None:
        if asked and asked % model.autoencoder.factor:
            raise UsageError(f"--image-size {asked}: the model takes multiples of {model.autoencoder.factor}.")
        own = asked or own  # its network takes other sizes too, and may have been tuned on them
    if own and asked and own != asked:
        raise UsageError(f"--image-size {asked}: the model takes images of {own}×{own}.")
    size = own or asked
    paths = [source for source in (request.train, request.queries) if isinstance(source, str | Path)]
    if model is not None and size is None and paths:
        raise UsageError(f"{model.name} does not say what size of images it takes: name it with --image-size.")
    return size


def _channels(request: Request, model: DiffusionModel | None) -> Channels:
    if model is None or model.channels is None:
        return request.channels
    own = _CHANNELS[model.channels]
    if request.channels not in ("auto", own):
        raise UsageError(f"--channels {request.channels}: the model takes {own} images.")
    return own


def _report(found: Folder, place: object, progress: Progress) -> None:
    for file, reason in found.skipped.items():
        progress.message(f"Skipped {Path(str(place)) / file}: {reason}.")
    if found.others:
        progress.message(f"Passed over in {place}, no pictures: {len(found.others)} ({some(found.others)}).")


def _labelled(
    request: Request, model: DiffusionModel, train: Folder, queries: Folder, progress: Progress
) -> tuple[Folder, Folder]:
    """Labels from subfolders, where images come from folders."""
    of_folder = [isinstance(source, str | Path) for source in (request.train, request.queries)]
    if any(of_folder):
        pairs = zip((train, queries), of_folder, strict=True)
        names = [folder.images.ids if is_folder else () for folder, is_folder in pairs]
        own, asked, classes = folder_labels(names[0], names[1], model.num_classes)
        if not all(name.isdecimal() for name in classes):
            shown = [f"{number} = {folder}" for number, folder in enumerate(classes) if not folder.isdecimal()]
            progress.message(f"Classes by subfolder: {some(shown)}.")
        if of_folder[0]:
            train = replace(train, images=replace(train.images, labels=own))
        if of_folder[1]:
            queries = replace(queries, images=replace(queries.images, labels=asked))
    for folder in (train, queries):
        known_labels(folder.images.labels, model.num_classes)
    return train, queries


@torch.no_grad()  # not inference_mode: weights that are moved to a GPU in it could have no gradients ever after
def _try_out(model: DiffusionModel, train: ImageSet, device: torch.device) -> None:
    """Run the network once, so that images it cannot take are an error of one line."""
    network = model.network.to(device).eval()
    example = Example.of(model.inputs, model.inputs.seen(train))
    like = next(network.parameters())
    blank = torch.zeros(1, *example.shape, device=device, dtype=like.dtype)
    told = told_rows(example.conditions, slice(0, 1), 1, blank)
    try:
        predicted = network(blank, torch.zeros(1, dtype=torch.long, device=device), **told).sample
    except Exception as error:  # networks raise what they like
        shape = "×".join(map(str, example.shape))
        raise ModelError(
            f"{model.name} cannot be run on images of {shape} (channels × height × width): {first_line(error)}"
        ) from error
    if predicted.shape != blank.shape:
        raise ModelError(
            f"{model.name} gives {tuple(predicted.shape[1:])} for images of {tuple(example.shape)}: both must be alike."
        )
