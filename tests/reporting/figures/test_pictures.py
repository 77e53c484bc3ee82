from __future__ import annotations

import os
from pathlib import Path

import torch
from matplotlib.text import Text
from sample_records import sample_record

from attribench import ImageSet, Queries
from attribench.method import SpatialEvidence
from attribench.records.answers import Explained, Explanation
from attribench.records.gallery import Gallery
from attribench.reporting.boards import Board
from attribench.reporting.figures.pictures import explanation, gallery
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


def test_a_file_s_name_that_is_not_utf_8_is_shown_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x07.png")
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    evidence = SpatialEvidence(query_map=torch.ones(8, 8), train_map=torch.ones(8, 8), matches=())
    figure = explanation(Explanation(name, image, [Explained(1, 0, name, image, 1.0, evidence)]), f"nda[{name}]")
    assert all(path.stat().st_size > 0 for path in save(figure, tmp_path / "figure", ("svg", "png", "pdf")))
    shown = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert "query\ncaf\\xe9\\x07.png" in shown


def test_so_it_is_in_a_gallery(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    record = sample_record(method="nda")
    result = record.results["validation"].model_copy(update={"query_ids": [name]})
    record = record.model_copy(update={"method": f"nda[{name}]", "results": {"validation": result}})
    queries = Queries(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (name,), "validation")
    train = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), tuple("abcd"))
    tensors = Gallery.of(queries, torch.rand(1, 4), train).tensors("validation.gallery")
    figure = gallery(Board([record], {record.method: tensors}), "validation", 0)
    assert figure is not None
    assert all(path.stat().st_size > 0 for path in save(figure, tmp_path / "figure", ("svg", "png", "pdf")))
    shown = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert r"nda[caf\xe9.png]" in shown
    assert any(text.endswith(r"query caf\xe9.png") for text in shown)
