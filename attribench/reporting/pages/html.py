"""What the pages share: templates, and images as text inside the page, which then needs no other file and no network."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attribench import __version__
from attribench.data import to_rgb
from attribench.records.files import MethodRecord
from attribench.reporting.collection import Draughtsman, Drawing
from attribench.reporting.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure inside a page; its size is in CSS pixels."""

    uri: str
    width: int
    height: int
    caption: str


class PageParts:
    """What the sections of a page share: links to records, figures, and identities that no two sections have.

    Args:
        results: the folder of the records.
        out: where the page will be.
        draughtsman: draws the figures.
    """

    def __init__(self, results: Path, out: Path, draughtsman: Draughtsman) -> None:
        self._results, self._folder = results.resolve(), out.resolve().parent
        self._draughtsman = draughtsman
        self._identities: set[str] = set()

    def link(self, record: MethodRecord) -> dict[str, str]:
        """The address of a record's file, relative to the page, and the file's name."""
        path = Path(os.path.relpath(self._results / record.path, self._folder))
        return {"link": quote(os.fsencode(path.as_posix()), safe="/+,="), "file": record.path.name}

    def drawn(self, drawings: Iterable[Drawing]) -> list[Picture]:
        """The figures that can be drawn, with their captions."""
        found = (
            self._draughtsman.draw(drawing, partial(figure_picture, caption=drawing.caption)) for drawing in drawings
        )
        return [picture for picture in found if picture is not None]

    def identity(self, text: str) -> str:
        """``text`` as an HTML id, with a number behind it where it, or one too like it, was asked for before."""
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        number, found = 1, name
        while found in self._identities:
            number, found = number + 1, f"{name}-{number + 1}"
        self._identities.add(found)
        return found


def render_page(template: str, **values: Any) -> str:
    """Fill a template of ``reporting/pages/templates``; all values are escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("attribench.reporting.pages").joinpath("templates")

    def load(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    environment = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template)
    return page.render(css=Markup(load("page.css")), js=Markup(load("page.js")), version=__version__, **values)


def image_uri(image: Tensor) -> str:
    """uint8 ``(C, H, W)`` as a PNG inside the page."""
    return pixels_uri(to_rgb(image).numpy() if image.shape[0] != 1 else image[0].numpy())


def pixels_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 ``(H, W)`` or ``(H, W, 3)`` as a PNG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure_picture(figure: Figure, caption: str) -> Picture:
    """A figure as SVG inside the page."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    uri = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, width, height, caption)
