from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.text import Text

from attribench.method import SpatialEvidence
from attribench.records.answers import Explained, Explanation
from attribench.reporting.figures.pictures import explanation
from attribench.reporting.figures.style import save


def test_a_file_s_name_is_no_mathematics(tmp_path: Path) -> None:
    name = r"$\frac{$.png"
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    evidence = SpatialEvidence(query_map=torch.ones(8, 8), train_map=torch.ones(8, 8), matches=())
    figure = explanation(Explanation(name, image, [Explained(1, 0, name, image, 1.0, evidence)]), f"nda[{name}]")
    assert all(path.stat().st_size > 0 for path in save(figure, tmp_path / "figure", ("svg", "png", "pdf")))
    shown = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert f"query\n{name}" in shown
    assert any(text.startswith(f"1. {name}") for text in shown)
