"""CIFAR-2's photos as JPEG files: a lossy stand-in for those who lack CIFAR-10's own files."""

from __future__ import annotations

import os

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.datamodules._splits import check_range
from attribench.datamodules.image_folder import ImageFolder
from attribench.errors import DataError, UsageError

CLASSES = ("automobile", "horse")


@register_datamodule("cifar2-jpeg")
class Cifar2Jpeg(AttributionDataModule):
    """CIFAR-10's automobiles and horses as JPEG files; not comparable with `cifar2`, whose files are the official ones.

    The pictures may not be passed on: neither records nor ground truths hold any (see `--galleries`).

    Args:
        root: folder that holds `train` and `test`, each with the subfolders `automobile` and `horse` of JPEG files.
        num_train: how many of the train images to use, in class proportions.
        num_queries: how many of the test images are validation queries, likewise.
        image_size: side of the images in pixels; less than 32 resizes them.
    """

    galleries = False

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 5000,
        num_queries: int = 1000,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        check_range("num_train", num_train, 2)
        check_range("num_queries", num_queries, 2)
        check_range("image_size", image_size, 1, 32)
        if root is None:
            raise UsageError(
                "--data.root is needed for cifar2-jpeg: a folder with train/automobile, train/horse, test/automobile and "
                "test/horse, CIFAR-10's pictures of these classes as JPEG files. They cannot be downloaded; cifar2 can."
            )
        self.root, self.num_train, self.num_queries, self.image_size = root, num_train, num_queries, image_size

    @property
    def label(self) -> str:
        return "cifar2-jpeg"

    def load(self) -> tuple[ImageSet, ImageSet]:
        folder = ImageFolder(
            self.root,
            name="photos",
            image_size=self.image_size,
            channels="RGB",
            num_train=self.num_train,
            num_queries=self.num_queries,
        )
        train, test = folder.load()
        for part, images, option, asked in (
            ("train", train, "num_train", self.num_train),
            ("test", test, "num_queries", self.num_queries),
        ):
            if {name.split("/")[1] for name in images.ids} != set(CLASSES):
                raise DataError(
                    f"{folder.root / part} must hold JPEG files in the subfolders {' and '.join(CLASSES)}, and no others."
                )
            if len(images) < asked:
                raise UsageError(f"--data.{option} is {asked}, but there are only {len(images)} images to choose from.")
        return train, test
