"""How figures look: colours that colour-blind readers tell apart, and files that come out the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MUTED = "#666666"
ACCESS_COLOURS = {
    "DATA": COLOURS[0],
    "MODEL": COLOURS[1],
    "CHECKPOINTS": COLOURS[2],
    "RETRAINED": COLOURS[3],
    "UNKNOWN": MUTED,
}
ACCESS_MARKERS = {"DATA": "o", "MODEL": "s", "CHECKPOINTS": "^", "RETRAINED": "v", "UNKNOWN": "D"}
FORMATS = ("svg", "pdf", "png")

_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "attribench",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    # Names of files, labels and methods are no TeX: "$" is a dollar.
    "text.parse_math": False,
    "text.usetex": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw, and save, inside."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write a figure as ``<stem>.<format>``, without a date, so that the same figure is the same file."""
    paths = []
    stem.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        for kind in formats:
            path = stem.with_name(f"{stem.name}.{kind}")
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[kind]
            figure.savefig(path, format=kind, dpi=200, metadata=metadata)
            paths.append(path)
    return paths
