"""Attribution with decoys: what is scored beside the train images, and what stands out from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from attribench.computing.progress import Progress
from attribench.data import ImageSet
from attribench.data.decoding import Channels
from attribench.data.decoys import FEWEST_SET_APART, set_apart, variants, without_copies
from attribench.data.folders import Folder
from attribench.data.groups import MOST_COMPARED, by_subfolder, from_csv, near_duplicates
from attribench.errors import UsageError
from attribench.metrics.decoys import FEWEST_DECOYS, adjusted, decoy_p_values, sum_p_values
from attribench.records.judgement import Groups, Judgement

_SEED = 42

AUTO, SUBFOLDER = "auto", "subfolder"


@dataclass(frozen=True)
class DecoyRequest:
    """What is asked for.

    Args:
        source: a folder of images that cannot have been trained on, or ``auto``: a random tenth of the train images is set
            apart before anything else, or, of fewer than 1,000, mirror images and other crops of them are made.
        contributors: ``subfolder``, or a CSV file with the columns ``train`` and ``contributor``; empty for none.
        rate: the false discovery rate that is allowed.
    """

    source: str
    contributors: str = ""
    rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError(f"--false-discovery {self.rate} must lie between 0 and 1 (0.05 for 5 %).")


@dataclass(frozen=True, eq=False)
class Pool:
    """What is scored together.

    Args:
        train: the train images that are ranked.
        decoys: the decoys, of the same shape; None where there are none.
        how: what they are, in words.
        request: what was asked for; None where nothing was.
    """

    train: ImageSet
    decoys: ImageSet | None = None
    how: str = ""
    request: DecoyRequest | None = None

    @classmethod
    def of(
        cls,
        train: ImageSet,
        request: DecoyRequest | None,
        read: Callable[[Path, Channels], Folder],
        progress: Progress,
        trained: bool = False,
    ) -> Pool:
        """The train images and their decoys.

        Args:
            train: all train images.
            request: None for no decoys.
            read: reads a folder of decoys, grey or RGB as the second argument says.
            trained: whether there is a model, which was trained on all train images.

        Raises:
            UsageError: there are too few decoys.
            DataError: the folder cannot be read.
        """
        if request is None:
            return cls(train)
        if request.source == AUTO and len(train) // 10 >= FEWEST_SET_APART:
            rest, decoys = set_apart(train, _SEED)
            apart = "which the model knows as it knows the others" if trained else "set apart before anything else"
            how = f"a random tenth of the train images ({len(decoys)}), {apart}: not ranked"
            train = rest
        elif request.source == AUTO:
            decoys = variants(train, _SEED)
            how = f"{len(decoys)} mirror images of the train images and other crops of these"
        else:
            channels: Channels = "grey" if train.image_shape[0] == 1 else "RGB"
            found = read(Path(request.source), channels).images
            wide = found.images.expand(-1, train.image_shape[0], -1, -1)
            decoys = without_copies(replace(found, images=wide), train)
            how = f"{len(decoys)} images from {request.source}"
            if len(decoys) < len(found):
                how += f", without {len(found) - len(decoys)} that are train images"
        if len(decoys) < FEWEST_DECOYS:
            raise UsageError(
                f"{len(decoys)} decoys ({how}) are too few: {FEWEST_DECOYS} at least are needed. --decoys DIR names a folder "
                "of images that cannot have been trained on."
            )
        progress.message(f"Decoys: {how}.")
        return cls(train, decoys, how, request)

    @property
    def everything(self) -> ImageSet:
        """The train images, then the decoys."""
        if self.decoys is None:
            return self.train
        ids = (*self.train.ids, *(f"decoy/{name}" for name in self.decoys.ids))
        labels = [images.labels for images in (self.train, self.decoys) if images.labels is not None]
        return ImageSet(
            torch.cat([self.train.images, self.decoys.images]), ids, torch.cat(labels) if len(labels) == 2 else None
        )

    def judge(self, scores: Tensor) -> Judgement | None:
        """What stands out.

        Args:
            scores: of :attr:`everything`, ``(num_queries, num_train + num_decoys)``.
        """
        if self.decoys is None or self.request is None:
            return None
        own, others = scores[:, : len(self.train)].double(), scores[:, len(self.train) :].double()
        p_values = decoy_p_values(own, others)
        groups = [
            _summed(kind, members, own, others)
            for kind, members in (("contributor", self._contributors()), ("cluster", self._clusters()))
            if members
        ]
        return Judgement(
            decoys=self.how,
            num_decoys=len(self.decoys),
            rate=self.request.rate,
            p_values=p_values,
            adjusted=adjusted(p_values),
            groups=groups,
        )

    def _contributors(self) -> dict[str, list[int]]:
        assert self.request is not None
        if not self.request.contributors:
            return {}
        ids = self.train.ids
        names = (
            by_subfolder(ids)
            if self.request.contributors == SUBFOLDER
            else from_csv(Path(self.request.contributors), ids)
        )
        found: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            found.setdefault(name, []).append(number)
        return dict(sorted(found.items()))

    def _clusters(self) -> dict[str, list[int]]:
        if len(self.train) > MOST_COMPARED:
            return {}
        return {self.train.ids[members[0]]: members for members in near_duplicates(self.train.images)}


def _summed(kind: str, members: dict[str, list[int]], scores: Tensor, decoys: Tensor) -> Groups:
    """The test on sums, of each query and of all together."""

    def with_all(values: Tensor) -> Tensor:
        return torch.cat([values, values.sum(dim=0, keepdim=True)])

    everything = with_all(scores)
    sums = sum_p_values(everything, with_all(decoys), list(members.values()), seed=_SEED)
    whole = everything.sum(dim=1, keepdim=True)
    signed = (scores < 0).any(dim=1, keepdim=True)
    mean_nothing = torch.cat([signed, signed.any(dim=0, keepdim=True)]) | (whole <= 0)
    shares = torch.where(mean_nothing, torch.nan, sums.totals / whole)
    return Groups(
        kind, list(members), list(members.values()), sums.totals, shares, sums.p_values, adjusted(sums.p_values)
    )
