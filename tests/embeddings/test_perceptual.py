"""LPIPS without its weights, and what it must be whatever the weights: 0 for equal images, the same either way round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from attribench.embeddings.perceptual import lpips_distance, lpips_unavailable, weights_file


def test_without_weights_it_says_so_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert "AlexNet's weights are not at hand" in (lpips_unavailable(1) or "")
    assert "2 channels" in (lpips_unavailable(2) or "")
    assert not any(tmp_path.iterdir())
    weights_file().parent.mkdir()
    weights_file().touch()
    assert lpips_unavailable(3) is None


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 70)])
def test_equal_images_are_at_no_distance(monkeypatch: pytest.MonkeyPatch, channels: int, side: int) -> None:
    from torchvision.models import alexnet

    def features(*_: object, **__: object) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return alexnet(weights=None).features

    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", features)
    images = torch.randint(
        0, 256, (2, channels, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    pairs = torch.stack([images, images.flip(0)], dim=1)
    found = lpips_distance(images, pairs, torch.device("cpu"))
    assert found.shape == (2, 2)
    assert found[:, 0].abs().max() < 1e-6
    assert (found[:, 1] > 1e-4).all()
    assert found[0, 1].item() == pytest.approx(found[1, 1].item(), rel=1e-4)
