"""Attribution with decoys: what is scored beside the train images, and what stands out from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from attribench.computing.progress import Progress
from attribench.data import ImageSet
from attribench.data.copies import Copies
from attribench.data.decoding import Channels
from attribench.data.decoys import FEWEST_TRAIN, set_apart, without_copies
from attribench.data.files import some
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
        source: a folder of images that cannot have been trained on, or ``auto``: a random tenth of the train images, 50 at
            least, is set apart before anything else. Mirror images and crops of train images are no decoys: methods see that
            they are made, and on real images most queries then find something where there is nothing.
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
        contributors: of each train image, by name; empty where it was not asked for.
    """

    train: ImageSet
    decoys: ImageSet | None = None
    how: str = ""
    request: DecoyRequest | None = None
    contributors: Sequence[str] = ()

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
            DataError: the folder cannot be read, or the contributors cannot.
        """
        if request is None:
            return cls(train)
        owners = _owners(request.contributors, train.ids)
        if request.source == AUTO:
            copies = Copies.of(train.images)
            different = len(copies.first)
            if different < FEWEST_TRAIN:
                raise UsageError(
                    f"--decoys auto sets train images apart, and {different} different ones are too few for that: "
                    f"{FEWEST_TRAIN} at least are needed. --decoys DIR names a folder of images that cannot have been trained "
                    "on."
                )
            total = len(train)
            train, decoys, num_copies = set_apart(train, copies, _SEED)
            apart = (
                ", which the model knows as it knows the others" if trained else " and set apart before anything else"
            )
            how = f"{len(decoys)} of the {total} train images, drawn at random{apart}: not ranked"
            if num_copies:
                how += f", nor are {num_copies} copies of theirs"
            gone = sorted(set(owners.values()) - {owners[name] for name in train.ids if name in owners})
            if gone:
                how += f"; of contributors all of whose images are among them nothing is said: {some(gone)}"
        else:
            channels: Channels = "grey" if train.image_shape[0] == 1 else "RGB"
            found = read(Path(request.source), channels).images
            wide = found.images.expand(-1, train.image_shape[0], -1, -1)
            decoys = without_copies(replace(found, images=wide), train)
            how = f"{len(decoys)} images from {request.source}"
            if len(decoys) < len(found):
                how += f", without {len(found) - len(decoys)} that are train images or equal to another"
        if len(decoys) < FEWEST_DECOYS:
            raise UsageError(
                f"{len(decoys)} decoys ({how}) are too few: {FEWEST_DECOYS} at least are needed. --decoys DIR names a folder "
                "of images that cannot have been trained on."
            )
        progress.message(f"Decoys: {how}.")
        if len(train) > MOST_COMPARED:
            progress.message(
                f"Near duplicates are not looked for: {len(train)} train images are more than {MOST_COMPARED}. A contributor's "
                "copies of one image count as so many images."
            )
        return cls(train, decoys, how, request, [owners[name] for name in train.ids if name in owners])

    @property
    def everything(self) -> ImageSet:
        """The train images, then the decoys."""
        if self.decoys is None:
            return self.train
        prefix = "decoy/"
        while any(name.startswith(prefix) for name in self.train.ids):  # a folder of train images may be called that
            prefix = f"other {prefix}"
        ids = (*self.train.ids, *(f"{prefix}{name}" for name in self.decoys.ids))
        labels = [images.labels for images in (self.train, self.decoys) if images.labels is not None]
        captions = None
        if self.train.captions is not None and self.decoys.captions is not None:
            captions = (*self.train.captions, *self.decoys.captions)
        joined = torch.cat([self.train.images, self.decoys.images])
        return ImageSet(joined, ids, torch.cat(labels) if len(labels) == 2 else None, captions)

    def judge(self, scores: Tensor) -> Judgement | None:
        """What stands out.

        Args:
            scores: of :attr:`everything`, ``(num_queries, num_train + num_decoys)``.
        """
        if self.decoys is None or self.request is None:
            return None
        own, others = scores[:, : len(self.train)].double(), scores[:, len(self.train) :].double()
        p_values = decoy_p_values(own, others)
        contributors: dict[str, list[int]] = {}
        for number, name in enumerate(self.contributors):
            contributors.setdefault(name, []).append(number)
        clusters = self._clusters()
        groups = []
        if contributors:
            groups.append(_contributions(dict(sorted(contributors.items())), list(clusters.values()), own, others))
        groups += [_of_clusters(clusters, own, others)] if clusters else []
        return Judgement(
            decoys=self.how,
            num_decoys=len(self.decoys),
            rate=self.request.rate,
            p_values=p_values,
            adjusted=adjusted(p_values),
            groups=groups,
        )

    def _clusters(self) -> dict[str, list[int]]:
        """Near duplicates, by the first of them; none are looked for where :meth:`of` said so."""
        if len(self.train) > MOST_COMPARED:
            return {}
        return {self.train.ids[members[0]]: members for members in near_duplicates(self.train.images)}


def _owners(source: str, ids: Sequence[str]) -> dict[str, str]:
    """The contributor of each train image, by its id; empty where none are asked for."""
    if not source:
        return {}
    names = by_subfolder(ids) if source == SUBFOLDER else from_csv(Path(source), ids)
    return dict(zip(ids, names, strict=True))


def _with_all(values: Tensor) -> Tensor:
    """Rows of queries, and their sum: all of them together."""
    return torch.cat([values, values.sum(dim=0, keepdim=True)])


def _contributions(members: dict[str, list[int]], clusters: list[list[int]], scores: Tensor, decoys: Tensor) -> Groups:
    """The test on sums, of each query and of all together.

    Near duplicates score alike, and as many independent decoys do not: a contributor's duplicates of each other enter the test
    once, as :func:`_as_one` says. They enter the total that is shown with their sum.
    """
    everything, columns = _with_all(scores), list[Tensor]()
    distinct: list[list[int]] = []
    for group in members.values():
        within = [sorted(set(cluster) & set(group)) for cluster in clusters]
        within = [cluster for cluster in within if len(cluster) > 1]
        alone = sorted(set(group).difference(*within))
        first = len(columns)
        columns += [_as_one(everything[:, cluster]) for cluster in [*within, *([number] for number in alone)]]
        distinct.append(list(range(first, len(columns))))
    p_values = sum_p_values(torch.stack(columns, dim=1), _with_all(decoys), distinct, seed=_SEED).p_values
    return _groups("contributor", members, scores, p_values)


def _of_clusters(members: dict[str, list[int]], scores: Tensor, decoys: Tensor) -> Groups:
    """The test on near duplicates, of each query and of all together: a cluster as if it were one image."""
    everything = _with_all(scores)
    single = torch.stack([_as_one(everything[:, cluster]) for cluster in members.values()], dim=1)
    return _groups("cluster", members, scores, decoy_p_values(single, _with_all(decoys)))


def _as_one(scores: Tensor) -> Tensor:
    """One score for near duplicates, ``(num_queries, num_images)``: the median, of two in the middle the lower one.

    Copies of one image score as that image does, however many they are. Where the images are less alike, more than half of
    them must score so high, which is rarer than that one does; their mean would be high as soon as a single one is very high.
    """
    return scores.median(dim=1).values


def _groups(kind: str, members: dict[str, list[int]], scores: Tensor, p_values: Tensor) -> Groups:
    everything = _with_all(scores)
    totals = torch.stack([everything[:, group].sum(dim=1) for group in members.values()], dim=1)
    whole = everything.sum(dim=1, keepdim=True)
    signed = (scores < 0).any(dim=1, keepdim=True)
    mean_nothing = torch.cat([signed, signed.any(dim=0, keepdim=True)]) | (whole <= 0)
    shares = torch.where(mean_nothing, torch.nan, totals / whole)
    return Groups(kind, list(members), list(members.values()), totals, shares, p_values, adjusted(p_values))
