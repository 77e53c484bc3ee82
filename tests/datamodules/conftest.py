from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cifar_files import CifarFiles, write_cifar


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CifarFiles:
    """300 train and 200 test images, all ten classes, in no order."""
    rng = np.random.default_rng(0)
    train, test = rng.permutation(np.arange(300) % 10), rng.permutation(np.arange(200) % 10)
    return write_cifar(tmp_path / "data", train, test, monkeypatch)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every connection fails at once; the list holds the addresses that were asked for."""
    asked: list[str] = []

    def refuse(request: object, *args: object, **kwargs: object) -> None:
        asked.append(getattr(request, "full_url", str(request)))
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked
