"""Pictures whose relations are known because they were drawn so: what any attribution method can be asked without a model.

One train set serves all cases: pictures of eight shapes on smooth grounds, some of them three times. A case is a set of queries
and, for each of them, the train images that are the right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.data.image_sets import ImageSet

#: Side of the pictures in pixels.
SIDE = 16

_PER_CLASS = 12
_NUM_QUERIES = 16
_NUM_TRIPLED = 8

#: Side of what is cut out of a picture and pasted into another one.
_PASTED = 10
_SHIFT = (2, 3)
_DARKER = 0.6

Grey = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A question with its right answer.

    Attributes:
        name: short, as in a table's heading.
        asked: what the queries are, in words.
        queries: the queries.
        right: bool ``(num_queries, num_train)``: the train images that should score above all others; None where the question
            is which queries have an answer at all.
        answerable: bool ``(num_queries,)``: the queries whose strongest train image should score above that of the others;
            None where ``right`` is given.
    """

    name: str
    asked: str
    queries: ImageSet
    right: Tensor | None = None
    answerable: Tensor | None = None


@dataclass(frozen=True, eq=False)
class KnownCases:
    """The train images, and the cases that are asked about them."""

    train: ImageSet
    cases: tuple[Case, ...]

    def queries(self) -> ImageSet:
        """The queries of all cases, one after the other."""
        parts = [case.queries for case in self.cases]
        return ImageSet(torch.cat([part.images for part in parts]), tuple(name for part in parts for name in part.ids))


def known_cases(seed: int = 0) -> KnownCases:
    """Draw the pictures; the same seed draws the same ones.

    =========== =====================================================================================================
    copy        The query is a train image.
    duplicates  The query is in the train set three times; all three are right.
    mirrored    The query is a train image's mirror image.
    shifted     … moved by two and three pixels; what comes in repeats the edge.
    darker      … at 60 % of its brightness.
    pasted      A part of a train image, 10 of 16 pixels wide, on a ground of its own.
    class       A new picture of a shape that is in the train set; all train images of that shape are right.
    held out    New pictures, half of them of a shape that is not in the train set: these have no answer.
    =========== =====================================================================================================
    """
    generator = np.random.default_rng(derive_seed(seed, "known cases"))
    shapes = list(_SHAPES)[:-1]
    drawn = [_picture(generator, shape) for _ in range(_PER_CLASS) for shape in shapes]
    labels = [number for _ in range(_PER_CLASS) for number in range(len(shapes))]
    tripled = list(range(_NUM_TRIPLED))
    train = [*drawn, *(drawn[index] for index in tripled for _ in range(2))]
    labels += [labels[index] for index in tripled for _ in range(2)]
    train_set = ImageSet(_images(train), tuple(f"known-{n}" for n in range(len(train))), torch.tensor(labels))
    # Sources are single; each case has others, as far as they go.
    sources = generator.permutation(np.arange(_NUM_TRIPLED, len(drawn)))

    def about(name: str, asked: str, place: int, change: Callable[[Grey], Grey]) -> Case:
        chosen = sources[np.arange(place, place + _NUM_QUERIES) % len(sources)]
        right = torch.zeros(_NUM_QUERIES, len(train), dtype=torch.bool)
        right[torch.arange(_NUM_QUERIES), torch.from_numpy(chosen)] = True
        return Case(name, asked, _queries(name, [change(drawn[index]) for index in chosen]), right)

    copies = torch.zeros(_NUM_TRIPLED, len(train), dtype=torch.bool)
    for number, index in enumerate(tripled):
        copies[number, [index, len(drawn) + 2 * number, len(drawn) + 2 * number + 1]] = True
    exemplars = [number % len(shapes) for number in range(_NUM_QUERIES)]
    new = [_picture(generator, shapes[shape]) for shape in exemplars]
    foreign = [_picture(generator, list(_SHAPES)[-1]) for _ in range(_NUM_QUERIES)]
    step = _NUM_QUERIES
    cases = (
        about("copy", "a train image", 0, lambda image: image),
        Case(
            "duplicates",
            "an image that is in the train set three times",
            _queries("duplicates", [drawn[index] for index in tripled]),
            copies,
        ),
        about("mirrored", "a train image's mirror image", step, lambda image: image[:, ::-1]),
        about("shifted", "a train image, moved by two and three pixels", 2 * step, _shifted),
        about("darker", "a train image at 60 % of its brightness", 3 * step, lambda image: _DARKER * image),
        about("pasted", "part of a train image on another ground", 4 * step, lambda image: _pasted(generator, image)),
        Case(
            "class",
            "a new picture of a shape that is in the train set",
            _queries("class", new),
            torch.tensor(exemplars)[:, None] == torch.tensor(labels),
        ),
        Case(
            "held out",
            "new pictures, half of them of a shape that is not in the train set",
            _queries("held-out", [*new, *foreign]),
            answerable=torch.arange(2 * _NUM_QUERIES) < _NUM_QUERIES,
        ),
    )
    return KnownCases(train_set, cases)


