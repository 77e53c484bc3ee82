"""Files of the layout in which D-TRAK's authors publish ground truth."""

import pickle
from pathlib import Path
from typing import Any

LOSSES = "saved/5000-0.5/lds-val"
INDICES = "data/indices/5000-0.5"


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, 4))


def write_losses(file: Path, losses: Any, batch_size: int = 3, as_lists: bool = False) -> None:
    """Losses ``(1000, num_queries)`` in batches: arrays, or lists over timesteps as D-TRAK's evaluation appends them."""
    batches = [losses[:, start : start + batch_size] for start in range(0, losses.shape[1], batch_size)]
    write(file, [[step.copy() for step in batch] if as_lists else batch.copy() for batch in batches])
