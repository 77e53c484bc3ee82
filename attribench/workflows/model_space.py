"""Images as a model on latents is given them: with captions, and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from humanize import naturalsize
from torch import Tensor

from attribench.computing.progress import Progress
from attribench.data import ImageSet
from attribench.data.captions import folder_captions, given_captions
from attribench.data.folders import Folder
from attribench.diffusion.inputs import all_captions
from attribench.diffusion.latents import EncodingNeeds, Latents
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.texts import EmbeddingNeeds, caption_bytes, embedding_needs, told_captions
from attribench.errors import DataError, UsageError
from attribench.gradients.budget import shortage
from attribench.method import Match, SpatialEvidence
from attribench.store.artifacts import ArtifactStore
from attribench.workflows.forecast import SPARE, time_words

#: Captions as somebody gives them: a file, a caption a name, or one an image in their order.
GivenCaptions = str | Path | Mapping[str, str] | Sequence[str] | None


@dataclass(frozen=True, eq=False)
class ModelSpace:
    """What methods that look at a model on latents are given in place of pixels.

    Attributes:
        train: the latents of the train images, decoys included, with captions.
        queries: likewise.
        factor: pixels along a side for one latent.
    """

    train: ImageSet
    queries: ImageSet
    factor: int


def with_captions(folder: Folder, source: object, captions: GivenCaptions, what: str, of_images: bool = True) -> Folder:
    """Images with the captions that are given, lie beside them, or come with them; files of captions are no longer others.

    Args:
        source: where the images are from.
        captions: what is given.
        what: messages call the images.
        of_images: whether given captions are about these images at all; see
            :func:`attribench.data.captions.folder_captions`.

    Raises:
        DataError: some images have captions and some have none, or a file cannot be read.
        UsageError: a file of captions for images that lie in no folder.
    """
    images, used = folder.images, set[str]()
    found = images.captions
    if isinstance(source, str | Path):
        file = Path(captions) if isinstance(captions, str | Path) else None
        found, used = folder_captions(Path(source), images.ids, file, of_images)
    elif isinstance(captions, str | Path):
        if of_images:
            raise UsageError(
                f"--captions {captions}: a file names images in a folder; give a caption an image, in a list."
            )
        captions = None
    if captions is not None and not isinstance(captions, str | Path) and of_images:
        found = given_captions(captions, images.ids, what)
    if found is not None:
        found = all_captions(found, images.ids, what)
    others = tuple(name for name in folder.others if name not in used)
    return replace(folder, images=replace(images, captions=found), others=others)


def in_model_space(
    model: DiffusionModel,
    train: ImageSet,
    queries: ImageSet,
    store: ArtifactStore,
    device: torch.device,
    progress: Progress,
) -> tuple[DiffusionModel, ModelSpace]:
    """Encode images and captions, or find them encoded; what this takes is said before.

    Returns:
        The model without what encodes, which is needed no longer, told the captions; and the images.

    Raises:
        UsageError: memory or disk is not there.
    """
    autoencoder = model.autoencoder
    assert autoencoder is not None
    shared = store.scoped("shared")
    latents = Latents(autoencoder, shared, device)
    needs, told = latents.needs(train, queries), 0
    if model.text is not None:
        captions, more = (all_captions(images.captions, images.ids) for images in (train, queries))
        _say_captions(model, train, queries, progress)
        told = caption_bytes(model.text, {*captions, *more})
        embedding = embedding_needs(model.text, captions, shared, device, more)
        if embedding is not None:
            what = f"Embedding {embedding.captions} captions"
            _say_needs(what, embedding, torch.device("cpu"), shared, progress, "Fewer images, or captions, take less.")
    if needs is not None:
        size = "×".join(map(str, train.image_shape[1:]))
        remedy = "Fewer images, or a smaller --image-size, take less."
        beside = told if device.type == "cpu" else 0
        _say_needs(f"Encoding {needs.images} images of {size}", needs, device, shared, progress, remedy, beside)
    if model.text is not None:
        inputs = told_captions(model.text, captions, model.num_classes, shared, device, progress, more)
        model.text.module.to("cpu")
        model = replace(model, inputs=inputs, text=None)
    space = ModelSpace(latents.of(train, progress), latents.of(queries, progress), autoencoder.factor)
    autoencoder.module.to("cpu")
    return replace(model, autoencoder=None), space


def _say_needs(
    what: str,
    needs: EncodingNeeds | EmbeddingNeeds,
    device: torch.device,
    store: ArtifactStore,
    progress: Progress,
    remedy: str,
    beside: int = 0,
) -> None:
    """Say what is needed, and refuse it where it is not there.

    Args:
        beside: bytes of memory that are held meanwhile.
    """
    memory, disk = (naturalsize(value, binary=True, format="%.1f") for value in (needs.memory, needs.disk))
    progress.message(f"{what} takes about {memory} of memory, {disk} on disk and {time_words(needs.seconds)}.")
    needed = beside + round((1 + SPARE) * needs.memory)
    reason = shortage(f"{what}, with an eighth to spare,", needed, device)
    reason = reason or shortage(what, 0, device, needs.disk, store.root)
    if reason is not None:
        raise UsageError(f"{reason} {remedy}")


def _say_captions(model: DiffusionModel, train: ImageSet, queries: ImageSet, progress: Progress) -> None:
    assert model.text is not None
    if train.captions is None and queries.captions is None:
        progress.message("No captions: the model is told the empty text, for train images and queries.")
        return
    for name, images in (("train images", train), ("queries", queries)):
        captions = set(all_captions(images.captions, images.ids))
        if images.captions is None:
            progress.message(f"The {name} have no captions: the model is told the empty text for them.")
            continue
        size = naturalsize(caption_bytes(model.text, captions), binary=True, format="%.1f")
        cut = model.text.num_cut(captions)
        shortened = f" {cut} are longer than {model.text.length} tokens, and cut." if cut else ""
        progress.message(f"Captions of {len(images)} {name}, {len(captions)} of them different ({size}).{shortened}")


def in_pixels(evidence: SpatialEvidence, factor: int) -> SpatialEvidence:
    """Evidence in latents as evidence in pixels: each latent's part is shared by the pixels that it stands for."""

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(factor, 0).repeat_interleave(factor, 1) / factor**2

    def scaled(match: Match) -> Match:
        boxes = {name: tuple(factor * value for value in getattr(match, name)) for name in ("query_box", "train_box")}
        return replace(match, **boxes)  # type: ignore[arg-type]

    matches = tuple(scaled(match) for match in evidence.matches)
    return SpatialEvidence(spread(evidence.query_map), spread(evidence.train_map), matches)


def check_decoys(train: ImageSet, decoys: ImageSet) -> None:
    """Insist that decoys are told a text where train images are.

    Raises:
        DataError: the ones have captions and the others have none.
    """
    if (train.captions is None) != (decoys.captions is None):
        have, lack = ("train images", "decoys") if decoys.captions is None else ("decoys", "train images")
        raise DataError(f"The {have} have captions and the {lack} have none: they would differ by that alone.")
