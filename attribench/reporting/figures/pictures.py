"""Figures made of images: proponents and opponents, images before and after, heat maps of evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attribench.computing.names import readable
from attribench.data import to_rgb
from attribench.records.answers import Explanation
from attribench.records.counterfactual import CounterfactualRecord
from attribench.records.gallery import Gallery
from attribench.reporting.boards import Board
from attribench.reporting.figures.style import COLOURS, styled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Side of an image in a grid, inches, and what stands between two.
_SIDE, _GAP, _TEXT = 0.5, 0.06, 0.12


@dataclass(frozen=True)
class _Tile:
    """An image at a place of a grid, in columns and rows, with a line of text below."""

    column: float
    row: int
    image: Tensor
    text: str = ""


def gallery(board: Board, query_set: str, number: int) -> Figure | None:
    """One query: a row a method, with its strongest proponents on the left and opponents on the right.

    Args:
        board: with attachments.
        query_set: which.
        number: of the query in the gallery.

    Returns:
        None if no method's gallery has the query.
    """
    found = [
        (record, shown)
        for record in board.records
        if (shown := Gallery.from_tensors(board.attachments.get(record.method, {}), f"{query_set}.gallery")) is not None
        and number < len(shown.queries)
    ]
    if not found:
        return None
    count = found[0][1].indices.shape[2]
    starts = (1.4, 1.4 + count + 0.4)
    tiles = [_Tile(0, 0, found[0][1].images[number])]
    for row, (_, shown) in enumerate(found):
        for side, start in enumerate(starts):
            for place in range(count):
                score = f"{shown.scores[number, side, place].item():.2g}"
                tiles.append(_Tile(start + place, row, shown.train_images[number, side, place], score))
    index = int(found[0][1].queries[number])
    ids = board.ids(query_set)
    heads = [(0.0, "query"), (starts[0], "proponents, strongest first"), (starts[1], "opponents, strongest first")]
    title = f"{board.first.title}: {query_set} query {ids[index] if index < len(ids) else index}"
    return _grid(tiles, [record.method for record, _ in found], heads, title)


def before_and_after(
    group: Sequence[CounterfactualRecord], attachments: Mapping[str, Mapping[str, Tensor]], most: int = 12
) -> Figure | None:
    """Original queries, and what models generate from the same noise after retraining; a row a query, first seed.

    Returns:
        None if no images are at hand.
    """
    shown = [record for record in group if "regenerated" in attachments.get(record.method, {})]
    if not shown:
        return None
    originals = attachments[shown[0].method]["originals"]
    rows = range(min(most, len(originals)))
    width = 1.5  # columns are further apart than in a gallery: they have names
    tiles = [_Tile(0, row, originals[row]) for row in rows]
    heads = [(0.0, "original")]
    for number, record in enumerate(shown, start=1):
        heads.append((width * number, "control" if record.is_control else f"without {record.method}"))
        tiles += [_Tile(width * number, row, attachments[record.method]["regenerated"][row, 0]) for row in rows]
    labels = [shown[0].query_ids[row].rpartition("-")[2] for row in rows]
    return _grid(tiles, labels, heads, group[0].title, slanted=True)


def _grid(
    tiles: Sequence[_Tile], labels: Sequence[str], heads: Sequence[tuple[float, str]], title: str, slanted: bool = False
) -> Figure:
    """Images in rows with names on the left and heads above, drawn in one coordinate system: quick for hundreds."""
    columns = 1 + max(tile.column for tile in tiles)
    step, rise = _SIDE + _GAP, _SIDE + _GAP + (_TEXT if any(tile.text for tile in tiles) else 0)
    left, above = 0.08 * max(len(readable(label)) for label in labels) + 0.2, 1.05 if slanted else 0.62
    width, height = left + step * columns + (0.6 if slanted else 0.1), above + rise * len(labels) + 0.05
    with styled():
        figure = _figure(width, height, layout=None)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, width), ylim=(height, 0))
        for tile in tiles:
            x, y = left + step * tile.column, above + rise * tile.row
            axes.imshow(to_rgb(tile.image).numpy(), extent=(x, x + _SIDE, y + _SIDE, y), interpolation="nearest")
            if tile.text:
                axes.text(x + _SIDE / 2, y + _SIDE + 0.02, readable(tile.text), fontsize=5, ha="center", va="top")
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        for row, label in enumerate(map(readable, labels)):
            axes.text(left - 0.08, above + rise * row + _SIDE / 2, label, fontsize=7, ha="right", va="center")
        for column, head in heads:
            x, y = left + step * column, above - 0.06
            axes.text(
                x, y, readable(head), fontsize=7, va="bottom", rotation=30 if slanted else 0, rotation_mode="anchor"
            )
        axes.text(0.1, 0.1, readable(title), fontsize=8, ha="left", va="top", wrap=True)
    return figure


def explanation(shown: Explanation, method: str) -> Figure:
    """A query's strongest train images: heat maps of the score over both pictures, and the patches that match."""
    count = len(shown.images)
    with styled():
        figure = _figure(1.2 + 1.35 * count, 4.4)
        axes = figure.subplots(3, count + 1, squeeze=False, width_ratios=[1, *[1] * count])
        _show(axes[0, 0], shown.query)
        axes[0, 0].set_title(f"query\n{readable(shown.query_id)}", fontsize=7)
        for row in (1, 2):
            axes[row, 0].axis("off")
        axes[1, 0].text(0.5, 0.5, "query: the region\nit accounts for", ha="center", va="center", fontsize=7)
        axes[2, 0].text(0.5, 0.5, "train image:\nwhere it is", ha="center", va="center", fontsize=7)
        for column, item in enumerate(shown.images, start=1):
            _show(axes[0, column], item.image)
            axes[0, column].set_title(f"{item.rank}. {readable(item.image_id)}\nscore {item.score:.3g}", fontsize=6)
            _show(axes[1, column], shown.query, item.evidence.query_map)
            _show(axes[2, column], item.image, item.evidence.train_map)
            for colour, match in zip(COLOURS[1:4], item.evidence.matches, strict=False):
                _box(axes[1, column], match.query_box, colour)
                _box(axes[2, column], match.train_box, colour)
        figure.suptitle(
            f"{readable(method)}: maps sum to the score; boxes: the strongest pairs of patches, a colour each",
            fontsize=8,
        )
    return figure


def heat(image: Tensor, values: Tensor) -> NDArray[np.uint8]:
    """An image under a heat map: uint8 ``(H, W, 3)``. Where nothing is, the image is dimmed grey; where most is, bright."""
    import matplotlib as mpl

    grey = to_rgb(image).double().mean(dim=2).numpy()[..., None] / 255.0
    strength = values.clamp(min=0).double().numpy()
    strength = strength / strength.max() if strength.max() > 0 else strength
    colour = mpl.colormaps["inferno"](0.15 + 0.85 * strength)[..., :3]
    mixed = (1 - 0.75 * strength[..., None]) * 0.75 * grey + 0.75 * strength[..., None] * colour
    return np.asarray(255 * mixed.clip(0, 1) + 0.5, np.uint8)


def _show(axes: Axes, image: Tensor | None, values: Tensor | None = None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if image is not None:
        pixels = to_rgb(image).numpy() if values is None else heat(image, values)
        axes.imshow(pixels, interpolation="nearest")


def _box(axes: Axes, box: tuple[int, int, int, int], colour: str) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = box
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.2))


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)