def _queries(name: str, images: list[Grey]) -> ImageSet:
    return ImageSet(_images(images), tuple(f"{name}-{number}" for number in range(len(images))))


def _images(images: list[Grey]) -> Tensor:
    """Grey in 0…1 as uint8 ``(N, 1, SIDE, SIDE)``."""
    return torch.from_numpy(np.rint(255 * np.stack(images).clip(0, 1)).astype(np.uint8))[:, None]


def _shifted(image: Grey) -> Grey:
    down, right = _SHIFT
    return np.pad(image, ((down, 0), (right, 0)), "edge")[:SIDE, :SIDE]


def _pasted(generator: np.random.Generator, image: Grey) -> Grey:
    """The middle of a picture somewhere on a ground without a shape."""
    result = _ground(generator)
    begin = (SIDE - _PASTED) // 2
    top, left = generator.integers(0, SIDE - _PASTED + 1, 2)
    middle = image[begin : begin + _PASTED, begin : begin + _PASTED]
    result[top : top + _PASTED, left : left + _PASTED] = middle
    return result


def _ground(generator: np.random.Generator) -> Grey:
    """Smooth noise: a coarse grid of grey levels, bilinearly between."""
    coarse = generator.uniform(0.0, 0.6, (5, 5))
    place = np.linspace(0, 4, SIDE)
    lower = np.minimum(place.astype(int), 3)
    share = place - lower
    rows = coarse[lower] * (1 - share)[:, None] + coarse[lower + 1] * share[:, None]
    smooth: Grey = rows[:, lower] * (1 - share) + rows[:, lower + 1] * share
    return smooth


def _picture(generator: np.random.Generator, shape: str) -> Grey:
    """A bright, textured shape of some size somewhere on a ground."""
    size = generator.uniform(4.0, 6.5)
    vertical, horizontal = generator.uniform(size - 0.5, SIDE - size - 0.5, 2)
    down, across = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    inside = _SHAPES[shape]((down - vertical) / size, (across - horizontal) / size)
    return np.where(inside, 0.55 + 0.7 * _ground(generator), _ground(generator))


#: Whether a point belongs to the shape; coordinates are −1…1 within it. The last shape is held out.
_SHAPES: dict[str, Callable[[Grey, Grey], NDArray[np.bool_]]] = {
    "disc": lambda y, x: y**2 + x**2 < 0.8,
    "ring": lambda y, x: (y**2 + x**2 < 1.0) & (y**2 + x**2 > 0.35),
    "square": lambda y, x: np.maximum(abs(y), abs(x)) < 0.8,
    "frame": lambda y, x: (np.maximum(abs(y), abs(x)) < 0.95) & (np.maximum(abs(y), abs(x)) > 0.55),
    "plus": lambda y, x: (np.minimum(abs(y), abs(x)) < 0.25) & (np.maximum(abs(y), abs(x)) < 1.0),
    "cross": lambda y, x: (np.minimum(abs(y + x), abs(y - x)) < 0.35) & (np.maximum(abs(y), abs(x)) < 0.95),
    "bars": lambda y, x: (np.maximum(abs(y), abs(x)) < 1.0) & (abs(abs(y) - 0.6) < 0.28),
    "triangle": lambda y, x: (abs(x) < (y + 1) / 2) & (abs(y) < 0.9),
    "columns": lambda y, x: (np.maximum(abs(y), abs(x)) < 1.0) & (abs(abs(x) - 0.6) < 0.28),
}
